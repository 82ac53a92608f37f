"""What encryption costs: ``SecureDb`` beside its plain twin (``plain_twin.py``), as ratios.

Every store runs in a process of its own and all take turns within each round, so that whatever
else the machine does slows all of them; a figure is the median over the rounds. The twin has the
same engine, pragmas (``secure_delete`` too), kind of table and interface, and is as fast as it can
be made. What to keep in mind when reading the table:

- The bars hold for values of 1 KiB and random names, which is how most services name things.
  Ordered names are faster for a store that shows them, because it appends to its index; an
  encrypted store has no order to gain from. They are measured and have no bar.
- How much of a durable write is encryption depends on the disk. "bare disk" is the one at hand;
  where syncs are said to take 0.6 or 1.2 ms it is slowed down, to show what others give.
- "stored one by one" means that every record was written by a call of its own and has a subkey of
  its own. Records of one batch share a subkey, and reading them is faster.
- The extra memory is that of whole processes at their highest, OpenSSL and all code included,
  which the twin does not load; "besides code" is what the processes took after loading it.

A missed bar is printed and is no failure: machines differ, and other work on this one counts.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from .rotation import measure_rotation
from .start import measure_start
from .store_measures import LARGE, QUICK, Benchmark, Plan
from .store_report import Place, as_json, as_table


def options(description: str, *, large: int) -> argparse.ArgumentParser:
    """Return the options of a benchmark, which measures ``large`` records unless told otherwise."""
    made = argparse.ArgumentParser(prog="just security-benchmark", description=description)
    made.add_argument("--rounds", type=int, help=f"of everything (default: {Plan().rounds})")
    made.add_argument(
        "--large",
        type=int,
        default=large,
        metavar="N",
        help=f"records of the large stores, 0 for none (default: {large:,}; bars: {LARGE:,})",
    )
    made.add_argument("--quick", action="store_true", help="small counts, to see that it runs")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file too")
    made.add_argument("--dir", type=Path, help="a folder on the disk (default: the temporary one)")
    return made


def measure(
    chosen: argparse.Namespace,
    work: Callable[[Plan, Path], Benchmark],
    notes: Sequence[str] = (),
) -> None:
    """Measure on the disk that was chosen, and print the table.

    Args:
        chosen: Values of :func:`options`.
        work: Measures in a folder and returns what it found.
        notes: What is printed below the table.
    """
    plan = QUICK if chosen.quick else Plan()
    if chosen.rounds:
        plan = replace(plan, rounds=chosen.rounds)
    with tempfile.TemporaryDirectory(prefix="security-benchmark-", dir=chosen.dir) as scratch:
        place = Place.of(Path(scratch))
        done = work(plan, Path(scratch))
    readable = (f"{label} ({', '.join(what)})" for label, what in done.readable.items() if what)
    notes = [
        "Figures: the median over the rounds of the ratio in each, ours / theirs; for writers at "
        "once ours is what",
        "they wrote in a second. Opening and memory: what it took, and the difference.",
        f"Readable in the files: {'; '.join(readable) or 'nothing'}.",
        *notes,
    ]
    print(as_table(done.results, place, notes))
    if chosen.json:
        found = json.dumps(as_json(done.results, place, notes), indent=1)
        chosen.json.write_text(found + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure against the twin."""
    chosen = options((__doc__ or "").splitlines()[0], large=0).parse_args(arguments)

    def work(plan: Plan, scratch: Path) -> Benchmark:
        benchmark = Benchmark(plan, scratch)
        benchmark.run()
        benchmark.results += measure_start(scratch / "start", rounds=3 * plan.rounds)
        benchmark.results += measure_rotation(
            scratch / "rotation", records=2 * plan.records, rounds=min(plan.rounds, 5)
        )
        if chosen.large:
            benchmark.run_large(chosen.large)
        return benchmark

    measure(chosen, work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
