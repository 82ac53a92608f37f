"""What a slot of the envelope says of a key that a TPM holds.

Its members: ``srk_name``, 34 bytes in hexadecimal; ``private`` and ``public``, the sealed object in
base64, each with its size before it, as the files of tpm2-tools have it; ``pcrs``, the numbers of
the PCRs with commas between them. The sealed box of the slot is bound to ``srk_name || PCRs``.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from . import errors
from .areas import sealed_policy
from .marshalling import Reader, sized
from .pcrs import PcrSelection

_NAME: Final = re.compile("000b[0-9a-f]{64}")
"""A name in hexadecimal digits: the number of SHA-256, and a digest."""

_MEMBERS: Final = {"srk_name", "private", "public", "pcrs"}
_MAX_BYTES: Final = 1024
"""Of a private or public area; those of a sealed key have about 200 and 80."""


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A sealed wrapping key.

    Attributes:
        root_key_name: The name of the key that it is sealed under, 34 bytes.
        private: Its private area, which the TPM encrypted.
        public: Its public area.
        pcrs: What it is bound to.
    """

    root_key_name: bytes
    private: bytes
    public: bytes
    pcrs: PcrSelection

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> Self:
        """Return what the members of a slot say.

        Raises:
            SealedKeyDamagedError: They are not what ``fields`` gave.
        """
        if fields.keys() != _MEMBERS or not all(type(text) is str for text in fields.values()):
            raise errors.damaged()
        name, pcrs = fields["srk_name"], PcrSelection.parse(fields["pcrs"])
        if pcrs is None or not _NAME.fullmatch(name):
            raise errors.damaged()
        public = _sized(fields["public"])
        policy = sealed_policy(public)
        if policy is None or bool(policy) != bool(pcrs):
            raise errors.damaged()
        return cls(bytes.fromhex(name), _sized(fields["private"]), public, pcrs)

    @property
    def fields(self) -> dict[str, str]:
        """The members of the slot."""
        return {
            "srk_name": self.root_key_name.hex(),
            "private": base64.b64encode(sized(self.private)).decode(),
            "public": base64.b64encode(sized(self.public)).decode(),
            "pcrs": str(self.pcrs),
        }

    @property
    def binding(self) -> bytes:
        """What the sealed box of the slot is bound to."""
        return self.root_key_name + bytes(self.pcrs)


def _sized(text: str) -> bytes:
    """Return the contents of a sized field in base64 (RFC 4648, section 4)."""
    try:
        data = base64.b64decode(text, validate=True)
        if len(data) > _MAX_BYTES or base64.b64encode(data).decode() != text:
            raise errors.damaged()
        reader = Reader(data)
        contents = reader.sized()
        reader.end()
    except (ValueError, errors.NotATpmError):
        raise errors.damaged() from None
    return contents
