"""Commands and responses of a TPM: what is accepted is right to the byte."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_tpm import fuzz, response
from service_security.keys.tpm.errors import NotATpmError
from service_security.keys.tpm.framing import (
    ALGORITHMS,
    CURVES,
    GET_CAPABILITY,
    PROPERTIES,
    build_command,
    parse_capability,
    parse_response,
    split_authorized,
)


def test_command_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="4096 bytes; this one has 4097"):
        build_command(GET_CAPABILITY, bytes(4087))


def test_command_has_the_layout_of_the_specification() -> None:
    assert build_command(0x17A, b"parameters").hex(" ", 2) == (
        "8001 0000 0014 0000 017a " + b"parameters".hex(" ", 2)
    )
    command = build_command(0x17A, b"p", handles=(0x80000000, 1), authorization=b"four")
    assert command.hex() == "80020000001b0000017a800000000000000100000004" + (b"four" + b"p").hex()


@pytest.mark.parametrize(
    ("answer", "sessions", "told"),
    [
        (response(b"x"), True, "outside of the session"),
        (response(b"x", tag=0x8002), False, "with a session where none"),
        (response(code=0x101, tag=0x8002), True, "with a session where none"),
        (response(code=0x101, tag=0x8002), False, "with a session where none"),
    ],
)
def test_answer_in_another_session_than_the_question_is_told(
    answer: bytes, sessions: bool, told: str
) -> None:
    with pytest.raises(NotATpmError, match=told):
        parse_response(answer, sessions=sessions)
    assert parse_response(response(b"x", tag=0x8002), sessions=True) == (0, b"x")
    assert parse_response(response(code=0x101), sessions=True) == (0x101, b"")


@fuzz
@given(st.binary(max_size=20))
def test_any_bytes_are_parameters_and_authorization_or_refused(data: bytes) -> None:
    try:
        parameters, authorization = split_authorized(data)
    except NotATpmError:
        return
    assert len(parameters).to_bytes(4) + parameters + authorization == data


@pytest.mark.parametrize(
    ("head", "curves", "told"),
    [
        ((0, CURVES, 2), (4, 3), "out of order"),
        ((0, CURVES, 2), (3, 3), "out of order"),
        ((0, CURVES, 1), (1,), "out of order"),  # below the first that was asked for
        ((0, CURVES, 2), (3, 4, 5), "goes on after its end"),
        ((0, CURVES, 3), (3, 4), "ends early"),
        ((0, CURVES, 4), (3, 4, 5, 6), "lists 4 items where 3 were asked for"),
        ((0, CURVES, 0xFFFFFFFF), (), "lists 4294967295 items where 3 were asked for"),
        ((1, CURVES, 0), (), "lists 0 items"),  # more data, and no item to go on from
        ((2, CURVES, 1), (3,), "another list"),
        ((0, ALGORITHMS, 1), (3,), "another list"),
    ],
)
def test_list_with_one_thing_wrong_is_told(
    head: tuple[int, int, int], curves: tuple[int, ...], told: str
) -> None:
    answer = struct.pack(">BII", *head) + b"".join(curve.to_bytes(2) for curve in curves)
    with pytest.raises(NotATpmError, match=told):
        parse_capability(answer, capability=CURVES, first=2, count=3)


@fuzz
@given(st.binary(max_size=64) | st.binary(max_size=64).map(response))
def test_any_bytes_are_a_response_or_refused(data: bytes) -> None:
    try:
        code, parameters = parse_response(data)
    except NotATpmError:
        return
    assert response(parameters, code) == data


@fuzz
@given(st.data(), st.sampled_from([PROPERTIES, ALGORITHMS, CURVES]))
def test_any_bytes_are_a_list_or_refused(data: st.DataObject, capability: int) -> None:
    """What is accepted as a list is within what was asked for, and in order."""
    length = data.draw(st.integers(0, 5))
    head = struct.pack(">BII", data.draw(st.integers(0, 2)), capability, length)
    body = data.draw(st.binary(max_size=40))
    try:
        items, more = parse_capability(head + body, capability=capability, first=1, count=4)
    except NotATpmError:
        return
    assert len(items) == length <= 4
    assert list(items) == sorted(items)
    assert all(number >= 1 for number in items)
    assert items or not more
