"""The verdicts for a terminal, and for other programs."""

import json
from collections.abc import Iterator, Mapping

from .finding import Verdict
from .plain_text import plain
from .points import Judgement, count


def conclusion(judgement: Judgement) -> str:
    """Say in a line what came of it."""
    total = len(judgement)
    holds, fails = count(judgement, Verdict.HOLDS), count(judgement, Verdict.FAILS)
    tried = f"{holds + fails} of {total} points tried"
    return f"{tried}: all hold." if not fails else f"{tried}: {holds} hold, {fails} fail."


def summary(judgement: Judgement) -> Iterator[str]:
    """Yield a line for each point, the problems of those that fail, and the conclusion."""
    for point, found in judgement:
        yield f"{point.number:3} {found.verdict:9}  {point.title}"
        if found.verdict is Verdict.NOT_TRIED:
            yield f"{'':15}{plain(found.evidence)}"
        for problem in found.problems:
            yield f"{'':15}{plain(problem, 1000)}"
    yield conclusion(judgement)


def as_json(judgement: Judgement, origin: Mapping[str, str]) -> str:
    """Return everything as JSON."""
    found = {
        "origin": dict(origin),
        "conclusion": conclusion(judgement),
        "points": [
            {
                "number": point.number,
                "title": point.title,
                "verdict": found.verdict,
                "evidence": found.evidence,
                "details": list(found.problems),
            }
            for point, found in judgement
        ],
    }
    return json.dumps(found, indent=1) + "\n"
