"""The tables of a database, frozen, and how a connection to it is set up."""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import apsw

from .._files import exists
from ..errors import (
    ConfigurationError,
    IntegrityError,
    StoreUnavailableError,
    UnsupportedFormatError,
)

FORMAT: Final = 1

TABLES: Final = {
    "header": (
        "CREATE TABLE header (id INTEGER PRIMARY KEY CHECK (id = 1), format INTEGER NOT NULL, "
        "db_id BLOB NOT NULL, master_id BLOB NOT NULL, keyset_generation INTEGER NOT NULL, "
        "keyset BLOB NOT NULL, mac BLOB NOT NULL) STRICT"
    ),
    "lease": (
        "CREATE TABLE lease (id INTEGER PRIMARY KEY CHECK (id = 1), next INTEGER NOT NULL) STRICT"
    ),
    "record": (
        "CREATE TABLE record (id INTEGER PRIMARY KEY, token BLOB NOT NULL UNIQUE, "
        "key_id INTEGER NOT NULL, sealed BLOB NOT NULL) STRICT"
    ),
}
"""Ordinary rowid tables: WITHOUT ROWID spills a 1 KiB value and reads four times slower."""

BUSY_TIMEOUT_MS: Final = 5_000

_INDEX_BYTES: Final = 32 * 1024
"""The first part of the ``-shm``, which SQLite makes at once."""
_ROOM_BYTES: Final = 2 * _INDEX_BYTES


def connect(
    path: Path, flags: int = apsw.SQLITE_OPEN_READWRITE, *, medium_is_read_only: bool = False
) -> apsw.Connection:
    """Return a connection to an existing file, set up for records that must survive a crash.

    Nothing is written to the file, not even a log that it has is moved into it: whether it is one
    of ours has yet to be seen. ``use_journal`` comes after that.

    Args:
        path: The file.
        flags: How SQLite is to open it.
        medium_is_read_only: Nobody can write it, and so no lock is needed, nor a ``-shm``.

    Raises:
        ConfigurationError: The path is not UTF-8, as SQLite needs it.
        OSError: The disk is full, or the folder cannot be read.
        apsw.Error: It cannot be opened; ``translated`` has the sentences for both.
    """
    try:
        name = os.fspath(path.absolute())
        name.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"The path {path!a} is not UTF-8. Rename the folder.") from None
    vfs = None
    if medium_is_read_only and exists(_beside(path, "-wal")):
        vfs = "unix-none"  # has no locks
    elif medium_is_read_only:
        name, flags = f"{path.absolute().as_uri()}?immutable=1", flags | apsw.SQLITE_OPEN_URI
    else:
        _refuse_without_room(path)
    connection = apsw.Connection(name, flags=flags, vfs=vfs)
    try:
        if vfs is not None:  # the index of the log is then kept in memory
            connection.pragma("locking_mode", "exclusive")
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        reads_only = bool(flags & apsw.SQLITE_OPEN_READONLY)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, int(not reads_only))
        # Nothing can be written then; what this permits is to read a file that was cut short.
        connection.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, int(reads_only))
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)
        connection.pragma("mmap_size", 0)  # a truncated file under mmap is a SIGBUS, not an error
        connection.pragma("secure_delete", True)
        connection.pragma("synchronous", "FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> tuple[apsw.Connection, bool]:
    """Return a connection that writes nothing into a file, and whether it reads without locks.

    SQLite itself makes two files beside a database in order to read it. On a file system that is
    mounted read-only it cannot; if they are there, somebody who may write keeps them, or has
    crashed, and they are used. If they are not, the file is read without locks, as one that nobody
    can write. Another mount of it may be writable: the caller has to look whether it changes.

    Raises:
        ConfigurationError: As for ``connect``.
        OSError: As for ``connect``.
        apsw.Error: As for ``connect``.
    """
    shared = exists(_beside(path, "-wal")) and exists(_beside(path, "-shm"))
    frozen = exists(path) and not shared and _is_on_read_only_medium(path)
    return connect(path, apsw.SQLITE_OPEN_READONLY, medium_is_read_only=frozen), frozen


def _refuse_without_room(path: Path) -> None:
    """Refuse a disk without room for the ``-shm``, which SQLite maps into memory.

    It makes sure of one byte in every 4 KiB of it. Where the blocks of the file system are smaller,
    or are copied when they are written, a full disk is then no error but a SIGBUS.
    """
    if sys.platform == "win32":
        return
    index = _beside(path, "-shm")
    with suppress(FileNotFoundError):  # it goes with the last who has the file open
        if index.stat().st_blocks * 512 >= _INDEX_BYTES:
            return
    status = os.statvfs(path.parent)
    if status.f_bavail * status.f_frsize < _ROOM_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_on_read_only_medium(path: Path) -> bool:
    return sys.platform != "win32" and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def use_journal(connection: apsw.Connection, path: Path, mode: str) -> None:
    """Take a file into use: set the journal mode, which is stored in it.

    Args:
        connection: To the file.
        path: Its name, for the message.
        mode: ``wal``, or ``delete``, which succeeds only if nobody else has the file open.

    Raises:
        StoreUnavailableError: Another process has the file open.
    """
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
    if connection.pragma("journal_mode", mode) != mode:
        raise StoreUnavailableError(
            f"Another process has {path} open. Stop the service first, then try again."
        )


def tables_of(connection: apsw.Connection) -> dict[str, str]:
    """Return everything that was created in a database as SQL text: tables by their names.

    What is no table, or has the name of one a second time, has a key that no table can have.
    """
    found: dict[str, str] = {}
    rows: Any = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
    )
    for kind, name, table, sql in rows:
        is_table = kind == "table" and name == table and name not in found
        found[str(name) if is_table else f"{kind} {name} {len(found)}"] = str(sql)
    return found


def check_tables(connection: apsw.Connection, path: Path) -> None:
    """Compare the tables of a file with the frozen ones.

    Raises:
        UnsupportedFormatError: The header names another format.
        IntegrityError: The tables are not the ones of this format.
    """
    present = tables_of(connection)
    if "header" in present:
        try:
            found = connection.execute("SELECT format FROM header WHERE id = 1").get
        except apsw.SQLError:
            found = None
        if isinstance(found, int) and found != FORMAT:
            age = "newer" if found > FORMAT else "older"
            raise UnsupportedFormatError(
                f"{path} has the {age} format {found}; this version of service-security reads "
                f"format {FORMAT}. Use the version that wrote it; the file is unchanged."
            )
    if not present:
        raise IntegrityError(
            f"{path} is empty. If it never held records, remove it; otherwise restore it from a "
            "backup."
        )
    if present != TABLES:
        raise IntegrityError(
            f"{path} does not have the tables of an encrypted store, or has others besides. "
            "Restore it from a backup; the file is unchanged."
        )
