"""Between program and TPM: a recording does not tell the key, and changes are noticed."""

import base64
import hmac
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from service_security.errors import IntegrityError
from service_security.keys.tpm import errors, session
from service_security.keys.tpm.address import parse_address
from service_security.keys.tpm.client import (
    CREATE,
    LOAD,
    PCR_READ,
    START_AUTH_SESSION,
    UNSEAL,
    Client,
)
from service_security.keys.tpm.framing import split_authorized
from service_security.keys.tpm.marshalling import Reader, sized
from service_security.keys.tpm.provider import TpmProvider
from service_security.keys.tpm.root_key import any_root_key
from service_security.keys.tpm.transport import execute, open_transport
from software_tpm import PCR, Bus, SoftwareTpm, bus, software_tpms

WITH_EMPTY_PASSWORD = b"\x40\x00\x00\x09" + bytes(2) + b"\x01" + bytes(2)


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    """A software TPM in which no test leaves anything."""
    with software_tpms(tmp_path_factory.mktemp("tpms")) as make:
        tpm = make()
        tpm.extend(PCR)
        yield tpm
        assert tpm.left_behind() == []


def codes(listened: Bus) -> list[int]:
    """Return the codes of the recorded commands."""
    return [int.from_bytes(command[6:10]) for command in listened.recorded[::2]]


# ------------------------------------------------------------------ listening


@pytest.mark.parametrize("pcrs", [(), (PCR,)])
def test_recorded_bus_does_not_contain_the_key(
    tpm: SoftwareTpm, tmp_path: Path, pcrs: tuple[int, ...]
) -> None:
    """Neither when the key is made nor when it is opened, and not half of it either."""
    with bus(tmp_path, tpm.address) as listened:
        provider = TpmProvider(listened.address, pcrs=pcrs)
        with provider.protect() as made, provider.unprotect(made.fields) as opened:
            key = bytes(opened.key.view)
    assert {CREATE, UNSEAL} <= set(codes(listened))
    recorded = b"".join(listened.recorded)
    assert key[:16] not in recorded
    assert key[16:] not in recorded


def test_recorded_bus_contains_the_key_of_a_plain_session(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """The control: the same commands with a password in place of the session, both ways."""
    with tpm.provider().protect() as made:
        key = bytes(made.key.view)
        private, public = (base64.b64decode(made.fields[name]) for name in ("private", "public"))
    with (
        bus(tmp_path, tpm.address) as listened,
        open_transport(parse_address(listened.address)) as transport,
        any_root_key(Client(transport)) as root_key,
    ):

        def plain(code: int, handle: int, parameters: bytes) -> bytes:
            return execute(
                transport, code, parameters, handles=(handle,), authorization=WITH_EMPTY_PASSWORD
            )

        handle = Reader(plain(LOAD, root_key.handle, private + public)).number(4)
        assert key not in b"".join(listened.recorded)
        plain(UNSEAL, handle, b"")
        assert key in listened.recorded[-1]
        template = sized(Reader(public).sized()[: -32 - 2] + bytes(2))
        secret = sized(sized(b"") + sized(key))
        plain(CREATE, root_key.handle, secret + template + sized(b"") + bytes(4))
        assert key in listened.recorded[-2]
        execute(transport, 0x165, handle.to_bytes(4))


def test_no_two_conversations_are_alike(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """Nonces and salts are fresh, so a recorded answer is of no use later."""
    with tpm.provider().protect() as made:
        fields = made.fields
    salts, answers = set(), set()
    with bus(tmp_path, tpm.address) as listened:
        for _ in range(5):
            TpmProvider(listened.address).unprotect(fields).close()
    for command, answer in zip(listened.recorded[::2], listened.recorded[1::2], strict=True):
        code = int.from_bytes(command[6:10])
        if code == START_AUTH_SESSION:
            salts.add(command[18:])
        if code == UNSEAL:
            answers.add(answer)
    assert (len(salts), len(answers)) == (5, 5)


# ------------------------------------------------------------------ changing


def with_byte_changed(message: bytes, position: int) -> bytes:
    return message[:position] + bytes([message[position] ^ 1]) + message[position + 1 :]


@dataclass
class Changes:
    """What came of changing each byte of a message in turn.

    Attributes:
        told: The errors, and how often each was raised.
        unnoticed: How often none was.
        wrong_keys: How often the key was another one then.
    """

    told: Counter[type[Exception]]
    unnoticed: int = 0
    wrong_keys: int = 0


def changed_in_turn(
    tpm: SoftwareTpm, folder: Path, code: int, start: int, *, of_response: bool
) -> Changes:
    """Use a TPM with each byte of one message changed in turn, from ``start`` on."""
    with tpm.provider().protect() as made:
        fields, key = made.fields, bytes(made.key.view)
    changes = Changes(Counter())
    position, length = start, start + 1

    def alter(sent: int, message: bytes) -> bytes:
        nonlocal length
        if sent != code:
            return message
        length = len(message)
        return with_byte_changed(message, position)

    way = {"response": alter} if of_response else {"command": alter}
    with bus(folder, tpm.address, **way) as listened:
        provider = TpmProvider(listened.address)
        while position < length:
            try:
                used = provider.protect() if code == CREATE else provider.unprotect(fields)
            except (errors.TpmError, IntegrityError) as error:
                changes.told[type(error)] += 1
            else:
                changes.unnoticed += 1
                with used:
                    changes.wrong_keys += bytes(used.key.view) != key
            position += 1
    assert length - start == changes.told.total() + changes.unnoticed > 60
    return changes


@pytest.mark.parametrize(("code", "start"), [(UNSEAL, 10), (CREATE, 10), (LOAD, 14)])
def test_changed_byte_of_a_response_is_noticed(
    tpm: SoftwareTpm, tmp_path: Path, code: int, start: int
) -> None:
    """From the end of the header on, and of the handle: see the next test."""
    changes = changed_in_turn(tpm, tmp_path, code, start, of_response=True)
    assert changes.unnoticed == 0
    assert changes.told.keys() == {errors.TamperedError, errors.NotATpmError}
    assert changes.told[errors.TamperedError] > changes.told[errors.NotATpmError]


def test_changed_handle_in_a_response_gives_no_key(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """The proof does not cover it; the command for the wrong object is refused."""
    with tpm.provider().protect() as made:
        fields = made.fields

    def alter(sent: int, message: bytes) -> bytes:
        return with_byte_changed(message, 13) if sent == LOAD else message

    with (
        bus(tmp_path, tpm.address, response=alter) as listened,
        pytest.raises(errors.TpmError),
    ):
        TpmProvider(listened.address).unprotect(fields)
    tpm.shell("true")  # and throws out what has a handle that nobody was told


def test_changed_byte_of_a_response_is_not_noticed_without_the_proof(
    tpm: SoftwareTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: then, each of the 32 encrypted bytes gives a wrong key."""
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: True)
    changes = changed_in_turn(tpm, tmp_path, UNSEAL, 16, of_response=True)
    assert changes.wrong_keys >= 32


@pytest.mark.parametrize("code", [UNSEAL, CREATE])
def test_changed_byte_of_a_command_is_noticed(tpm: SoftwareTpm, tmp_path: Path, code: int) -> None:
    """The TPM notices, and does not carry it out."""
    changes = changed_in_turn(tpm, tmp_path, code, 10, of_response=False)
    assert changes.unnoticed == 0
    assert errors.TpmBusyError not in changes.told


def test_answer_of_another_root_key_is_noticed(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """Somebody puts a key of their own in the place of the root key, to read the salt."""
    with tpm.provider().protect() as made:
        fields = made.fields
    own = b"\x04" * 64

    def alter(_: int, answer: bytes) -> bytes:
        body = answer[10:]
        if len(body) < 200 or not answer.startswith(b"\x80\x02"):
            return answer
        handle, (said, authorization) = body[:4], split_authorized(body[4:])
        public = Reader(said).sized()
        if not public.startswith(b"\0\x23"):
            return answer
        forged = said.replace(public[-66:-34], own[:32])
        return answer[:10] + handle + len(forged).to_bytes(4) + forged + authorization

    with bus(tmp_path, tpm.address, response=alter) as listened:
        with pytest.raises(errors.NotATpmError, match="root key that it made"):
            TpmProvider(listened.address).unprotect(fields)
        with pytest.raises(errors.NotATpmError, match="root key that it made"):
            TpmProvider(listened.address).protect()


# ------------------------------------------------------------------ a TPM that lies


SEALED_HEAD = bytes.fromhex("0008000b00000452")


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every proof taken for right, as those of a broken or dishonest TPM are."""
    believing = SimpleNamespace(digest=hmac.digest, compare_digest=lambda *_: True)
    monkeypatch.setattr(session, "hmac", believing)


@pytest.mark.usefixtures("believed")
@pytest.mark.parametrize(
    ("code", "position", "told"),
    [
        (CREATE, None, "not what it was asked to seal"),
        (LOAD, 22, "loaded another object"),
        (UNSEAL, 16, "not what it was given"),
    ],
)
def test_answer_that_is_not_what_was_asked_for_is_told(
    tpm: SoftwareTpm, tmp_path: Path, code: int, position: int | None, told: str
) -> None:
    """Another public area of what it sealed, another name of what it loaded, another secret."""

    def alter(sent: int, answer: bytes) -> bytes:
        if sent != code:
            return answer
        if position is None:  # the attributes of the sealed object: it could leave the TPM
            assert answer.count(SEALED_HEAD) == 1
            return answer.replace(SEALED_HEAD, bytes.fromhex("0008000b00000440"))
        return with_byte_changed(answer, position)

    with (
        bus(tmp_path, tpm.address, response=alter) as listened,
        pytest.raises(errors.NotATpmError, match=told),
    ):
        TpmProvider(listened.address).protect()


def test_other_pcrs_than_were_asked_for_are_told(tpm: SoftwareTpm, tmp_path: Path) -> None:
    selection = bytes.fromhex("00000001000b03000001")
    other = bytes.fromhex("00000001000b03010000")

    def alter(sent: int, answer: bytes) -> bytes:
        return answer.replace(selection, other) if sent == PCR_READ else answer

    with (
        bus(tmp_path, tpm.address, response=alter) as listened,
        pytest.raises(errors.NotATpmError, match="other PCRs than it was asked for"),
    ):
        TpmProvider(listened.address, pcrs=[PCR]).protect()
