"""Cursors: where a list goes on, in a form that nobody is tempted to take apart.

A cursor is the base64url text of a version byte and the position as a big-endian u64.
"""

import base64
import binascii

_VERSION = b"\x01"
_LAST_POSITION = 2**63 - 1


class CursorError(ValueError):
    """The text is not a cursor that this service gave out."""


def encode_cursor(after: int) -> str:
    """Return the cursor for what lies beyond a position."""
    return base64.urlsafe_b64encode(_VERSION + after.to_bytes(8, "big")).decode()


def decode_cursor(cursor: str) -> int:
    """Return the position that a cursor stands for.

    Raises:
        CursorError: the text is not one of `encode_cursor`.
    """
    try:
        raw = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise CursorError from error
    after = int.from_bytes(raw[1:], "big")
    if len(raw) != 9 or raw[:1] != _VERSION or after > _LAST_POSITION:
        raise CursorError
    return after
