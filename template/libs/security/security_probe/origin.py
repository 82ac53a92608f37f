"""Says what was probed, when, and from which sources: the head of a report."""

import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from .document import Document, NotShownError, parse
from .engine import Engine
from .facts import Facts
from .plain_text import counted, listed

_NOT_SHOWN: Final = "not shown"


def origin_of(engine: Engine, facts: Facts, folder: Path, now: datetime) -> Mapping[str, str]:
    """Return the head of a report.

    Args:
        engine: The engine.
        facts: What was found out.
        folder: Where the project is.
        now: The time, in UTC.
    """
    answer = engine.run("info", "--format", "{{json .}}")
    try:
        info = Document("engine", parse(answer.text))
    except NotShownError:
        info = Document("engine", {})
    return {
        "Date": f"{now:%Y-%m-%d %H:%M:%S} UTC",
        "Container": f"{_text(facts.container, 'Name').lstrip('/')}, "
        f"{_text(facts.container, 'Id')[:12]}",
        "Image": _text(facts.image, "Id"),
        "Tags": _texts(facts.image, "RepoTags"),
        "Digests": _texts(facts.image, "RepoDigests"),
        "Engine": f"{_text(info, 'ServerVersion')} on {_text(info, 'OperatingSystem')}",
        "Kernel": f"{_text(info, 'KernelVersion')} {_text(info, 'Architecture')}",
        "Sources": sources(folder),
    }


def sources(folder: Path) -> str:
    """Return the commit of a folder, and whether it is what lies there."""
    git = shutil.which("git")
    if git is None:
        return "unknown: there is no git command"

    def run(*arguments: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603
                [git, "-C", str(folder), *arguments], capture_output=True, check=False, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None

    commit = run("rev-parse", "--verify", "HEAD")
    if commit is None:
        return "not in a git repository, or without a commit"
    changes = run("status", "--porcelain", "--untracked-files=normal")
    if changes is None:
        return f"commit {commit}, changes unknown"
    number = len(changes.splitlines())
    state = counted(number, "uncommitted change") if number else "nothing uncommitted"
    return f"commit {commit}, {state}"


def _text(document: Document, *path: str) -> str:
    try:
        return document.text(*path)
    except NotShownError:
        return _NOT_SHOWN


def _texts(document: Document, name: str) -> str:
    try:
        return listed(document.texts(name)) if document.has(name) else "none"
    except NotShownError:
        return _NOT_SHOWN
