"""What is left of a destroyed key: nothing in file and log, and what is said of the rest."""

import random
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from conftest import MASTER
from rotation_cases import DAY, NOW, RE, A, Clock, D, Made, SealedRow, found, header_keys, make
from service_security.errors import IntegrityError
from service_security.store import SecureDb
from service_security.store.log import log_holds_a_keyset
from service_security.store.rotation_report import RotationStep, Tended

PIECE = 24
"""Bytes of old contents that are looked for; random ones of that length are nowhere by chance."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Path, clock: Clock) -> Iterator[SecureDb]:
    """A store of 40 records of different sizes."""
    with SecureDb.open(database, MASTER, clock=clock) as store:
        store.insert_many((b"%d" % number, bytes(number * 300)) for number in range(40))
        store.flush()
        yield store


class Old:
    """What the database held before: the sealed records and the keyset, in pieces."""

    def __init__(self, database: Path) -> None:
        self._database = database
        with closing(apsw.Connection(str(database))) as connection:
            rows: Any = connection.execute("SELECT sealed FROM record").fetchall()
            box: Any = connection.execute("SELECT keyset FROM header").get
        self.records = [piece for (sealed,) in rows for piece in _pieces(sealed)]
        self.keyset = _pieces(box[5 + 8 :])  # behind what every box has in clear

    def remains(self) -> dict[str, set[str]]:
        """Return of what anything remains, by file."""
        remains = {}
        for suffix in ("", "-wal"):
            file = self._database.with_name(self._database.name + suffix)
            contents = file.read_bytes() if file.exists() else b""
            remains[suffix or "file"] = {
                what
                for what, pieces in (("records", self.records), ("keyset", self.keyset))
                if any(piece in contents for piece in pieces)
            }
        return remains


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + PIECE] for start in range(0, len(data) - PIECE + 1, PIECE)]


NOTHING: dict[str, set[str]] = {"file": set(), "-wal": set()}


def test_nothing_of_a_destroyed_key_is_left_in_the_file_and_its_log(
    store: SecureDb, database: Path, clock: Clock
) -> None:
    old = Old(database)
    store.insert(b"7", b"in the log")
    in_log = Old(database)
    assert old.remains()["file"] == {"records", "keyset"}
    store.rotation().run()
    clock.now += DAY - 1
    assert store.rotation().tend() == Tended()
    assert in_log.remains()["-wal"], "the control: before, the log has it"
    clock.now += 1
    steps: list[RotationStep] = []
    tended = store.rotation().tend(on_step=steps.append)
    assert (tended.destroyed, tended.log_emptied) == ((1,), True)
    assert steps == [RotationStep("destroyed", 1), RotationStep("log emptied", 1)]
    assert old.remains() == in_log.remains() == NOTHING
    assert store.count() == 40
    assert store.verify().is_whole


def test_without_secure_delete_old_contents_would_be_left_in_the_file(
    store: SecureDb, database: Path, clock: Clock
) -> None:
    """The control: it is this setting of SQLite's that overwrites what is freed."""
    old = Old(database)
    store._file.connection.pragma("secure_delete", False)
    store.rotation().run()
    clock.now += DAY
    assert store.rotation().tend().log_emptied
    assert old.remains() == {"file": {"records"}, "-wal": set()}


def test_a_key_that_was_only_made_and_given_up_is_gone_too(store: SecureDb, database: Path) -> None:
    def stop(step: RotationStep) -> None:
        assert step.step != "generated"

    with pytest.raises(AssertionError):
        store.rotation().run(on_step=stop)
    old = Old(database)
    steps: list[RotationStep] = []
    store.rotation().roll_back(on_step=steps.append)
    assert steps == [RotationStep("destroyed", 3)]
    assert "keyset" in old.remains()["-wal"]
    assert store.rotation().tend().log_emptied
    assert "keyset" not in old.remains()["file"] | old.remains()["-wal"]


def test_who_reads_the_log_keeps_it_and_that_is_said_until_it_is_tried_again(
    store: SecureDb, database: Path, clock: Clock
) -> None:
    old = Old(database)
    store.rotation().run()
    clock.now += DAY
    with store.snapshot():
        tended = store.rotation().tend()
        assert (tended.destroyed, tended.log_emptied) == ((1,), False)
        assert "somebody reads it" in tended.sentences[0]
        assert old.remains()["-wal"] | old.remains()["file"]
        status = store.rotation().status()
        assert status.log_may_hold_old
        assert any(f"has {status.log_size} bytes and may still" in s for s in status.assurance)
        assert store.rotation().tend().log_emptied is False
    with SecureDb.open(database, MASTER, clock=clock) as other_process:
        assert other_process.rotation().status().log_may_hold_old
        assert other_process.rotation().tend() == Tended(log_emptied=True)
    assert old.remains() == NOTHING
    assert not store.rotation().status().log_may_hold_old
    assert store.rotation().tend() == Tended()


def test_a_log_that_was_begun_anew_over_old_contents_is_still_emptied(
    store: SecureDb, database: Path, clock: Clock
) -> None:
    """SQLite goes back to the start of the log without cutting it when all of it is in the file."""
    log = database.with_name("records.db-wal")
    store.rotation().run()
    clock.now += DAY
    with store.snapshot():
        store.rotation().tend()
    store._file.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    size = log.stat().st_size
    store.insert(b"new", b"")
    assert log.stat().st_size == size > 8192, "it was not cut"
    assert store.rotation().status().log_may_hold_old
    assert store.rotation().tend().log_emptied
    assert log.stat().st_size == 0


def test_a_log_with_newer_contents_only_is_left_alone(
    store: SecureDb, database: Path, clock: Clock
) -> None:
    store.rotation().run()
    clock.now += DAY
    assert store.rotation().tend().log_emptied
    store.insert_many((b"%d" % number, bytes(900)) for number in range(60))
    size = database.with_name("records.db-wal").stat().st_size
    status = store.rotation().status()
    assert (status.log_size, status.log_may_hold_old) == (size, False)
    assert any(f"has {size} bytes, none of them older" in line for line in status.assurance)
    assert store.rotation().tend() == Tended()
    assert database.with_name("records.db-wal").stat().st_size == size > 0


@pytest.mark.parametrize(
    "contents",
    [b"x", bytes(40), b"\x37\x7f\x06\x82" + bytes(40)],
    ids=["too short", "another file", "a frame that was cut"],
)
def test_a_log_that_cannot_be_read_is_not_taken_for_a_clean_one(
    store: SecureDb, database: Path, contents: bytes
) -> None:
    log = database.with_name("records.db-wal")
    store.flush()
    assert not log_holds_a_keyset(store._file)
    log.write_bytes(contents)
    assert log_holds_a_keyset(store._file)
    log.write_bytes(b"")


@pytest.mark.parametrize("magic", [0x377F0682, 0x377F0683])
@pytest.mark.parametrize(
    ("salts", "holds"), [(b"of this", False), (b"of last", True)], ids=["the log's", "another's"]
)
def test_frames_behind_the_end_of_a_log_are_from_before(
    store: SecureDb, database: Path, salts: bytes, holds: bool, magic: int
) -> None:
    """Whatever page they are of: the header's may have been overwritten since."""
    store.flush()
    log = struct.pack(">4I8s8x", magic, 3_007_000, 4096, 7, b"of this\0")
    log += struct.pack(">2I8s8x", 99, 0, b"of this\0") + bytes(4096)
    log += struct.pack(">2I8s8x", 98, 0, salts + b"\0") + bytes(4096)
    file = database.with_name("records.db-wal")
    file.write_bytes(log)
    assert log_holds_a_keyset(store._file) is holds
    file.write_bytes(b"")


def test_an_old_copy_opens_with_the_master_key_of_then(
    store: SecureDb, database: Path, clock: Clock, tmp_path: Path
) -> None:
    """That this is so is why the status says it."""
    store.insert(b"name", b"value")
    store.flush()
    shutil.copy(database, tmp_path / "copy.db")
    store.rotation().run()
    clock.now += DAY
    store.rotation().tend()
    with SecureDb.open(tmp_path / "copy.db", MASTER) as copy:
        assert copy.get(b"name") == b"value"
    assert any(
        "A copy of the database from before" in line and "A new master key does not change" in line
        for line in store.rotation().status().assurance
    )


def test_a_copy_of_an_old_record_may_be_left_where_no_record_is_any_more(
    database: Path, clock: Clock
) -> None:
    """SQLite moves records between pages, and leaves what it moved. So the status says it."""
    chance = random.Random(0)  # noqa: S311 - a test that is the same each time
    sealed: dict[bytes, int] = {}

    def note() -> None:
        with closing(apsw.Connection(str(database))) as connection:
            rows: Any = connection.execute("SELECT sealed, key_id FROM record")
            sealed.update(rows)

    def values(numbers: Iterable[int], sizes: list[int]) -> list[tuple[bytes, bytes]]:
        return [(b"%d" % number, bytes(chance.choice(sizes))) for number in numbers]

    with SecureDb.open(database, MASTER, clock=clock) as store:
        store.insert_many(values(range(1500), [5, 20, 60, 150]))
        note()
        for _ in range(30):
            chosen = [chance.randrange(1500) for _ in range(60)]
            for number in chosen[:20]:
                store.remove(b"%d" % number)
            store.insert_many(values(chosen[20:], [5, 20, 60, 400]))
            note()
        store.rotation().run()
        clock.now += DAY
        tended = store.rotation().tend()
        assert (tended.destroyed, tended.log_emptied) == ((1,), True)
        contents = database.read_bytes()
        left = [old for old, key_id in sealed.items() if key_id == 1 and old in contents]
        assert 0 < len(left) < 20
        assert any("a copy may be left" in line for line in store.rotation().status().assurance)


def test_an_old_record_put_back_does_not_open_and_is_named(
    store: SecureDb, database: Path, clock: Clock
) -> None:
    with closing(apsw.Connection(str(database))) as connection:
        (row,) = connection.execute("SELECT * FROM record WHERE id = 5").fetchall()
    store.rotation().run()
    clock.now += DAY
    assert store.rotation().tend().destroyed == (1,)
    with closing(apsw.Connection(str(database))) as connection:
        connection.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", row)
    with pytest.raises(IntegrityError):
        store.get(b"4")
    assert [damaged.position for damaged in store.verify().damaged] == [5]
    assert [record.position for record in store.rotation().run().damaged] == [5]


def test_the_bytes_of_a_destroyed_key_are_zeros_on_disk(
    store: SecureDb, database: Path, clock: Clock
) -> None:
    store.rotation().run()
    clock.now += DAY
    store.rotation().tend()
    with header_keys(database) as (_, header, keys), keys.open(header) as keyset:
        for key in keyset.entries.values():
            with key.key.view as view:
                assert (bytes(view) == bytes(32)) is (key.key_id == 1)


def test_keys_of_a_process_that_does_not_tend_are_of_before(
    store: SecureDb, database: Path, clock: Clock
) -> None:
    """Its memory is its own; that it is so is said in the status."""
    with SecureDb.open(database, MASTER, clock=clock) as other:
        assert other.get(b"4") is not None
        store.rotation().run()
        clock.now += DAY
        store.rotation().tend()
        assert 1 in other._keys.record.key_ids
        assert other.get(b"4") == bytes(1200)  # under a newer key, and so it loads them
        assert 1 not in other._keys.record.key_ids
    assert any(
        "have the destroyed keys in memory" in s for s in store.rotation().status().assurance
    )


def test_a_clock_that_is_set_back_destroys_and_forgets_nothing_and_is_said(
    store: SecureDb, database: Path, clock: Clock
) -> None:
    store.rotation().run()
    clock.now -= 999 * DAY
    assert store.rotation().tend() == Tended()
    assert any("clock is behind" in line for line in store.rotation().status().assurance)
    clock.now = NOW + DAY
    assert store.rotation().tend().destroyed == (1,)
    clock.now = 0
    assert store.rotation().tend() == Tended()
    assert found(database).states == {1: D, 3: A}
    clock.now = NOW + 31 * DAY
    assert store.rotation().tend().forgotten == (1,)


def test_everything_happens_by_tending_alone(store: SecureDb, database: Path, clock: Clock) -> None:
    """Daily for a year and a half: each key has its time, and the keyset does not grow."""
    seen: list[tuple[int, str, int]] = []
    for day in range(550):
        clock.now = NOW + day * DAY

        def note(step: RotationStep, day: int = day) -> None:
            seen.append((day, step.step, step.key_id))

        store.rotation().tend(interval=timedelta(days=180), on_step=note)
        assert len(found(database).states) <= 2
    ends = [each for each in seen if each[1] in ("active", "destroyed", "forgotten")]
    assert ends == [
        (180, "active", 3),
        (181, "destroyed", 1),
        (211, "forgotten", 1),
        (360, "active", 4),
        (361, "destroyed", 3),
        (391, "forgotten", 3),
        (540, "active", 5),
        (541, "destroyed", 4),
    ]
    assert store.count() == 40


def test_the_assurance_tells_of_each_key_and_of_what_opens_elsewhere(database: Path) -> None:
    keys = {
        1: Made(D, 10, 200),
        3: Made(RE, 2, 100),
        4: Made(RE, 0.5, 50),
        5: Made(A, 1, 40),
    }
    make(database, keys, 5, {b"a": SealedRow(5)})
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        store.flush()
        lines = store.rotation().status().assurance
    assert lines[0] == (
        f"Key 1 (made {_date(200)}, in use until {_date(100)} or later) was destroyed "
        f"{_date(10)}: no record of this database needs it, and its bytes in the keyset are zeros."
    )
    assert lines[1].startswith(f"Key 3 (made {_date(100)}) has opened nothing since its grace")
    assert lines[2] == (
        f"Key 4 (made {_date(50)}) retires: it still opens what others have read before "
        f"{_date(0.5)}, and is destroyed after {_date(-0.5)}."
    )
    rest = "\n".join(lines[3:])
    assert f"A copy of the database from before {_date(10)}" in rest
    assert "The log beside the database is empty." in rest
    assert "Backups have keys of their own" in rest
    assert "Key 5" not in rest


def test_a_young_database_does_not_claim_that_anything_is_destroyed(store: SecureDb) -> None:
    lines = store.rotation().status().assurance
    assert lines[0].startswith("No key was destroyed in the last 30 days")
    assert len(lines) == 2


def _date(days_ago: float) -> str:
    return datetime.fromtimestamp(NOW - days_ago * DAY, UTC).strftime("%Y-%m-%d %H:%M UTC")
