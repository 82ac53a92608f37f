"""The steps of the security scan do here what they would do on GitHub's machines, one after the other.

Not tried are the steps with `uses`: they are other people's actions, for GitHub's runners only. What the
scanner among them reads is the image that the steps before it have built, under the name that they tell it.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from scaffold import run

from containers.engine import BUILD_PATIENCE, Variants, building
from containers.supply import changed, checked_out

WORKFLOW = Path(".github", "workflows", "security-scan.yml")


def steps(project: Path, job: str) -> list[dict[str, Any]]:
    """Return the steps of a job."""
    jobs = yaml.safe_load((project / WORKFLOW).read_text("utf-8"))["jobs"]
    found: list[dict[str, Any]] = jobs[job]["steps"]
    return found


def environment(project: Path, job: str) -> dict[str, str]:
    """Return the variables of a job."""
    return dict(yaml.safe_load((project / WORKFLOW).read_text("utf-8"))["jobs"][job].get("env", {}))


@pytest.fixture
def project(variants: Variants, tmp_path: Path) -> Iterator[Path]:
    """Return a fresh project as a runner checks it out, with the name of the variant's image."""
    with checked_out(variants.built("default"), tmp_path) as place:
        yield place


def test_every_step_up_to_the_scanner_passes(
    engine: docker.DockerClient, project: Path, variants: Variants
) -> None:
    todo = steps(project, "image")
    scanner = next(number for number, step in enumerate(todo) if "scan-action" in step.get("uses", ""))
    output = project / "output"
    given = environment(project, "image") | {"GITHUB_OUTPUT": str(output), "SERVICE_PORT": "0"}
    executed = []
    try:
        for step in todo:
            if "run" not in step or step.get("if") == "failure()":
                continue
            with building():
                done = run(
                    project, "bash", "-e", "-c", step["run"], environment=given, timeout=BUILD_PATIENCE
                )
            assert done.returncode == 0, f"{step['name']}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            executed.append(step["name"])
        assert len(executed) == 5
        assert todo.index(next(step for step in todo if step.get("id") == "image")) < scanner
        assert output.read_text("utf-8") == f"name={variants.image('default')}\n"
        assert todo[scanner]["with"]["image"] == "${{ steps.image.outputs.name }}"
        assert engine.images.get(variants.image("default"))
        kept = todo[-1]["with"]["path"]
        written = {path.name for path in (project / kept).iterdir()}
        assert {"sbom.cdx.json", "security-probe.md"} <= written
        (failure,) = (step for step in todo if step.get("if") == "failure()")
        logs = run(project, "bash", "-e", "-c", failure["run"], environment=given)
        assert logs.returncode == 0, logs.stderr
        assert "127.0.0.1" in logs.stdout or "0.0.0.0" in logs.stdout  # noqa: S104
    finally:
        run(project, "docker", "compose", "down", "--volumes", "--timeout", "5")


@pytest.mark.parametrize("more", ["", ", depends_on: [other]"], ids=["beside it", "that it needs"])
def test_scanner_is_told_the_image_of_the_service_alone_where_there_is_another_service(
    engine: docker.DockerClient, variants: Variants, tmp_path: Path, more: str
) -> None:
    del engine  # its command line reads the files
    with changed(variants.rendered("default"), tmp_path) as place:
        (place / "other.yml").write_text(
            f"services: {{other: {{image: other}}, service: {{pids_limit: 128{more}}}}}\n", "utf-8"
        )
        (named,) = (step for step in steps(place, "image") if step.get("id") == "image")
        output = place / "output"
        given = {"GITHUB_OUTPUT": str(output), "COMPOSE_FILE": "docker-compose.yml:other.yml"}
        every = run(place, "docker", "compose", "config", "--images", environment=given)
        assert "other" in every.stdout.split(), "control"
        done = run(place, "bash", "-e", "-c", named["run"], environment=given)
        assert done.returncode == 0, done.stderr
        assert output.read_text("utf-8") == f"name={variants.image('default')}\n"


def test_step_that_fails_ends_the_job_but_for_the_steps_that_report_it(project: Path) -> None:
    for job in ("packages", "image"):
        assert not [step for step in steps(project, job) if step.get("continue-on-error")]
    conditions = {step.get("if") for step in steps(project, "image")}
    assert conditions == {None, "failure()", "always()"}


@contextmanager
def osv(*vulnerable: str) -> Iterator[str]:
    """Serve the part of the OSV database's interface that uv asks, with a finding for some packages."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            found = [
                {"vulns": [{"id": "TEST-1", "modified": "2026-01-01T00:00:00Z"}]}
                if query["package"]["name"] in vulnerable
                else {}
                for query in asked
            ]
            self.answer({"results": found})

        def do_GET(self) -> None:
            self.answer({"id": "TEST-1", "modified": "2026-01-01T00:00:00Z", "summary": "made up"})

        def answer(self, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_audit_of_the_locked_packages_fails_for_a_known_vulnerability(project: Path) -> None:
    (audit,) = (step["run"] for step in steps(project, "packages") if "run" in step)
    with osv() as address:
        done = run(project, "bash", "-e", "-c", f"{audit} --service-url {address}")
        assert done.returncode == 0, done.stderr
    with osv("uvicorn") as address:
        done = run(project, "bash", "-e", "-c", f"{audit} --service-url {address}")
        assert done.returncode != 0
        assert "TEST-1" in done.stdout + done.stderr
