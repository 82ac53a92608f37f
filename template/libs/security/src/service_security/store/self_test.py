"""Known answers of every primitive of the store, computed once when the ciphers are imported.

What computes something else (a miscompiled OpenSSL, a broken accelerator, a replaced module) would
write records that nobody can read, or that everybody can. One published vector each, forwards and
backwards, and a forgery that must be refused.

``cipher`` calls it as its last line: a module that raises is not imported, and neither is what
imports it, however often it is tried. From the package's ``__init__`` a second attempt would find
the modules that the first one had loaded.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import ConfigurationError, IntegrityError
from ..keys.derivation import derive
from ..secret_bytes import SecretBytes

if TYPE_CHECKING:
    from .cipher import ExtendedNonceCipher


class _Vector(NamedTuple):
    key: bytes
    nonce: bytes
    plaintext: bytes
    aad: bytes
    sealed: bytes


_VECTORS: Final = {
    "xchacha20poly1305": _Vector(  # draft-irtf-cfrg-xchacha-03, appendix A.3.1
        key=bytes(range(0x80, 0xA0)),
        nonce=bytes(range(0x40, 0x58)),
        plaintext=b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip "
        b"for the future, sunscreen would be it.",
        aad=bytes.fromhex("50515253c0c1c2c3c4c5c6c7"),
        sealed=bytes.fromhex(
            "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
            "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452"
            "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
            "21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49"
        ),
    ),
    "aes256gcm": _Vector(  # C2SP XAES-256-GCM, the vector for which the CMAC subkey is reduced
        key=b"\x03" * 32,
        nonce=b"ABCDEFGHIJKLMNOPQRSTUVWX",
        plaintext=b"XAES-256-GCM",
        aad=b"c2sp.org/XAES-256-GCM",
        sealed=bytes.fromhex("986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ),
}


def run_self_test(ciphers: Iterable[type["ExtendedNonceCipher"]]) -> None:
    """Compute the known answers of the hash, the MAC, the derivation and these ciphers.

    Raises:
        ConfigurationError: One of them is another here, cannot be computed, or is not known.
    """
    checks: dict[str, Callable[[], bool]] = {
        "SHA-256": _hash_is_right,
        "HMAC-SHA256": _mac_is_right,
        "HKDF-SHA256": _derivation_is_right,
    }
    checks |= {cipher.name: partial(_cipher_is_right, cipher) for cipher in ciphers}
    for name, is_right in checks.items():
        reason: Exception | None = None
        try:
            if is_right():
                continue
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be sealed then
            reason = error
        raise ConfigurationError(
            f"{name} does not give the published answer on this machine, so nothing is encrypted "
            "or decrypted here. Install Python and the cryptography package anew; if that does "
            "not help, suspect the hardware."
        ) from reason


def _cipher_is_right(kind: type["ExtendedNonceCipher"]) -> bool:
    key, nonce, plaintext, aad, sealed = _VECTORS[kind.name]
    with SecretBytes.copy_of(key) as secret:
        cipher = kind(secret)
    if cipher.encrypt(nonce, plaintext, aad) != sealed:
        return False
    if cipher.decrypt(nonce, sealed, aad) != plaintext:
        return False
    try:
        cipher.decrypt(nonce, sealed[:-1] + bytes([sealed[-1] ^ 1]), aad)
    except IntegrityError:
        return True
    return False


def _derivation_is_right() -> bool:
    """RFC 5869, appendix A.1."""
    salt, context = bytes(range(13)), bytes(range(0xF0, 0xFA))
    with (
        SecretBytes.copy_of(b"\x0b" * 22) as key,
        derive(key, salt=salt, context=context, length=42) as derived,
        derived.view as view,
    ):
        return view == bytes.fromhex(
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        )


def _mac_is_right() -> bool:
    """RFC 4231, test case 2, in both of the ways that the store computes it."""
    key, message = b"Jefe", b"what do ya want for nothing?"
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    incremental = hmac.new(key, digestmod="sha256")
    incremental.update(message)
    return hmac.digest(key, message, "sha256").hex() == incremental.hexdigest() == expected


def _hash_is_right() -> bool:
    """FIPS 180-2, appendix B.1."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    return hashlib.sha256(b"abc").hexdigest() == expected
