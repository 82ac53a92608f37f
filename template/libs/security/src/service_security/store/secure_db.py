"""``SecureDb``: an embedded key-value store that shows neither names nor values on disk."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any, Final, Self

import apsw

from .._files import exists
from ..errors import (
    ConfigurationError,
    IntegrityError,
    SecurityError,
    StoreUnavailableError,
    WrongKeyError,
)
from ..keys.derivation import KEY_BYTES
from ..secret_bytes import SecretBytes
from .cipher import cipher_named
from .creation import create
from .group_commit import GroupCommit, Write
from .header import Header, HeaderKeys
from .nonce import LEASE, CounterLease, check_lease, fresh_uuid
from .record import MAX_NAME_BYTES, MAX_VALUE_BYTES, RecordKeys, Row
from .schema import check_tables, connect, connect_to_read, use_journal
from .sqlite_errors import translated
from .store_file import StoreFile

TRANSACTION_RECORDS: Final = LEASE // 2
"""The most records that one transaction stores: their counters are reserved before it begins."""

_PAGE: Final = 256
_PAGE_BYTES: Final = 4 * 1024 * 1024
_GENERATION: Final = "SELECT keyset_generation FROM header WHERE id = 1"
_SELECT: Final = "SELECT key_id, sealed FROM record WHERE token = ?"
_WRITE: Final = (
    "INSERT INTO record (token, key_id, sealed) SELECT ?, ?, ? FROM header"
    " WHERE id = 1 AND keyset_generation = ?"
    " ON CONFLICT (token) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed"
)
_WRITE_MANY: Final = (
    "INSERT INTO record (token, key_id, sealed) VALUES (?, ?, ?)"
    " ON CONFLICT (token) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed"
)
_DELETE: Final = "DELETE FROM record WHERE token = ?"

OnDamage = Callable[[int], None]
"""Called with the position of a damaged record, which is then left out."""


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
        *,
        read_only: bool = False,
    ) -> None:
        self._header_keys = header_keys
        self._keys = keys
        self._read_only = read_only
        self._file = StoreFile(path, connection, header_keys.canary)
        self._transaction_thread: int | None = None
        self._counters = CounterLease(self._reserve_counters)
        self._writers = GroupCommit(self._file, self._commit)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        master_key: bytes | SecretBytes,
        *,
        cipher: str = "xchacha20poly1305",
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
    ) -> Self:
        """Open a store, creating it if there is no file.

        Args:
            path: The database file. SQLite keeps ``-wal`` and ``-shm`` beside it.
            master_key: 32 bytes. Used during this call only; the caller closes it.
            cipher: For a new store: ``xchacha20poly1305`` or ``aes256gcm``. A file keeps its own.
            clock: Gives Unix seconds, for the dates in the keyset.
            read_only: Create nothing and refuse every write. Others may write meanwhile; on a
                file system that is mounted read-only, nobody can.

        Raises:
            ConfigurationError: The key is not 32 bytes, or there is no such cipher.
            WrongKeyError: The key is not the one of this database.
            IntegrityError: The file is damaged, or is no encrypted store.
            UnsupportedFormatError: Another version of the library wrote it.
            StoreUnavailableError: The file cannot be opened or written, or is to be read only and
                is not there.
        """
        path = Path(path)
        chosen = cipher_named(cipher)
        with (
            _checked_master(master_key) as master,
            translated(path),
            ExitStack() as undo,
        ):
            if read_only:
                connection = connect_to_read(path)
            else:
                if not exists(path):
                    create(path, master, chosen, clock)
                connection = connect(path)
            undo.callback(connection.close)
            check_tables(connection, path)
            header = Header.read(connection)
            header_keys = HeaderKeys.of(master, header.db_id)
            undo.callback(header_keys.close)
            try:
                keys = RecordKeys(header_keys.open(header), header.db_id)
            except WrongKeyError:
                raise WrongKeyError(
                    f"The key is not the one of {path}. Use the envelope and the key that were "
                    "made for it; the file is unchanged."
                ) from None
            undo.callback(keys.close)
            if not read_only:
                use_journal(connection, path, "wal")
            undo.pop_all()
            return cls(path, connection, header_keys, keys, read_only=read_only)

    @property
    def path(self) -> Path:
        """The database file."""
        return self._file.path

    @property
    def cipher(self) -> str:
        """Name of the cipher that new records are sealed with."""
        return self._keys.cipher_name

    @property
    def read_only(self) -> bool:
        """Whether every write is refused."""
        return self._read_only

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
        return self._write(Write((_checked_pair(name, value),)))

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
            self._write(Write(checked))

    def remove(self, name: bytes) -> bool:
        """Remove ``name``, durably. Returns False when it was not there.

        Raises:
            TypeError: ``name`` is not ``bytes``.
            StoreUnavailableError: Nothing was removed, as for ``insert``.
        """
        if not isinstance(name, bytes):
            raise TypeError("a record's name is bytes")
        return self._write(Write(removed=name))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the calls of a ``with`` block one transaction: all of its writes or none.

        Until the block is left, other threads and processes can neither write nor see what was
        written in it; an exception that leaves the block undoes it. Calls of the block belong to
        the thread that began it.

        Raises:
            RuntimeError: This thread is in a transaction already.
            ValueError: From a write in the block: more than 2**19 records.
            StoreUnavailableError: Nothing was written: as for ``insert``, or because a call in
                the block has failed on the file, even if its exception was caught.
        """
        self._file.refuse_fork()
        with self._file.lock:
            with self._file:
                self._refuse_reader()
                if self._transaction_thread is not None:
                    raise RuntimeError("a transaction cannot begin in another one")
                self._counters.provide(TRANSACTION_RECORDS)  # a lease is never taken in the block
            try:
                with self._file:
                    self._file.begin()
                    if self._generation() != self._keys.generation:
                        self._reload_keys()
                self._transaction_thread = get_ident()
                yield
                with self._file:
                    self._file.commit()
            except BaseException:
                with suppress(SecurityError), self._file:
                    self._file.roll_back()
                raise
            finally:
                self._transaction_thread = None

    def get(self, name: bytes) -> bytes | None:
        """Return the value of ``name``, or None.

        Raises:
            IntegrityError: This record is damaged; others are not concerned.
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        with self._file:
            token = self._keys.token(name)
            found: Any = self._file.connection.execute(_SELECT, (token,)).get
            if found is None:
                return None
            key_id, sealed = found
            return self._open(Row(token, key_id, sealed), name)[1]

    def page(
        self, after: int, limit: int, *, on_damage: OnDamage | None = None
    ) -> list[tuple[int, bytes, bytes]]:
        """Return up to ``limit`` records as position, name and value.

        The order is stable and says nothing about the names. A record keeps its position when
        it is replaced.

        Args:
            after: Position of the last record of the page before; 0 for the first page.
            limit: Most records to return.
            on_damage: Called with the position of each damaged record; the page goes on behind it.

        Raises:
            IntegrityError: A record of the page is damaged; the message has its position.
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        found: list[tuple[int, bytes, bytes]] = []
        while len(found) < limit:
            wanted = limit - len(found)
            with self._file:
                rows = list(self._rows(after, wanted))
                found += self._opened(rows, on_damage)
            if len(rows) < wanted:
                break
            after = rows[-1][0]
        return found

    def items(self, *, on_damage: OnDamage | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield every name and value, in stable, unspecified order, reading page by page.

        Records that are added or removed meanwhile may or may not be seen; a ``snapshot`` stands
        still.

        Args:
            on_damage: Called with the position of each damaged record, which is left out.

        Raises:
            IntegrityError: The next record is damaged; all before it were given. The message has
                its position, and ``page`` can go on behind it.
            StoreUnavailableError: As for ``page``.
        """
        position = 0
        while True:
            with self._file:
                rows = list(_up_to(_PAGE_BYTES, self._rows(position, _PAGE)))
            if not rows:
                return
            for row in rows:
                with self._file:
                    opened = self._opened([row], on_damage)
                for _, name, value in opened:
                    yield name, value
            position = rows[-1][0]

    def snapshot(self) -> Self:
        """Return a read-only store that shows this moment until it is closed.

        It has a connection of its own: others write on, and what they write is not seen. The log
        beside the file grows meanwhile, because what the snapshot sees has to stay in place.

        Raises:
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        with self._file, ExitStack() as undo:
            connection = connect_to_read(self.path)
            undo.callback(connection.close)
            connection.execute("BEGIN")
            header = Header.read(connection)  # from here on the transaction sees this moment
            header_keys = self._header_keys.copy()
            undo.callback(header_keys.close)
            keys = RecordKeys(header_keys.open(header), header.db_id)
            undo.pop_all()
            return type(self)(self.path, connection, header_keys, keys, read_only=True)

    def count(self) -> int:
        """Return the number of records.

        Raises:
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        with self._file:
            number = self._file.connection.execute("SELECT count(*) FROM record").get
            return number if isinstance(number, int) else 0

    def check(self) -> None:
        """Read the header, to see that the file is there and still belongs to these keys.

        Raises:
            StoreUnavailableError: The file cannot be read, a write has failed before, or the
                store is closed or forked.
            IntegrityError: The header is damaged.
            UnsupportedFormatError: Another version of the library has changed the format.
        """
        with self._file:
            self._file.refuse_after_failed_write()
            self._header_keys.open(Header.read(self._file.connection)).close()

    def flush(self) -> None:
        """Move the write-ahead log into the database file and empty it.

        Inserts are durable without it; it matters before the file is copied.

        Raises:
            StoreUnavailableError: A snapshot or another process reads the file right now, a write
                has failed before, or the store is read-only, closed or forked.
        """
        with self._file:
            self._refuse_reader()
            self._file.refuse_after_failed_write()
            try:
                result: Any = self._file.connection.execute(
                    "PRAGMA wal_checkpoint(TRUNCATE)"
                ).fetchone()
            except apsw.IOError:
                self._file.note_failed_write()
                raise
            if result is None or result[0]:  # (busy, pages in the log, pages moved)
                raise StoreUnavailableError(
                    f"The log of {self.path} could not be emptied while a snapshot or another "
                    "process reads it. Nothing is lost; try again."
                )

    def hold(self) -> None:
        """Keep every other process out until the store is closed; from here on it is only read.

        Raises:
            StoreUnavailableError: Another process has the file open.
        """
        with self._file:
            use_journal(self._file.connection, self.path, "delete")
            self._file.connection.execute("BEGIN EXCLUSIVE")
            self._read_only = True

    def close(self) -> None:
        """Close the file and wipe the keys. Closing twice is allowed."""
        with self._file.lock:
            if self._file.closed:
                return
            try:
                self._file.close()
            finally:
                self._keys.close()
                self._header_keys.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SecureDb {str(self.path)!r}{' (closed)' if self._file.closed else ''}>"

    # Writing

    def _write(self, write: Write) -> bool:
        self._refuse_reader()
        if self._transaction_thread == get_ident():
            return self._write_in_transaction(write)
        return self._writers.submit(write)

    def _write_in_transaction(self, write: Write) -> bool:
        """Write without committing; the transaction began under the current keyset."""
        with self._file:
            self._file.refuse_failed_transaction()
            self._execute(write, self._sealed(write.pairs))
        return write.result

    def _refuse_reader(self) -> None:
        if self._read_only:
            raise StoreUnavailableError(f"{self.path} was opened for reading only.")

    def _commit(self, group: Sequence[Write]) -> None:
        """Make writes durable, all or none; the caller is alone on the file."""
        self._file.refuse_after_failed_write()
        pairs = [pair for write in group for pair in write.pairs]
        try:
            while True:
                if self._apply(group, self._sealed(pairs)):
                    return
                self._reload_keys()
        except apsw.IOError:
            self._file.note_failed_write()
            raise

    def _sealed(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[Row]:
        if not pairs:
            return []
        # The lease is durable before the transaction, and the uuid is drawn after the plaintexts
        # are fixed and used for this attempt only: a process restored twice from one snapshot
        # would otherwise seal two plaintexts under one nonce.
        counter = self._counters.take(len(pairs))
        return self._keys.seal(pairs, fresh_uuid(), counter)

    def _apply(self, group: Sequence[Write], rows: list[Row]) -> bool:
        """Write sealed rows; return False, with nothing written, if their keys are not current.

        This is the write guard: a row is written only while the keyset on disk is the one that
        it was sealed under. Rows under an old key can then only become fewer, which is what lets
        a rotation prove that none is left.
        """
        if len(group) == 1 and len(rows) <= 1:
            # One statement is a transaction, and like BEGIN IMMEDIATE it locks before it looks.
            write = group[0]
            write.done = self._execute(write, rows)
            return write.done
        return self._apply_together(group, rows)

    def _apply_together(self, group: Sequence[Write], rows: list[Row]) -> bool:
        file = self._file
        file.begin()
        try:
            if self._generation() != self._keys.generation:
                file.roll_back()
                return False
            start = 0
            for write in group:
                end = start + len(write.pairs)
                self._execute(write, rows[start:end])
                start = end
            for write in group:
                write.done = True
            file.commit()
        except BaseException as error:
            # An interrupt that arrives right behind the commit finds no transaction to undo.
            if file.connection.in_transaction or isinstance(error, apsw.Error | SecurityError):
                for write in group:
                    write.done = False
            file.roll_back()
            raise
        return True

    def _execute(self, write: Write, rows: list[Row]) -> bool:
        """Execute one write; return False if its row was sealed under another keyset."""
        connection = self._file.connection
        if write.removed is not None:
            connection.execute(_DELETE, (self._keys.token(write.removed),))
            write.result = connection.changes() > 0
            return True
        if len(rows) > 1:
            connection.executemany(_WRITE_MANY, rows)
            return True
        connection.set_last_insert_rowid(0)  # stays so when a row is replaced
        connection.execute(_WRITE, (*rows[0], self._keys.generation))
        write.result = connection.last_insert_rowid() != 0
        return connection.changes() > 0

    def _generation(self) -> int:
        """Return the generation of the keyset on disk."""
        found = self._file.connection.execute(_GENERATION).get
        return found if isinstance(found, int) else -1

    def _reserve_counters(self, count: int) -> int:
        file = self._file
        if file.connection.in_transaction:
            raise ValueError(f"at most {TRANSACTION_RECORDS} records a transaction")
        try:
            file.begin()
            start = file.connection.execute("SELECT next FROM lease WHERE id = 1").get
            if not isinstance(start, int):
                raise IntegrityError(
                    f"{self.path} has lost its nonce lease. Restore it from a backup."
                )
            check_lease(start)
            file.connection.execute("UPDATE lease SET next = ? WHERE id = 1", (start + count,))
            file.commit()
        except BaseException as error:
            file.roll_back()
            if isinstance(error, apsw.IOError):
                file.note_failed_write()
            raise
        return start

    # Reading

    def _rows(self, after: int, limit: int) -> Iterator[tuple[int, Row]]:
        rows: Any = self._file.connection.execute(
            "SELECT id, token, key_id, sealed FROM record WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        for position, token, key_id, sealed in rows:
            yield position, Row(token, key_id, sealed)

    def _opened(
        self, rows: Iterable[tuple[int, Row]], on_damage: OnDamage | None
    ) -> list[tuple[int, bytes, bytes]]:
        opened = []
        for position, row in rows:
            try:
                opened.append((position, *self._open(row)))
            except IntegrityError:
                if on_damage is None:
                    raise IntegrityError(f"Record {position} failed its integrity check.") from None
                on_damage(position)
        return opened

    def _open(self, row: Row, name: bytes | None = None) -> tuple[bytes, bytes]:
        if not self._keys.knows(row.key_id):
            self._reload_keys()  # another process may have rotated
        return self._keys.open(row, name)

    def _reload_keys(self) -> None:
        header = Header.read(self._file.connection)
        keyset = self._header_keys.open(header)
        if keyset.generation < self._keys.generation:
            keyset.close()
            raise IntegrityError(
                f"The keyset of {self.path} went back to an older generation. "
                "Restore the database from a backup."
            )
        old, self._keys = self._keys, RecordKeys(keyset, header.db_id)
        old.close()


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
