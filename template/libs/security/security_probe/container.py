"""Finds the container that is to be probed, and waits until it is well."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .document import Document, NotShownError
from .engine import Engine
from .errors import ProbeError
from .plain_text import plain

PATIENCE: Final = 120.0
"""Seconds that a start may take."""
SERVICE: Final = "service"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Container:
    """A container, by the number that the engine has given it.

    Attributes:
        engine: The engine.
        number: Of the container: its name could change hands.
    """

    engine: Engine
    number: str

    @classmethod
    def named(cls, engine: Engine, name: str) -> "Container":
        """Find a container by its name or number.

        Raises:
            ProbeError: There is none.
        """
        if name.startswith("-") or not name:
            raise ProbeError(f"{plain(name)!r} is no name of a container. `docker ps` lists them.")
        found = engine.inspect("container", name)
        if found is None:
            raise ProbeError(
                f"The engine has no container {plain(name)}. `docker ps --all` lists those it has."
            )
        return cls(engine, _text(found, "Id"))

    @classmethod
    def of_project(cls, engine: Engine) -> "Container":
        """Find the service of the compose project in this folder.

        Raises:
            ProbeError: There is none, or it does not run.
        """
        answer = engine.run("compose", "ps", "--quiet", SERVICE)
        if answer.status != 0:
            raise ProbeError(
                f"The compose project in this folder cannot be asked for its {SERVICE}: "
                f"{answer.complaint}. Run this in the project's folder, or name a container."
            )
        numbers = answer.text.decode("ascii", "replace").split()
        if not numbers:
            raise ProbeError(
                f"The {SERVICE} of this project does not run. Start it with `just up`, or name a "
                "container."
            )
        return cls.named(engine, numbers[0])

    def look(self) -> Document:
        """Return what the engine knows of it now.

        Raises:
            ProbeError: It is gone.
        """
        found = self.engine.inspect("container", self.number)
        if found is None:
            raise ProbeError(
                f"The container {self.number[:12]} is gone. Was it replaced meanwhile? Start again."
            )
        return found

    def wait_until_started(self, say: Say, patience: float = PATIENCE) -> Document:
        """Wait while it is starting, and return what the engine knows then.

        One that has no health check, or is not well, is returned as it is.

        Raises:
            ProbeError: It does not run, or is still starting when patience ends.
        """
        ends = time.monotonic() + patience
        waited = False
        while True:
            found = self.look()
            state = _text(found, "State", "Status")
            if state not in ("running", "restarting"):
                raise ProbeError(
                    f"The container {name_of(found)} does not run, it is {plain(state, 40)}. "
                    f"`docker logs {name_of(found)}` may tell why; `just up` or `docker start` "
                    "starts it."
                )
            if state == "running" and health_of(found) != "starting":
                return found
            if time.monotonic() > ends:
                raise ProbeError(
                    f"The container {name_of(found)} is still {plain(state, 40)} and not healthy "
                    f"after {patience:.0f} seconds. See `docker logs {name_of(found)}`."
                )
            if not waited:
                say(f"Waiting for {name_of(found)} to be healthy ...")
                waited = True
            time.sleep(0.5)


def health_of(container: Document) -> str:
    """Return what the health check says, or that there is none."""
    if not container.has("State", "Health"):
        return "without a health check"
    return _text(container, "State", "Health", "Status")


def name_of(container: Document) -> str:
    """Return a container's name, fit to print."""
    return plain(_text(container, "Name").lstrip("/"), 80)


def _text(found: Document, *path: str) -> str:
    try:
        return found.text(*path)
    except NotShownError as error:
        raise ProbeError(
            f"The engine does not tell what it should of the container: {error}. Is `docker` the "
            "command line of a container engine?"
        ) from error
