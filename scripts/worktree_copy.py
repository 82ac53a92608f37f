"""A throw-away git copy of the working tree, committed and tagged, to render from.

Copier renders the newest tag of a repository, not what lies in the checkout; and a project rendered from a
dirty tree records a commit that nobody can find again. The copy avoids both: it holds what git would see
(tracked and untracked files as they are now, ignored ones not) under one commit and one tag.
"""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Nobody's configuration, hooks or signing key takes part; the options stand before git's own command.
_OPTIONS = (
    "-c", "user.name=Bartizan",
    "-c", "user.email=bartizan@example.invalid",
    "-c", "commit.gpgSign=false",
    "-c", "tag.gpgSign=false",
    "-c", f"core.hooksPath={os.devnull}",
    "-c", "core.autocrlf=false",
    "-c", "init.defaultBranch=main",
)  # fmt: skip


def git(where: Path, *arguments: str, check: bool = True, as_user: bool = False) -> str:
    """Run git in a folder, whatever repository a hook's environment points to, and return its output.

    With `as_user` the name, the settings and the signature are those of who runs it: for what is published.
    """
    kept = ("GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG_") if as_user else ()
    done = subprocess.run(
        ["git", *(() if as_user else _OPTIONS), *arguments],
        cwd=where,
        env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        | {name: value for name, value in os.environ.items() if name.startswith(kept)},
        check=check,
        capture_output=True,
        text=True,
    )
    return done.stdout


def version_of(root: Path = ROOT) -> str:
    """Return the version that the project file of a checkout names."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def listed_files(root: Path) -> list[Path]:
    """Return the files that git tracks or would offer to track, relative to the checkout."""
    names = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    found = {Path(name) for name in names if name}
    return sorted(name for name in found if (root / name).is_symlink() or (root / name).is_file())


def copy_template(destination: Path, tag: str, root: Path = ROOT) -> Path:
    """Copy the working tree into a new or empty folder, and commit and tag it there.

    Returns the absolute path for copier: a project rendered from a relative one cannot be updated.
    """
    destination = destination.resolve()
    destination.mkdir(parents=True, exist_ok=True)
    for name in listed_files(root):
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, destination / name, follow_symlinks=False)
    git(destination, "init", "--quiet")
    # Forced, because the list above is complete: an ignore file inside template/ must not thin it out again.
    git(destination, "add", "--all", "--force")
    git(destination, "commit", "--quiet", "--message", f"Working tree as {tag}")
    git(destination, "tag", tag)
    return destination
