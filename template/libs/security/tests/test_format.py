"""The formats on disk, held byte by byte, and opened for as long as the library lives."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from conftest import MASTER
from independent_reader import read_database, read_envelope
from service_security.keys import open_master_key
from service_security.store import SecureDb
from service_security.store.schema import TABLES

SAMPLES = Path(__file__).parent / "samples"
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
def test_what_a_release_wrote_is_read(release: str, tmp_path: Path) -> None:
    """``make_samples.py`` made the files, once for each release that changed a format."""
    folder = tmp_path / release
    shutil.copytree(SAMPLES / release, folder)
    key_file = folder / "for_testing_only.key"
    key_file.chmod(0o600)
    for slot_type in ("key-file", "container-secret"):
        envelope = folder / f"envelope-{slot_type}.json"
        with open_master_key(envelope, key_file) as master, master.view as view:
            assert bytes(view) == MASTER
        assert read_envelope(envelope, key_file.read_bytes()) == MASTER
    for cipher in ("xchacha20poly1305", "aes256gcm"):
        database = folder / f"{cipher}.db"
        assert read_database(database, MASTER) == RECORDS
        with SecureDb.open(database, MASTER) as store:
            assert store.cipher == cipher
            assert dict(store.items()) == RECORDS
            store.insert(b"first", b"changed")
        assert read_database(database, MASTER) == RECORDS | {b"first": b"changed"}
