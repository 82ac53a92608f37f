"""A key made of a passphrase: Argon2id by named profiles, one text for what looks alike."""

import base64
import json
import unicodedata
from pathlib import Path
from typing import Literal

import nacl.pwhash
import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from independent_reader import passphrase_key
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    KeyUnavailableError,
    SecurityError,
    UnsupportedFormatError,
    WrongKeyError,
)
from service_security.keys import initialise, open_master_key
from service_security.keys.passphrase import DEFAULT_PROFILE, PROFILES, Passphrase, Profile
from service_security.keys.provider import WrappingKey
from service_security.secret_bytes import SecretBytes

TEXT = "correct horse battery staple"
FIELDS = {"profile": DEFAULT_PROFILE, "salt": "000102030405060708090a0b0c0d0e0f"}


def _typed(text: str) -> Passphrase:
    return Passphrase(None, lambda _: text)


def _key(provider: Passphrase, fields: dict[str, str] = FIELDS) -> bytes:
    with provider.unprotect(fields) as wrapping:
        assert wrapping.fields == fields
        assert wrapping.binding == fields["profile"].encode()
        return bytes(wrapping.key.view)


REAL = dict(PROFILES)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the default profile cost next to nothing; its cost is not what is tested."""
    monkeypatch.setitem(PROFILES, DEFAULT_PROFILE, Profile(iterations=1, lanes=1, memory_cost=8))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the passphrase."""
    path = tmp_path / "phrase"
    path.write_text(TEXT + "\n")
    path.chmod(0o600)
    return path


# Argon2id


def test_the_published_vector_holds() -> None:
    """RFC 9106, section 5.3, with the secret and the associated data that we do not use."""
    key = bytearray(32)
    Argon2id(
        salt=b"\2" * 16,
        length=32,
        iterations=3,
        lanes=4,
        memory_cost=32,
        secret=b"\3" * 8,
        ad=b"\4" * 12,
    ).derive_into(b"\1" * 32, key)
    assert key.hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


@pytest.mark.parametrize(("passes", "memory"), [(1, 8), (3, 64), (4, 1024)])
def test_libsodium_makes_the_same_key(
    monkeypatch: pytest.MonkeyPatch, passes: int, memory: int
) -> None:
    """It knows one lane only."""
    monkeypatch.setitem(PROFILES, DEFAULT_PROFILE, Profile(passes, 1, memory))
    salt = bytes.fromhex(FIELDS["salt"])
    theirs = nacl.pwhash.argon2id.kdf(32, TEXT.encode(), salt, passes, memory * 1024)
    assert _key(_typed(TEXT)) == theirs


def test_a_second_reader_makes_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the parameters of the default profile written out, as our formats have them."""
    monkeypatch.setitem(PROFILES, DEFAULT_PROFILE, REAL[DEFAULT_PROFILE])
    assert _key(_typed(TEXT)) == passphrase_key(TEXT, FIELDS)


def test_the_profiles_are_the_two_of_the_rfc() -> None:
    """RFC 9106, section 4. What a name stands for is part of the format and never changes."""
    assert REAL == {
        "rfc9106-low-memory": (3, 4, 2**16),
        "rfc9106-high-memory": (1, 4, 2**21),
    }
    assert DEFAULT_PROFILE == "rfc9106-low-memory"


def test_the_profile_that_was_chosen_is_used_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "rfc9106-high-memory", Profile(2, 1, 8))
    provider = Passphrase(None, lambda _: TEXT, "rfc9106-high-memory")
    with provider.protect() as made:
        assert made.fields["profile"] == "rfc9106-high-memory"
        assert _key(_typed(TEXT), dict(made.fields)) == bytes(made.key.view)
        assert _key(_typed(TEXT), {**made.fields, "profile": DEFAULT_PROFILE}) != bytes(
            made.key.view
        )


def test_a_profile_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no passphrase profile 'mine'.*rfc9106-low"):
        Passphrase(None, lambda _: TEXT, "mine")


@pytest.mark.parametrize("member", ["memory_cost", "iterations", "lanes", "note"])
def test_no_parameter_is_read_from_a_slot(member: str) -> None:
    with pytest.raises(IntegrityError, match="slot is damaged"):
        _typed(TEXT).unprotect({**FIELDS, member: "8"})


def test_too_little_memory_is_no_damage_and_no_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_little(**_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("service_security.keys.passphrase.Argon2id", too_little)
    with pytest.raises(KeyUnavailableError, match=r"profile rfc9106-low-memory takes \d+ MiB"):
        _typed(TEXT).unprotect(FIELDS)


def test_each_slot_has_a_salt_of_its_own() -> None:
    with _typed(TEXT).protect() as one, _typed(TEXT).protect() as two:
        assert one.fields["salt"] != two.fields["salt"]
        assert len(one.fields["salt"]) == 32
        assert one.key != two.key
        assert _key(_typed(TEXT), dict(one.fields)) == bytes(one.key.view)


# The text


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_what_looks_alike_is_the_same(tmp_path: Path, form: Literal["NFC", "NFD"]) -> None:
    text = "Zürich und Ångström zusammen"
    written = unicodedata.normalize(form, text)
    (path := tmp_path / "phrase").write_text(written, "utf-8")
    path.chmod(0o400)
    composed = _key(_typed(unicodedata.normalize("NFC", text)))
    assert _key(_typed(written)) == composed
    assert _key(Passphrase(path, lambda _: "")) == composed
    assert _key(_typed(text.replace("ü", "u"))) != composed  # the control


def test_letters_that_only_look_wide_are_others() -> None:
    """NFC, not NFKC: the latter makes different texts equal."""
    assert _key(_typed("\N{FULLWIDTH LATIN CAPITAL LETTER A}" * 20)) != _key(_typed("A" * 20))


@pytest.mark.parametrize(
    ("ending", "same"),
    [("", True), ("\n", True), ("\r\n", True), ("\n\n", False), ("\r", False), (" ", False)],
    ids=["none", "LF", "CR LF", "two", "CR alone", "a space"],
)
def test_one_line_end_does_not_count(file: Path, ending: str, same: bool) -> None:
    file.write_bytes((TEXT + ending).encode())
    assert (_key(Passphrase(file, lambda _: "")) == _key(_typed(TEXT))) == same


def test_what_was_written_on_windows_opens(file: Path) -> None:
    text = "längliche Worte"
    file.write_bytes((text + "\r\n").encode())
    assert _key(Passphrase(file, lambda _: "")) == _key(_typed(text))


@pytest.mark.parametrize(
    ("text", "is_new_enough"),
    [("x" * 14, False), ("x" * 15, True), ("ü" * 14, False), ("ü" * 15, True)],
)
def test_a_new_passphrase_has_fifteen_characters(text: str, is_new_enough: bool) -> None:
    if is_new_enough:
        _typed(text).protect().close()
    else:
        with pytest.raises(ConfigurationError, match="15 characters"):
            _typed(text).protect()
    assert _key(_typed(text)), "one that is in use stays good"


def test_characters_are_counted_and_not_accents() -> None:
    with pytest.raises(ConfigurationError, match="15 characters"):
        _typed("u\N{COMBINING DIAERESIS}" * 14).protect()


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_passphrase_has_1024_bytes_at_most(file: Path, ending: bytes) -> None:
    file.write_bytes(b"x" * 1024 + ending)
    assert _key(Passphrase(file, lambda _: "")) == _key(_typed("x" * 1024))
    for more in (b"\r\nmore", b"\n\n", b"\r\n\n"):
        file.write_bytes(b"x" * 1024 + more)
        with pytest.raises(ConfigurationError, match="1024 bytes at most"):
            _key(Passphrase(file, lambda _: ""))
    file.write_bytes(b"x" * 1025 + ending)
    for call in (Passphrase(file, lambda _: "").protect, _typed("x" * 1025).protect):
        with pytest.raises(ConfigurationError, match="1024 bytes at most"):
            call()


@pytest.mark.parametrize(
    "contents",
    [b"", b"\n", b"\r\n", b"\xff" * 20, b"0123456789abcdef\xc3", b"\xed\xa0\x80" * 9],
    ids=["empty", "a line end", "CR LF", "no UTF-8", "cut", "a surrogate"],
)
def test_a_file_without_a_passphrase_is_refused(file: Path, contents: bytes) -> None:
    file.write_bytes(contents)
    provider = Passphrase(file, lambda _: "")
    for call in (provider.probe, provider.protect, lambda: provider.unprotect(FIELDS)):
        with pytest.raises(ConfigurationError):
            call()


@pytest.mark.parametrize("typed", ["", "\ud800" * 20])
def test_what_is_typed_and_no_text_is_refused(typed: str) -> None:
    with pytest.raises(ConfigurationError):
        _typed(typed).unprotect(FIELDS)


def test_an_error_keeps_no_passphrase(file: Path) -> None:
    """Neither the message nor what it was raised from."""
    texts = (b"sesame \xff sesame sesame", b"sesame", "sesame ü".encode(), b"sesame " * 200)
    for contents in texts:
        file.write_bytes(contents)
        with pytest.raises(ConfigurationError) as refusal:
            Passphrase(file, lambda _: "").protect()
        errors: list[BaseException] = [refusal.value]
        while errors[-1].__context__ is not None:
            errors.append(errors[-1].__context__)
        for error in errors:
            assert "sesame" not in str(error)
            assert b"sesame" not in getattr(error, "object", b"")
            assert b"sesame" not in b"".join(arg for arg in error.args if isinstance(arg, bytes))
            trace = error.__traceback__
            while trace is not None:
                if "service_security" in trace.tb_frame.f_code.co_filename:
                    assert "sesame" not in repr(trace.tb_frame.f_locals)
                trace = trace.tb_next


# Where it comes from


def test_a_person_is_told_whether_the_passphrase_is_new() -> None:
    asked: list[bool] = []

    def ask(new: bool) -> str:
        asked.append(new)
        return TEXT

    provider = Passphrase(None, ask)
    provider.probe()
    assert asked == [], "a probe asks nobody"
    with provider.protect() as made:
        provider.unprotect(made.fields).close()
    assert asked == [True, False]


def test_a_probe_reads_the_file(file: Path) -> None:
    Passphrase(file, lambda _: "").probe()
    file.write_text("too short")
    with pytest.raises(ConfigurationError, match="15 characters"):
        Passphrase(file, lambda _: "").probe()
    file.unlink()
    with pytest.raises(KeyUnavailableError, match="missing"):
        Passphrase(file, lambda _: "").probe()


def test_a_file_that_others_may_write_is_refused(file: Path) -> None:
    file.chmod(0o620)
    with pytest.raises(ConfigurationError, match="Others may write"):
        Passphrase(file, lambda _: "").protect()


# In an envelope


@pytest.fixture
def envelope(tmp_path: Path, file: Path) -> Path:
    """An envelope that opens with the passphrase in the file."""
    path = tmp_path / "envelope.json"
    initialise(path, f"passphrase:{file}", holds_encrypted_data=lambda: False)
    return path


def _edit_slot(envelope: Path, **members: str | None) -> None:
    outer = json.loads(envelope.read_text())
    body = json.loads(outer["body"])
    slot = body["slots"][0]
    slot.update(members)
    body["slots"][0] = {name: value for name, value in slot.items() if value is not None}
    outer["body"] = json.dumps(body)
    envelope.write_text(json.dumps(outer))


def test_it_opens_and_another_passphrase_does_not(envelope: Path, file: Path) -> None:
    open_master_key(envelope, f"passphrase:{file}").close()
    before = envelope.read_bytes()
    file.write_text(TEXT + "!")
    with pytest.raises(WrongKeyError, match="does not open"):
        open_master_key(envelope, f"passphrase:{file}")
    assert envelope.read_bytes() == before


def test_the_file_has_a_name_and_a_salt_and_no_parameter(envelope: Path) -> None:
    slot = json.loads(json.loads(envelope.read_text())["body"])["slots"][0]
    assert slot.keys() == {"type", "box", "profile", "salt"}
    assert slot["profile"] == DEFAULT_PROFILE
    assert TEXT.encode() not in envelope.read_bytes()
    assert base64.b64decode(slot["box"])[:4] == b"SSSL"


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"salt": "00" * 16}, WrongKeyError),
        ({"profile": "rfc9106-high-memory"}, WrongKeyError),
        ({"profile": "of the year 2040"}, UnsupportedFormatError),
        ({"profile": None}, IntegrityError),
        ({"salt": None}, IntegrityError),
        ({"salt": ""}, IntegrityError),
        ({"salt": "0" * 31}, IntegrityError),
        ({"salt": "00" * 17}, IntegrityError),
        ({"salt": "AB" * 16}, IntegrityError),
        ({"salt": "\N{FULLWIDTH DIGIT ZERO}" * 32}, IntegrityError),
        ({"memory_cost": "4194304"}, IntegrityError),
        ({"iterations": "1"}, IntegrityError),
    ],
)
def test_an_edited_slot_is_refused(
    envelope: Path,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    members: dict[str, str | None],
    kind: type[SecurityError],
) -> None:
    monkeypatch.setitem(PROFILES, "rfc9106-high-memory", Profile(1, 1, 16))
    _edit_slot(envelope, **members)
    with pytest.raises(kind):
        open_master_key(envelope, f"passphrase:{file}")


def test_the_name_of_the_profile_is_bound_to_the_box(
    envelope: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two names of the same parameters are two slots."""
    monkeypatch.setitem(PROFILES, "rfc9106-high-memory", PROFILES[DEFAULT_PROFILE])
    _edit_slot(envelope, profile="rfc9106-high-memory")
    with pytest.raises(WrongKeyError):
        open_master_key(envelope, f"passphrase:{file}")


def test_every_copy_that_can_be_wiped_is_wiped(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SecretBytes] = []
    init = SecretBytes.__init__

    def noted(self: SecretBytes, length: int = 32) -> None:
        init(self, length)
        made.append(self)

    monkeypatch.setattr(SecretBytes, "__init__", noted)
    provider = Passphrase(file, lambda _: "")
    wrapping = provider.unprotect(FIELDS)
    assert isinstance(wrapping, WrappingKey)
    wrapping.close()
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigurationError):
        provider.protect()
    assert len(made) >= 5
    for secret in made:
        with pytest.raises(ValueError, match="closed"):
            secret.check()
