"""How long `copier copy` of a hardened service takes, hook included.

The measure is the wall time of the command line, against the same command on a tagged template of one
question, one file and no task: what copier costs by itself. The two are run in alternation and compared by
their medians, so that a machine that is busy for a while slows both. Both repositories are packed, as a clone
of a published template is.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.worktree_copy import copy_template, git, version_of

SECONDS_BAR = 3.0
RATIO_BAR = 2.2


class Result(NamedTuple):
    """Wall times in seconds, and how many files each render wrote."""

    hardened: list[float]
    twin: list[float]
    hardened_files: int
    twin_files: int

    @property
    def ratio(self) -> float:
        """The hardened median over the twin's."""
        return statistics.median(self.hardened) / statistics.median(self.twin)


def make_twin(folder: Path) -> Path:
    """Make the smallest template that does what a template does."""
    folder.mkdir()
    (folder / "copier.yml").write_text("name:\n  type: str\n  default: World\n")
    (folder / "hello.txt.jinja").write_text("Hello, {{ name }}!\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Twin")
    git(folder, "tag", "v1.0.0")
    return folder


def time_copy(template: Path, destination: Path, *answers: str) -> float:
    """Run the command once and return its wall time in seconds."""
    data = [argument for answer in answers for argument in ("--data", answer)]
    command = [sys.executable, "-m", "copier", "copy", "--trust", "--defaults", "--quiet", *data]
    begun = time.perf_counter()
    subprocess.run([*command, str(template), str(destination)], check=True, capture_output=True)
    return time.perf_counter() - begun


def count_files(folder: Path) -> int:
    """Count what a render wrote."""
    return sum(path.is_file() for path in folder.rglob("*"))


def measure(rounds: int, scratch: Path) -> Result:
    """Time both in alternation, after one run of each that is not counted."""
    template = copy_template(scratch / "template", f"v{version_of()}")
    twin = make_twin(scratch / "twin")
    for repository in (template, twin):
        git(repository, "gc", "--quiet")
    hardened_times, twin_times = [], []
    for number in range(rounds + 1):
        twin_times.append(time_copy(twin, scratch / f"twin-{number}"))
        hardened_times.append(
            time_copy(template, scratch / f"hardened-{number}", "enable_security_hardening=true")
        )
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return Result(
        hardened_times[1:],
        twin_times[1:],
        count_files(scratch / f"hardened-{rounds}"),
        count_files(scratch / f"twin-{rounds}"),
    )


def verdict(value: float, bar: float, *, inclusive: bool) -> str:
    """Say whether a bar is met."""
    return "met" if value < bar or (inclusive and value == bar) else "missed"


def as_table(result: Result) -> str:
    """Lay the result out for people."""
    lines = [f"{'copier copy of':<28}{'files':>6}{'median':>10}{'fastest':>10}{'slowest':>10}"]
    for name, times, files in (
        ("a hardened service", result.hardened, result.hardened_files),
        ("one question, one file", result.twin, result.twin_files),
    ):
        figures = (statistics.median(times), min(times), max(times))
        lines.append(f"{name:<28}{files:>6}" + "".join(f"{figure:>8.3f} s" for figure in figures))
    median = statistics.median(result.hardened)
    lines += [
        "",
        f"median < {SECONDS_BAR} s: {median:.3f} s, {verdict(median, SECONDS_BAR, inclusive=False)}",
        f"ratio <= {RATIO_BAR}: {result.ratio:.2f}, {verdict(result.ratio, RATIO_BAR, inclusive=True)}",
    ]
    return "\n".join(lines)


def as_json(result: Result) -> str:
    """Lay the result out for programs."""
    median = statistics.median(result.hardened)
    return json.dumps(
        {
            "hardened_seconds": [round(value, 4) for value in result.hardened],
            "twin_seconds": [round(value, 4) for value in result.twin],
            "ratio": round(result.ratio, 3),
            "bars": {
                "seconds": verdict(median, SECONDS_BAR, inclusive=False),
                "ratio": verdict(result.ratio, RATIO_BAR, inclusive=True),
            },
            "processors": os.cpu_count(),
            "python": sys.version.split()[0],
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; a missed bar is printed and is no failure, because machines differ."""
    parser = argparse.ArgumentParser(prog="just benchmark", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="how many of each, at least 7 (default: 9)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the JSON to a file, not after the table"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 7:
        parser.error("--rounds must be at least 7")
    with tempfile.TemporaryDirectory(prefix="bartizan-benchmark-") as scratch:
        result = measure(options.rounds, Path(scratch).resolve())
    print(as_table(result))
    if options.json:
        options.json.write_text(as_json(result) + "\n")
    else:
        print("\n" + as_json(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
