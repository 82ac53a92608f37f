"""``SecureDb``: an embedded key-value store that shows neither names nor values on disk."""

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import apsw

from .._files import exists
from ..errors import (
    ConfigurationError,
    IntegrityError,
    StoreUnavailableError,
    WrongKeyError,
)
from ..keys.derivation import KEY_BYTES
from ..secret_bytes import SecretBytes
from .cipher import cipher_named
from .creation import create
from .header import Header, HeaderKeys
from .nonce import LEASE, CounterLease, check_lease, fresh_uuid
from .record import MAX_NAME_BYTES, MAX_VALUE_BYTES, RecordKeys, Row
from .schema import check_tables, connect, use_journal
from .sqlite_errors import translated, translation

_PAGE: Final = 256
_UPSERT: Final = (
    "INSERT INTO record (token, key_id, sealed) VALUES (?, ?, ?)"
    " ON CONFLICT (token) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed"
)
_BATCH_BYTES: Final = 4 * 1024 * 1024


class SecureDb:
    """An encrypted store in one SQLite file. Open it with :meth:`open`.

    Every write is durable when the call returns. Threads may share one object, and processes
    may share one file; a forked child opens its own.
    """

    def __init__(
        self,
        path: Path,
        connection: apsw.Connection,
        header_keys: HeaderKeys,
        keys: RecordKeys,
    ) -> None:
        self._path = path
        self._connection = connection
        self._header_keys = header_keys
        self._keys = keys
        self._counters = CounterLease(self._reserve_counters)
        self._lock = threading.RLock()
        self._session = _Session(self)
        self._closed = False
        self._write_failed = False
        _open_stores.add(self)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        master_key: bytes | SecretBytes,
        *,
        cipher: str = "xchacha20poly1305",
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open a store, creating it if there is no file.

        Args:
            path: The database file. SQLite keeps ``-wal`` and ``-shm`` beside it.
            master_key: 32 bytes. Used during this call only; the caller closes it.
            cipher: For a new store: ``xchacha20poly1305`` or ``aes256gcm``. A file keeps its own.
            clock: Gives Unix seconds, for the dates in the keyset.

        Raises:
            ConfigurationError: The key is not 32 bytes, or there is no such cipher.
            WrongKeyError: The key is not the one of this database.
            IntegrityError: The file is damaged, or is no encrypted store.
            UnsupportedFormatError: Another version of the library wrote it.
            StoreUnavailableError: The file cannot be opened or written.
        """
        path = Path(path)
        chosen = cipher_named(cipher)
        with (
            _checked_master(master_key) as master,
            translated(path),
            ExitStack() as undo,
        ):
            if not exists(path):
                create(path, master, chosen, clock)
            connection = connect(path)
            undo.callback(connection.close)
            check_tables(connection, path)
            header = Header.read(connection)
            header_keys = HeaderKeys(master, header.db_id)
            undo.callback(header_keys.close)
            try:
                keys = RecordKeys(header_keys.open(header), header.db_id)
            except WrongKeyError:
                raise WrongKeyError(
                    f"The key is not the one of {path}. Use the envelope and the key that were "
                    "made for it; the file is unchanged."
                ) from None
            undo.callback(keys.close)
            use_journal(connection, path, "wal")
            undo.pop_all()
            return cls(path, connection, header_keys, keys)

    @property
    def cipher(self) -> str:
        """Name of the cipher that new records are sealed with."""
        return self._keys.cipher_name

    def insert(self, name: bytes, value: bytes) -> bool:
        """Store ``value`` under ``name``, durably, replacing what was there.

        Args:
            name: At most 65,535 bytes.
            value: At most 512 MiB.

        Returns:
            True when the name is new.

        Raises:
            TypeError: Either is not ``bytes``.
            ValueError: Either is too long.
            StoreUnavailableError: Nothing was written: busy, full, read-only, closed, forked, or
                no nonce lease could be made durable.
        """
        return self._write([_checked_pair(name, value)])

    def insert_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Store pairs of name and value in one transaction: all of them or none.

        Args:
            pairs: At most 2**20; of equal names the last one counts.

        Raises:
            TypeError: A name or value is not ``bytes``.
            ValueError: Too many pairs, or one is too long.
            StoreUnavailableError: Nothing was written, as for ``insert``.
        """
        checked = [_checked_pair(name, value) for name, value in pairs]
        if len(checked) > LEASE:
            raise ValueError(f"at most {LEASE} records a call, not {len(checked)}")
        if checked:
            self._write(checked)

    def get(self, name: bytes) -> bytes | None:
        """Return the value of ``name``, or None.

        Raises:
            IntegrityError: This record is damaged; others are not concerned.
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        with self._session:
            token = self._keys.token(name)
            found = self._connection.execute(
                "SELECT key_id, sealed FROM record WHERE token = ?", (token,)
            ).fetchone()
            if found is None:
                return None
            return self._open(Row(token, *found), name)[1]

    def remove(self, name: bytes) -> bool:
        """Remove ``name``, durably. Returns False when it was not there.

        Raises:
            StoreUnavailableError: Nothing was removed, as for ``insert``.
        """
        with self._session, self._transaction():
            self._connection.execute(
                "DELETE FROM record WHERE token = ?", (self._keys.token(name),)
            )
            return self._connection.changes() > 0

    def page(self, after: int, limit: int) -> list[tuple[int, bytes, bytes]]:
        """Return up to ``limit`` records as position, name and value.

        The order is stable and says nothing about the names. A record keeps its position when
        it is replaced.

        Args:
            after: Position of the last record of the page before; 0 for the first page.
            limit: Most records to return.

        Raises:
            IntegrityError: A record of the page is damaged; the message has its position.
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        with self._session:
            rows = self._rows(after, limit)
            return [(position, *self._open_at(position, row)) for position, row in rows]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every name and value, in stable, unspecified order, reading page by page.

        Records that are added or removed meanwhile may or may not be seen.

        Raises:
            IntegrityError: The next record is damaged; all before it were given. The message has
                its position, and ``page`` can go on behind it.
            StoreUnavailableError: As for ``page``.
        """
        position = 0
        while True:
            with self._session:
                rows = list(_up_to(_BATCH_BYTES, self._rows(position, _PAGE)))
            if not rows:
                return
            for position, row in rows:
                with self._session:
                    name_and_value = self._open_at(position, row)
                yield name_and_value

    def count(self) -> int:
        """Return the number of records.

        Raises:
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        with self._session:
            number = self._connection.execute("SELECT count(*) FROM record").get
            return number if isinstance(number, int) else 0

    def check(self) -> None:
        """Read the header, to see that the file is there and still belongs to these keys.

        Raises:
            StoreUnavailableError: The file cannot be read, a write has failed before, or the
                store is closed or forked.
            IntegrityError: The header is damaged.
            UnsupportedFormatError: Another version of the library has changed the format.
        """
        with self._session:
            self._refuse_after_failed_write()
            self._header_keys.open(Header.read(self._connection)).close()

    def flush(self) -> None:
        """Move the write-ahead log into the database file and empty it.

        Inserts are durable without it; it matters before the file is copied.

        Raises:
            StoreUnavailableError: Another process reads or writes the file right now, a write has
                failed before, or the store is closed or forked.
        """
        with self._session:
            self._refuse_after_failed_write()
            try:
                result = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except apsw.IOError as error:
                self._note_device_error(error)
                raise
            if result is None or result[0]:  # (busy, pages in the log, pages moved)
                raise StoreUnavailableError(
                    f"The log of {self._path} could not be emptied while another process reads "
                    "it. Nothing is lost; try again."
                )

    def hold(self) -> None:
        """Keep every other process out until the store is closed; from here on it is only read.

        Raises:
            StoreUnavailableError: Another process has the file open.
        """
        with self._session:
            use_journal(self._connection, self._path, "delete")
            self._connection.execute("BEGIN EXCLUSIVE")

    def close(self) -> None:
        """Close the file and wipe the keys. Closing twice is allowed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            _open_stores.discard(self)
            try:
                if not self._is_forked():  # else the fork has closed it
                    with translated(self._path):
                        self._connection.close()
            finally:
                self._keys.close()
                self._header_keys.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SecureDb {str(self._path)!r}{' (closed)' if self._closed else ''}>"

    def _write(self, pairs: list[tuple[bytes, bytes]]) -> bool:
        """Write pairs in one transaction; return whether the first name is new."""
        with self._session:
            while True:
                # The lease is durable before BEGIN, and the uuid is drawn after the plaintext is
                # fixed and used for this attempt only: a process restored twice from one snapshot
                # would otherwise seal two plaintexts under one nonce.
                counter = self._counters.take(len(pairs))
                rows = self._keys.seal(pairs, fresh_uuid(), counter)
                with self._transaction():
                    # The write guard: under the write lock the keyset must be the one that the
                    # rows were sealed under. Rows under an old key can then only become fewer,
                    # which is what lets a rotation prove that none is left.
                    generation, replaces = self._look_before_writing(rows[0].token)
                    if generation == self._keys.generation:
                        if len(rows) == 1:
                            self._connection.execute(_UPSERT, rows[0])
                        else:
                            self._connection.executemany(_UPSERT, rows)
                        return not replaces
                self._reload_keys()

    def _look_before_writing(self, token: bytes) -> tuple[int, bool]:
        """Return the generation of the keyset on disk, and whether there is a row of that token."""
        row: Any = self._connection.execute(
            "SELECT keyset_generation, EXISTS (SELECT 1 FROM record WHERE token = ?)"
            " FROM header WHERE id = 1",
            (token,),
        ).fetchone()
        return (row[0], bool(row[1])) if row else (-1, False)

    def _open(self, row: Row, name: bytes | None = None) -> tuple[bytes, bytes]:
        if not self._keys.knows(row.key_id):
            self._reload_keys()  # another process may have rotated
        return self._keys.open(row, name)

    def _open_at(self, position: int, row: Row) -> tuple[bytes, bytes]:
        try:
            return self._open(row)
        except IntegrityError:
            raise IntegrityError(f"Record {position} failed its integrity check.") from None

    def _rows(self, after: int, limit: int) -> Iterator[tuple[int, Row]]:
        rows: Any = self._connection.execute(
            "SELECT id, token, key_id, sealed FROM record WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        for position, token, key_id, sealed in rows:
            yield position, Row(token, key_id, sealed)

    def _reload_keys(self) -> None:
        header = Header.read(self._connection)
        keyset = self._header_keys.open(header)
        if keyset.generation < self._keys.generation:
            keyset.close()
            raise IntegrityError(
                f"The keyset of {self._path} went back to an older generation. "
                "Restore the database from a backup."
            )
        old, self._keys = self._keys, RecordKeys(keyset, header.db_id)
        old.close()

    def _reserve_counters(self, count: int) -> int:
        with self._transaction():
            row = self._connection.execute("SELECT next FROM lease WHERE id = 1").fetchone()
            if row is None:
                raise IntegrityError(
                    f"{self._path} has lost its nonce lease. Restore it from a backup."
                )
            start: int = row[0]
            check_lease(start)
            self._connection.execute("UPDATE lease SET next = ? WHERE id = 1", (start + count,))
        return start

    def _is_forked(self) -> bool:
        try:
            self._keys.check()
        except StoreUnavailableError:
            return True
        except ValueError:  # closed
            return False
        return False

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._refuse_after_failed_write()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException as error:
            self._note_device_error(error)
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _note_device_error(self, error: BaseException) -> None:
        # After a failed fsync nobody knows what the disk holds, and a second fsync may report
        # success for pages that were dropped. Only a new connection reads the truth.
        self._write_failed |= isinstance(error, apsw.IOError)

    def _refuse_after_failed_write(self) -> None:
        if self._write_failed:
            raise StoreUnavailableError(
                f"A write to {self._path} failed on the device. Check the disk, then restart the "
                "service; what was acknowledged before is kept."
            )


class _Session:
    """One call: alone on the connection, open, not forked, with errors for people.

    A class, because a generator would cost a read a tenth of its time.
    """

    __slots__ = ("_store",)

    def __init__(self, store: SecureDb) -> None:
        self._store = store

    def __enter__(self) -> None:
        store = self._store
        if store._is_forked():  # asked before the lock, which another thread may have held then
            raise StoreUnavailableError(
                f"{store._path} was opened before a fork. Open it again in the child process."
            )
        store._lock.acquire()
        if store._closed:
            store._lock.release()
            raise StoreUnavailableError(f"The store {store._path} is closed.")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store._lock.release()
        if error is not None and (ours := translation(error, self._store._path)) is not None:
            raise ours from None


def _up_to(limit: int, rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """Yield rows until they come to ``limit`` bytes, one row at least."""
    size = 0
    for position, row in rows:
        yield position, row
        size += len(row.sealed)
        if size >= limit:
            return


def _checked_master(master_key: bytes | SecretBytes) -> SecretBytes:
    """Return a copy of the master key that may be closed."""
    if not isinstance(master_key, bytes | SecretBytes):
        raise TypeError(f"the master key is bytes or SecretBytes, not {type(master_key).__name__}")
    if len(master_key) != KEY_BYTES:
        raise ConfigurationError(
            f"A master key has {KEY_BYTES} bytes; this one has {len(master_key)}."
        )
    if isinstance(master_key, bytes):
        return SecretBytes.copy_of(master_key)
    with master_key.view as view:
        return SecretBytes.copy_of(view)


def _checked_pair(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    # Only bytes: a bytearray could change between sealing and a second attempt.
    if not isinstance(name, bytes) or not isinstance(value, bytes):
        raise TypeError("a record's name and value are bytes")
    if len(name) > MAX_NAME_BYTES:
        raise ValueError(f"a name has at most {MAX_NAME_BYTES} bytes, not {len(name)}")
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"a value has at most {MAX_VALUE_BYTES} bytes, not {len(value)}")
    return name, value


# A fork copies the connections with the process. SQLite in the child then believes that it holds
# locks which are the parent's alone: when the parent closes the file, it counts itself as the last
# user and deletes the log, with whatever a store that the child has opened wrote there. And when
# the child ends, its copy of the connection would do the same to the others. So the stores stand
# still during a fork, and the child closes what it inherited at once, leaving the log alone.
_open_stores: "weakref.WeakSet[SecureDb]" = weakref.WeakSet()
_standing_still: list[SecureDb] = []


def _before_fork() -> None:
    for store in list(_open_stores):
        store._lock.acquire()
        _standing_still.append(store)


def _after_fork_in_parent() -> None:
    while _standing_still:
        _standing_still.pop()._lock.release()


def _after_fork_in_child() -> None:
    while _standing_still:
        store = _standing_still.pop()
        store._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        store._connection.close()
        store._lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
