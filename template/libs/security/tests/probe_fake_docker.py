"""A ``docker`` command for tests: it answers from a file, and notes what it was asked.

The answers are a list of entries with the first words of a command line, what is printed, the
status, and how long it takes; the first entry that fits counts, and is used up if it says ``once``.
"""

import base64
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from probe_recorded import ANSWER, HISTORY, IMAGE, NETWORK, VOLUME
from probe_sample import good_container, good_tree
from security_probe.files import Tree

PROGRAM: Final = r"""
import base64, json, os, subprocess, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
words = sys.argv[1:]
with open(os.path.join(folder, "asked"), "a") as asked:
    asked.write(json.dumps(words) + "\n")
place = os.path.join(folder, "answers")
with open(place) as file:
    answers = json.load(file)
for number, answer in enumerate(answers):
    if words[: len(answer["words"])] == answer["words"]:
        break
else:
    sys.exit("fake docker: nobody said what to answer to " + " ".join(words))
if answer.get("once"):
    del answers[number]
    with open(place, "w") as file:
        json.dump(answers, file)
if answer.get("child"):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
time.sleep(answer.get("sleep", 0))
if answer.get("reads", True):
    sys.stdin.buffer.read()
out = base64.b64decode(answer["out"])
try:
    while True:
        sys.stdout.buffer.write(out)
        if not answer.get("endless"):
            break
    sys.stdout.buffer.flush()
except BrokenPipeError:
    os._exit(1)
sys.stderr.write(answer["complaint"])
with open(os.path.join(folder, "finished"), "a") as finished:
    finished.write(json.dumps(words) + "\n")
sys.exit(answer["status"])
"""

NUMBER: Final[str] = good_container()["Id"]
NAME: Final[str] = good_container()["Name"].lstrip("/")


def answer(
    *words: str, out: bytes | str | object = b"", status: int = 0, complaint: str = "", **more: Any
) -> dict[str, Any]:
    """Return the answer to commands that begin with some words."""
    if not isinstance(out, bytes | str):
        out = json.dumps(out)
    raw = out if isinstance(out, bytes) else out.encode()
    text = base64.b64encode(raw).decode()
    return {"words": list(words), "out": text, "status": status, "complaint": complaint} | more


def archive(tree: Tree) -> bytes:
    """Return files as an engine exports them."""
    stream = io.BytesIO()
    kinds = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as made:
        for path, entry in tree.entries.items():
            member = tarfile.TarInfo(path)
            member.type = kinds[entry.kind]
            member.mode, member.uid, member.gid = entry.mode, entry.uid, entry.gid
            member.mtime, member.linkname = entry.changed, entry.target
            text = tree.contents.get(path, entry.start or b"")
            if path.endswith((".so.6", ".so.0.8.6")):
                text = b"a library"
            member.size = len(text) if entry.kind == "file" else 0
            made.addfile(member, io.BytesIO(text))
    return stream.getvalue()


def stopped() -> dict[str, Any]:
    """Return what an engine says of the container after a stop."""
    ended = {"Status": "exited", "Running": False, "ExitCode": 0, "OOMKilled": False}
    return good_container() | {"State": ended | {"FinishedAt": "2026-01-01T00:00:00.7Z"}}


def good_answers() -> list[dict[str, Any]]:
    """Return what an engine says of a service that keeps all promises."""
    lines = "\n".join(json.dumps(step) for step in HISTORY)
    return [
        answer("version", out="29.0.0\n"),
        answer("compose", "ps", out=f"{NUMBER}\n"),
        answer("container", "inspect", out=[good_container()]),
        answer("image", "inspect", out=[IMAGE]),
        answer("volume", "inspect", out=[VOLUME]),
        answer("network", "inspect", out=[NETWORK]),
        answer("history", out=lines),
        answer("create", out="x\n"),
        answer("export", out=archive(good_tree())),
        answer("rm"),
        answer("exec", out=ANSWER),
        answer("compose", "build"),
        answer("tag"),
        answer("image", "rm"),
        answer("info", "--format", "{{.SystemTime}}", out="2026-01-01T00:00:00Z\n"),
        answer("info", out={"ServerVersion": "29.0.0", "KernelVersion": "6.1"}),
        answer("stop"),
        answer("start"),
    ]


@dataclass
class FakeDocker:
    """The command, in a folder of its own.

    Attributes:
        folder: Where it is.
        answers: What it says; changed by tests before it is asked.
    """

    folder: Path
    answers: list[dict[str, Any]] = field(default_factory=good_answers)

    @property
    def program(self) -> str:
        """Its path."""
        return str(self.folder / "docker")

    def says(self, *answers: dict[str, Any]) -> None:
        """Have it give these answers rather than those it would."""
        self.answers = [*answers, *self.answers]
        (self.folder / "answers").write_text(json.dumps(self.answers))

    def asked(self) -> list[list[str]]:
        """Return the command lines so far."""
        return self._noted("asked")

    def asked_for(self, *words: str) -> int:
        """Count the command lines that begin with some words."""
        return sum(line[: len(words)] == list(words) for line in self.asked())

    def finished(self, *words: str) -> int:
        """Count those of them that were answered and not ended before."""
        return sum(line[: len(words)] == list(words) for line in self._noted("finished"))

    def _noted(self, name: str) -> list[list[str]]:
        place = self.folder / name
        return (
            [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []
        )


def make(folder: Path) -> FakeDocker:
    """Put the command into a folder."""
    folder.mkdir()
    program = folder / "docker"
    program.write_text(f"#!{sys.executable} -IS\n{PROGRAM}")
    program.chmod(0o755)
    made = FakeDocker(folder)
    made.says()
    return made


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def order(lines: Sequence[Sequence[str]], *words: str) -> int:
    """Return the place of the first command line that begins with a word."""
    return next(
        place for place, line in enumerate(lines) if list(line[: len(words)]) == list(words)
    )
