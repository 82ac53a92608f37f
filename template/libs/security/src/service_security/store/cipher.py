"""The two record ciphers: AEADs with a 256-bit key and a 192-bit nonce.

``xchacha20poly1305``
    XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03): HChaCha20 turns the key and 16 bytes of the
    nonce into a subkey for ChaCha20-Poly1305 (RFC 8439).
``aes256gcm``
    XAES-256-GCM (C2SP): a CMAC-based KDF turns the key and 12 bytes of the nonce into a subkey
    for AES-256-GCM. Only NIST-approved primitives.

Both extend the nonce of a standard AEAD by a subkey that depends on the front of the nonce only.
The store puts a random uuid there, so one subkey serves a whole batch.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ..errors import ConfigurationError, IntegrityError
from ..secret_bytes import SecretBytes
from .self_test import run_self_test

NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16
_CACHED_SUBKEYS: Final = 1024
_C0, _C1, _C2, _C3 = struct.unpack("<4I", b"expand 32-byte k")
_WORD: Final = 0xFFFFFFFF


class _Aead(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes: ...


class HChaCha20:
    """HChaCha20 (draft-irtf-cfrg-xchacha-03, section 2.2) out of OpenSSL's ChaCha20.

    The ChaCha20 block function adds the initial state to its result as the last step, and
    HChaCha20 is the block function without that step: subtract it again. The first and the last
    four words of the state are known constants and the input, so no key word is touched.

    Args:
        key: 32 bytes; OpenSSL keeps a copy for as long as this object lives.
    """

    _WORDS = struct.Struct("<4I32x4I")
    _FRONT = struct.Struct("<4I")
    _SUBKEY = struct.Struct("<8I")
    _ZEROS = bytes(64)

    def __init__(self, key: SecretBytes) -> None:
        with key.view as view:
            self._block = Cipher(algorithms.ChaCha20(view, bytes(16)), mode=None).encryptor()
        self._output = bytearray(64)
        self._subkey = memoryview(self._output)[:32]

    def subkey(self, front: bytes) -> memoryview:
        """Return the 32-byte subkey of 16 bytes of nonce, which stays there until ``wipe``."""
        self._block.reset_nonce(front)
        self._block.update_into(self._ZEROS, self._output)
        a, b, c, d, e, f, g, h = self._WORDS.unpack_from(self._output)
        p, q, r, s = self._FRONT.unpack(front)
        self._SUBKEY.pack_into(  # written out: a loop would take a quarter longer
            self._output,
            0,
            (a - _C0) & _WORD,
            (b - _C1) & _WORD,
            (c - _C2) & _WORD,
            (d - _C3) & _WORD,
            (e - p) & _WORD,
            (f - q) & _WORD,
            (g - r) & _WORD,
            (h - s) & _WORD,
        )
        return self._subkey

    def wipe(self) -> None:
        """Wipe the subkey and what it was made from."""
        self._output[:] = self._ZEROS


class ExtendedNonceCipher(ABC):
    """What both ciphers share: a subkey per nonce front, kept for reuse.

    Not for several threads at once: the store holds its lock.

    Args:
        key: 32 bytes; OpenSSL keeps what it makes of them for as long as this object lives.
    """

    name: ClassVar[str]
    """Name in settings, and in the derivation of the record key."""
    code: ClassVar[int]
    """Number in the associated data and in the keyset."""
    _front: ClassVar[int]
    """Size of the part of the nonce that the subkey depends on, in bytes."""
    _fill: ClassVar[bytes]
    """What the rest of the nonce is prefixed with, to make the 12 bytes of the inner AEAD's."""

    def __init__(self, key: SecretBytes) -> None:
        self._subkey = self._subkey_function(key)
        self._aeads: dict[bytes, _Aead] = {}
        self._seen: set[bytes] = set()

    def encrypt(self, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        """Return ciphertext and 16-byte tag.

        Args:
            nonce: 24 bytes, never used before under this key. The caller answers for that.
            plaintext: At most 2**36 bytes.
            aad: Bytes that are authenticated with it and not stored.
        """
        if len(nonce) != NONCE_BYTES:
            raise _wrong_length(nonce)
        front = nonce[: self._front]
        aead = self._aeads.get(front) or self._new_aead(front)
        return aead.encrypt(self._fill + nonce[self._front :], plaintext, aad)

    def decrypt(self, nonce: bytes, sealed: bytes, aad: bytes) -> bytes:
        """Return the plaintext.

        Raises:
            IntegrityError: Nonce, ciphertext, tag or associated data are not what was sealed.
        """
        if len(nonce) != NONCE_BYTES:
            raise _wrong_length(nonce)
        front = nonce[: self._front]
        aead = self._aeads.get(front) or self._new_aead(front)
        try:
            return aead.decrypt(self._fill + nonce[self._front :], sealed, aad)
        except InvalidTag:
            raise IntegrityError("A record failed its integrity check.") from None

    def _new_aead(self, front: bytes) -> _Aead:
        """Return the AEAD under the subkey of a nonce's front; from its second use on, keep it.

        An AEAD takes 2.3 kB of memory. To keep each for a use that may never come would fill the
        processor's caches with them, which costs an insert more than the subkey itself.
        """
        aead = self._subkey(front)
        if front in self._seen:
            if len(self._aeads) >= _CACHED_SUBKEYS:
                self._aeads.clear()
            self._aeads[front] = aead
        else:
            if len(self._seen) >= _CACHED_SUBKEYS:
                self._seen.clear()
            self._seen.add(front)
        return aead

    @abstractmethod
    def _subkey_function(self, key: SecretBytes) -> Callable[[bytes], _Aead]: ...


class XChaCha20Poly1305(ExtendedNonceCipher):
    """XChaCha20-Poly1305, draft-irtf-cfrg-xchacha-03."""

    name = "xchacha20poly1305"
    code = 1
    _front = 16
    _fill = bytes(4)

    def _subkey_function(self, key: SecretBytes) -> Callable[[bytes], _Aead]:
        hchacha20 = HChaCha20(key)

        def aead(front: bytes) -> _Aead:
            made = ChaCha20Poly1305(hchacha20.subkey(front))
            hchacha20.wipe()
            return made

        return aead


class Xaes256Gcm(ExtendedNonceCipher):
    """XAES-256-GCM, C2SP."""

    name = "aes256gcm"
    code = 2
    _front = 12
    _fill = b""

    def _subkey_function(self, key: SecretBytes) -> Callable[[bytes], _Aead]:
        # NIST SP 800-108 in counter mode over CMAC, for the two fixed one-block inputs
        # 0x0001 || "X" || 0x00 || front and 0x0002 || "X" || 0x00 || front. ECB here is the bare
        # block cipher that CMAC is made of.
        with key.view as view:
            block = Cipher(algorithms.AES(view), modes.ECB()).encryptor()  # noqa: S305
        zero_block = int.from_bytes(block.update(bytes(16)))
        k1 = ((zero_block << 1) & (1 << 128) - 1) ^ (0x87 if zero_block >> 127 else 0)
        first, second = k1 ^ (0x0001_5800 << 96), k1 ^ (0x0002_5800 << 96)
        output, zeros = bytearray(32 + 15), bytes(32 + 15)  # OpenSSL asks for a block less one more
        subkey = memoryview(output)[:32]

        def aead(front: bytes) -> _Aead:
            number = int.from_bytes(front)
            inputs = ((first ^ number) << 128) | (second ^ number)
            block.update_into(inputs.to_bytes(32), output)
            made = AESGCM(subkey)
            output[:] = zeros
            return made

        return aead


def _wrong_length(nonce: bytes) -> ValueError:
    return ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")


CIPHERS: Final[dict[str, type[ExtendedNonceCipher]]] = {
    cipher.name: cipher for cipher in (XChaCha20Poly1305, Xaes256Gcm)
}
"""The ciphers by the name in settings. Both are always there: a file keeps the one it has."""


def cipher_named(name: str) -> type[ExtendedNonceCipher]:
    """Return a cipher by its name.

    Raises:
        ConfigurationError: There is none of that name.
    """
    try:
        return CIPHERS[name]
    except KeyError:
        raise ConfigurationError(
            f"There is no cipher {name!r:.40}. The ciphers are: {', '.join(CIPHERS)}."
        ) from None


run_self_test(CIPHERS.values())
