"""Verification names every damaged record, and counts every whole one."""

import random
from pathlib import Path

import apsw
import pytest

from conftest import MASTER, Opener
from service_security.errors import IntegrityError, StoreUnavailableError, UnsupportedFormatError
from service_security.store import SecureDb

PAGE = 4096


def _edit(database: Path, sql: str, *values: object) -> None:
    connection = apsw.Connection(str(database))
    connection.execute(sql, values)
    connection.close()


@pytest.fixture
def nine(open_store: Opener, database: Path) -> Path:
    """A closed database of nine records."""
    with open_store() as store:
        store.insert_many((b"%d" % number, b"value %d" % number) for number in range(9))
    return database


def test_a_whole_store_has_nothing_to_tell(nine: Path) -> None:
    with SecureDb.open(nine, MASTER) as store:
        found = store.verify()
    assert found.is_whole
    assert (found.records, found.damaged, found.problems) == (9, (), ())


def test_an_empty_store_is_whole(store: SecureDb) -> None:
    assert store.verify().is_whole


@pytest.mark.parametrize(
    "damage",
    [
        "sealed = zeroblob(60)",
        "sealed = x''",
        "sealed = CAST(substr(sealed, 1, length(sealed) - 1) AS BLOB)",
        "sealed = CAST(sealed || x'00' AS BLOB)",
        "sealed = (SELECT sealed FROM record WHERE id = 3)",
        "token = zeroblob(16)",
        "key_id = 7",
    ],
)
def test_a_damaged_record_is_named_and_the_others_are_whole(nine: Path, damage: str) -> None:
    _edit(nine, f"UPDATE record SET {damage} WHERE id = 5")  # noqa: S608 - constant
    with SecureDb.open(nine, MASTER) as store:
        found = store.verify()
        token = store._keys.record.token(b"4").hex()
        others = [b"%d" % number for number in range(9) if number != 4]
        assert all(store.get(name) == b"value " + name for name in others)
    assert found.records == 8
    assert [record.position for record in found.damaged] == [5]
    assert found.damaged[0].token == (token if "token" not in damage else "00" * 16)
    assert found.problems == ()
    assert not found.is_whole


def test_a_record_twice_in_the_table_is_told(nine: Path) -> None:
    _edit(nine, "INSERT INTO record SELECT 99, x'00', key_id, sealed FROM record WHERE id = 5")
    with SecureDb.open(nine, MASTER) as store:
        assert [record.position for record in store.verify().damaged] == [99]


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("DELETE FROM lease", "lease is lost"),
        ("UPDATE lease SET next = -1", "no nonce counters left"),
        ("UPDATE lease SET next = 9223372036854775807", "no nonce counters left"),
    ],
)
def test_a_lease_that_is_of_no_use_is_told(nine: Path, sql: str, problem: str) -> None:
    _edit(nine, sql)
    with SecureDb.open(nine, MASTER, read_only=True) as store:
        found = store.verify()
    assert found.records == 9
    assert problem in found.problems[0]


def test_a_damaged_header_is_refused(nine: Path) -> None:
    with SecureDb.open(nine, MASTER) as store:
        _edit(nine, "UPDATE header SET mac = zeroblob(32)")
        with pytest.raises(IntegrityError, match="header"):
            store.verify()


def test_progress_reaches_the_number_of_records(store: SecureDb) -> None:
    told: list[tuple[int, int]] = []
    store.insert_many((b"%d" % number, b"") for number in range(1000))
    store.verify(lambda done, total: told.append((done, total)))
    assert told == [(256, 1000), (512, 1000), (768, 1000), (1000, 1000)]


def test_a_store_that_is_written_to_meanwhile_is_verified_as_it_was(store: SecureDb) -> None:
    store.insert_many((b"%d" % number, b"") for number in range(600))

    def remove_one(done: int, _: int) -> None:
        store.remove(b"%d" % (599 - done // 256))

    assert store.verify(remove_one).records == 600
    assert store.count() < 600


def test_an_error_of_who_is_told_is_not_taken_for_one_of_the_file(store: SecureDb) -> None:
    def fail(_: int, __: int) -> None:
        raise BrokenPipeError("of the terminal")

    store.insert(b"name", b"value")
    with pytest.raises(BrokenPipeError, match="of the terminal"):
        store.verify(fail)
    assert store.verify().is_whole


def test_a_closed_store_is_not_verified(store: SecureDb) -> None:
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.verify()


@pytest.mark.parametrize("damage", ["zeros", "noise", "another page"])
def test_whatever_page_is_damaged_every_record_is_whole_or_named(
    open_store: Opener, database: Path, damage: str
) -> None:
    """One page after the other: the table's, its index's, the ones of large values."""
    chance = random.Random(1)  # noqa: S311 - a test that is the same each time
    with open_store() as store:
        store.insert_many(
            (chance.randbytes(12), chance.randbytes(chance.choice([20, 200, 1000, 9000])))
            for _ in range(120)
        )
        records = dict(store.items())
    good = database.read_bytes()
    pages = [good[start : start + PAGE] for start in range(0, len(good), PAGE)]
    assert len(pages) > 40
    named_any = 0
    for number in range(1, len(pages)):
        bad = {
            "zeros": bytes(PAGE),
            "noise": chance.randbytes(PAGE),
            "another page": pages[number % (len(pages) - 1) + 1],
        }[damage]
        for path in database.parent.iterdir():
            path.unlink()
        database.write_bytes(b"".join([*pages[:number], bad, *pages[number + 1 :]]))
        try:
            store = SecureDb.open(database, MASTER, read_only=True)
        except (IntegrityError, UnsupportedFormatError):
            continue  # the page of the header or of the tables' names
        with store:
            try:
                found = store.verify()
            except IntegrityError:
                continue
            told: list[int] = []
            salvaged = dict(store.items(on_damage=told.append))
        assert salvaged.items() <= records.items()
        assert len(salvaged) == found.records
        assert sorted(told) == sorted(record.position for record in found.damaged)
        assert found.records + len(found.damaged) == len(records)
        assert not found.is_whole or bad == pages[number]
        named_any += bool(found.damaged)
    assert named_any > len(pages) // 2


def test_reading_comes_to_an_end_where_the_order_of_records_is_broken(
    open_store: Opener, database: Path
) -> None:
    """Two pages of the table exchanged: positions go back, and pages of records would for ever."""
    with open_store() as store:
        store.insert_many((b"%d" % number, bytes(900)) for number in range(400))
        records = dict(store.items())
    good = database.read_bytes()
    pages = [good[start : start + PAGE] for start in range(0, len(good), PAGE)]
    refused = 0
    for low in range(30, len(pages) - 30, 10):
        mixed = [*pages]
        mixed[low], mixed[low + 25] = pages[low + 25], pages[low]
        database.write_bytes(b"".join(mixed))
        with SecureDb.open(database, MASTER, read_only=True) as store:
            for read in (lambda: list(store.items()), lambda: store.page(0, 1000)):
                try:
                    read()
                except IntegrityError:
                    refused += 1
            salvaged = dict(store.items(on_damage=lambda _: None))
            assert salvaged.items() <= records.items()
            assert len(salvaged) == store.verify().records
    assert refused > 5
