"""Run a rendered service as its owner does, and talk to it over HTTP."""

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaffold import outside_environment

PACKAGE = "my_service"


def python(project: Path) -> str:
    """Return the interpreter of a project's environment."""
    return str(project / ".venv" / "bin" / "python")


@dataclass(frozen=True)
class Client:
    """A running service."""

    url: str

    def request(self, method: str, path: str, body: object = None) -> Any:
        """Send a request and return the parsed answer; anything but success raises."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            answer = response.read()
        return json.loads(answer) if answer else None

    def put(self, records: dict[str, str]) -> None:
        """Store some records."""
        for name, value in records.items():
            self.request("PUT", f"/v1/records/{name}", {"value": value})

    def all(self) -> dict[str, str]:
        """Read every record, page by page."""
        found, cursor = {}, ""
        while True:
            page = self.request("GET", f"/v1/records?limit=2{cursor}")
            for name in page["names"]:
                found[name] = self.request("GET", f"/v1/records/{name}")["value"]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"


@contextmanager
def running(project: Path) -> Iterator[Client]:
    """Start the service on a free port, and stop it with SIGTERM; it has to end with status 0."""
    environment = {"SERVICE_PORT": "0", "SERVICE_LOG_FORMAT": "json"}
    process = subprocess.Popen(
        [python(project), "-m", PACKAGE],
        cwd=project,
        env=outside_environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("{") and (url := json.loads(line).get("url")):
                break
        else:
            raise AssertionError(f"The service did not start: {''.join(said)}")
        yield Client(url)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
