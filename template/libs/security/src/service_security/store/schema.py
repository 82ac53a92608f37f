"""The tables of a database, frozen, and how a connection to it is set up."""

import os
from pathlib import Path
from typing import Final

import apsw

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


def connect(path: Path, flags: int = apsw.SQLITE_OPEN_READWRITE) -> apsw.Connection:
    """Return a connection to an existing file, set up for records that must survive a crash.

    Nothing is written to the file, not even a log that it has is moved into it: whether it is one
    of ours has yet to be seen. ``use_journal`` comes after that.

    Raises:
        ConfigurationError: The path is not UTF-8, as SQLite needs it.
        apsw.Error: It cannot be opened; ``translated`` has the sentences.
    """
    try:
        name = os.fspath(path.absolute())
        name.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"The path {path!a} is not UTF-8. Rename the folder.") from None
    connection = apsw.Connection(name, flags=flags)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        connection.pragma("mmap_size", 0)  # a truncated file under mmap is a SIGBUS, not an error
        connection.pragma("secure_delete", True)
        connection.pragma("synchronous", "FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> apsw.Connection:
    """Return a connection to an existing file that writes nothing into it.

    Raises:
        ConfigurationError: As for ``connect``.
        apsw.Error: As for ``connect``.
    """
    return connect(path, apsw.SQLITE_OPEN_READONLY)


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
    """Return everything that was created in a database, by name, as SQL text."""
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return {str(name): str(sql) for name, sql in rows}


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
