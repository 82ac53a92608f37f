"""A second reader of backups, written from the description of the format alone.

It shares no code with the library. If it reads what the library writes, the documents are right.
"""

import hashlib
import hmac
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from independent_reader import PREFIX, hkdf, open_box

SEALED_CHUNK = 65_536 + 16


def read_backup(backup: Path, slot_type: bytes, key: bytes) -> dict[bytes, bytes]:
    """Return every record of a backup, opened by one slot."""
    stream = backup.read_bytes()
    assert stream[:5] == b"SSBK\x01"
    backup_id, count, at = stream[5:21], stream[21], 22
    assert 1 <= count <= 16
    boxes = {}
    for _ in range(count):
        length = stream[at]
        found, at = stream[at + 1 : at + 1 + length], at + 1 + length
        (length,) = struct.unpack_from(">H", stream, at)
        boxes[found], at = stream[at + 2 : at + 2 + length], at + 2 + length
    assert len(boxes) == count
    header = stream[:at]
    salt, commit, chunks = stream[at : at + 32], stream[at + 32 : at + 64], stream[at + 64 :]

    box = boxes[slot_type]
    assert box[:5] == b"SSSL\x01"
    backup_key = open_box(key, box, b"backup/slot", backup_id + slot_type, fields=0)
    assert len(backup_key) == 32
    keys = hkdf(backup_key, salt, PREFIX + b"backup/stream" + hashlib.sha256(header).digest(), 64)
    assert hmac.compare_digest(keys[32:], commit)

    payload = b""
    for number, start in enumerate(range(0, len(chunks), SEALED_CHUNK)):
        sealed = chunks[start : start + SEALED_CHUNK]
        is_last = start + len(sealed) == len(chunks)
        nonce = number.to_bytes(11, "big") + (b"\1" if is_last else b"\0")
        plain = AESGCM(keys[:32]).decrypt(nonce, sealed, None)
        assert len(plain) == 65_536 or (is_last and plain)
        payload += plain

    records, at = {}, 0
    while payload[at] == 1:
        name_length, value_length = struct.unpack_from(">HI", payload, at + 1)
        name, at = payload[at + 7 : at + 7 + name_length], at + 7 + name_length
        value, at = payload[at : at + value_length], at + value_length
        assert name not in records
        records[name] = value
    assert payload[at:] == b"\0" + struct.pack(">Q", len(records))
    return records
