"""A TPM 2.0 at /dev/tpmrm0, made of a pseudo-terminal and a software TPM, and an engine that passes it on.

An engine makes the nodes of a container's devices anew, by their number, and a pseudo-terminal that is made
anew leads nowhere. An engine that may not make nodes passes on those that are there, as runc does in a user
namespace. So a second engine is started, without that right and with a network of its own. Its images come
from the first.
"""

import contextlib
import os
import pty
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
from scaffold import locked, outside_environment, require

from containers.engine import eventually

DEVICE = Path("/dev/tpmrm0")
GROUP = 4242

_HEADER = 10  # bytes, of which the third to sixth are the size of the whole (TCG, Part 1, 18)

# Gives up the right to make devices, takes a network and mounts of its own, and becomes dockerd. The system's
# containerd, which has that right, is hidden, so that dockerd starts one of its own.
_START = """
import ctypes, fcntl, os, socket, struct, sys

PR_CAPBSET_DROP, CAP_MKNOD = 24, 27
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)

def check(status):
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

check(libc.prctl(PR_CAPBSET_DROP, CAP_MKNOD, 0, 0, 0))
check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET))
check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
if os.path.isdir("/run/containerd"):
    check(libc.mount(b"none", b"/run/containerd", b"tmpfs", 0, None))
with socket.socket() as one:
    fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
os.execv(sys.argv[1], sys.argv[1:])
"""


def require_tpm() -> None:
    """Require what this needs: root, swtpm and dockerd."""
    # As for the library's tests that mount: whoever has the tests run as root can ask for them.
    root_is_asked_for = os.environ.get("SERVICE_SECURITY_REQUIRE_DEVICES") == "1"
    require(sys.platform == "linux" and os.geteuid() == 0, "root", optional=not root_is_asked_for)
    require(shutil.which("swtpm") is not None, "swtpm")
    require(dockerd() is not None, "dockerd", optional=not root_is_asked_for)


def dockerd() -> str | None:
    """Find the engine's program, which may lie beside the command line and not in the PATH."""
    beside = Path(shutil.which("docker") or "/").resolve().parent.parent / "sbin"
    return shutil.which("dockerd", path=os.pathsep.join([os.environ["PATH"], str(beside)]))


@contextlib.contextmanager
def software_tpm(folder: Path) -> Iterator[Path]:
    """Run a software TPM with its state in a folder; return its socket."""
    folder.mkdir(exist_ok=True)
    listening, path = folder / "pid", folder / "socket"
    listening.unlink(missing_ok=True)
    server = ("--server", f"type=unixio,path={path}", "--flags", "not-need-init,startup-clear")
    state = ("--tpmstate", f"dir={folder},mode=0600", "--pid", f"file={listening}")
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(["swtpm", "socket", "--tpm2", *state, *server], stdout=quiet, stderr=quiet)
    try:
        eventually("the software TPM listens", listening.exists)
        yield path
    finally:
        process.terminate()
        process.wait(60)


@dataclass
class Device:
    """The device, and what is behind it.

    Attributes:
        tpm: The socket of the software TPM that answers; None if none does.
    """

    tpm: Path | None = None

    def answer(self, command: bytes) -> bytes:
        """Have the TPM carry out a command."""
        if self.tpm is None:
            return b""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.tpm))
            connection.sendall(command)
            with connection.makefile("rb") as response:
                head = response.read(_HEADER)
                return head + response.read(int.from_bytes(head[2:6]) - _HEADER)

    @contextlib.contextmanager
    def unplugged(self) -> Iterator[None]:
        """Take the device away for a while."""
        target = DEVICE.readlink()
        DEVICE.unlink()
        try:
            yield
        finally:
            DEVICE.symlink_to(target)


@contextlib.contextmanager
def plugged_in() -> Iterator[Device]:
    """Put the device into this machine, for members of `GROUP`."""
    device = Device()
    controller, terminal = pty.openpty()
    tty.setraw(terminal)
    stop, stopped = os.pipe()

    def serve() -> None:
        said = b""
        while stop not in select.select([controller, stop], [], [])[0]:
            said += os.read(controller, 4096)
            while len(said) >= _HEADER and len(said) >= (size := int.from_bytes(said[2:6])):
                os.write(controller, device.answer(said[:size]))
                said = said[size:]

    thread = threading.Thread(target=serve)
    with contextlib.ExitStack() as stack:
        for descriptor in (controller, terminal, stop, stopped):
            stack.callback(os.close, descriptor)
        os.fchown(terminal, 0, GROUP)
        os.fchmod(terminal, 0o660)
        DEVICE.symlink_to(os.ttyname(terminal))
        stack.callback(DEVICE.unlink, missing_ok=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.write, stopped, b"x")
        yield device


@contextlib.contextmanager
def second_engine(folder: Path) -> Iterator[docker.DockerClient]:
    """Start an engine that passes devices on as they are; its state is in a folder."""
    program = dockerd()
    assert program is not None
    host = f"unix://{folder}/s"
    options = (
        *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"),
        *("--host", host, "--bridge", "none", "--iptables=false", "--ip6tables=false"),
    )
    environment = outside_environment()
    environment["PATH"] = os.pathsep.join([str(Path(program).parent), environment["PATH"]])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, program, *options], env=environment, stdout=log, stderr=log
        )
    try:
        eventually("the second engine answers", lambda: process.poll() is not None or answers(folder / "s"))
        assert process.poll() is None, (folder / "log").read_text("utf-8")
        with contextlib.closing(docker.DockerClient(base_url=host, timeout=120)) as client:
            yield client
    finally:
        process.terminate()
        process.wait(60)


def answers(path: Path) -> bool:
    """Tell whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


@contextlib.contextmanager
def alone_with_the_device() -> Iterator[None]:
    """Hold the only /dev/tpmrm0 of the machine, which must be free: a TPM that is there is never touched."""
    with locked(Path(tempfile.gettempdir()) / f"bartizan-test-tpm-{os.getuid()}.lock"):
        if DEVICE.is_symlink() and not DEVICE.exists():  # left by a run that was killed
            DEVICE.unlink()
        require(not DEVICE.exists(), f"a machine without {DEVICE}", optional=True)
        yield
