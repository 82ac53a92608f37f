"""Public areas, PCRs and slots: to the byte as they are frozen, and nothing else is taken."""

import base64
import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_tpm import fuzz
from service_security.errors import ConfigurationError, IntegrityError
from service_security.keys.tpm.areas import (
    ROOT_KEY_TEMPLATES,
    name_of,
    root_key_point,
    sealed_policy,
    sealed_template,
)
from service_security.keys.tpm.errors import NotATpmError, SealedKeyDamagedError
from service_security.keys.tpm.marshalling import Reader, sized
from service_security.keys.tpm.pcrs import PcrSelection
from service_security.keys.tpm.provider import TpmProvider
from service_security.keys.tpm.slot import SealedKey

ROOT_KEY_HEAD = bytes.fromhex("0023000b000304720000000600800043001000030010")
POINT = b"\0\x20" + b"x" * 32 + b"\0\x20" + b"y" * 32
UNIQUE = b"\0\x20" + b"u" * 32
POLICY = hashlib.sha256(b"a policy").digest()
SEALED = bytes.fromhex("0008000b0000045200000010") + UNIQUE
SEALED_WITH_POLICY = bytes.fromhex("0008000b000004120020") + POLICY + b"\0\x10" + UNIQUE


def test_root_key_is_the_one_of_the_provisioning_guidance() -> None:
    zeros = b"\0\x20" + bytes(32)
    assert (ROOT_KEY_HEAD + zeros + zeros, ROOT_KEY_HEAD + bytes(4)) == ROOT_KEY_TEMPLATES
    assert root_key_point(ROOT_KEY_HEAD + POINT) == b"x" * 32 + b"y" * 32


def test_sealed_object_stays_in_its_tpm_and_has_no_password_that_counts() -> None:
    assert sealed_template(b"") == SEALED[:-34] + bytes(2)
    assert sealed_template(POLICY) == SEALED_WITH_POLICY[:-34] + bytes(2)
    assert sealed_policy(SEALED) == b""
    assert sealed_policy(SEALED_WITH_POLICY) == POLICY


def test_name_is_the_digest_of_the_public_area() -> None:
    assert name_of(b"public") == b"\0\x0b" + hashlib.sha256(b"public").digest()


@pytest.mark.parametrize("area", [SEALED, SEALED_WITH_POLICY])
def test_sealed_object_with_one_thing_different_is_none(area: bytes) -> None:
    """Only policy and unique may differ, which the TPM itself answers for."""
    free = {*range(len(area) - 32, len(area)), *(range(10, 42) if area != SEALED else ())}
    for position in set(range(len(area))) - free:
        for bit in range(8):
            changed = bytearray(area)
            changed[position] ^= 1 << bit
            assert sealed_policy(bytes(changed)) is None, position
    for length in range(len(area)):
        assert sealed_policy(area[:length]) is None
    assert sealed_policy(area + b"\0") is None


def test_root_key_with_another_length_is_none() -> None:
    area = ROOT_KEY_HEAD + POINT
    for other in (*(area[:length] for length in range(len(area))), area + b"\0"):
        assert root_key_point(other) is None


@fuzz
@given(st.binary(max_size=100))
def test_any_bytes_are_an_area_or_none(data: bytes) -> None:
    assert root_key_point(data) is None
    assert sealed_policy(data) is None
    assert root_key_point(ROOT_KEY_HEAD + data) in (None, data[2:34] + data[36:68])


@fuzz
@given(st.binary(max_size=20), st.lists(st.integers(0, 6), max_size=6))
def test_reader_never_goes_past_the_end(data: bytes, sizes: list[int]) -> None:
    reader, taken = Reader(data), b""
    try:
        for size in sizes:
            taken += reader.take(size)
    except NotATpmError:
        assert sum(sizes) > len(data)
    else:
        assert data == taken + reader.rest()
        reader.end()


# ------------------------------------------------------------------ PCRs


@pytest.mark.parametrize(
    ("numbers", "text", "layout"),
    [
        ((), "", "00000000"),
        ((0,), "0", "00000001000b03010000"),
        ((7,), "7", "00000001000b03800000"),
        ((23, 0, 8), "0,8,23", "00000001000b03010180"),
    ],
)
def test_selection_has_its_text_and_its_layout(
    numbers: tuple[int, ...], text: str, layout: str
) -> None:
    selection = PcrSelection.of(numbers)
    assert str(selection) == text
    assert bytes(selection).hex() == layout
    assert PcrSelection.parse(text) == selection
    if numbers:
        assert PcrSelection.read(Reader(bytes(selection))) == selection


@pytest.mark.parametrize("numbers", [(-1,), (24,), (7, 7), (0, 100)])
def test_numbers_that_are_no_pcrs_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="PCRs are numbers from 0 to 23"):
        TpmProvider(pcrs=numbers)


@fuzz
@given(st.text(alphabet="0123456789,- +x٣\n", max_size=12))
def test_any_text_is_a_selection_or_none(text: str) -> None:
    """There is one text for one selection, or two slots could say the same differently."""
    selection = PcrSelection.parse(text)
    assert selection is None or str(selection) == text
    assert selection is None or PcrSelection.of(selection.numbers) == selection


@fuzz
@given(st.binary(max_size=12))
def test_any_bytes_are_a_selection_or_refused(data: bytes) -> None:
    try:
        selection = PcrSelection.read(Reader(data))
    except NotATpmError:
        return
    assert all(0 <= number <= 23 for number in selection.numbers)


def test_policy_is_that_of_the_specification() -> None:
    """PolicyPCR extends the digest of zeros by its code, the selection and the values' digest."""
    values = {0: b"0" * 32, 7: b"7" * 32}
    digest = hashlib.sha256(values[0] + values[7]).digest()
    statement = bytes(32) + bytes.fromhex("0000017f 00000001000b03810000") + digest
    assert PcrSelection.of([7, 0]).policy(values) == hashlib.sha256(statement).digest()


@pytest.mark.parametrize("value", [bytes(32), b"\xff" * 32])
def test_pcr_that_is_not_measured_is_refused(value: bytes) -> None:
    """One of two is enough to refuse: it would be taken for a protection."""
    values = {4: b"4" * 32, 7: value}
    with pytest.raises(ConfigurationError, match="does not measure into PCR 7:"):
        PcrSelection.of([4, 7]).policy(values)
    assert PcrSelection.of([4]).policy(values)


# ------------------------------------------------------------------ slots

FIELDS = {
    "srk_name": "000b" + "5a" * 32,
    "private": base64.b64encode(sized(b"private")).decode(),
    "public": base64.b64encode(sized(SEALED)).decode(),
    "pcrs": "",
}
BOUND = {
    **FIELDS,
    "public": base64.b64encode(sized(SEALED_WITH_POLICY)).decode(),
    "pcrs": "0,7",
}


@pytest.mark.parametrize("fields", [FIELDS, BOUND])
def test_slot_reads_and_writes_back(fields: Mapping[str, str]) -> None:
    sealed = SealedKey.parse(fields)
    assert sealed.fields == fields
    assert sealed.private == b"private"
    assert sealed.binding == b"\0\x0b" + b"\x5a" * 32 + bytes(PcrSelection.of(sealed.pcrs.numbers))


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


WRONG: list[tuple[str, object]] = [
    *(("srk_name", name) for name in ("", "5a" * 34, "000b" + "5a" * 31, "000b" + "5a" * 33)),
    *(("srk_name", name) for name in ("000b" + "5A" * 32, "000b" + "5a" * 32 + "\n", None, 7)),
    *(("pcrs", pcrs) for pcrs in ("7", "24", "-1", " ", "07", "7,", None, 0, ())),
    *(("private", text) for text in ("", "=", "AA", "AAA=\n", None, b"AAA=", encoded(b"\0"))),
    *(("private", encoded(data)) for data in (b"\0\5five", b"\0\3fours", sized(bytes(1023)))),
    ("private", encoded(sized(b"12345")).rstrip("=")),
    ("private", encoded(sized(b"12345")).replace("A", "\N{FULLWIDTH LATIN CAPITAL LETTER A}")),
    ("private", encoded(sized(b"12345"))[:-3] + "R=="),  # another text for the same bytes
    ("public", encoded(sized(SEALED[:-1]))),
    ("public", encoded(sized(SEALED_WITH_POLICY))),
    ("public", encoded(SEALED)),
]


@pytest.mark.parametrize(("member", "value"), WRONG)
def test_slot_with_one_member_wrong_is_damaged(member: str, value: str) -> None:
    with pytest.raises(SealedKeyDamagedError, match="sealed key in the envelope is damaged"):
        TpmProvider("/dev/no-device-is-opened").unprotect({**FIELDS, member: value})


@pytest.mark.parametrize("fields", [{}, {**FIELDS, "more": ""}, {"private": ""}])
def test_slot_with_other_members_is_damaged(fields: dict[str, str]) -> None:
    with pytest.raises(IntegrityError):
        TpmProvider("/dev/no-device-is-opened").unprotect(fields)


@pytest.mark.parametrize("pcrs", ["", "7,0", "0,0", "0,24", "0, 7"])
def test_bound_slot_with_other_pcrs_is_damaged(pcrs: str) -> None:
    """Those that can be told apart without the TPM; a changed number is the TPM's to notice."""
    with pytest.raises(SealedKeyDamagedError):
        SealedKey.parse({**BOUND, "pcrs": pcrs})


@fuzz
@given(
    st.sampled_from(sorted(FIELDS)),
    st.text(max_size=80) | st.binary(max_size=90).map(lambda data: encoded(sized(data))),
)
def test_any_member_is_taken_as_it_is_or_damaged(member: str, value: str) -> None:
    try:
        sealed = SealedKey.parse({**FIELDS, member: value})
    except SealedKeyDamagedError:
        return
    assert sealed.fields == {**FIELDS, member: value}
