"""The probe of a real software TPM."""

import hashlib
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_tpm import character_device
from service_security.keys.tpm.address import Address, parse_address
from service_security.keys.tpm.errors import TpmFailedError
from service_security.keys.tpm.framing import GET_CAPABILITY, PROPERTIES
from service_security.keys.tpm.report import probe
from service_security.keys.tpm.transport import execute, open_transport
from software_tpm import HANDLES, need, tcp_swtpm, unix_swtpm


@pytest.fixture(scope="module")
def software_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a software TPM that no test changes."""
    with unix_swtpm(tmp_path_factory.mktemp("tpm")) as address:
        yield address


@pytest.fixture(scope="module")
def tcp_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a software TPM, whose control channel is the next port, as tpm2-tools want it."""
    with tcp_swtpm(tmp_path_factory.mktemp("tcp")) as port:
        yield port


def test_software_tpm_can_be_used_and_tells_who_it_is(software_tpm: str) -> None:
    """A TPM fresh from its maker is usable, over a UNIX socket."""
    report = probe(software_tpm)
    assert report.obstacle is None
    assert str(report.address) == software_tpm
    assert (report.manufacturer, report.vendor) == ("IBM", "SW TPM")
    assert re.fullmatch("[0-9a-f]{8}\\.[0-9a-f]{8}", report.firmware)
    assert report.missing_algorithms == ()
    assert (report.root_key, report.owner_hierarchy) == (False, True)
    assert (report.owner_password, report.lockout_password, report.locked_out) == (False,) * 3
    assert (report.failed_tries, report.max_tries, report.lockout_interval) == (0, 3, 1000)


def test_character_device_tells_what_the_socket_tells(software_tpm: str) -> None:
    """The path of a device works too: here a terminal that passes a TPM on."""
    through_socket = probe(software_tpm)

    def forward(command: bytes) -> bytes:
        with open_transport(parse_address(software_tpm)) as transport:
            return transport.exchange(command)

    with character_device(forward) as path:
        through_device = probe(path)
    assert vars(through_device) == {**vars(through_socket), "address": Address("device", path)}


def test_probe_agrees_with_tpm2_getcap(tcp_port: int) -> None:
    """Another implementation reads the same numbers, over TCP."""
    need("tpm2_getcap")

    def raw(group: str) -> dict[str, int]:
        transport = f"swtpm:host=127.0.0.1,port={tcp_port}"
        told = subprocess.run(
            ["tpm2_getcap", "--tcti", transport, group],  # noqa: S607 - wherever it is installed
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        values = re.findall(r"(TPM2_PT_\w+):\s+(?:raw: )?(0x[0-9A-F]+|0)\s", told.stdout)
        assert values
        return {name: int(value, 16) for name, value in values}

    report = probe(f"tcp:127.0.0.1:{tcp_port}")
    fixed, variable = raw("properties-fixed"), raw("properties-variable")
    assert report.manufacturer.encode() == fixed["TPM2_PT_MANUFACTURER"].to_bytes(4).rstrip(b"\0")
    assert report.firmware == "{:08x}.{:08x}".format(
        fixed["TPM2_PT_FIRMWARE_VERSION_1"], fixed["TPM2_PT_FIRMWARE_VERSION_2"]
    )
    assert report.failed_tries == variable["TPM2_PT_LOCKOUT_COUNTER"]
    assert report.max_tries == variable["TPM2_PT_MAX_AUTH_FAIL"]
    assert report.lockout_interval == variable["TPM2_PT_LOCKOUT_INTERVAL"]


def set_max_tries(address: str, tries: int) -> None:
    """Change a TPM, by ``TPM2_DictionaryAttackParameters`` (Part 3, 25.3)."""
    password = struct.pack(">IHBH", 0x40000009, 0, 1, 0)
    body = struct.pack(">II", 0x4000000A, len(password)) + password
    body += struct.pack(">III", tries, 1000, 1000)
    with open_transport(parse_address(address)) as transport:
        answer = transport.exchange(struct.pack(">HII", 0x8002, 10 + len(body), 0x13A) + body)
    tag, size, code = struct.unpack_from(">HII", answer)
    assert (tag, size, code) == (0x8002, len(answer), 0)


def state(address: str, folder: Path) -> list[bytes]:
    """Return all that a TPM shows of its state, and digests of what it keeps on disk."""
    shown = []
    with open_transport(parse_address(address)) as transport:
        for pcrs in (b"\xff\0\0", b"\0\xff\0", b"\0\0\xff"):  # TPM2_PCR_Read, Part 3, 22.4
            selection = struct.pack(">IHB", 1, 0x000B, 3) + pcrs
            shown.append(execute(transport, 0x17E, selection))
        for kind in (0x01, 0x02, 0x03, 0x80, 0x81):  # NV, sessions, saved, transient, persistent
            request = struct.pack(">III", HANDLES, kind << 24, 100)
            shown.append(execute(transport, GET_CAPABILITY, request))
        request = struct.pack(">III", PROPERTIES, 0x200, 100)
        shown.append(execute(transport, GET_CAPABILITY, request))
    kept = sorted(path for path in folder.iterdir() if path.is_file())
    assert kept
    return shown + [hashlib.sha256(path.read_bytes()).digest() for path in kept]


def test_probe_changes_nothing(tmp_path: Path) -> None:
    """Registers, handles, counters and stored state are the same after a probe."""
    with unix_swtpm(tmp_path) as address:
        before = state(address, tmp_path)
        probe(address)
        assert state(address, tmp_path) == before
        set_max_tries(address, 5)
        assert state(address, tmp_path) != before, "a change would not have been noticed"


def test_lock_out_is_reported_and_is_no_error(tmp_path: Path) -> None:
    with unix_swtpm(tmp_path) as address:
        set_max_tries(address, 0)  # so none is left (Part 3, 25.3)
        report = probe(address)
    assert report.locked_out
    assert report.obstacle is None, "a sealed key has no password that counts"


def test_tpm_that_was_not_started_is_told(tmp_path: Path) -> None:
    """The probe does not start a TPM: that would be a change."""
    with (
        unix_swtpm(tmp_path, flags="not-need-init") as address,
        pytest.raises(TpmFailedError, match="has not been started"),
    ):
        probe(address)
