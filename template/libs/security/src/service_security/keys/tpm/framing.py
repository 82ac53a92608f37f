"""Commands and responses of a TPM. Nothing that a device says is trusted.

Every size and count is checked before use, and what does not fit is a `NotATpmError`.

Layouts, big-endian (TCG TPM 2.0 Library, Part 1, 18; Part 2, 10.10 and 6.12; Part 3, 10.4 and
30.2). The part in brackets is there with an authorization, and only then::

    command       = tag u16 || size u32 || command code u32 || handles
                    || [size u32 || authorization] || parameters
    response      = tag u16 || size u32 || response code u32 || handle
                    || [size u32] || parameters || [authorization]
    GetCapability = capability u32 || first u32 || count u32
                 -> more data u8 || capability u32 || count u32 || items
    property item = property u32 || value u32         (TPM_CAP_TPM_PROPERTIES)
    algorithm item = algorithm u16 || attributes u32  (TPM_CAP_ALGS)
    curve item    = curve u16                         (TPM_CAP_ECC_CURVES)
    GetTestResult -> size u16 || vendor's data || test result u32
"""

import struct
from collections.abc import Sequence
from typing import Final

from .errors import NotATpmError, malformed
from .marshalling import Reader

HEADER_SIZE: Final = 10
MAX_MESSAGE: Final = 4096
"""Largest command or response in bytes: the kernel's own buffer for a TPM."""

GET_CAPABILITY: Final = 0x17A
GET_TEST_RESULT: Final = 0x17C
ALGORITHMS: Final = 0  # TPM_CAP, Part 2, 6.12
PROPERTIES: Final = 6
CURVES: Final = 8

_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002  # TPM_ST, Part 2, 6.9
_TPM_1_2_RESPONSE = 0x00C4
_ITEM_SIZES = {ALGORITHMS: (2, 4), PROPERTIES: (4, 4), CURVES: (2, 0)}


def build_command(
    code: int,
    parameters: bytes = b"",
    *,
    handles: Sequence[int] = (),
    authorization: bytes = b"",
) -> bytes:
    """Return a command of at most 4,096 bytes.

    Args:
        code: The command code (Part 2, 6.5).
        parameters: What follows handles and authorization.
        handles: What the command works on.
        authorization: Of a password or a session (Part 1, 18.6); without one, the command has no
            sessions.
    """
    body = b"".join(handle.to_bytes(4) for handle in handles)
    if authorization:
        body += len(authorization).to_bytes(4) + authorization
    body += parameters
    size = HEADER_SIZE + len(body)
    if size > MAX_MESSAGE:
        raise ValueError(f"A TPM takes commands of {MAX_MESSAGE} bytes; this one has {size}.")
    tag = _SESSIONS if authorization else _NO_SESSIONS
    return struct.pack(">HII", tag, size, code) + body


def declared_size(start: bytes) -> int:
    """Return the size in bytes that a response says it has, from its first six bytes.

    Raises:
        NotATpmError: It does not begin like a response, or no response has that size.
    """
    reader = Reader(start)
    tag, size = reader.number(2), reader.number(4)
    if tag == _TPM_1_2_RESPONSE:
        raise NotATpmError("This is a TPM 1.2; a TPM 2.0 is needed.")
    if tag not in (_NO_SESSIONS, _SESSIONS):
        raise malformed("its response does not begin like one")
    if not HEADER_SIZE <= size <= MAX_MESSAGE:
        raise malformed(f"a response says that it has {size} bytes")
    return size


def parse_response(response: bytes, *, sessions: bool = False) -> tuple[int, bytes]:
    """Return the response code of a response, and what follows it.

    Args:
        response: The whole response.
        sessions: Whether the command had an authorization; a refusal never has one (Part 1, 18.2).

    Raises:
        NotATpmError: The header is not one, or its size is not that of the response.
    """
    size = declared_size(response)
    if size != len(response):
        raise malformed(f"a response of {len(response)} bytes says that it has {size}")
    tag, _, code = struct.unpack_from(">HII", response)
    if tag == _SESSIONS and (code or not sessions):
        raise malformed("it answers with a session where none was opened")
    if tag == _NO_SESSIONS and sessions and code == 0:
        raise malformed("it answers outside of the session that it was asked in")
    if code and size != HEADER_SIZE:
        raise malformed(f"a refusal, response code 0x{code:03x}, has {size} bytes, not 10")
    return code, response[HEADER_SIZE:]


def split_authorized(body: bytes) -> tuple[bytes, bytes]:
    """Return parameters and authorization of a response in a session, its handle taken off before.

    Raises:
        NotATpmError: The parameters go past the end.
    """
    reader = Reader(body)
    return reader.take(reader.number(4)), reader.rest()


def parse_capability(
    parameters: bytes, *, capability: int, first: int, count: int
) -> tuple[dict[int, int], bool]:
    """Return the items of a response to ``TPM2_GetCapability``, and whether there are more.

    Args:
        parameters: Parameters of the response.
        capability: The list that was asked for.
        first: The first item that was asked for.
        count: How many items were asked for.

    Returns:
        Each item's number with its value or attributes (0 for a curve), and more data.

    Raises:
        NotATpmError: It is another list, its counts do not fit, or it is out of order.
    """
    reader = Reader(parameters)
    more, answered, length = reader.number(1), reader.number(4), reader.number(4)
    if more > 1 or answered != capability:
        raise malformed("it answers with another list than it was asked for")
    if length > count or (more and not length):
        raise malformed(f"it lists {length} items where {count} were asked for")
    number_size, value_size = _ITEM_SIZES[capability]
    items: dict[int, int] = {}
    for _ in range(length):
        number, value = reader.number(number_size), reader.number(value_size)
        if number < first:
            raise malformed("its list is out of order")
        items[number] = value
        first = number + 1
    reader.end()
    return items, bool(more)


def parse_test_result(parameters: bytes) -> int:
    """Return the test result in a response to ``TPM2_GetTestResult``, a response code.

    Raises:
        NotATpmError: The response has other parts than its two.
    """
    reader = Reader(parameters)
    reader.sized()
    result = reader.number(4)
    reader.end()
    return result
