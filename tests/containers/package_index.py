"""A package index that asks for a password, on loopback, in front of the one that a lock file names."""

import base64
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SIMPLE = "application/vnd.pypi.simple.v1+json"


@dataclass
class Index:
    """An index that is running."""

    upstream: str
    user: str
    password: str
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """The paths that were asked for with the password."""
    refused: int = 0
    """How often there was none."""

    @property
    def netrc(self) -> str:
        """The file that gives uv the password."""
        return f"machine 127.0.0.1 login {self.user} password {self.password}\n"


def upstream_of(lock: Path) -> str:
    """Return the index that a lock file was written with."""
    (index,) = {found[1] for found in re.finditer(r'registry = "([^"]+)"', lock.read_text("utf-8"))}
    return index


@contextmanager
def serving(index: Index) -> Iterator[Index]:
    """Serve an index for as long as it is needed."""
    expected = "Basic " + base64.b64encode(f"{index.user}:{index.password}".encode()).decode()
    files: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != expected:
                index.refused += 1
                self.answer(401, "text/plain", b"who are you?")
                return
            index.asked.append(self.path)
            try:
                if self.path.startswith("/files/"):
                    path = self.path.removesuffix(".metadata")
                    with urllib.request.urlopen(files[path] + self.path.removeprefix(path)) as found:  # noqa: S310
                        self.answer(200, "application/octet-stream", found.read())
                else:
                    self.answer(200, SIMPLE, self.page(self.path.strip("/").split("/")[-1]))
            except (KeyError, urllib.error.HTTPError):
                self.answer(404, "text/plain", b"not here")

        def do_HEAD(self) -> None:  # uv asks whether it may read a part of a wheel: it may not
            self.answer(405, "text/plain", b"")

        def page(self, project: str) -> bytes:
            """Return an index page whose files are ours."""
            request = urllib.request.Request(f"{index.upstream}/{project}/", headers={"Accept": SIMPLE})  # noqa: S310
            with urllib.request.urlopen(request) as found:  # noqa: S310
                page = json.load(found)
            for file in page["files"]:
                path = f"/files/{project}/{file['filename']}"
                files[path] = file["url"]
                file["url"] = index.url.removesuffix("/simple") + path
            return json.dumps(page).encode()

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", "Basic")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            with suppress(BrokenPipeError):  # it has its answer, and hung up
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
