"""What the tests of the supply chain share: a built project with its tools, and its image unpacked."""

import json
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from subprocess import CompletedProcess
from typing import Any

import docker
from scaffold import Shared, commit_all, git, run

from containers.engine import BUILD_PATIENCE, Variants, building, run_name

SBOM = Path("reports", "sbom.cdx.json")


def described(variants: Variants, shared: Shared) -> Path:
    """Return a project with its image, its environment and the SBOM that `just sbom` wrote. Read only."""

    def describe(place: Path) -> None:
        shutil.copytree(variants.built("default"), place)
        done = recipe(place, "sbom")
        assert done.returncode == 0, done.stderr

    return shared.once("container-described", describe)


def recipe(project: Path, *arguments: str, **environment: str) -> CompletedProcess[str]:
    """Run one of a project's recipes; the caller looks at the exit code."""
    return run(
        project, "uv", "run", "--quiet", "just", *arguments, environment=environment, timeout=BUILD_PATIENCE
    )


def read(path: Path) -> dict[str, Any]:
    """Read an SBOM."""
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def image_name(what: str) -> str:
    """Return a new name for an image of this run."""
    return f"{run_name()}-{what}-{secrets.token_hex(3)}"


def build(folder: Path, name: str, *options: str, **environment: str) -> CompletedProcess[str]:
    """Build a project's image with compose, under another name; the caller looks at the exit code."""
    (folder / "name.yml").write_text(f"services: {{service: {{image: {name}}}}}\n", "utf-8")
    names = ("docker-compose.yml", "docker-compose.override.yml", "name.yml")
    files = [word for one in names if (folder / one).exists() for word in ("--file", one)]
    command = ("docker", "compose", *files, "--progress", "plain", "build", *options, "service")
    return one_at_a_time(folder, *command, **environment)


def one_at_a_time(folder: Path, *command: str, **environment: str) -> CompletedProcess[str]:
    """Run a command that builds, while no other one does."""
    with building():
        return run(
            folder,
            *command,
            environment={"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"} | environment,
            timeout=BUILD_PATIENCE,
        )


def identity(engine: docker.DockerClient, name: str) -> str:
    """Return the id of an image."""
    return str(engine.images.get(name).id)


@contextmanager
def changed(project: Path, folder: Path) -> Iterator[Path]:
    """Give a copy of a project's files that may be changed, and remove it at the end."""
    place = folder / secrets.token_hex(3)
    shutil.copytree(project, place, ignore=shutil.ignore_patterns(".venv", "reports", ".git"))
    try:
        yield place
    finally:
        shutil.rmtree(place)


@contextmanager
def checked_out(project: Path, folder: Path) -> Iterator[Path]:
    """Give such a copy committed to git, as its owner or a runner has it."""
    with changed(project, folder) as place:
        git(place, "init", "--quiet")
        commit_all(place)
        yield place


@dataclass(frozen=True)
class Unpacked:
    """The file system of an image, as the engine exports it."""

    files: Mapping[str, bytes]
    """Regular files by their absolute path."""

    @classmethod
    def of(cls, engine: docker.DockerClient, name: str, folder: Path) -> "Unpacked":
        """Export an image, from a container that is never started."""
        container = engine.containers.create(name, name=image_name("export"))
        try:
            path = folder / "export.tar"
            done = run(folder, "docker", "export", "--output", str(path), container.name or "")
            assert done.returncode == 0, done.stderr
        finally:
            container.remove(v=True)
        with tarfile.open(path) as archive:
            return cls(
                {
                    str(PurePosixPath("/", member.name)): content.read()
                    for member in archive
                    if member.isfile() and (content := archive.extractfile(member)) is not None
                }
            )
