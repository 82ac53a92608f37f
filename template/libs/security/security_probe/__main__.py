"""Looks whether a running container keeps what a hardened service promises, in 36 points.

Builds the image anew and restarts the container, unless told otherwise. The status is 0 when all
points that were tried hold, 1 when one fails, and 2 when the container could not be probed.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from .collect import Wishes, collect
from .container import Container
from .engine import ENDING, Engine
from .errors import ProbeError
from .finding import Verdict
from .origin import origin_of
from .points import count, judge
from .report import report, write
from .summary import as_json, summary


def options() -> argparse.ArgumentParser:
    """Return the command's options."""
    made = argparse.ArgumentParser(prog="just security-probe", description=__doc__)
    made.add_argument(
        "container",
        nargs="?",
        help="name or number (default: the service of the compose project in this folder)",
    )
    made.add_argument(
        "--report",
        type=Path,
        default=Path("reports/security-probe.md"),
        metavar="FILE",
        help="where the report goes (default: %(default)s)",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts as JSON too")
    made.add_argument(
        "--keep-running", action="store_true", help="do not restart the container (leaves out 36)"
    )
    made.add_argument(
        "--no-rebuild", action="store_true", help="do not build the image anew (leaves out 15)"
    )
    return made


def probe(chosen: argparse.Namespace) -> int:
    """Probe the container that was chosen, and write the report.

    Raises:
        ProbeError: It could not be probed.
    """
    engine = Engine.found()
    container = (
        Container.of_project(engine)
        if chosen.container is None
        else Container.named(engine, chosen.container)
    )
    wishes = Wishes(rebuild=not chosen.no_rebuild, restart=not chosen.keep_running)
    facts = collect(engine, container, wishes, _say)
    judgement = judge(facts)
    for line in summary(judgement):
        print(line)
    origin = origin_of(engine, facts, Path.cwd(), datetime.now(UTC))
    write(chosen.report, report(judgement, origin, facts))
    if chosen.json:
        write(chosen.json, as_json(judgement, origin))
    print(f"Report: {chosen.report}")
    return 1 if count(judgement, Verdict.FAILS) else 0


def _say(sentence: str) -> None:
    with suppress(OSError):  # the terminal may be gone, which is why the program is to end
        print(sentence, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Whatever asks it to end does so as Ctrl-C does: what was changed is put back first.
    """
    for each in ENDING:
        if signal.getsignal(each) is not signal.SIG_IGN:  # nohup
            signal.signal(each, signal.default_int_handler)
    try:
        return probe(options().parse_args(arguments))
    except ProbeError as error:
        _say(str(error))
    except KeyboardInterrupt:
        _say("Interrupted: no report was written.")
    return 2


if __name__ == "__main__":
    sys.exit(main())
