"""Group commit: writers that wait for one another share one transaction, and so one sync.

One writer at a time leads. The others queue up, and each sleeps until its write is done or until
it is its turn to lead. A leader commits its own write, and with it what has queued up meanwhile
where that is worth it; then the next in the queue leads. What becomes of one write is nobody
else's business:

* A shared transaction that fails has written nothing; each of its writes is then tried alone.
* A leader that is interrupted puts the others' writes back and passes the lead on.
* A writer that is interrupted while it waits takes its write out of the queue, or passes on the
  lead that it was just given.

Two waiting writers are left to alternate: to share a transaction they would have to wait for each
other, which gains nothing. From three on, one sync serves all of them.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import apsw

from ..errors import SecurityError, StoreUnavailableError
from .store_file import StoreFile

_WORTH_IT: Final = 3
_MAX_RECORDS: Final = 2**16
_MAX_BYTES: Final = 4 * 1024 * 1024
_OF_A_WRITE: Final = (SecurityError, ArithmeticError, MemoryError, TypeError, ValueError)
"""What a write may fail with; anything else comes from a signal, and is the leader's own."""


class Write:
    """What one call wants written: some pairs, or a record gone.

    Args:
        pairs: Names and values to store, checked and never changed again.
        removed: Name of the record to remove instead.
    """

    __slots__ = ("abandoned", "done", "error", "pairs", "removed", "result", "thread", "turn")

    def __init__(
        self, pairs: Sequence[tuple[bytes, bytes]] = (), removed: bytes | None = None
    ) -> None:
        self.pairs = pairs
        self.removed = removed
        self.thread = threading.get_ident()
        self.done = False
        """Set when it is durable."""
        self.result = False
        """Whether the (first) name is new, or the removed record was there."""
        self.error: Exception | None = None
        """Why it was not written."""
        self.turn: threading.Lock | None = None
        """Held while its writer sleeps; None for a writer that leads at once."""
        self.abandoned = False
        """Set when nobody waits for it any more."""

    @property
    def size(self) -> int:
        """Bytes of names and values."""
        return sum(len(name) + len(value) for name, value in self.pairs)

    @property
    def pending(self) -> bool:
        """Whether somebody waits for it and it is neither done nor failed."""
        return not self.done and self.error is None and not self.abandoned

    def sleep(self) -> None:
        """Wait for ``wake``, which may have come already."""
        if self.turn is not None:
            self.turn.acquire()

    def wake(self) -> None:
        """Let its writer go on: it is done or failed, or is to lead."""
        if self.turn is not None and self.turn.locked():
            self.turn.release()


class GroupCommit:
    """The queue of the writers of one open file.

    Args:
        file: What they share.
        commit: Makes a group of writes durable, all or none, and fills in their results. Called
            by the leader, alone on the file.
    """

    def __init__(self, file: StoreFile, commit: Callable[[Sequence[Write]], None]) -> None:
        self._file = file
        self._commit = commit
        self._mutex = threading.RLock()  # a signal handler may write, too, and be refused
        self._leader: Write | None = None
        self._waiting: deque[Write] = deque()

    def submit(self, write: Write) -> bool:
        """Return the result of a write, once it is durable.

        Raises:
            StoreUnavailableError: It was not written. Others of its group are not concerned.
        """
        self._file.refuse_fork()  # before the mutex, which another thread may have held then
        try:
            self._queue(write)
            write.sleep()
            if write.pending:
                self._lead(write)
        finally:
            self._leave(write)
        if write.error is not None:
            raise write.error
        return write.result

    def _queue(self, write: Write) -> None:
        with self._mutex:
            if self._leader is not None and self._leader.thread == write.thread:
                raise RuntimeError("a write cannot begin inside another one of the same thread")
            if self._leader is None:
                self._leader = write
            else:
                write.turn = threading.Lock()
                write.turn.acquire()
                self._waiting.append(write)

    def _leave(self, write: Write) -> None:
        """Pass the lead on; or, interrupted while waiting, leave no trace in the queue."""
        with self._mutex:
            write.abandoned = True
            if self._leader is write:
                self._leader = None
                while self._leader is None and self._waiting:
                    next_in_line = self._waiting.popleft()
                    if next_in_line.pending:
                        self._leader = next_in_line
                        next_in_line.wake()
            elif write in self._waiting:
                self._waiting.remove(write)

    def _lead(self, own: Write) -> None:
        group = [own]
        try:
            self._take_others(group)
            if len(group) > 1:
                self._commit_together(group)
            for write in group:
                if write.pending:
                    self._commit_alone(write)
        finally:
            self._wake(group[1:])

    def _take_others(self, group: list[Write]) -> None:
        """Move what has queued up into the leader's group, if that is worth it."""
        with self._mutex:
            if 1 + len(self._waiting) < _WORTH_IT:
                return
            records, size = len(group[0].pairs), group[0].size
            while self._waiting:
                write = self._waiting[0]
                records += len(write.pairs)
                size += write.size
                if records > _MAX_RECORDS or size > _MAX_BYTES:
                    break
                group.append(write)
                self._waiting.popleft()

    def _commit_together(self, group: Sequence[Write]) -> None:
        try:
            with self._file:
                self._commit(group)
        except StoreUnavailableError as error:
            # Each write meets its own error when it is tried alone. But for a file that is busy
            # all of them have waited already, and would wait one behind the other again.
            if isinstance(error.__context__, apsw.BusyError):
                for write in group:
                    write.error = StoreUnavailableError(*error.args)
        except _OF_A_WRITE:
            pass

    def _commit_alone(self, write: Write) -> None:
        try:
            with self._file:
                self._commit([write])
        except _OF_A_WRITE as error:
            write.error = error  # raised by the thread whose write it is

    def _wake(self, others: Sequence[Write]) -> None:
        """Let the others go whose fate is known; an interrupt leaves some that must wait again."""
        with self._mutex:
            for write in reversed(others):
                if not write.pending:
                    write.wake()
                elif write not in self._waiting:
                    self._waiting.appendleft(write)
