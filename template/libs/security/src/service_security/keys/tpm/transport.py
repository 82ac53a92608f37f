"""The way to a TPM: one command out, its whole response back, within a deadline."""

import contextlib
import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from . import errors
from .address import Address
from .framing import HEADER_SIZE, MAX_MESSAGE, build_command, declared_size, parse_response

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for a whole probe; a self-test of a slow TPM takes one or two of them."""

_RETRY_DELAYS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_BUSY_CODES = {0x908, 0x90A, 0x922}  # TPM_RC_YIELDED, TESTING, RETRY (Part 2, 6.6)


class Transport(Protocol):
    """Carries one command to a TPM and its whole response back."""

    def exchange(self, command: bytes) -> bytes:
        """Return the response to ``command``, both with their headers.

        Raises:
            TpmError: The command could not be sent, or no whole response came in time.
        """


def execute(
    transport: Transport,
    code: int,
    parameters: bytes = b"",
    *,
    handles: Sequence[int] = (),
    authorization: bytes = b"",
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Send a command and return what follows the response code.

    A TPM that says it is busy is asked again, with growing pauses of 2.5 s in total. The command
    stays the same to the byte, so the nonces of its session are good for every try.

    Args:
        transport: Carries the command.
        code: The command code (Part 2, 6.5).
        parameters: What follows handles and authorization.
        handles: What the command works on.
        authorization: Of a password or a session; empty without one.
        sleep: Waits that many seconds.

    Raises:
        TpmBusyError: It was still busy at the last try, or it is full.
        TpmLockedOutError: It refuses because of its lock-out.
        TpmFailedError: It is in failure mode, not started, or its firmware is being replaced.
        TpmRefusedError: It refuses for another reason.
        NotATpmError: The response is none.
        TpmError: Whatever the transport raises.
    """
    command = build_command(code, parameters, handles=handles, authorization=authorization)
    for delay in (*_RETRY_DELAYS, None):
        status, answer = parse_response(transport.exchange(command), sessions=bool(authorization))
        if status == 0:
            return answer
        if error := errors.failure(status):
            raise error
        if status not in _BUSY_CODES:
            raise errors.TpmRefusedError(code, status)
        if delay is not None:
            sleep(delay)
    raise errors.TpmBusyError(
        f"The TPM was still busy (response code 0x{status:03x}) at the last of "
        f"{len(_RETRY_DELAYS) + 1} tries. Try again in a minute."
    )


@contextlib.contextmanager
def open_transport(address: Address, *, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Transport]:
    """Open a TPM, and close it on leaving the block.

    Args:
        address: Where it is.
        timeout: Seconds for everything until the end of the block.

    Raises:
        TpmAbsentError: Nothing is there.
        TpmForbiddenError: This user may not open it; the message names the group to add.
        TpmBusyError: Another program has it.
        NotATpmError: The path is not that of a device.
    """
    deadline = time.monotonic() + timeout
    descriptor = _open_device(address) if address.kind == "device" else _connect(address, timeout)
    try:
        yield _DescriptorTransport(descriptor, address, deadline)
    finally:
        os.close(descriptor)


@dataclass
class _DescriptorTransport:
    """A device or a connected socket; both are file descriptors that can be polled.

    The kernel takes a command in one write, and its drivers bound the time of each command by
    themselves, so closing a device after a timeout may wait for the driver.
    """

    descriptor: int
    address: Address
    deadline: float
    owed: bool = False
    """Whether a command was sent whose response was not read: an interrupt came between."""
    received: bytes = b""
    """What is there of that response."""

    def exchange(self, command: bytes) -> bytes:
        try:
            if self.owed:
                # Else the next command would be given this response as its own. That matters for
                # the commands that clear up after the interrupt.
                self._receive()
            self._wait(select.POLLOUT)
            if os.write(self.descriptor, command) != len(command):
                raise errors.NotATpmError(
                    f"{self.address} did not take a command of a TPM as a whole."
                )
            self.owed = True
            return self._receive()
        except ConnectionError as error:
            raise errors.NotATpmError(
                f"{self.address} broke the connection instead of answering ({error.strerror}). "
                "Check SERVICE_KEY_SOURCE, and that a TPM 2.0 listens there."
            ) from error
        except OSError as error:
            kind = errors.TpmBusyError if error.errno == errno.EBUSY else errors.TpmFailedError
            raise kind(
                f"{self.address} does not carry out commands ({error.strerror}). Look for the TPM "
                "in the machine's log: journalctl --dmesg --grep tpm."
            ) from error

    def _receive(self) -> bytes:
        while len(self.received) < self._due():
            self._wait(select.POLLIN)
            chunk = os.read(self.descriptor, MAX_MESSAGE + 1)
            if not chunk:
                raise errors.NotATpmError(
                    f"{self.address} ended the conversation instead of answering: it is not a TPM "
                    "2.0, or it serves another program now. Check SERVICE_KEY_SOURCE."
                )
            self.received += chunk
        response, self.received, self.owed = self.received, b"", False
        return response

    def _due(self) -> int:
        known = len(self.received) >= HEADER_SIZE
        return declared_size(self.received) if known else HEADER_SIZE

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self.descriptor, event)
        left = self.deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise errors.TpmSilentError(
                f"{self.address} did not answer as a whole in time. Check that it is a TPM 2.0 "
                "and that no other program holds it, then try again."
            )


def _open_device(address: Address) -> int:
    path = address.place
    try:
        if not stat.S_ISCHR(Path(path).stat().st_mode):
            raise errors.NotATpmError(
                f"{path} is not a character device, so it is not a TPM. Check SERVICE_KEY_SOURCE."
            )
        # O_NOCTTY: a wrong address that is a terminal must not become this process's own.
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    except PermissionError as error:
        raise errors.TpmForbiddenError(_forbidden(path, error)) from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise errors.TpmBusyError(
                f"Another program holds {path}. Use /dev/tpmrm0, which programs can share."
            ) from error
        raise errors.TpmAbsentError(
            f"There is no TPM at {path} ({error.strerror}). Switch it on in the machine's "
            "firmware; a container also needs the device passed in (docker-compose.tpm.yml)."
        ) from error


def _connect(address: Address, timeout: float) -> int:
    where: str | tuple[str, int] = address.place
    family = socket.AF_UNIX
    if address.kind == "tcp":
        where = (address.place, address.port)
        family = socket.AF_INET6 if ":" in address.place else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(where)
        except PermissionError as error:
            raise errors.TpmForbiddenError(_forbidden(address.place, error)) from error
        except (BlockingIOError, TimeoutError) as error:
            raise errors.TpmBusyError(
                f"{address} takes no connection: other programs are waiting for it. Try again."
            ) from error
        except OSError as error:
            raise errors.TpmAbsentError(
                f"No TPM listens at {address} ({error.strerror}). Start the software TPM, or "
                "correct SERVICE_KEY_SOURCE."
            ) from error
        return connection.detach()


def _forbidden(path: str, error: PermissionError) -> str:
    user = f"User {os.geteuid()} may not open {path}"
    if error.errno == errno.EPERM:
        return (
            f"{user}: the container was not given the device. Start it with "
            "docker-compose.tpm.yml, which passes it in."
        )
    try:
        status = Path(path).stat()
    except OSError:
        return f"{user}: a folder above it is closed to that user."
    group, mode = status.st_gid, stat.S_IMODE(status.st_mode)
    if mode & 0o060 != 0o060:
        return (
            f"{user}: its mode {mode:04o} does not let its group {group} read and write. Let "
            "udev set mode 0660 and a group of its own (the package tpm-udev does)."
        )
    if group in {os.getegid(), *os.getgroups()}:
        return (
            f"{user}, though in its group {group}: the owner's bits of its mode {mode:04o}, or a "
            "security module (AppArmor, SELinux), forbid it."
        )
    return (
        f"{user}: add that user to group {group} and log in again; in a container, put {group} "
        "under group_add."
    )
