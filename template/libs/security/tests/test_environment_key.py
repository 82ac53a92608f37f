"""A key in a variable: strict base64 of 32 bytes, and nothing of it in a message."""

import base64
import os
from pathlib import Path

import pytest

from service_security.errors import ConfigurationError, KeyUnavailableError, WrongKeyError
from service_security.keys import initialise, open_master_key
from service_security.keys.environment import EnvironmentKey

NAME = "TEST_WRAPPING_KEY"
KEY = bytes(range(200, 232))
TEXT = base64.b64encode(KEY).decode()


def _key() -> bytes:
    with EnvironmentKey(NAME).protect() as wrapping:
        assert (wrapping.fields, wrapping.binding) == ({}, b"")
        return bytes(wrapping.key.view)


@pytest.mark.parametrize("key", [KEY, bytes(32), b"\xff" * 32, bytes(31) + b"\1"])
def test_a_key_in_base64_is_read(monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    monkeypatch.setenv(NAME, base64.b64encode(key).decode())
    assert _key() == key
    EnvironmentKey(NAME).probe()


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_missing_or_empty_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(NAME, raising=False)
    if value is not None:
        monkeypatch.setenv(NAME, value)
    for call in (EnvironmentKey(NAME).probe, EnvironmentKey(NAME).protect):
        with pytest.raises(KeyUnavailableError, match=f"{NAME} is not set"):
            call()


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        TEXT.rstrip("="),
        TEXT + "\n",
        " " + TEXT,
        TEXT[:20] + "\n" + TEXT[20:],
        TEXT + "=",
        TEXT.replace("=", "A"),
        base64.b64encode(KEY[:31]).decode(),
        base64.b64encode(KEY + b"\0").decode(),
        base64.urlsafe_b64encode(b"\xff" * 32).decode(),
        TEXT[:-2] + chr(ord(TEXT[-2]) + 1) + "=",
        "\N{FULLWIDTH LATIN CAPITAL LETTER A}" + TEXT[1:],
        "a passphrase, which is no key",
    ],
    ids=[
        "hexadecimal",
        "no padding",
        "a line end",
        "a space before",
        "a line end inside",
        "more padding",
        "33 bytes",
        "31 bytes",
        "33 bytes padded",
        "the alphabet of URLs",
        "bits that no byte has",
        "no ASCII",
        "a passphrase",
    ],
)
def test_anything_else_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)
    for call in (EnvironmentKey(NAME).probe, EnvironmentKey(NAME).protect):
        with pytest.raises(ConfigurationError, match=f"{NAME} does not hold a key") as refusal:
            call()
        said = str(refusal.value)
        trace = refusal.value.__traceback__
        while trace is not None:
            if "service_security" in trace.tb_frame.f_code.co_filename:
                said += repr(trace.tb_frame.f_locals)
            trace = trace.tb_next
        assert not [text[at : at + 5] for at in range(len(text) - 4) if text[at : at + 5] in said]


def test_every_last_letter_but_those_of_base64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second text for the same key would be a key that nobody meant."""
    taken = 0
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/":
        text = TEXT[:42] + letter + "="
        monkeypatch.setenv(NAME, text)
        try:
            key = _key()
        except ConfigurationError:
            continue
        assert base64.b64encode(key).decode() == text
        taken += 1
    assert taken == 16


def test_it_opens_its_envelope_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    envelope, source = tmp_path / "envelope.json", f"env:{NAME}"
    monkeypatch.setenv(NAME, TEXT)
    assert initialise(envelope, source, holds_encrypted_data=lambda: False).created
    before = envelope.read_bytes()
    assert TEXT.encode() not in before
    open_master_key(envelope, source).close()
    monkeypatch.setenv(NAME, base64.b64encode(bytes(32)).decode())
    with pytest.raises(WrongKeyError, match=f"env:{NAME} does not open"):
        open_master_key(envelope, source)
    monkeypatch.delenv(NAME)
    with pytest.raises(KeyUnavailableError):
        open_master_key(envelope, source)
    assert envelope.read_bytes() == before
    assert NAME not in os.environ
