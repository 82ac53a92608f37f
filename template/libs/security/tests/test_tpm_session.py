"""The session's keys and proofs: published vectors, and a second computation of each layout."""

import hashlib
import hmac
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given
from hypothesis import strategies as st

from fake_tpm import fuzz
from service_security.keys.tpm.errors import NotATpmError, TamperedError
from service_security.keys.tpm.marshalling import sized
from service_security.keys.tpm.session import Session, kdfa, make_salt
from service_security.secret_bytes import SecretBytes

KEY = bytes(range(32))
NONCE = bytes(range(100, 132))


@dataclass(frozen=True)
class Salt:
    """A case of ecc_labeled_encaps.json in github.com/chrisfenner/tpm-test-vectors.

    It is one with the label SECRET, on P-256 with SHA-256, held to a TPM by TPM2_StartAuthSession.
    """

    name: str
    ephemeral: str
    point: str
    secret: str
    ciphertext: str


SALTS = [
    Salt(
        "06_P256_SHA256_128_restricted",
        "897989c19f950c5f32f3a2156832bb49b39b0562f372e6e180be309c2bbc07c0",
        "7d1f639091f4f93753e5ca964f537491e2ee50058bdf8d93c2f6f165d02a6f2c"
        "5b4e618a7dad9e0cbc7d974ff78ac75ac3ca7be3c54a2b064e0f42f3b43de892",
        "428bee6074a8d9c43979617363ca78cedc7b56673d43750678c965d0fddeb4be",
        "00208588b3516e0cc43073b2577362ff1b712373213043bcb0c7364c74bfc6f626e2"
        "00203534ac662cd4462172cdd0dbe3f0d0e28edb9e08484a3a34b8e8e00d9cb5b4c1",
    ),
    Salt(
        "19_P256_SHA256_SHA256_unrestricted",
        "40c3b31378b535bb618a115f08061376fa3eb9242d13343143fcb1d271553a54",
        "fae82d36fb69d05a8efb90bb880f3d925f6eb9cc5a4eaad869ff3bbbaa7ed024"
        "a96ba543244580bd8d7d1f41c63fe854821745732d3f02e9fb37638147766ff4",
        "0869d99565293986d2e153fa642549e896617463b78a6956f11660a7aeec7660",
        "002077368305b2997c86b558c5f74c2c1e132792b994ed6b11adb853b0372e1781e4"
        "00200c2eae6b750a77c7c42c170a14339af176a0b31fd58c6a3042266246012e1c62",
    ),
]


@pytest.mark.parametrize("case", SALTS, ids=lambda case: case.name)
def test_salt_is_that_of_the_published_vector(case: Salt) -> None:
    ephemeral = ec.derive_private_key(int(case.ephemeral, 16), ec.SECP256R1())
    encrypted, salt = make_salt(bytes.fromhex(case.point), ephemeral=ephemeral)
    with salt, salt.view as view:
        assert view.hex() == case.secret
    assert encrypted.hex() == case.ciphertext


def test_every_salt_is_another() -> None:
    point = bytes.fromhex(SALTS[0].point)
    one, other = make_salt(point), make_salt(point)
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_point_that_is_not_on_the_curve_is_refused() -> None:
    with pytest.raises(NotATpmError, match="not on the curve"):
        make_salt(bytes(64))


def independent_kdfa(key: bytes, label: bytes, context: bytes) -> bytes:
    """KDFa of Part 1, 11.4.10.2, for 256 bits: one block of HMAC-SHA256."""
    return hmac.digest(key, b"\0\0\0\1" + label + b"\0" + context + b"\0\0\1\0", "sha256")


def independent_cfb(key: bytes, iv: bytes, data: bytes, *, decrypts: bool) -> bytes:
    """CFB with whole blocks of feedback (NIST SP 800-38A, 6.3), out of single blocks."""
    block = Cipher(AES(key), ECB()).encryptor()  # noqa: S305 - a block at a time
    out = b""
    for start in range(0, len(data), 16):
        chunk = data[start : start + 16]
        made = bytes(a ^ b for a, b in zip(chunk, block.update(iv), strict=False))
        out += made
        iv = chunk if decrypts else made
    return out


@fuzz
@given(st.binary(max_size=64), st.binary(max_size=64))
def test_derivation_is_kdfa(context_u: bytes, context_v: bytes) -> None:
    with SecretBytes.copy_of(KEY) as key, kdfa(key, "ATH", context_u, context_v) as derived:
        assert bytes(derived.view) == independent_kdfa(KEY, b"ATH", context_u + context_v)


def test_kdfa_is_that_of_others() -> None:
    """A known answer of KDFa with SHA-256, label ATH and 256 bits, made with go-tpm's shape."""
    with SecretBytes.copy_of(b"\x0b" * 32) as key, kdfa(key, "ATH", b"\1" * 16, b"\2" * 16) as out:
        assert out.view.hex() == "63591fea5c8a26cee98e509a3cd1ba3b4e3c079f7014fc56e5805175d15e292b"


def opened() -> Session:
    """Return a session at the handle 0x02000000."""
    return Session(0x02000000, SecretBytes.copy_of(KEY), NONCE)


@fuzz
@given(st.binary(min_size=1, max_size=50))
def test_command_has_the_layout_of_the_specification(plaintext: bytes) -> None:
    session = opened()
    session.renew(secret_goes=True)
    with SecretBytes.copy_of(plaintext) as secret:
        encrypted = session.encrypt(secret)
    authorization = session.authorization(0x153, (b"name", b"another"), b"parameters")
    nonce = authorization[6:38]
    keys = independent_kdfa(KEY, b"CFB", nonce + NONCE)
    assert encrypted == independent_cfb(keys[:16], keys[16:], plaintext, decrypts=False)
    digest = hashlib.sha256(b"\0\0\1\x53nameanotherparameters").digest()
    proof = hmac.digest(KEY, digest + nonce + NONCE + b"\x21", "sha256")
    assert authorization == b"\2\0\0\0" + sized(nonce) + b"\x21" + sized(proof)
    session.close()


def answered(session: Session, parameters: bytes, *, attributes: int = 0x41) -> bytes:
    """Return the authorization with which a TPM that knows the key answers command 0x15e."""
    nonce, newer = session.authorization(0x15E, (), b"")[6:38], b"newer nonce of the TPM".ljust(32)
    digest = hashlib.sha256(b"\0\0\0\0\0\0\1\x5e" + parameters).digest()
    message = digest + newer + nonce + bytes([attributes])
    return sized(newer) + bytes([attributes]) + sized(hmac.digest(KEY, message, "sha256"))


def test_response_has_the_layout_of_the_specification() -> None:
    session = opened()
    session.renew(secret_comes=True)
    authorization = answered(session, b"parameters")
    session.verify(0x15E, b"parameters", authorization)
    nonce = session.authorization(0x15E, (), b"")[6:38]
    keys = independent_kdfa(KEY, b"CFB", authorization[2:34] + nonce)
    encrypted = bytes(range(40))
    with session.decrypt(encrypted) as secret:
        plaintext = independent_cfb(keys[:16], keys[16:], encrypted, decrypts=True)
        assert bytes(secret.view) == plaintext
    session.close()


def test_every_byte_of_a_response_counts() -> None:
    """The control is the response as it was, which the same session takes afterwards."""
    session = opened()
    session.renew(secret_comes=True)
    right = answered(session, b"parameters")
    for position in range(len(right)):
        wrong = bytearray(right)
        wrong[position] ^= 1
        with pytest.raises((TamperedError, NotATpmError)):
            session.verify(0x15E, b"parameters", bytes(wrong))
    for parameters in (b"", b"parameterz", b"parameters\0"):
        with pytest.raises(TamperedError):
            session.verify(0x15E, parameters, right)
    with pytest.raises(TamperedError):
        session.verify(0x153, b"parameters", right)
    session.verify(0x15E, b"parameters", right)
    session.close()


def test_response_that_was_not_encrypted_is_refused() -> None:
    """Its proof is right, yet the secret would have gone over the bus as it is."""
    session = opened()
    session.renew(secret_comes=True)
    with pytest.raises(TamperedError):
        session.verify(0x15E, b"secret", answered(session, b"secret", attributes=0x01))
    session.close()


def test_old_response_is_no_answer_to_a_new_command() -> None:
    session = opened()
    session.renew()
    session.verify(0x15E, b"old", old := answered(session, b"old", attributes=1))
    session.renew()
    with pytest.raises(TamperedError):
        session.verify(0x15E, b"old", old)
    session.close()


@fuzz
@given(st.binary(max_size=120))
def test_any_bytes_are_no_authorization(data: bytes) -> None:
    session = opened()
    session.renew()
    with pytest.raises((TamperedError, NotATpmError)):
        session.verify(0x15E, b"", data)
    session.close()
