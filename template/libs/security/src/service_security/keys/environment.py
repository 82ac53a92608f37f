"""A wrapping key in an environment variable: for platforms that deliver secrets no other way.

A variable stays in the process's initial stack for as long as the process runs, root and the same
user read it in ``/proc/PID/environ``, and every child process inherits it. A file is better.
"""

import base64
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

    def protect(self, known: Mapping[str, str] | None = None) -> WrappingKey:
        """Return the key in the variable.

        Raises:
            KeyUnavailableError: The variable is not set.
            ConfigurationError: It does not hold 32 bytes in base64.
        """
        del known
        # No frame of a traceback below has the text among its variables.
        if not os.environ.get(self.name):
            raise KeyUnavailableError(
                f"The variable {self.name} is not set. It has to hold the wrapping key in base64; "
                "SERVICE_KEY_SOURCE names it."
            )
        key = _decoded(os.environ.get(self.name, ""))
        if key is None:
            raise ConfigurationError(
                f"The variable {self.name} does not hold a key: it has to be {KEY_BYTES} bytes in "
                "base64, 44 characters, as `head -c 32 /dev/urandom | base64` prints them."
            )
        return WrappingKey(key)

    def unprotect(self, fields: Mapping[str, str]) -> WrappingKey:
        """Return the key in the variable, as ``protect`` does."""
        del fields
        return self.protect()


def _decoded(text: str) -> SecretBytes | None:
    # Strict: a second text for one key, or 64 hexadecimal digits read as base64, would make a key
    # that nobody meant. The last letter has two bits that no byte has.
    if not re.fullmatch(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=", text):
        return None
    key = SecretBytes(KEY_BYTES)
    with key.view as view:  # in pieces, so that no copy of the whole is left behind
        for place in range(0, KEY_BYTES, 3):
            view[place : place + 3] = base64.b64decode(text[place // 3 * 4 :][:4])
    return key
