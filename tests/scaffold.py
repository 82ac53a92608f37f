"""What the tests render with: a throw-away git copy of the working tree, and every render made once."""

import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import copier
import pytest

from scripts.worktree_copy import ROOT as ROOT
from scripts.worktree_copy import copy_template, version_of

VERSION = version_of()
ANSWERS_FILE = ".copier-answers.yml"
OLDEST_PYTHON = "3.11"

Answers = dict[str, Any]

PLAIN: Answers = {}
HARDENED: Answers = {"enable_security_hardening": True}
HARDENED_TPM: Answers = HARDENED | {"encryption_backend": "aes256gcm", "tpm_enabled": True}

# Every combination of what changes the set of files; with the flag off the two answers behind it are still
# passed, as `--data` can, and must change nothing.
COMBINATIONS: tuple[Answers, ...] = tuple(
    {
        "enable_security_hardening": hardened,
        "encryption_backend": cipher,
        "tpm_enabled": tpm,
        "ci_provider": ci,
    }
    for hardened, cipher, tpm, ci in itertools.product(
        (False, True), ("xchacha20poly1305", "aes256gcm"), (False, True), ("github", "none")
    )
)


def label(answers: Answers) -> str:
    """Name a combination for a test id."""
    words = ["hardened" if answers.get("enable_security_hardening") else "plain"]
    words += [str(answers[name]) for name in ("encryption_backend", "ci_provider") if name in answers]
    return "-".join([*words, "tpm"] if answers.get("tpm_enabled") else words)


def git(where: Path, *arguments: str) -> str:
    """Run git in a folder and return what it printed."""
    done = subprocess.run(["git", *arguments], cwd=where, check=True, capture_output=True, text=True)
    return done.stdout


def commit_all(where: Path, message: str = "State") -> None:
    """Commit the whole folder, as its owner would: what it ignores stays out."""
    git(where, "add", "--all")
    git(where, "commit", "--quiet", "--allow-empty", "--message", message)


def require(present: bool, what: str, *, optional: bool = False) -> None:
    """Skip, or fail where everything has to be there, if a component is missing."""
    if present:
        return
    if os.environ.get("BARTIZAN_REQUIRE") == "all" and not optional:
        pytest.fail(f"{what} is missing, and BARTIZAN_REQUIRE=all asks for it")
    pytest.skip(f"{what} is not on this machine")


@dataclass(frozen=True)
class Template:
    """A git repository that copier renders from."""

    path: Path

    @classmethod
    def of_working_tree(cls, path: Path, source: Path = ROOT) -> "Template":
        """Make one of a checkout as it is now, tagged with its version."""
        return cls(copy_template(path, f"v{VERSION}", source))

    def release(self, version: str) -> None:
        """Commit what was changed in it, files that an ignore list names included, and tag it."""
        git(self.path, "add", "--all", "--force")
        git(self.path, "commit", "--quiet", "--allow-empty", "--message", f"Release {version}")
        git(self.path, "tag", f"v{version}")

    def copy(self, destination: Path, answers: Answers, **options: Any) -> Path:
        """`copier copy --trust --defaults` from the newest tag."""
        settings = {"defaults": True, "unsafe": True, "quiet": True} | options
        copier.run_copy(str(self.path), destination, data=dict(answers), **settings)
        return destination


def update(project: Path, answers: Answers = PLAIN, **options: Any) -> None:
    """`copier update --trust --defaults`, with some answers changed."""
    settings = {"defaults": True, "unsafe": True, "quiet": True, "overwrite": True} | options
    copier.run_update(project, data=dict(answers), **settings)


def files(project: Path) -> dict[str, Path]:
    """Every file and link of a folder by its relative path, git's own excepted."""
    found = {}
    for folder, folders, names in os.walk(project):
        if ".git" in folders:
            folders.remove(".git")
        for name in [*names, *(name for name in folders if (Path(folder) / name).is_symlink())]:
            path = Path(folder) / name
            found[path.relative_to(project).as_posix()] = path
    return found


def contents(project: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {name: path.read_bytes() for name, path in files(project).items()}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock, so that one of the parallel test processes does the work and the others wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(*key: object) -> str:
    return sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Shared:
    """Folders that are made once for the whole run, whichever process asks first. Read them, never write."""

    folder: Path

    def once(self, name: str, build: Callable[[Path], object]) -> Path:
        """Return the folder of that name, built now if nobody has."""
        # Built where it stays, because a virtual environment cannot be moved; the mark says that it is whole.
        place, mark = self.folder / name, self.folder / f"{name}.done"
        with locked(self.folder / f"{name}.lock"):
            if not mark.exists():
                if place.exists():
                    shutil.rmtree(place)
                build(place)
                mark.touch()
        return place

    def render(self, template: Template, answers: Answers, **options: Any) -> Path:
        """Render once for each template and set of answers."""
        name = f"render-{_digest(template.path, answers, options)}"
        return self.once(name, lambda place: template.copy(place, answers, **options))

    def installed(self, template: Template, answers: Answers) -> Path:
        """Return a project with its environment, on the oldest Python."""

        def build(place: Path) -> None:
            shutil.copytree(self.render(template, answers), place)
            install(place)

        return self.once(f"installed-{_digest(template.path, answers)}", build)


def outside_environment() -> dict[str, str]:
    """Return the environment as in a person's shell: nothing in it of this run's uv and pytest."""
    ours = (
        "VIRTUAL_ENV",
        "UV_PROJECT",
        "UV_RUN_",
        "PYTEST_",
        "SERVICE_",
        "PYTHON",
        "GIT_DIR",
        "GIT_WORK_TREE",
    )
    return {
        name: value for name, value in os.environ.items() if not name.startswith(ours) and name != "UV_PYTHON"
    }


def run(
    where: Path, *command: str, environment: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command in a rendered project and capture what it says; the caller looks at the exit code."""
    return subprocess.run(
        command,
        cwd=where,
        env=outside_environment() | dict(environment or {}),
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def install(project: Path, python: str = OLDEST_PYTHON) -> None:
    """Make the environment of a rendered project, as its first `uv` command would."""
    done = run(project, "uv", "sync", "--quiet", environment={"UV_PYTHON": python})
    assert done.returncode == 0, done.stderr
