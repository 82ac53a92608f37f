"""What is measured, how much of it, and what is expected."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from .store_driver import Contest, Side, own_side, ratios
from .store_report import Bar, Result

TWIN: Final = "plain twin"
CIPHERS: Final = ("xchacha20poly1305", "aes256gcm")
SIZE: Final = 1024
"""The size of a value, in bytes, that the bars hold for."""
BATCH: Final = 1_000
WRITERS: Final = 8
SYNCS_MS: Final = (0.6, 1.2)
LARGE: Final = 1_000_000
"""How many records make a store large."""

INSERT: Final = "durable insert, bare disk"
SLOW_INSERT: Final = "durable insert, syncs of {} ms"
WRITING: Final = f"{WRITERS} durable writers"
BATCHES: Final = f"batch of {BATCH:,}"
GET_SINGLES: Final = "get, stored one by one"
GET_BATCHES: Final = "get, stored in batches"
GET_LARGE: Final = "get, large store"
OPEN: Final = "open and first get"
OPEN_LARGE: Final = "open and first get, large store"
MEMORY: Final = "extra memory"
MEMORY_LARGE: Final = "extra memory, large store"
BESIDES_CODE: Final = ", besides code"

Bars = Mapping[tuple[str, ...], Bar]

BARS: Final[Bars] = {
    (INSERT, TWIN): Bar(1.15, aim=1.10, disk=True),
    (INSERT, TWIN, "aes256gcm"): Bar(1.22, aim=1.15, disk=True),
    (SLOW_INSERT.format(0.6), TWIN): Bar(1.05, aim=1.03),
    (SLOW_INSERT.format(1.2), TWIN): Bar(1.03, aim=1.02),
    (WRITING, TWIN): Bar(2.0, aim=3.0, higher=True, disk=True),
    (BATCHES, TWIN): Bar(2.0, aim=1.2, disk=True),
    (GET_SINGLES, TWIN): Bar(1.7, aim=1.4),
    (GET_BATCHES, TWIN): Bar(1.7, aim=1.4),
    (OPEN, TWIN): Bar(10.0, strict=True),
    (OPEN_LARGE, TWIN): Bar(10.0, strict=True),
    (MEMORY, TWIN): Bar(10.0, strict=True),
    (MEMORY_LARGE, TWIN): Bar(10.0, strict=True),
}
"""At 1 KiB and random names: by measure, opponent and, where the ciphers differ, cipher."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: Of everything; five at least for figures that are shown to others. Many short ones
            stand a busy machine better than few long ones, but each must be long enough for the
            log to be moved into the file once, which is part of the price of writing.
        records: In the stores that are read.
        inserts: In a turn. After a change of turns the processor's caches are those of another
            store, which short turns would count for much.
        gets: In a turn.
        opens: In a round.
        turns: In a round.
        sizes: Of values, in bytes.
    """

    rounds: int = 15
    records: int = 10_000
    inserts: int = 250
    gets: int = 1_250
    opens: int = 5
    turns: int = 2
    sizes: tuple[int, ...] = (64, SIZE, 16384)

    def for_size(self, size: int) -> "Plan":
        """Write less where values are large, so as not to fill the disk for the sake of it."""
        if size <= SIZE:
            return self
        return replace(self, records=self.records // 4, inserts=self.inserts // 4 + 1)


QUICK: Final = Plan(rounds=2, records=300, inserts=2, gets=10, opens=1, turns=2, sizes=(64, SIZE))


class Benchmark:
    """Measures, and collects the results.

    Args:
        plan: How much.
        scratch: An empty folder on the disk in question.
        peers: Who takes part besides the twin, in what one process does at a time.
        bars: What is expected.
    """

    def __init__(
        self, plan: Plan, scratch: Path, peers: Sequence[Side] = (), bars: Bars = BARS
    ) -> None:
        self.plan = plan
        self.results: list[Result] = []
        self.readable: dict[str, list[str]] = {}
        """By store, whether names and values can be read in its files."""
        self._scratch = scratch
        self._peers = tuple(peers)
        self._bars = bars

    def run(self) -> None:
        """Measure everything but a large store."""
        with Contest([*_own_sides(), *self._peers]) as contest:
            for size in self.plan.sizes:
                for order in ("random", "ordered"):
                    self._writes(contest, size, order)
                    self._reads(contest, size, order)
        for sync_ms in SYNCS_MS:
            self._slow_inserts(sync_ms)
        self._writers()
        with self._folder("memory") as folder:
            _fill(folder, self.plan.records, _own_sides())
            self._memory(MEMORY, folder, self.plan.records)

    def run_large(self, records: int, peers: Sequence[Side] = ()) -> None:
        """Measure stores of many records, each of which has a subkey of its own.

        Args:
            records: How many; the bars hold for :data:`LARGE`.
            peers: Whose reads are compared.
        """
        with self._folder(f"large stores, {records:,} records") as folder:
            sides = [*_own_sides(), *peers]
            _fill(folder, records, sides)
            with Contest(sides) as contest:
                contest.start(folder, order="random", size=SIZE, filled=records)
                self._gets(contest, GET_LARGE, SIZE, "random")
                self._opens(contest, OPEN_LARGE)
                contest.finish()
            self._memory(MEMORY_LARGE, folder, records)

    def _writes(self, contest: Contest, size: int, order: str) -> None:
        plan = self.plan.for_size(size)
        with self._folder(f"writes, {size} B, {order} names") as folder:
            contest.start(folder, order=order, size=size)
            contest.each("fill", count=plan.records // 5, by="batch")
            found = contest.rounds(plan.rounds, plan.turns, "insert", count=plan.inserts)
            self._compare(INSERT, size, order, found)
            found = contest.rounds(plan.rounds, plan.turns, "batch", count=1, size=BATCH)
            self._compare(BATCHES, size, order, found)
            contest.finish()

    def _reads(self, contest: Contest, size: int, order: str) -> None:
        plan = self.plan.for_size(size)
        for by, measure in (("single", GET_SINGLES), ("batch", GET_BATCHES)):
            with self._folder(f"{measure}, {size} B, {order} names") as folder:
                contest.start(folder, order=order, size=size)
                contest.each("fill", count=plan.records, by=by)
                contest.each("flush")
                self._gets(contest, measure, size, order)
                if (by, size, order) == ("single", SIZE, "random"):
                    self.readable = contest.each("readable")
                    self._opens(contest, OPEN)
                contest.finish()

    def _gets(self, contest: Contest, measure: str, size: int, order: str) -> None:
        plan = self.plan
        found = contest.rounds(plan.rounds, plan.turns, "get", count=plan.gets)
        self._compare(measure, size, order, found)

    def _opens(self, contest: Contest, measure: str) -> None:
        found = contest.rounds(self.plan.rounds, 1, "open", count=self.plan.opens)
        milliseconds = {label: [each / 1e3 for each in times] for label, times in found.items()}
        theirs = milliseconds[TWIN]
        for cipher in CIPHERS:
            ours = milliseconds[cipher]
            self._add(measure, SIZE, "random", cipher, TWIN, "ms", ours, theirs, ours)

    def _slow_inserts(self, sync_ms: float) -> None:
        with (
            self._folder(f"inserts, syncs of {sync_ms} ms") as folder,
            Contest(_own_sides(sync_ms)) as contest,
        ):
            contest.start(folder, order="random", size=SIZE)
            contest.each("fill", count=self.plan.records // 5, by="batch")
            count = max(self.plan.inserts // 2, 1)
            found = contest.rounds(self.plan.rounds, self.plan.turns, "insert", count=count)
            self._compare(SLOW_INSERT.format(sync_ms), SIZE, "random", found)
            contest.finish()

    def _writers(self) -> None:
        with self._folder(f"{WRITERS} writers") as folder, Contest(_own_sides()) as contest:
            contest.start(folder, order="random", size=SIZE)
            contest.each("fill", count=self.plan.records // 5, by="batch")
            count = WRITERS * self.plan.inserts
            found = contest.rounds(self.plan.rounds, 1, "threads", count=count, writers=WRITERS)
            rates = {label: [1e6 / each for each in times] for label, times in found.items()}
            self._compare(WRITING, SIZE, "random", rates, unit="/s")
            contest.finish()

    def _memory(self, measure: str, folder: Path, records: int) -> None:
        """Have new processes open the stores in a folder and work with them."""
        whole: dict[str, list[float]] = {}
        besides: dict[str, list[float]] = {}
        for _ in range(min(self.plan.rounds, 5)):  # it hardly varies, and processes take time
            with Contest(_own_sides()) as contest:
                loaded = contest.each("memory")
                if None in loaded.values():
                    print("memory is measured where there is /proc only", file=sys.stderr)
                    return
                contest.start(folder, order="random", size=SIZE, filled=records)
                contest.each("get", count=self.plan.turns * self.plan.gets)
                contest.each("insert", count=self.plan.inserts)
                contest.each("batch", count=1, size=BATCH)
                worked = contest.each("memory")
                contest.finish()
            records += self.plan.inserts + BATCH
            for label, most in worked.items():
                whole.setdefault(label, []).append(most)
                besides.setdefault(label, []).append(most - loaded[label])
        for name, found in ((measure, whole), (measure + BESIDES_CODE, besides)):
            theirs = found[TWIN]
            for cipher in CIPHERS:
                ours = found[cipher]
                extra = [mine - other for mine, other in zip(ours, theirs, strict=True)]
                self._add(name, SIZE, "random", cipher, TWIN, "MB", ours, theirs, extra)

    def _compare(
        self,
        measure: str,
        size: int,
        names: str,
        found: Mapping[str, Sequence[float]],
        unit: str = "µs",
    ) -> None:
        """Add a line for each cipher and each of the others."""
        for against in found:
            for cipher in CIPHERS:
                if against not in CIPHERS:
                    ours, theirs = found[cipher], found[against]
                    figures = ratios(ours, theirs)
                    self._add(measure, size, names, cipher, against, unit, ours, theirs, figures)

    def _add(
        self,
        measure: str,
        size: int,
        names: str,
        cipher: str,
        against: str,
        unit: str,
        ours: Sequence[float],
        theirs: Sequence[float],
        figures: Sequence[float],
    ) -> None:
        bar = None
        if size == SIZE and names == "random":
            key = (measure, against)
            bar = self._bars.get((*key, cipher), self._bars.get(key))
        self.results.append(
            Result(measure, size, names, cipher, against, unit, ours, theirs, figures, bar)
        )

    @contextmanager
    def _folder(self, what: str) -> Iterator[Path]:
        """Say what is measured, and give the space back afterwards."""
        print(what, file=sys.stderr, flush=True)
        folder = self._scratch / "stores"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _own_sides(sync_ms: float = 0.0) -> list[Side]:
    twin = own_side(TWIN, "plain", sync_ms=sync_ms)
    return [twin, *(own_side(cipher, cipher, sync_ms=sync_ms) for cipher in CIPHERS)]


def _fill(folder: Path, records: int, sides: Sequence[Side]) -> None:
    """Make a store for each side, of records that were written by calls of their own."""
    part = 10_000
    with Contest(sides) as contest:
        contest.start(folder, order="random", size=SIZE)
        for start in range(0, records, part):
            contest.each("fill", count=min(part, records - start), by="single")
        contest.each("flush")
        contest.finish()
