"""The open file of a store: one connection, one caller at a time, errors for people.

Nothing here knows what the tables hold.
"""

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

import apsw

from .._files import exists
from ..errors import SecurityError, StoreUnavailableError
from ..secret_bytes import SecretBytes
from .sqlite_errors import is_device_failure, translated, translation


class StoreFile:
    """A connection that is shared by threads. ``with`` it, the caller is alone on it.

    A ``with`` block may stand inside another of the same thread.

    Args:
        path: The database file, as messages name it.
        connection: To that file; taken over.
        canary: A secret that a fork wipes. With it gone, the connection is not ours.
        absolute: Its absolute path, if the process may have gone to another folder since.
        frozen: The file is read without locks, as one that nobody can write. Each entry makes
            sure that nobody has.

    Raises:
        StoreUnavailableError: On entering, that the file is closed, or this is a forked child; on
            leaving, what SQLite said, as a sentence.
        IntegrityError: On leaving, that SQLite found the file damaged.
    """

    def __init__(
        self,
        path: Path,
        connection: apsw.Connection,
        canary: SecretBytes,
        *,
        absolute: Path | None = None,
        frozen: bool = False,
    ) -> None:
        self.path: Final = path
        self.connection = connection
        self.lock: Final = threading.RLock()
        self.absolute: Final = absolute or path.absolute()
        self._opened: Final = self.absolute.stat()
        self._frozen = _state_of(self.absolute) if frozen else None
        self._check_canary = canary.check
        self._closed = False
        self._write_failed = False
        self._statement_failed = False
        with _gate:
            _open_files.add(self)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def __enter__(self) -> None:
        try:
            self._check_canary()  # before the lock, which another thread may have held at the fork
        except (StoreUnavailableError, ValueError):
            self.refuse_fork()
        self.lock.acquire()
        if self._closed:
            self.lock.release()
            self._refuse_closed()
        if self._frozen is not None and _state_of(self.absolute) != self._frozen:
            self.lock.release()
            raise StoreUnavailableError(
                f"{self.path} is on a file system that is mounted read-only here, and somebody "
                "else has changed it. Open it where it can be written."
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:  # under the lock: what the connection tells of the error is told once
            if error is not None and (ours := self._translation(error)) is not None:
                self._statement_failed = True
                raise ours from None
        finally:
            self.lock.release()

    def _translation(self, error: BaseException) -> SecurityError | None:
        return translation(error, self.path, None if self._closed else self.connection)

    def begin(self) -> None:
        """Begin a write transaction, waiting for other processes.

        Raises:
            StoreUnavailableError: A write has failed on the device before.
        """
        self.refuse_after_failed_write()
        self.roll_back()  # what an interrupt may have left open
        self._statement_failed = False
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make the transaction durable.

        Raises:
            StoreUnavailableError: A statement in it has failed; nothing of it is written.
        """
        # After some errors SQLite has rolled back by itself, and what followed was no longer one
        # transaction. A caller that caught the error must not end with half of its work written.
        if self._statement_failed or not self.connection.in_transaction:
            raise StoreUnavailableError(
                f"A call in this transaction on {self.path} failed, so nothing of it was written."
            )
        try:
            self.connection.execute("COMMIT")
        except apsw.IOError as error:
            self.note_failed_write(error)
            raise

    def roll_back(self) -> None:
        """Undo the transaction, unless SQLite has done so already."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def refuse_failed_transaction(self) -> None:
        """Refuse a write in a transaction in which a statement has failed.

        Raises:
            StoreUnavailableError: One has.
        """
        if self._statement_failed:
            raise StoreUnavailableError(
                f"An earlier call in this transaction on {self.path} failed. Begin a new one."
            )

    def refuse_moved(self) -> None:
        """Refuse to go on when the path no longer leads to the file that is open.

        Raises:
            StoreUnavailableError: It was removed, replaced or renamed; what is written from now on
                would go with it.
            OSError: It cannot be told.
        """
        try:
            found = self.absolute.stat()
        except FileNotFoundError:
            found = None
        if found is None or not os.path.samestat(found, self._opened):
            raise StoreUnavailableError(
                f"{self.path} was removed or replaced while it was open. Put it back, or restart "
                "the service on the file that is there now."
            )

    def note_failed_write(self, error: BaseException) -> None:
        """Remember whether a write has failed on the device."""
        # After a failed fsync nobody knows what the disk holds, and a second fsync may report
        # success for pages that were dropped. Only a new connection reads the truth.
        self._write_failed |= is_device_failure(error)

    def refuse_after_failed_write(self) -> None:
        """Refuse to go on after an error of the device.

        Raises:
            StoreUnavailableError: There was one.
        """
        if self._write_failed:
            raise StoreUnavailableError(
                f"A write to {self.path} failed on the device. Check the disk, then restart the "
                "service; what was acknowledged before is kept."
            )

    def refuse_fork(self) -> None:
        """Refuse a process that was forked from the one that opened the file.

        Raises:
            StoreUnavailableError: This is one, or the file is closed.
        """
        try:
            self._check_canary()
        except StoreUnavailableError:
            raise StoreUnavailableError(
                f"{self.path} was opened before a fork. Open it again in the child process."
            ) from None
        except ValueError:
            self._refuse_closed()

    def close(self, wipe: Callable[[], None]) -> None:
        """Close the connection; closing twice is allowed.

        Args:
            wipe: Wipes the keys, the canary with them. Called once, whatever the connection does.

        Raises:
            StoreUnavailableError: SQLite could not close the file; nothing acknowledged is lost.
        """
        if self._closed:
            return
        if self._is_inherited():  # not ours, and nobody may be left to give the lock back
            self._closed = True
            wipe()
            return
        with self.lock:
            if self._closed:
                return
            self._closed = True
            with _gate:
                _open_files.discard(self)
            try:
                with translated(self.path):
                    self.connection.close()
            finally:
                wipe()

    def _is_inherited(self) -> bool:
        try:
            self._check_canary()
        except StoreUnavailableError:
            return True
        except ValueError:  # closed by another thread just now
            return False
        return False

    def _refuse_closed(self) -> None:
        raise StoreUnavailableError(f"The store {self.path} is closed.")


def _state_of(path: Path) -> tuple[object, ...]:
    """Return what changes when somebody writes a database or puts a log beside it."""
    try:
        status = path.stat()
    except OSError:
        return ()
    logs = (exists(path.with_name(path.name + suffix)) for suffix in ("-wal", "-shm"))
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, *logs


# A fork copies the connections with the process. SQLite in the child then believes that it holds
# locks which are the parent's alone: when the parent closes the file, it counts itself as the last
# user and deletes the log, with whatever a store that the child has opened wrote there. And when
# the child ends, its copy of the connection would do the same to the others. So the files stand
# still during a fork, and the child closes what it inherited at once, leaving the log alone.
_open_files: "weakref.WeakSet[StoreFile]" = weakref.WeakSet()
_standing_still: list[StoreFile] = []
_one_fork_at_a_time = threading.Lock()
_PATIENCE_SECONDS: Final = 0.05
_gate = threading.RLock()
"""Guards what follows and which files are open, for an instant."""
_busy: list[int] = []
"""Threads that are in ``no_fork``."""


@contextmanager
def no_fork() -> Iterator[None]:
    """Keep forks away for a moment, between opening something and noting that it is open.

    A child would inherit what nobody knows of, and so never let it go.
    """
    thread = threading.get_ident()
    try:
        with _gate:
            _busy.append(thread)
        yield
    finally:
        with _gate:
            if thread in _busy:  # not if it was interrupted before
                _busy.remove(thread)


def _before_fork() -> None:
    _one_fork_at_a_time.acquire()
    while not _all_stand_still():
        time.sleep(0.001)


def _all_stand_still() -> bool:
    """Take the locks of all files and the gate, or none: a thread may hold one and want another."""
    with _gate:
        files = list(_open_files)
    for file in files:
        if not file.lock.acquire(timeout=_PATIENCE_SECONDS):
            _let_go()
            return False
        _standing_still.append(file)
    if not _gate.acquire(timeout=_PATIENCE_SECONDS):  # a signal handler may wait for a file in it
        _let_go()
        return False
    # Meanwhile, one may have been opened; one that was closed is of no concern any more.
    others = [thread for thread in _busy if thread != threading.get_ident()]
    if others or not set(_open_files).issubset(_standing_still):
        _gate.release()
        _let_go()
        return False
    return True


def _let_go() -> None:
    while _standing_still:
        _standing_still.pop().lock.release()


def _after_fork() -> None:
    _gate.release()
    _let_go()
    _one_fork_at_a_time.release()


def _after_fork_in_child() -> None:
    try:
        _open_files.clear()  # what this child forks has no part in them either
        for file in _standing_still:
            if not file.closed:
                _abandon(file.connection)
    finally:  # whatever happens, the next fork does not wait for this one
        _after_fork()


def _abandon(connection: apsw.Connection) -> None:
    """Close a connection that a child has inherited, leaving the log alone."""
    if connection.txn_state() == apsw.SQLITE_TXN_WRITE:
        # To close it would roll the parent's transaction back in memory that both share. It is
        # never freed here, not even when the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    else:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )
