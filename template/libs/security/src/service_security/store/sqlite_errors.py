"""SQLite's errors, and the device's behind them, as sentences for people."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from ..errors import IntegrityError, SecurityError, StoreUnavailableError

_Sentence = tuple[type[SecurityError], str]

_DAMAGED: Final = (
    IntegrityError,
    "{path} is damaged or is no database. Restore it from a backup; it was left as it is.",
)
_FULL: Final = (
    StoreUnavailableError,
    "The disk of {path} is full. Nothing was written; make room and try again.",
)
_READ_ONLY: Final = (
    StoreUnavailableError,
    "{path} is on a read-only file system. Make it writable, or open the store for reading only.",
)
_DEVICE: Final = (
    StoreUnavailableError,
    "{path} cannot be used, because its device failed: {reason}. What was acknowledged is kept; "
    "check the disk, then open it again.",
)
_SENTENCES: Final[list[tuple[tuple[type[Exception], ...], _Sentence]]] = [
    ((apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError), _DAMAGED),
    (
        (apsw.BusyError, apsw.LockedError),
        (
            StoreUnavailableError,
            "{path} is in use by another process for too long. Try again.",
        ),
    ),
    ((apsw.FullError,), _FULL),
    (
        (apsw.ReadOnlyError, apsw.PermissionsError),
        (
            StoreUnavailableError,
            "{path} may not be written. Check the owner and mode of the file and its folder.",
        ),
    ),
    (
        (apsw.CantOpenError,),
        (
            StoreUnavailableError,
            "{path} cannot be opened. Check that it is there and may be read and written.",
        ),
    ),
    ((apsw.IOError,), _DEVICE),
    (
        (apsw.Error,),
        (
            StoreUnavailableError,
            "{path} cannot be used: {kind}. What was acknowledged is kept; check the disk, then "
            "open it again.",
        ),
    ),
    (
        (OSError,),
        (
            StoreUnavailableError,
            "{path} cannot be used: {reason}. Check the file, its folder and their modes.",
        ),
    ),
]


def translation(
    error: BaseException, path: Path, connection: apsw.Connection | None = None
) -> SecurityError | None:
    """Return the library's error for one of SQLite or the system, and None for any other.

    Args:
        error: What was raised.
        path: The database file.
        connection: The one that raised it, where there is one. It knows what the system said,
            and whether the device still answers.
    """
    sentence = _of_device(error, path, connection)
    if sentence is None:
        sentence = next((s for kinds, s in _SENTENCES if isinstance(error, kinds)), None)
    if sentence is None:
        return None
    kind, text = sentence
    reason = _reason(error, connection)
    return kind(text.format(path=path, kind=type(error).__name__, reason=reason))


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise the library's errors in place of SQLite's and the system's.

    Raises:
        StoreUnavailableError: Busy, full, read-only, missing, or an input/output error.
        IntegrityError: The file is damaged or no database.
    """
    try:
        yield
    except Exception as error:
        if (ours := translation(error, path)) is None:
            raise
        raise ours from None


def is_device_failure(error: BaseException) -> bool:
    """Tell whether a write failed in a way that leaves open what the disk now holds.

    A full disk is none: SQLite has taken the write back, and goes on when there is room.
    """
    return isinstance(error, apsw.IOError) and not _is_full(error)


def _of_device(
    error: BaseException, path: Path, connection: apsw.Connection | None
) -> _Sentence | None:
    """Return the sentence for what SQLite's own kind of error says wrongly or not at all."""
    if _is_full(error):
        return _FULL
    if isinstance(error, apsw.CorruptError) and connection is not None:
        # A page that the device cannot read is CorruptError too. If it cannot read the first one
        # either, then it is the device that is gone, and no backup needs to be restored.
        try:
            connection.read("main", 0, 0, 1)
        except apsw.Error:
            return _DEVICE
    if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError) and _is_read_only(path.parent):
        return _READ_ONLY
    return None


def _is_full(error: BaseException) -> bool:
    # SQLITE_IOERR_SHMSIZE: the index of the log, a file beside it, could not be made longer.
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "extendedresult", None) == apsw.SQLITE_IOERR_SHMSIZE


def _is_read_only(folder: Path) -> bool:
    if sys.platform == "win32":
        return False
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _reason(error: BaseException, connection: apsw.Connection | None) -> str | None:
    if isinstance(error, OSError):
        return error.strerror
    if connection is not None and isinstance(error, apsw.IOError) and connection.system_errno:
        return os.strerror(connection.system_errno)
    code = getattr(error, "extendedresult", 0)
    return str(apsw.mapping_extended_result_codes.get(code, "it gives no answer"))
