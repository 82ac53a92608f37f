"""What tests of a guide share: its blocks, and a machine that they are run on as they stand.

Shims stand for ``uv run just``, which passes its arguments through and reads ``.env``. Paths of the
guides are moved into a folder of the test.
"""

import os
import re
import select
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from service_security.keys import DEFAULT_SOURCE, open_master_key
from service_security.store import SecureDb

DOCUMENTS = Path(__file__).parents[3] / "docs" / "security"

KEY_SOURCE = DEFAULT_SOURCE.rpartition(",")[2]
"""Where the guides have the key at first. Tests leave the TPM of this machine alone."""

_UV = """#!/bin/sh
# uv run just ARGUMENTS
test "$1 $2" = "run just" || exit 64
shift 2
set -a
test ! -f .env || . ./.env
exec {python} -m service_security "$@"
"""

_BLOCK = re.compile(r"^#+ ([^\n]+)$|^( *)```(\w+)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a guide."""

    language: str
    text: str


def sections(page: Path, *languages: str) -> dict[str, list[Block]]:
    """Return the blocks of a page by heading, of some languages or of all."""
    found: dict[str, list[Block]] = defaultdict(list)
    heading = ""
    for title, _, language, text in _BLOCK.findall(page.read_text("utf-8")):
        if title:
            heading = title
        elif language in languages or not languages:
            found[heading].append(Block(language, textwrap.dedent(text)))
    return dict(found)


@dataclass
class Machine:
    """A machine with the code of a service, and a disk for backups."""

    root: Path
    ran: list[Block] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in (self.service, self.backups, self.root / "bin", self.root / "run/secrets"):
            folder.mkdir(parents=True)
        shim = self.root / "bin" / "uv"
        shim.write_text(_UV.format(python=sys.executable))
        shim.chmod(0o755)
        self.set_source(KEY_SOURCE)

    @property
    def service(self) -> Path:
        """The folder of the service."""
        return self.root / "srv" / "orders"

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.service / "data"

    @property
    def backups(self) -> Path:
        """The disk for backups."""
        return self.root / "mnt" / "backups"

    def set_source(self, source: str) -> None:
        """Say in the settings where the key is."""
        self.source = source
        (self.service / ".env").write_text(f"SERVICE_KEY_SOURCE={self.moved(source)}\n")

    def moved(self, text: str) -> str:
        """Put the test's folders in place of the guide's, as seen from the service's."""
        for folder in ("/mnt/", "/srv/", "/run/secrets/"):
            text = text.replace(folder, f"../..{folder}")
        return text

    def run(self, block: Block, typed: str = "", *, status: int = 0) -> str:
        """Run a block as it stands in the guide, and return what it prints."""
        self.ran.append(block)
        return self.shell(block.text, typed, status=status)

    def shell(self, text: str, typed: str = "", *, status: int = 0) -> str:
        """Run lines of a shell, and return what they print."""
        result = subprocess.run(
            ["/bin/sh", "-e", "-c", self.moved(text)],
            cwd=self.service,
            input=typed,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout

    def run_on_terminal(self, block: Block) -> tuple[str, str]:
        """Run a block as somebody does who writes the phrase down; return the output and it."""
        import pty

        self.ran.append(block)
        ours, theirs = pty.openpty()
        said = ""
        with subprocess.Popen(
            ["/bin/sh", "-e", "-c", self.moved(block.text)],
            cwd=self.service,
            env=self._environment() | {"TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            try:
                while data := _read(ours):
                    said += data
                    if said.endswith("written down: "):
                        os.write(ours, b"\n")
                    if asked := re.search(r"Word (\d+): \Z", said):
                        os.write(ours, f"{_words(said)[int(asked[1])]}\n".encode())
            except BaseException:
                process.kill()
                raise
            finally:
                os.close(ours)
        assert process.returncode == 0, said
        return said, " ".join(_words(said).values())

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("SERVICE_")
        }
        return kept | {"PATH": f"{self.root / 'bin'}:/usr/local/bin:/usr/bin:/bin"}

    def open(self, clock: Callable[[], float] = time.time) -> SecureDb:
        """Open the database of the service, or make it at another time."""
        scheme, _, path = self.moved(self.source).partition(":")
        source = f"{scheme}:{self.service / path}"
        with open_master_key(self.data / "envelope.json", source) as master_key:
            return SecureDb.open(self.data / "records.db", master_key, clock=clock)

    def contents(self) -> dict[bytes, bytes]:
        """Read all records."""
        with self.open() as store:
            return dict(store.items())

    def keys(self) -> dict[int, tuple[str, int]]:
        """Return state and number of records of each key of the records."""
        with self.open() as store:
            return {key.key_id: (key.state, key.records) for key in store.rotation().status().keys}

    def spoil(self, position: int) -> None:
        """Damage a record behind the library's back."""
        with closing(apsw.Connection(str(self.data / "records.db"))) as connection:
            connection.execute("UPDATE record SET sealed = zeroblob(100) WHERE id = ?", (position,))

    @contextmanager
    def running(self) -> Iterator[SecureDb]:
        """Have the service run: it holds its folder and has its database open."""
        import fcntl

        descriptor = os.open(self.data, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            with self.open() as store:
                yield store
        finally:
            os.close(descriptor)


def _read(terminal: int) -> str:
    ready, _, _ = select.select([terminal], [], [], 60)
    assert ready, "the command waits for something else"
    try:
        return os.read(terminal, 4096).decode()
    except OSError:  # Linux says so when the last process has left the terminal
        return ""


def _words(said: str) -> dict[int, str]:
    """Return the words of the phrase that was shown, by their places."""
    shown = said.partition("not shown again.")[2].partition("Press ")[0]
    return {int(place): word for place, word in re.findall(r"(\d+) ([a-z]+)", shown)}
