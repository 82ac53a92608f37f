"""The write-ahead log of an open store: emptying it, and telling whether old contents are in it."""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

import apsw

from .._files import exists
from .schema import BUSY_TIMEOUT_MS
from .sqlite_errors import translated
from .store_file import StoreFile

_HEADER: Final = struct.Struct(">4I4s4s8x")
"""Magic, version, page size, number of the log, and two salts that are new with every number."""
_FRAME: Final = struct.Struct(">2I4s4s8x")
"""Page, size of the database, and the salts of the log that it belongs to; then comes the page."""
_MAGIC: Final = (0x377F0682, 0x377F0683)


def empty_log(file: StoreFile, *, patience_ms: int = BUSY_TIMEOUT_MS) -> bool:
    """Move the log into the database file and cut it to nothing.

    Args:
        file: The open file.
        patience_ms: How long to wait for others who read or write. Threads of this process wait
            with it.

    Returns:
        False when somebody reads the log, or writes, for longer than that. It is as it was.

    Raises:
        StoreUnavailableError: The device failed, now or before.
    """
    with file:
        file.refuse_after_failed_write()
        file.connection.set_busy_timeout(patience_ms)
        try:
            result: Any = file.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except apsw.BusyError:
            return False
        except apsw.IOError as error:
            file.note_failed_write(error)
            raise
        finally:
            file.connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        return result is not None and not result[0]  # (busy, pages in the log, pages moved)


def log_size(file: StoreFile) -> int:
    """Return the size of the log in bytes.

    Raises:
        StoreUnavailableError: It cannot be told.
    """
    log = _log_of(file)
    with translated(file.path):
        return log.stat().st_size if exists(log) else 0


def log_holds_a_keyset(file: StoreFile) -> bool:
    """Tell whether the log holds pages from before the last change of the keyset.

    A change writes the page of the header, and the log is emptied behind it. So a log without
    that page was begun later; unless it was begun anew without being cut, and what was in it before
    lies behind its end.

    Raises:
        StoreUnavailableError: It cannot be read.
    """
    with file:
        root = file.connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE type = 'table' AND name = 'header'"
        ).get
    log = _log_of(file)
    with translated(file.path):
        if not exists(log):
            return False
        with log.open("rb") as source:
            return _holds(source, root)


def _holds(log: BinaryIO, root: object) -> bool:
    head = log.read(_HEADER.size)
    if len(head) < _HEADER.size:
        return bool(head)
    magic, _, page_size, _, *salts = _HEADER.unpack(head)
    if magic not in _MAGIC:
        return True
    while frame := log.read(_FRAME.size):
        if len(frame) < _FRAME.size:
            return True
        page, _, *own = _FRAME.unpack(frame)
        if own != salts or page == root:
            return True
        log.seek(page_size, os.SEEK_CUR)
    return False


def _log_of(file: StoreFile) -> Path:
    return file.absolute.with_name(f"{file.absolute.name}-wal")
