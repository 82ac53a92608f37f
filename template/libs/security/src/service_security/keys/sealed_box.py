"""A small secret sealed under a key: the keyset in a database, the master key in an envelope.

::

    box = magic4 || version u8 || fields || salt32 || commit32 || ciphertext || tag16
    key32 || commit32 = HKDF-SHA256(K, salt32, info(purpose) || SHA256(context), 64)
    ciphertext, tag   = AES-256-GCM(key32, nonce 0, AAD = all before ciphertext || context)

The key of a box comes from a fresh 32-byte salt and seals once, which is what makes the zero
nonce safe. ``commit32`` commits to key and context, so a box opens under one key only.
"""

import hashlib
import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import IntegrityError, UnsupportedFormatError, WrongKeyError
from ..secret_bytes import MAX_BYTES, SecretBytes
from .derivation import derive, info

VERSION: Final = 1
_SALT = 32
_COMMIT = 32
_TAG = 16
_ZERO_NONCE = bytes(12)


def seal(
    key: SecretBytes,
    secret: SecretBytes,
    *,
    magic: bytes,
    purpose: str,
    context: bytes,
    fields: bytes = b"",
) -> bytes:
    """Return ``secret`` sealed under ``key``.

    Args:
        key: 32 bytes, used as HKDF input only.
        secret: What to seal.
        magic: Four bytes that name the kind of box.
        purpose: Context of the derivation.
        context: What the box belongs to; needed again to open it.
        fields: Bytes stored in clear and authenticated; of fixed size for a kind of box.
    """
    head = magic + bytes([VERSION]) + fields + os.urandom(_SALT)
    with _box_keys(key, head[-_SALT:], purpose, context) as keys, keys.view as view:
        head += bytes(view[32:])
        with secret.view as plaintext:
            return head + AESGCM(view[:32]).encrypt(_ZERO_NONCE, plaintext, head + context)


def open_box(
    key: SecretBytes,
    box: bytes,
    *,
    magic: bytes,
    purpose: str,
    context: bytes,
    fields_length: int = 0,
) -> tuple[bytes, SecretBytes]:
    """Return the clear fields and the secret of a box.

    Raises:
        IntegrityError: It is not a box of this kind, or its bytes were changed.
        UnsupportedFormatError: Another version of the library wrote it.
        WrongKeyError: The key is not the one that sealed it (or salt, commitment or context
            were changed, which cannot be told apart).
    """
    head_length = 5 + fields_length + _SALT + _COMMIT
    if not head_length + _TAG < len(box) <= head_length + _TAG + MAX_BYTES or box[:4] != magic:
        raise IntegrityError("A sealed key is damaged. Restore the file from a backup.")
    if box[4] != VERSION:
        raise UnsupportedFormatError(
            f"A sealed key has format {box[4]}; this version of service-security reads format "
            f"{VERSION}. Use the version that wrote it."
        )
    head, sealed = box[:head_length], box[head_length:]
    salt = head[-_SALT - _COMMIT : -_COMMIT]
    secret = SecretBytes(len(sealed) - _TAG)
    with _box_keys(key, salt, purpose, context) as keys, keys.view as view:
        if not hmac.compare_digest(view[32:], head[-_COMMIT:]):
            secret.close()
            raise WrongKeyError("The key does not open this box.")
        try:
            with secret.view as plaintext:
                AESGCM(view[:32]).decrypt_into(_ZERO_NONCE, sealed, head + context, plaintext)
        except InvalidTag:
            secret.close()
            raise IntegrityError(
                "A sealed key is damaged. Restore the file from a backup."
            ) from None
    return head[5 : 5 + fields_length], secret


def _box_keys(key: SecretBytes, salt: bytes, purpose: str, context: bytes) -> SecretBytes:
    label = info(purpose) + hashlib.sha256(context).digest()
    return derive(key, salt=salt, context=label, length=64)
