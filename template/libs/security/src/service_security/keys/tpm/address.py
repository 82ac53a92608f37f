"""Where a TPM is: a device, or a software TPM on this machine."""

import contextlib
import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Final, Literal

from ...errors import ConfigurationError

DEFAULT_ADDRESS: Final = "/dev/tpmrm0"
"""The kernel's device behind its resource manager, which several programs may share."""

_MAX_PATH = 107  # bytes of a UNIX socket's address, less its final zero


@dataclass(frozen=True)
class Address:
    """A character device, or the socket of a software TPM.

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


def parse_address(text: str) -> Address:
    """Return the address that ``/dev/tpmrm0``, ``unix:/path`` or ``tcp:127.0.0.1:2321`` names.

    Raises:
        ConfigurationError: It is none of them, or a TCP address beyond loopback: the commands
            of a TPM are neither encrypted nor authenticated, so over a network whoever sits in
            between is the TPM.
    """
    kind, _, place = text.partition(":")
    if text.isprintable():  # so that it can stand in later messages
        if text.startswith("/"):
            return Address("device", text)
        if kind == "unix" and place.startswith("/") and len(os.fsencode(place)) <= _MAX_PATH:
            return Address("unix", place)
        host, _, port = place.rpartition(":")
        if kind == "tcp" and re.fullmatch("[1-9][0-9]{0,4}", port) and int(port) < 65536:
            return Address("tcp", _loopback(host), int(port))
    raise ConfigurationError(
        "That is not the address of a TPM. It has to be a device like /dev/tpmrm0, or a software "
        "TPM like unix:/run/swtpm/socket or tcp:127.0.0.1:2321; in SERVICE_KEY_SOURCE, tpm2: goes "
        "before it. What was given is not shown here, for it may be a key."
    )


def _loopback(host: str) -> str:
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if ip.is_loopback:
            return str(ip)
    raise ConfigurationError(
        "A TPM is not spoken to over a network, and that is not a loopback address: its commands "
        "are not authenticated. Use 127.0.0.1, a UNIX socket or the device."
    )
