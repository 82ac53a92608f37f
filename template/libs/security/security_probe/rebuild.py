"""Builds the image anew, without any cache, to see whether the same inputs give the same image."""

from collections.abc import Sequence
from typing import Final

from .container import SERVICE, Say
from .document import Document, NotShownError
from .engine import Engine, undisturbed
from .errors import ProbeError
from .facts import NotFound, Rebuild
from .files import Tree
from .image import files_of, look_at, steps_of
from .plain_text import plain

PATIENCE: Final = 3600.0
"""Seconds that a build may take."""

# An attestation says when the image was built: with one, no two builds are the same.
ENVIRONMENT: Final = {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}


def see_that_it_can_be_rebuilt(engine: Engine, container: Document) -> None:
    """See that a container is the service of the project in this folder.

    Raises:
        ProbeError: It is not.
    """
    answer = engine.run("compose", "ps", "--quiet", "--all", SERVICE)
    number = container.part("Id").value
    if answer.status != 0 or str(number) not in answer.text.decode("ascii", "replace").split():
        raise ProbeError(
            f"The container is not the {SERVICE} of a compose project in this folder, so its image "
            "cannot be built anew from here. Run this in its project's folder, or leave that out "
            "with --no-rebuild."
        )


def rebuild(
    engine: Engine, container: Document, image: Document, tree: Tree | NotFound, say: Say
) -> Rebuild | NotFound:
    """Build the service of the project in this folder, compare, and clean up.

    The image's name points afterwards to what it pointed to before.
    """
    try:
        name, number = container.text("Config", "Image"), image.text("Id")
        before = engine.inspect("image", name)
        named = None if before is None else before.text("Id")
    except NotShownError as error:
        return NotFound(str(error))
    say(f"Building {plain(name, 80)} anew without a cache; this takes a while ...")
    new = None
    try:
        built = engine.run(
            *("compose", "build", "--no-cache", "--quiet", SERVICE),
            seconds=PATIENCE,
            environment=ENVIRONMENT,
        )
        new = engine.inspect("image", name)
        if built.status != 0:
            return NotFound(f"the image could not be built anew: {built.complaint}")
        if new is None:
            return NotFound("the image was built, but not under the name that the container has")
        same = new.has("Id") and new.text("Id") == number
        return Rebuild(
            before=look_at(engine, number),
            after=new,
            histories=(_steps(engine, number), _steps(engine, new.text("Id"))),
            differing=() if same else _differing(engine, tree, new.text("Id")),
        )
    except (NotShownError, ProbeError) as error:
        return NotFound(f"the image was not built anew: {error}")
    finally:
        with undisturbed():
            new = new or engine.inspect("image", name)
            if named is not None:
                engine.run("tag", named, name)
            _remove_unless_named(engine, new, keep={number, named})


def _remove_unless_named(engine: Engine, new: Document | None, keep: set[str | None]) -> None:
    if new is None or not new.has("Id") or new.value is None or new.text("Id") in keep:
        return
    left = engine.inspect("image", new.text("Id"))
    if left is not None and not (left.has("RepoTags") and left.texts("RepoTags")):
        engine.run("image", "rm", new.text("Id"))


def _steps(engine: Engine, image: str) -> Sequence[object]:
    found = steps_of(engine, image)
    if isinstance(found, NotFound):
        raise NotShownError(found.reason)
    wanted = ("CreatedBy", "CreatedAt", "Comment", "Size")
    return [{name: step.get(name) for name in wanted} for step in found]


def _differing(engine: Engine, tree: Tree | NotFound, image: str) -> Sequence[str]:
    other = files_of(engine, image)
    if isinstance(tree, NotFound) or isinstance(other, NotFound):
        return ()
    return [
        path
        for path in sorted(tree.entries.keys() | other.entries.keys())
        if tree.entries.get(path) != other.entries.get(path) and path not in _ENGINES_OWN
    ]


_ENGINES_OWN: Final = frozenset(
    {".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"}
    | {"dev", "dev/pts", "dev/shm", "proc", "sys", "etc"}
)
"""What the engine puts into a container that is made of an image; their times are those of now."""
