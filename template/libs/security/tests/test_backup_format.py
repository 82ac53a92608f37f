"""The format of backups, held byte by byte, and restored for as long as the library lives."""

from pathlib import Path

import pytest

from conftest import CIPHERS, MASTER
from independent_backup_reader import read_backup
from independent_reader import recovery_key
from service_security.errors import IntegrityError, UnsupportedFormatError, WrongKeyError
from service_security.store import SecureDb
from service_security.store.backup import check_backup
from test_backup import checked, silent, written
from test_backup_restore import read, restored
from test_backup_stream import BOTH, secrets_of
from test_format import PHRASE, RECORDS, SAMPLES, WORDS

SAMPLE_RECORDS = RECORDS | {b"over two chunks": bytes(range(256)) * 256}


@pytest.mark.parametrize("length", [0, 65_519 - 9, 65_520 - 9, 65_521 - 9, 200_000])
def test_a_second_reader_reads_what_the_library_writes(
    store: SecureDb, tmp_path: Path, length: int
) -> None:
    target = tmp_path / "today.backup"
    store.insert(b"long", bytes(length))
    for records in ({}, RECORDS, {b"n" * 65_535: b"the longest name"}):
        store.insert_many(records.items())
        written(store, target)
        for slot_type, key in BOTH.items():
            assert read_backup(target, slot_type.encode(), key) == dict(store.items())
        target.unlink()


@pytest.mark.parametrize("release", sorted(path.name for path in SAMPLES.iterdir()))
def test_what_a_release_wrote_is_restored(release: str, tmp_path: Path) -> None:
    """``make_samples.py`` made the files, once for each release that changed a format."""
    file_key = (SAMPLES / release / "for_testing_only.key").read_bytes()
    raw = ("container-secret", "environment", "key-file")
    samples = sorted((SAMPLES / release).glob("*.backup"))
    assert [sample.stem for sample in samples] == [*raw, "recovery"]
    for sample in samples:
        key = file_key if sample.stem in raw else recovery_key(PHRASE, WORDS)
        for slot_type, slot_key in ((sample.stem, key), ("master", MASTER)):
            keys = {slot_type: slot_key}
            assert read_backup(sample, slot_type.encode(), slot_key) == SAMPLE_RECORDS
            assert checked(sample, keys) == len(SAMPLE_RECORDS)
            for cipher in CIPHERS:
                database = tmp_path / f"{sample.stem}-{slot_type}-{cipher}.db"
                assert restored(sample, database, keys, cipher=cipher) == len(SAMPLE_RECORDS)
                assert read(database) == SAMPLE_RECORDS


def test_every_byte_of_a_small_backup_is_held_and_none_is_to_spare(
    store: SecureDb, tmp_path: Path
) -> None:
    target = tmp_path / "today.backup"
    store.insert(b"name", b"value")
    written(store, target)
    contents = target.read_bytes()
    box = 5 + 32 + 32 + 32 + 16
    front = 4 + 1 + 16 + 1 + (1 + 8 + 2 + box) + (1 + 6 + 2 + box) + 32 + 32
    assert len(contents) == front + (1 + 2 + 4 + 4 + 5) + (1 + 8) + 16
    assert checked(target) == 1  # the control
    with secrets_of(BOTH) as secrets:
        for position in range(len(contents)):
            for bit in (0x01, 0x80):
                changed = bytearray(contents)
                changed[position] ^= bit
                target.write_bytes(changed)
                # With every key at hand, only the identifier can look like another key's.
                kind: type[Exception] = WrongKeyError if 5 <= position < 21 else IntegrityError
                if position == 4:
                    kind = UnsupportedFormatError
                with pytest.raises(kind):
                    check_backup(target, secrets, progress=silent)
        for length in range(len(contents)):
            target.write_bytes(contents[:length])
            with pytest.raises(IntegrityError):
                check_backup(target, secrets, progress=silent)
