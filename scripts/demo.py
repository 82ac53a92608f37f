"""`just demo`: scaffold a hardened service, use it over HTTP, and look at what the disk holds.

Everything lies in one folder outside the checkout: a git copy of the template, the hardened service, a plain
one as the control (the same search must find there what it must not find in the other), and the logs.

Exit status: 0, 1 when a step failed, 2 for a folder that cannot be used, 130 after Ctrl-C.
"""

import argparse
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.stage import Stage, StepError
from scripts.worktree_copy import ROOT, copy_template, git, version_of

_STEPS = 8
_START_SECONDS = 30


class FolderError(Exception):
    """The folder cannot be used; nothing was changed."""


@dataclass(frozen=True)
class Record:
    """What is stored. The random part keeps the disk from holding it by accident."""

    name: str
    value: str

    @classmethod
    def fresh(cls) -> "Record":
        """Return a record that nobody has stored before."""
        return cls(f"order-{secrets.token_hex(6)}", f"12 Harbour Lane, door code {secrets.token_hex(6)}")

    def needles(self) -> dict[str, bytes]:
        """Return what to search for."""
        return {"name": self.name.encode(), "value": self.value.encode()}


@dataclass(frozen=True)
class Findings:
    """What a search of a folder's bytes came to."""

    files: int
    bytes: int
    found_in: dict[str, list[str]]

    def __str__(self) -> str:
        """Say it in a line."""
        results = [
            f"{label} {'found in ' + ', '.join(names) if names else 'not found'}"
            for label, names in self.found_in.items()
        ]
        files = "1 file" if self.files == 1 else f"{self.files} files"
        return f"{self.bytes:,} bytes in {files}: {'; '.join(results)}"


def search(folder: Path, needles: Mapping[str, bytes]) -> Findings:
    """Search the bytes of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return Findings(
        files=len(contents),
        bytes=sum(len(content) for content in contents.values()),
        found_in={
            label: [name for name, content in contents.items() if needle in content]
            for label, needle in needles.items()
        },
    )


def _scaffold(stage: Stage, name: str, *, hardened: bool) -> Path:
    project = stage.folder / name
    answers = ["project_name=Orders", f"enable_security_hardening={str(hardened).lower()}"]
    data = [argument for answer in answers for argument in ("--data", answer)]
    copier = [sys.executable, "-m", "copier", "copy", "--trust", "--defaults", *data]
    stage.run(f"copier-{name}", [*copier, str(stage.folder / "template"), str(project)], stage.folder)
    return project


def _install(stage: Stage, project: Path) -> None:
    """Make the environment, and commit: `just update` needs a clean repository, with `uv.lock` in it."""
    stage.run(f"install-{project.name}", ["uv", "sync"], project)
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "Scaffolded by the demo")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _request(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _is_ready(port: int) -> bool:
    try:
        return _request(port, "GET", "/readyz")[0] == 200
    except OSError:
        return False


def _serve(stage: Stage, project: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a service and wait until it says that it is ready."""
    port = _free_port()
    command = [str(project / ".venv" / "bin" / "python"), "-m", "orders"]
    process = stage.start(f"service-{project.name}", command, project, SERVICE_PORT=str(port))
    deadline = time.monotonic() + _START_SECONDS
    while not _is_ready(port):
        if process.poll() is not None:
            raise StepError(f"The service in {project} ended with status {process.returncode}.")
        if time.monotonic() > deadline:
            raise StepError(f"The service in {project} was not ready after {_START_SECONDS} seconds.")
        time.sleep(0.05)
    return process, port


def _write_and_read(port: int, record: Record) -> None:
    path = f"/v1/records/{record.name}"
    status, _ = _request(port, "PUT", path, {"value": record.value})
    if status != 201:
        raise StepError(f"PUT {path} was answered with {status} instead of 201.")
    status, body = _request(port, "GET", path)
    if status != 200 or json.loads(body) != {"name": record.name, "value": record.value}:
        raise StepError(f"GET {path} did not give the record back: {status} {body!r}.")


def _examine(project: Path, record: Record, *, hidden: bool) -> Findings:
    """Search the data folder, and refuse a result that proves nothing."""
    data = project / "data"
    findings = search(data, record.needles())
    if not findings.bytes:
        raise StepError(f"There was nothing to search in {data}.")
    for label, names in findings.found_in.items():
        if hidden and names:
            raise StepError(f"The record's {label} stands readable in {', '.join(names)} of {data}.")
        if not hidden and not names:
            raise StepError(f"The search proves nothing: it misses the record's {label} in the plain {data}.")
    return findings


def _play(stage: Stage) -> None:
    """All steps; each is printed while it runs."""
    record = Record.fresh()
    with stage.step("copy the template; commit and tag the copy"):
        copy_template(stage.folder / "template", f"v{version_of()}")
    with stage.step("scaffold a hardened service, and a plain one as control"):
        hardened = _scaffold(stage, "orders", hardened=True)
        plain = _scaffold(stage, "orders-plain", hardened=False)
    with stage.step("install what they need (uv sync), and commit"):
        for project in (hardened, plain):
            _install(stage, project)
    with stage.step("make the key (uv run just init --no-recovery)"):
        stage.run("init-orders", ["uv", "run", "just", "init", "--no-recovery"], hardened)
    with stage.step("start both"):
        services = [_serve(stage, project) for project in (hardened, plain)]
    with stage.step("PUT and GET a record over HTTP, in both"):
        for _, port in services:
            _write_and_read(port, record)
    with stage.step("search the disk while they run"):
        _examine(hardened, record, hidden=True)
        _examine(plain, record, hidden=False)
    with stage.step("stop both, and search again"):
        for process, _ in services:
            stage.stop(process)
        encrypted = _examine(hardened, record, hidden=True)
        control = _examine(plain, record, hidden=False)

    print(f"\nstored in both      {record.name} = {record.value}")
    print(f"orders/data         {encrypted}")
    print(f"orders-plain/data   {control}")


def _next_steps(folder: Path) -> None:
    own = str(Path(sys.executable).parent)
    others = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if entry != own]
    print(f"\nThe hardened service is in {folder / 'orders'}. Next:\n")
    if shutil.which("uv", path=os.pathsep.join(others)) is None:
        tools = ROOT / ".tools" / "bin"
        print(f'  export PATH="{tools if (tools / "uv").exists() else own}:$PATH"')
    print(f"  cd {folder / 'orders'}")
    print("  uv run just check            tests, lint, types")
    print("  uv run just dev              start it on port 8000")
    print("  uv run just update --trust   once you have committed and tagged a change in ../template")
    print(f"\nEverything of this demo, logs included, is in {folder}: remove it when you are done.")


def _claim(argument: str | None) -> Path:
    """Return the folder to work in, which is empty and outside the checkout."""
    if argument is None:
        return Path(tempfile.mkdtemp(prefix="bartizan-demo-")).resolve()
    folder = Path(argument).expanduser().resolve()
    if folder == ROOT or ROOT in folder.parents:
        raise FolderError(f"{folder} is inside the template's checkout. Name a folder outside of it.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"{folder} exists and is not an empty folder. Name a new one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{folder} cannot be created: {error.strerror}. Name another one.") from error
    return folder


def _folder_argument(arguments: Sequence[str] | None) -> str | None:
    parser = argparse.ArgumentParser(prog="just demo", description="Scaffold a hardened service and use it.")
    parser.add_argument("folder", nargs="?", metavar="DIR", help="new or empty; default: a temporary folder")
    folder: str | None = parser.parse_args(arguments).folder
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    try:
        stage = Stage(_claim(_folder_argument(arguments)), _STEPS)
    except FolderError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Bartizan's demo, in {stage.folder}\n", flush=True)
    try:
        with stage:
            _play(stage)
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing is left running.", file=sys.stderr)
        return 130
    except (StepError, OSError, subprocess.CalledProcessError) as error:
        words = f" {error.stderr.strip()}" if isinstance(error, subprocess.CalledProcessError) else ""
        print(f"\n{error}{words}", file=sys.stderr)
        print(f"Nothing is left running. What the commands printed is in {stage.logs}", file=sys.stderr)
        return 1
    _next_steps(stage.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
