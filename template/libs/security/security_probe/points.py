"""The list of all points, and the judgement of a container by it."""

from collections.abc import Sequence
from typing import Final

from . import container_points, image_points, inside_points
from .facts import Facts
from .finding import Finding, Point, Verdict

POINTS: Final[Sequence[Point]] = (
    *image_points.POINTS,
    *container_points.POINTS,
    *inside_points.POINTS,
)

Judgement = Sequence[tuple[Point, Finding]]


def judge(facts: Facts) -> Judgement:
    """Judge all points."""
    return [(point, point.of(facts)) for point in POINTS]


def count(judgement: Judgement, verdict: Verdict) -> int:
    """Count the points with a verdict."""
    return sum(finding.verdict is verdict for _, finding in judgement)
