"""Public areas of the two kinds of object that a key needs, and their names.

::

    name     = 0x000b || SHA-256(public area)
    root key = type ECC u16 || name algorithm SHA-256 u16 || attributes u32 || policy (sized, empty)
               || AES u16 || 128 u16 || CFB u16 || scheme u16 || P-256 u16 || KDF u16
               || x (sized) || y (sized)
    sealed   = type keyed hash u16 || name algorithm SHA-256 u16 || attributes u32
               || policy (sized) || scheme u16 || unique (sized)

(TCG TPM 2.0 Library, Part 1, 16 and Part 2, 12.2.4; attributes: Part 2, 8.3.) The root key is the
ECC storage root key of the TCG's TPM 2.0 Provisioning Guidance, 7.5.1.
"""

import hashlib
import struct
from typing import Final

_ECC, _KEYED_HASH, _SHA256, _NULL = 0x0023, 0x0008, 0x000B, 0x0010
_AES, _CFB, _P256 = 0x0006, 0x0043, 0x0003
_FIXED_TPM, _FIXED_PARENT, _NO_DA = 1 << 1, 1 << 4, 1 << 10
_DATA_ORIGIN, _WITH_AUTH, _RESTRICTED, _DECRYPT = 1 << 5, 1 << 6, 1 << 16, 1 << 17

_COORDINATE: Final = 32
_UNIQUE: Final = 32
_POLICY = 10
"""Where the policy of a sealed object begins; what follows it has `_UNIQUE_END` bytes."""
_UNIQUE_END = 2 + 2 + _UNIQUE

_ROOT_KEY = struct.pack(
    ">HHIHHHHHHH",
    _ECC,
    _SHA256,
    _FIXED_TPM | _FIXED_PARENT | _DATA_ORIGIN | _WITH_AUTH | _NO_DA | _RESTRICTED | _DECRYPT,
    0,
    _AES,
    128,
    _CFB,
    _NULL,
    _P256,
    _NULL,
)
_SIZE_32 = struct.pack(">H", 32)
_ZEROS = _SIZE_32 + bytes(_COORDINATE)

ROOT_KEY_TEMPLATES: Final = (_ROOT_KEY + _ZEROS + _ZEROS, _ROOT_KEY + bytes(4))
"""The root key as the TCG wants it made, and as systemd makes it, with an empty point. A TPM makes
the same key out of the same template, and another one out of each, until it is cleared."""


def name_of(public: bytes) -> bytes:
    """Return the 34-byte name of an object whose name algorithm is SHA-256."""
    return _SHA256.to_bytes(2) + hashlib.sha256(public).digest()


def root_key_point(public: bytes) -> bytes | None:
    """Return x and y, 64 bytes, of a public area that is a root key's in all but its point."""
    head, point = public[: len(_ROOT_KEY)], public[len(_ROOT_KEY) :]
    x, y = point[: len(_ZEROS)], point[len(_ZEROS) :]
    if head != _ROOT_KEY or len(y) != len(_ZEROS) or not x[:2] == y[:2] == _SIZE_32:
        return None
    return x[2:] + y[2:]


def sealed_template(policy: bytes) -> bytes:
    """Return the public area to make a sealed object from.

    It stays in this TPM, under its root key, and does not count as a try of a password. Without a
    policy it opens with its empty password; with one, in a session of that policy only.

    Args:
        policy: Its 32-byte digest, or nothing.
    """
    return _sealed(policy) + bytes(2)


def sealed_policy(public: bytes) -> bytes | None:
    """Return the policy of an object made from a `sealed_template`; None if it is none such."""
    policy = public[_POLICY:-_UNIQUE_END]
    if len(policy) not in (0, 32):
        return None
    expected = _sealed(policy) + _SIZE_32
    if not public.startswith(expected) or len(public) != len(expected) + _UNIQUE:
        return None
    return policy


def _sealed(policy: bytes) -> bytes:
    attributes = _FIXED_TPM | _FIXED_PARENT | _NO_DA | (0 if policy else _WITH_AUTH)
    head = struct.pack(">HHIH", _KEYED_HASH, _SHA256, attributes, len(policy))
    return head + policy + _NULL.to_bytes(2)
