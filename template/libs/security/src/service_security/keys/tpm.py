"""Can this machine and this user use a TPM 2.0? A probe that changes nothing in it.

It asks by ``TPM2_GetTestResult`` and ``TPM2_GetCapability`` only (TCG TPM 2.0 Library, Part 3,
10.4 and 30.2), without a session and without a password. Three layers, each tried on its own:

transport
    `open_transport`: one command out, one whole response back, within a deadline.
framing
    `execute`: header, response code, bounded repeats while the TPM is busy.
parsing
    `parse_response` and the readers of the lists below. Nothing the device says is trusted:
    every size and count is checked before use, and what does not fit is a `NotATpmError`.

Layouts, big-endian (Part 1, 18; Part 2, 10.10 and 6.12; Part 3, 30.2)::

    command       = tag u16 || size u32 || command code u32 || parameters
    response      = tag u16 || size u32 || response code u32 || parameters
    GetCapability = capability u32 || first u32 || count u32
                 -> more data u8 || capability u32 || count u32 || items
    property item = property u32 || value u32         (TPM_CAP_TPM_PROPERTIES)
    algorithm item = algorithm u16 || attributes u32  (TPM_CAP_ALGS)
    curve item    = curve u16                         (TPM_CAP_ECC_CURVES)
    GetTestResult -> size u16 || vendor's data || test result u32
"""

import argparse
import contextlib
import errno
import ipaddress
import os
import re
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ..errors import ConfigurationError, KeyUnavailableError

DEFAULT_ADDRESS: Final = "/dev/tpmrm0"
"""The kernel's device behind its resource manager, which several programs may share."""
DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for a whole probe; a self-test of a slow TPM takes one or two of them."""
MAX_MESSAGE: Final = 4096
"""Largest command or response in bytes: the kernel's own buffer for a TPM."""

GET_CAPABILITY: Final = 0x17A
GET_TEST_RESULT: Final = 0x17C

_HEADER = 10
_MAX_PATH = 107  # bytes of a UNIX socket's address, less its final zero
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002  # TPM_ST, Part 2, 6.9
_TPM_1_2_RESPONSE = 0x00C4
_ALGORITHMS, _PROPERTIES, _CURVES = 0, 6, 8  # TPM_CAP, Part 2, 6.12
_ITEM_SIZES = {_ALGORITHMS: (2, 4), _PROPERTIES: (4, 4), _CURVES: (2, 0)}
_PAGE = 127  # properties in a MAX_CAP_BUFFER of 1,024 bytes, the least that is common
_MAX_PAGES = 32
_RETRY_DELAYS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_BUSY_CODES = {0x908, 0x90A, 0x922}  # TPM_RC_YIELDED, TESTING, RETRY

# TPM_PT, Part 2, 6.13
_FAMILY, _MANUFACTURER, _VENDOR_STRINGS = 0x100, 0x105, range(0x106, 0x10A)
_FIRMWARE_1, _FIRMWARE_2 = 0x10B, 0x10C
_PERMANENT, _LOCKOUT_COUNTER, _MAX_TRIES, _INTERVAL = 0x200, 0x20E, 0x20F, 0x210
# TPMA_PERMANENT, Part 2, 8.6
_OWNER_AUTH_SET, _LOCKOUT_AUTH_SET, _IN_LOCKOUT = 1 << 0, 1 << 2, 1 << 9

# TPM_ALG_ID and TPM_ECC_CURVE, Part 2, 6.3 and 6.4. The list of algorithms has no key sizes;
# 128 bits is the one that every TPM with AES must have (PC Client Platform TPM Profile).
_NEEDED_ALGORITHMS = {"ECC P-256": {0x0023}, "SHA-256": {0x000B}, "AES-128-CFB": {0x0006, 0x0043}}
_P256 = 0x0003


class TpmError(KeyUnavailableError):
    """A TPM cannot be used now; never raised itself."""


class TpmAbsentError(TpmError):
    """There is no TPM at the address. Switch it on, or pass it into the container."""


class TpmForbiddenError(TpmError):
    """This user may not open the TPM. Add the group that the message names."""


class TpmSilentError(TpmError):
    """No whole answer came in time. Check the address, then look at the machine's log."""


class TpmBusyError(TpmError):
    """Another program holds the TPM, or it is at work. Try again."""


class TpmLockedOutError(TpmError):
    """Too many wrong passwords were tried. Wait, or have its owner reset the lock-out."""


class TpmFailedError(TpmError):
    """The TPM is there and does not work. Restart the machine; then replace the TPM."""


class NotATpmError(TpmError):
    """What answers is not a TPM 2.0, or a broken one. Correct the address."""


_FAILURES: dict[int, tuple[type[TpmError], str]] = {  # TPM_RC, Part 2, 6.6
    0x100: (
        TpmFailedError,
        "The TPM has not been started. The machine's firmware does that; a software TPM needs "
        "--flags not-need-init,startup-clear.",
    ),
    0x101: (
        TpmFailedError,
        "The TPM is in failure mode: its self-test failed. Switch the machine off and on again; "
        "if that does not help, the TPM is broken.",
    ),
    0x12D: (
        TpmFailedError,
        "The TPM is in the middle of an upgrade of its firmware. Let the vendor's tool finish it.",
    ),
    0x921: (
        TpmLockedOutError,
        "The TPM is locked out after too many wrong passwords. Wait, or have its owner reset it: "
        "tpm2_dictionarylockout --clear-lockout.",
    ),
}


@dataclass(frozen=True)
class Address:
    """Where a TPM is: a character device, or the socket of a software TPM on this machine.

    ``place`` is a path, or the IP address of a TCP socket; ``port`` belongs to TCP alone.
    """

    kind: Literal["device", "unix", "tcp"]
    place: str
    port: int = 0

    def __str__(self) -> str:
        """Return the address in the syntax of `parse_address`."""
        if self.kind == "tcp":
            host = f"[{self.place}]" if ":" in self.place else self.place
            return f"tcp:{host}:{self.port}"
        return self.place if self.kind == "device" else f"unix:{self.place}"


@dataclass(frozen=True)
class TpmReport:
    """What a TPM says of itself.

    Attributes:
        address: Where it answered.
        manufacturer: The vendor's four letters, as registered with the TCG.
        vendor: The vendor's own name of the part; may be empty.
        firmware: Version of its firmware, two 32-bit halves in hexadecimal.
        missing_algorithms: Those of ECC P-256, SHA-256 and AES-128-CFB that it lacks.
        owner_password: Whether making keys in its owner hierarchy takes a password.
        lockout_password: Whether resetting the lock-out takes a password.
        locked_out: Whether it refuses passwords now because too many were wrong.
        failed_tries: Wrong passwords counted so far.
        max_tries: The count at which it locks out.
        lockout_interval: Seconds until one wrong password is forgiven; 0 means never counted.
    """

    address: Address
    manufacturer: str
    vendor: str
    firmware: str
    missing_algorithms: tuple[str, ...]
    owner_password: bool
    lockout_password: bool
    locked_out: bool
    failed_tries: int
    max_tries: int
    lockout_interval: int

    @property
    def usable(self) -> bool:
        """Whether this user can use it for a key now."""
        return not self.missing_algorithms and not self.locked_out


class Transport(Protocol):
    """Carries one command to a TPM and its whole response back."""

    def exchange(self, command: bytes) -> bytes:
        """Return the response to ``command``, both with their headers.

        Raises:
            TpmError: The command could not be sent, or no whole response came in time.
        """


def parse_address(text: str) -> Address:
    """Return the address that ``/dev/tpmrm0``, ``unix:/path`` or ``tcp:127.0.0.1:2321`` names.

    Raises:
        ConfigurationError: It is none of them, or a TCP address beyond loopback: the commands
            of a TPM are neither encrypted nor authenticated, so over a network whoever sits in
            between is the TPM.
    """
    kind, _, place = text.partition(":")
    if text.isprintable():  # so that it can stand in a message
        if text.startswith("/"):
            return Address("device", text)
        if kind == "unix" and place.startswith("/") and len(os.fsencode(place)) <= _MAX_PATH:
            return Address("unix", place)
        host, _, port = place.rpartition(":")
        if kind == "tcp" and re.fullmatch("[1-9][0-9]{0,4}", port) and int(port) < 65536:
            return Address("tcp", _loopback(host), int(port))
    raise ConfigurationError(
        f"{text[:120]!a} is not the address of a TPM. Set SERVICE_TPM to a device like "
        "/dev/tpmrm0, or to a software TPM like unix:/run/swtpm/socket or tcp:127.0.0.1:2321."
    )


def _loopback(host: str) -> str:
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if ip.is_loopback:
            return str(ip)
    raise ConfigurationError(
        f"A TPM is not spoken to over a network, and {host!a} is not a loopback address: its "
        "commands are not authenticated. Use 127.0.0.1, a UNIX socket or the device."
    )


class _DescriptorTransport:
    """A device or a connected socket; both are file descriptors that can be polled.

    The kernel takes a command in one write, and its drivers bound the time of each command by
    themselves, so closing a device after a timeout may wait for the driver.
    """

    def __init__(self, descriptor: int, address: Address, deadline: float) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._address = address
        self._deadline = deadline

    def exchange(self, command: bytes) -> bytes:
        response = b""
        size = _HEADER
        try:
            self._wait(select.POLLOUT)
            if os.write(self._descriptor, command) != len(command):
                raise NotATpmError(f"{self._address} did not take a command of a TPM as a whole.")
            while len(response) < size:
                self._wait(select.POLLIN)
                chunk = os.read(self._descriptor, MAX_MESSAGE + 1)
                if not chunk:
                    raise NotATpmError(
                        f"{self._address} ended the conversation instead of answering: it is not "
                        "a TPM 2.0, or it serves another program now. Check SERVICE_TPM."
                    )
                response += chunk
                if len(response) >= _HEADER:
                    size = _declared_size(response)
        except ConnectionError as error:
            raise NotATpmError(
                f"{self._address} broke the connection instead of answering ({_reason(error)}). "
                "Check SERVICE_TPM, and that a TPM 2.0 listens there."
            ) from error
        except OSError as error:
            kind = TpmBusyError if error.errno == errno.EBUSY else TpmFailedError
            raise kind(
                f"{self._address} does not carry out commands ({_reason(error)}). Look for the TPM "
                "in the machine's log: journalctl --dmesg --grep tpm."
            ) from error
        return response

    def close(self) -> None:
        os.close(self._descriptor)

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._descriptor, event)
        left = self._deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TpmSilentError(
                f"{self._address} did not answer as a whole in time. Check that it is a TPM 2.0 "
                "and that no other program holds it, then try again."
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
    transport = _DescriptorTransport(descriptor, address, deadline)
    try:
        yield transport
    finally:
        transport.close()


def _open_device(address: Address) -> int:
    path = address.place
    try:
        status = os.stat(path)  # noqa: PTH116 - os.open and os.stat beside each other
        if not stat.S_ISCHR(status.st_mode):
            raise NotATpmError(
                f"{path} is not a character device, so it is not a TPM. Check SERVICE_TPM."
            )
        # O_NOCTTY: a wrong address that is a terminal must not become this process's own.
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except PermissionError as error:
        raise TpmForbiddenError(_forbidden(path, error)) from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise TpmBusyError(
                f"Another program holds {path}. Use /dev/tpmrm0, which programs can share."
            ) from error
        raise TpmAbsentError(
            f"There is no TPM at {path} ({_reason(error)}). Switch it on in the machine's "
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
            raise TpmForbiddenError(_forbidden(address.place, error)) from error
        except (BlockingIOError, TimeoutError) as error:
            raise TpmBusyError(
                f"{address} takes no connection: other programs are waiting for it. Try again."
            ) from error
        except OSError as error:
            raise TpmAbsentError(
                f"No TPM listens at {address} ({_reason(error)}). Start the software TPM, or "
                "correct SERVICE_TPM."
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
        status = os.stat(path)  # noqa: PTH116 - as above
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


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def execute(
    transport: Transport,
    code: int,
    parameters: bytes = b"",
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Send a command without sessions and return the parameters of its response.

    A TPM that says it is busy is asked again, with growing pauses of 2.5 s in total.

    Args:
        transport: Carries the command.
        code: The command code (Part 2, 6.5).
        parameters: What follows the header; at most 4,086 bytes.
        sleep: Waits that many seconds.

    Raises:
        TpmBusyError: It was still busy at the last try.
        TpmLockedOutError: It refuses because of its lock-out.
        TpmFailedError: It is in failure mode, not started, or its firmware is being replaced.
        NotATpmError: The response is none, or the TPM does not know the command.
        TpmError: Whatever the transport raises.
    """
    size = _HEADER + len(parameters)
    if size > MAX_MESSAGE:
        raise ValueError(f"A TPM takes commands of {MAX_MESSAGE} bytes; this one has {size}.")
    command = _u16(_NO_SESSIONS) + _u32(size) + _u32(code) + parameters
    for delay in (*_RETRY_DELAYS, None):
        status, answer = parse_response(transport.exchange(command))
        if status == 0:
            return answer
        if status in _FAILURES:
            kind, message = _FAILURES[status]
            raise kind(message)
        if status not in _BUSY_CODES:
            raise _malformed(f"it refuses command 0x{code:03x} with response code 0x{status:03x}")
        if delay is not None:
            sleep(delay)
    raise TpmBusyError(
        f"The TPM was still busy (response code 0x{status:03x}) at the last of "
        f"{len(_RETRY_DELAYS) + 1} tries. Try again in a minute."
    )


def parse_response(response: bytes) -> tuple[int, bytes]:
    """Return the response code and the parameters of a response without sessions (Part 1, 18).

    Raises:
        NotATpmError: The header is not one, or its size is not that of the response.
    """
    size = _declared_size(response)
    reader = _Reader(response)
    tag, _, code = reader.number(2), reader.number(4), reader.number(4)
    if size != len(response):
        raise _malformed(f"a response of {len(response)} bytes says that it has {size}")
    if tag != _NO_SESSIONS:
        raise _malformed("it answers with a session where none was opened")
    if code and size != _HEADER:
        raise _malformed(f"a refusal, response code 0x{code:03x}, has {size} bytes, not 10")
    return code, response[_HEADER:]


def _declared_size(start: bytes) -> int:
    reader = _Reader(start)
    tag, size = reader.number(2), reader.number(4)
    if tag == _TPM_1_2_RESPONSE:
        raise NotATpmError("This is a TPM 1.2; a TPM 2.0 is needed.")
    if tag not in (_NO_SESSIONS, _SESSIONS):
        raise _malformed("its response does not begin like one")
    if not _HEADER <= size <= MAX_MESSAGE:
        raise _malformed(f"a response says that it has {size} bytes")
    return size


def parse_capability(
    parameters: bytes, *, capability: int, first: int, count: int
) -> tuple[dict[int, int], bool]:
    """Return the items of a response to ``TPM2_GetCapability``, and whether there are more.

    Args:
        parameters: Parameters of the response.
        capability: The list that was asked for.
        first: The first item that was asked for.
        count: How many items were asked for.

    Returns:
        Each item's number with its value or attributes (0 for a curve), and more data.

    Raises:
        NotATpmError: It is another list, its counts do not fit, or it is out of order.
    """
    reader = _Reader(parameters)
    more, answered, length = reader.number(1), reader.number(4), reader.number(4)
    if more > 1 or answered != capability:
        raise _malformed("it answers with another list than it was asked for")
    if length > count or (more and not length):
        raise _malformed(f"it lists {length} items where {count} were asked for")
    number_size, value_size = _ITEM_SIZES[capability]
    items: dict[int, int] = {}
    lowest = first
    for _ in range(length):
        number, value = reader.number(number_size), reader.number(value_size)
        if number < lowest:
            raise _malformed("its list is out of order")
        items[number] = value
        lowest = number + 1
    reader.end()
    return items, bool(more)


def parse_test_result(parameters: bytes) -> int:
    """Return the test result in a response to ``TPM2_GetTestResult``, a response code.

    Raises:
        NotATpmError: The response has other parts than its two.
    """
    reader = _Reader(parameters)
    reader.take(reader.number(2))
    result = reader.number(4)
    reader.end()
    return result


class _Reader:
    """Takes numbers and bytes off a message, never past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        taken = self._data[self._position : self._position + size]
        if len(taken) != size:
            raise _malformed("a response ends early")
        self._position += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def end(self) -> None:
        if self._position != len(self._data):
            raise _malformed("a response goes on after its end")


def _malformed(what: str) -> NotATpmError:
    return NotATpmError(
        f"What answers is not a TPM 2.0, or a broken one: {what}. Check the address in SERVICE_TPM."
    )


def _u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def probe(
    address: str = DEFAULT_ADDRESS,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    sleep: Callable[[float], None] = time.sleep,
) -> TpmReport:
    """Ask the TPM at ``address`` what it is, and change nothing in it.

    Args:
        address: As in `parse_address`.
        timeout: Seconds for the whole probe.
        sleep: Waits that many seconds while the TPM is busy.

    Raises:
        ConfigurationError: The address is not one.
        TpmError: No TPM 2.0 can be used there; its subclass says why.
    """
    where = parse_address(address)
    with open_transport(where, timeout=timeout) as transport:
        return ask(transport, where, sleep=sleep)


def ask(
    transport: Transport, address: Address, *, sleep: Callable[[float], None] = time.sleep
) -> TpmReport:
    """Return what the TPM behind an open transport says of itself.

    Raises:
        TpmError: It is not a TPM 2.0, or it does not work now.
    """

    def items(capability: int, first: int, last: int) -> dict[int, int]:
        return _list(transport, capability, first, last, sleep)

    result = parse_test_result(execute(transport, GET_TEST_RESULT, sleep=sleep))
    if result in _FAILURES:
        kind, message = _FAILURES[result]
        raise kind(message)
    fixed = items(_PROPERTIES, _FAMILY, _FIRMWARE_2)
    family = _text(_required(fixed, _FAMILY))
    if family != "2.0":
        raise NotATpmError(f"This is a TPM of family {family!a}; a TPM 2.0 is needed.")
    now = items(_PROPERTIES, _PERMANENT, _INTERVAL)
    permanent = _required(now, _PERMANENT)
    algorithms = items(_ALGORITHMS, 1, 0xFFFF).keys()
    curves = items(_CURVES, 1, 0xFFFF).keys()
    missing = [name for name, needed in _NEEDED_ALGORITHMS.items() if not needed <= algorithms]
    if _P256 not in curves and "ECC P-256" not in missing:
        missing.insert(0, "ECC P-256")
    return TpmReport(
        address=address,
        manufacturer=_text(_required(fixed, _MANUFACTURER)),
        vendor=_text(*(fixed.get(part, 0) for part in _VENDOR_STRINGS)),
        firmware=f"{_required(fixed, _FIRMWARE_1):08x}.{_required(fixed, _FIRMWARE_2):08x}",
        missing_algorithms=tuple(missing),
        owner_password=bool(permanent & _OWNER_AUTH_SET),
        lockout_password=bool(permanent & _LOCKOUT_AUTH_SET),
        locked_out=bool(permanent & _IN_LOCKOUT),
        failed_tries=_required(now, _LOCKOUT_COUNTER),
        max_tries=_required(now, _MAX_TRIES),
        lockout_interval=_required(now, _INTERVAL),
    )


def _list(
    transport: Transport,
    capability: int,
    first: int,
    last: int,
    sleep: Callable[[float], None],
) -> dict[int, int]:
    """Return the items from ``first`` to ``last``, page by page: a TPM answers in pieces."""
    items: dict[int, int] = {}
    for _ in range(_MAX_PAGES):
        count = min(last - first + 1, _PAGE)
        request = _u32(capability) + _u32(first) + _u32(count)
        answer = execute(transport, GET_CAPABILITY, request, sleep=sleep)
        page, more = parse_capability(answer, capability=capability, first=first, count=count)
        items |= page
        first = max(page, default=first) + 1
        if not more or first > last:
            return items
    raise _malformed("its list has no end")


def _required(properties: dict[int, int], number: int) -> int:
    if number not in properties:
        raise _malformed(f"it does not tell property 0x{number:x}, which every TPM 2.0 has")
    return properties[number]


def _text(*parts: int) -> str:
    """Return a property that is text; what a terminal could act on becomes a question mark."""
    text = b"".join(map(_u32, parts)).rstrip(b"\0")
    printable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in text)
    return " ".join(printable.split())


def describe(report: TpmReport) -> str:
    """Return a report as lines for people."""
    missing = report.missing_algorithms
    lines = [f"TPM 2.0 at {report.address}"]
    for name, value in (
        ("manufacturer", f"{report.manufacturer} {report.vendor}".rstrip()),
        ("firmware", report.firmware),
        *((name, "missing" if name in missing else "present") for name in _NEEDED_ALGORITHMS),
        ("owner password", "set" if report.owner_password else "not set"),
        ("lock-out password", "set" if report.lockout_password else "not set"),
        ("lock-out", "active" if report.locked_out else "not active"),
        ("failed tries", f"{report.failed_tries} of {report.max_tries}"),
    ):
        lines.append(f"  {name:<19}{value}")
    lines.append("")
    if missing:
        lines.append(f"It cannot be used for a key: it lacks {' and '.join(missing)}.")
    elif report.locked_out:
        lines.append(
            "It cannot be used for a key now: it is locked out after too many wrong passwords. "
            f"It forgives one every {report.lockout_interval} s."
        )
    else:
        lines.append("This user can use it for a key.")
    lines.append(
        "Nothing is kept in it: the key of this version is in the key file or container secret."
    )
    return "\n".join(lines)


def add_command(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command ``tpm``."""
    parser = subcommands.add_parser(
        "tpm",
        help="tell whether this user can use a TPM 2.0 here",
        description="Tell whether this machine and this user can use a TPM 2.0 for a key. "
        "Asks the TPM what it is and changes nothing in it. "
        "Exit codes: 0 it can be used, 1 it is there and cannot be used, 2 an error.",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("SERVICE_TPM") or DEFAULT_ADDRESS,
        help="a device, unix:/path or tcp:127.0.0.1:port of a software TPM "
        "(default: SERVICE_TPM, else /dev/tpmrm0)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report of the TPM at ``arguments.address``.

    Returns:
        The exit code: 0 when this user can use it for a key, otherwise 1.

    Raises:
        ConfigurationError: The address is not one.
        TpmError: No TPM 2.0 can be used there.
    """
    report = probe(arguments.address)
    print(describe(report))
    return 0 if report.usable else 1
