"""The benchmark of rotations rotates, and its twin rewrites. Nothing is timed."""

from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from benchmarks.rotation import BAR, CIPHERS, SITUATIONS, _run, measure_rotation
from benchmarks.rotation_worker import read, rewrite
from conftest import MASTER
from rotation_cases import RE, A, found
from service_security.store import SecureDb


def test_every_store_is_rewritten_in_every_situation(tmp_path: Path) -> None:
    lines = measure_rotation(tmp_path, records=40, rounds=1)
    rates = [line for line in lines if line.unit == "/s"]
    assert {(line.measure, line.cipher) for line in rates} == {
        (f"rotation, {situation}", cipher) for situation in SITUATIONS for cipher in CIPHERS
    }
    assert [line.bar for line in rates] == [None, None, BAR, BAR, BAR, BAR]
    assert len(lines) == len(rates) + 8, "medians and 99 of 100, wherever somebody reads"
    assert all(figure > 0 for line in lines for figure in (*line.ours, *line.theirs))
    for cipher in CIPHERS:
        after = found(tmp_path / cipher / "records.db")
        assert (after.states, after.rows) == ({1: RE, 3: RE, 4: RE, 5: A}, {5: 40})
        with SecureDb.open(tmp_path / cipher / "records.db", MASTER) as store:
            assert store.cipher == cipher


def test_the_twin_writes_every_record(tmp_path: Path) -> None:
    """A record that is written as it was would not reach the disk."""
    _run("plain", tmp_path / "plain", 20, "fill")
    before = _records(tmp_path / "plain")
    _run("plain", tmp_path / "plain", 20, "rewrite-and-read")
    after = _records(tmp_path / "plain")
    assert before.keys() == after.keys()
    assert len(before) == 20
    assert all(before[name] != after[name] for name in before)


def _records(folder: Path) -> dict[object, object]:
    with closing(apsw.Connection(str(folder / "records.db"))) as connection:
        rows: Any = connection.execute("SELECT name, value FROM record").fetchall()
        return dict(rows)


def test_a_store_that_loses_records_is_noticed(store: SecureDb) -> None:
    with pytest.raises(RuntimeError, match="lost a record"):
        read(store, 5, lambda: True)


def test_to_rewrite_an_encrypted_store_is_to_rotate_its_keys(
    store: SecureDb, database: Path
) -> None:
    store.insert(b"name", b"value")
    assert rewrite(store, store.cipher) > 0
    assert found(database).states == {1: RE, 3: A}
