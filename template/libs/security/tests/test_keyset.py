"""The keyset: its bytes, its checks, its wiping."""

import struct
from dataclasses import replace

import pytest

from service_security.errors import IntegrityError, WrongKeyError
from service_security.keys import sealed_box
from service_security.keys.keyset import KeyPurpose, Keyset, KeyState
from service_security.secret_bytes import SecretBytes

CONTEXT = b"database and master"


@pytest.fixture
def sealing_key() -> SecretBytes:
    """The key that seals the keyset."""
    return SecretBytes.copy_of(bytes(32))


@pytest.fixture
def keyset() -> Keyset:
    """A new keyset of the first cipher, made at second 1,000."""
    return Keyset.new(cipher=1, clock=lambda: 1000.5)


def _key(secret: SecretBytes) -> bytes:
    with secret.view as view:
        return bytes(view)


def test_a_new_keyset_has_one_record_key_and_one_name_index_key(keyset: Keyset) -> None:
    assert keyset.generation == 1
    assert keyset.primary.purpose is KeyPurpose.RECORD
    assert keyset.name_index.purpose is KeyPurpose.NAME_INDEX
    assert {entry.state for entry in keyset.entries.values()} == {KeyState.ACTIVE}
    assert keyset.primary.key != keyset.name_index.key


def test_opening_gives_back_every_field(keyset: Keyset, sealing_key: SecretBytes) -> None:
    keyset.epoch, keyset.generation = 7, 9
    opened = Keyset.open(sealing_key, keyset.seal(sealing_key, CONTEXT), CONTEXT)
    assert (opened.generation, opened.primary_id, opened.epoch) == (9, 1, 7)
    assert opened.entries == keyset.entries


def test_layout_is_the_documented_one(keyset: Keyset, sealing_key: SecretBytes) -> None:
    box = keyset.seal(sealing_key, CONTEXT)
    fields, contents = sealed_box.open_box(
        sealing_key, box, magic=b"SSKS", purpose="keyset", context=CONTEXT, fields_length=8
    )
    assert box[:5] + fields == b"SSKS\x01" + struct.pack(">Q", 1)
    expected = struct.pack(">IQH", 1, 0, 2)
    expected += struct.pack(">IBBB32sQQ", 1, 4, 1, 1, _key(keyset.primary.key), 1000, 1000)
    expected += struct.pack(">IBBB32sQQ", 2, 4, 2, 0, _key(keyset.name_index.key), 1000, 1000)
    assert _key(contents) == expected


def test_another_databases_keyset_does_not_open(keyset: Keyset, sealing_key: SecretBytes) -> None:
    with pytest.raises(WrongKeyError):
        Keyset.open(sealing_key, keyset.seal(sealing_key, CONTEXT), b"another database")


def test_a_keyset_without_its_primary_or_name_index_is_refused(keyset: Keyset) -> None:
    record, index = keyset.primary, keyset.name_index
    for primary_id, entries in [
        (9, [record, index]),
        (2, [record, index]),
        (1, [record]),
        (1, [record, index, replace(index, key_id=3)]),
        (1, [replace(record, state=KeyState.GENERATED), index]),
        (1, [replace(record, state=KeyState.RETIRING), index]),
        (1, [replace(record, state=KeyState.DESTROYED), index]),
    ]:
        with pytest.raises(IntegrityError):
            Keyset(1, primary_id, entries)


@pytest.mark.parametrize("state", [KeyState.ROTATING, KeyState.VALIDATING, KeyState.ACTIVE])
def test_records_can_be_sealed_with_a_primary_in_a_rotation(
    keyset: Keyset, state: KeyState
) -> None:
    entries = [replace(keyset.primary, state=state), keyset.name_index]
    assert Keyset(1, 1, entries).primary.state is state


def test_a_copy_of_a_key_outlives_it(keyset: Keyset) -> None:
    before = _key(keyset.primary.key)
    copy = keyset.primary.copy(state=KeyState.RETIRING)
    keyset.close()
    assert _key(copy.key) == before
    assert copy == replace(keyset.primary, state=KeyState.RETIRING, key=copy.key)


@pytest.mark.parametrize(
    "contents",
    [
        struct.pack(">IQH", 1, 0, 3),
        struct.pack(">IQH", 1, 0, 1) + bytes(56),
        struct.pack(">IQH", 1, 0, 1) + bytes(55),
        b"short",
    ],
    ids=["fewer entries than counted", "entry too long", "unknown state", "no head"],
)
def test_sealed_nonsense_is_refused(contents: bytes, sealing_key: SecretBytes) -> None:
    with SecretBytes.copy_of(contents) as secret:
        box = sealed_box.seal(
            sealing_key, secret, magic=b"SSKS", purpose="keyset", context=CONTEXT, fields=bytes(8)
        )
    with pytest.raises(IntegrityError):
        Keyset.open(sealing_key, box, CONTEXT)


def test_closing_wipes_every_key(keyset: Keyset) -> None:
    with keyset:
        pass
    for entry in keyset.entries.values():
        with pytest.raises(ValueError, match="closed"):
            entry.key.check()
