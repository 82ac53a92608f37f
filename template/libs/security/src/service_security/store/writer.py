"""Writes records: in groups or in the caller's transaction, with nonces that never repeat."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import Final

import apsw

from ..errors import IntegrityError, SecurityError
from .current_keys import CurrentKeys
from .group_commit import GroupCommit, Write
from .header import read_generation
from .nonce import LEASE, CounterLease, check_lease, fresh_uuid
from .record import Row
from .store_file import StoreFile

TRANSACTION_RECORDS: Final = LEASE // 2
"""The most records that one transaction stores: their counters are reserved before it begins."""

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


class Writer:
    """The writing half of a store.

    Args:
        file: The open file.
        keys: Its keys.
    """

    def __init__(self, file: StoreFile, keys: CurrentKeys) -> None:
        self._file = file
        self._keys = keys
        self._counters = CounterLease(self._reserve_counters)
        self._queue = GroupCommit(file, self._commit)
        self._transaction_thread: int | None = None

    def refuse_in_transaction(self, what: str) -> None:
        """Refuse what cannot be a part of a transaction of this thread.

        Raises:
            RuntimeError: This thread is in one.
        """
        if self._transaction_thread == get_ident():
            raise RuntimeError(f"{what} cannot be a part of a transaction")

    def take_counters(self, count: int) -> int:
        """Return the first of ``count`` counters for records that somebody else seals.

        Raises:
            RuntimeError: This thread is in a transaction, which could undo the lease.
            StoreUnavailableError: No lease could be made durable. Nothing may be sealed then.
        """
        with self._file:
            self.refuse_in_transaction("a change of the keys")
            return self._counters.take(count)

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Make the statements of a block one transaction of their own; alone on the file.

        Args:
            what: Names it, where it cannot be a part of another one.

        Raises:
            RuntimeError: This thread is in a transaction.
            StoreUnavailableError: Nothing was written.
        """
        self.refuse_in_transaction(what)
        try:
            self._file.begin()
            yield
            self._file.commit()
        except BaseException as error:
            self._file.roll_back()
            self._file.note_failed_write(error)
            raise

    def write(self, write: Write) -> bool:
        """Make a write durable, or a part of this thread's transaction; return its result.

        Raises:
            StoreUnavailableError: Nothing was written.
            ValueError: The transaction stores too many records.
        """
        if self._transaction_thread != get_ident():
            return self._queue.submit(write)
        with self._file:
            self._file.refuse_failed_transaction()
            self._execute(write, self._sealed(write.pairs))
        return write.result

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the block's writes one; see ``SecureDb.transaction``."""
        self._file.refuse_fork()
        with self._file.lock:
            with self._file:
                if self._transaction_thread is not None:
                    raise RuntimeError("a transaction cannot begin in another one")
                # A lease that is taken in the block would be undone with it, and its counters
                # used again.
                self._counters.provide(TRANSACTION_RECORDS)
            try:
                with self._file:
                    self._file.begin()
                    if read_generation(self._file.connection) != self._keys.record.generation:
                        self._keys.reload(self._file.connection)
                owner = self._transaction_thread = get_ident()
                yield
                if get_ident() != owner:
                    raise RuntimeError("a transaction is left by the thread that began it")
                with self._file:
                    self._file.commit()
            except BaseException:
                if self._transaction_thread in (None, get_ident()):
                    with suppress(SecurityError), self._file:
                        self._file.roll_back()
                raise
            finally:
                self._transaction_thread = None

    def _commit(self, group: Sequence[Write]) -> None:
        """Make writes durable, all or none; the caller is alone on the file."""
        self._file.refuse_after_failed_write()
        self._file.roll_back()  # what an interrupt may have left open would swallow these writes
        pairs = [pair for write in group for pair in write.pairs]
        try:
            while True:
                if self._apply(group, self._sealed(pairs)):
                    return
                self._keys.reload(self._file.connection)
        except apsw.IOError as error:
            self._file.note_failed_write(error)
            raise

    def _sealed(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[Row]:
        if not pairs:
            return []
        # The lease is durable before the transaction, and the uuid is drawn after the plaintexts
        # are fixed and used for this attempt only: a process restored twice from one snapshot
        # would otherwise seal two plaintexts under one nonce.
        counter = self._counters.take(len(pairs))
        return self._keys.record.seal(pairs, fresh_uuid(), counter)

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
        try:
            file.begin()
            if read_generation(self._file.connection) != self._keys.record.generation:
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
            connection.execute(_DELETE, (self._keys.record.token(write.removed),))
            write.result = connection.changes() > 0
            return True
        if len(rows) > 1:
            connection.executemany(_WRITE_MANY, rows)
            return True
        connection.set_last_insert_rowid(0)  # stays so when a row is replaced
        connection.execute(_WRITE, (*rows[0], self._keys.record.generation))
        write.result = connection.last_insert_rowid() != 0
        return connection.changes() > 0

    def _reserve_counters(self, count: int) -> int:
        file = self._file
        if file.connection.in_transaction:
            raise ValueError(f"at most {TRANSACTION_RECORDS} records a transaction")
        with self.alone("a lease"):
            start = file.connection.execute("SELECT next FROM lease WHERE id = 1").get
            if not isinstance(start, int):
                raise IntegrityError(
                    f"{self._file.path} has lost its nonce lease. Restore it from a backup."
                )
            check_lease(start)
            file.connection.execute("UPDATE lease SET next = ? WHERE id = 1", (start + count,))
        return start
