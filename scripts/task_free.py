"""The task-free channel: the same template without `_tasks`, as commits and tags of a second repository.

It is for those whose update bot may not trust a template. Everything else stays as it is, `hooks/` included:
copier runs nothing that `_tasks` does not name, and so the two channels differ in `copier.yml` alone, which
anyone can check with one `git diff`. What is rendered from it is a superset: the hook prunes nothing.
"""

import re
import shutil
import tarfile
import tempfile
from pathlib import Path

import yaml

from scripts.worktree_copy import git

# Stands in the message of every commit of the channel; a repository without it is not ours to write to.
_MARK = "Task-free channel of Bartizan"

# What is taken out of copier.yml, and the line that stands in its place. Without the hook the pieces are part
# of every project, and what guards an unused piece's name would keep updates away from them.
_LEFT_OUT = {
    "_tasks": "This is the task-free channel: `_tasks` is left out, and nothing is pruned after rendering.",
    "_skip_if_exists": "`_skip_if_exists` is left out with it: every piece follows the template.",
}

# Whatever makes copier ask for trust.
_UNSAFE_KEYS = ("_tasks", "_migrations", "_jinja_extensions")


class ExportError(Exception):
    """The channel cannot be written; nothing was changed."""


def without_tasks(text: str) -> str:
    """Return a copier.yml without `_tasks` and what belongs to it; the rest stays to the byte."""
    edited = text
    for key, note in _LEFT_OUT.items():
        edited = cut_out(edited, key, note)
    _verify(text, edited)
    return edited


def cut_out(text: str, key: str, note: str) -> str:
    """Take out one top-level key and the comment above it."""
    lines = text.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if re.match(rf"{key}\s*:", line)]
    if len(starts) != 1:
        raise ExportError(f"copier.yml has {len(starts)} top-level `{key}` keys where one is expected.")
    first = last = starts[0]
    while first > 0 and lines[first - 1].startswith("#"):
        first -= 1
    last += 1
    while last < len(lines) and not re.match(r"[^\s#-]", lines[last]):
        last += 1
    # Blank lines and comments before the next key belong to that key.
    while lines[last - 1].startswith("#") or not lines[last - 1].strip():
        last -= 1
    return "".join([*lines[:first], f"# {note}\n", *lines[last:]])


def _verify(before: str, after: str) -> None:
    expected = yaml.safe_load(before)
    for key in _LEFT_OUT:
        del expected[key]
    if yaml.safe_load(after) != expected:
        raise ExportError("Taking `_tasks` out of copier.yml changed something else in it.")
    for key in _UNSAFE_KEYS:
        if key in expected:
            raise ExportError(
                f"copier.yml has `{key}`, which needs trust: there is no task-free channel of it."
            )


def check_destination(destination: Path, tag: str) -> None:
    """Refuse a folder that holds anything but this channel."""
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ExportError(f"{destination} is not a folder. Name a new one, or the channel's repository.")
    if not any(destination.iterdir()):
        return
    if not (destination / ".git").exists() or _MARK not in git(
        destination, "log", "-1", "--format=%B", check=False
    ):
        raise ExportError(
            f"{destination} is not empty and not the task-free channel. Name a new folder, or the channel's."
        )
    if git(destination, "status", "--porcelain"):
        raise ExportError(f"{destination} has uncommitted changes. Commit them elsewhere or drop them.")
    if git(destination, "branch", "--show-current").strip() != "main":
        raise ExportError(f"{destination} is not on its branch main. Switch to it.")
    if tag in git(destination, "tag", "--list").split():
        raise ExportError(f"{destination} has a tag {tag} already.")


def export(source: Path, destination: Path, tag: str) -> None:
    """Commit and tag what HEAD of the source holds, without its tasks, as the next commit of the channel.

    It is made in a folder of its own and published in one move, so that a failure leaves nothing behind.
    """
    destination = destination.resolve()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".export-") as folder:
        staging = Path(folder) / "channel"
        fresh = not destination.exists() or not any(destination.iterdir())
        if fresh:
            git(destination.parent, "init", "--quiet", str(staging))
        else:
            git(destination.parent, "clone", "--quiet", "--no-local", str(destination), str(staging))
        _replace_files(source, staging, Path(folder))
        commit = git(source, "rev-parse", "HEAD").strip()
        git(staging, "add", "--all", "--force")
        git(
            staging,
            "commit",
            "--quiet",
            "--allow-empty",
            "--message",
            f"{_MARK}, {tag}\n\nOf commit {commit}",
        )
        git(staging, "tag", "--annotate", tag, "--message", f"Bartizan {tag}, without tasks")
        if fresh:
            if destination.exists():
                destination.rmdir()
            staging.rename(destination)
        else:
            git(destination, "fetch", "--quiet", str(staging), "main", f"refs/tags/{tag}:refs/tags/{tag}")
            git(destination, "merge", "--quiet", "--ff-only", f"{tag}^{{commit}}")


def _replace_files(source: Path, staging: Path, scratch: Path) -> None:
    for entry in staging.iterdir():
        if entry.name != ".git":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    archive = scratch / "tree.tar"
    git(source, "archive", "--format=tar", f"--output={archive}", "HEAD")
    with tarfile.open(archive) as tree:
        tree.extractall(staging, filter="tar")
    questions = staging / "copier.yml"
    questions.write_text(without_tasks(questions.read_text(encoding="utf-8")), encoding="utf-8")
