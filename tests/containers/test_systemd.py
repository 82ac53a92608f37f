"""The unit for machines without containers, on a machine that systemd runs.

The commands of the guide install the unit, and what it promises is tried from inside. A bare unit, with the
same program and none of the options, is the control: there everything that is tried has to work.
"""

import json
import os
import pty
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from containers.engine import Variants, eventually
from containers.systemd import Machine, blocks, booted

RECORD = "/v1/records/greeting"
ALLOCATE = "held = b'x' * (400 << 20)\nprint(len(held))"


@dataclass
class Terminal:
    """A command on the machine, on a terminal of its own."""

    process: subprocess.Popen[bytes]
    side: int
    seen: str = ""

    @classmethod
    def of(cls, machine: Machine, command: str) -> "Terminal":
        """Start a command."""
        ours, theirs = pty.openpty()
        words = [
            "docker",
            "exec",
            "--interactive",
            "--tty",
            "--env",
            "TERM=xterm",
            str(machine.container.name),
        ]
        process = subprocess.Popen(
            [*words, "bash", "-c", command], stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        return cls(process, ours)

    def until(self, pattern: str) -> "re.Match[str]":
        """Read until a pattern is there, and forget what was before its end."""
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern, self.seen, re.DOTALL)):
            assert time.monotonic() < deadline, self.seen
            self.seen += os.read(self.side, 4096).decode()
        self.seen = self.seen[found.end() :]
        return found

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self.side, line.encode() + b"\r")

    def status(self) -> int:
        """Read what is left and return the exit status."""
        try:
            while part := os.read(self.side, 4096):
                self.seen += part.decode()
        except OSError:  # Linux says so at the end of a terminal
            pass
        os.close(self.side)
        return self.process.wait(timeout=30)


def initialise(machine: Machine) -> list[str]:
    """Do as the person who starts the service for the first time; return the words of the phrase."""
    start, *_ = blocks(machine.guide, "Start")
    terminal = Terminal.of(machine, f"set -eu\n{start}")
    shown = terminal.until("This is the recovery phrase.*Press Enter[^:]*: ").group()
    words = dict(re.findall(r"\b(\d+) ([a-z]{3,8})\b", shown))
    assert len(words) == 24
    terminal.type("")
    for _ in range(3):
        terminal.type(words[terminal.until(r"Word (\d+): ")[1]])
    assert terminal.status() == 0, terminal.seen
    return list(words.values())


@pytest.fixture(scope="module")
def phrase() -> list[str]:
    """Return the words of the recovery phrase, once `machine` has seen them."""
    return []


@pytest.fixture(scope="module")
def machine(variants: Variants, phrase: list[str]) -> Iterator[Machine]:
    """Return a machine with the service installed and started as the guide says."""
    with booted(variants, "default") as machine:
        phrase += initialise(machine)
        machine.write("/etc/systemd/system/bare.service", "[Service]\nExecStart=/bin/true")
        yield machine


@pytest.fixture
def service(machine: Machine) -> Machine:
    """Return the machine with the service running as it was installed, whatever was done to it before."""
    if machine.property("DropInPaths") or machine.property("ActiveState") != "active":
        machine.shell(
            f"rm -rf /etc/systemd/system/{machine.slug}.service.d; systemctl daemon-reload;"
            f"systemctl reset-failed {machine.slug} || true"
        )
        machine.start()
    return machine


def found_by_probe(machine: Machine, unit: str) -> dict[str, Any]:
    """Return what the probe finds in a unit."""
    address = machine.shell("hostname --ip-address").split()[0]
    data = f"/var/lib/{machine.slug}"
    found: dict[str, Any] = json.loads(
        machine.probe(unit, arguments=f"{data} {':'.join(hidden(machine))} {address}")
    )
    return found


def hidden(machine: Machine) -> list[str]:
    """Return what the service has no business to see. All of it is there."""
    key = f"/etc/{machine.slug}/service.key"
    return ["/etc/passwd", "/etc/shadow", "/home", "/root", "/proc/1", "/proc/sys", "/sys", "/var/log", key]


def test_unit_keeps_from_the_service_what_it_promises(service: Machine) -> None:
    found = found_by_probe(service, service.slug)
    (user,) = found.pop("user ids")
    assert 61184 <= user <= 65519, "a dynamic user (systemd.exec(5)), and no group but its own"
    assert found.pop("threads") <= 128
    assert found == {
        "capabilities": ["0000000000000000"],
        "no new privileges": "1",
        "seccomp": "2",
        "writable": ["/tmp", "/var/tmp", f"/var/lib/{service.slug}"],  # noqa: S108
        "runs what it writes": [],
        "runs": [],
        "sees": [],
        "other processes": [],
        "devices": [],
        "sends to loopback": True,
        "sends to others": False,
        "core size": 0,
        "allowed": [],
    }


def test_bare_unit_keeps_nothing_from_it(service: Machine) -> None:
    """The control for each answer above."""
    found = found_by_probe(service, "bare")
    assert found.pop("user ids") == [0]
    assert found.pop("threads") > 128
    assert found.pop("capabilities")[-1] != "0000000000000000"
    assert found.pop("writable")[0] == "/"
    assert len(found.pop("runs what it writes")) == 3
    assert len(found.pop("runs")) == 2
    assert found.pop("sees") == hidden(service)
    assert found.pop("other processes")
    assert found.pop("devices")
    assert found.pop("core size") != 0
    assert len(found.pop("allowed")) == 18
    assert found == {
        "no new privileges": "0",
        "seccomp": "0",
        "sends to loopback": True,
        "sends to others": True,
    }


def test_service_answers_and_keeps_its_records_over_a_restart(service: Machine) -> None:
    service.request("PUT", RECORD, {"value": "hello"})
    service.start()
    assert service.request("GET", RECORD) == {"name": "greeting", "value": "hello"}


def test_stopping_ends_it_within_three_seconds_and_with_status_0(service: Machine) -> None:
    begun = time.monotonic()
    service.shell(f"systemctl stop {service.slug}")
    assert time.monotonic() - begun < 3
    assert service.property("Result") == "success"
    assert service.property("ExecMainStatus") == "0"


def test_log_is_json_under_the_name_of_the_service(service: Machine) -> None:
    command = ["journalctl", "--output=cat", "--identifier", service.slug, "--grep", "listening"]
    *_, last = service.run(*command).stdout.splitlines()
    assert json.loads(last)["url"] == "http://127.0.0.1:8000"


def test_phrase_that_was_shown_is_in_no_log(service: Machine, phrase: list[str]) -> None:
    logged = service.run("journalctl", "--no-pager", "--output=cat").stdout
    assert service.slug in logged, "control"
    rows = [" ".join(phrase[at : at + 2]) for at in range(0, 24, 2)]
    assert len(rows) == 12
    assert [row for row in rows if re.search(row.replace(" ", r"\W+(?:\d+\W+)?"), logged)] == []


def test_commands_have_the_key_and_the_user_of_the_service(service: Machine) -> None:
    _, commands, _ = blocks(service.guide, "Start")
    said = service.shell(commands)
    assert "Nothing is wrong with the files, the key, the envelope, the database, the rotation" in said
    assert "first.backup holds" in said
    assert "listening" in said
    assert "active (running)" in said
    owners = set(service.shell(f"stat --format %u /var/lib/{service.slug}/*").split())
    assert len(owners) == 1
    assert owners != {"0"}


def test_process_that_is_killed_is_started_again(service: Machine) -> None:
    before = int(service.property("NRestarts"))
    service.shell(f"kill -KILL {service.property('MainPID')}")
    eventually("it is started again", lambda: service.property("NRestarts") == str(before + 1), patience=20)
    eventually("it is ready", service.is_ready, patience=20)


def refuses(service: Machine) -> str:
    """Start a service that cannot, and return what the log says; it must not be tried again and again."""
    before = service.journal()
    service.shell(f"systemctl stop {service.slug}")
    service.run("systemctl", "start", service.slug)
    eventually("it has given up", lambda: service.property("ActiveState") == "failed", patience=20)
    time.sleep(4)  # twice RestartSec
    assert service.property("ActiveState") == "failed"
    assert service.property("NRestarts") == "0"
    return service.journal().removeprefix(before)


def test_wrong_key_is_named_in_the_log_and_not_tried_again(service: Machine) -> None:
    key = f"/etc/{service.slug}/service.key"
    service.shell(f"cp -p {key} /root/kept; head -c 32 /dev/urandom > {key}")
    try:
        said = refuses(service)
    finally:
        service.shell(f"mv /root/kept {key}")
    assert "does not open" in said
    assert "envelope.json" in said


def test_missing_key_is_named_by_systemctl_status(service: Machine) -> None:
    key = f"/etc/{service.slug}/service.key"
    service.shell(f"systemctl stop {service.slug}; mv {key} /root/kept")
    try:
        assert service.run("systemctl", "start", service.slug).returncode != 0
        shown = service.run("systemctl", "status", "--no-pager", service.slug).stdout
    finally:
        service.shell(f"mv /root/kept {key}")
    message = f"AssertFileNotEmpty={key} was not met"
    assert message in shown
    assert f"`{message}`" in service.guide
    assert shown.splitlines()[-1].endswith(f"Assertion failed for {service.slug}.service - {service.slug}.")


def test_memory_beyond_the_limit_kills_who_takes_it(service: Machine) -> None:
    service.write("/root/allocate.py", ALLOCATE)
    assert service.probe("bare", "/root/allocate.py") == f"{400 << 20}\n", "control: there is room"
    with pytest.raises(AssertionError, match="status=9/KILL"):
        service.probe(service.slug, "/root/allocate.py")


def test_key_that_is_sealed_to_the_machine_opens_the_records(service: Machine) -> None:
    service.request("PUT", RECORD, {"value": "hello"})
    *_, seal = blocks(service.guide, "Start")
    assert "are whole" in service.shell(seal)
    sealed = service.shell(f"cat /etc/{service.slug}/service-key.cred")
    assert len(sealed) > 100
    service.shell(f"mv /etc/{service.slug}/service.key /root/kept")
    try:
        service.start()
        assert service.request("GET", RECORD)["value"] == "hello"
    finally:
        service.shell(f"mv /root/kept /etc/{service.slug}/service.key")


def test_update_of_the_guide_keeps_the_records(service: Machine) -> None:
    """Its first part is the command of the installation, which has built the machine and needs a network."""
    service.request("PUT", RECORD, {"value": "hello"})
    install, *_ = blocks(service.guide, "Install")
    (update,) = blocks(service.guide, "Update and roll back")
    sync = re.compile(r"^sudo UV_PROJECT_ENVIRONMENT=.*?[^\\]\n", re.DOTALL | re.MULTILINE)
    assert sync.findall(update) == sync.findall(install)
    assert "before.backup holds 1 record" in service.shell(sync.sub("", update))
    eventually("the service is ready", service.is_ready, patience=20)
    assert service.request("GET", RECORD)["value"] == "hello"


def answers_on(address: str) -> bool:
    """Tell whether the service answers here, outside its machine."""
    try:
        with urllib.request.urlopen(f"http://{address}:8000/readyz", timeout=3) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def test_drop_in_opens_it_to_the_addresses_that_it_names(service: Machine) -> None:
    (network,) = service.container.attrs["NetworkSettings"]["Networks"].values()
    listens = "[Service]\nEnvironment=SERVICE_HOST=0.0.0.0\n"
    for allowed, expected in (("", False), (f"IPAddressAllow={network['Gateway']}", True)):
        service.drop_in(listens + allowed)
        service.start()
        assert answers_on(network["IPAddress"]) is expected


def test_python_of_another_place_runs_when_its_folder_is_named(service: Machine) -> None:
    other = "/usr/local/bin/python3"
    service.write("/root/hello.py", "print('hello')")
    with pytest.raises(AssertionError, match="203/EXEC"):
        service.probe(service.slug, "/root/hello.py", python=other)
    service.drop_in("[Service]\nBindReadOnlyPaths=/usr/local\nExecPaths=+/usr/local\n")
    assert service.probe(service.slug, "/root/hello.py", python=other) == "hello\n"


DEVICE = """
import json, os
def opens(path):
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return error.strerror
    return "opens"
print(json.dumps([opens("/dev/tpmrm0"), opens("/dev/other"), len(os.getgroups())]))
"""


def test_overlay_for_a_tpm_opens_its_device_and_no_other(service: Machine, variants: Variants) -> None:
    """Two nodes of one harmless device, that any user may open, stand for a TPM and for something else."""
    overlay = (variants.rendered("tpm") / "deploy" / "tpm.conf").read_text("utf-8")
    nodes = ("/dev/tpmrm0", "/dev/other")
    service.shell("getent group tss || groupadd --system tss; rm -f /dev/tpmrm0 /dev/other")
    service.shell("".join(f"mknod -m 0660 {node} c 10 229; chgrp tss {node};" for node in nodes))
    service.write("/root/device.py", DEVICE)

    def tried(drop_in: str) -> list[object]:
        service.drop_in(drop_in)
        found: list[object] = json.loads(service.probe(service.slug, "/root/device.py"))
        return found

    missing = "No such file or directory"
    assert tried("") == [missing, missing, 1], "control"
    assert tried(overlay) == ["opens", missing, 2]
    assert tried(overlay.replace("SupplementaryGroups=tss", "")) == ["Permission denied", missing, 1], (
        "control"
    )
    without = tried(overlay.replace("DeviceAllow=/dev/tpmrm0 rw", ""))
    assert without == ["Operation not permitted", missing, 2], "control"
