"""Damage to whole pages of the file and to the log: never a wrong value, never another exception.

A disk loses or swaps pages of 4 KiB, not bytes. Whatever page it is, ``get`` gives the right value
or refuses, and every record whose own pages are sound stays readable.

Two things the format does not give, and these tests say where they show:

* Nothing says that a record should be there. A page of the *index* that is replaced by another page
  of the same index makes ``get`` answer None for the names of the lost page. ``verify`` finds them,
  because the table still has their rows.
* A log is read up to its first damaged frame. SQLite cannot tell damage from a write that a crash
  interrupted, so it drops that frame and all behind it without an error: records that had been
  acknowledged and not yet moved into the file are then gone, or have their older value. The lease
  can go back in the same way, as in a restored copy; the uuids keep the nonces apart.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw
import pytest

from conftest import MASTER
from service_security.errors import IntegrityError, SecurityError
from service_security.store import SecureDb
from service_security.store.salvage import _over_gaps

PAGE: Final = 4096
RECORDS: Final = 200


class Sample(NamedTuple):
    """A store, and where in its file a record lies.

    Attributes:
        pages: The file, cut into its pages; the first one has number 1 in SQLite.
        records: What was written.
        positions: The position of each name.
        kinds: What each page is for, such as ``record leaf`` or ``index internal``, by number.
        needed: The numbers of the pages that it takes to read each name.
    """

    pages: list[bytes]
    records: dict[bytes, bytes]
    positions: dict[bytes, int]
    kinds: dict[int, str]
    needed: dict[bytes, set[int]]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A store of 200 records, every twentieth too large for a page."""
    chance = random.Random(1)  # noqa: S311 - a test that is the same each time
    records = {
        b"name %d" % number: chance.randbytes(9000 if number % 20 == 0 else 900)
        for number in range(RECORDS)
    }
    path = tmp_path_factory.mktemp("sample") / "records.db"
    with SecureDb.open(path, MASTER) as store:
        store.insert_many(records.items())
        tokens = {store._keys.record.token(name): name for name in records}
    data = path.read_bytes()
    pages = [data[start : start + PAGE] for start in range(0, len(data), PAGE)]
    kinds = dict.fromkeys(range(1, len(pages) + 1), "free")
    positions, needed = {}, {}
    with closing(apsw.Connection(str(path))) as connection:
        rows: Any = connection.execute("SELECT name, pageno, pagetype FROM dbstat")
        for table, number, kind in rows:
            kinds[number] = f"{'index' if 'autoindex' in table else table} {kind}"
        of_all = {number for number, kind in kinds.items() if kind in _ON_EVERY_WAY}
        rows = connection.execute("SELECT id, token, sealed FROM record")
        for position, token, sealed in rows:
            positions[tokens[token]] = position
            # To a token on an inner page of the index, SQLite comes by way of a leaf beside it.
            inner = any(token in pages[n - 1] for n in of_all if kinds[n] == "index internal")
            needed[tokens[token]] = of_all | {
                number
                for number, page in enumerate(pages, 1)
                if (kinds[number] == "index leaf" and (inner or token in page))
                or (kinds[number] == "record leaf" and sealed[:24] in page)
                or (kinds[number] == "record overflow" and page[4:64] in sealed)
            }
    assert len(needed) == RECORDS
    assert set(kinds.values()) == {*_ON_EVERY_WAY, *_OF_SOME, "lease leaf"}
    return Sample(pages, records, positions, kinds, needed)


_ON_EVERY_WAY = {"sqlite_schema leaf", "header leaf", "record internal", "index internal"}
_OF_SOME = {"record leaf", "record overflow", "index leaf"}


def _zeros(sample: Sample, number: int) -> bytes:
    return bytes(len(sample.pages[number - 1]))


def _noise(sample: Sample, number: int) -> bytes:
    return random.Random(number).randbytes(len(sample.pages[number - 1]))  # noqa: S311 - as above


def _half(sample: Sample, number: int) -> bytes:
    return sample.pages[number - 1][: PAGE // 2] + bytes(PAGE // 2)


def _a_later_one_of_the_same_kind(sample: Sample, number: int) -> bytes:
    alike = [n for n, kind in sample.kinds.items() if kind == sample.kinds[number] and n > number]
    return sample.pages[(alike[len(alike) // 2] if alike else number) - 1]


def _an_earlier_one_of_the_same_kind(sample: Sample, number: int) -> bytes:
    alike = [n for n, kind in sample.kinds.items() if kind == sample.kinds[number] and n < number]
    return sample.pages[(alike[len(alike) // 2] if alike else number) - 1]


def _one_of_another_kind(sample: Sample, number: int) -> bytes:
    unlike = [n for n, kind in sample.kinds.items() if kind != sample.kinds[number]]
    return sample.pages[unlike[number % len(unlike)] - 1]


Damage = Callable[[Sample, int], bytes]
DAMAGE: "list[Damage]" = [
    _zeros,
    _noise,
    _half,
    _a_later_one_of_the_same_kind,
    _an_earlier_one_of_the_same_kind,
    _one_of_another_kind,
]
every_damage = pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__[1:])


def _lay_down(database: Path, data: bytes, log: bytes | None = None) -> None:
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(data)
    if log is not None:
        database.with_name(database.name + "-wal").write_bytes(log)


def _damaged(sample: Sample, damage: Damage, database: Path) -> Iterator[int]:
    """Lay the file down with one page damaged after the other; yield the number of that page."""
    done = 0
    for number in range(1, len(sample.pages) + 1):
        page = damage(sample, number)
        if page != sample.pages[number - 1]:
            pages = [*sample.pages[: number - 1], page, *sample.pages[number:]]
            _lay_down(database, b"".join(pages))
            yield number
            done += 1
    assert done > 60


def _answer(store: SecureDb, name: bytes) -> bytes | SecurityError | None:
    try:
        return store.get(name)
    except SecurityError as error:
        return error


# One page


@every_damage
def test_get_is_right_or_refuses_and_sound_records_stay_readable(
    sample: Sample, damage: Damage, database: Path
) -> None:
    kinds_of_answers: Counter[str] = Counter()
    for number in _damaged(sample, damage, database):
        try:
            store = SecureDb.open(database, MASTER)
        except IntegrityError:
            assert sample.kinds[number] in {"sqlite_schema leaf", "header leaf"}, number
            continue
        with store:
            for name, value in sample.records.items():
                answer = _answer(store, name)
                if number not in sample.needed[name]:
                    assert answer == value, (number, sample.kinds[number], name)
                elif answer is None:
                    assert sample.kinds[number] in {"index leaf", "index internal"}
                    assert not store.verify().is_whole
                else:
                    assert isinstance(answer, IntegrityError) or answer == value
                kinds_of_answers[type(answer).__name__] += 1
    assert kinds_of_answers["IntegrityError"] > 100
    assert kinds_of_answers["bytes"] > 10 * kinds_of_answers["NoneType"]


def test_the_same_damage_gives_wrong_values_where_records_are_not_sealed(
    sample: Sample, tmp_path: Path
) -> None:
    """The control: plain SQLite gives a value that is partly another record's, without an error."""
    path = tmp_path / "plain.db"
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE records (name BLOB UNIQUE, value BLOB)")
        connection.executemany("INSERT INTO records VALUES (?, ?)", sample.records.items())
        found: Any = connection.execute("SELECT pageno FROM dbstat WHERE pagetype = 'overflow'")
        starts = [(number - 1) * PAGE for (number,) in found]
    data = bytearray(path.read_bytes())
    first, second, *_ = (start for start in starts if not any(data[start : start + 4]))  # last ones
    data[first : first + PAGE] = data[second : second + PAGE]
    path.write_bytes(data)
    with closing(apsw.Connection(str(path))) as connection:
        read: Any = connection.execute("SELECT name, value FROM records").fetchall()
    assert [name for name, value in read if sample.records[name] != value]


@every_damage
def test_iteration_gives_all_records_or_says_that_it_cannot(
    sample: Sample, damage: Damage, database: Path
) -> None:
    """And it comes to an end, even where pages lead in a circle."""
    refused = 0
    for number in _damaged(sample, damage, database):
        try:
            with SecureDb.open(database, MASTER) as store:
                records = list(islice(store.items(), 10 * RECORDS))
        except IntegrityError:
            refused += 1
        else:
            assert dict(records) == sample.records, (number, sample.kinds[number])
            assert len(records) == RECORDS
    assert refused > 20


@every_damage
def test_pages_come_to_an_end_and_hold_no_wrong_value(
    sample: Sample, damage: Damage, database: Path
) -> None:
    for number in _damaged(sample, damage, database):
        position, turns = 0, 0
        with suppress(IntegrityError), SecureDb.open(database, MASTER) as store:
            while page := store.page(position, 7, on_damage=lambda _: None):
                assert {name: value for _, name, value in page}.items() <= sample.records.items()
                assert page[-1][0] > position, (number, sample.kinds[number])
                position = page[-1][0]
                turns += 1
        assert turns <= RECORDS


@every_damage
def test_iteration_that_is_told_of_damage_gives_or_names_every_record(
    sample: Sample, damage: Damage, database: Path
) -> None:
    for number in _damaged(sample, damage, database):
        if sample.kinds[number] in {"sqlite_schema leaf", "header leaf"}:
            continue
        told: list[int] = []
        with SecureDb.open(database, MASTER) as store:
            records = list(islice(store.items(on_damage=told.append), 10 * RECORDS))
        given = dict(records)
        assert len(given) == len(records)
        assert given.items() <= sample.records.items()
        missing = {sample.positions[name] for name in sample.records.keys() - given.keys()}
        assert set(told) == missing, (number, sample.kinds[number])
        assert len(told) == len(missing)
        sound = {name for name, needed in sample.needed.items() if number not in needed}
        assert sound <= given.keys()


def test_records_that_a_page_of_another_place_hides_are_missed(database: Path) -> None:
    """The numbers go up, past hundreds of records: only their count tells.

    Rows are fetched by 256, and where such a fetch ends on the wrong page, the next one begins
    behind it.
    """
    records = {b"%d" % number: bytes(100) for number in range(1500)}
    with SecureDb.open(database, MASTER) as store:
        store.insert_many(records.items())
    data = bytearray(database.read_bytes())
    with closing(apsw.Connection(str(database))) as connection:
        pages = []
        for number in (256, 1000):
            sealed: Any = connection.execute(
                "SELECT sealed FROM record WHERE id = ?", (number,)
            ).get
            pages.append(data.index(sealed) // PAGE * PAGE)
    data[pages[0] : pages[0] + PAGE] = data[pages[1] : pages[1] + PAGE]
    _lay_down(database, bytes(data))
    told: list[int] = []
    with SecureDb.open(database, MASTER) as store:
        with pytest.raises(IntegrityError, match="out of place or missing"):
            list(store.items())
        given = dict(store.items(on_damage=told.append))
    assert 0 < len(told) < 50
    assert {b"%d" % (position - 1) for position in told} == records.keys() - given.keys()


# Several pages


@pytest.mark.parametrize("seed", range(20))
def test_verification_names_what_it_cannot_read_when_table_and_index_are_both_damaged(
    sample: Sample, database: Path, seed: int
) -> None:
    """A record is in reach as long as its page of the table or its page of the index is sound."""
    chance = random.Random(seed)  # noqa: S311 - as above
    leaves = [n for n, kind in sample.kinds.items() if kind in _OF_SOME]
    damaged = set(chance.sample(leaves, 6))
    damaged.add(chance.choice([n for n, kind in sample.kinds.items() if kind == "index leaf"]))
    pages = [
        chance.randbytes(PAGE) if number in damaged else page
        for number, page in enumerate(sample.pages, 1)
    ]
    _lay_down(database, b"".join(pages))
    lost, unreadable = set(), set()
    for name, needed in sample.needed.items():
        hit = {sample.kinds[number] for number in needed & damaged}
        if hit & {"record leaf", "record overflow"}:
            unreadable.add(sample.positions[name])
        if hit >= {"record leaf", "index leaf"}:
            lost.add(sample.positions[name])
    with SecureDb.open(database, MASTER) as store:
        found = store.verify()
        named = {record.position for record in found.damaged}
        assert unreadable - lost <= named <= unreadable
        assert found.records == RECORDS - len(unreadable)
        assert found.problems
        given = dict(store.items(on_damage=lambda _: None))
    assert given.items() <= sample.records.items()
    assert len(given) == found.records


@pytest.mark.parametrize("share_lost", [0, 0.02, 0.3, 0.7, 1])
@pytest.mark.parametrize("spread", [1, 2**50, 2**116])
def test_the_walk_over_gaps_gives_every_row_of_every_sound_page(
    share_lost: float, spread: int
) -> None:
    """Against a model: numbers on pages of any size, some of which cannot be read."""
    for seed in range(15):
        chance = random.Random(seed)  # noqa: S311 - as above
        rest = sorted(number * spread for number in chance.sample(range(1, 4000), 500))
        pages, lost = [], set()
        while rest:
            size = chance.randint(1, 12)
            pages.append(rest[:size])
            rest = rest[size:]
            if chance.random() < share_lost:
                lost.add(len(pages) - 1)

        def fetch(
            start: int,
            limit: int,
            pages: list[list[int]] = pages,
            lost: set[int] = lost,
        ) -> list[tuple[int]]:
            assert 0 < start < 2**128
            rows: list[tuple[int]] = []
            for number, page in enumerate(pages):
                if page[-1] >= start and len(rows) < limit:
                    if number in lost:
                        raise apsw.CorruptError
                    rows += [(row,) for row in page if row >= start]
            return rows[:limit]

        sound = [row for number, page in enumerate(pages) if number not in lost for row in page]
        assert [row for (row,) in _over_gaps(fetch, 2**128, spread)] == sound, seed


# A file that was cut short


def test_a_file_that_was_cut_short_is_refused_and_what_is_left_can_be_read(
    sample: Sample, database: Path
) -> None:
    """At ends of pages, and in the middle of some. SQLite counts the pages when it opens a file."""
    given_in_all = 0
    for end in [*range(0, len(sample.pages) * PAGE, 4 * PAGE), 33 * PAGE + 1, 66 * PAGE + 2000]:
        _lay_down(database, b"".join(sample.pages)[:end])
        with pytest.raises(IntegrityError):
            SecureDb.open(database, MASTER)
        assert database.stat().st_size == end
        with suppress(IntegrityError), SecureDb.open(database, MASTER, read_only=True) as store:
            last = end // PAGE
            for name, value in sample.records.items():
                answer = _answer(store, name)
                assert isinstance(answer, IntegrityError) or answer == value
                if max(sample.needed[name]) <= last:
                    assert answer == value
            given = dict(store.items(on_damage=lambda _: None))
            assert given.items() <= sample.records.items()
            given_in_all += len(given)
            assert not store.verify().is_whole
    assert given_in_all > 3 * RECORDS


# The log


class Logged(NamedTuple):
    """A store whose records are all in the log, as a crash leaves it."""

    data: bytes
    log: bytes
    names: list[bytes]
    ends: list[int]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """Thirty records, and how long the log was when each of them was acknowledged."""
    path = tmp_path_factory.mktemp("logged") / "records.db"
    log = path.with_name("records.db-wal")
    names, ends = [], []
    with SecureDb.open(path, MASTER) as store:
        store.flush()
        for number in range(30):
            names.append(b"%d" % number)
            store.insert(names[-1], bytes([number]) * 1500)
            ends.append(log.stat().st_size)
        return Logged(path.read_bytes(), log.read_bytes(), names, ends)


FRAME: Final = 24 + PAGE


@pytest.mark.parametrize("damage", ["zeros", "noise", "one bit", "cut"])
def test_a_damaged_log_counts_up_to_the_damage(logged: Logged, damage: str, database: Path) -> None:
    """What was acknowledged before the damaged frame is there; what came after it is not.

    It is gone without an error: see the top of this file.
    """
    chance = random.Random(1)  # noqa: S311 - as above
    for start in range(32, len(logged.log), FRAME):
        end = start + FRAME
        frame = {
            "zeros": bytes(FRAME),
            "noise": chance.randbytes(FRAME),
            "one bit": logged.log[start : end - 1] + bytes([logged.log[end - 1] ^ 1]),
            "cut": b"",
        }[damage]
        rest = b"" if damage == "cut" else logged.log[end:]
        _lay_down(database, logged.data, logged.log[:start] + frame + rest)
        whole = sum(reached <= start for reached in logged.ends)
        with SecureDb.open(database, MASTER) as store:
            expected = {b"%d" % number: bytes([number]) * 1500 for number in range(whole)}
            assert dict(store.items()) == expected
            assert all(store.get(name) == expected.get(name) for name in logged.names)
            assert store.verify().is_whole
            assert store.insert(b"afterwards", b"")


def test_nonces_stay_apart_when_the_lease_went_back_with_the_log(
    logged: Logged, database: Path, tmp_path: Path
) -> None:
    """The counters come twice then, as after a restored copy; the uuids do not."""
    _lay_down(database, logged.data)
    with SecureDb.open(database, MASTER) as store:
        store.insert_many((name, b"again") for name in logged.names)
    whole = tmp_path / "whole.db"
    _lay_down(whole, logged.data, logged.log)
    nonces = []
    for path in (database, whole):
        with closing(apsw.Connection(str(path))) as connection:
            rows: Any = connection.execute("SELECT sealed FROM record")
            nonces += [sealed[:24] for (sealed,) in rows]
    assert len(nonces) == len(set(nonces)) == 60
    assert len({nonce[:8] for nonce in nonces}) == 30


def test_a_log_that_is_damaged_under_an_open_store_gives_no_wrong_value(
    logged: Logged, database: Path
) -> None:
    """An open store reads the log by its index in memory and no longer checks the frames."""
    refused = 0
    for start in range(32, len(logged.log), FRAME):
        _lay_down(database, logged.data, logged.log)
        with SecureDb.open(database, MASTER) as store:
            assert store.count() == 30
            store._file.connection.cache_flush()
            store._file.connection.pragma("shrink_memory")
            with database.with_name("records.db-wal").open("r+b") as log:
                log.seek(start)
                log.write(random.Random(start).randbytes(FRAME))  # noqa: S311 - as above
            for number, name in enumerate(logged.names):
                answer = _answer(store, name)
                refused += isinstance(answer, IntegrityError)
                assert isinstance(answer, IntegrityError) or answer == bytes([number]) * 1500
            store._file.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    assert refused > 30


def test_the_log_of_another_database_is_not_played_into_this_one(
    logged: Logged, sample: Sample, database: Path
) -> None:
    """SQLite does: a log carries no name. What it brings in cannot be opened with these keys."""
    _lay_down(database, b"".join(sample.pages), logged.log)
    with suppress(IntegrityError), SecureDb.open(database, MASTER) as store:
        for name, value in sample.records.items():
            answer = _answer(store, name)
            assert isinstance(answer, IntegrityError) or answer in (value, None)
        assert not store.verify().is_whole
    shutil.rmtree(database.parent)
