"""The page on backups keeps its word: every block of it is run, in the way of its reader.

Shims stand for ``uv run just``, which passes its arguments through, and for ``docker``. Paths of
the page are moved into a folder of the test. A block that no scene here runs is a failure.
"""

import base64
import configparser
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from guide import DOCUMENTS, Block, sections
from service_security.keys import open_master_key
from service_security.store import SecureDb

PAGE = DOCUMENTS / "BACKUP.md"
if not PAGE.exists():
    pytest.skip("docs/security/BACKUP.md is not there", allow_module_level=True)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page is for POSIX shells")

RECORDS = {b"name %d" % number: b"value %d" % number for number in range(1200)}

UV = """#!/bin/sh
# uv run just ARGUMENTS
test "$1 $2" = "run just" || exit 64
shift 2
test "$1" != init || set -- init --phrase-file "$TEST_PHRASE"  # nobody is there to write it down
exec {python} -m service_security "$@"
"""

# It knows the forms that the page uses; whether an engine takes them, no test here can tell.
DOCKER = """#!{python}
import os, shutil, sys

volume, words = os.environ["TEST_VOLUME"], sys.argv[1:]


def inside(word):
    return word.replace("/data", volume)


match words:
    case ["compose", "stop" | "start", "service"]:
        raise SystemExit
    case ["compose", "cp", source, target] if source.startswith("service:/data/"):
        shutil.copy(inside(source.removeprefix("service:")), target)
        raise SystemExit
    case ["compose", "run", "--rm", "--entrypoint", "/app/.venv/bin/python", "init", *rest]:
        command = [inside(word) for word in rest]
    case ["compose", "run", "--rm", "--volume", volumes, "init", *rest]:
        here, there, mode = volumes.split(":")
        assert (there, mode) == ("/backups", "ro")
        command = ["-m", "service_security", *(word.replace(there, here) for word in rest)]
    case ["compose", "run", "--rm", "init", *rest]:
        command = ["-m", "service_security", *map(inside, rest)]
    case _:
        raise SystemExit("unknown: " + " ".join(words))
os.environ["SERVICE_DATA_DIR"] = volume
os.environ["SERVICE_KEY_SOURCE"] = "file:secrets/container.key"
os.execv(sys.executable, [sys.executable, *command])
"""


@dataclass
class Machine:
    """A machine with a service's folder and a disk for backups."""

    root: Path
    service: Path
    backups: Path
    ran: list[Block] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path) -> "Machine":
        """Make one that has the code of the service, and nothing else."""
        machine = cls(root, root / "srv" / "orders", root / "mnt" / "backups")
        for folder in (machine.service, machine.backups, root / "bin"):
            folder.mkdir(parents=True)
        for name, text in (("uv", UV), ("docker", DOCKER)):
            shim = root / "bin" / name
            shim.write_text(text.format(python=sys.executable))
            shim.chmod(0o755)
        return machine

    @property
    def phrase(self) -> Path:
        """Where the words of the recovery phrase are, which stand for the paper."""
        return self.root / "paper"

    def run(self, block: Block, typed: str = "", *, status: int = 0) -> str:
        """Run a block as it stands on the page, and return what it prints."""
        self.ran.append(block)
        return self.shell(block.text, typed, status=status)

    def shell(self, text: str, typed: str = "", *, status: int = 0) -> str:
        """Run lines of a shell, with the paths of the page."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SERVICE_")
        }
        environment |= {
            "PATH": f"{self.root / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "TEST_VOLUME": str(self.service / "data"),
            "TEST_PHRASE": str(self.phrase),
            "SERVICE_KEY_SOURCE": "file:secrets/service.key",
        }
        result = subprocess.run(
            ["/bin/sh", "-e", "-c", self.moved(text)],
            cwd=self.service,
            input=typed,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout

    def moved(self, text: str) -> str:
        """Put the test's folders in place of the page's, as seen from the service's."""
        return text.replace("/mnt/backups", "../../mnt/backups").replace("/srv/", "../../srv/")

    def names(self) -> list[str]:
        """Return what is on the disk for backups."""
        return sorted(path.name for path in self.backups.iterdir())

    def open(self) -> SecureDb:
        """Open the database of the service."""
        source = f"file:{self.service / 'secrets' / 'service.key'}"
        with open_master_key(self.service / "data" / "envelope.json", source) as master_key:
            return SecureDb.open(self.service / "data" / "records.db", master_key)

    def contents(self) -> dict[bytes, bytes]:
        """Read all records."""
        with self.open() as store:
            return dict(store.items())

    def spoil(self, statement: str) -> None:
        """Change the database behind the library's back."""
        with closing(apsw.Connection(str(self.service / "data" / "records.db"))) as connection:
            connection.execute(statement)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have the service run: it holds its folder and has its database open."""
        import fcntl

        descriptor = os.open(self.service / "data", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            with self.open():
                yield
        finally:
            os.close(descriptor)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with a service that has a key and 1,200 records."""
    machine = Machine.make(tmp_path / "machine")
    machine.shell("uv run just init")
    with machine.open() as store:
        store.insert_many(RECORDS.items())
    return machine


BACK_UP = "uv run just db backup /mnt/backups/first.backup"

Scene = Callable[[Machine, list[Block]], None]
SCENES: dict[str, Scene] = {}


def scene(heading: str) -> Callable[[Scene], Scene]:
    """Register what runs the blocks of a section."""

    def register(function: Scene) -> Scene:
        SCENES[heading] = function
        return function

    return register


@pytest.mark.parametrize("heading", sections(PAGE))
def test_blocks_of_the_page_do_what_it_says(machine: Machine, heading: str) -> None:
    blocks = sections(PAGE)[heading]
    SCENES[heading](machine, blocks)
    assert machine.ran == blocks


def test_every_scene_is_of_a_section_of_the_page() -> None:
    assert list(sections(PAGE)) == list(SCENES)


@scene("Keep a copy of the key")
def _keep_the_key(machine: Machine, blocks: list[Block]) -> None:
    shown = machine.run(blocks[0])
    key = (machine.service / "secrets" / "service.key").read_bytes()
    assert base64.b64decode(shown, validate=False) == key
    assert len(shown) == 45


@scene("Make a backup")
def _make_a_backup(machine: Machine, blocks: list[Block]) -> None:
    with machine.running():
        printed = machine.run(blocks[0])
    assert blocks[1].language == "text"
    machine.ran.append(blocks[1])
    assert printed == machine.moved(blocks[1].text)
    assert machine.names() == ["first.backup"]


def _date(machine: Machine) -> str:
    return machine.shell("date +%F").strip()


@scene("Every night")
def _every_night(machine: Machine, blocks: list[Block]) -> None:
    cron, unit, timer = blocks
    before = _date(machine)
    old, older = machine.backups / "recent.backup", machine.backups / "old.backup"
    for path, days in ((old, 20), (older, 40)):
        path.write_bytes(b"")
        then = path.stat().st_mtime - days * 24 * 3600
        os.utime(path, (then, then))

    variable, line = cron.text.splitlines()
    assert variable.startswith("PATH=")
    command = re.sub(r"\\%", "%", line.split(maxsplit=5)[5])
    machine.spoil("UPDATE record SET key_id = 9 WHERE id = 1")
    machine.shell(command, status=2)
    assert machine.names() == ["old.backup", "recent.backup"], "nothing goes without a new one"
    machine.spoil("UPDATE record SET key_id = 1 WHERE id = 1")
    with machine.running():
        assert machine.shell("{ " + command + "; } 2>&1") == ""
    tonight = {f"{date}.backup" for date in (before, _date(machine))}
    assert set(machine.names()) - tonight == {"recent.backup"}
    machine.ran.append(cron)

    for name in machine.names():
        (machine.backups / name).unlink()
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(unit.text)
    assert settings["Service"]["WorkingDirectory"] == "/srv/orders"
    words = shlex.split(settings["Service"]["ExecStart"])
    assert words[:2] == ["/bin/sh", "-c"]
    assert len(words) == 3
    machine.shell(words[2].replace("%%", "%").replace("$$", "$"))
    tonight.add(f"{_date(machine)}.backup")
    assert set(machine.names()) <= tonight
    assert len(machine.names()) == 1
    machine.ran.append(unit)

    settings.read_string(timer.text)
    assert settings["Timer"]["OnCalendar"] == "*-*-* 02:30"
    machine.ran.append(timer)


@scene("Check a backup")
def _check_a_backup(machine: Machine, blocks: list[Block]) -> None:
    machine.shell(BACK_UP)
    here, drill, with_the_copy = blocks
    with machine.running():
        assert machine.run(here).startswith("All 1200 records of ")
    text = base64.b64encode((machine.service / "secrets" / "service.key").read_bytes()).decode()
    elsewhere = Machine.make(machine.root / "elsewhere")
    (machine.backups / "first.backup").rename(elsewhere.backups / "first.backup")
    elsewhere.run(drill, typed=machine.phrase.read_text())
    elsewhere.shell(drill.text, typed="abandon " * 23 + "art", status=2)  # the control
    assert not (elsewhere.service / "data").exists()
    printed = elsewhere.run(with_the_copy, typed=text)
    assert "1200 records" in printed
    assert "It opens with service.copy alone." in printed
    assert (elsewhere.service / "service.copy").stat().st_mode & 0o777 == 0o600
    machine.ran += elsewhere.ran


@scene("The database is damaged")
def _the_database_is_damaged(machine: Machine, blocks: list[Block]) -> None:
    find, replace, save = blocks
    machine.shell(BACK_UP)
    machine.spoil("UPDATE record SET sealed = zeroblob(100) WHERE id = 700")
    with machine.running():
        assert "Record 700 is damaged" in machine.run(find, status=1)
    printed = machine.run(replace)
    assert "All 1200 records of data/records.db are whole." in printed
    assert machine.contents() == RECORDS
    machine.spoil("UPDATE record SET sealed = zeroblob(100) WHERE id = 7")
    with machine.running():
        assert "Record 7 is damaged and was left out." in machine.run(save)
    again = replace.text.replace("data/damaged", "data/again").replace("first", "rest")
    assert "All 1199 records of data/records.db are whole." in machine.shell(again)
    assert machine.contents() == {name: RECORDS[name] for name in RECORDS if name != b"name 6"}


@scene("The machine is gone")
def _the_machine_is_gone(machine: Machine, blocks: list[Block]) -> None:
    machine.shell(BACK_UP)
    key = (machine.service / "secrets" / "service.key").read_bytes()
    names = ("with the phrase", "the same key", "a key of its own")
    for block, name in zip(blocks, names, strict=True):
        new = Machine.make(machine.root / name)
        (new.backups / "first.backup").write_bytes((machine.backups / "first.backup").read_bytes())
        typed = base64.b64encode(key).decode()
        if name == "a key of its own":
            new.shell("(umask 077 && base64 -d > service.copy)", typed)
            typed = ""
        elif name == "with the phrase":
            typed = machine.phrase.read_text()
        new.run(block, typed)
        assert new.contents() == RECORDS
        kept = (new.service / "secrets" / "service.key").read_bytes() == key
        assert kept == (name == "the same key")
        machine.ran += new.ran


@scene("In a container")
def _in_a_container(machine: Machine, blocks: list[Block]) -> None:
    save, move_away, restore = blocks
    secrets = machine.service / "secrets"
    (secrets / "service.key").rename(secrets / "container.key")
    (machine.service / "backups").mkdir()
    machine.run(save)
    machine.run(move_away)
    assert not (machine.service / "data" / "records.db").exists()
    machine.run(restore)
    (secrets / "container.key").rename(secrets / "service.key")
    assert machine.contents() == RECORDS


@scene("Another version of the library")
def _another_version(machine: Machine, blocks: list[Block]) -> None:
    with machine.running():
        machine.run(blocks[0])
    assert machine.names() == ["before-the-change.backup"]
