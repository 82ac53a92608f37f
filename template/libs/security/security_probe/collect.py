"""Collects the facts, and tells what it is doing."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from .answer import ask
from .container import Container, Say
from .document import Document, NotShownError
from .engine import Engine
from .errors import ProbeError
from .facts import Facts, NotTried
from .image import commands, files_of, look_at, steps_of
from .rebuild import rebuild, see_that_it_can_be_rebuilt
from .restart import restart


@dataclass(frozen=True)
class Wishes:
    """What a caller wants left out.

    Attributes:
        rebuild: Whether the image is to be built anew.
        restart: Whether the container may be stopped and started.
    """

    rebuild: bool = True
    restart: bool = True


def collect(engine: Engine, container: Container, wishes: Wishes, say: Say) -> Facts:
    """Find out everything about a container that runs.

    Args:
        engine: The engine.
        container: What is to be probed.
        wishes: What to leave out.
        say: Is told what happens, a sentence at a time.

    Raises:
        ProbeError: It cannot be probed.
    """
    found = container.wait_until_started(say)
    if wishes.rebuild:
        see_that_it_can_be_rebuilt(engine, found)
    try:
        number = found.text("Image")
        command = found.texts("Config", "Entrypoint") or found.texts("Config", "Cmd")
    except NotShownError as error:
        raise ProbeError(f"The engine does not tell what it should: {error}.") from error
    say("Reading the image ...")
    image = look_at(engine, number)
    steps = commands(steps_of(engine, number))
    tree = files_of(engine, number)
    volumes = _known(engine, "volume", _volumes(found))
    networks = _known(engine, "network", _networks(found))
    say("Trying from inside what must not be possible ...")
    inside = ask(engine, container.number, command)
    return Facts(
        image=image,
        steps=steps,
        tree=tree,
        container=found,
        volumes=volumes,
        networks=networks,
        inside=inside,
        rebuild=rebuild(engine, found, image, tree, say)
        if wishes.rebuild
        else NotTried("left out by --no-rebuild"),
        restart=restart(container, found, say)
        if wishes.restart
        else NotTried("left out by --keep-running"),
    )


def _volumes(container: Document) -> Iterator[tuple[str, str]]:
    """Return the names of the volumes, and what the engine finds each by."""
    for mount in container.entries("Mounts"):
        if mount.text("Type") == "volume":
            yield mount.text("Name"), mount.text("Name")


def _networks(container: Document) -> Iterator[tuple[str, str]]:
    """Return the names of the networks, and the numbers that the engine finds each by."""
    for name, network in container.table("NetworkSettings", "Networks").items():
        yield name, network.text("NetworkID")


def _known(engine: Engine, kind: str, wanted: Iterator[tuple[str, str]]) -> Document:
    """Return what the engine shows; the points that need what it does not show do not hold."""
    found: dict[str, object] = {}
    with suppress(NotShownError, ProbeError):
        for name, number in wanted:
            document = engine.inspect(kind, number)
            if document is not None:
                found[name] = document.value
    return Document(f"{kind}s", found)
