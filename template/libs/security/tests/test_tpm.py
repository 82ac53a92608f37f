"""The probe of a TPM: against a real software TPM, and against devices that misbehave.

swtpm and tpm2-tools are packages of Debian, Ubuntu and Alpine. Without them their tests are
skipped, or fail if ``SERVICE_SECURITY_REQUIRE_TPM=1``.
"""

import argparse
import contextlib
import errno
import hashlib
import os
import pty
import re
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service_security.cli import main
from service_security.errors import ConfigurationError, KeyUnavailableError
from service_security.keys import tpm

NOBODY = 65534
ADDRESS = tpm.Address("device", "/dev/tpmrm0")
PROPERTIES, ALGORITHMS, CURVES, HANDLES = 6, 0, 8, 1
fuzz = settings(derandomize=True, database=None, deadline=None, max_examples=150)


# ------------------------------------------------------------------ TPMs to speak to


def need(program: str) -> None:
    """Skip the test without ``program``, or fail it where a TPM is required."""
    if shutil.which(program) is None:
        message = f"{program} is not installed (packages: swtpm, tpm2-tools)"
        if os.environ.get("SERVICE_SECURITY_REQUIRE_TPM") == "1":
            pytest.fail(message)
        pytest.skip(message)


@contextlib.contextmanager
def swtpm(folder: Path, *endpoints: str, flags: str, at: tpm.Address) -> Iterator[bool]:
    """Run a software TPM with its state in ``folder``; say whether it came up."""
    need("swtpm")
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder},mode=0600", *endpoints]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*command, "--flags", flags], stdout=quiet, stderr=quiet)
    try:
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(tpm.TpmError), tpm.open_transport(at, timeout=1):
                break
            time.sleep(0.005)
        yield process.poll() is None
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def unix_swtpm(folder: Path, flags: str = "not-need-init,startup-clear") -> Iterator[str]:
    """Run a software TPM on a UNIX socket in ``folder``."""
    path = folder / "socket"
    at = tpm.Address("unix", str(path))
    with swtpm(folder, "--server", f"type=unixio,path={path}", flags=flags, at=at) as running:
        assert running
        yield str(at)


@pytest.fixture(scope="module")
def software_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a software TPM that no test changes."""
    with unix_swtpm(tmp_path_factory.mktemp("tpm")) as address:
        yield address


@pytest.fixture(scope="module")
def tcp_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a software TPM, whose control channel is the next port, as tpm2-tools want it."""
    for attempt in range(20):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with swtpm(
            tmp_path_factory.mktemp(f"tcp{attempt}"),
            *("--server", f"type=tcp,port={port},bindaddr=127.0.0.1"),
            *("--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1"),
            flags="not-need-init,startup-clear",
            at=tpm.Address("tcp", "127.0.0.1", port),
        ) as running:
            if running:
                yield port
                return
    pytest.fail("no two neighbouring ports were free")


@contextlib.contextmanager
def character_device(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Make a character device, a pseudo-terminal, that answers each command by ``answer``."""
    controller, device = pty.openpty()
    tty.setraw(device)
    stop, stopped = os.pipe()

    def serve() -> None:
        while stop not in (ready := select.select([controller, stop], [], [])[0]):
            assert ready
            os.write(controller, answer(os.read(controller, 4096)))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield os.ttyname(device)
    finally:
        os.write(stopped, b"x")
        thread.join()
        for descriptor in (controller, device, stop, stopped):
            os.close(descriptor)


@contextlib.contextmanager
def listener(folder: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server on a UNIX socket that treats one connection by ``serve``."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def accept() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"unix:{path}"
        finally:
            thread.join()


def response(parameters: bytes = b"", code: int = 0, tag: int = 0x8001) -> bytes:
    """Return a response of a TPM."""
    return struct.pack(">HII", tag, 10 + len(parameters), code) + parameters


class FakeTpm:
    """A TPM in memory, whose lists, page size and first response codes a test chooses."""

    def __init__(self, *codes: int, page: int = 1000, test_result: int = 0) -> None:
        self.codes = list(codes)
        self.page = page
        self.test_result = test_result
        self.commands: list[int] = []
        self.lists: dict[int, dict[int, int]] = {
            PROPERTIES: {
                0x100: 0x322E3000,
                0x105: int.from_bytes(b"ACME"),
                0x106: int.from_bytes(b"Part"),
                0x107: int.from_bytes(b" 7\0\0"),
                0x10B: 7,
                0x10C: 0xFE,
                0x200: 0,
                0x20E: 1,
                0x20F: 32,
                0x210: 600,
                0x211: 86400,
            },
            ALGORITHMS: {0x06: 2, 0x0B: 4, 0x23: 9, 0x43: 2},
            CURVES: {3: 0, 4: 0},
        }

    def exchange(self, command: bytes) -> bytes:
        """Answer a command."""
        tag, size, code = struct.unpack_from(">HII", command)
        assert (tag, size) == (0x8001, len(command))
        self.commands.append(code)
        if self.codes:
            return response(code=self.codes.pop(0))
        if code == tpm.GET_TEST_RESULT:
            return response(struct.pack(">HI", 0, self.test_result))
        capability, first, count = struct.unpack_from(">III", command, 10)
        form = {PROPERTIES: ">II", ALGORITHMS: ">HI", CURVES: ">H"}[capability]
        items = [item for item in self.lists[capability].items() if item[0] >= first]
        page = items[: min(count, self.page)]
        width = 1 if capability == CURVES else 2
        body = b"".join(struct.pack(form, *item[:width]) for item in page)
        more = len(page) < len(items)
        return response(struct.pack(">BII", more, capability, len(page)) + body)

    def ask(self) -> tpm.TpmReport:
        """Return the report on it, without waiting."""
        return tpm.ask(self, ADDRESS, sleep=lambda _: None)


# ------------------------------------------------------------------ a real software TPM


def test_software_tpm_can_be_used_and_tells_who_it_is(software_tpm: str) -> None:
    """A TPM fresh from its maker is usable, over a UNIX socket."""
    report = tpm.probe(software_tpm)
    assert report.usable
    assert str(report.address) == software_tpm
    assert (report.manufacturer, report.vendor) == ("IBM", "SW TPM")
    assert re.fullmatch("[0-9a-f]{8}\\.[0-9a-f]{8}", report.firmware)
    assert report.missing_algorithms == ()
    assert (report.owner_password, report.lockout_password, report.locked_out) == (False,) * 3
    assert (report.failed_tries, report.max_tries, report.lockout_interval) == (0, 3, 1000)


def test_character_device_tells_what_the_socket_tells(software_tpm: str) -> None:
    """The path of a device works too: here a terminal that passes a TPM on."""
    through_socket = tpm.probe(software_tpm)

    def forward(command: bytes) -> bytes:
        with tpm.open_transport(tpm.parse_address(software_tpm)) as transport:
            return transport.exchange(command)

    with character_device(forward) as path:
        through_device = tpm.probe(path)
    assert vars(through_device) == {**vars(through_socket), "address": tpm.Address("device", path)}


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
            timeout=30,
        )
        values = re.findall(r"(TPM2_PT_\w+):\s+(?:raw: )?(0x[0-9A-F]+|0)\s", told.stdout)
        assert values
        return {name: int(value, 16) for name, value in values}

    report = tpm.probe(f"tcp:127.0.0.1:{tcp_port}")
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
    with tpm.open_transport(tpm.parse_address(address)) as transport:
        answer = transport.exchange(struct.pack(">HII", 0x8002, 10 + len(body), 0x13A) + body)
    tag, size, code = struct.unpack_from(">HII", answer)
    assert (tag, size, code) == (0x8002, len(answer), 0)


def state(address: str, folder: Path) -> list[bytes]:
    """Return all that a TPM shows of its state, and digests of what it keeps on disk."""
    shown = []
    with tpm.open_transport(tpm.parse_address(address)) as transport:
        for pcrs in (b"\xff\0\0", b"\0\xff\0", b"\0\0\xff"):  # TPM2_PCR_Read, Part 3, 22.4
            selection = struct.pack(">IHB", 1, 0x000B, 3) + pcrs
            shown.append(tpm.execute(transport, 0x17E, selection))
        for kind in (0x01, 0x02, 0x03, 0x80, 0x81):  # NV, sessions, saved, transient, persistent
            request = struct.pack(">III", HANDLES, kind << 24, 100)
            shown.append(tpm.execute(transport, tpm.GET_CAPABILITY, request))
        request = struct.pack(">III", PROPERTIES, 0x200, 100)
        shown.append(tpm.execute(transport, tpm.GET_CAPABILITY, request))
    kept = sorted(path for path in folder.iterdir() if path.is_file())
    assert kept
    return shown + [hashlib.sha256(path.read_bytes()).digest() for path in kept]


def test_probe_changes_nothing(tmp_path: Path) -> None:
    """Registers, handles, counters and stored state are the same after a probe."""
    with unix_swtpm(tmp_path) as address:
        before = state(address, tmp_path)
        tpm.probe(address)
        assert state(address, tmp_path) == before
        set_max_tries(address, 5)
        assert state(address, tmp_path) != before, "a change would not have been noticed"


def test_lock_out_makes_it_unusable(tmp_path: Path) -> None:
    """A real TPM in lock-out is reported as such, and not as an error."""
    with unix_swtpm(tmp_path) as address:
        set_max_tries(address, 0)  # so none is left (Part 3, 25.3)
        report = tpm.probe(address)
    assert report.locked_out
    assert not report.usable
    assert "cannot be used for a key now: it is locked out" in tpm.describe(report)


def test_tpm_that_was_not_started_is_told(tmp_path: Path) -> None:
    """The probe does not start a TPM: that would be a change."""
    with (
        unix_swtpm(tmp_path, flags="not-need-init") as address,
        pytest.raises(tpm.TpmFailedError, match="has not been started"),
    ):
        tpm.probe(address)


# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/dev/tpmrm0", tpm.Address("device", "/dev/tpmrm0")),
        ("unix:/run/swtpm/socket", tpm.Address("unix", "/run/swtpm/socket")),
        ("tcp:127.0.0.1:2321", tpm.Address("tcp", "127.0.0.1", 2321)),
        ("tcp:127.8.9.10:65535", tpm.Address("tcp", "127.8.9.10", 65535)),
        ("tcp:[::1]:1", tpm.Address("tcp", "::1", 1)),
    ],
)
def test_address_reads_and_writes_back(text: str, address: tpm.Address) -> None:
    """Each form of an address is understood and shown as it was given."""
    assert tpm.parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "tpmrm0", "dev/tpmrm0", "unix:", "unix:socket", "tcp:", "tcp:127.0.0.1"),
        *("tcp:127.0.0.1:", "tcp:127.0.0.1:0", "tcp:127.0.0.1:65536", "tcp:127.0.0.1:-1"),
        *("tcp:127.0.0.1:٣", "udp:127.0.0.1:1", "/dev/tpm\n0", "/dev/tpm\x1b[2J", "/dev/\udcff"),
        "unix:/" + "a" * 107,  # one byte more than a socket's address holds
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """What cannot be an address is refused, and shown harmlessly."""
    with pytest.raises(ConfigurationError, match="is not the address of a TPM") as refused:
        tpm.probe(text)
    assert str(refused.value).isascii()
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "host",
    [
        *("192.0.2.1", "0.0.0.0", "[::]", "[2001:db8::1]", "localhost", "tpm.example.com"),  # noqa: S104 - refused here
        *("127.0.0.1.example.com", "127.1", "", "[fe80::1%lo]"),
    ],
)
def test_tpm_beyond_loopback_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket is opened, and no name looked up, for a TPM elsewhere."""
    monkeypatch.delattr(socket, "socket")
    with pytest.raises(ConfigurationError, match="not spoken to over a network"):
        tpm.probe(f"tcp:{host}:2321")


@fuzz
@given(
    st.sampled_from(["", "/", "unix:", "unix:/", "tcp:", "tcp:127.0.0.1:", "tcp:[::1]:"]),
    st.text(alphabet="/:[]unixtcp0123456789.-%\0\n\x1b é٣\udcff", max_size=30),
)
def test_any_text_is_an_address_or_refused(start: str, rest: str) -> None:
    """No text makes the parser fail otherwise."""
    try:
        address = tpm.parse_address(start + rest)
    except ConfigurationError:
        return
    assert tpm.parse_address(str(address)) == address


# ------------------------------------------------------------------ no TPM, or none for this user


def test_no_device_is_told(tmp_path: Path) -> None:
    """A missing device node means no TPM."""
    with pytest.raises(tpm.TpmAbsentError, match=r"There is no TPM at .*No such file"):
        tpm.probe(str(tmp_path / "tpmrm0"))


def test_tpm_errors_are_those_of_an_unavailable_key() -> None:
    """Callers that know keys alone need not know TPMs."""
    assert issubclass(tpm.TpmError, KeyUnavailableError)
    assert {kind.__base__ for kind, _ in tpm._FAILURES.values()} == {tpm.TpmError}


@pytest.mark.parametrize("number", [errno.ENXIO, errno.ENODEV])
def test_device_without_a_chip_is_told(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device node can be left over with nothing behind it."""
    with pytest.raises(tpm.TpmAbsentError, match=re.escape(os.strerror(number))):
        probe_with_open_failing(number, monkeypatch)


def test_device_held_by_another_program_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare device serves one program; the advice is the shared one."""
    with pytest.raises(tpm.TpmBusyError, match="Use /dev/tpmrm0"):
        probe_with_open_failing(errno.EBUSY, monkeypatch)


def test_device_that_the_container_may_not_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container engine refuses by EPERM what it was not told to allow."""
    with pytest.raises(tpm.TpmForbiddenError, match=r"docker-compose\.tpm\.yml"):
        probe_with_open_failing(errno.EPERM, monkeypatch)


def probe_with_open_failing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe a character device that the kernel refuses to open with an error of that number."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        tpm.probe("/dev/null")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's rights where the tests run as root."""
    groups = os.getgroups()
    if root := os.geteuid() == 0:
        os.setgroups([])
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
            os.setgroups(groups)


@pytest.mark.parametrize(
    ("mode", "owner", "group", "advice"),
    [
        (0o060, 0, 4242, "add that user to group {group} and log in again"),
        (0o000, 0, 4242, "mode 0000 does not let its group {group} read and write"),
        (0o060, NOBODY, 0, "though in its group {group}"),
    ],
)
def test_refused_device_names_the_group(mode: int, owner: int, group: int, advice: str) -> None:
    """The number of the group is what a container's configuration needs."""
    with character_device(lambda command: command) as path:
        if os.geteuid() == 0:
            os.chown(path, owner, group)
        elif mode:  # its owner is this user, who can give it only a group of their own
            os.chown(path, -1, os.getegid())
            group, advice = os.getegid(), "though in its group {group}"
        else:
            group = Path(path).stat().st_gid
        Path(path).chmod(mode)
        with as_nobody(), pytest.raises(tpm.TpmForbiddenError) as refused:
            tpm.probe(path)
    assert advice.format(group=group) in str(refused.value)


def test_device_in_a_closed_folder_is_told(tmp_path: Path) -> None:
    """The device's own group cannot be read then."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    with as_nobody(), pytest.raises(tpm.TpmForbiddenError, match="a folder above it is closed"):
        tpm.probe(str(tmp_path / "closed" / "tpmrm0"))


def test_refused_socket_names_the_group(tmp_path: Path) -> None:
    """Sockets have modes and groups as devices have."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0)
        with as_nobody(), pytest.raises(tpm.TpmForbiddenError, match="may not open"):
            tpm.probe(f"unix:{path}")


def test_nothing_listening_is_told(tmp_path: Path) -> None:
    """A missing socket file and a closed port mean no TPM."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"unix:{tmp_path / 'none'}", f"tcp:127.0.0.1:{port}", f"tcp:[::1]:{port}"):
        with pytest.raises(tpm.TpmAbsentError, match="No TPM listens at"):
            tpm.probe(address)


def test_crowded_socket_is_busy(tmp_path: Path) -> None:
    """A software TPM serves one program at a time; its queue can be full."""
    path = str(tmp_path / "s")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        with pytest.raises(tpm.TpmBusyError, match="other programs are waiting"):
            tpm.probe(f"unix:{path}", timeout=0.05)


# ------------------------------------------------------------------ what is not a TPM


def test_file_is_not_a_tpm(tmp_path: Path) -> None:
    """A file is refused unopened: its content is not overwritten by a command."""
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(tpm.NotATpmError, match="not a character device"):
        tpm.probe(str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dev/null", tpm.NotATpmError),  # ends
        ("/dev/zero", tpm.NotATpmError),  # answers zeros
        ("/dev/full", tpm.TpmFailedError),  # takes no command
    ],
)
def test_other_devices_are_not_a_tpm(path: str, kind: type[tpm.TpmError]) -> None:
    """Devices that every machine has: one ends, one answers zeros, one fails."""
    with pytest.raises(kind, match=r"TPM 2\.0|does not carry out commands"):
        tpm.probe(path)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not begin like one"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not begin like one"),
        (response(tag=0x8002), "answers with a session"),
        (response(code=0x1E, tag=0x00C4), "This is a TPM 1.2"),
        (b"\x80\x01" + b"\xff" * 8, "says that it has 4294967295 bytes"),
        (b"\x80\x01\x00\x00\x00\x09" + bytes(4), "says that it has 9 bytes"),
        (response(bytes(6)) + b"more", "a response of 20 bytes says that it has 16"),
        (response(b"x", code=0x101), "a refusal"),
        (response(bytes(5)), "ends early"),
        (response(bytes(7)), "goes on after its end"),
        (response(struct.pack(">HI", 500, 0)), "ends early"),
        (response(code=0x143), "refuses command 0x17c with response code 0x143"),
    ],
)
def test_wrong_answer_is_told(answer: bytes, told: str) -> None:
    """One wrong thing a case: the header, a size, a code, the rest."""
    with character_device(lambda _: answer) as path, pytest.raises(tpm.NotATpmError, match=told):
        tpm.probe(path)


def test_device_that_takes_half_a_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM takes a command in one write; the second half would be a command of its own."""
    monkeypatch.setattr(os, "write", lambda _, data: len(data) // 2)
    with pytest.raises(tpm.NotATpmError, match="did not take a command"):
        tpm.probe("/dev/null")


@pytest.mark.parametrize("said", [b"", b"\x80\x01", response(bytes(6))[:-1]])
def test_connection_that_ends_early_is_told(said: bytes, tmp_path: Path) -> None:
    """Nothing, half a header, and all but one byte of a response."""

    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(said)

    with listener(tmp_path, serve) as address, pytest.raises(tpm.NotATpmError, match="ended"):
        tpm.probe(address)


def test_connection_that_breaks_is_told(tmp_path: Path) -> None:
    """The other end is gone before the command."""
    closed = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.close()
        closed.set()

    with (
        listener(tmp_path, serve) as address,
        tpm.open_transport(tpm.parse_address(address)) as transport,
    ):
        assert closed.wait(10)
        with pytest.raises(tpm.NotATpmError, match="broke the connection"):
            transport.exchange(bytes(10))


@pytest.mark.parametrize("part", [b"", response(bytes(6))[:12]])
def test_tpm_that_does_not_answer_is_told_in_time(part: bytes, tmp_path: Path) -> None:
    """Silence at once, and in the middle of a response."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(part)
        over.wait(10)

    with listener(tmp_path, serve) as address:
        started = time.monotonic()
        with pytest.raises(tpm.TpmSilentError, match="did not answer"):
            tpm.probe(address, timeout=0.05)
        assert time.monotonic() - started < 2
        over.set()


def test_tpm_that_answers_byte_by_byte_is_not_waited_for(tmp_path: Path) -> None:
    """The timeout is for the whole probe, not for each read."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"\x80\x01\x00\x00\x10\x00")
        for _ in range(4000):
            connection.sendall(b"\0")
            time.sleep(0.005)

    with listener(tmp_path, serve) as address, pytest.raises(tpm.TpmSilentError):
        tpm.probe(address, timeout=0.1)


def test_command_that_is_too_large_is_refused() -> None:
    """A mistake of the caller, found before it is sent."""
    with pytest.raises(ValueError, match="4096 bytes; this one has 4097"):
        tpm.execute(FakeTpm(), tpm.GET_CAPABILITY, bytes(4087))


# ------------------------------------------------------------------ what a TPM tells


def test_report_tells_what_the_tpm_tells() -> None:
    """Every field comes from its own property."""
    assert FakeTpm().ask() == tpm.TpmReport(
        address=ADDRESS,
        manufacturer="ACME",
        vendor="Part 7",
        firmware="00000007.000000fe",
        missing_algorithms=(),
        owner_password=False,
        lockout_password=False,
        locked_out=False,
        failed_tries=1,
        max_tries=32,
        lockout_interval=600,
    )


@pytest.mark.parametrize(
    ("bit", "field"), [(0, "owner_password"), (2, "lockout_password"), (9, "locked_out")]
)
def test_each_flag_has_its_bit(bit: int, field: str) -> None:
    """The bits of TPMA_PERMANENT (Part 2, 8.6), one at a time."""
    fake = FakeTpm()
    fake.lists[PROPERTIES][0x200] = 1 << bit
    flags = ("owner_password", "lockout_password", "locked_out")
    assert [flag for flag in flags if getattr(fake.ask(), flag)] == [field]


@pytest.mark.parametrize(
    ("capability", "item", "missing"),
    [
        (ALGORITHMS, 0x06, "AES-128-CFB"),
        (ALGORITHMS, 0x43, "AES-128-CFB"),
        (ALGORITHMS, 0x0B, "SHA-256"),
        (ALGORITHMS, 0x23, "ECC P-256"),
        (CURVES, 3, "ECC P-256"),
    ],
)
def test_missing_algorithm_makes_it_unusable(capability: int, item: int, missing: str) -> None:
    """Each algorithm and the curve are needed."""
    fake = FakeTpm()
    del fake.lists[capability][item]
    report = fake.ask()
    assert report.missing_algorithms == (missing,)
    assert not report.usable
    assert f"cannot be used for a key: it lacks {missing}." in tpm.describe(report)


@pytest.mark.parametrize(
    ("head", "curves", "told"),
    [
        ((0, CURVES, 2), (4, 3), "out of order"),
        ((0, CURVES, 2), (3, 3), "out of order"),
        ((0, CURVES, 1), (1,), "out of order"),  # below the first that was asked for
        ((0, CURVES, 2), (3, 4, 5), "goes on after its end"),
        ((0, CURVES, 3), (3, 4), "ends early"),
        ((0, CURVES, 4), (3, 4, 5, 6), "lists 4 items where 3 were asked for"),
        ((0, CURVES, 0xFFFFFFFF), (), "lists 4294967295 items where 3 were asked for"),
        ((1, CURVES, 0), (), "lists 0 items"),  # more data, and no item to go on from
        ((2, CURVES, 1), (3,), "another list"),
        ((0, ALGORITHMS, 1), (3,), "another list"),
    ],
)
def test_list_with_one_thing_wrong_is_told(
    head: tuple[int, int, int], curves: tuple[int, ...], told: str
) -> None:
    """The flag, the kind, the count, the order and the end of a list are checked."""
    answer = struct.pack(">BII", *head) + b"".join(curve.to_bytes(2) for curve in curves)
    with pytest.raises(tpm.NotATpmError, match=told):
        tpm.parse_capability(answer, capability=CURVES, first=2, count=3)


@pytest.mark.parametrize("page", [1, 2, 3])
def test_list_that_comes_in_pages_is_read_whole(page: int) -> None:
    """A TPM may answer with less than it was asked for, and say that there is more."""
    fake = FakeTpm(page=page)
    assert fake.ask() == FakeTpm().ask()
    assert len(fake.commands) > len(FakeTpm().lists)


def test_only_questions_are_asked() -> None:
    """The probe sends no command that could change anything."""
    fake = FakeTpm(page=3)
    fake.ask()
    assert set(fake.commands) == {tpm.GET_CAPABILITY, tpm.GET_TEST_RESULT}


@pytest.mark.parametrize("number", [0x100, 0x105, 0x10B, 0x10C, 0x200, 0x20E, 0x20F, 0x210])
def test_missing_property_is_told(number: int) -> None:
    """Each property without which there is no report."""
    fake = FakeTpm()
    del fake.lists[PROPERTIES][number]
    with pytest.raises(tpm.NotATpmError, match=f"does not tell property 0x{number:x}"):
        fake.ask()


def test_other_family_is_told() -> None:
    """The family is compared, not assumed."""
    fake = FakeTpm()
    fake.lists[PROPERTIES][0x100] = int.from_bytes(b"1.2\0")
    with pytest.raises(tpm.NotATpmError, match=r"of family '1\.2'"):
        fake.ask()


def test_names_of_a_tpm_cannot_steer_a_terminal() -> None:
    """A name is bytes from a device: escape sequences in it are not printed."""
    fake = FakeTpm()
    fake.lists[PROPERTIES][0x105] = int.from_bytes(b"\x1b[2J")
    fake.lists[PROPERTIES][0x106] = int.from_bytes(b"\n\x9b\xff\x07")
    report = fake.ask()
    assert (report.manufacturer, report.vendor) == ("?[2J", "???? 7")


# ------------------------------------------------------------------ busy, locked out, failed


@pytest.mark.parametrize("code", [0x908, 0x90A, 0x922])
def test_busy_tpm_is_asked_again(code: int) -> None:
    """TPM_RC_YIELDED, TESTING and RETRY are answered with growing pauses."""
    pauses: list[float] = []
    fake = FakeTpm(code, code, code)
    assert tpm.ask(fake, ADDRESS, sleep=pauses.append) == FakeTpm().ask()
    assert pauses == [0.02, 0.04, 0.08]


def test_tpm_that_stays_busy_is_not_asked_for_ever() -> None:
    """Eight tries within about 2.5 s, then an error."""
    pauses: list[float] = []
    fake = FakeTpm(*[0x922] * 100)
    with pytest.raises(tpm.TpmBusyError, match=r"0x922.* last of 8 tries"):
        tpm.ask(fake, ADDRESS, sleep=pauses.append)
    assert len(fake.commands) == 8
    assert sum(pauses) == pytest.approx(2.54)


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (0x921, tpm.TpmLockedOutError, "locked out"),
        (0x100, tpm.TpmFailedError, "has not been started"),
        (0x101, tpm.TpmFailedError, "failure mode"),
        (0x12D, tpm.TpmFailedError, "upgrade of its firmware"),
    ],
)
def test_refusal_is_told_by_its_kind(code: int, kind: type[tpm.TpmError], told: str) -> None:
    """Response codes that say what is wrong with the TPM itself."""
    with pytest.raises(kind, match=told):
        FakeTpm(code).ask()


def test_failed_self_test_is_told() -> None:
    """In failure mode a TPM still answers, and tells by the test's result."""
    with pytest.raises(tpm.TpmFailedError, match="failure mode"):
        FakeTpm(test_result=0x101).ask()


@pytest.mark.parametrize("result", [0x153, 0x90A])  # TPM_RC_NEEDS_TEST, TPM_RC_TESTING
def test_self_test_to_come_is_no_failure(result: int) -> None:
    """TPM_RC_NEEDS_TEST and TESTING: it will test itself when it must."""
    assert FakeTpm(test_result=result).ask().usable


# ------------------------------------------------------------------ hostile answers


@fuzz
@given(st.binary(max_size=64) | st.binary(max_size=64).map(response))
def test_any_bytes_are_a_response_or_refused(data: bytes) -> None:
    """What is accepted as a response is one, to the byte."""
    try:
        code, parameters = tpm.parse_response(data)
    except tpm.NotATpmError:
        return
    assert response(parameters, code) == data


@fuzz
@given(st.data(), st.sampled_from([PROPERTIES, ALGORITHMS, CURVES]))
def test_any_bytes_are_a_list_or_refused(data: st.DataObject, capability: int) -> None:
    """What is accepted as a list is within what was asked for, and in order."""
    length = data.draw(st.integers(0, 5))
    head = struct.pack(">BII", data.draw(st.integers(0, 2)), capability, length)
    body = data.draw(st.binary(max_size=40))
    try:
        items, more = tpm.parse_capability(head + body, capability=capability, first=1, count=4)
    except tpm.NotATpmError:
        return
    assert len(items) == length <= 4
    assert list(items) == sorted(items)
    assert all(number >= 1 for number in items)
    assert items or not more


class DamagedTpm(FakeTpm):
    """A TPM whose answer to one command is damaged, or whose answers all are."""

    def __init__(self, damage: Callable[[bytes], bytes], nth: int | None, page: int) -> None:
        super().__init__(page=page)
        self.damage = damage
        self.nth = nth

    def exchange(self, command: bytes) -> bytes:
        """Answer a command, and damage the answer."""
        answer = super().exchange(command)
        hit = self.nth is None or len(self.commands) == self.nth
        return self.damage(answer) if hit else answer


def overwrite(position: int, patch: bytes) -> Callable[[bytes], bytes]:
    """Return a function that puts ``patch`` over the bytes at ``position``."""
    return lambda data: data[:position] + patch + data[position + len(patch) :]


damages = st.one_of(
    st.integers(0, 90).map(lambda size: lambda data: data[:size]),
    st.binary(min_size=1, max_size=5000).map(lambda extra: lambda data: data + extra),
    st.binary(max_size=5000).map(lambda other: lambda _: other),
    st.binary(max_size=100).map(lambda other: lambda _: response(other)),
    st.builds(overwrite, st.integers(0, 90), st.binary(min_size=1, max_size=4)),
)


@fuzz
@given(damages, st.none() | st.integers(1, 12), st.integers(1, 4))
def test_damaged_answers_make_a_report_or_an_error(
    damage: Callable[[bytes], bytes], nth: int | None, page: int
) -> None:
    """Whatever a device answers: no crash, no hang, nothing unprintable."""
    fake = DamagedTpm(damage, nth, page)
    try:
        told = tpm.describe(fake.ask())
    except tpm.TpmError as error:
        told = str(error)
    assert told.isascii()
    assert told.replace("\n", "").isprintable()
    assert len(fake.commands) < 200


def test_list_without_end_is_left() -> None:
    """A device that always has more is given up."""
    fake = FakeTpm(page=1)
    fake.lists[ALGORITHMS] = dict.fromkeys(range(1, 1000), 0)
    with pytest.raises(tpm.NotATpmError, match="has no end"):
        fake.ask()
    assert len(fake.commands) < 100


# ------------------------------------------------------------------ the command


def command(*arguments: str) -> argparse.Namespace:
    """Parse the command line as the library's own does."""
    parser = argparse.ArgumentParser(prog="service_security")
    tpm.add_command(parser.add_subparsers())
    return parser.parse_args(["tpm", *arguments])


def test_command_prints_the_report(software_tpm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The report as people see it."""
    arguments = command("--address", software_tpm)
    assert arguments.run(arguments) == 0
    firmware = tpm.probe(software_tpm).firmware
    assert capsys.readouterr().out == (
        f"TPM 2.0 at {software_tpm}\n"
        "  manufacturer       IBM SW TPM\n"
        f"  firmware           {firmware}\n"
        "  ECC P-256          present\n"
        "  SHA-256            present\n"
        "  AES-128-CFB        present\n"
        "  owner password     not set\n"
        "  lock-out password  not set\n"
        "  lock-out           not active\n"
        "  failed tries       0 of 3\n"
        "\n"
        "This user can use it for a key.\n"
        "Nothing is kept in it: the key of this version is in the key file or container secret.\n"
    )


@pytest.mark.parametrize(
    ("variable", "address"),
    [("unix:/run/tpm", "unix:/run/tpm"), ("", "/dev/tpmrm0"), (None, "/dev/tpmrm0")],
)
def test_command_takes_its_address_from_the_environment(
    variable: str | None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option wins; an empty variable is as good as none."""
    monkeypatch.delenv("SERVICE_TPM", raising=False)
    if variable is not None:
        monkeypatch.setenv("SERVICE_TPM", variable)
    assert command().address == address
    assert command("--address", "/dev/tpm0").address == "/dev/tpm0"


def test_exit_status_tells_usable_unusable_and_error(
    software_tpm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts can tell the three cases apart; an error is one line."""
    assert main(["tpm", "--address", software_tpm]) == 0
    assert "This user can use it for a key." in capsys.readouterr().out

    fake = FakeTpm()
    fake.lists[PROPERTIES][0x200] = 1 << 9
    with character_device(fake.exchange) as path:
        assert main(["tpm", "--address", path]) == 1
    assert "locked out" in capsys.readouterr().out

    for address in (str(tmp_path / "tpmrm0"), "tcp:192.0.2.1:2321"):
        assert main(["tpm", "--address", address]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == 1
