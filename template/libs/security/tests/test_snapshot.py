"""Stores that are only read: snapshots of a moment, and files opened for reading."""

import threading
from pathlib import Path

import pytest

from conftest import MASTER, Opener, until
from service_security.errors import IntegrityError, StoreUnavailableError, WrongKeyError
from service_security.store import SecureDb


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _refuses_every_write(store: SecureDb) -> None:
    for call in (
        lambda: store.insert(b"name", b"value"),
        lambda: store.insert_many([(b"name", b"value")]),
        lambda: store.remove(b"name"),
        store.flush,
    ):
        with pytest.raises(StoreUnavailableError, match="reading only"):
            call()
    with pytest.raises(StoreUnavailableError, match="reading only"), store.transaction():
        raise AssertionError


# Snapshots


def test_a_snapshot_shows_its_moment_while_others_write(store: SecureDb) -> None:
    store.insert_many([(b"a", b"1"), (b"b", b"1")])
    with store.snapshot() as snapshot:
        store.insert(b"a", b"2")
        store.remove(b"b")
        store.insert(b"c", b"2")
        assert dict(snapshot.items()) == {b"a": b"1", b"b": b"1"}
        assert snapshot.get(b"c") is None
        assert snapshot.count() == 2
    assert dict(store.items()) == {b"a": b"2", b"c": b"2"}


def test_a_snapshot_is_only_read(store: SecureDb) -> None:
    with store.snapshot() as snapshot:
        assert snapshot.read_only
        assert not store.read_only
        _refuses_every_write(snapshot)
        snapshot.check()


def test_a_snapshot_of_a_moment_in_a_transaction_does_not_show_it(store: SecureDb) -> None:
    store.insert(b"a", b"1")
    with store.transaction():
        store.insert(b"a", b"2")
        with store.snapshot() as snapshot:
            assert snapshot.get(b"a") == b"1"


def test_a_snapshot_outlives_the_store_it_was_taken_of(store: SecureDb) -> None:
    store.insert(b"a", b"1")
    with store.snapshot() as snapshot:
        store.close()
        assert snapshot.get(b"a") == b"1"


@pytest.mark.usefixtures("impatient")
def test_the_log_cannot_be_emptied_under_a_snapshot(store: SecureDb) -> None:
    store.insert(b"a", b"1")
    with store.snapshot():
        store.insert(b"a", b"2")
        with pytest.raises(StoreUnavailableError, match="a snapshot"):
            store.flush()
    store.flush()


def test_sums_over_a_snapshot_are_right_while_amounts_move(store: SecureDb) -> None:
    """And the control: over the store itself, page by page, they are not."""
    store.insert_many((b"%d" % number, b"100") for number in range(600))
    stop, moves = threading.Event(), list[int]()

    def move() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            low, high = b"%d" % (turn % 20), b"%d" % (599 - turn % 20)
            with store.transaction():
                taken, given = int(store.get(low) or 0), int(store.get(high) or 0)
                store.insert_many([(low, b"%d" % (taken - 1)), (high, b"%d" % (given + 1))])
            moves.append(turn)

    def total(reader: SecureDb) -> int:
        values = reader.items()
        first = int(next(values)[1])
        before = len(moves)
        until(lambda: len(moves) > before or not thread.is_alive())
        return first + sum(int(value) for _, value in values)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        for _ in range(5):
            with store.snapshot() as snapshot:
                assert total(snapshot) == 60_000
            assert total(store) > 60_000
    finally:
        stop.set()
        thread.join()


def test_a_closed_store_gives_no_snapshot(store: SecureDb) -> None:
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.snapshot()


def test_a_snapshot_of_a_damaged_header_is_refused_and_leaves_no_connection_open(
    store: SecureDb,
) -> None:
    store._file.connection.execute("UPDATE header SET mac = zeroblob(32)")
    with pytest.raises(IntegrityError):
        store.snapshot()
    store.flush()


def test_a_snapshot_is_verified_as_the_moment_it_shows(store: SecureDb) -> None:
    store.insert(b"a", b"1")
    with store.snapshot() as snapshot:
        store.insert(b"b", b"1")
        assert snapshot.verify().records == 1
        with pytest.raises(RuntimeError, match="of the store"):
            snapshot.snapshot()


def test_a_snapshot_of_a_file_that_was_replaced_is_refused(
    store: SecureDb, database: Path, tmp_path: Path
) -> None:
    store.insert(b"a", b"1")
    store.flush()
    database.rename(tmp_path / "moved.db")
    (tmp_path / "copy.db").write_bytes((tmp_path / "moved.db").read_bytes())
    (tmp_path / "copy.db").rename(database)
    with pytest.raises(StoreUnavailableError, match="removed or replaced"):
        store.snapshot()


def test_a_relative_path_stays_the_same_file_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with SecureDb.open("records.db", MASTER) as store:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        store.check()
        assert store.verify().is_whole


# Files opened for reading


def test_a_store_opened_for_reading_sees_what_others_write(store: SecureDb, database: Path) -> None:
    store.insert(b"a", b"1")
    with SecureDb.open(database, MASTER, read_only=True) as reader:
        assert reader.get(b"a") == b"1"
        store.insert(b"a", b"2")
        assert reader.get(b"a") == b"2"
        assert dict(reader.items()) == {b"a": b"2"}
        reader.check()
        _refuses_every_write(reader)
        assert reader.read_only
    store.insert(b"a", b"3")


def test_reading_does_not_change_the_database(store: SecureDb, database: Path) -> None:
    store.insert(b"a", b"1")
    store.close()
    before = _files(database.parent)
    with SecureDb.open(database, MASTER, read_only=True) as reader:
        assert reader.get(b"a") == b"1"
    after = _files(database.parent)
    assert after.pop("records.db-wal", b"") == b""
    after.pop("records.db-shm", None)
    assert after == before


def test_a_missing_file_is_not_created_for_reading(database: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be opened"):
        SecureDb.open(database, MASTER, read_only=True)
    assert not list(database.parent.iterdir())


def test_another_key_does_not_open_it_for_reading(open_store: Opener, database: Path) -> None:
    open_store().close()
    with pytest.raises(WrongKeyError):
        SecureDb.open(database, bytes(32), read_only=True)


def test_records_in_the_log_alone_are_read(store: SecureDb, database: Path) -> None:
    """As a service that was killed leaves them."""
    store.insert(b"a", b"1")
    files = _files(database.parent)
    copy = database.parent / "killed"
    copy.mkdir()
    for name in ("records.db", "records.db-wal"):
        (copy / name).write_bytes(files[name])
    with SecureDb.open(copy / "records.db", MASTER, read_only=True) as reader:
        assert reader.get(b"a") == b"1"
