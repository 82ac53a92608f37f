"""Run the probe of a rendered service, and read what it has found."""

import json
import sys
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from containers.engine import Deployment

POINTS = frozenset(range(1, 37))
REBUILD, RESTART = 15, 36
QUICKLY = ("--no-rebuild", "--keep-running")

REPORT = "probe-report.md"
VERDICTS = "probe.json"


@dataclass(frozen=True)
class Verdicts:
    """What became of the points.

    Attributes:
        holds: Those that hold.
        fails: Those that fail, each with what is said about it.
        status: The exit status of the probe.
        report: The report for people.
    """

    holds: Set[int]
    fails: dict[int, str]
    status: int
    report: str

    @classmethod
    def read(cls, folder: Path, status: int) -> "Verdicts":
        """Read what a probe has left in a folder."""
        points = json.loads((folder / VERDICTS).read_text("utf-8"))["points"]
        assert {point["number"] for point in points} == POINTS
        return cls(
            holds={point["number"] for point in points if point["verdict"] == "holds"},
            fails={
                point["number"]: " ".join(point["details"]) for point in points if point["verdict"] == "fails"
            },
            status=status,
            report=(folder / REPORT).read_text("utf-8"),
        )


def probe(deployment: Deployment, library: Path, *options: str) -> Verdicts:
    """Probe a running service.

    Args:
        deployment: The service.
        library: Where the probe is: libs/security of a hardened project.
        options: Of the probe.
    """
    done = deployment.run(
        *(sys.executable, "-P", "-m", "security_probe", "--report", REPORT, "--json", VERDICTS, *options),
        environment={"PYTHONPATH": str(library)},
        timeout=600,
    )
    assert done.returncode in (0, 1), f"{done.stdout}\n{done.stderr}"
    return Verdicts.read(deployment.folder, done.returncode)
