"""The bytes of a backup: every way in which they must be refused, without a file."""

import io
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_security.errors import (
    IntegrityError,
    SecurityError,
    UnsupportedFormatError,
    WrongKeyError,
)
from service_security.keys import sealed_box
from service_security.secret_bytes import SecretBytes
from service_security.store import backup_stream
from service_security.store.backup_header import BackupHeader
from service_security.store.backup_stream import (
    CHUNK_BYTES,
    SEALED_CHUNK_BYTES,
    ChunkCipher,
    count_at_end,
    open_records,
    seal_records,
)

KEY_FILE_KEY, MASTER_KEY = bytes(range(100, 132)), bytes(range(32))
BOTH = {"key-file": KEY_FILE_KEY, "master": MASTER_KEY}
BOX_BYTES = 5 + 32 + 32 + 32 + 16
FRONT = 22 + sum(1 + len(slot_type) + 2 + BOX_BYTES for slot_type in BOTH) + 64
"""Bytes before the first chunk of a backup with both slots."""

Records = dict[bytes, bytes]


@contextmanager
def secrets_of(keys: Mapping[str, bytes]) -> Iterator[dict[str, SecretBytes]]:
    """Yield keys as the library takes them."""
    with ExitStack() as stack:
        yield {
            slot_type: stack.enter_context(SecretBytes.copy_of(key))
            for slot_type, key in keys.items()
        }


def sealed_stream(records: Records, keys: Mapping[str, bytes] = BOTH) -> bytes:
    """Return a whole backup."""
    with secrets_of(keys) as secrets:
        return b"".join(seal_records(records.items(), secrets))


def opened(stream: bytes, keys: Mapping[str, bytes] = BOTH) -> Records:
    """Read a stream as ``open_records`` does, from front to end."""
    source = io.BytesIO(stream)
    with secrets_of(keys) as secrets:
        cipher = ChunkCipher.read(BackupHeader.read(source.read), secrets, source.read)
    with cipher:
        return dict(open_records(cipher, source.read))


def counted(stream: bytes) -> int:
    """Look at the end of a stream as ``count_at_end`` does."""
    source = io.BytesIO(stream)
    with secrets_of(BOTH) as secrets:
        cipher = ChunkCipher.read(BackupHeader.read(source.read), secrets, source.read)
    start = source.tell()

    def read_chunk(number: int) -> bytes:
        source.seek(start + number * backup_stream.SEALED_CHUNK_BYTES)
        return source.read(backup_stream.SEALED_CHUNK_BYTES)

    with cipher:
        return count_at_end(cipher, len(stream) - start, read_chunk)


def sealed_payload(payload: bytes, *, chunks: list[bytes] | None = None) -> bytes:
    """Return a stream of any payload, sealed by someone who has the keys."""
    pieces = chunks or [
        payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)
    ]
    with secrets_of(BOTH) as secrets, SecretBytes.generate() as backup_key:
        header = BackupHeader.create(backup_key, secrets)
        cipher = ChunkCipher(backup_key, header.raw, bytes(32))
    with cipher:
        stream = header.raw + bytes(32) + cipher.commitment
        for number, piece in enumerate(pieces):
            stream += cipher.seal(number, piece, last=number == len(pieces) - 1)
    return stream


def record(name: bytes, value: bytes) -> bytes:
    """Return the bytes of a record in the payload."""
    return b"\x01" + struct.pack(">HI", len(name), len(value)) + name + value


def end(count: int) -> bytes:
    """Return the end of a payload."""
    return b"\0" + struct.pack(">Q", count)


@contextmanager
def small_chunks(size: int) -> Iterator[None]:
    """Cut payloads into chunks of ``size`` bytes, so that a short one has many."""
    with patch.multiple(backup_stream, CHUNK_BYTES=size, SEALED_CHUNK_BYTES=size + 16):
        yield


# Round trips


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_payload_that_ends_at_a_chunks_boundary_comes_back(chunks: int, beyond: int) -> None:
    size = chunks * CHUNK_BYTES + beyond
    records = {b"name": bytes(size - len(record(b"name", b"")) - len(end(1)))}
    stream = sealed_stream(records)
    number = chunks + (beyond > 0)  # no empty chunk follows a full one
    assert len(stream) == FRONT + size + 16 * number
    assert opened(stream) == records
    assert counted(stream) == 1


@pytest.mark.parametrize("length", range(-20, 3))
def test_a_record_and_the_count_may_reach_over_two_chunks(length: int) -> None:
    first = {b"first": bytes(CHUNK_BYTES - len(record(b"first", b"")) + length)}
    for records in (first, first | {b"second": b"value"}, first | {b"": b""}):
        stream = sealed_stream(records)
        assert opened(stream) == records
        assert counted(stream) == len(records)


@given(
    records=st.dictionaries(st.binary(max_size=20), st.binary(max_size=100), max_size=8),
    size=st.integers(1, 40),
)
def test_any_records_come_back_whatever_the_chunks(records: Records, size: int) -> None:
    with small_chunks(size):
        stream = sealed_stream(records)
        assert opened(stream) == records
        assert opened(stream, {"master": MASTER_KEY}) == records
        assert opened(stream, {"key-file": KEY_FILE_KEY}) == records
        assert counted(stream) == len(records)


def test_no_records_are_a_backup_too() -> None:
    stream = sealed_stream({})
    assert len(stream) == FRONT + 9 + 16
    assert opened(stream) == {}
    assert counted(stream) == 0


def test_the_same_records_give_another_stream_each_time() -> None:
    first, second = (sealed_stream({b"name": bytes(100)}) for _ in range(2))
    assert first[5:21] != second[5:21]  # the identifier
    assert first[FRONT - 64 : FRONT] != second[FRONT - 64 : FRONT]  # salt and commitment
    assert first[FRONT:] != second[FRONT:]


# The front


def test_every_byte_of_the_front_is_held_and_named_rightly() -> None:
    """Opened with the key file: which error a changed byte of the front gives, and where."""
    stream = sealed_stream({b"name": b"value"})
    box = 22 + 1 + len("key-file") + 2
    hyphen = 22 + 1 + len("key")
    other_box = box + BOX_BYTES + 1 + len("master") + 2
    expected: dict[type[SecurityError], set[int]] = {
        # The id is in the box's context; a box's salt and commitment are told apart from a wrong
        # key by nothing; and with its type gone, no slot is for the key.
        WrongKeyError: {*range(5, 21), *range(23, 31), *range(box + 5, box + 69)} - {hyphen},
        UnsupportedFormatError: {4, box + 4},
        IntegrityError: {
            *range(4),
            21,  # the number of slots
            22,  # the length of the first type
            hyphen,  # a comma is in no type
            *range(31, box),  # the length of its box
            *range(box, box + 4),
            *range(box + 69, box + BOX_BYTES),
            *range(box + BOX_BYTES, other_box + BOX_BYTES),  # the other slot
            *range(FRONT - 64, FRONT),
        },
    }
    seen: dict[type[SecurityError], set[int]] = {kind: set() for kind in expected}
    for position in range(FRONT):
        changed = bytearray(stream)
        changed[position] ^= 0x01
        with pytest.raises(SecurityError) as refusal:
            opened(bytes(changed), {"key-file": KEY_FILE_KEY})
        seen[type(refusal.value)].add(position)
    assert seen == expected
    assert opened(stream, {"key-file": KEY_FILE_KEY}) == {b"name": b"value"}  # the control


def test_every_bit_of_a_small_backup_is_held() -> None:
    stream = sealed_stream({b"name": b"value"})
    for bit in range(8 * len(stream)):
        changed = bytearray(stream)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((IntegrityError, WrongKeyError, UnsupportedFormatError)):
            opened(bytes(changed))


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_named(version: int) -> None:
    stream = bytearray(sealed_stream({}))
    stream[4] = version
    with pytest.raises(UnsupportedFormatError, match=f"format {version};"):
        opened(bytes(stream))


@pytest.mark.parametrize("front", [b"", b"S", b"SSBk\x01", b"SQLite format 3\0", b"\0" * 500])
def test_what_is_no_backup_is_said_to_be_none(front: bytes) -> None:
    with pytest.raises(IntegrityError, match="is no backup"):
        opened(front)


def test_a_key_that_opens_no_slot_is_a_wrong_key() -> None:
    stream = sealed_stream({b"name": b"value"})
    for keys in (
        {"key-file": MASTER_KEY},
        {"master": KEY_FILE_KEY},
        {"container-secret": KEY_FILE_KEY},
        {"key-file": bytes(32), "master": bytes(32)},
    ):
        with pytest.raises(WrongKeyError, match=r"of: file:, the envelope of its service\. What"):
            opened(stream, keys)
    with pytest.raises(WrongKeyError):
        opened(stream, {})


def test_one_right_key_among_wrong_ones_is_enough() -> None:
    stream = sealed_stream({b"name": b"value"})
    for keys in (
        {"key-file": bytes(32), "master": MASTER_KEY},
        {"container-secret": bytes(32), "master": bytes(32), "key-file": KEY_FILE_KEY},
    ):
        assert opened(stream, keys) == {b"name": b"value"}


def _slots(stream: bytes) -> list[bytes]:
    source = io.BytesIO(stream)
    slots = BackupHeader.read(source.read).slots
    return [
        bytes([len(label)]) + label.encode() + struct.pack(">H", len(box)) + box
        for label, box in slots.items()
    ]


def _with_slots(stream: bytes, slots: list[bytes]) -> bytes:
    front = FRONT - 64
    return stream[:21] + bytes([len(slots)]) + b"".join(slots) + stream[front:]


@pytest.mark.parametrize(
    "edit",
    [
        lambda own, _: own[:1],
        lambda own, _: own[::-1],
        lambda own, other: [own[0], other[1]],
        lambda own, _: [*own, b"\x05extra\x00\x01x"],
    ],
    ids=["removed", "reordered", "replaced", "added"],
)
def test_no_slot_can_be_edited(edit: Callable[[list[bytes], list[bytes]], list[bytes]]) -> None:
    stream, other = sealed_stream({b"name": b"value"}), sealed_stream({})
    own = _slots(stream)
    assert _with_slots(stream, own) == stream
    edited = _with_slots(stream, edit(own, _slots(other)))
    with secrets_of({"key-file": KEY_FILE_KEY}) as secrets:
        # The control: the slot itself still opens. It is the commitment that refuses.
        BackupHeader.read(io.BytesIO(edited).read).open(secrets).close()
    with (
        patch.object(ChunkCipher, "open", side_effect=AssertionError("a chunk was opened")),
        pytest.raises(IntegrityError),
    ):
        opened(edited, {"key-file": KEY_FILE_KEY})


@pytest.mark.parametrize(
    "slots",
    [
        [],
        [b"\x01a\x00\x01x"] * 2,
        [b"\x01%c\x00\x01x" % (97 + number) for number in range(17)],
        [b"\x00\x00\x01x"],
        [b"\x02A!\x00\x01x"],
        [b"\x02\xc3\xa9\x00\x01x"],
    ],
    ids=["none", "a type twice", "too many", "an empty type", "no letters", "not ASCII"],
)
def test_a_header_that_breaks_a_rule_is_refused(slots: list[bytes]) -> None:
    front = b"SSBK\x01" + bytes(16)
    good = [b"\x01%c\x00\x01x" % (97 + number) for number in range(16)]
    read = io.BytesIO(front + bytes([16]) + b"".join(good)).read
    assert len(BackupHeader.read(read).slots) == 16  # the control
    with pytest.raises(IntegrityError):
        BackupHeader.read(io.BytesIO(front + bytes([len(slots)]) + b"".join(slots)).read)


def test_a_slot_of_another_version_is_named() -> None:
    stream = bytearray(sealed_stream({}))
    stream[22 + 1 + len("key-file") + 2 + 4] = 9
    with pytest.raises(UnsupportedFormatError, match="format 9"):
        opened(bytes(stream), {"key-file": KEY_FILE_KEY})


def test_a_slot_with_anything_but_a_key_is_refused() -> None:
    with secrets_of(BOTH) as secrets, SecretBytes(31) as short:
        header = BackupHeader.create(short, secrets)
        with pytest.raises(IntegrityError):
            header.open(secrets)


@pytest.mark.parametrize("slot_type", ["", "Key", "key_file", "a" * 256, "\N{SNOWMAN}"])
def test_a_type_that_cannot_be_written_is_refused(slot_type: str) -> None:
    with pytest.raises(ValueError, match="no type of slot"):
        sealed_stream({}, {slot_type: KEY_FILE_KEY})


def test_the_number_of_slots_is_limited() -> None:
    many = {f"slot-{number}": bytes([number]) * 32 for number in range(17)}
    for keys in ({}, many):
        with pytest.raises(ValueError, match="1 to 16 slots"):
            sealed_stream({}, keys)
    del many["slot-0"]
    stream = sealed_stream({b"name": b"value"}, many)
    for slot_type, key in many.items():
        assert opened(stream, {slot_type: key}) == {b"name": b"value"}


def test_a_slot_of_an_envelope_is_none_of_a_backup() -> None:
    """Both are boxes of one kind; the purpose tells them apart."""
    stream = sealed_stream({})
    with secrets_of({"key-file": KEY_FILE_KEY}) as secrets:
        header = BackupHeader.read(io.BytesIO(stream).read)
        with pytest.raises(WrongKeyError):
            sealed_box.open_box(
                secrets["key-file"],
                header.slots["key-file"],
                magic=b"SSSL",
                purpose="slot",
                context=header.backup_id + b"key-file",
            )


# The chunks


def _four_chunks() -> tuple[Records, bytes, list[bytes]]:
    records = {b"%d" % number: bytes([number]) * 1000 for number in range(250)}
    stream = sealed_stream(records)
    chunks = [
        stream[start : start + SEALED_CHUNK_BYTES]
        for start in range(FRONT, len(stream), SEALED_CHUNK_BYTES)
    ]
    assert len(chunks) == 4
    return records, stream[:FRONT], chunks


SURGERY: dict[str, Callable[[list[bytes], list[bytes]], list[bytes]]] = {
    "first dropped": lambda own, _: own[1:],
    "second dropped": lambda own, _: [own[0], *own[2:]],
    "last dropped": lambda own, _: own[:-1],
    "all dropped": lambda *_: [],
    "two swapped": lambda own, _: [own[0], own[2], own[1], own[3]],
    "last one moved to the front": lambda own, _: [own[3], *own[:3]],
    "one repeated": lambda own, _: [own[0], own[1], own[1], own[2], own[3]],
    "last one repeated": lambda own, _: [*own, own[3]],
    "all repeated": lambda own, _: own * 2,
    "one of another backup": lambda own, other: [own[0], other[1], *own[2:]],
    "last one of another backup": lambda own, other: [*own[:3], other[3]],
    "all of another backup": lambda _, other: other,
    "one shortened": lambda own, _: [own[0], own[1][:-1], *own[2:]],
    "one lengthened": lambda own, _: [own[0], own[1] + b"\0", *own[2:]],
    "an empty one appended": lambda own, _: [*own, b"\0" * 16],
    "a byte appended": lambda own, _: [*own, b"\0"],
}


@pytest.mark.parametrize("surgery", SURGERY.values(), ids=SURGERY)
def test_chunks_stay_in_their_place(
    surgery: Callable[[list[bytes], list[bytes]], list[bytes]],
) -> None:
    records, front, own = _four_chunks()
    other = _four_chunks()[2]
    assert opened(front + b"".join(own)) == records  # the control
    with pytest.raises(IntegrityError):
        opened(front + b"".join(surgery(own, other)))


def test_the_end_alone_tells_a_stream_that_was_cut_or_extended() -> None:
    records, front, own = _four_chunks()
    assert counted(front + b"".join(own)) == len(records)  # the control
    for chunks in (own[:-1], own[1:], [], [*own, own[3]], [*own[:3], own[3][:-1]], [*own, b"\0"]):
        with pytest.raises(IntegrityError):
            counted(front + b"".join(chunks))


@pytest.mark.parametrize("last", [False, True])
def test_the_last_flag_cannot_move(last: bool) -> None:
    with secrets_of(BOTH) as secrets, SecretBytes.generate() as backup_key:
        header = BackupHeader.create(backup_key, secrets)
        cipher = ChunkCipher(backup_key, header.raw, bytes(32))
    payload = record(b"name", bytes(2 * CHUNK_BYTES)) + end(1)
    pieces = [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]
    with cipher:
        stream = header.raw + bytes(32) + cipher.commitment
        for number, piece in enumerate(pieces):
            # Either the second chunk says that it is the last one, or none does.
            stream += cipher.seal(number, piece, last=last and number == 1)
    with pytest.raises(IntegrityError):
        opened(stream)
    assert opened(sealed_payload(payload)) == {b"name": bytes(2 * CHUNK_BYTES)}  # the control


@pytest.mark.parametrize("size", [1, 16, 100])
def test_every_truncation_and_extension_is_refused(size: int) -> None:
    with small_chunks(size):
        stream = sealed_stream({b"name": b"value", b"another": bytes(30)})
        for length in range(len(stream)):
            with pytest.raises(IntegrityError):
                opened(stream[:length])
        for more in (b"\0", b"\0" * 16, b"\0" * 17, stream[FRONT:], stream):
            with pytest.raises(IntegrityError):
                opened(stream + more)
        assert len(opened(stream)) == 2  # the control


def test_what_was_verified_is_given_and_nothing_behind_the_damage() -> None:
    records, front, own = _four_chunks()
    own[2] = own[2][:100] + bytes([own[2][100] ^ 1]) + own[2][101:]
    source = io.BytesIO(front + b"".join(own))
    with secrets_of(BOTH) as secrets:
        cipher = ChunkCipher.read(BackupHeader.read(source.read), secrets, source.read)
    seen = {}
    with cipher, pytest.raises(IntegrityError):  # noqa: PT012
        for name, value in open_records(cipher, source.read):
            seen[name] = value
    assert seen.items() <= records.items()
    whole = [record(name, value) for name, value in records.items()]
    size = sum(len(entry) for entry in whole[: len(seen)])
    assert size <= 2 * CHUNK_BYTES < size + len(whole[len(seen)])


# The payload, of someone who has the keys


@pytest.mark.parametrize(
    "payload",
    [
        record(b"name", b"value") + end(0),
        record(b"name", b"value") + end(2),
        record(b"name", b"value") + end(1) + b"\0",
        record(b"name", b"value") + end(1) + bytes(CHUNK_BYTES),
        record(b"name", b"value") + end(1)[:-1],
        record(b"name", b"value"),
        b"\0",
        record(b"name", b"value") + b"\x02" + end(1)[1:],
        b"\x02" + record(b"name", b"value")[1:] + end(1),
        b"\x01\x00",
        b"\x01" + struct.pack(">HI", 4, 6) + b"namevalue" + end(1),
        b"\x01" + struct.pack(">HI", 4, 2**29 + 1) + b"name" + bytes(100),
        b"\x01" + struct.pack(">HI", 4, 2**32 - 1) + b"name" + bytes(100),
        b"\x01" + struct.pack(">HI", 65_535, 0) + b"name",
    ],
)
def test_a_payload_that_is_not_well_formed_is_refused(payload: bytes) -> None:
    with pytest.raises(IntegrityError):
        opened(sealed_payload(payload))
    good = record(b"name", b"value") + end(1)
    assert opened(sealed_payload(good)) == {b"name": b"value"}  # the control


def test_a_value_over_the_limit_is_refused_though_it_is_there() -> None:
    payload = record(b"name", b"12345678") + end(1)
    with patch.object(backup_stream, "MAX_VALUE_BYTES", 8):
        assert opened(sealed_payload(payload)) == {b"name": b"12345678"}
    with patch.object(backup_stream, "MAX_VALUE_BYTES", 7), pytest.raises(IntegrityError):
        opened(sealed_payload(payload))


def test_an_empty_chunk_is_refused_at_the_end() -> None:
    """Else one payload would have two streams."""
    payload = record(b"name", bytes(CHUNK_BYTES - len(record(b"name", b"")) - len(end(1)))) + end(1)
    assert len(payload) == CHUNK_BYTES
    assert opened(sealed_payload(payload))  # the control
    for chunks in ([payload, b""], [b""]):
        for read in (opened, counted):
            with pytest.raises(IntegrityError):
                read(sealed_payload(b"", chunks=chunks))


def test_a_length_that_lies_allocates_nothing() -> None:
    def peak_of(stream: bytes) -> int:
        tracemalloc.start()
        try:
            opened(stream)
        except IntegrityError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak

    lie = sealed_payload(b"\x01" + struct.pack(">HI", 4, 2**29) + b"name" + bytes(100))
    assert peak_of(lie) < 1024 * 1024
    honest = sealed_stream({b"name": bytes(8 * 1024 * 1024)})  # the control: it is measured at all
    assert 8 * 1024 * 1024 < peak_of(honest) < 11 * 1024 * 1024


# Anything else


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_refused(garbage: bytes) -> None:
    front = sealed_stream({})[:FRONT]
    for stream in (garbage, b"SSBK\x01" + garbage, b"SSBK\x01" + bytes(16) + garbage):
        with pytest.raises((IntegrityError, WrongKeyError, UnsupportedFormatError)):
            opened(stream)
    with pytest.raises(IntegrityError):
        opened(front + garbage)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_an_arbitrary_payload_is_records_or_damage(payload: bytes, count: int) -> None:
    for contents in (payload, payload + end(count), record(b"", payload) + payload):
        if contents:
            try:
                found = opened(sealed_payload(contents))
            except IntegrityError:
                continue
            assert contents == b"".join(record(*pair) for pair in found.items()) + end(len(found))


@given(st.data())
def test_a_stream_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    with small_chunks(32):
        stream = sealed_stream({b"name": b"value", b"another": bytes(100)})
        start = data.draw(st.integers(0, len(stream)))
        stop = data.draw(st.integers(start, min(len(stream), start + 200)))
        piece = data.draw(st.binary(max_size=200))
        changed = stream[:start] + piece + stream[stop:]
        if changed == stream:
            return
        with pytest.raises((IntegrityError, WrongKeyError, UnsupportedFormatError)):
            opened(changed)
