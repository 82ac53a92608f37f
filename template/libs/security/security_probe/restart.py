"""Asks the container to end as an engine does when the machine shuts down, and starts it again."""

import time
from datetime import datetime
from typing import Final

from .container import Container, Say, health_of, name_of
from .document import Document, NotShownError
from .engine import SOON, Engine, Output, undisturbed
from .errors import ProbeError
from .facts import NotFound, NotTried, Restart

_GRACE: Final = 10
"""Seconds that an engine waits before it kills, unless the container says otherwise."""


def restart(container: Container, before: Document, say: Say) -> Restart | NotFound | NotTried:
    """Stop and start a container.

    Raises:
        ProbeError: It does not start again.
    """
    try:
        if before.flag("HostConfig", "AutoRemove"):
            return NotTried("it would be removed if it were stopped: it was started with --rm")
        grace = before.number("Config", "StopTimeout") if before.has("Config", "StopTimeout") else 0
    except NotShownError as error:
        return NotFound(str(error))
    name = name_of(before)
    say(f"Stopping {name}, and starting it again ...")
    # An engine goes on with a stop whoever has asked for it is gone: a start would come too early.
    with undisturbed():
        try:
            engines_time = _now(container.engine)
            stopped, seconds = _stop(container, max(grace, _GRACE) + SOON)
            after = container.look()
        except ProbeError as error:
            return NotFound(f"it could not be stopped: {error}")
        finally:
            _start(container, name)
    well = _is_well(container, health_of(before), say)
    if stopped.status != 0:
        return NotFound(f"it could not be stopped: {stopped.complaint}")
    return Restart(min([seconds, *_until_ended(after, engines_time)]), after, well)


def _stop(container: Container, patience: float) -> tuple[Output, float]:
    begun = time.monotonic()
    stopped = container.engine.run("stop", container.number, seconds=patience)
    return stopped, time.monotonic() - begun


def _start(container: Container, name: str) -> None:
    started = container.engine.run("start", container.number)
    if started.status != 0:
        raise ProbeError(
            f"{name} was stopped and does not start again: {started.complaint}. "
            f"Start it by hand: `docker start {name}`."
        )


def _is_well(container: Container, health: str, say: Say) -> bool:
    try:
        return health_of(container.wait_until_started(say)) == health
    except ProbeError:
        return False


def _now(engine: Engine) -> datetime | None:
    """Return the time by the engine's clock, which need not be this machine's."""
    answer = engine.run("info", "--format", "{{.SystemTime}}")
    return _time(answer.text.decode("ascii", "replace").strip()) if answer.status == 0 else None


def _until_ended(after: Document, begun: datetime | None) -> list[float]:
    # Before the command returns, the engine takes the network apart: that is not the service's.
    try:
        ended = _time(after.text("State", "FinishedAt"))
    except NotShownError:
        return []
    if ended is None or begun is None or ended < begun:
        return []
    return [(ended - begun).total_seconds()]


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None
