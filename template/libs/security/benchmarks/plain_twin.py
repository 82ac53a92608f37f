"""``PlainDb``: the store that ``SecureDb`` is measured against. It encrypts nothing.

The twin has the same engine, pragmas, kind of table, interface and durability, with names and
values in clear, so that a ratio between the two is the price of encryption and of nothing else.
It is written to be fast, because a slow twin would flatter: an insert is one statement that
commits by itself, nothing is looked up before it, and no check is made twice. It neither joins
the commits of several threads nor watches for forks.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import apsw

from service_security.errors import StoreUnavailableError
from service_security.store.schema import connect, use_journal
from service_security.store.sqlite_errors import translated, translation

_TABLE: Final = (
    "CREATE TABLE record (id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, value BLOB NOT NULL)"
    " STRICT"
)
_UPSERT: Final = (
    "INSERT INTO record (name, value) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_PAGE: Final = 256
_MAX_NAME_BYTES: Final = 2**16 - 1
_MAX_VALUE_BYTES: Final = 2**29


class PlainDb:
    """A plain store in one SQLite file. Open it with :meth:`open`.

    Every write is durable when the call returns. Threads may share one object, and processes
    may share one file.
    """

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self._path = path
        self._connection = connection
        self._execute = connection.execute
        self._lock = threading.RLock()
        self._closed = False
        self._in_transaction = False

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store, creating it if there is no file.

        Raises:
            IntegrityError: The file is damaged or is no database.
            StoreUnavailableError: The file cannot be opened or written.
        """
        path = Path(path)
        with translated(path):
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            connection = connect(path)
            try:
                use_journal(connection, path, "wal")
                connection.execute("BEGIN IMMEDIATE")
                if not connection.execute("SELECT 1 FROM sqlite_schema").get:
                    connection.execute(_TABLE)
                connection.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
            return cls(path, connection)

    def insert(self, name: bytes, value: bytes) -> bool:
        """Store ``value`` under ``name``, durably, replacing what was there.

        Returns:
            True when the name is new.

        Raises:
            TypeError: Either is not ``bytes``.
            ValueError: Either is too long.
            StoreUnavailableError: Nothing was written: busy, full, read-only or closed.
        """
        _check(name, value)
        with self._lock:
            connection = self._connection
            try:
                # A replaced row leaves this number as it is, so the statement need not be two.
                connection.set_last_insert_rowid(0)
                self._execute(_UPSERT, (name, value))
                return connection.last_insert_rowid() != 0
            except Exception as error:
                self._raise(error)
                raise

    def insert_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Store pairs of name and value in one transaction: all of them or none.

        Raises:
            TypeError: A name or value is not ``bytes``.
            ValueError: A name or value is too long.
            StoreUnavailableError: Nothing was written, as for ``insert``.
        """
        rows = list(pairs)
        for name, value in rows:
            _check(name, value)
        with self._calling(), self._atomic():
            self._connection.executemany(_UPSERT, rows)

    def get(self, name: bytes) -> bytes | None:
        """Return the value of ``name``, or None.

        Raises:
            StoreUnavailableError: The file cannot be read, or the store is closed.
        """
        with self._lock:
            try:
                value: Any = self._execute("SELECT value FROM record WHERE name = ?", (name,)).get
            except Exception as error:
                self._raise(error)
                raise
            found: bytes | None = value
            return found

    def remove(self, name: bytes) -> bool:
        """Remove ``name``, durably. Returns False when it was not there.

        Raises:
            TypeError: ``name`` is not ``bytes``.
            StoreUnavailableError: Nothing was removed, as for ``insert``.
        """
        _check(name, b"")
        with self._calling():
            self._execute("DELETE FROM record WHERE name = ?", (name,))
            return self._connection.changes() > 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the calls of this thread within the block one transaction.

        Everything is undone when the block raises.

        Raises:
            RuntimeError: This thread is in a transaction already.
            StoreUnavailableError: The store is busy or closed.
        """
        with self._lock:
            if self._in_transaction:
                raise RuntimeError("a transaction cannot begin in another one")
            with self._calling():
                self._execute("BEGIN IMMEDIATE")
            self._in_transaction = True
            try:
                yield
                with self._calling():
                    self._execute("COMMIT")
            finally:
                self._in_transaction = False
                if not self._closed and self._connection.in_transaction:
                    self._execute("ROLLBACK")

    def page(self, after: int, limit: int) -> list[tuple[int, bytes, bytes]]:
        """Return up to ``limit`` records as position, name and value, in a stable order.

        Args:
            after: Position of the last record of the page before; 0 for the first page.
            limit: Most records to return.

        Raises:
            StoreUnavailableError: The file cannot be read, or the store is closed.
        """
        with self._calling():
            rows: Any = self._execute(
                "SELECT id, name, value FROM record WHERE id > ? ORDER BY id LIMIT ?",
                (after, limit),
            ).fetchall()
            return list(rows)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every name and value, page by page.

        Raises:
            StoreUnavailableError: As for ``page``.
        """
        position = 0
        while page := self.page(position, _PAGE):
            for _, name, value in page:
                self._refuse_closed()
                yield name, value
            position = page[-1][0]

    def count(self) -> int:
        """Return the number of records.

        Raises:
            StoreUnavailableError: The file cannot be read, or the store is closed.
        """
        with self._calling():
            number: Any = self._execute("SELECT count(*) FROM record").get
            return int(number)

    def check(self) -> None:
        """Read the schema, to see that the file is there.

        Raises:
            StoreUnavailableError: The file cannot be read, or the store is closed.
        """
        with self._calling():
            self._execute("SELECT count(*) FROM sqlite_schema").fetchall()

    def flush(self) -> None:
        """Move the write-ahead log into the database file and empty it.

        Raises:
            StoreUnavailableError: Another process uses the file right now, or the store is closed.
        """
        with self._calling():
            result: Any = self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if result[0]:  # (busy, pages in the log, pages moved)
                raise StoreUnavailableError(f"The log of {self._path} is in use. Try again.")

    def close(self) -> None:
        """Close the file. Closing twice is allowed."""
        with self._lock:
            self._closed = True
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Be alone on the connection, with errors for people."""
        with self._lock:
            try:
                yield
            except Exception as error:
                self._raise(error)
                raise

    @contextmanager
    def _atomic(self) -> Iterator[None]:
        """Do all or nothing, within the transaction of the caller if there is one."""
        begin, commit, undo = (
            ("SAVEPOINT batch", "RELEASE batch", "ROLLBACK TO batch; RELEASE batch")
            if self._in_transaction
            else ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
        )
        self._execute(begin)
        try:
            yield
            self._execute(commit)
        except BaseException:
            if self._connection.in_transaction:
                self._execute(undo)
            raise

    def _raise(self, error: Exception) -> None:
        """Raise the library's error for one of SQLite's; return for any other.

        Asked after a failure only, so that a call that succeeds does not pay for it.
        """
        if isinstance(error, apsw.ConnectionClosedError):
            self._refuse_closed()
        if (ours := translation(error, self._path)) is not None:
            raise ours from None

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"The store {self._path} is closed.")


def _check(name: bytes, value: bytes) -> None:
    if not isinstance(name, bytes) or not isinstance(value, bytes):
        raise TypeError("a record's name and value are bytes")
    if len(name) > _MAX_NAME_BYTES:
        raise ValueError(f"a name has at most {_MAX_NAME_BYTES} bytes, not {len(name)}")
    if len(value) > _MAX_VALUE_BYTES:
        raise ValueError(f"a value has at most {_MAX_VALUE_BYTES} bytes, not {len(value)}")
