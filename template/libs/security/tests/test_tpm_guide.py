"""The page on TPMs keeps its word: every block of it is run, with a software TPM.

Shims stand for ``uv``, ``docker`` and ``sudo``, put the software TPM in the place of ``tpm2``, and
write phrases to a file. A block that no scene here runs is a failure.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from guide import DOCUMENTS, Block, sections
from service_security.keys import open_master_key
from service_security.keys.tpm.errors import PROVISION
from service_security.store import SecureDb
from software_tpm import SoftwareTpm, need, software_tpms

PAGE = DOCUMENTS / "TPM.md"
if not PAGE.exists():
    pytest.skip("docs/security/TPM.md is not there", allow_module_level=True)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page is for POSIX shells")

RECORDS = {b"name %d" % number: b"value %d" % number for number in range(100)}
REPORT = "This user can use it for a key"
TOOLS = ("createprimary", "evictcontrol", "load", "unseal")

UV = """#!{python}
import os, sys

words = [os.environ["TEST_TPM"] if word == "tpm2" else word for word in sys.argv[1:]]
match words:
    case ["run", "python", "scripts/container_key.py"]:
        raise SystemExit
    case ["run", "just", "up"]:
        os.environ["SERVICE_KEY_SOURCE"] = os.environ["TEST_TPM"]
        rest = ["init"]
    case ["run", "just", "tpm"]:
        rest = ["tpm"] + (["--address", os.environ["TEST_TPM"].partition(":")[2]])
        if "SERVICE_KEY_SOURCE" in os.environ:
            rest = ["tpm"]
    case ["run", "just", *rest]:
        pass
    case _:
        raise SystemExit("unknown: " + " ".join(words))
if rest[0] == "init" or rest[:2] == ["keys", "recover"]:
    rest += ["--phrase-file", "phrase"]
os.execv(sys.executable, [sys.executable, "-m", "service_security", *rest])
"""

# It knows the forms that the page uses; whether an engine takes them, no test here can tell.
DOCKER = """#!{python}
import os, sys

settings = dict(line.split("=", 1) for line in open(".env").read().splitlines())
assert settings["COMPOSE_FILE"] == "docker-compose.yml:docker-compose.tpm.yml"
assert settings["TPM_GID"].isdigit()
match sys.argv[1:]:
    case ["compose", "build"]:
        raise SystemExit
    case ["compose", "run", "--rm", "--entrypoint", python, "init", "-I", *command]:
        assert python == "/app/.venv/bin/python"
os.environ["SERVICE_KEY_SOURCE"] = os.environ["TEST_TPM"]
os.execv(sys.executable, [sys.executable, *command])
"""

SUDO = """#!/bin/sh
exec "$@"
"""

# As behind /dev/tpmrm0, nothing that a tool loads stays loaded.
TOOL = """#!/bin/sh
{tool} "$@"
status=$?
{flush} -t
exit $status
"""


@dataclass
class Machine:
    """A machine with a TPM and a service's folder."""

    service: Path
    tpm: SoftwareTpm
    ran: list[Block] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path, tpm: SoftwareTpm) -> "Machine":
        """Make one that has the code of the service, and nothing else."""
        machine = cls(root / "srv" / "orders", tpm)
        (root / "bin").mkdir(parents=True)
        machine.service.mkdir(parents=True)
        flush = shutil.which("tpm2_flushcontext")
        shims = {"uv": UV, "docker": DOCKER, "sudo": SUDO}
        for name, text in shims.items():
            machine.shim(name, text.replace("{python}", sys.executable))
        for name in TOOLS:
            tool = shutil.which(f"tpm2_{name}")
            machine.shim(f"tpm2_{name}", TOOL.format(tool=tool, flush=flush))
        return machine

    def shim(self, name: str, text: str) -> None:
        """Put a program into the path."""
        shim = self.service.parents[1] / "bin" / name
        shim.write_text(text)
        shim.chmod(0o755)

    @property
    def source(self) -> str:
        """The key source of its TPM."""
        return f"tpm2:{self.tpm.address}"

    def run(self, block: Block, **settings: str) -> str:
        """Run a block as it stands on the page, and return what it prints."""
        self.ran.append(block)
        return self.shell(block.text, **settings)

    def shell(self, text: str, **settings: str) -> str:
        """Run lines of a shell."""
        result = self.attempt(text, **settings)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def attempt(self, text: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run lines of a shell that may fail."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SERVICE_")
        }
        environment |= {
            "PATH": f"{self.service.parents[1] / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "TEST_TPM": self.source,
            "TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={self.tpm.port}",
            "TSS2_LOG": "all+NONE",
        }
        return subprocess.run(
            ["/bin/sh", "-e", "-c", text.replace("/dev/tpmrm0", "/dev/null")],
            cwd=self.service,
            env=environment | settings,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def init(self, source: str | None = None) -> None:
        """Make the key of the service, and its records."""
        self.shell(f"uv run just init --key-source {source or self.source}")
        with self.open(source) as store:
            store.insert_many(RECORDS.items())

    def open(self, source: str | None = None) -> SecureDb:
        """Open the database of the service."""
        data = self.service / "data"
        with open_master_key(data / "envelope.json", source or self.source) as master_key:
            return SecureDb.open(data / "records.db", master_key)

    def contents(self, source: str | None = None) -> dict[bytes, bytes]:
        """Read all records."""
        with self.open(source) as store:
            return dict(store.items())

    def slot(self) -> dict[str, str]:
        """Return the slot of the TPM."""
        body = json.loads((self.service / "data" / "envelope.json").read_text())["body"]
        (slot,) = (slot for slot in json.loads(body)["slots"] if slot["type"] == "tpm2")
        return dict(slot)


Maker = Callable[[], Machine]
Scene = Callable[[Maker, list[Block]], list[Block]]
SCENES: dict[str, Scene] = {}


@pytest.fixture
def new_machine(tmp_path: Path) -> Iterator[Maker]:
    """Make machines, each with a TPM of its own."""
    need("swtpm")
    need("tpm2_unseal")
    (tmp_path / "tpms").mkdir()
    with software_tpms(tmp_path / "tpms") as make:

        def new() -> Machine:
            tpm = make()
            return Machine.make(tmp_path / f"machine{tpm.folder.name}", tpm)

        yield new


def scene(heading: str) -> Callable[[Scene], Scene]:
    """Register what runs the blocks of a section, and returns those that it ran."""

    def register(function: Scene) -> Scene:
        SCENES[heading] = function
        return function

    return register


@pytest.mark.parametrize("heading", sections(PAGE))
def test_blocks_of_the_page_do_what_it_says(new_machine: Maker, heading: str) -> None:
    blocks = sections(PAGE)[heading]
    assert SCENES[heading](new_machine, blocks) == blocks


def test_every_scene_is_of_a_section_of_the_page() -> None:
    assert list(sections(PAGE)) == list(SCENES)


@scene("On a machine")
def _on_a_machine(new: Maker, blocks: list[Block]) -> list[Block]:
    machine = new()
    look, init, move = blocks
    assert REPORT in machine.run(look)
    machine.run(init)
    assert machine.slot()["pcrs"] == ""
    assert not (machine.service / "secrets").exists(), "no file with a key is left"
    other = new()
    other.init(f"file:{other.service}/secrets/service.key")
    other.run(move)
    assert other.contents() == RECORDS
    return machine.ran + other.ran


@scene("In a container")
def _in_a_container(new: Maker, blocks: list[Block]) -> list[Block]:
    settings, start = blocks
    machine = new()
    machine.run(settings)
    assert REPORT in machine.run(start)
    assert machine.slot()
    return machine.ran


@scene("PCRs")
def _pcrs(new: Maker, blocks: list[Block]) -> list[Block]:
    bind, unbind = blocks
    machine = new()
    machine.tpm.extend(7)
    machine.init()
    setting = {"SERVICE_KEY_SOURCE": machine.source}
    machine.run(bind, **setting)
    assert machine.slot()["pcrs"] == "7"
    machine.run(unbind, **setting)
    machine.tpm.extend(7)
    assert machine.contents() == RECORDS, "the update was made without the binding"
    machine.shell(bind.text, **setting)
    assert machine.contents() == RECORDS
    machine.tpm.extend(7)
    refused = machine.attempt("uv run just db verify", **setting)
    assert refused.returncode == 2
    assert "PCRs that the key is bound to have other values" in refused.stderr
    machine.shell("uv run just keys recover --to tpm2 --pcrs 7", **setting)
    assert machine.contents() == RECORDS
    assert machine.slot()["pcrs"] == "7"
    return machine.ran


@scene("The TPM was cleared or replaced")
def _cleared_or_replaced(new: Maker, blocks: list[Block]) -> list[Block]:
    machine = new()
    machine.init()
    machine.tpm.tool("clear", "-c", "p")
    setting = {"SERVICE_KEY_SOURCE": machine.source}
    refused = machine.attempt("uv run just db verify", **setting)
    assert refused.returncode == 2
    assert "sealed by another TPM, or this one was cleared" in refused.stderr
    assert "keys recover --to tpm2" in refused.stderr
    assert f"All {len(RECORDS)} records" in machine.run(blocks[0], **setting)
    return machine.ran


@scene("Another machine")
def _another_machine(new: Maker, blocks: list[Block]) -> list[Block]:
    leave, arrive = blocks
    machine, other = new(), new()
    machine.init()
    machine.run(leave, SERVICE_KEY_SOURCE=machine.source)
    for name in ("data", "secrets"):
        shutil.copytree(machine.service / name, other.service / name)
    other.run(arrive)
    assert other.contents() == RECORDS
    assert not (other.service / "secrets" / "travel.key").exists()
    return machine.ran + other.ran


@scene("The owner has a password")
def _owner_password(new: Maker, blocks: list[Block]) -> list[Block]:
    machine = new()
    machine.init()
    machine.tpm.tool("changeauth", "-c", "owner", "secret")
    (machine.service / "owner-password").write_text("secret")
    setting = {"SERVICE_KEY_SOURCE": machine.source}
    refused = machine.attempt("uv run just db verify", **setting)
    assert "The TPM's owner has set a password" in refused.stderr
    machine.run(blocks[0])
    assert machine.contents() == RECORDS
    return machine.ran


def test_page_and_message_have_the_same_commands() -> None:
    (block,) = sections(PAGE)["The owner has a password"]
    of_page = block.text.replace("sudo ", "").replace("\\\n  ", "").replace("\n", "; ")
    assert of_page == PROVISION.replace("OWNER-PASSWORD", "owner-password") + "; "


@scene("With other tools")
def _with_other_tools(new: Maker, blocks: list[Block]) -> list[Block]:
    machine = new()
    machine.init()
    key = base64.b64decode(machine.run(blocks[0]))
    slot = machine.slot()
    with machine.tpm.provider().unprotect(
        {name: slot[name] for name in ("srk_name", "private", "public", "pcrs")}
    ) as opened:
        assert bytes(opened.key.view) == key
    return machine.ran


@scene("Without a chip")
def _without_a_chip(new: Maker, blocks: list[Block]) -> list[Block]:
    try_out, report = blocks
    machine = new()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    printed = machine.shell(try_out.text.replace("2321", port))

    def without_firmware(text: str) -> str:
        return re.sub(r"(firmware +)\S+", r"\1...", text)

    assert without_firmware(report.text.replace("2321", port)) in without_firmware(printed)
    assert f"tpm2:tcp:127.0.0.1:{port}" in printed
    return blocks
