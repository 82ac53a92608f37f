"""The guide on keys keeps its word: every command of it is run, by somebody at a terminal."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guide import DOCUMENTS, Block, Machine, sections
from service_security.errors import ConfigurationError, KeyUnavailableError

PAGE = DOCUMENTS / "KEYS.md"
if not PAGE.exists():
    pytest.skip("docs/security/KEYS.md is not there", allow_module_level=True)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page is for POSIX shells")

RECORDS = {b"name %d" % number: b"value %d" % number for number in range(20)}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with the code of a service."""
    return Machine(tmp_path / "machine")


Scene = Callable[[Machine, list[Block]], None]
SCENES: dict[str, Scene] = {}


def scene(heading: str) -> Callable[[Scene], Scene]:
    """Register what runs the commands of a section."""

    def register(function: Scene) -> Scene:
        SCENES[heading] = function
        return function

    return register


@pytest.mark.parametrize("heading", sections(PAGE, "sh"))
def test_commands_of_the_page_do_what_it_says(machine: Machine, heading: str) -> None:
    blocks = sections(PAGE, "sh")[heading]
    SCENES[heading](machine, blocks)
    assert machine.ran == blocks


def test_every_scene_is_of_a_section_of_the_page() -> None:
    assert list(sections(PAGE, "sh")) == list(SCENES)


def start(machine: Machine, options: str = "--no-recovery") -> str:
    """Make the key and some records; return the phrase, if a file was named for it."""
    machine.shell(f"uv run just init {options}")
    with machine.open() as store:
        store.insert_many(RECORDS.items())
    file = machine.service / "phrase.txt"
    return file.read_text() if file.exists() else ""


@scene("Make the key")
def _make_the_key(machine: Machine, blocks: list[Block]) -> None:
    machine.shell(blocks[0].text, status=2)
    assert not machine.data.exists()
    _, phrase = machine.run_on_terminal(blocks[0])
    assert len(phrase.split()) == 24
    key_file = machine.service / "secrets" / "service.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    before = (machine.data / "envelope.json").read_bytes()
    machine.shell(blocks[0].text)
    assert (machine.data / "envelope.json").read_bytes() == before
    key_file.unlink()
    machine.shell("uv run just keys recover --to file:secrets/service.key", phrase)


@scene("Look at the keys")
def _look(machine: Machine, blocks: list[Block]) -> None:
    start(machine)
    status, doctor = blocks[0].text.splitlines()
    with machine.running():
        assert "1*" in machine.shell(status)
        machine.shell(f"{doctor} || test $? = 1")
    machine.ran += blocks


@scene("Move the key")
def _move(machine: Machine, blocks: list[Block]) -> None:
    move, check = blocks
    start(machine)
    secret = machine.root / "run/secrets/service_key"
    secret.write_bytes(bytes(range(32)))
    secret.chmod(0o444)
    with machine.running() as service:
        assert "SERVICE_KEY_SOURCE=secret:" in machine.run(move)
        assert service.get(b"name 1") == b"value 1"
    with pytest.raises(ConfigurationError):
        machine.open()
    machine.set_source("secret:/run/secrets/service_key")
    (machine.service / "secrets/service.key").unlink()
    assert "All 20 records" in machine.run(check)


@scene("Recovery phrase")
def _recovery_phrase(machine: Machine, blocks: list[Block]) -> None:
    make, drill = blocks
    start(machine)
    _, phrase = machine.run_on_terminal(make)
    machine.shell("uv run just db backup /mnt/backups/first.backup")
    assert "20 records are the same" in " ".join(machine.run(drill, phrase).split())
    _, other = machine.run_on_terminal(make)
    machine.ran.pop()
    machine.shell(drill.text, other, status=2)


@scene("The key is lost")
def _the_key_is_lost(machine: Machine, blocks: list[Block]) -> None:
    phrase = start(machine, "--phrase-file phrase.txt")
    (machine.service / "secrets/service.key").unlink()
    with pytest.raises(KeyUnavailableError):
        machine.open()
    assert "All 20 records" in machine.run(blocks[0], phrase)
    assert machine.contents() == RECORDS
