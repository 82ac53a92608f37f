"""What a TPM says of itself when it is asked, which changes nothing in it.

Only ``TPM2_GetTestResult``, ``TPM2_GetCapability`` and ``TPM2_ReadPublic`` are sent, without a
session and without a password (TCG TPM 2.0 Library, Part 3, 10.4, 30.2 and 12.4).
"""

import functools
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from . import errors, framing
from .address import DEFAULT_ADDRESS, Address, parse_address
from .client import Client
from .errors import NotATpmError, failure, malformed
from .root_key import HANDLE
from .transport import DEFAULT_TIMEOUT, Transport, execute, open_transport

NEEDED_ALGORITHMS: Final = {
    "ECC P-256": ({0x0023}, {0x0003}),
    "SHA-256": ({0x000B}, set()),
    "AES-128-CFB": ({0x0006, 0x0043}, set()),
}
"""What a key needs: algorithms and curves by their numbers (Part 2, 6.3 and 6.4). They are listed
without key sizes; every TPM with AES has 128 bits (PC Client Platform TPM Profile)."""

# TPM_PT, Part 2, 6.13
_FAMILY, _MANUFACTURER, _VENDOR_STRINGS = 0x100, 0x105, range(0x106, 0x10A)
_FIRMWARE_1, _FIRMWARE_2 = 0x10B, 0x10C
_PERMANENT, _STARTUP_CLEAR = 0x200, 0x201
_LOCKOUT_COUNTER, _MAX_TRIES, _INTERVAL = 0x20E, 0x20F, 0x210
# TPMA_PERMANENT, Part 2, 8.6
_OWNER_AUTH_SET, _LOCKOUT_AUTH_SET, _IN_LOCKOUT = 1 << 0, 1 << 2, 1 << 9
_OWNER_HIERARCHY = 1 << 1  # TPMA_STARTUP_CLEAR, Part 2, 8.7

_PAGE = 127  # properties in a MAX_CAP_BUFFER of 1,024 bytes, the least that is common
_MAX_PAGES = 32


@dataclass(frozen=True)
class TpmReport:
    """What a TPM says of itself.

    Attributes:
        address: Where it answered.
        manufacturer: The vendor's four letters, as registered with the TCG.
        vendor: The vendor's own name of the part; may be empty.
        firmware: Version of its firmware, two 32-bit halves in hexadecimal.
        missing_algorithms: Those of `NEEDED_ALGORITHMS` that it lacks.
        root_key: Whether a root key is kept in it that a key can be sealed under.
        owner_hierarchy: Whether it holds keys of its owner at all.
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
    root_key: bool
    owner_hierarchy: bool
    owner_password: bool
    lockout_password: bool
    locked_out: bool
    failed_tries: int
    max_tries: int
    lockout_interval: int

    @property
    def obstacle(self) -> errors.TpmError | None:
        """Why this user cannot use it for a key now; None if nothing stands in the way.

        The lock-out does not: it holds for passwords, and a sealed key has none that counts.
        """
        if self.missing_algorithms:
            return errors.TpmUnsuitableError(
                f"The TPM lacks {' and '.join(self.missing_algorithms)}, so that it cannot hold a "
                "key. Keep the key elsewhere."
            )
        if not self.owner_hierarchy:
            return errors.hierarchy_off()
        if self.owner_password and not self.root_key:
            return errors.owner_password()
        return None


def probe(address: str = DEFAULT_ADDRESS, *, timeout: float = DEFAULT_TIMEOUT) -> TpmReport:
    """Ask the TPM at ``address`` what it is, and change nothing in it.

    Args:
        address: As in `parse_address`.
        timeout: Seconds for the whole probe.

    Raises:
        ConfigurationError: The address is not one.
        TpmError: No TPM 2.0 can be used there; its subclass says why.
    """
    where = parse_address(address)
    with open_transport(where, timeout=timeout) as transport:
        return ask(transport, where)


def ask(
    transport: Transport, address: Address, *, sleep: Callable[[float], None] = time.sleep
) -> TpmReport:
    """Return what the TPM behind an open transport says of itself.

    Args:
        transport: Carries the questions.
        address: Where it leads, for the report.
        sleep: Waits that many seconds while the TPM is busy.

    Raises:
        TpmError: It is not a TPM 2.0, or it does not work now.
    """
    send = functools.partial(execute, transport, sleep=sleep)
    if error := failure(framing.parse_test_result(send(framing.GET_TEST_RESULT))):
        raise error
    fixed = _list(send, framing.PROPERTIES, _FAMILY, _FIRMWARE_2)
    family = _text(_required(fixed, _FAMILY))
    if family != "2.0":
        raise NotATpmError(f"This is a TPM of family {family!a}; a TPM 2.0 is needed.")
    now = _list(send, framing.PROPERTIES, _PERMANENT, _INTERVAL)
    permanent = _required(now, _PERMANENT)
    algorithms = _list(send, framing.ALGORITHMS, 1, 0xFFFF).keys()
    curves = _list(send, framing.CURVES, 1, 0xFFFF).keys()
    return TpmReport(
        address=address,
        manufacturer=_text(_required(fixed, _MANUFACTURER)),
        vendor=_text(*(fixed.get(part, 0) for part in _VENDOR_STRINGS)),
        firmware=f"{_required(fixed, _FIRMWARE_1):08x}.{_required(fixed, _FIRMWARE_2):08x}",
        missing_algorithms=tuple(
            name
            for name, (its_algorithms, its_curves) in NEEDED_ALGORITHMS.items()
            if not (its_algorithms <= algorithms and its_curves <= curves)
        ),
        root_key=Client(transport, sleep=sleep).root_key_at(HANDLE) is not None,
        owner_hierarchy=bool(_required(now, _STARTUP_CLEAR) & _OWNER_HIERARCHY),
        owner_password=bool(permanent & _OWNER_AUTH_SET),
        lockout_password=bool(permanent & _LOCKOUT_AUTH_SET),
        locked_out=bool(permanent & _IN_LOCKOUT),
        failed_tries=_required(now, _LOCKOUT_COUNTER),
        max_tries=_required(now, _MAX_TRIES),
        lockout_interval=_required(now, _INTERVAL),
    )


def _list(
    send: Callable[[int, bytes], bytes], capability: int, first: int, last: int
) -> dict[int, int]:
    """Return the items from ``first`` to ``last``, page by page: a TPM answers in pieces."""
    items: dict[int, int] = {}
    for _ in range(_MAX_PAGES):
        count = min(last - first + 1, _PAGE)
        answer = send(framing.GET_CAPABILITY, struct.pack(">III", capability, first, count))
        page, more = framing.parse_capability(
            answer, capability=capability, first=first, count=count
        )
        items |= page
        first = max(page, default=first) + 1
        if not more or first > last:
            return items
    raise malformed("its list has no end")


def _required(properties: dict[int, int], number: int) -> int:
    if number not in properties:
        raise malformed(f"it does not tell property 0x{number:x}, which every TPM 2.0 has")
    return properties[number]


def _text(*parts: int) -> str:
    """Return a property that is text; what a terminal could act on becomes a question mark."""
    text = b"".join(part.to_bytes(4) for part in parts).rstrip(b"\0")
    printable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in text)
    return " ".join(printable.split())
