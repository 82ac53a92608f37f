"""The guide on rotation keeps its word: its commands are run in their order, by the clock."""

import configparser
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from guide import DOCUMENTS, Block, Machine, sections
from service_security.errors import WrongKeyError
from service_security.keys import open_master_key
from service_security.store.rotation_report import RotationStep

PAGE = DOCUMENTS / "KEY-ROTATION.md"
if not PAGE.exists():
    pytest.skip("docs/security/KEY-ROTATION.md is not there", allow_module_level=True)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page is for POSIX shells")

RECORDS = {b"name %d" % number: b"%d " % number * 200 for number in range(5000)}
OLD, NEW = 1, 3  # the key of the name index has a number, too
MACHINE_SECONDS = 300  # of ten minutes, on a busy machine; the others are for reading
DAY = 86400


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with a service that has a key and 5,000 records of about 1 KiB."""
    machine = Machine(tmp_path / "machine")
    machine.shell("uv run just init --no-recovery")
    with machine.open() as store:
        store.insert_many(RECORDS.items())
    return machine


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


@scene("Rotate now")
def _rotate_now(machine: Machine, blocks: list[Block]) -> None:
    look, save, rotate, check = blocks
    begun = time.monotonic()
    with machine.running() as service:
        assert f"{OLD}*" in machine.run(look)
        machine.run(save)
        assert f"Key {NEW} seals the records; {len(RECORDS)} were moved" in " ".join(
            machine.run(rotate).replace(" (xchacha20poly1305)", "").split()
        )
        service.insert(b"name 0", RECORDS[b"name 0"])
        assert service.get(b"name 1") == RECORDS[b"name 1"]
        assert f"All {len(RECORDS)} records of data/records.db are whole." in machine.run(check)
    seconds = time.monotonic() - begun
    print(f"The commands of the guide take {seconds:.1f} s for {len(RECORDS)} records.")
    assert seconds < MACHINE_SECONDS
    assert machine.keys() == {OLD: ("retiring", 0), NEW: ("active", len(RECORDS))}
    assert machine.contents() == RECORDS


@scene("By cron or a timer")
def _by_timer(machine: Machine, blocks: list[Block]) -> None:
    cron, unit, timer = blocks
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(unit.text)
    assert settings["Service"]["WorkingDirectory"] == "/srv/orders"
    variable, line = cron.text.splitlines()
    assert variable.startswith("PATH=")
    commands = [line.split(maxsplit=5)[5], settings["Service"]["ExecStart"]]
    assert shlex.split(commands[1])[:2] == ["/usr/bin/env", "uv"]
    for number, command in enumerate(commands):
        with machine.running():
            assert machine.shell("{ " + command + "; } 2>&1") == "", "nothing is due"
        assert list(machine.keys()) == [OLD]
        old = Machine(machine.root / f"old-{number}")
        old.shell("uv run just init --no-recovery")
        with old.open(clock=lambda: time.time() - 91 * DAY) as store:
            store.insert(b"name", b"value")
        assert f"Key {NEW}" in old.shell(command)
        assert old.keys() == {OLD: ("retiring", 0), NEW: ("active", 1)}
    settings.read_string(timer.text)
    assert settings["Timer"]["OnCalendar"]
    machine.ran += blocks


@scene("After a leak")
def _after_a_leak(machine: Machine, blocks: list[Block]) -> None:
    master, rotate_and_save, clean = blocks
    envelope = machine.data / "envelope.json"
    leaked = f"file:{machine.service / 'secrets/service.key'}"
    with open_master_key(envelope, leaked) as known:
        said, phrase = machine.run_on_terminal(master)
        assert "recovery phrase" in said
        machine.set_source("file:secrets/second.key")
        with pytest.raises(WrongKeyError):
            open_master_key(envelope, leaked)
        machine.run(rotate_and_save)
        machine.run(clean)
        assert machine.contents() == RECORDS
        with machine.open() as store, pytest.raises(WrongKeyError):
            type(store).open(store.path, known)
    names = {path.name for path in machine.data.iterdir()}
    assert "envelope.json.previous" not in names
    assert not (machine.service / "secrets/service.key").exists()
    machine.shell("uv run just keys recovery-drill /mnt/backups/after-the-leak.backup", phrase)


class _KilledError(Exception):
    pass


@scene("Interrupted, and back")
def _back(machine: Machine, blocks: list[Block]) -> None:
    def stop(step: RotationStep) -> None:
        if step.step == "validating":
            raise _KilledError

    with machine.open() as store, pytest.raises(_KilledError):
        store.rotation().run(on_step=stop)
    assert machine.keys()[NEW] == ("validating", len(RECORDS))
    with machine.running():
        machine.run(blocks[0])
    assert machine.keys() == {OLD: ("active", len(RECORDS)), NEW: ("retiring", 0)}
    machine.shell(blocks[0].text, status=2)
    assert machine.contents() == RECORDS


@scene("Damaged records")
def _damaged_records(machine: Machine, blocks: list[Block]) -> None:
    find, go_on = blocks
    machine.spoil(700)
    with machine.running() as service:
        machine.shell("uv run just keys rotate", status=1)
        assert machine.keys()[OLD] == ("retiring", 1)
        assert "Record 700 is damaged" in machine.run(find, status=1)
        service.insert(b"name 699", RECORDS[b"name 699"])
        machine.run(go_on)
    assert machine.keys() == {OLD: ("retiring", 0), NEW: ("active", len(RECORDS))}
    assert machine.contents() == RECORDS
