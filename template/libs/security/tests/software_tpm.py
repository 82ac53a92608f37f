"""A software TPM, the tools of others for it, and a way to listen in between.

swtpm and tpm2-tools are packages of Debian, Ubuntu and Alpine. Without them the tests are skipped,
or fail if ``SERVICE_SECURITY_REQUIRE_TPM=1``.
"""

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from service_security.keys.tpm.address import Address, parse_address
from service_security.keys.tpm.errors import TpmError
from service_security.keys.tpm.framing import GET_CAPABILITY
from service_security.keys.tpm.provider import TpmProvider
from service_security.keys.tpm.transport import execute, open_transport

STARTED = "not-need-init,startup-clear"
ROOT_KEY = 0x81000001
PCR = 16
"""A PCR that any program may extend and reset."""

HANDLES = 1  # TPM_CAP, Part 2, 6.12
TRANSIENT, SESSIONS, SAVED = 0x80, 0x02, 0x03  # TPM_HT, Part 2, 7.2

_PASSWORD = b"\x40\x00\x00\x09" + bytes(2) + b"\x01"


def need(program: str) -> None:
    """Skip the test without ``program``, or fail it where a TPM is required."""
    if shutil.which(program) is None:
        message = f"{program} is not installed (packages: swtpm, tpm2-tools)"
        if os.environ.get("SERVICE_SECURITY_REQUIRE_TPM") == "1":
            pytest.fail(message)
        pytest.skip(message)


@contextlib.contextmanager
def swtpm(folder: Path, *endpoints: str, flags: str, at: Address) -> Iterator[bool]:
    """Run a software TPM with its state in ``folder``; say whether it came up."""
    need("swtpm")
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder},mode=0600", *endpoints]
    bound = folder / "pid"  # written when it listens; else who answers might be another one
    bound.unlink(missing_ok=True)
    command += ["--pid", f"file={bound}"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*command, "--flags", flags], stdout=quiet, stderr=quiet)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if bound.exists():
                with contextlib.suppress(TpmError), open_transport(at, timeout=10):
                    break
            time.sleep(0.005)
        yield process.poll() is None
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def unix_swtpm(folder: Path, flags: str = STARTED) -> Iterator[str]:
    """Run a software TPM on a UNIX socket in ``folder``."""
    path = folder / "socket"
    at = Address("unix", str(path))
    with swtpm(folder, "--server", f"type=unixio,path={path}", flags=flags, at=at) as running:
        assert running
        yield str(at)


@contextlib.contextmanager
def tcp_swtpm(folder: Path) -> Iterator[int]:
    """Run a software TPM on a port whose next one is its control channel, as tpm2-tools want it."""
    for _ in range(20):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        if port == 65535:
            continue
        with swtpm(
            folder,
            *("--server", f"type=tcp,port={port},bindaddr=127.0.0.1"),
            *("--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1"),
            flags=STARTED,
            at=Address("tcp", "127.0.0.1", port),
        ) as running:
            if running:
                yield port
                return
    pytest.fail("no two neighbouring ports were free")


@dataclass
class SoftwareTpm:
    """A software TPM whose state outlives its process.

    Attributes:
        folder: Its state.
        port: Where it listens, while it runs.
    """

    folder: Path
    port: int = 0
    _running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start(self) -> Self:
        """Switch it on."""
        self.folder.mkdir(exist_ok=True)
        self.port = self._running.enter_context(tcp_swtpm(self.folder))
        return self

    def stop(self) -> None:
        """Switch it off."""
        self._running.close()

    def reboot(self) -> None:
        """Switch it off and on."""
        self.stop()
        self.start()

    @property
    def address(self) -> str:
        """Where it is now."""
        return f"tcp:127.0.0.1:{self.port}"

    def provider(self, *, pcrs: Sequence[int] = ()) -> TpmProvider:
        """Return the provider of its keys."""
        return TpmProvider(self.address, pcrs=pcrs)

    def tool(self, name: str, *arguments: object, stdin: bytes = b"") -> bytes:
        """Run one of the tpm2-tools in the TPM's folder; return what it prints."""
        need(f"tpm2_{name}")
        return self.shell(f'tpm2_{name} "$@"', *arguments, stdin=stdin)

    def shell(self, script: str, *arguments: object, stdin: bytes = b"") -> bytes:
        """Run lines that use the tpm2-tools; return what they print."""
        need("tpm2_flushcontext")
        environment = os.environ | {
            "TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={self.port}",
            "TSS2_LOG": "all+NONE",
        }
        # Without a resource manager, what a tool loads stays loaded.
        script = f"set -e\n{script}\ntpm2_flushcontext -t"
        done = subprocess.run(
            ["sh", "-c", script, "sh", *map(str, arguments)],  # noqa: S607 - every system has it
            cwd=self.folder,
            env=environment,
            input=stdin,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def authorized(self, code: int, handles: Sequence[int], parameters: bytes) -> None:
        """Send a command with an empty password for its first handle."""
        authorization = _PASSWORD + bytes(2)
        with open_transport(parse_address(self.address)) as transport:
            execute(transport, code, parameters, handles=handles, authorization=authorization)

    def extend(self, pcr: int = PCR, value: bytes = b"m" * 32) -> None:
        """Measure something, by ``TPM2_PCR_Extend`` (Part 3, 22.2)."""
        self.authorized(0x182, (pcr,), b"\0\0\0\1\0\x0b" + value)

    def left_behind(self) -> list[int]:
        """Return the handles of objects and sessions that are in the TPM."""
        return handles(self.address, TRANSIENT, SESSIONS, SAVED)


@contextlib.contextmanager
def software_tpms(folder: Path) -> Iterator[Callable[[], SoftwareTpm]]:
    """Give a maker of software TPMs, and stop them at the end."""
    with contextlib.ExitStack() as running:

        def make() -> SoftwareTpm:
            tpm = SoftwareTpm(folder / f"tpm{len(list(folder.iterdir()))}")
            running.callback(tpm.stop)
            return tpm.start()

        yield make


def handles(address: str, *kinds: int) -> list[int]:
    """Return what is in a TPM, by ``TPM2_GetCapability`` (Part 3, 30.2)."""
    found: list[int] = []
    with open_transport(parse_address(address)) as transport:
        for kind in kinds:
            request = struct.pack(">III", HANDLES, kind << 24, 100)
            answer = execute(transport, GET_CAPABILITY, request)
            more, capability, count = struct.unpack_from(">BII", answer)
            assert (more, capability) == (0, HANDLES)
            found += struct.unpack_from(f">{count}I", answer, 9)
    return found


Alter = Callable[[int, bytes], bytes]
"""Given the code of a command, and it or its response, returns what is passed on instead."""


def unchanged(_code: int, message: bytes) -> bytes:
    """Pass a message on."""
    return message


@dataclass
class Bus:
    """What lies between a program and a TPM.

    Attributes:
        address: Where the program finds the TPM.
        recorded: The commands and responses that went over it.
    """

    address: str
    recorded: list[bytes] = field(default_factory=list)


@contextlib.contextmanager
def bus(
    folder: Path, tpm: str, *, command: Alter = unchanged, response: Alter = unchanged
) -> Iterator[Bus]:
    """Sit between a program and the TPM at ``tpm``: listen, and change what is said."""
    path = folder / "bus"
    path.unlink(missing_ok=True)
    listened = Bus(f"unix:{path}")

    def serve(connection: socket.socket) -> None:
        with open_transport(parse_address(tpm)) as transport:
            while head := connection.recv(10, socket.MSG_WAITALL):
                said = head + connection.recv(int.from_bytes(head[2:6]) - 10, socket.MSG_WAITALL)
                code = int.from_bytes(head[6:])
                listened.recorded.append(said)
                answer = transport.exchange(command(code, said))
                listened.recorded.append(answer)
                connection.sendall(response(code, answer))

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                if over.is_set():
                    return
                serve(connection)

    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listened
        finally:
            over.set()
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
            thread.join()


def names_in(printed: bytes) -> list[str]:
    """Return the names of objects that a tool printed."""
    return re.findall("000b[0-9a-f]{64}", printed.decode())
