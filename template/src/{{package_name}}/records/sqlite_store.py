"""Records in an SQLite database, with the standard library's module.

One connection behind a lock: a commit waits for the disk, and more connections would only wait for
each other. Write-ahead logging is not used, so the database is a single file.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..errors import StartError
from .store import DamagedRecordError, Page, StoreUnavailableError

SCHEMA = (
    "CREATE TABLE records (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, value BLOB NOT NULL)"
)

_MAGIC = b"SQLite format 3\x00"
_NOTE_CHARACTERS = 600


class SqliteRecordStore:
    """A `RecordStore` in one SQLite file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> "SqliteRecordStore":
        """Open a database, or create it, readable by its owner only.

        Raises:
            StartError: the file is not a database of this service, or cannot be used.
        """
        try:
            _refuse_other_files(path)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StartError(f"The database {path} cannot be opened: {error}.") from error
        try:
            _prepare(connection, path)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise StartError(
                f"The database {path} is damaged or not readable: {error}."
                " It has been left as it is; put a backup in its place."
            ) from error
        except StartError:
            connection.close()
            raise
        return cls(connection)

    def put(self, name: str, value: str) -> bool:
        """Keep a value under a name, durably; return whether the name is new."""
        blob = value.encode()
        with self._statements() as connection:
            connection.execute("BEGIN IMMEDIATE")
            replaced = connection.execute(
                "UPDATE records SET value = ? WHERE name = ?", (blob, name)
            ).rowcount
            if not replaced:
                connection.execute("INSERT INTO records (name, value) VALUES (?, ?)", (name, blob))
            connection.execute("COMMIT")
        return not replaced

    def get(self, name: str) -> str | None:
        """Return the value, or `None` if there is no such record."""
        with self._statements() as connection:
            row = connection.execute("SELECT value FROM records WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        try:
            return bytes(row[0]).decode()
        except (TypeError, UnicodeDecodeError):
            raise DamagedRecordError("a stored name or value is not text") from None

    def delete(self, name: str) -> bool:
        """Remove a record; return whether there was one."""
        with self._statements() as connection:
            return connection.execute("DELETE FROM records WHERE name = ?", (name,)).rowcount > 0

    def page(self, after: int, limit: int) -> Page:
        """Return up to `limit` names beyond a position."""
        with self._statements() as connection:
            rows: list[tuple[int, str]] = connection.execute(
                "SELECT id, name FROM records WHERE id > ? ORDER BY id LIMIT ?", (after, limit + 1)
            ).fetchall()
        names = [name for _, name in rows[:limit]]
        return Page(names, rows[limit - 1][0] if len(rows) > limit else None)

    def check(self) -> None:
        """Raise if the database cannot be read."""
        with self._statements() as connection:
            connection.execute("SELECT id FROM records LIMIT 1").fetchone()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _statements(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.OperationalError as error:
                raise StoreUnavailableError(str(error)) from error
            except sqlite3.DatabaseError as error:
                raise DamagedRecordError(str(error)) from error
            finally:
                if self._connection.in_transaction:
                    self._connection.rollback()


def _refuse_other_files(path: Path) -> None:
    # Looked at before SQLite sees the file, which would write to one with a write-ahead log.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        header = os.read(descriptor, 100)
    finally:
        os.close(descriptor)
    if not header:
        return
    if len(header) < 100 or not header.startswith(_MAGIC):
        raise _not_ours(path, "it is not an SQLite database, or its beginning is damaged")
    if 2 in header[18:20]:
        raise _not_ours(path, "it uses write-ahead logging, which this service does not")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    # EXTRA is FULL and a sync of the folder, without which a power cut can undo the last commit.
    connection.execute("PRAGMA synchronous = EXTRA")
    with closing(
        connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type != 'index' AND name NOT LIKE 'sqlite_%'"
        )
    ) as cursor:
        schema = cursor.fetchall()
    if not schema:
        connection.execute(SCHEMA)
    elif schema != [("records", SCHEMA)]:
        raise _not_ours(path, "it has other tables than this service writes")
    # Reads the whole file, about half a second for 500 MB: a fault is better found here than later.
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise sqlite3.DatabaseError(finding)


def _not_ours(path: Path, reason: str) -> StartError:
    sentence = f"{path} is not a database of this service: {reason}. It has been left as it is."
    note = _note(path.with_name(path.name + ".README.txt"))
    return StartError(f"{sentence} Beside it stands: {note}" if note else sentence)


def _note(path: Path) -> str:
    """Return what a text file beside the database has to say about it."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = " ".join(file.read(8 * _NOTE_CHARACTERS).split())
    except OSError:
        return ""
    return "".join(filter(str.isprintable, text))[:_NOTE_CHARACTERS]
