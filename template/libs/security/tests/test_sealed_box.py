"""Sealed boxes: their bytes, and every way they must refuse to open."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from service_security.errors import IntegrityError, UnsupportedFormatError, WrongKeyError
from service_security.keys import sealed_box
from service_security.keys.derivation import master_id
from service_security.secret_bytes import SecretBytes

KEY = bytes(range(32))
SECRET = b"the secret in the box"
CONTEXT = b"what it belongs to"
KIND = {"magic": b"TEST", "purpose": "test"}


def _seal(fields: bytes = b"") -> bytes:
    with SecretBytes.copy_of(KEY) as key, SecretBytes.copy_of(SECRET) as secret:
        return sealed_box.seal(key, secret, **KIND, context=CONTEXT, fields=fields)  # type: ignore[arg-type]


def _open(
    box: bytes, key: bytes = KEY, context: bytes = CONTEXT, fields_length: int = 0, **other: str
) -> tuple[bytes, bytes]:
    with SecretBytes.copy_of(key) as wrapping_key:
        fields, secret = sealed_box.open_box(
            wrapping_key,
            box,
            **{**KIND, **other},  # type: ignore[arg-type]
            context=context,
            fields_length=fields_length,
        )
        with secret, secret.view as view:
            return fields, bytes(view)


def _hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, written out."""
    pseudorandom = hmac.digest(salt, key, "sha256")
    block, output = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(pseudorandom, block + info + bytes([number]), "sha256")
        output += block
    return output[:length]


def test_gives_back_what_was_sealed() -> None:
    assert _open(_seal()) == (b"", SECRET)
    assert _open(_seal(b"12345678"), fields_length=8) == (b"12345678", SECRET)


def test_layout_is_the_documented_one() -> None:
    box = _seal(b"field")
    head, salt, commit, sealed = box[:10], box[10:42], box[42:74], box[74:]
    assert head == b"TEST\x01field"
    info = b"service-security/v1/test" + hashlib.sha256(CONTEXT).digest()
    keys = _hkdf(KEY, salt, info, 64)
    assert keys[32:] == commit
    assert AESGCM(keys[:32]).decrypt(bytes(12), sealed, box[:74] + CONTEXT) == SECRET


def test_sealing_twice_gives_two_salts() -> None:
    assert _seal()[5:37] != _seal()[5:37]


def test_another_key_or_context_or_purpose_does_not_open_it() -> None:
    with pytest.raises(WrongKeyError):
        _open(_seal(), key=bytes(32))
    with pytest.raises(WrongKeyError):
        _open(_seal(), context=b"another")
    with pytest.raises(WrongKeyError):
        _open(_seal(), purpose="another")


def test_another_kind_of_box_is_refused() -> None:
    with pytest.raises(IntegrityError):
        _open(b"ELSE" + _seal()[4:])


def test_a_newer_version_is_named() -> None:
    box = bytearray(_seal())
    box[4] = 2
    with pytest.raises(UnsupportedFormatError, match="format 2"):
        _open(bytes(box))


def test_every_single_bit_is_authenticated() -> None:
    box = _seal(b"field")
    for bit in range(8 * len(box)):
        changed = bytearray(box)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((IntegrityError, WrongKeyError, UnsupportedFormatError)):
            _open(bytes(changed), fields_length=5)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_box_are_refused(garbage: bytes) -> None:
    for box in (garbage, b"TEST\x01" + garbage):
        with pytest.raises((IntegrityError, WrongKeyError)):
            _open(box)


def test_every_truncation_is_refused() -> None:
    box = _seal()
    for length in range(len(box)):
        with pytest.raises((IntegrityError, WrongKeyError)):
            _open(box[:length])


def test_master_id_is_the_documented_derivation() -> None:
    with SecretBytes.copy_of(KEY) as key:
        assert master_id(key) == _hkdf(KEY, b"\0" * 32, b"service-security/v1/master-id", 32)
