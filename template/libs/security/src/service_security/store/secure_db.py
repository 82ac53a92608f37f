"""``SecureDb``: an embedded key-value store that shows neither names nor values on disk."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Self

import apsw

from .._files import exists
from ..errors import (
    ConfigurationError,
    StoreUnavailableError,
    WrongKeyError,
)
from ..keys.derivation import KEY_BYTES
from ..secret_bytes import SecretBytes
from .cipher import cipher_named
from .creation import create
from .current_keys import CurrentKeys
from .group_commit import Write
from .header import Header, HeaderKeys
from .key_rotation import KeyRotation
from .live_keyset import LiveKeyset
from .log import empty_log
from .nonce import LEASE
from .reader import OnDamage, Reader
from .record import MAX_NAME_BYTES, MAX_VALUE_BYTES, RecordKeys
from .schema import check_tables, connect, connect_to_read, use_journal
from .sqlite_errors import translated
from .store_file import StoreFile, no_fork
from .verification import Verification, verify
from .writer import Writer


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
        mac: bytes,
        clock: Callable[[], float],
        read_only: bool = False,
        frozen: bool = False,
        snapshot_of: Path | None = None,
    ) -> None:
        self._file = StoreFile(
            path, connection, header_keys.canary, absolute=snapshot_of, frozen=frozen
        )
        self._keys = CurrentKeys(header_keys, keys, mac, path, clock)
        self._reader = Reader(self._file, self._keys)
        self._writer = Writer(self._file, self._keys)
        self._read_only = read_only
        self._is_snapshot = snapshot_of is not None

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
            clock: Gives Unix seconds, for the dates in the keyset and what follows from them.
            read_only: Create no database and refuse every write. Others may write meanwhile, but
                not to a file that is read through a mount which is read-only: then it is refused.

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
            no_fork(),
            ExitStack() as undo,
        ):
            frozen = False
            if read_only:
                connection, frozen = connect_to_read(path)
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
                keys = RecordKeys(header_keys.open(header), header.db_id, clock())
            except WrongKeyError:
                raise WrongKeyError(
                    f"The key is not the one of {path}. Use the envelope and the key that were "
                    "made for it; the file is unchanged."
                ) from None
            undo.callback(keys.close)
            if not read_only:
                use_journal(connection, path, "wal")
            store = cls(
                path,
                connection,
                header_keys,
                keys,
                mac=header.mac,
                clock=clock,
                read_only=read_only,
                frozen=frozen,
            )
            undo.pop_all()
            return store

    @property
    def path(self) -> Path:
        """The database file."""
        return self._file.path

    @property
    def cipher(self) -> str:
        """Name of the cipher that new records are sealed with."""
        with self._file:
            return self._keys.record.cipher_name

    @property
    def is_snapshot(self) -> bool:
        """Whether this shows one moment."""
        return self._is_snapshot

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
                no nonce lease could be made durable. After an error of the device it is not known
                whether it was, until the store is opened anew.
        """
        return self._changing().write(Write((_checked_pair(name, value),)))

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
            self._changing().write(Write(checked))

    def remove(self, name: bytes) -> bool:
        """Remove ``name``, durably. Returns False when it was not there.

        Raises:
            TypeError: ``name`` is not ``bytes``.
            StoreUnavailableError: Nothing was removed, as for ``insert``.
        """
        if not isinstance(name, bytes):
            raise TypeError("a record's name is bytes")
        return self._changing().write(Write(removed=name))

    def transaction(self) -> AbstractContextManager[None]:
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
        return self._changing().transaction()

    def get(self, name: bytes) -> bytes | None:
        """Return the value of ``name``, or None.

        Raises:
            IntegrityError: This record is damaged; others are not concerned.
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        return self._reader.get(name)

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
        return self._reader.page(after, limit, on_damage)

    def items(self, *, on_damage: OnDamage | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield every name and value, in stable, unspecified order, reading page by page.

        Records that are added or removed meanwhile may or may not be seen; a ``snapshot`` stands
        still.

        Args:
            on_damage: Called with the position of each damaged record, which is left out. SQLite
                then checks the structure of the file first; where that is damaged, everything
                that can still be found is given.

        Raises:
            IntegrityError: The next record is damaged; all before it were given. The message has
                its position, and ``page`` can go on behind it.
            StoreUnavailableError: As for ``page``.
        """
        return self._reader.items(on_damage)

    def snapshot(self) -> Self:
        """Return a read-only store that shows this moment until it is closed.

        It has a connection of its own: others write on, and what they write is not seen. The log
        beside the file grows meanwhile, because what the snapshot sees has to stay in place.

        Raises:
            RuntimeError: This is a snapshot itself.
            IntegrityError: The header is damaged, or an older one was put in its place.
            StoreUnavailableError: The file cannot be read or was moved away, or the store is
                closed or forked.
        """
        if self._is_snapshot:
            raise RuntimeError("a snapshot is taken of the store, not of another snapshot")
        with self._file, no_fork(), ExitStack() as undo:
            connection, frozen = connect_to_read(self._file.absolute)
            undo.callback(connection.close)
            connection.execute("BEGIN")
            header = Header.read(connection)  # from here on the transaction sees this moment
            keyset = self._keys.opened(header)
            undo.callback(keyset.close)
            header_keys = self._keys.header.copy()
            undo.callback(header_keys.close)
            keys = RecordKeys(keyset, header.db_id, self._keys.clock())
            undo.callback(keys.close)
            self._file.refuse_moved()  # else it would be a moment of another file
            snapshot = type(self)(
                self.path,
                connection,
                header_keys,
                keys,
                mac=header.mac,
                clock=self._keys.clock,
                read_only=True,
                frozen=frozen,
                snapshot_of=self._file.absolute,
            )
            undo.pop_all()
            return snapshot

    def count(self) -> int:
        """Return the number of records.

        Raises:
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        return self._reader.count()

    def verify(
        self, progress: Callable[[int, int], None] = lambda _done, _all: None
    ) -> Verification:
        """Read every record, and tell which are damaged; the others stay readable.

        Args:
            progress: Called now and then with the number of records read and the number of all.

        Raises:
            IntegrityError: The header is damaged: without its keys no record can be read.
            UnsupportedFormatError: Another version of the library has changed the format.
            StoreUnavailableError: The file cannot be read, or the store is closed or forked.
        """
        with self._moment() as (file, keys):
            steps = verify(file.connection, keys)
            while True:
                with file:
                    try:
                        done, total = next(steps)
                    except StopIteration as end:
                        verification: Verification = end.value
                        return verification
                progress(done, total)  # outside: its errors are not the file's

    def rotation(self, *, clock: Callable[[], float] | None = None) -> KeyRotation:
        """Return what rotates the keys of the records, and tells how they stand.

        Args:
            clock: Gives Unix seconds; None for the clock that the store was opened with.
        """
        seconds = clock or self._keys.clock
        return KeyRotation(
            LiveKeyset(self._file, self._keys, self._moment, self._changing, seconds)
        )

    def check(self) -> None:
        """Read the header, to see that the file is there and still belongs to these keys.

        Raises:
            StoreUnavailableError: The file cannot be read or was moved away, a write has failed
                before, or the store is closed or forked.
            WrongKeyError: The database is under another master key now.
            IntegrityError: The header is damaged, or an older one was put in its place.
            UnsupportedFormatError: Another version of the library has changed the format.
        """
        with self._file:
            self._file.refuse_after_failed_write()
            self._file.refuse_moved()
            self._keys.check(self._file.connection)

    def flush(self) -> None:
        """Move the write-ahead log into the database file and empty it.

        Inserts are durable without it; it matters before the file is copied.

        Raises:
            StoreUnavailableError: A snapshot or another process reads the file right now, a write
                has failed before, or the store is read-only, closed or forked.
        """
        with self._file:
            self._changing().refuse_in_transaction("flush")
            if not empty_log(self._file):
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
        self._file.close(self._keys.close)

    @contextmanager
    def _moment(self) -> Iterator[tuple[StoreFile, CurrentKeys]]:
        """Yield file and keys of a snapshot, or those of this one."""
        with nullcontext(self) if self._is_snapshot else self.snapshot() as moment:
            yield moment._file, moment._keys

    def _changing(self) -> Writer:
        if self._read_only:
            raise StoreUnavailableError(f"{self.path} was opened for reading only.")
        return self._writer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SecureDb {str(self.path)!r}{' (closed)' if self._file.closed else ''}>"


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
