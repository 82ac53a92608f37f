"""A point: what it promises, why that matters, and how it is judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .document import NotShownError
from .facts import Facts, NotTried


class Verdict(StrEnum):
    """What came of a point."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Finding:
    """The verdict on a point, and what it rests on.

    Attributes:
        verdict: Of the point.
        evidence: What was seen, in a line.
        problems: What is wrong, a line each; nothing unless the point fails.
    """

    verdict: Verdict
    evidence: str
    problems: Sequence[str] = ()


Judge = Callable[[Facts], Finding]


@dataclass(frozen=True)
class Point:
    """One of the promises.

    Attributes:
        number: From 1.
        title: The promise.
        reason: Why it matters, a sentence.
        judge: Tells from the facts whether it is kept.
    """

    number: int
    title: str
    reason: str
    judge: Judge

    def of(self, facts: Facts) -> Finding:
        """Judge; what is not shown does not hold."""
        try:
            return self.judge(facts)
        except NotShownError as missing:
            return failed([f"Not shown: {missing}."])


def finding(problems: Sequence[str], evidence: str) -> Finding:
    """Return that a point fails where there are problems, and holds where there are none."""
    return failed(problems) if problems else Finding(Verdict.HOLDS, evidence)


def failed(problems: Sequence[str]) -> Finding:
    """Return that a point fails; the first problem is its evidence."""
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return Finding(Verdict.FAILS, problems[0] + more, tuple(problems))


def not_tried(left_out: NotTried) -> Finding:
    """Return that a point was left out."""
    return Finding(Verdict.NOT_TRIED, left_out.reason)
