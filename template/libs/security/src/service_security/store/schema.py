"""The tables of a database, frozen, and how a connection to it is set up."""

import os
from pathlib import Path
from typing import Final

import apsw

from ..errors import IntegrityError, StoreUnavailableError, UnsupportedFormatError

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

_BUSY_TIMEOUT_MS: Final = 5_000


def connect(path: Path) -> apsw.Connection:
    """Return a connection to an existing file, set up for records that must survive a crash.

    Nothing is written to the file: whether it is one of ours has yet to be seen.

    Raises:
        apsw.Error: It cannot be opened; ``translated`` has the sentences.
    """
    connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        connection.pragma("mmap_size", 0)  # a truncated file under mmap is a SIGBUS, not an error
        connection.pragma("secure_delete", True)
        connection.pragma("synchronous", "FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def use_journal(connection: apsw.Connection, path: Path, mode: str) -> None:
    """Set the journal mode, which is stored in the file.

    Args:
        connection: To the file.
        path: Its name, for the message.
        mode: ``wal``, or ``delete``, which succeeds only if nobody else has the file open.

    Raises:
        StoreUnavailableError: Another process has the file open.
    """
    if connection.pragma("journal_mode", mode) != mode:
        raise StoreUnavailableError(
            f"Another process has {path} open. Stop the service first, then try again."
        )


def check_tables(connection: apsw.Connection, path: Path) -> None:
    """Compare the tables of a file with the frozen ones.

    Raises:
        UnsupportedFormatError: The header names another format.
        IntegrityError: The tables are not the ones of this format.
    """
    present = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
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
    if present != TABLES:
        raise IntegrityError(
            f"{path} does not have the tables of an encrypted store, or has others besides. "
            "Restore it from a backup; the file is unchanged."
        )
