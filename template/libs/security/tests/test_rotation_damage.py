"""A rotation in a damaged file, or where an older header was put back: it ends, and says so."""

import struct
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import apsw
import pytest

from conftest import MASTER
from rotation_cases import DAY, RE, A, Clock, D, Found, Made, SealedRow, found, make
from service_security.errors import IntegrityError, StoreUnavailableError
from service_security.keys import rotation
from service_security.keys.keyset import Keyset
from service_security.store import SecureDb, key_rotation, reencryption, row_pages
from service_security.store.info import read_info
from service_security.store.record import RecordKeys, Row
from service_security.store.rotation_report import RotationStep

_INTERIOR, _LEAF = 5, 13
"""What the first byte of a page of a table says."""

# Damaged pages


def _root_of_records(database: Path) -> int:
    """Return where the root page of the records begins in the file, whose log is empty."""
    with closing(apsw.Connection(str(database))) as connection:
        page: Any = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'record'"
        ).get
        size = connection.pragma("page_size")
    return int(page - 1) * int(size)


def _lower_a_divider(database: Path) -> None:
    """Let a search for three records end on another page than the one that a scan finds them on."""
    data, root = bytearray(database.read_bytes()), _root_of_records(database)
    assert data[root] == _INTERIOR
    (cells,) = struct.unpack_from(">H", data, root + 3)
    (cell,) = struct.unpack_from(">H", data, root + 12 + 2 * (cells // 3))
    key = root + cell + 4  # behind the number of the page that the cell leads to
    assert data[key] & 0x80, "two bytes, seven bits each"
    assert not data[key + 1] & 0x80
    divider = ((data[key] & 0x7F) << 7 | data[key + 1]) - 3
    data[key : key + 2] = [0x80 | divider >> 7, divider & 0x7F]
    database.write_bytes(data)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often a rotation goes through all records, and end what would go on for ever."""
    made: list[int] = []
    look = reencryption.Reencryption._pass

    def counted(self: reencryption.Reencryption, *arguments: Any) -> bool:
        made.append(self.moved)
        assert len(made) < 20, "it goes round in circles"
        return look(self, *arguments)

    monkeypatch.setattr(reencryption.Reencryption, "_pass", counted)
    return made


@pytest.mark.parametrize("damaged", [True, False])
def test_records_that_a_search_does_not_find_end_the_rotation_with_what_to_do(
    database: Path, passes: list[int], damaged: bool
) -> None:
    with SecureDb.open(database, MASTER) as store:
        store.insert_many((b"%d" % number, bytes(300)) for number in range(3000))
    if damaged:
        _lower_a_divider(database)
    with SecureDb.open(database, MASTER) as store:
        if not damaged:
            assert store.rotation().run().records == 3000
            assert len(passes) == 2
            return
        with pytest.raises(IntegrityError, match=r"not in order.* between two states.* db verify"):
            store.rotation().run()
        assert len(passes) < 10
        assert found(database).rows == {1: 3, 3: 2997}
        assert found(database).states[1] is A, "its key is kept"
        assert store.rotation().status().unfinished == "rotation"
        assert not store.verify().is_whole
        assert store.insert(b"new", b"")
        assert store.get(b"2999") == bytes(300)


def _damage_key_id(database: Path, kind: int) -> None:
    """Say of a record of a small store that its key id is of another type than a number."""
    data, root = bytearray(database.read_bytes()), _root_of_records(database)
    assert data[root] == _LEAF
    (cell,) = struct.unpack_from(">H", data, root + 8 + 2 * 5)
    at = root + cell
    while data[at] != 12 + 2 * 16:  # the type of the token, a BLOB of 16 bytes
        at += 1
    assert data[at + 1] == 1, "a number of one byte"
    data[at + 1] = kind
    database.write_bytes(data)


KINDS = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, id=name) for name, kind in [
        ("text", 15), ("BLOB", 14), ("NULL", 0), ("zero without a byte", 8), ("float", 7),
        ("reserved", 10),
    ]],
)  # fmt: skip


@KINDS
def test_a_record_whose_row_is_damaged_is_named_and_left_and_all_others_rotate(
    database: Path, kind: int
) -> None:
    """SQLite calls some of these rows corrupt, and gives others with values of any type."""
    clock = Clock()
    with SecureDb.open(database, MASTER, clock=clock) as store:
        store.insert_many((b"%d" % number, b"value") for number in range(20))
        store.rotation().run()  # SQLite keeps the number 1 without a byte
    _damage_key_id(database, kind)
    with SecureDb.open(database, MASTER, clock=clock) as store:
        (damaged,) = store.verify().damaged
        rotated = store.rotation().run()
        assert [record.position for record in rotated.damaged] == [damaged.position]
        assert "db verify" in rotated.sentences[0]
        assert "Key" not in rotated.sentences[0], "it does not name one"
        assert (rotated.records, rotated.validated) == (19, 19)
        status = store.rotation().status()
        assert sum(status.unknown.values()) == 1
        assert [(key.key_id, key.records) for key in status.keys] == [(1, 0), (3, 0), (4, 19)]
        clock.now += DAY
        assert store.rotation().tend().destroyed == (1, 3)
        left_out: list[int] = []
        assert len(store.page(0, 100, on_damage=left_out.append)) == 19
        assert left_out == [damaged.position]
    info = read_info(database, lambda _done, _total: None)
    assert info.records == 20


def test_a_device_that_is_gone_is_not_taken_for_damaged_rows(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite may call a page corrupt that the device has not given."""

    class Gone:
        def __init__(self, connection: apsw.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> object:
            return getattr(self._connection, name)

        def execute(self, *_: object) -> None:
            raise apsw.CorruptError("a page")

        def read(self, *_: object) -> None:
            raise apsw.IOError("no answer")

    store.insert(b"name", b"value")
    with monkeypatch.context() as patch:
        patch.setattr(store._file, "connection", Gone(store._file.connection))
        patch.setattr(row_pages, "_one_by_one", lambda *_: [(1, Row(b"", 0, b""))])
        with pytest.raises(StoreUnavailableError, match="device failed"), store._file:
            row_pages.rows_behind(store._file, 0, 10)
    assert store.page(0, 10) == [(1, b"name", b"value")]


def test_damage_between_two_states_is_told_with_the_state(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(database, {1: Made(A)}, 1, {b"a": SealedRow(1), b"b": SealedRow(1)})

    def corrupt(*_: object, **__: object) -> None:
        raise apsw.CorruptError("a page")

    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        for act in (store.rotation().run, store.rotation().roll_back):
            with monkeypatch.context() as patch:
                patch.setattr(reencryption, "rows_behind", corrupt)
                with pytest.raises(IntegrityError, match=r"is damaged.* two states.* db verify"):
                    act()
        assert store.get(b"a") == b"a"
        assert store.rotation().run().rolled_back
    assert found(database) == Found({1: A, 3: RE}, 1, {1: 2})


@pytest.mark.parametrize("byte", [0, -1], ids=["nonce", "tag"])
def test_a_row_that_is_damaged_after_it_was_read_is_left(
    database: Path, monkeypatch: pytest.MonkeyPatch, byte: int
) -> None:
    """What is not what was read is not written over, whatever became of it."""
    make(database, {1: Made(A)}, 1, {b"a": SealedRow(1)})
    seal = RecordKeys.seal
    with SecureDb.open(database, MASTER, clock=Clock()) as store:

        def damage(*arguments: Any) -> list[Row]:
            monkeypatch.setattr(RecordKeys, "seal", seal)
            connection = store._file.connection
            sealed = bytearray(connection.execute("SELECT sealed FROM record").get)
            sealed[byte] ^= 1
            connection.execute("UPDATE record SET sealed = ?", (bytes(sealed),))
            return seal(*arguments)

        monkeypatch.setattr(RecordKeys, "seal", damage)
        rotated = store.rotation().run()
    assert (rotated.records, [record.position for record in rotated.damaged]) == (0, [1])
    assert found(database).rows == {1: 1}


# An older header

Columns = tuple[Any, ...]


def _header(database: Path, columns: Columns | None = None) -> Columns:
    """Return what the header has of the keyset, and put something else there."""
    with closing(apsw.Connection(str(database))) as connection:
        row: Any = connection.execute(
            "SELECT keyset_generation, keyset, mac FROM header"
        ).fetchone()
        if columns is not None:
            connection.execute("UPDATE header SET keyset_generation=?, keyset=?, mac=?", columns)
    return tuple(row)


@pytest.fixture
def put_back(database: Path) -> Iterator[tuple[SecureDb, Columns, Columns]]:
    """A store that has rotated and whose older header was put back: it, the older and the newer."""
    with SecureDb.open(database, MASTER) as store:
        store.insert(b"name", b"value")
        old = _header(database)
        store.rotation().run()
        yield store, old, _header(database, old)


LOOKS: dict[str, Callable[[SecureDb], object]] = {
    "check": SecureDb.check,
    "refresh": lambda store: store._keys.refresh(store._file.connection),
    "verify": SecureDb.verify,
    "snapshot": SecureDb.snapshot,
    "status": lambda store: store.rotation().status(),
    "run": lambda store: store.rotation().run(),
    "roll back": lambda store: store.rotation().roll_back(),
    "tend": lambda store: store.rotation().tend(),
}
looks = pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())


@looks
def test_an_older_header_that_was_put_back_is_noticed_and_never_written_over(
    database: Path,
    put_back: tuple[SecureDb, Columns, Columns],
    look: Callable[[SecureDb], object],
) -> None:
    store, old, now = put_back
    for _ in range(2):
        with pytest.raises(IntegrityError, match="went back to an older generation"):
            look(store)
    assert _header(database, now) == old
    store.check()
    assert store.rotation().run().records == 1
    assert store.get(b"name") == b"value"


@looks
def test_another_header_of_the_same_generation_is_noticed(
    database: Path,
    put_back: tuple[SecureDb, Columns, Columns],
    look: Callable[[SecureDb], object],
) -> None:
    """An older header was put back, and somebody else has rotated from there."""
    store, _, now = put_back
    with SecureDb.open(database, MASTER) as other:
        other.remove(b"name")  # it has lost its key
        other.rotation().run()
    forked = _header(database)
    assert (forked[0], forked[2] != now[2]) == (now[0], True)
    with pytest.raises(IntegrityError, match="not the one in use"):
        look(store)
    assert _header(database) == forked


@pytest.mark.parametrize("look", [LOOKS[name] for name in LOOKS if name != "roll back"])
def test_a_header_that_another_process_has_changed_rightly_is_no_finding(
    database: Path, look: Callable[[SecureDb], object]
) -> None:
    """The control of both."""
    with SecureDb.open(database, MASTER) as store, SecureDb.open(database, MASTER) as other:
        store.insert(b"name", b"value")
        other.rotation().run()
        result = look(store)
        if isinstance(result, SecureDb):
            result.close()
        store.rotation().tend()
        look_again = look(store)
        if isinstance(look_again, SecureDb):
            look_again.close()


# What is told once


def test_keys_whose_grace_is_over_are_destroyed_in_one_change_after_one_count(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {key_id: Made(RE, 3) for key_id in range(3, 23)}
    make(
        database, {**keys, 23: Made(A)}, 23, {b"a": SealedRow(23), b"b": SealedRow(5, whole=False)}
    )
    counts: list[object] = []
    snapshot = SecureDb.snapshot

    def counted(store: SecureDb) -> SecureDb:
        counts.append(store)
        return snapshot(store)

    monkeypatch.setattr(SecureDb, "snapshot", counted)
    steps: list[RotationStep] = []
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        before = _header(database)[0]
        tended = store.rotation().tend(on_step=steps.append)
        assert _header(database)[0] == before + 1
    assert tended.kept == (5,)
    assert tended.destroyed == tuple(key_id for key_id in keys if key_id != 5)
    assert [step.key_id for step in steps if step.step == "destroyed"] == list(tended.destroyed)
    assert len(counts) == 1


@pytest.mark.parametrize(("step", "key"), [("destroyed", Made(RE, 3)), ("forgotten", Made(D, 40))])
def test_a_retirement_that_was_overtaken_is_done_the_next_time(
    database: Path, monkeypatch: pytest.MonkeyPatch, step: str, key: Made
) -> None:
    make(database, {3: key, 4: Made(A)}, 4, {b"a": SealedRow(4)})
    clock = Clock()
    change: Callable[..., Keyset] = getattr(rotation, step)
    with (
        SecureDb.open(database, MASTER, clock=clock) as store,
        SecureDb.open(database, MASTER, clock=clock) as other,
    ):

        def interfere(*arguments: Any) -> Keyset:
            following = change(*arguments)
            with monkeypatch.context() as patch:  # as where there is no lock
                patch.setattr(key_rotation, "keys_held", lambda _: nullcontext())
                assert other.rotation().run().key_id == 5
            return following

        with monkeypatch.context() as patch:
            patch.setattr(rotation, step, interfere)
            assert getattr(store.rotation().tend(), step) == ()
        assert found(database).primary_id == 5
        assert getattr(store.rotation().tend(), step) == (3,)


@pytest.fixture
def emptied(database: Path) -> Iterator[tuple[SecureDb, Clock]]:
    """A store that has destroyed a key, emptied its log, and was used a lot since."""
    clock = Clock()
    with SecureDb.open(database, MASTER, clock=clock) as store:
        store.insert(b"name", b"value")
        store.rotation().run()
        clock.now += DAY
        assert store.rotation().tend().log_emptied
        for _ in range(9):
            store.insert_many((b"%d" % number, bytes(1000)) for number in range(600))
        yield store, clock


def test_a_log_that_was_emptied_is_not_suspected_because_it_went_round_since(
    emptied: tuple[SecureDb, Clock], database: Path
) -> None:
    store, clock = emptied
    with SecureDb.open(database, MASTER, clock=clock) as stranger:
        assert stranger.rotation().status().log_may_hold_old, "who has not seen it cannot know"
    assert not store.rotation().status().log_may_hold_old
    with store.snapshot() as snapshot:
        assert snapshot.count() == 601
        tended = store.rotation().tend()
        assert (tended.log_emptied, tended.sentences) == (None, ())
    assert store.rotation().tend().log_emptied is None
    with SecureDb.open(database, MASTER, clock=clock) as stranger:
        assert not stranger.rotation().status().log_may_hold_old, "it was emptied all the same"


def test_a_key_that_is_destroyed_later_makes_the_log_suspect_again(
    emptied: tuple[SecureDb, Clock],
) -> None:
    store, clock = emptied
    store.rotation().run()
    clock.now += DAY
    with store.snapshot() as snapshot:
        assert snapshot.count() == 601
        tended = store.rotation().tend()
        assert (tended.destroyed, tended.log_emptied) == ((3,), False)
        assert store.rotation().status().log_may_hold_old
    assert store.rotation().tend().log_emptied
