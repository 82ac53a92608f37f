"""The worker: one store in a process of its own, told over a pipe what to do, and timing it.

Each line of standard input is a command as JSON, each line of standard output its answer. A block
of operations is timed in here, so the pipe costs nothing that is counted. Everything random is
made from fixed seeds before the clock starts: all workers get the same names and values in the
same order, and read the same records. The garbage collector rests during a block.

Nothing but the standard library is imported: some stores need an environment of their own.
"""

import gc
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

NAME_BYTES = 16
"""The least that random names have: an identifier of 128 bits. Longer ones would slow the index of
a store that shows them, not of one that hides them."""
_VALUES = 64
_FILL_BATCH = 1_000
_WORD = 2**64 - 1


class Store(Protocol):
    """What a worker measures."""

    def insert(self, name: bytes, value: bytes) -> object:
        """Store one record durably, replacing one of that name."""

    def insert_many(self, pairs: list[tuple[bytes, bytes]]) -> object:
        """Store records in one durable transaction."""

    def transaction(self) -> AbstractContextManager[object]:
        """Make the calls in a block one transaction."""

    def get(self, name: bytes) -> bytes | None:
        """Return a value."""

    def flush(self) -> object:
        """Bring everything from logs into the file proper."""

    def close(self) -> object:
        """Close the store."""


Opener = Callable[[Path], Store]


class Names:
    """An endless list of names by their number."""

    def __init__(self, order: str) -> None:
        self._of = {"random": self._random, "ordered": self._ordered}[order]

    def of(self, numbers: range) -> list[bytes]:
        """Return the names of some numbers."""
        return [self._of(number) for number in numbers]

    @staticmethod
    def _random(number: int) -> bytes:
        return (_mixed(2 * number) << 64 | _mixed(2 * number + 1)).to_bytes(NAME_BYTES)

    @staticmethod
    def _ordered(number: int) -> bytes:
        return b"record-%09d" % number


def _mixed(number: int) -> int:
    """Return 64 bits that look random (SplitMix64), without loading a library for it.

    A hash function would bring OpenSSL into the process of the plain twin, whose memory counts.
    """
    number = (number + 1) * 0x9E3779B97F4A7C15 & _WORD
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _WORD
    return number ^ number >> 31


class Worker:
    """Holds the store and carries commands out.

    Args:
        open_store: Opens the store in a folder, creating it if there is none.
        folder: Where it lies.
        order: Of the names: ``random`` or ``ordered``.
        size: Bytes of a value.
        filled: How many records there are in it already.
    """

    def __init__(
        self, open_store: Opener, folder: Path, order: str, size: int, filled: int
    ) -> None:
        self._open_store = open_store
        self._folder = folder
        self._names = Names(order)
        seeded = random.Random(size)  # noqa: S311 - test data, the same in every worker
        self._values = [seeded.randbytes(size) for _ in range(_VALUES)]
        self._choice = random.Random(1)  # noqa: S311 - as above
        self._filled = filled
        self._store = open_store(folder)

    def fill(self, count: int, by: str) -> float:
        """Add records: by ``batch``, by ``single`` calls in transactions, or by ``commit``, each.

        A call is what an encrypting store may spread a cost over, a transaction is not.
        """
        pairs = self._new_pairs(count)
        begun = time.perf_counter()
        for start in range(0, count, _FILL_BATCH):
            part = pairs[start : start + _FILL_BATCH]
            if by == "batch":
                self._store.insert_many(part)
            elif by == "single":
                with self._store.transaction():
                    for name, value in part:
                        self._store.insert(name, value)
            else:
                for name, value in part:
                    self._store.insert(name, value)
        seconds = time.perf_counter() - begun
        self._prove(count)
        return seconds

    def flush(self) -> float:
        """Empty the store's logs."""
        begun = time.perf_counter()
        self._store.flush()
        return time.perf_counter() - begun

    def insert(self, count: int) -> float:
        """Time durable inserts of new names."""
        pairs = self._new_pairs(count)
        insert = self._store.insert
        with _undisturbed():
            begun = time.perf_counter()
            for name, value in pairs:
                insert(name, value)
            seconds = time.perf_counter() - begun
        self._prove(count)
        return seconds

    def batch(self, count: int, size: int) -> float:
        """Time batches of new names, each one durable transaction."""
        batches = [self._new_pairs(size) for _ in range(count)]
        insert_many = self._store.insert_many
        with _undisturbed():
            begun = time.perf_counter()
            for pairs in batches:
                insert_many(pairs)
            seconds = time.perf_counter() - begun
        self._prove(size)
        return seconds

    def get(self, count: int) -> float:
        """Time reads of names that are there, chosen at random."""
        chosen = [self._choice.randrange(self._filled) for _ in range(count)]
        names = [self._names.of(range(number, number + 1))[0] for number in chosen]
        get = self._store.get
        with _undisturbed():
            begun = time.perf_counter()
            for name in names:
                get(name)
            return time.perf_counter() - begun

    def threads(self, count: int, writers: int) -> float:
        """Time durable inserts by threads at once; ``count`` is the sum of theirs."""
        share = count // writers
        start = threading.Barrier(writers + 1)
        failures: list[BaseException] = []

        def write(pairs: list[tuple[bytes, bytes]]) -> None:
            insert = self._store.insert
            start.wait()
            try:
                for name, value in pairs:
                    insert(name, value)
            except BaseException as error:  # noqa: BLE001 - handed to the main thread
                failures.append(error)

        threads = [
            threading.Thread(target=write, args=(self._new_pairs(share),)) for _ in range(writers)
        ]
        for thread in threads:
            thread.start()
        with _undisturbed():
            start.wait()
            begun = time.perf_counter()
            for thread in threads:
                thread.join()
            seconds = time.perf_counter() - begun
        if failures:
            raise failures[0]
        self._prove(share)
        return seconds

    def open(self, count: int) -> float:
        """Time opening with a first read, after which nothing is put off any more."""
        seconds = 0.0
        for _ in range(count):
            self._store.close()
            name = self._names.of(range(self._choice.randrange(self._filled), self._filled))[0]
            begun = time.perf_counter()
            self._store = self._open_store(self._folder)
            value = self._store.get(name)
            seconds += time.perf_counter() - begun
            if value is None:
                raise RuntimeError("the store has lost a record")
        return seconds

    def readable(self) -> list[str]:
        """Return what the files of the store show: ``names``, ``values``, both or none."""
        files = [path.read_bytes() for path in self._folder.rglob("*") if path.is_file()]
        (name,) = self._names.of(range(self._filled - 1, self._filled))
        sought = {"names": name, "values": self._values[(self._filled - 1) % _VALUES]}
        return [what for what, data in sought.items() if any(data in file for file in files)]

    def finish(self) -> None:
        """Close the store."""
        self._store.close()

    def _new_pairs(self, count: int) -> list[tuple[bytes, bytes]]:
        first, self._filled = self._filled, self._filled + count
        names = self._names.of(range(first, first + count))
        return [(name, self._values[number % _VALUES]) for number, name in enumerate(names, first)]

    def _prove(self, count: int) -> None:
        """See that the last records are there: a store that drops them would be fast."""
        for number in range(self._filled - min(count, 10), self._filled):
            name = self._names.of(range(number, number + 1))[0]
            if self._store.get(name) != self._values[number % _VALUES]:
                raise RuntimeError("the store has lost a record")


@contextmanager
def _undisturbed() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def most_memory() -> float | None:
    """Return the most memory that this process has had, in megabytes of 10**6 bytes.

    None where the system has no /proc: other sources count what was there before the program.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def serve(open_store: Opener) -> None:
    """Carry out commands until standard input ends."""
    # Whatever a library prints must not get between the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        worker: Worker | None = None
        for line in sys.stdin:
            command: dict[str, Any] = json.loads(line)
            do = command.pop("do")
            answer: object = None
            if do == "memory":
                answer = most_memory()
            elif do == "start":
                folder = Path(command.pop("folder"))
                folder.mkdir(parents=True, exist_ok=True)
                worker = Worker(open_store, folder, **command)
            elif worker is not None:
                answer = getattr(worker, do)(**command)
            answers.write(json.dumps({"answer": answer}) + "\n")
            answers.flush()
