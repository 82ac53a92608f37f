"""The envelope and the key file: every refusal has its own error and a sentence."""

import base64
import hmac
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from independent_reader import PREFIX, hkdf, read_envelope
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    KeyUnavailableError,
    SecurityError,
    UnsupportedFormatError,
    WrongKeyError,
)
from service_security.keys import Envelope, open_keys, open_master_key
from service_security.keys.provider import CONTAINER_SECRET, KEY_FILE, RECOVERY, WrappingKey
from service_security.secret_bytes import SecretBytes

MASTER = bytes(range(32))
WRAPPING = bytes(range(32, 64))

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits")


class Pair:
    """An envelope and its key file on disk."""

    def __init__(self, folder: Path, slot_type: str = KEY_FILE) -> None:
        self.envelope, self.key_file = folder / "envelope.json", folder / "service.key"
        self.key_file.write_bytes(WRAPPING)
        self.key_file.chmod(0o600)
        with SecretBytes.copy_of(MASTER) as master, SecretBytes.copy_of(WRAPPING) as wrapping_key:
            envelope = Envelope.create(master, {slot_type: WrappingKey(wrapping_key)})
            self.envelope.write_bytes(envelope.to_json())
        self.source = f"{'file' if slot_type == KEY_FILE else 'secret'}:{self.key_file}"

    def open(self) -> bytes:
        """Return the master key that comes out."""
        with open_master_key(self.envelope, self.source) as master, master.view as view:
            return bytes(view)

    def edit_body(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Rewrite the body, leaving the MAC as it was."""
        outer = json.loads(self.envelope.read_bytes())
        body = json.loads(outer["body"])
        change(body)
        outer["body"] = json.dumps(body)
        self.envelope.write_text(json.dumps(outer))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """An envelope with a key-file slot."""
    return Pair(tmp_path)


def test_the_master_key_comes_out(pair: Pair) -> None:
    assert pair.open() == MASTER


def test_both_keys_come_out_and_are_wiped_when_closed(pair: Pair) -> None:
    with open_keys(pair.envelope, pair.source) as keys:
        assert bytes(keys.master.view) == MASTER
        assert bytes(keys.wrapping.key.view) == WRAPPING
        assert keys.provider.slot_type == KEY_FILE
        assert str(keys.provider) == pair.source
        assert keys.recovery is None
    for key in (keys.master, keys.wrapping.key):
        with pytest.raises(ValueError, match="closed"):
            key.check()


@pytest.mark.parametrize("envelope", ["whole", "edited"])
def test_a_wrapping_key_that_nobody_asked_for_is_wiped_at_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, envelope: str
) -> None:
    wrapping = SecretBytes.copy_of(WRAPPING)
    monkeypatch.setattr("service_security.keys.key_file.read_key", lambda *_: wrapping)
    if envelope == "whole":
        assert pair.open() == MASTER
    else:
        pair.edit_body(lambda body: body.update(generation=2))
        with pytest.raises(IntegrityError):
            open_keys(pair.envelope, pair.source)
    with pytest.raises(ValueError, match="closed"):
        wrapping.check()


def test_the_file_holds_neither_key(pair: Pair) -> None:
    text = pair.envelope.read_bytes()
    for key in (MASTER, WRAPPING):
        for form in (key, key.hex().encode(), base64.b64encode(key)):
            assert form not in text


def test_two_envelopes_of_one_key_differ(tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "other").mkdir()
    assert Pair(tmp_path / "other").envelope.read_bytes() != pair.envelope.read_bytes()


def test_a_missing_envelope_names_init_and_the_backup(pair: Pair) -> None:
    pair.envelope.unlink()
    with pytest.raises(KeyUnavailableError, match=r"just init.*backup"):
        pair.open()


def test_what_is_no_regular_file_is_no_envelope_and_is_not_waited_for(pair: Pair) -> None:
    pair.envelope.unlink()
    os.mkfifo(pair.envelope)
    with pytest.raises(KeyUnavailableError, match="no regular file"):
        pair.open()
    pair.envelope.unlink()
    pair.envelope.mkdir()
    with pytest.raises(KeyUnavailableError, match="cannot be read"):
        pair.open()


def test_a_missing_key_file_is_named(pair: Pair) -> None:
    pair.key_file.unlink()
    with pytest.raises(KeyUnavailableError, match=r"service\.key is missing.*SERVICE_KEY_SOURCE"):
        pair.open()


def test_a_folder_in_place_of_a_key_file_is_refused(pair: Pair) -> None:
    pair.key_file.unlink()
    pair.key_file.mkdir()
    with pytest.raises(ConfigurationError, match="not a regular file"):
        pair.open()


def test_a_pipe_in_place_of_a_key_file_is_refused_and_does_not_block(pair: Pair) -> None:
    pair.key_file.unlink()
    os.mkfifo(pair.key_file)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        pair.open()


@pytest.mark.parametrize(
    ("contents", "size"),
    [
        (bytes(31), "31 bytes"),
        (bytes(33), "more than 32 bytes"),
        (WRAPPING.hex().encode(), "more than 32 bytes"),
        (WRAPPING + b"\n", "more than 32 bytes"),
    ],
    ids=["short", "long", "hexadecimal", "with a line end"],
)
def test_a_key_of_another_length_is_refused(pair: Pair, contents: bytes, size: str) -> None:
    pair.key_file.write_bytes(contents)
    with pytest.raises(ConfigurationError, match=f"holds {size}; a key is exactly 32 raw bytes"):
        pair.open()


def test_an_empty_key_file_is_refused(pair: Pair) -> None:
    pair.key_file.write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"service\.key is empty"):
        pair.open()


def test_a_wrong_key_is_told_apart_and_changes_nothing(pair: Pair) -> None:
    before = pair.envelope.read_bytes()
    pair.key_file.write_bytes(bytes(32))
    with pytest.raises(WrongKeyError, match="does not open"):
        pair.open()
    assert pair.envelope.read_bytes() == before


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666])
def test_a_key_file_that_others_can_read_or_write_is_refused(pair: Pair, mode: int) -> None:
    pair.key_file.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"mode {mode:04o}.*chmod 600"):
        pair.open()


@posix
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_file_that_only_its_owner_can_read_is_accepted(pair: Pair, mode: int) -> None:
    pair.key_file.chmod(mode)
    assert pair.open() == MASTER


@posix
def test_a_key_file_of_another_user_is_refused_and_a_secret_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = os.geteuid() == 0
    owner = 12345 if root else os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    for slot_type, accepted in ((KEY_FILE, False), (CONTAINER_SECRET, True)):
        folder = tmp_path / slot_type
        folder.mkdir(mode=0o700)
        pair = Pair(folder, slot_type)
        if root:  # whose files everyone accepts
            os.chown(pair.key_file, owner, owner)
        pair.key_file.chmod(0o444 if accepted else 0o600)
        if accepted:
            assert pair.open() == MASTER
        else:
            with pytest.raises(ConfigurationError, match=f"user {owner}.*Run: chown 54321"):
                pair.open()
            monkeypatch.setattr(os, "geteuid", lambda: 0)
            with pytest.raises(ConfigurationError, match=f"as that user: sudo -u '#{owner}'"):
                pair.open()
            monkeypatch.setattr(os, "geteuid", lambda: 54321)


@posix
@pytest.mark.parametrize(
    ("mode", "accepted"),
    [(0o444, True), (0o400, True), (0o664, False), (0o620, False), (0o602, False)],
)
def test_a_container_secret_may_be_read_but_not_written_by_others(
    tmp_path: Path, mode: int, accepted: bool
) -> None:
    pair = Pair(tmp_path, CONTAINER_SECRET)
    pair.key_file.chmod(mode)
    if accepted:
        assert pair.open() == MASTER
    else:
        with pytest.raises(ConfigurationError, match="may write the secret"):
            pair.open()


def _set(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        _set("generation", 2),
        _set("note", "an unknown member"),
        _set("generation", "1"),
        _set("generation", True),
        _set("slots", {}),
        _set("envelope_id", "zz"),
        _set("envelope_id", "00" * 16),
        _set("master_id", "00" * 32),
        _set("format", "another"),
        lambda body: body.pop("slots"),
        lambda body: body["slots"][0].update(box="*"),
        lambda body: body["slots"][0].update(note="an unknown member"),
        lambda body: body["slots"][0].update(salt=1),
        lambda body: body["slots"].append({"type": "recovery", "box": ""}),
        lambda body: body["slots"].append({"type": "environment"}),
        lambda body: body["slots"].append("environment"),
        lambda body: body["slots"].append(body["slots"][0]),
    ],
)
def test_an_edited_envelope_is_refused(
    pair: Pair, change: Callable[[dict[str, Any]], None]
) -> None:
    pair.edit_body(change)
    with pytest.raises((IntegrityError, WrongKeyError)):
        pair.open()


def test_a_slot_of_another_type_is_refused(pair: Pair) -> None:
    pair.edit_body(lambda body: body["slots"][0].update(type="container-secret"))
    with pytest.raises(ConfigurationError, match="opens with secret: or credential:"):
        pair.open()
    with pytest.raises(WrongKeyError):  # the type is bound to the box
        open_master_key(pair.envelope, f"secret:{pair.key_file}")


def test_every_changed_character_is_noticed(pair: Pair) -> None:
    text = pair.envelope.read_bytes()
    meaningless = {text.index(b"\n"), len(text) - 1}  # white space around the members
    for position in range(len(text)):
        if position in meaningless or text[position : position + 1].isspace():
            continue
        changed = bytearray(text)
        changed[position] ^= 1
        pair.envelope.write_bytes(bytes(changed))
        with pytest.raises(SecurityError):
            pair.open()


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(more=""),
        lambda body: body.pop("generation"),
        lambda body: body.update(after="00" * 31),
        lambda body: body.update(after="AA" * 32),
        lambda body: body.update(after=""),
        lambda body: body["slots"][0].update(type="quantum\n"),
        lambda body: body["slots"][0].update(type="quantum\x1b[2J"),
    ],
    ids=["one more", "one less", "short", "capitals", "empty", "line end", "control characters"],
)
def test_a_body_with_other_members_or_texts_is_not_parsed(
    pair: Pair, change: Callable[[dict[str, Any]], None]
) -> None:
    """Nothing is authenticated yet where the types of slots are shown."""
    pair.edit_body(change)
    with pytest.raises(IntegrityError, match="is no envelope"):
        Envelope.from_json(pair.envelope.read_bytes())


def test_an_envelope_shows_which_master_key_it_follows_on(tmp_path: Path) -> None:
    others = bytes(range(64, 96)), bytes(range(96, 128))
    with (
        SecretBytes.copy_of(MASTER) as master,
        SecretBytes.copy_of(WRAPPING) as wrapping_key,
        SecretBytes.copy_of(others[0]) as before,
        SecretBytes.copy_of(others[1]) as stranger,
    ):
        keys = {KEY_FILE: WrappingKey(wrapping_key)}
        first = Envelope.create(master, keys)
        following = Envelope.create(master, keys, after=before)
        assert following.follows(before)
        assert following.with_slots(master, keys).follows(before)
        assert not following.follows(stranger)
        assert not following.follows(master)
        assert not first.follows(before)
    key = hkdf(others[0], following.envelope_id, PREFIX + b"envelope/after")
    proof = hmac.digest(key, following.master_id, "sha256")
    assert json.loads(following.body)["after"] == proof.hex()
    (tmp_path / "following.json").write_bytes(following.to_json())
    assert read_envelope(tmp_path / "following.json", WRAPPING) == MASTER


def test_a_recovery_slot_without_the_key_that_is_kept_is_damaged() -> None:
    with SecretBytes.copy_of(MASTER) as master, SecretBytes.copy_of(WRAPPING) as wrapping_key:
        envelope = Envelope.create(master, {RECOVERY: WrappingKey(wrapping_key)})
        slot = replace(envelope.slots[RECOVERY], fields={})
        with pytest.raises(IntegrityError, match="recovery slot is damaged"):
            replace(envelope, slots={RECOVERY: slot}).recovery_key(master)


def test_a_name_that_appears_twice_is_refused(pair: Pair) -> None:
    outer = json.loads(pair.envelope.read_bytes())
    text = json.dumps(outer)
    pair.envelope.write_text(text[:-1] + f', "mac": "{outer["mac"]}"}}')
    with pytest.raises(IntegrityError, match="damaged"):
        pair.open()


def test_a_file_of_any_length_beyond_the_limit_is_refused(pair: Pair) -> None:
    pair.envelope.write_bytes(pair.envelope.read_bytes() + b" " * 70_000)
    with pytest.raises(IntegrityError, match="damaged"):
        pair.open()


@pytest.mark.parametrize("version", [0, 2])
def test_an_envelope_of_another_version_is_named(pair: Pair, version: int) -> None:
    pair.edit_body(_set("version", version))
    with pytest.raises(UnsupportedFormatError, match=rf"has format {version}.*reads format 1"):
        pair.open()


def test_an_envelope_with_only_unknown_slots_is_named(pair: Pair) -> None:
    pair.edit_body(lambda body: body["slots"][0].update(type="quantum"))
    with pytest.raises(UnsupportedFormatError, match="no slot"):
        pair.open()


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[" * 5000, b"\xff", b'{"body":"{}","mac":"","mac":""}']
)
def test_a_file_that_is_no_envelope_is_refused(pair: Pair, text: bytes) -> None:
    pair.envelope.write_bytes(text)
    with pytest.raises(IntegrityError, match="damaged or is no envelope"):
        pair.open()


@given(
    st.binary(max_size=400)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_bytes_make_the_parser_fail_otherwise(text: bytes) -> None:
    with pytest.raises((IntegrityError, UnsupportedFormatError)):
        Envelope.from_json(text)


_TEXTS = st.text(max_size=20) | st.sampled_from(["", "AAAA", "recovery", "key-file", "*"])
_SLOTS = st.dictionaries(
    st.sampled_from(["type", "box", "kept", "salt", "profile"]) | st.text(max_size=5),
    _TEXTS | st.integers() | st.none() | st.lists(_TEXTS, max_size=2),
    max_size=6,
)
_ENVELOPE = {"format": "service-security-envelope", "version": 1, "generation": 1}
_ENVELOPE |= {"envelope_id": "00" * 16, "master_id": "00" * 32}


@given(st.lists(_SLOTS | st.none() | _TEXTS, max_size=4))
def test_no_slots_make_the_parser_or_the_key_fail_otherwise(slots: list[Any]) -> None:
    body = json.dumps({**_ENVELOPE, "slots": slots})
    text = json.dumps({"body": body, "mac": "00" * 32}).encode()
    try:
        parsed = Envelope.from_json(text)
    except IntegrityError:
        return
    assert Envelope.from_json(parsed.to_json()) == parsed
    with SecretBytes(32) as zeros:
        for slot_type in parsed.slots.keys() & {KEY_FILE, CONTAINER_SECRET}:
            with pytest.raises((IntegrityError, WrongKeyError, UnsupportedFormatError)):
                parsed.open(WrappingKey(zeros), slot_type)
        if "recovery" in parsed.slots:
            with pytest.raises((IntegrityError, UnsupportedFormatError)):
                parsed.recovery_key(zeros)


def test_control_slots_of_texts_with_a_type_and_a_box_are_parsed() -> None:
    slots = [{"type": "recovery", "box": "AAAA", "kept": "*"}, {"type": "of-tomorrow", "box": ""}]
    body = json.dumps({**_ENVELOPE, "slots": slots})
    parsed = Envelope.from_json(json.dumps({"body": body, "mac": "00" * 32}).encode())
    assert list(parsed.slots) == ["recovery", "of-tomorrow"]
    assert parsed.slots["recovery"].fields == {"kept": "*"}


def test_errors_hold_no_key(pair: Pair) -> None:
    pair.key_file.write_bytes(b"K" * 31)
    with pytest.raises(ConfigurationError) as error:
        pair.open()
    assert "KKK" not in str(error.value)
