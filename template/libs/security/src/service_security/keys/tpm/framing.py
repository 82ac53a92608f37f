"""Commands and responses of a TPM, without sessions. Nothing that a device says is trusted.

Every size and count is checked before use, and what does not fit is a `NotATpmError`.

Layouts, big-endian (TCG TPM 2.0 Library, Part 1, 18; Part 2, 10.10 and 6.12; Part 3, 10.4 and
30.2)::

    command       = tag u16 || size u32 || command code u32 || parameters
    response      = tag u16 || size u32 || response code u32 || parameters
    GetCapability = capability u32 || first u32 || count u32
                 -> more data u8 || capability u32 || count u32 || items
    property item = property u32 || value u32         (TPM_CAP_TPM_PROPERTIES)
    algorithm item = algorithm u16 || attributes u32  (TPM_CAP_ALGS)
    curve item    = curve u16                         (TPM_CAP_ECC_CURVES)
    GetTestResult -> size u16 || vendor's data || test result u32
"""

import struct
from typing import Final

from .errors import NotATpmError, malformed

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


def build_command(code: int, parameters: bytes) -> bytes:
    """Return a command; its parameters are at most 4,086 bytes."""
    size = HEADER_SIZE + len(parameters)
    if size > MAX_MESSAGE:
        raise ValueError(f"A TPM takes commands of {MAX_MESSAGE} bytes; this one has {size}.")
    return struct.pack(">HII", _NO_SESSIONS, size, code) + parameters


def declared_size(start: bytes) -> int:
    """Return the size in bytes that a response says it has, from its first six bytes.

    Raises:
        NotATpmError: It does not begin like a response, or no response has that size.
    """
    reader = _Reader(start)
    tag, size = reader.number(2), reader.number(4)
    if tag == _TPM_1_2_RESPONSE:
        raise NotATpmError("This is a TPM 1.2; a TPM 2.0 is needed.")
    if tag not in (_NO_SESSIONS, _SESSIONS):
        raise malformed("its response does not begin like one")
    if not HEADER_SIZE <= size <= MAX_MESSAGE:
        raise malformed(f"a response says that it has {size} bytes")
    return size


def parse_response(response: bytes) -> tuple[int, bytes]:
    """Return the response code and the parameters of a response.

    Raises:
        NotATpmError: The header is not one, or its size is not that of the response.
    """
    size = declared_size(response)
    if size != len(response):
        raise malformed(f"a response of {len(response)} bytes says that it has {size}")
    tag, _, code = struct.unpack_from(">HII", response)
    if tag != _NO_SESSIONS:
        raise malformed("it answers with a session where none was opened")
    if code and size != HEADER_SIZE:
        raise malformed(f"a refusal, response code 0x{code:03x}, has {size} bytes, not 10")
    return code, response[HEADER_SIZE:]


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
    reader = _Reader(parameters)
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
    reader = _Reader(parameters)
    reader.take(reader.number(2))
    result = reader.number(4)
    reader.end()
    return result


class _Reader:
    """Takes numbers and bytes off a message, never past its end."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def take(self, size: int) -> bytes:
        if size > len(self._rest):
            raise malformed("a response ends early")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def end(self) -> None:
        if self._rest:
            raise malformed("a response goes on after its end")
