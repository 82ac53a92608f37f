"""Sealed fields: their bytes, and every way they must refuse to open."""

import os
import signal
import threading
from collections.abc import Callable

import nacl.bindings
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import given
from hypothesis import strategies as st
from nacl.exceptions import CryptoError

from conftest import CIPHERS, MASTER
from independent_reader import PREFIX, hkdf
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    SecurityError,
    StoreUnavailableError,
    UnsupportedFormatError,
    WrongKeyError,
)
from service_security.secret_bytes import SecretBytes
from service_security.store import FieldSealer, field
from service_security.store.field import MAX_CONTEXT_BYTES, OVERHEAD, context_of

SET_ID = bytes(range(0xA0, 0xB0))
CONTEXT = context_of("patient", "diagnosis", "4711")
VALUE = b"the value of a field"


def _sealer(
    cipher: str = "xchacha20poly1305", master: bytes = MASTER, set_id: bytes = SET_ID
) -> FieldSealer:
    with SecretBytes.copy_of(master) as key:
        return FieldSealer(key, set_id, cipher=cipher)


def _read(sealed: bytes, context: bytes) -> bytes:
    """Open a field by the document alone, sharing no code with the library."""
    version, cipher, key_id, nonce, body = (
        sealed[0],
        sealed[1],
        sealed[2:6],
        sealed[6:30],
        sealed[30:],
    )
    assert version == 1
    assert key_id == hkdf(MASTER, SET_ID, PREFIX + b"field-id", 4)
    name = {1: b"xchacha20poly1305", 2: b"aes256gcm"}[cipher]
    key = hkdf(MASTER, SET_ID, PREFIX + b"field/" + name)
    aad = b"SSFD" + sealed[:6] + SET_ID + len(context).to_bytes(4) + context
    if cipher == 1:
        return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(body, aad, nonce, key)
    subkey = b""
    for number in (1, 2):
        mac = CMAC(AES(key))
        mac.update(bytes([0, number]) + b"X\0" + nonce[:12])
        subkey += mac.finalize()
    return AESGCM(subkey).decrypt(nonce[12:], body, aad)


FROZEN = {
    "xchacha20poly1305": "010108e0701f000102030405060708090a0b0c0d0e0f1011121314151617"
    "77d692bd6c2d3cac473d4ac8f77814fa567a32ef9c8bc52cc569a2e2f189d946d010eda4",
    "aes256gcm": "010208e0701f000102030405060708090a0b0c0d0e0f1011121314151617"
    "13571a4ce3a88a4d1bafe67457e1121db58882071bb46c6fa20044b8c716e95f552f3232",
}


@pytest.mark.parametrize("name", CIPHERS)
def test_layout_is_the_documented_one_to_the_byte(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that the first release writes with this nonce, and reads for ever."""
    monkeypatch.setattr(field, "fresh_uuid", lambda: bytes(range(16)))
    monkeypatch.setattr(os, "urandom", lambda count: bytes(range(16, 16 + count)))
    with _sealer(name) as sealer:
        sealed = sealer.seal(VALUE, context=CONTEXT)
        assert sealed.hex() == FROZEN[name]
        assert sealer.open(bytes.fromhex(FROZEN[name]), context=CONTEXT) == VALUE
    assert _read(sealed, CONTEXT) == VALUE
    assert sealed[:1] == b"\x01"
    assert sealed[1] == {"xchacha20poly1305": 1, "aes256gcm": 2}[name]
    assert sealed[2:6] == hkdf(MASTER, SET_ID, PREFIX + b"field-id", 4)
    assert sealed[6:30] == bytes(range(24))
    assert len(sealed) == len(VALUE) + OVERHEAD == len(VALUE) + 46


@given(
    name=st.sampled_from(CIPHERS),
    value=st.binary(max_size=300),
    context=st.binary(min_size=1, max_size=60),
)
def test_gives_back_what_was_sealed_and_a_second_reader_agrees(
    name: str, value: bytes, context: bytes
) -> None:
    with _sealer(name) as sealer:
        sealed = sealer.seal(value, context=context)
        assert sealer.open(sealed, context=context) == value
        assert len(sealed) == len(value) + OVERHEAD
        assert len(value) < 8 or value not in sealed
    assert _read(sealed, context) == value


@pytest.mark.parametrize("name", CIPHERS)
def test_the_second_reader_refuses_another_context(name: str) -> None:
    """The control of the test above: it does look at the context."""
    with _sealer(name) as sealer:
        sealed = sealer.seal(VALUE, context=CONTEXT)
    with pytest.raises((CryptoError, InvalidTag)):
        _read(sealed, CONTEXT + b"\0")


@pytest.mark.parametrize("name", CIPHERS)
def test_every_single_bit_is_authenticated(name: str) -> None:
    expected: dict[int, type[SecurityError]] = {0: UnsupportedFormatError, 1: IntegrityError}
    expected |= dict.fromkeys(range(2, 6), WrongKeyError)
    with _sealer(name) as sealer:
        sealed = sealer.seal(VALUE, context=CONTEXT)
        for bit in range(8 * len(sealed)):
            changed = bytearray(sealed)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(expected.get(bit // 8, IntegrityError)):
                sealer.open(bytes(changed), context=CONTEXT)
        for bit in range(8 * len(CONTEXT)):
            changed = bytearray(CONTEXT)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(IntegrityError):
                sealer.open(sealed, context=bytes(changed))
        assert sealer.open(sealed, context=CONTEXT) == VALUE


@pytest.mark.parametrize("name", CIPHERS)
def test_every_truncation_and_extension_is_refused(name: str) -> None:
    with _sealer(name) as sealer:
        sealed = sealer.seal(VALUE, context=CONTEXT)
        for length in range(len(sealed)):
            with pytest.raises(IntegrityError):
                sealer.open(sealed[:length], context=CONTEXT)
        with pytest.raises(IntegrityError):
            sealer.open(sealed + b"\0", context=CONTEXT)


@given(st.binary(max_size=120))
def test_bytes_that_are_no_field_are_refused(garbage: bytes) -> None:
    with _sealer() as sealer:
        head = sealer.seal(b"", context=CONTEXT)[:6]
        for sealed in (garbage, b"\x01" + garbage, b"\x01\x01" + garbage, head + garbage):
            with pytest.raises((IntegrityError, WrongKeyError, UnsupportedFormatError)):
                sealer.open(sealed, context=CONTEXT)


def test_value_moved_to_another_place_is_rejected() -> None:
    places = [
        context_of(*parts)
        for parts in [
            ("patient", "diagnosis", "4711"),
            ("patient", "diagnosis", "4712"),
            ("patient", "address", "4711"),
            ("doctor", "diagnosis", "4711"),
            ("patient", "diagnosis4711"),
            ("patientdiagnosis", "4711"),
            ("patient", "diagnosis", "4711", ""),
        ]
    ]
    assert len(set(places)) == len(places)
    with _sealer() as sealer:
        for place in places:
            sealed = sealer.seal(VALUE, context=place)
            for other in places:
                if other == place:
                    assert sealer.open(sealed, context=other) == VALUE
                else:
                    with pytest.raises(IntegrityError):
                        sealer.open(sealed, context=other)


parts = st.lists(st.binary(max_size=6), min_size=1, max_size=4)


@given(one=parts, other=parts)
def test_two_places_never_have_one_context(one: list[bytes], other: list[bytes]) -> None:
    assert (context_of(*one) == context_of(*other)) == (one == other)


def test_context_of_is_lengths_and_bytes() -> None:
    assert context_of("ä", b"\0") == b"\0\0\0\x02\xc3\xa4\0\0\0\x01\0"


def test_another_master_or_set_is_told_apart_from_damage() -> None:
    with _sealer() as sealer:
        sealed = sealer.seal(VALUE, context=CONTEXT)
    for other in (_sealer(master=bytes(32)), _sealer(set_id=bytes(16))):
        with other:
            with pytest.raises(WrongKeyError):
                other.open(sealed, context=CONTEXT)
            other._key_id = sealed[2:6]  # four bytes could meet by chance; the cipher refuses then
            with pytest.raises(IntegrityError):
                other.open(sealed, context=CONTEXT)


def test_a_changed_setting_still_opens_what_the_other_cipher_sealed() -> None:
    with _sealer("xchacha20poly1305") as one, _sealer("aes256gcm") as other:
        assert other.open(one.seal(VALUE, context=CONTEXT), context=CONTEXT) == VALUE
        assert one.open(other.seal(VALUE, context=CONTEXT), context=CONTEXT) == VALUE


def test_a_newer_version_is_named() -> None:
    with _sealer() as sealer:
        sealed = b"\x02" + sealer.seal(VALUE, context=CONTEXT)[1:]
        with pytest.raises(UnsupportedFormatError, match="format 2"):
            sealer.open(sealed, context=CONTEXT)


def test_sealing_twice_gives_two_nonces() -> None:
    with _sealer() as sealer:
        fields = [sealer.seal(VALUE, context=CONTEXT) for _ in range(300)]
    assert len({sealed[6:22] for sealed in fields}) == 300
    assert len({sealed[22:30] for sealed in fields}) == 300
    assert len({sealed[30:] for sealed in fields}) == 300


def test_the_nonce_is_drawn_after_everything_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> bytes:
        raise AssertionError

    monkeypatch.setattr(field, "fresh_uuid", drawn)
    with _sealer() as sealer:
        with pytest.raises(ValueError, match="context"):
            sealer.seal(VALUE, context=b"")
        with pytest.raises(AssertionError):
            sealer.seal(VALUE, context=CONTEXT)


@pytest.mark.parametrize("context", [b"", bytes(MAX_CONTEXT_BYTES + 1)], ids=["empty", "too long"])
def test_a_context_is_required(context: bytes) -> None:
    with _sealer() as sealer:
        with pytest.raises(ValueError, match="say which field"):
            sealer.seal(VALUE, context=context)
        with pytest.raises(ValueError, match="say which field"):
            sealer.open(bytes(100), context=context)
        with pytest.raises(TypeError):
            sealer.seal(VALUE)  # type: ignore[call-arg]
        longest = bytes(MAX_CONTEXT_BYTES)
        assert sealer.open(sealer.seal(VALUE, context=longest), context=longest) == VALUE


def test_only_bytes_are_taken() -> None:
    with _sealer() as sealer:
        for wrong in ("text", bytearray(60), memoryview(bytes(60)), None):
            with pytest.raises(TypeError):
                sealer.seal(wrong, context=CONTEXT)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                sealer.open(wrong, context=CONTEXT)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                sealer.seal(VALUE, context=wrong)  # type: ignore[arg-type]


def test_a_value_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field, "MAX_VALUE_BYTES", 3)
    with _sealer() as sealer:
        sealer.seal(b"123", context=CONTEXT)
        with pytest.raises(ValueError, match="at most 3 bytes"):
            sealer.seal(b"1234", context=CONTEXT)


def test_wrong_lengths_and_ciphers_are_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        _sealer(master=bytes(31))
    for set_id in (b"", bytes(15), bytes(17), "0123456789abcdef"):
        with pytest.raises(ConfigurationError, match="16 random bytes"):
            _sealer(set_id=set_id)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="rot13"):
        _sealer("rot13")


def test_a_closed_sealer_has_wiped_its_keys_and_refuses() -> None:
    sealer = _sealer()
    sealed = sealer.seal(VALUE, context=CONTEXT)
    assert repr(sealer) == "<FieldSealer xchacha20poly1305>"
    sealer.close()
    sealer.close()
    assert repr(sealer) == "<FieldSealer xchacha20poly1305 (closed)>"
    with pytest.raises(StoreUnavailableError, match="closed"):
        sealer.seal(VALUE, context=CONTEXT)
    with pytest.raises(StoreUnavailableError, match="closed"):
        sealer.open(sealed, context=CONTEXT)
    for key in sealer._keys:
        with pytest.raises(ValueError, match="closed"):
            _ = key.view


def test_the_master_key_stays_the_callers() -> None:
    with SecretBytes.copy_of(MASTER) as master:
        with FieldSealer(master, SET_ID) as sealer:
            sealed = sealer.seal(VALUE, context=CONTEXT)
        with master.view as view:
            assert bytes(view) == MASTER
    assert _read(sealed, CONTEXT) == VALUE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_refused_even_while_another_thread_seals() -> None:
    sealer = _sealer()
    sealed = sealer.seal(VALUE, context=CONTEXT)
    reader, writer = os.pipe()
    with sealer._lock:  # as another thread would hold it for ever in the child
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # rather than wait for the lock for ever
            answers = []
            for call, argument in ((sealer.seal, VALUE), (sealer.open, sealed)):
                try:
                    call(argument, context=CONTEXT)
                    answers.append("done")
                except StoreUnavailableError:
                    answers.append("refused")
            sealer.close()
            answers.append("own" if _sealer().open(sealed, context=CONTEXT) == VALUE else "")
            os.write(writer, " ".join(answers).encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 100).decode() == "refused refused own"
    os.close(reader)
    assert sealer.open(sealed, context=CONTEXT) == VALUE
    sealer.close()


class _Watched:
    """A cipher that notes whether a second thread came in; the real ones are for one at a time."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._meeting = threading.Barrier(2)
        self.met: list[bool] = []

    def _call(self, _nonce: bytes, data: bytes, _aad: bytes) -> bytes:
        try:
            self._meeting.wait(self._patience)
            self.met.append(True)
        except threading.BrokenBarrierError:
            self.met.append(False)
            self._meeting.reset()
        return data

    encrypt = decrypt = _call


def _together(call: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_may_share_a_sealer() -> None:
    watched = _Watched(patience=0.01)

    def work() -> None:
        for _ in range(5):
            sealer.seal(VALUE, context=CONTEXT)
            sealer.open(sealed, context=CONTEXT)

    with _sealer() as sealer:
        sealed = sealer.seal(VALUE, context=CONTEXT)
        sealer._ciphers = dict.fromkeys((1, 2), watched)  # type: ignore[arg-type]
        _together(work)
        assert watched.met == [False] * 40

    control = _Watched(patience=60)
    _together(lambda: control.encrypt(b"", b"", b""))
    assert control.met == [True] * 4
