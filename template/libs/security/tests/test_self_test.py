"""A machine that computes something else is refused, at import and before anything is sealed."""

import hashlib
import hmac
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA1

from service_security.errors import ConfigurationError
from service_security.keys import derivation
from service_security.store import cipher
from service_security.store.self_test import run_self_test


def _run() -> None:
    run_self_test(cipher.CIPHERS.values())


class _Broken:
    """An AEAD that computes one thing wrongly and leaves the rest to the real one."""

    def __init__(self, real: object, fault: str) -> None:
        self._real: object = real
        self._fault = fault

    def __call__(self, key: bytes) -> "_Broken":
        assert callable(self._real)
        return _Broken(self._real(key), self._fault)

    def encrypt(self, nonce: bytes, data: bytes, aad: bytes) -> bytes:
        if self._fault == "encrypts nothing":
            return data + bytes(16)
        sealed: bytes = self._real.encrypt(nonce, data, aad)  # type: ignore[attr-defined]
        return sealed[:-1] + bytes([sealed[-1] ^ 1]) if self._fault == "flips a bit" else sealed

    def decrypt(self, nonce: bytes, sealed: bytes, aad: bytes) -> bytes:
        if self._fault == "checks no tag":
            genuine = sealed[:-1] + bytes([sealed[-1] ^ 1])
            for tried in (sealed, genuine):
                try:
                    return self._real.decrypt(nonce, tried, aad)  # type: ignore[attr-defined,no-any-return]
                except Exception:  # noqa: BLE001, S112 - the other one then
                    continue
        plaintext: bytes = self._real.decrypt(nonce, sealed, aad)  # type: ignore[attr-defined]
        return plaintext[::-1] if self._fault == "decrypts backwards" else plaintext


@pytest.mark.parametrize(
    "fault", ["flips a bit", "encrypts nothing", "checks no tag", "decrypts backwards"]
)
@pytest.mark.parametrize(
    ("primitive", "named"),
    [("ChaCha20Poly1305", "xchacha20poly1305"), ("AESGCM", "aes256gcm")],
)
def test_a_broken_aead_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, primitive: str, named: str, fault: str
) -> None:
    broken = _Broken(getattr(cipher, primitive), fault)
    monkeypatch.setattr(cipher, primitive, broken)
    with pytest.raises(ConfigurationError, match=f"^{named} does not give the published answer"):
        _run()


def test_the_broken_aead_passes_without_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it is the fault that is refused, not the stand-in."""
    for primitive in ("ChaCha20Poly1305", "AESGCM"):
        monkeypatch.setattr(cipher, primitive, _Broken(getattr(cipher, primitive), "none"))
    _run()


def test_a_broken_subkey_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cipher.HChaCha20, "subkey", lambda *_: bytes(32))
    with pytest.raises(ConfigurationError, match=r"^xchacha20poly1305"):
        _run()


def test_a_broken_hash_or_derivation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(derivation, "SHA256", SHA1)
        with pytest.raises(ConfigurationError, match=r"^HKDF-SHA256"):
            _run()
    digest, new = hmac.digest, hmac.new
    with monkeypatch.context() as patch:
        patch.setattr(hmac, "digest", lambda key, message, _: digest(key, message, "sha512"))
        with pytest.raises(ConfigurationError, match=r"^HMAC-SHA256"):
            _run()
    with monkeypatch.context() as patch:
        patch.setattr(hmac, "new", lambda key, digestmod: new(key + b"\1", digestmod=digestmod))
        with pytest.raises(ConfigurationError, match=r"^HMAC-SHA256"):
            _run()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "sha256", hashlib.sha512)
        with pytest.raises(ConfigurationError, match=r"^SHA-256"):
            _run()
    _run()


def test_a_cipher_without_a_known_answer_is_refused() -> None:
    class Untested(cipher.XChaCha20Poly1305):
        name = "untested"

    with pytest.raises(ConfigurationError, match=r"^untested"):
        run_self_test([Untested])


def test_what_openssl_does_not_offer_is_refused_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unsupported(_: bytes) -> None:
        raise UnsupportedAlgorithm("not in this OpenSSL")

    monkeypatch.setattr(cipher, "ChaCha20Poly1305", unsupported)
    with pytest.raises(ConfigurationError) as refusal:
        _run()
    assert isinstance(refusal.value.__cause__, UnsupportedAlgorithm)


IMPORT = """
from cryptography.hazmat.primitives.ciphers import aead

def broken(key, real=aead.{primitive}):
    class Zeros:
        def encrypt(self, nonce, data, aad):
            return bytes(len(data) + 16)
        decrypt = real(key).decrypt
    return Zeros()

{patch}
for statement in (
    "import service_security.store",
    "from service_security.store import SecureDb",
    "from service_security.store.cipher import cipher_named",
    "from service_security.store.secure_db import SecureDb",
    "from service_security.store.field import FieldSealer",
    "from service_security.store.record import RecordKeys",
):
    try:
        exec(statement)
        print("imported")
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("primitive", ["ChaCha20Poly1305", "AESGCM"])
@pytest.mark.parametrize("broken", [True, False])
def test_a_broken_backend_refuses_every_import_and_every_further_one(
    primitive: str, broken: bool
) -> None:
    """The unbroken backend is the control."""
    patch = f"aead.{primitive} = broken" if broken else ""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(primitive=primitive, patch=patch)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["ConfigurationError" if broken else "imported"] * 6


def _fastest_of(count: int, call: Callable[[], None]) -> float:
    """Return seconds of this thread, so that it does not matter what else the machine does."""

    def once() -> float:
        start = time.thread_time()
        call()
        return time.thread_time() - start

    return min(once() for _ in range(count))


def test_it_costs_less_than_a_millisecond() -> None:
    assert _fastest_of(200, _run) < 0.001
