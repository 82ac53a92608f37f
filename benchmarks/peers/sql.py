"""A peer that is SQLite underneath: one table, one statement a call."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

_TABLE = (
    "CREATE TABLE IF NOT EXISTS record"
    " (id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, value BLOB NOT NULL) STRICT"
)
_UPSERT = (
    "INSERT INTO record (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_SELECT = "SELECT value FROM record WHERE name = ?"


class Connection(Protocol):
    """What ``sqlite3``, its relatives and ``apsw`` have in common."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        """Carry out one statement and return a cursor."""

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Any:
        """Carry out a statement for each row."""

    def close(self) -> None:
        """Close the file."""


Connect = Callable[[str], Connection]


class SqlPeer:
    """Records in a table.

    Args:
        folder: Where the file lies.
        connect: Opens it, the key and the page size included, so that each statement commits by itself.

    Raises:
        RuntimeError: Writes would not be durable.
    """

    def __init__(self, folder: Path, connect: Connect) -> None:
        self._connection = connect(str(folder / "records.db"))
        self._execute = self._connection.execute
        for pragma, value, kept in (("journal_mode", "WAL", "wal"), ("synchronous", "FULL", 2)):
            self._execute(f"PRAGMA {pragma} = {value}").fetchall()
            if self._execute(f"PRAGMA {pragma}").fetchone()[0] != kept:
                raise RuntimeError(f"{pragma} is not {value}: this would not be durable")
        self._execute("PRAGMA secure_delete = ON").fetchall()
        self._execute(_TABLE)

    def insert(self, name: bytes, value: bytes) -> None:
        """Store one record durably: a statement that commits by itself."""
        self._execute(_UPSERT, (name, value))

    def insert_many(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Store records in one transaction."""
        with self.transaction():
            self._connection.executemany(_UPSERT, pairs)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the calls in a block one transaction. A failure ends the measurement, so nothing is undone."""
        self._execute("BEGIN IMMEDIATE")
        yield
        self._execute("COMMIT")

    def get(self, name: bytes) -> bytes | None:
        """Return a value."""
        row = self._execute(_SELECT, (name,)).fetchone()
        return row[0] if row else None

    def flush(self) -> None:
        """Empty the log."""
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
