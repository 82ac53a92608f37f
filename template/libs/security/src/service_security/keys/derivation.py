"""Every key is derived here, by HKDF-SHA256 (RFC 5869) with a context of its own.

::

    info(x) = "service-security/v1/" || x
    master_id = HKDF(master, salt="", info("master-id"), 32)

The master key is used as HKDF input only, so no two uses of it can meet.
"""

from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..secret_bytes import SecretBytes

KEY_BYTES: Final = 32
"""Size of every symmetric key of the library, in bytes."""


def info(context: str) -> bytes:
    """Return the HKDF ``info`` of a context: the library's prefix, then the context."""
    return b"service-security/v1/" + context.encode("ascii")


def derive(
    key: SecretBytes, *, salt: bytes, context: str | bytes, length: int = KEY_BYTES
) -> SecretBytes:
    """Return ``length`` bytes derived from ``key``.

    Args:
        key: The input key.
        salt: A random identifier that separates files of one master key; may be empty.
        context: What the key is for; text is given the library's prefix, bytes are taken as
            they are.
        length: Size of the result in bytes.
    """
    derived = SecretBytes(length)
    label = info(context) if isinstance(context, str) else context
    with key.view as source, derived.view as target:
        HKDF(SHA256(), length, salt, label).derive_into(source, target)
    return derived


def master_id(master: SecretBytes) -> bytes:
    """Return the public 32-byte check value of a master key.

    It is stored in clear and compared on opening, so that a wrong key is told apart from
    damage. It gives nothing away about the key beyond equality.
    """
    with derive(master, salt=b"", context="master-id") as identifier, identifier.view as view:
        return bytes(view)
