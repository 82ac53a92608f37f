"""How fast the keys of a store rotate while it is in use, beside rewriting its plain twin.

A rotation moves every record of 1 KiB and then reads all of them again. The twin rewrites its
records in batches of the same size, and does not read them again. In each round the stores
take turns, each with nobody reading, with another process that makes 200 gets a second, and with a
thread that does. The records were written one by one, so each has a subkey of its own, which is the
slower kind to open. Rates are what the rotation took as a whole, from the first step to the last.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .rotation_worker import GETS_PER_SECOND, SIZE
from .store_driver import TOP
from .store_report import Bar, Place, Result, as_table

TWIN: Final = "plain twin"
CIPHERS: Final = ("xchacha20poly1305", "aes256gcm")
SITUATIONS: Final = ("nobody reads", "a process reads", "a thread reads")
BAR: Final = Bar(10_000, higher=True)
"""Of records a second, for a rotation while one reader makes 200 gets a second."""


@dataclass
class _Found:
    """What the rounds have shown of one store in one situation."""

    rates: list[float] = field(default_factory=list)
    medians_ms: list[float] = field(default_factory=list)
    p99s_ms: list[float] = field(default_factory=list)

    def add(self, records: int, seconds: float, taken: Sequence[float]) -> None:
        self.rates.append(records / seconds)
        if taken:
            self.medians_ms.append(statistics.median(taken) * 1e3)
            self.p99s_ms.append(statistics.quantiles(taken, n=100, method="inclusive")[98] * 1e3)


def measure_rotation(scratch: Path, *, records: int, rounds: int) -> list[Result]:
    """Measure in a folder, and return a line for each figure."""
    stores = ("plain", *CIPHERS)
    for store in stores:
        print(f"filling {store}", file=sys.stderr, flush=True)
        _run(store, scratch / store, records, "fill")
    found = {(store, situation): _Found() for store in stores for situation in SITUATIONS}
    chance = random.Random(1)  # noqa: S311 - turns
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        for store, situation in chance.sample(list(found), len(found)):
            seconds, taken = _rewrite(store, scratch / store, records, situation)
            found[store, situation].add(records, seconds, taken)
    return [
        line
        for situation in SITUATIONS
        for cipher in CIPHERS
        for line in _lines(situation, cipher, found[cipher, situation], found["plain", situation])
    ]


def _lines(situation: str, cipher: str, ours: _Found, theirs: _Found) -> list[Result]:
    def line(
        what: str, unit: str, mine: list[float], other: list[float], bar: Bar | None
    ) -> Result:
        return Result(what, SIZE, "random", cipher, TWIN, unit, mine, other, mine, bar)

    bar = None if situation == SITUATIONS[0] else BAR
    lines = [line(f"rotation, {situation}", "/s", ours.rates, theirs.rates, bar)]
    if ours.p99s_ms and theirs.p99s_ms:
        at = f"get while keys rotate, {situation}"
        lines += [
            line(f"{at}, median", "ms", ours.medians_ms, theirs.medians_ms, None),
            line(f"{at}, 99 of 100", "ms", ours.p99s_ms, theirs.p99s_ms, None),
        ]
    return lines


def _rewrite(
    store: str, folder: Path, records: int, situation: str
) -> tuple[float, Sequence[float]]:
    """Have a store rewritten; return the seconds, and what each get has taken meanwhile."""
    if situation != "a process reads":
        what = "rewrite-and-read" if situation == "a thread reads" else "rewrite"
        told = _run(store, folder, records, what)
        return told["seconds"], told["taken"]
    command = _command(store, folder, records, "read")
    with subprocess.Popen(  # noqa: S603 - a command of our own
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
    ) as reader:
        if reader.stdout is None or reader.stdout.readline() != "ready\n":
            raise RuntimeError("the reader did not start")
        seconds = _run(store, folder, records, "rewrite")["seconds"]
        said, _ = reader.communicate()
    return seconds, json.loads(said.splitlines()[-1])["taken"]


def _run(store: str, folder: Path, records: int, what: str) -> Any:
    done = subprocess.run(  # noqa: S603 - a command of our own
        _command(store, folder, records, what),
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _command(store: str, folder: Path, records: int, what: str) -> list[str]:
    module = f"{__package__}.rotation_worker"
    return [sys.executable, "-P", "-m", module, store, str(folder), str(records), what]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(TOP)}


NOTES: Final = (
    f"A rotation with a reader of {GETS_PER_SECOND} gets a second: figures are what it took by "
    "itself, the",
    "median over the rounds; the twin rewrites its records once and reads none of them again.",
)


def main(records: int = 20_000, rounds: int = 5) -> int:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory(prefix="rotation-benchmark-") as folder:
        results = measure_rotation(Path(folder), records=records, rounds=rounds)
        print(as_table(results, Place.of(Path(folder)), NOTES))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
