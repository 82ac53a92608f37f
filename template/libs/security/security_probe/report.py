"""The report for a reviewer, in Markdown."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from .document import NotShownError
from .errors import ProbeError
from .facts import Facts
from .finding import Verdict
from .inside import DONE
from .plain_text import markdown
from .points import Judgement
from .summary import conclusion

SIGNS: Final = {Verdict.HOLDS: "holds", Verdict.FAILS: "**fails**", Verdict.NOT_TRIED: "not tried"}

KNOWN: Final = (
    "Files in /data can be run: engines ignore noexec on volumes and binds. {data}",
    "That there is no shell does not stop someone who already runs Python in the service. What "
    "such a process can do is bounded by points 16 to 35.",
    "A folder of root's mounted at /data, or a volume that another image has filled, ends in "
    '"permission denied": the service cannot help itself. One run as root with CHOWN and '
    "DAC_OVERRIDE mends it; docs/security/DEPLOYMENT.md has the command.",
    "A secret from a file keeps owner and mode that the file has on the machine, and 65532 has to "
    "read it. The key is therefore open to all (0444) in a folder that is closed to others (0700): "
    "the engine mounts the file alone. One of mode 0400 that belongs to 65532 does as well. Root "
    "on the machine reads it, and everything else.",
    "Points 27 to 35 rest on what the interpreter inside says. A container that is already in "
    "someone else's hands can answer what it likes.",
)


def report(judgement: Judgement, origin: Mapping[str, str], facts: Facts) -> str:
    """Write the report."""
    return "\n".join(_lines(judgement, origin, facts)) + "\n"


def _lines(judgement: Judgement, origin: Mapping[str, str], facts: Facts) -> Iterator[str]:
    yield "# Security probe of a container"
    yield ""
    yield f"**{conclusion(judgement)}**"
    yield ""
    yield "| | |"
    yield "|---|---|"
    for name, value in origin.items():
        yield f"| {name} | {markdown(value)} |"
    yield ""
    yield "## Points"
    yield ""
    yield "| # | Point | Verdict | Evidence |"
    yield "|---:|---|---|---|"
    for point, found in judgement:
        title, evidence = markdown(point.title), markdown(found.evidence)
        yield f"| {point.number} | {title} | {SIGNS[found.verdict]} | {evidence} |"
    yield ""
    if failures := [pair for pair in judgement if pair[1].verdict is Verdict.FAILS]:
        yield "## Failures"
        yield ""
        for point, found in failures:
            yield f"### {point.number}. {markdown(point.title)}"
            yield ""
            yield markdown(point.reason)
            yield ""
            for problem in found.problems:
                yield f"- {markdown(problem, 2000)}"
            yield ""
    yield "## Known and accepted"
    yield ""
    for residue in KNOWN:
        yield f"- {markdown(residue.format(data=_data(facts)), 600)}"
    yield ""
    yield "## Sign-off"
    yield ""
    yield "The verdicts above were reviewed, and what is known is accepted."
    yield ""
    yield "| | |"
    yield "|---|---|"
    for line in ("Name", "Date", "Signature"):
        yield f"| {line} | {'&nbsp; ' * 24}|"


def _data(facts: Facts) -> str:
    try:
        said = facts.answer("attempts").text("run a file in /data")
    except NotShownError:
        return "It was not tried here."
    return "Here they can." if said == DONE else f"Here they cannot ({said[:20]})."


def write(path: Path, text: str) -> None:
    """Put a text in a file's place, the whole or nothing.

    Raises:
        ProbeError: It cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        raise ProbeError(
            f"{path} cannot be written: {error.strerror}. Name another file with --report."
        ) from error
