r"""Single fields, sealed for a database of someone else's.

::

    K_field = HKDF(master, salt=set_id16, info("field/" || cipher name), 32)
    key_id  = HKDF(master, salt=set_id16, info("field-id"), 4)

    sealed  = 0x01 || cipher u8 || key_id4 || nonce24 || ciphertext || tag16
    AAD     = "SSFD" || 0x01 || cipher u8 || key_id4 || set_id16 || len(context) u32 || context

The database that holds a field belongs to nobody here, so there is no lease and no header: the
nonce is random, which 192 bits allow, and the key check travels with each field, so that a field
of another key is told apart from a damaged one. The context ties a field to its place.
"""

import os
import struct
import threading
from typing import Final, Self

from ..errors import (
    ConfigurationError,
    IntegrityError,
    StoreUnavailableError,
    UnsupportedFormatError,
    WrongKeyError,
)
from ..keys.derivation import KEY_BYTES, derive
from ..secret_bytes import SecretBytes
from .cipher import CIPHERS, NONCE_BYTES, TAG_BYTES, ExtendedNonceCipher, cipher_named
from .nonce import fresh_uuid

FORMAT: Final = 1
SET_ID_BYTES: Final = 16
OVERHEAD: Final = 6 + NONCE_BYTES + TAG_BYTES
"""How many bytes longer a sealed field is than its value."""
MAX_CONTEXT_BYTES: Final = 2**16 - 1
MAX_VALUE_BYTES: Final = 2**29
_KEY_ID_BYTES: Final = 4


class FieldSealer:
    """Seals and opens fields that are kept in another database.

    Threads may share one object; a forked child makes its own.

    Args:
        master_key: 32 bytes. Used during this call only; the caller closes it.
        set_id: 16 random bytes, made once and kept by the caller, in the code or beside the data.
            Not secret, but no field opens without it. Another one makes another key.
        cipher: What new fields are sealed with: ``xchacha20poly1305`` or ``aes256gcm``. Fields of
            both are opened.

    Raises:
        ConfigurationError: The key or the identifier has another length, or there is no such
            cipher.
    """

    def __init__(
        self, master_key: SecretBytes, set_id: bytes, *, cipher: str = "xchacha20poly1305"
    ) -> None:
        if len(master_key) != KEY_BYTES:
            raise ConfigurationError(
                f"A master key has {KEY_BYTES} bytes; this one has {len(master_key)}."
            )
        if not isinstance(set_id, bytes) or len(set_id) != SET_ID_BYTES:
            raise ConfigurationError(
                f"The identifier of a set of fields is {SET_ID_BYTES} random bytes. Make them "
                "once with secrets.token_bytes, and keep them."
            )
        self._set_id = set_id
        self._sealing = cipher_named(cipher)
        with derive(master_key, salt=set_id, context="field-id", length=_KEY_ID_BYTES) as key_id:
            self._key_id = bytes(key_id.view)
        self._keys: list[SecretBytes] = []
        self._ciphers: dict[int, ExtendedNonceCipher] = {}
        for kind in CIPHERS.values():
            key = derive(master_key, salt=set_id, context="field/" + kind.name)
            self._keys.append(key)
            self._ciphers[kind.code] = kind(key)
        self._lock = threading.Lock()

    def seal(self, value: bytes, *, context: bytes) -> bytes:
        """Return ``value`` sealed for one place, :data:`OVERHEAD` bytes longer.

        Sealing the same value twice gives two different results.

        Args:
            value: At most 512 MiB. Its length can be seen.
            context: The place of the field, as of :func:`context_of`: needed again to open it,
                not stored. 1 to 65,535 bytes.

        Raises:
            TypeError: Either is not ``bytes``.
            ValueError: Either is too long, or the context is empty.
            StoreUnavailableError: The sealer is closed, or was made before a fork.
        """
        _check_type(value, "value")
        if len(value) > MAX_VALUE_BYTES:
            raise ValueError(f"a field has at most {MAX_VALUE_BYTES} bytes, not {len(value)}")
        head = struct.pack(">BB4s", FORMAT, self._sealing.code, self._key_id)
        aad = self._aad(head, context)
        self._check()
        with self._lock:
            cipher = self._cipher(self._sealing.code)
            # Drawn after the value is fixed and used once: a process restored twice from one
            # snapshot would otherwise seal two values under one nonce.
            nonce = fresh_uuid() + os.urandom(NONCE_BYTES - 16)
            return head + nonce + cipher.encrypt(nonce, value, aad)

    def open(self, sealed: bytes, *, context: bytes) -> bytes:
        """Return the value of a sealed field.

        Args:
            sealed: What ``seal`` returned.
            context: What was given to ``seal``.

        Raises:
            TypeError: Either is not ``bytes``.
            ValueError: The context is empty or too long.
            IntegrityError: It was changed, is no sealed field, or belongs to another place.
            WrongKeyError: Another master key or another set of fields sealed it (or the four
                bytes that tell were changed).
            UnsupportedFormatError: Another version of the library sealed it.
            StoreUnavailableError: The sealer is closed, or was made before a fork.
        """
        _check_type(sealed, "sealed field")
        head, body = sealed[:6], sealed[6:]
        aad = self._aad(head, context)
        self._check()
        if len(sealed) < OVERHEAD:
            raise IntegrityError("A field failed its integrity check.")
        if head[0] != FORMAT:
            raise UnsupportedFormatError(
                f"A field has format {head[0]}; this version of service-security reads format "
                f"{FORMAT}. Use the version that wrote it."
            )
        if head[2:] != self._key_id:
            raise WrongKeyError(
                "The key is not the one of this field. Use the master key and the identifier that "
                "it was sealed with."
            )
        with self._lock:
            try:
                cipher = self._cipher(head[1])
                return cipher.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], aad)
            except (KeyError, IntegrityError):
                raise IntegrityError("A field failed its integrity check.") from None

    def close(self) -> None:
        """Wipe the keys. Closing twice is allowed."""
        # Without the lock: in a forked child another thread of the parent may hold it for ever.
        self._ciphers = {}
        for key in self._keys:
            key.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FieldSealer {self._sealing.name}{'' if self._ciphers else ' (closed)'}>"

    def _check(self) -> None:
        """Refuse a closed sealer, and one of the process that this one was forked from."""
        try:
            self._keys[0].check()
        except ValueError:
            raise StoreUnavailableError("The field sealer is closed.") from None

    def _cipher(self, code: int) -> ExtendedNonceCipher:
        ciphers = self._ciphers
        if not ciphers:  # closed by another thread since the check
            raise StoreUnavailableError("The field sealer is closed.")
        return ciphers[code]

    def _aad(self, head: bytes, context: bytes) -> bytes:
        _check_type(context, "context")
        if not 0 < len(context) <= MAX_CONTEXT_BYTES:
            raise ValueError(
                f"a context has 1 to {MAX_CONTEXT_BYTES} bytes, not {len(context)}: say which "
                "field this is"
            )
        return b"SSFD" + head + self._set_id + len(context).to_bytes(4) + context


def context_of(*parts: str | bytes) -> bytes:
    """Return the context of a field out of what names its place: table, column, primary key.

    Each part is preceded by its length (u32, big-endian), so that no two places give the same
    bytes, as ``("a", "bc")`` and ``("ab", "c")`` would. Text is UTF-8.
    """
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(4) + part for part in encoded)


def _check_type(data: object, what: str) -> None:
    # Only bytes: a bytearray could change while it is sealed.
    if not isinstance(data, bytes):
        raise TypeError(f"a {what} is bytes, not {type(data).__name__}")
