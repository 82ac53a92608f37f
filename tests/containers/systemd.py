"""A machine that is run by systemd, as a container, with the unit of a rendered service installed on it.

The machine is Debian 13, which is also the base image of the Dockerfiles. It is privileged, because systemd
makes mounts and control groups; the unit has to take all of that away again. The guide's commands install it.
"""

import contextlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from docker.models.containers import Container
from markdown_it import MarkdownIt
from scaffold import run

from containers.engine import BUILD_PATIENCE, Variants, building, eventually, require_engine, run_name

GUIDE = Path("docs/security/DEPLOYMENT.md")
PROJECT = "/srv/project"
PROBE = Path(__file__).with_name("unit_probe.py")

# `sudo` on a machine where everything is done by root anyway.
SUDO = '#!/bin/sh\nexec env "$@"\n'

# What a container has no use for, and what would reach through to the kernel of whoever runs the tests.
MASKED = (
    "console-getty.service",
    "getty.target",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "systemd-modules-load.service",
    "systemd-sysctl.service",
    "systemd-udevd.service",
)

DOCKERFILE = f"""
FROM {{uv}} AS uv
FROM python:3.13-slim-trixie
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends \\
    dbus python3 systemd systemd-sysv util-linux >/dev/null
RUN for unit in {" ".join(MASKED)}; do ln -s /dev/null /etc/systemd/system/$unit; done
COPY --from=uv /uv /usr/local/bin/
COPY . {PROJECT}
RUN mv {PROJECT}/.machine/sudo /usr/local/bin/
WORKDIR {PROJECT}
RUN --mount=type=cache,target=/root/.cache/uv UV_SYSTEM_CERTS=1 sh -eu .machine/install
CMD ["/bin/sh", "-c", "mount --make-rshared / && exec /lib/systemd/systemd"]
"""


def blocks(guide: str, heading: str) -> list[str]:
    """Return the shell blocks of the guide between a heading and the next one of any level."""
    tokens = MarkdownIt("commonmark").parse(guide)
    found, inside = [], False
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before is not None and before.type == "heading_open":
            inside = token.content == heading
        if inside and token.type == "fence" and token.info == "sh":
            found.append(token.content)
    assert found, f"the guide has no commands below {heading!r}"
    return found


def machine_image(variants: Variants, variant: str) -> str:
    """Build the image of a machine on which a variant is installed as the guide says; return its name."""
    name = f"{run_name()}-machine-{variant}"

    def build(place: Path) -> None:
        shutil.copytree(variants.rendered(variant), place)
        extra = place / ".machine"
        extra.mkdir()
        install, *_ = blocks((place / GUIDE).read_text("utf-8"), "Install")
        (extra / "install").write_text(install, "utf-8")
        shutil.copy(PROBE, extra)
        (extra / "sudo").write_text(SUDO, "utf-8")
        (extra / "sudo").chmod(0o755)
        ours = (place / "Dockerfile").read_text("utf-8")
        uv = re.search(r"^ARG UV_IMAGE=(\S+)$", ours, re.MULTILINE)
        assert uv is not None
        (extra / "Dockerfile").write_text(DOCKERFILE.format(uv=uv[1]), "utf-8")
        (extra / "Dockerfile.dockerignore").write_text(".venv\n", "utf-8")
        command = ["docker", "build", "--quiet", "--network", "host", "--tag", name]
        with building():
            done = run(place, *command, "--file", ".machine/Dockerfile", ".", timeout=BUILD_PATIENCE)
        assert done.returncode == 0, done.stderr

    variants.shared.once(f"machine-{variant}", build)
    return name


@dataclass(frozen=True)
class Machine:
    """A booted machine.

    Attributes:
        container: What it runs in.
        slug: The service on it.
        guide: The guide to it.
    """

    container: Container
    slug: str
    guide: str

    def run(self, *command: str) -> CompletedProcess[str]:
        """Run a command as root; the caller looks at the exit code."""
        assert self.container.name is not None
        return run(Path.cwd(), "docker", "exec", self.container.name, *command)

    def shell(self, script: str) -> str:
        """Run a script as root, which has to succeed; return what it printed."""
        done = self.run("bash", "-euo", "pipefail", "-c", script)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}\n{self.journal()[-2000:]}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        self.shell(f"install -d {Path(path).parent}; cat > {path} <<'THE-END'\n{text}\nTHE-END")

    def journal(self, unit: str = "") -> str:
        """Return what a unit has logged, and what systemd has logged about it."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit or self.slug).stdout

    def property(self, name: str, unit: str = "") -> str:
        """Return a property of a unit, by default of the service."""
        return self.shell(f"systemctl show --property {name} --value {unit or self.slug}").strip()

    def drop_in(self, text: str, unit: str = "") -> None:
        """Give a unit the settings of a drop-in, in place of the last one."""
        self.write(f"/etc/systemd/system/{unit or self.slug}.service.d/test.conf", text)
        self.shell("systemctl daemon-reload")

    def probe(self, unit: str, source: str = "", arguments: str = "", python: str = "") -> str:
        """Run a Python program with the settings of a unit that is installed; return what it printed.

        The settings are the unit's own lines. What is replaced is the program, and where its text and what it
        prints go: systemd opens both before it closes the rest of the machine to it.
        """
        lines = self.shell(f"systemctl cat {unit}")
        self.write("/etc/systemd/system/probe.service", lines)
        program = f"{python or f'/opt/{self.slug}/bin/python'} -I -B - {arguments}"
        source = source or f"{PROJECT}/.machine/{PROBE.name}"
        streams = f"StandardInput=file:{source}\nStandardOutput=truncate:/run/probe.out"
        settings = f"Type=oneshot\nRestart=no\nExecStart=\nExecStart={program}\n{streams}"
        self.drop_in(f"[Service]\n{settings}", "probe")
        done = self.run("systemctl", "start", "probe")
        assert done.returncode == 0, self.journal("probe")
        return self.shell("cat /run/probe.out")

    def start(self) -> None:
        """Start the service and wait until it is ready."""
        self.shell(f"systemctl restart {self.slug}")
        eventually("the service is ready", self.is_ready, patience=20)

    def is_ready(self) -> bool:
        """Ask it as the health check of the container does."""
        package = self.slug.replace("-", "_")
        check = ["env", "-C", "/", "SERVICE_PORT=8000", f"/opt/{self.slug}/bin/python"]
        return self.run(*check, "-I", "-B", "-m", f"{package}.healthcheck").returncode == 0

    def request(self, method: str, path: str, body: object = None) -> Any:
        """Send a request to the service, as a program on the machine would; return the parsed answer."""
        data = None if body is None else json.dumps(body).encode()
        code = f"""
import sys, urllib.request
url, headers = "http://127.0.0.1:8000{path}", {{"Content-Type": "application/json"}}
request = urllib.request.Request(url, {data!r}, headers, method="{method}")
sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=10).read())
"""
        done = self.run("/usr/bin/python3", "-I", "-c", code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None


@contextlib.contextmanager
def booted(variants: Variants, variant: str) -> Iterator[Machine]:
    """Boot a machine with a variant installed, and remove it at the end."""
    image = machine_image(variants, variant)
    guide = (variants.rendered(variant) / GUIDE).read_text("utf-8")
    with contextlib.closing(require_engine()) as engine:
        container = engine.containers.run(
            image,
            detach=True,
            name=f"{run_name()}-{secrets.token_hex(3)}",
            privileged=True,
            cgroupns="private",
            environment={"container": "docker"},
            tmpfs={"/run": "", "/tmp": "exec"},  # noqa: S108
        )
        try:
            machine = Machine(container, Variants.image(variant), guide)
            eventually("systemd is running", lambda: _is_up(machine), patience=30)
            yield machine
        finally:
            container.remove(force=True, v=True)


def _is_up(machine: Machine) -> bool:
    machine.container.reload()
    if machine.container.status == "exited":
        raise AssertionError(f"systemd does not run here: {machine.container.logs().decode()[-2000:]}")
    time.sleep(0.1)
    return machine.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")
