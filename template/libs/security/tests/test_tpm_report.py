"""What a TPM tells: each field from its own property, and no answer that could do harm."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_tpm import ADDRESS, FakeTpm, fuzz, response
from service_security.keys.tpm import framing
from service_security.keys.tpm.areas import ROOT_KEY_TEMPLATES, name_of
from service_security.keys.tpm.client import READ_PUBLIC
from service_security.keys.tpm.command import describe
from service_security.keys.tpm.errors import (
    NotATpmError,
    TpmError,
    TpmFailedError,
    TpmOwnerError,
    TpmUnsuitableError,
)
from service_security.keys.tpm.marshalling import sized
from service_security.keys.tpm.report import TpmReport


def test_report_tells_what_the_tpm_tells() -> None:
    assert FakeTpm().ask() == TpmReport(
        address=ADDRESS,
        manufacturer="ACME",
        vendor="Part 7",
        firmware="00000007.000000fe",
        missing_algorithms=(),
        root_key=False,
        owner_hierarchy=True,
        owner_password=False,
        lockout_password=False,
        locked_out=False,
        failed_tries=1,
        max_tries=32,
        lockout_interval=600,
    )


@pytest.mark.parametrize(
    ("bit", "field"), [(0, "owner_password"), (2, "lockout_password"), (9, "locked_out")]
)
def test_each_flag_has_its_bit(bit: int, field: str) -> None:
    """The bits of TPMA_PERMANENT (Part 2, 8.6), one at a time."""
    fake = FakeTpm()
    fake.lists[framing.PROPERTIES][0x200] = 1 << bit
    flags = ("owner_password", "lockout_password", "locked_out")
    assert [flag for flag in flags if getattr(fake.ask(), flag)] == [field]


@pytest.mark.parametrize(
    ("capability", "item", "missing"),
    [
        (framing.ALGORITHMS, 0x06, "AES-128-CFB"),
        (framing.ALGORITHMS, 0x43, "AES-128-CFB"),
        (framing.ALGORITHMS, 0x0B, "SHA-256"),
        (framing.ALGORITHMS, 0x23, "ECC P-256"),
        (framing.CURVES, 3, "ECC P-256"),
    ],
)
def test_missing_algorithm_makes_it_unusable(capability: int, item: int, missing: str) -> None:
    fake = FakeTpm()
    del fake.lists[capability][item]
    report = fake.ask()
    assert report.missing_algorithms == (missing,)
    assert isinstance(report.obstacle, TpmUnsuitableError)
    assert f"cannot be used for a key. The TPM lacks {missing}, so" in describe(report)


def kept(public: bytes) -> bytes:
    """Return the response that a root key with this public area is kept."""
    return response(sized(public) + sized(name_of(public)) + sized(b"qualified name"))


POINT = sized(b"x" * 32) + sized(b"y" * 32)
ROOT_KEY = ROOT_KEY_TEMPLATES[1][:-4] + POINT


def test_owner_password_is_an_obstacle_without_a_root_key() -> None:
    fake = FakeTpm()
    fake.lists[framing.PROPERTIES][0x200] = 1
    obstacle = fake.ask().obstacle
    assert isinstance(obstacle, TpmOwnerError)
    assert "tpm2_createprimary" in str(obstacle)
    assert "tpm2_evictcontrol" in str(obstacle)
    fake.root_key = kept(ROOT_KEY)
    assert fake.ask().root_key
    assert fake.ask().obstacle is None


@pytest.mark.parametrize("position", range(len(ROOT_KEY) - len(POINT)))
def test_foreign_key_in_the_place_of_the_root_key_is_none(position: int) -> None:
    """Every byte of the public area counts, only the point is the key's own."""
    fake = FakeTpm()
    fake.root_key = kept(overwrite(position, bytes([ROOT_KEY[position] ^ 1]))(ROOT_KEY))
    assert not fake.ask().root_key
    fake.root_key = kept(ROOT_KEY)
    assert fake.ask().root_key


def test_root_key_with_another_name_is_told() -> None:
    fake = FakeTpm()
    fake.root_key = response(sized(ROOT_KEY) + sized(name_of(b"")) + sized(b""))
    with pytest.raises(NotATpmError, match="name of its root key"):
        fake.ask()


def test_owner_hierarchy_that_is_off_is_an_obstacle() -> None:
    """The bit of TPMA_STARTUP_CLEAR (Part 2, 8.7)."""
    fake = FakeTpm()
    fake.lists[framing.PROPERTIES][0x201] = 0xFFFFFFFD
    assert not fake.ask().owner_hierarchy
    assert "owner hierarchy is switched off" in str(fake.ask().obstacle)


@pytest.mark.parametrize("page", [1, 2, 3])
def test_list_that_comes_in_pages_is_read_whole(page: int) -> None:
    """A TPM may answer with less than it was asked for, and say that there is more."""
    fake = FakeTpm(page=page)
    assert fake.ask() == FakeTpm().ask()
    assert len(fake.commands) > len(FakeTpm().lists)


def test_list_without_end_is_left() -> None:
    fake = FakeTpm(page=1)
    fake.lists[framing.ALGORITHMS] = dict.fromkeys(range(1, 1000), 0)
    with pytest.raises(NotATpmError, match="has no end"):
        fake.ask()
    assert len(fake.commands) < 100


def test_only_questions_are_asked() -> None:
    """The probe sends no command that could change anything."""
    fake = FakeTpm(page=3)
    fake.ask()
    assert set(fake.commands) == {framing.GET_CAPABILITY, framing.GET_TEST_RESULT, READ_PUBLIC}


@pytest.mark.parametrize("number", [0x100, 0x105, 0x10B, 0x10C, 0x200, 0x201, 0x20E, 0x20F, 0x210])
def test_missing_property_is_told(number: int) -> None:
    fake = FakeTpm()
    del fake.lists[framing.PROPERTIES][number]
    with pytest.raises(NotATpmError, match=f"does not tell property 0x{number:x}"):
        fake.ask()


def test_other_family_is_told() -> None:
    fake = FakeTpm()
    fake.lists[framing.PROPERTIES][0x100] = int.from_bytes(b"1.2\0")
    with pytest.raises(NotATpmError, match=r"of family '1\.2'"):
        fake.ask()


def test_names_of_a_tpm_cannot_steer_a_terminal() -> None:
    """A name is bytes from a device: escape sequences in it are not printed."""
    fake = FakeTpm()
    fake.lists[framing.PROPERTIES][0x105] = int.from_bytes(b"\x1b[2J")
    fake.lists[framing.PROPERTIES][0x106] = int.from_bytes(b"\n\x9b\xff\x07")
    report = fake.ask()
    assert (report.manufacturer, report.vendor) == ("?[2J", "???? 7")


def test_failed_self_test_is_told() -> None:
    """In failure mode a TPM still answers, and tells by the test's result."""
    with pytest.raises(TpmFailedError, match="failure mode"):
        FakeTpm(test_result=0x101).ask()


@pytest.mark.parametrize("result", [0x153, 0x90A])  # TPM_RC_NEEDS_TEST, TPM_RC_TESTING
def test_self_test_to_come_is_no_failure(result: int) -> None:
    assert FakeTpm(test_result=result).ask().obstacle is None


class DamagedTpm(FakeTpm):
    """A TPM whose answer to one command is damaged, or whose answers all are."""

    def __init__(self, damage: Callable[[bytes], bytes], nth: int | None, page: int) -> None:
        super().__init__(page=page)
        self.damage = damage
        self.nth = nth

    def exchange(self, command: bytes) -> bytes:
        """Answer a command, and damage the answer."""
        answer = super().exchange(command)
        hit = self.nth is None or len(self.commands) == self.nth
        return self.damage(answer) if hit else answer


def overwrite(position: int, patch: bytes) -> Callable[[bytes], bytes]:
    """Return a function that puts ``patch`` over the bytes at ``position``."""
    return lambda data: data[:position] + patch + data[position + len(patch) :]


damages = st.one_of(
    st.integers(0, 90).map(lambda size: lambda data: data[:size]),
    st.binary(min_size=1, max_size=5000).map(lambda extra: lambda data: data + extra),
    st.binary(max_size=5000).map(lambda other: lambda _: other),
    st.binary(max_size=100).map(lambda other: lambda _: response(other)),
    st.builds(overwrite, st.integers(0, 90), st.binary(min_size=1, max_size=4)),
)


@fuzz
@given(damages, st.none() | st.integers(1, 12), st.integers(1, 4))
def test_damaged_answers_make_a_report_or_an_error(
    damage: Callable[[bytes], bytes], nth: int | None, page: int
) -> None:
    """Whatever a device answers: no crash, no hang, nothing unprintable."""
    fake = DamagedTpm(damage, nth, page)
    try:
        told = describe(fake.ask())
    except TpmError as error:
        told = str(error)
    assert told.isascii()
    assert told.replace("\n", "").isprintable()
    assert len(fake.commands) < 200
