"""The formats on disk, held byte by byte, and opened for as long as the library lives."""

import base64
import shutil
import sqlite3
from pathlib import Path

import pytest

from conftest import MASTER
from independent_reader import (
    passphrase_key,
    read_database,
    read_envelope,
    read_slots,
    recovery_key,
)
from service_security.keys import open_keys
from service_security.keys import recovery as recovery_module
from service_security.keys.recovery import RecoveryKey, key_of
from service_security.keys.service_keys import open_with
from service_security.keys.service_keys import read_envelope as parse_envelope
from service_security.store import SecureDb
from service_security.store.schema import TABLES

SAMPLES = Path(__file__).parent / "samples"
WORDS = Path(recovery_module.__file__).with_name("bip39_english.txt")
PASSPHRASE = "a long pass phrase for samples, with Zu\u0308rich"  # not in NFC
PHRASE = (
    "much youth advance kitchen lens exile salt cram goose enter alert raise "
    "milk muscle profit cousin system faint mouse price reveal cause series long"
)
"""A published vector of BIP 39, which opens a sample. Never use a phrase that is published."""

RECORDS = {
    b"first": b"one",
    b"second": b"",
    "Zürich/9 \N{ROCKET}".encode(): bytes(range(256)) * 20,
    b"": b"a record without a name",
}


def test_a_second_reader_reads_what_the_store_writes(database: Path, cipher: str) -> None:
    with SecureDb.open(database, MASTER, cipher=cipher) as store:
        for name, value in RECORDS.items():
            store.insert(name, b"an older value")
            store.insert(name, value)
        store.insert_many((b"batch %d" % number, b"value") for number in range(100))
        store.insert(b"n" * 65_535, b"a record with the longest name")
    others = {b"batch %d" % number: b"value" for number in range(100)}
    others[b"n" * 65_535] = b"a record with the longest name"
    assert read_database(database, MASTER) == RECORDS | others


def test_the_tables_are_the_frozen_ones(database: Path) -> None:
    SecureDb.open(database, MASTER).close()
    connection = sqlite3.connect(database)
    found = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
    columns = {
        table: [
            (name, kind) for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})")
        ]
        for table in found
    }
    connection.close()
    assert found == TABLES
    assert columns == {
        "header": [
            ("id", "INTEGER"),
            ("format", "INTEGER"),
            ("db_id", "BLOB"),
            ("master_id", "BLOB"),
            ("keyset_generation", "INTEGER"),
            ("keyset", "BLOB"),
            ("mac", "BLOB"),
        ],
        "lease": [("id", "INTEGER"), ("next", "INTEGER")],
        "record": [("id", "INTEGER"), ("token", "BLOB"), ("key_id", "INTEGER"), ("sealed", "BLOB")],
    }


@pytest.mark.parametrize("release", sorted(path.name for path in SAMPLES.iterdir()))
def test_what_a_release_wrote_is_read(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``make_samples.py`` made the files, once for each release that changed a format."""
    folder = tmp_path / release
    shutil.copytree(SAMPLES / release, folder)
    key_file = folder / "for_testing_only.key"
    key_file.chmod(0o600)
    key = key_file.read_bytes()
    monkeypatch.setenv("SAMPLE_KEY", base64.b64encode(key).decode())
    (phrase := folder / "phrase").write_text(PASSPHRASE + "\n")
    phrase.chmod(0o600)
    stretched = passphrase_key(
        PASSPHRASE, read_slots(folder / "envelope-passphrase.json")["passphrase"]
    )
    for name, source, wrapping in (
        ("key-file", f"file:{key_file}", key),
        ("container-secret", f"secret:{key_file}", key),
        ("environment", "env:SAMPLE_KEY", key),
        ("passphrase", f"passphrase:{phrase}", stretched),
        ("recovery", f"file:{key_file}", key),
    ):
        envelope = folder / f"envelope-{name}.json"
        with open_keys(envelope, source) as keys:
            assert bytes(keys.master.view) == MASTER
            assert bytes(keys.wrapping.key.view) == wrapping
            assert (keys.recovery is not None) == (name == "recovery")
        assert read_envelope(envelope, wrapping) == MASTER
    with key_of(PHRASE) as typed, open_with(parse_envelope(envelope), RecoveryKey(typed)) as keys:
        assert bytes(keys.master.view) == MASTER
        assert keys.recovery == typed
    assert read_envelope(envelope, recovery_key(PHRASE, WORDS), "recovery") == MASTER
    for cipher in ("xchacha20poly1305", "aes256gcm"):
        database = folder / f"{cipher}.db"
        assert read_database(database, MASTER) == RECORDS
        with SecureDb.open(database, MASTER) as store:
            assert store.cipher == cipher
            assert dict(store.items()) == RECORDS
            store.insert(b"first", b"changed")
        assert read_database(database, MASTER) == RECORDS | {b"first": b"changed"}
