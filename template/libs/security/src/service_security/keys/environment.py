"""A wrapping key in an environment variable: for platforms that deliver secrets no other way.

A variable stays in the process's initial stack for as long as the process runs, root and the same
user read it in ``/proc/PID/environ``, and every child process inherits it. A file is better.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigurationError, KeyUnavailableError
from ..secret_bytes import SecretBytes
from .derivation import KEY_BYTES
from .provider import ENVIRONMENT, WrappingKey


@dataclass(frozen=True, slots=True)
class EnvironmentKey:
    """A variable with 32 bytes in base64 (RFC 4648, section 4, with its padding).

    Attributes:
        name: Of the variable.
    """

    name: str
    slot_type = ENVIRONMENT

    def __str__(self) -> str:
        return f"env:{self.name}"

    def probe(self) -> None:
        """See that the variable holds a key."""
        self.protect().close()

    def protect(self) -> WrappingKey:
        """Return the key in the variable.

        Raises:
            KeyUnavailableError: The variable is not set.
            ConfigurationError: It does not hold 32 bytes in base64.
        """
        text = os.environ.get(self.name)
        if not text:
            raise KeyUnavailableError(
                f"The variable {self.name} is not set. It has to hold the wrapping key in base64; "
                "SERVICE_KEY_SOURCE names it."
            )
        # Strict: a second text for one key, or 64 hexadecimal digits read as base64, would make a
        # key that nobody meant.
        if re.fullmatch(r"[A-Za-z0-9+/]{43}=", text):
            try:
                key = bytearray(base64.b64decode(text, validate=True))
            except binascii.Error:
                key = bytearray()
            try:
                if len(key) == KEY_BYTES and base64.b64encode(key).decode() == text:
                    return WrappingKey(SecretBytes.copy_of(key))
            finally:
                key[:] = bytes(len(key))
        raise ConfigurationError(
            f"The variable {self.name} does not hold a key: it has to be {KEY_BYTES} bytes in "
            "base64, 44 characters, as `head -c 32 /dev/urandom | base64` prints them."
        )

    def unprotect(self, fields: Mapping[str, str]) -> WrappingKey:
        """Return the key in the variable, as ``protect`` does."""
        del fields
        return self.protect()
