"""What was measured, against which bar, for people and for programs.

A figure that is compared is the median over the rounds of the ratio within each round; what a
store took by itself is the median over the rounds too, so the two may differ in the last digit.
"""

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Bar:
    """What a measure is expected to reach.

    Attributes:
        limit: The figure that must not be passed.
        aim: What would be good; None where there is no more to wish for.
        higher: Whether more is better.
        disk: Whether it means nothing where a sync costs nothing.
        strict: Whether reaching the limit exactly is a miss.
    """

    limit: float
    aim: float | None = None
    higher: bool = False
    disk: bool = False
    strict: bool = False

    def __str__(self) -> str:
        sign = ">=" if self.higher else "<" if self.strict else "<="
        return f"{sign} {self.limit:g}"

    def verdict(self, figure: float, *, on_disk: bool) -> str:
        """Say ``met``, by how much it was missed, or why it was not judged."""
        if self.disk and not on_disk:
            return "not judged: no disk"
        short = self.limit - figure if self.higher else figure - self.limit
        if short > 0 or (self.strict and short == 0):
            by = f"{short:.3f}" if short >= 0.0005 else "< 0.001"
            share = format(short / self.limit, ".0%")
            return f"missed by {by} ({share})"
        return "met"


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        measure: What was done.
        size: Bytes of a value.
        names: ``random`` or ``ordered``.
        cipher: Of the store.
        against: What it is compared with; empty when the figure stands for itself.
        unit: Of ``ours`` and ``theirs``.
        ours: What the store took, each round.
        theirs: What the other took.
        figures: What is judged, each round: a ratio, or ``ours`` or a difference.
        bar: What is expected of it, if anything.
    """

    measure: str
    size: int
    names: str
    cipher: str
    against: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    figures: Sequence[float]
    bar: Bar | None = None

    @property
    def figure(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.figures)


@dataclass(frozen=True)
class Place:
    """Where the files lay.

    Attributes:
        folder: The folder.
        file_system: Its kind, as the kernel names it; empty where it does not.
    """

    folder: Path
    file_system: str

    @classmethod
    def of(cls, folder: Path) -> "Place":
        """Look up the file system of a folder."""
        folder = folder.resolve()
        try:
            lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            return cls(folder, "")
        found, depth = "", -1
        for line in lines:
            mounted, kind = line.split()[4], line.partition(" - ")[2].split()[0]
            point = Path(mounted.encode().decode("unicode_escape"))
            # The later of two on one folder hides the earlier.
            if folder.is_relative_to(point) and len(point.parts) >= depth:
                found, depth = kind, len(point.parts)
        return cls(folder, found)

    @property
    def on_disk(self) -> bool:
        """Whether a sync has something to do."""
        return self.file_system not in _MEMORY_FILE_SYSTEMS

    def __str__(self) -> str:
        kind = self.file_system or "unknown"
        remark = "" if self.on_disk else ": memory, where a durable write costs nothing"
        return f"file system {kind}{remark}"


_HEADINGS: Final = (
    "measure",
    "value",
    "names",
    "cipher",
    "against",
    "ours",
    "theirs",
    "figure",
    "lowest to highest",
    "bar",
    "aim",
    "verdict",
)


def as_table(results: Sequence[Result], place: Place, notes: Sequence[str]) -> str:
    """Lay the results out for people."""
    rows = [_HEADINGS, *(_cells(result, place) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    judged = [result for result in results if result.bar is not None]
    missed = [result for result in judged if _verdict(result, place).startswith("missed")]
    met = [result for result in judged if _verdict(result, place) == "met"]
    return "\n".join(
        [
            *lines,
            "",
            f"{len(met)} of {len(judged)} bars met, {len(missed)} missed.",
            f"{_machine()}; {place}.",
            "",
            *notes,
        ]
    )


def as_json(results: Sequence[Result], place: Place, notes: Sequence[str]) -> dict[str, object]:
    """Lay the results out for programs."""
    return {
        "machine": _machine(),
        "file_system": place.file_system,
        "on_disk": place.on_disk,
        "notes": list(notes),
        "results": [
            {
                "measure": result.measure,
                "size": result.size,
                "names": result.names,
                "cipher": result.cipher,
                "against": result.against,
                "unit": result.unit,
                "ours": [round(value, 4) for value in result.ours],
                "theirs": [round(value, 4) for value in result.theirs],
                "figures": [round(value, 5) for value in result.figures],
                "figure": round(result.figure, 5),
                "bar": result.bar.limit if result.bar else None,
                "aim": result.bar.aim if result.bar else None,
                "higher_is_better": result.bar.higher if result.bar else None,
                "verdict": _verdict(result, place),
            }
            for result in results
        ],
    }


def _verdict(result: Result, place: Place) -> str:
    return result.bar.verdict(result.figure, on_disk=place.on_disk) if result.bar else ""


def _cells(result: Result, place: Place) -> tuple[str, ...]:
    unit = result.unit if result.figures is result.ours else ""
    aim = result.bar.aim if result.bar else None
    return (
        result.measure,
        f"{result.size} B" if result.size < 1024 else f"{result.size // 1024} KiB",
        result.names,
        result.cipher,
        result.against,
        f"{statistics.median(result.ours):,.1f} {result.unit}",
        f"{statistics.median(result.theirs):,.1f} {result.unit}" if result.theirs else "",
        f"{result.figure:.3f} {unit}".rstrip(),
        f"{min(result.figures):.3f} to {max(result.figures):.3f}",
        str(result.bar or ""),
        "" if aim is None else f"{aim:g}",
        _verdict(result, place),
    )


def _machine() -> str:
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, "
        f"Python {sys.version.split()[0]}"
    )
