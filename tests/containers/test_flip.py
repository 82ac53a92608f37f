"""A plain project whose owner has changed the container's files, with the hardening switched on."""

import os
import re
import shutil
from pathlib import Path

import docker
from scaffold import HARDENED, Template, commit_all, git, run, update

from containers.engine import BUILD_PATIENCE, OVERRIDE, building, run_name

THEIRS = re.compile(r"<<<<<<< before updating\n(.*?)=======\n(.*?)>>>>>>> after updating\n", re.DOTALL)
LABEL = 'LABEL org.example.team="orders"\n'


def test_edits_survive_the_hardening_and_the_project_builds(
    engine: docker.DockerClient, template: Template, tmp_path: Path
) -> None:
    name = f"{run_name()}-flip"
    project = template.copy(tmp_path / "project", {"project_slug": name})
    git(project, "init", "--quiet")
    commit_all(project, "Scaffolded")
    dockerfile, compose = project / "Dockerfile", project / "docker-compose.yml"
    dockerfile.write_text(dockerfile.read_text("utf-8") + LABEL, "utf-8")
    restart = "    restart: unless-stopped\n"
    changed = compose.read_text("utf-8").replace(
        restart, f"{restart}    labels: {{org.example.team: orders}}\n"
    )
    compose.write_text(changed, "utf-8")
    commit_all(project, "Labels of our own")
    update(project, HARDENED)

    # Where both have changed the end of the file, a person decides: the template's lines, and the label.
    merged = dockerfile.read_text("utf-8")
    assert LABEL in merged
    resolved = THEIRS.sub(lambda both: both[2] + (LABEL if LABEL in both[1] else ""), merged)
    dockerfile.write_text(resolved, "utf-8")
    assert "<<<<<<<" not in resolved + compose.read_text("utf-8")

    assert run(project, "uv", "lock", "--quiet").returncode == 0
    if override := os.environ.get(OVERRIDE):
        shutil.copy(override, project / "docker-compose.override.yml")
    (project / "secrets").mkdir()
    (project / "secrets" / "container.key").touch()
    with building():
        built = run(project, "docker", "compose", "build", "--quiet", timeout=BUILD_PATIENCE)
    assert built.returncode == 0, built.stderr
    made = run(project, "docker", "compose", "up", "--no-start", environment={"SERVICE_PORT": "0"})
    assert made.returncode == 0, made.stderr
    container = engine.containers.get(f"{name}-service-1")
    assert container.labels["org.example.team"] == "orders", "of the compose file"
    image = engine.images.get(name)
    assert image.labels["org.example.team"] == "orders", "of the Dockerfile"
    assert container.attrs["HostConfig"]["ReadonlyRootfs"]
    assert image.attrs["Config"]["Entrypoint"][0] == "/app/.venv/bin/python"
