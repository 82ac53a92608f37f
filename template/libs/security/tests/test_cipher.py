"""Both ciphers against published vectors and against libsodium."""

import hashlib

import nacl.bindings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_security.errors import ConfigurationError, IntegrityError
from service_security.keys.derivation import derive
from service_security.secret_bytes import SecretBytes
from service_security.store.cipher import (
    CIPHERS,
    ExtendedNonceCipher,
    HChaCha20,
    Xaes256Gcm,
    XChaCha20Poly1305,
    cipher_named,
)


def _cipher(kind: type[ExtendedNonceCipher], key: bytes) -> ExtendedNonceCipher:
    return kind(SecretBytes.copy_of(key))


def test_hchacha20_gives_the_published_subkey() -> None:
    """draft-irtf-cfrg-xchacha-03, section 2.2.1."""
    hchacha20 = HChaCha20(SecretBytes.copy_of(bytes(range(32))))
    front = bytes.fromhex("000000090000004a0000000031415927")
    expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert hchacha20.subkey(bytes(16)).hex() != expected
    assert hchacha20.subkey(front).hex() == expected
    assert hchacha20.subkey(front).hex() == expected


def test_xchacha20poly1305_gives_the_published_ciphertext() -> None:
    """draft-irtf-cfrg-xchacha-03, appendix A.3.1."""
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    cipher = _cipher(XChaCha20Poly1305, bytes(range(0x80, 0xA0)))
    sealed = cipher.encrypt(bytes(range(0x40, 0x58)), plaintext, aad)
    assert sealed.hex() == (
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
        "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452"
        "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52e"
        "c0875924c1c7987947deafd8780acf49"
    )


@pytest.mark.parametrize(
    ("key", "aad", "expected"),
    [
        (1, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (3, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
    ids=["msb of L is 0", "msb of L is 1"],
)
def test_xaes_gives_the_published_ciphertexts(key: int, aad: bytes, expected: str) -> None:
    """C2SP XAES-256-GCM, test vectors."""
    cipher = _cipher(Xaes256Gcm, bytes([key]) * 32)
    assert cipher.encrypt(b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM", aad).hex() == expected


def test_xaes_gives_the_published_accumulated_digest() -> None:
    """C2SP XAES-256-GCM, 10,000 random inputs drawn from SHAKE128, hashed with SHAKE128."""
    stream = memoryview(hashlib.shake_128(b"").digest(8_000_000))
    position = 0

    def read(count: int) -> bytes:
        nonlocal position
        position += count
        return bytes(stream[position - count : position])

    accumulated = hashlib.shake_128()
    for _ in range(10_000):
        key, nonce = read(32), read(24)
        plaintext = read(read(1)[0])
        aad = read(read(1)[0])
        with SecretBytes.copy_of(key) as secret:
            accumulated.update(Xaes256Gcm(secret).encrypt(nonce, plaintext, aad))
    assert accumulated.hexdigest(32) == (
        "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
    )


def test_hkdf_gives_the_published_output() -> None:
    """RFC 5869, appendix A.1."""
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    with (
        SecretBytes.copy_of(b"\x0b" * 22) as key,
        derive(key, salt=salt, context=info, length=42) as derived,
        derived.view as view,
    ):
        assert view.hex() == (
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        )


@given(
    key=st.binary(min_size=32, max_size=32),
    nonce=st.binary(min_size=24, max_size=24),
    plaintext=st.binary(max_size=300),
    aad=st.binary(max_size=60),
)
def test_xchacha20poly1305_agrees_with_libsodium(
    key: bytes, nonce: bytes, plaintext: bytes, aad: bytes
) -> None:
    with SecretBytes.copy_of(key) as secret:
        ours = XChaCha20Poly1305(secret)
        theirs = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            plaintext, aad, nonce, key
        )
        assert ours.encrypt(nonce, plaintext, aad) == theirs
        assert ours.decrypt(nonce, theirs, aad) == plaintext


@pytest.mark.parametrize("kind", CIPHERS.values(), ids=list(CIPHERS))
def test_every_single_bit_is_authenticated(kind: type[ExtendedNonceCipher]) -> None:
    cipher, nonce, aad = _cipher(kind, bytes(32)), bytes(range(24)), b"context"
    sealed = cipher.encrypt(nonce, b"value", aad)
    assert cipher.decrypt(nonce, sealed, aad) == b"value"
    for field in range(3):
        inputs = [nonce, sealed, aad]
        for bit in range(8 * len(inputs[field])):
            changed = bytearray(inputs[field])
            changed[bit // 8] ^= 1 << bit % 8
            damaged = [*inputs[:field], bytes(changed), *inputs[field + 1 :]]
            with pytest.raises(IntegrityError):
                cipher.decrypt(*damaged)


@pytest.mark.parametrize("kind", CIPHERS.values(), ids=list(CIPHERS))
def test_more_nonce_fronts_than_the_cache_holds_change_nothing(
    kind: type[ExtendedNonceCipher],
) -> None:
    cipher = _cipher(kind, bytes(32))
    nonces = [number.to_bytes(24, "little") for number in range(1100)]
    sealed = [cipher.encrypt(nonce, b"value", b"") for nonce in nonces]
    fresh = _cipher(kind, bytes(32))
    pairs = zip(nonces, sealed, strict=True)
    assert all(fresh.decrypt(nonce, box, b"") == b"value" for nonce, box in pairs)


@pytest.mark.parametrize("kind", CIPHERS.values(), ids=list(CIPHERS))
@pytest.mark.parametrize("length", [0, 12, 23, 25])
def test_a_nonce_of_another_length_is_refused(kind: type[ExtendedNonceCipher], length: int) -> None:
    cipher = _cipher(kind, bytes(32))
    with pytest.raises(ValueError, match="24 bytes"):
        cipher.encrypt(bytes(length), b"value", b"")
    with pytest.raises(ValueError, match="24 bytes"):
        cipher.decrypt(bytes(length), bytes(32), b"")


def test_an_unknown_cipher_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(ConfigurationError, match="xchacha20poly1305, aes256gcm"):
        cipher_named("rot13")
