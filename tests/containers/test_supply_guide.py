"""The guide to the supply chain keeps its word: its commands are run as they stand, from top to end."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from scaffold import git, require, run

from containers.engine import BUILD_PATIENCE, Variants, building
from containers.supply import checked_out, identity, read

GUIDE = Path("docs", "security", "SUPPLY-CHAIN.md")
SECTIONS = ("What is in it", "The same image again", "Sign a release", "Verify it elsewhere")
# Asks OSV, which test_scan_workflow.py stands in for; locks with an index, as test_own_index.py does.
ELSEWHERE = ("Scans", "A registry and an index of your own")


@pytest.fixture
def project(variants: Variants, tmp_path: Path) -> Iterator[Path]:
    """Return a project as its owner has it: committed, with its image built."""
    with checked_out(variants.built("default"), tmp_path) as place:
        yield place


def blocks(project: Path) -> dict[str, list[str]]:
    """Return the shell blocks of the guide by the section that they are in."""
    found: dict[str, list[str]] = {}
    text = (project / GUIDE).read_text("utf-8")
    for section in re.split(r"(?m)^## ", text)[1:]:
        title, _, body = section.partition("\n")
        if shell := re.findall(r"(?s)```sh\n(.*?)```", body):
            found[title] = shell
    return found


def execute(folder: Path, block: str) -> str:
    """Run a block as a person would type it, one line after the other; every line has to succeed."""
    with building():
        done = run(
            folder,
            *("bash", "-e", "-o", "pipefail", "-c", block),
            environment={"COSIGN_PASSWORD": "a password for tests only"},
            timeout=BUILD_PATIENCE,
        )
    assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_every_command_of_the_guide_does_what_it_says(
    engine: docker.DockerClient, project: Path, variants: Variants
) -> None:
    for name in ("cosign", "openssl"):
        require(shutil.which(name) is not None, name)
    image = identity(engine, variants.image("default"))
    shell = blocks(project)
    assert set(shell) == {*SECTIONS, *ELSEWHERE}

    (write,) = shell["What is in it"]
    execute(project, write)
    assert image in (project / "reports" / "sbom.cdx.json").read_text("utf-8")

    override = project / "docker-compose.override.yml"
    (again,) = shell["The same image again"]
    # A clone has what is committed only; the override is this machine's affair, and its owner would copy it.
    assert override.exists() is bool(git(project, "ls-files", override.name))
    assert image in execute(project, again).split()
    shutil.rmtree(project.parent / "again")

    (sign,) = shell["Sign a release"]
    execute(project, sign)
    with_project, without = shell["Verify it elsewhere"]
    assert image in execute(project, with_project)
    said = execute(project, without)
    assert "Verified OK" in said
    assert "image.tar: OK" in said
    (described,) = re.findall(r'"value": "(sha256:[0-9a-f]+)"', said)
    assert described == image
    assert described in said.splitlines()

    sbom = project / "release" / "sbom.cdx.json"
    assert read(sbom)["bomFormat"] == "CycloneDX"
    sbom.write_text(sbom.read_text("utf-8") + " ", "utf-8")
    with pytest.raises(AssertionError, match=r"sbom\.cdx\.json: FAILED"):
        execute(project, without)


def test_image_is_found_where_the_service_needs_another_one(
    engine: docker.DockerClient, project: Path, variants: Variants
) -> None:
    (project / "other.yml").write_text(
        "services: {other: {image: other}, service: {depends_on: [other]}}\n", "utf-8"
    )
    given = {"COMPOSE_FILE": "docker-compose.yml:other.yml"}
    (block,) = blocks(project)["The same image again"]
    line = block.splitlines()[-1]
    assert "--images" in line
    image = identity(engine, variants.image("default"))
    done = run(project, "bash", "-e", "-c", line, environment=given)
    assert done.returncode == 0, done.stderr
    assert image in done.stdout.split()
    both = 'docker image ls --no-trunc --quiet "$(docker compose config --images service)"'
    done = run(project, "bash", "-e", "-c", both, environment=given)
    assert image not in done.stdout.split(), "control"
