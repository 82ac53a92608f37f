"""Asks the engine for an image: what it is, how it was made, and its files."""

import json
import os
from collections.abc import Sequence
from typing import Final

from .document import Document, NotShownError, parse
from .engine import Engine, undisturbed
from .errors import ProbeError
from .facts import NotFound
from .files import Tree, read_tree
from .plain_text import plain

EXPORT: Final = 600.0
"""Seconds that reading all files of an image may take."""


def look_at(engine: Engine, image: str) -> Document:
    """Return what the engine knows of an image.

    Raises:
        ProbeError: It does not have it any more.
    """
    found = engine.inspect("image", image)
    if found is None:
        raise ProbeError(
            f"The engine does not have the container's image {plain(image)} any more. Build it and "
            "create the container anew: `just up`."
        )
    return found


def steps_of(engine: Engine, image: str) -> list[dict[str, object]] | NotFound:
    """Return the history of an image, the newest step first."""
    answer = engine.run("history", "--no-trunc", "--format", "{{json .}}", image)
    if answer.status != 0:
        return NotFound(f"the history of the image: {answer.complaint}")
    try:
        lines = [parse(line) for line in answer.text.splitlines()]
    except NotShownError as error:
        return NotFound(f"the history of the image: {error}")
    if not all(isinstance(line, dict) for line in lines):
        return NotFound("the history of the image")
    return [line for line in lines if isinstance(line, dict)]


def commands(steps: list[dict[str, object]] | NotFound) -> Sequence[str] | NotFound:
    """Return all that the steps of a history say: the commands, and the comments."""
    if isinstance(steps, NotFound):
        return steps
    if not all("CreatedBy" in step for step in steps):
        return NotFound("the commands in the history of the image")
    return [
        json.dumps([step["CreatedBy"], step.get("Comment", "")], ensure_ascii=False)
        if not isinstance(step["CreatedBy"], str)
        else f"{step['CreatedBy']}\n{step.get('Comment', '')}"
        for step in steps
    ]


def files_of(engine: Engine, image: str) -> Tree | NotFound:
    """Read all files of an image, from a container that is made of it and never started."""
    name = f"security-probe-{os.urandom(8).hex()}"
    try:
        # The command is never run; images without one ask for it.
        made = engine.run(
            *("create", "--pull", "never", "--network", "none", "--name", name, image, "nothing"),
            seconds=EXPORT,
        )
        if made.status != 0:
            return NotFound(f"the files of the image: {made.complaint}")
        with engine.stream("export", name, seconds=EXPORT) as stream:
            tree = read_tree(stream)
    except ProbeError as error:
        return NotFound(str(error))
    else:
        return tree
    finally:
        with undisturbed():
            engine.run("rm", "--force", "--volumes", name)
