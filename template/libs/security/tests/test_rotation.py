"""Rotating the keys of a store: from every state, with damaged rows, while others use it."""

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from conftest import MASTER, Opener
from rotation_cases import (
    DAY,
    NOW,
    RE,
    RO,
    A,
    Clock,
    D,
    Found,
    G,
    Made,
    Rows,
    SealedRow,
    V,
    header_keys,
    make,
)
from rotation_cases import found as found_in
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    StoreUnavailableError,
)
from service_security.keys.keyset import KeyState
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, batches, key_validation, reencryption
from service_security.store.info import read_info, read_keys
from service_security.store.record import RecordKeys, Row
from service_security.store.report import describe
from service_security.store.rotation_report import Rotated, RotationStep, Tended
from service_security.store.row_pages import rows_behind

WHOLE_1, WHOLE_3 = SealedRow(1), SealedRow(3)
LOST_1, LOST_3 = SealedRow(1, whole=False), SealedRow(3, whole=False)


def _rows(*rows: SealedRow) -> Rows:
    return {b"record %d" % number: row for number, row in enumerate(rows)}


@dataclass(frozen=True)
class Case:
    """A keyset and rows, and what is to become of them.

    Attributes:
        keys: The keys by their ids; 2 is the name-index key.
        primary_id: The primary.
        rows: The rows.
        states: By key, afterwards.
        primary_after: The primary afterwards.
        rows_after: The number of rows by key, afterwards.
        damaged: Positions that are named as left alone.
        error: Words of the IntegrityError that tells what happened.
        says: Attributes of the result.
    """

    keys: Mapping[int, Made]
    primary_id: int
    rows: Rows
    states: dict[int, KeyState]
    primary_after: int
    rows_after: dict[int, int]
    damaged: tuple[int, ...] = ()
    error: str | None = None
    says: Mapping[str, object] = field(default_factory=dict)


def _check(case: Case, database: Path, act: Callable[[SecureDb], Any], clock: Clock) -> Any:
    make(database, case.keys, case.primary_id, case.rows)
    with SecureDb.open(database, MASTER, clock=clock) as store:
        if case.error is None:
            result = act(store)
            for name, value in case.says.items():
                assert getattr(result, name) == value, name
        else:
            result = None
            with pytest.raises(IntegrityError, match=case.error):
                act(store)
        after = found_in(database)
        assert after == Found(case.states, case.primary_after, case.rows_after)
        for position, (key, row) in enumerate(case.rows.items(), 1):
            if row.whole and position not in case.damaged:
                assert store.get(key) == key
            else:
                with pytest.raises(IntegrityError):
                    store.get(key)
    return result


RUN = {
    "nothing was begun": Case(
        {1: Made(A)}, 1, _rows(WHOLE_1, WHOLE_1), {1: RE, 3: A}, 3, {3: 2},
        says={"key_id": 3, "old_key_id": 1, "records": 2, "validated": 2, "resumed": False,
              "rolled_back": False, "sentences": ()},
    ),
    "no records": Case({1: Made(A)}, 1, {}, {1: RE, 3: A}, 3, {}, says={"records": 0}),
    "killed behind the new key": Case(
        {1: Made(A), 3: Made(G)}, 1, _rows(WHOLE_1), {1: RE, 3: A}, 3, {3: 1},
        says={"resumed": True, "records": 1},
    ),
    "killed before the first record was moved": Case(
        {1: Made(A), 3: Made(RO)}, 3, _rows(WHOLE_1, WHOLE_1), {1: RE, 3: A}, 3, {3: 2},
        says={"resumed": True, "records": 2},
    ),
    "killed while records were moved": Case(
        {1: Made(A), 3: Made(RO)}, 3, _rows(WHOLE_3, WHOLE_1, WHOLE_3), {1: RE, 3: A}, 3, {3: 3},
        says={"resumed": True, "records": 1, "validated": 3},
    ),
    "killed behind the last record": Case(
        {1: Made(A), 3: Made(RO)}, 3, _rows(WHOLE_3, WHOLE_3), {1: RE, 3: A}, 3, {3: 2},
        says={"resumed": True, "records": 0},
    ),
    "killed while records were read": Case(
        {1: Made(A), 3: Made(V)}, 3, _rows(WHOLE_3), {1: RE, 3: A}, 3, {3: 1},
        says={"resumed": True, "records": 0, "validated": 1},
    ),
    "killed on the way back": Case(
        {1: Made(A), 3: Made(RO)}, 1, _rows(WHOLE_3, WHOLE_1), {1: A, 3: RE}, 1, {1: 2},
        says={"key_id": 1, "old_key_id": 3, "resumed": True, "rolled_back": True, "records": 1,
              "validated": 0},
    ),
    "an older key is retiring": Case(
        {1: Made(RE), 3: Made(A)}, 3, _rows(WHOLE_3), {1: RE, 3: RE, 4: A}, 4, {4: 1},
        says={"key_id": 4, "old_key_id": 3},
    ),
    "an older key is destroyed": Case(
        {1: Made(D), 3: Made(A)}, 3, _rows(WHOLE_3), {1: D, 3: RE, 4: A}, 4, {4: 1},
    ),
    "a key that was given up is destroyed": Case(
        {1: Made(A), 3: Made(D)}, 1, _rows(WHOLE_1), {1: RE, 3: D, 4: A}, 4, {4: 1},
    ),
    "a record is damaged": Case(
        {1: Made(A)}, 1, _rows(WHOLE_1, LOST_1, WHOLE_1), {1: RE, 3: A}, 3, {1: 1, 3: 2},
        damaged=(2,), says={"records": 2, "validated": 2},
    ),
    "every record is damaged": Case(
        {1: Made(A)}, 1, _rows(LOST_1, LOST_1), {1: RE, 3: A}, 3, {1: 2}, damaged=(1, 2),
    ),
    "a record is damaged under the new key": Case(
        {1: Made(A), 3: Made(V)}, 3, _rows(WHOLE_3, LOST_3, WHOLE_3), {1: A, 3: RE}, 1,
        {1: 2, 3: 1}, error=r"^Records at position 2 \([0-9a-f]{32}\) of .* rolled back",
    ),
    "records are damaged under both keys": Case(
        {1: Made(A), 3: Made(RO)}, 3, _rows(WHOLE_1, LOST_1, LOST_3), {1: A, 3: RE}, 1,
        {1: 2, 3: 1}, error=r"^Records at position 3 \([0-9a-f]{32}\) of .* rolled back",
    ),
    "a record is damaged under the new key, and then on the way back": Case(
        {1: Made(A), 3: Made(RO)}, 1, _rows(WHOLE_3, LOST_3), {1: A, 3: RE}, 1, {1: 1, 3: 1},
        damaged=(2,), says={"rolled_back": True},
    ),
    "a damaged record names a key that was given up": Case(
        {1: Made(A), 3: Made(RE)}, 1, _rows(WHOLE_1, LOST_3), {1: RE, 3: RE, 4: A}, 4,
        {3: 1, 4: 1}, damaged=(2,),
    ),
    "an old row was put back before its key retired": Case(
        {1: Made(A), 3: Made(V)}, 3, _rows(WHOLE_3, WHOLE_1), {1: RE, 3: A}, 3, {3: 2},
        says={"records": 1, "validated": 2},
    ),
    "an old row was put back within the grace of its key": Case(
        {1: Made(RE, 0.9), 3: Made(A)}, 3, _rows(WHOLE_3, WHOLE_1), {1: RE, 3: RE, 4: A}, 4,
        {4: 2},
    ),
    "an old row was put back behind the grace of its key": Case(
        {1: Made(RE, 1), 3: Made(A)}, 3, _rows(WHOLE_3, WHOLE_1), {1: RE, 3: RE, 4: A}, 4,
        {1: 1, 4: 1}, damaged=(2,),
    ),
    "an old row was put back when its key was destroyed": Case(
        {1: Made(D), 3: Made(A)}, 3, _rows(WHOLE_3, WHOLE_1), {1: D, 3: RE, 4: A}, 4,
        {1: 1, 4: 1}, damaged=(2,),
    ),
    "a row names a key that never was": Case(
        {1: Made(A)}, 1, _rows(WHOLE_1, SealedRow(9)), {1: RE, 3: A}, 3, {3: 1, 9: 1},
        damaged=(2,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RUN.values(), ids=RUN.keys())
def test_run_ends_what_there_is(case: Case, database: Path) -> None:
    rotated = _check(case, database, lambda store: store.rotation().run(), Clock())
    if rotated is not None:
        assert tuple(record.position for record in rotated.damaged) == case.damaged
        assert bool(rotated.sentences) is bool(case.damaged)


BACK = {
    "before it began": Case(
        {1: Made(A), 3: Made(G)}, 1, _rows(WHOLE_1), {1: A, 3: D}, 1, {1: 1},
        says={"key_id": 1, "old_key_id": 3, "records": 0, "rolled_back": True},
    ),
    "before the first record was moved": Case(
        {1: Made(A), 3: Made(RO)}, 3, _rows(WHOLE_1), {1: A, 3: RE}, 1, {1: 1},
        says={"records": 0},
    ),
    "half way": Case(
        {1: Made(A), 3: Made(RO)}, 3, _rows(WHOLE_3, WHOLE_1), {1: A, 3: RE}, 1, {1: 2},
        says={"records": 1, "validated": 0},
    ),
    "while records were read": Case(
        {1: Made(A), 3: Made(V)}, 3, _rows(WHOLE_3, WHOLE_3), {1: A, 3: RE}, 1, {1: 2},
        says={"records": 2},
    ),
    "when it was on the way back already": Case(
        {1: Made(A), 3: Made(RO)}, 1, _rows(WHOLE_3), {1: A, 3: RE}, 1, {1: 1},
    ),
    "with damaged records": Case(
        {1: Made(A), 3: Made(RO)}, 3, _rows(WHOLE_3, LOST_3, LOST_1), {1: A, 3: RE}, 1,
        {1: 2, 3: 1}, damaged=(2,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BACK.values(), ids=BACK.keys())
def test_roll_back_goes_to_the_old_primary(case: Case, database: Path) -> None:
    result = _check(case, database, lambda store: store.rotation().roll_back(), Clock())
    assert tuple(record.position for record in result.damaged) == case.damaged


ALL = _rows(WHOLE_3)
TEND = {
    "nothing is due": Case({1: Made(A)}, 1, _rows(WHOLE_1), {1: A}, 1, {1: 1},
                           says={"rotated": None, "log_emptied": None}),
    "a second before the interval": Case(
        {3: Made(A, 90 - 1 / DAY, 90 - 1 / DAY)}, 3, ALL, {3: A}, 3, {3: 1}
    ),
    "the interval is over": Case({3: Made(A, 90, 90)}, 3, ALL, {3: RE, 4: A}, 4, {4: 1}),
    "the primary was made before the interval, and is active since a day": Case(
        {3: Made(A, 1, 91)}, 3, ALL, {3: RE, 4: A}, 4, {4: 1}
    ),
    "the primary is of tomorrow": Case({3: Made(A, -1, -1)}, 3, ALL, {3: A}, 3, {3: 1}),
    "a rotation was killed": Case(
        {1: Made(A), 3: Made(RO)}, 3, _rows(WHOLE_1), {1: RE, 3: A}, 3, {3: 1}
    ),
    "a roll back was killed": Case(
        {1: Made(A), 3: Made(RO)}, 1, _rows(WHOLE_3), {1: A, 3: RE}, 1, {1: 1}
    ),
    "a second before the end of grace": Case(
        {1: Made(RE, 1 - 1 / DAY), 3: Made(A)}, 3, ALL, {1: RE, 3: A}, 3, {3: 1},
        says={"destroyed": (), "kept": ()},
    ),
    "the end of grace": Case(
        {1: Made(RE, 1), 3: Made(A)}, 3, ALL, {1: D, 3: A}, 3, {3: 1},
        says={"destroyed": (1,), "kept": (), "log_emptied": True},
    ),
    "two graces are over": Case(
        {1: Made(RE, 3), 3: Made(RE, 2), 4: Made(A)}, 4, {}, {1: D, 3: D, 4: A}, 4, {},
        says={"destroyed": (1, 3)},
    ),
    "the key retires tomorrow": Case(
        {1: Made(RE, -1), 3: Made(A)}, 3, ALL, {1: RE, 3: A}, 3, {3: 1}
    ),
    "a record still names the key": Case(
        {1: Made(RE, 5), 3: Made(A)}, 3, _rows(WHOLE_3, LOST_1), {1: RE, 3: A}, 3, {1: 1, 3: 1},
        damaged=(2,), says={"destroyed": (), "kept": (1,)},
    ),
    "a record names one of two keys": Case(
        {1: Made(RE, 5), 3: Made(RE, 5), 4: Made(A)}, 4, _rows(LOST_1), {1: RE, 3: D, 4: A}, 4,
        {1: 1}, damaged=(1,), says={"destroyed": (3,), "kept": (1,)},
    ),
    "a second before it is forgotten": Case(
        {1: Made(D, 30 - 1 / DAY), 3: Made(A)}, 3, ALL, {1: D, 3: A}, 3, {3: 1}
    ),
    "it is forgotten": Case(
        {1: Made(D, 30), 3: Made(A)}, 3, ALL, {3: A}, 3, {3: 1}, says={"forgotten": (1,)}
    ),
    "the newest key is remembered for its number": Case(
        {1: Made(A), 3: Made(D, 99)}, 1, {}, {1: A, 3: D}, 1, {}, says={"forgotten": ()}
    ),
    "everything at once": Case(
        {1: Made(D, 31), 3: Made(RE, 2), 4: Made(A, 91, 91)}, 4, _rows(SealedRow(4)),
        {3: D, 4: RE, 5: A}, 5, {5: 1},
        says={"destroyed": (3,), "forgotten": (1,), "log_emptied": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TEND.values(), ids=TEND.keys())
def test_tend_does_what_is_due(case: Case, database: Path) -> None:
    tended = _check(case, database, lambda store: store.rotation().tend(), Clock())
    assert bool(tended.sentences) is bool(case.damaged)


def test_tend_without_an_interval_begins_nothing(database: Path) -> None:
    case = Case({3: Made(A, 999, 999)}, 3, ALL, {3: A}, 3, {3: 1})
    _check(case, database, lambda store: store.rotation().tend(interval=None), Clock())


def test_tend_refuses_an_interval_that_is_not_allowed(store: SecureDb) -> None:
    for days in (29, 366):
        with pytest.raises(ConfigurationError, match="30 to 365"):
            store.rotation().tend(interval=timedelta(days=days))
        with pytest.raises(ConfigurationError, match="30 to 365"):
            store.rotation().status(interval=timedelta(days=days))
    assert store.rotation().tend(interval=timedelta(days=365)) == Tended()


# What a rotation changes, and what it leaves


def test_every_record_is_sealed_anew_in_its_place(store: SecureDb, database: Path) -> None:
    for number in range(30):
        store.insert(b"%d" % number, b"value %d" % number)
    store.remove(b"7")
    before, listed = _table(database), list(store.items())
    rotated = store.rotation().run()
    after = _table(database)
    assert (rotated.records, rotated.validated, rotated.cipher) == (29, 29, store.cipher)
    assert [row[:2] for row in before] == [row[:2] for row in after]
    assert {row[2] for row in before} == {1}
    assert {row[2] for row in after} == {3}
    assert {row[3] for row in before}.isdisjoint(row[3] for row in after)
    assert list(store.items()) == listed
    assert store.verify().is_whole


def _table(database: Path) -> list[tuple[int, bytes, int, bytes]]:
    connection = apsw.Connection(str(database))
    rows: Any = connection.execute("SELECT id, token, key_id, sealed FROM record").fetchall()
    connection.close()
    return list(rows)


@pytest.mark.parametrize("other", ["xchacha20poly1305", "aes256gcm"])
def test_another_cipher_takes_effect_at_a_rotation(
    store: SecureDb, cipher: str, other: str, database: Path
) -> None:
    store.insert_many([(b"a", b"1"), (b"b", b"2")])
    assert store.rotation().run(cipher=other).cipher == other
    assert store.cipher == other
    assert dict(store.items()) == {b"a": b"1", b"b": b"2"}
    assert store.rotation().run().cipher == other, "without a word the cipher stays"
    assert store.rotation().run(cipher=cipher).cipher == cipher
    with SecureDb.open(database, MASTER) as again:
        assert again.cipher == cipher
        assert dict(again.items()) == {b"a": b"1", b"b": b"2"}


def test_an_unknown_cipher_is_refused_and_nothing_begins(store: SecureDb, database: Path) -> None:
    before = found_in(database)
    for act in (store.rotation().run, store.rotation().tend):
        with pytest.raises(ConfigurationError, match="There is no cipher 'rot13'"):
            act(cipher="rot13")
    assert found_in(database) == before


def test_what_is_unfinished_keeps_its_cipher(database: Path) -> None:
    make(database, {1: Made(A), 3: Made(RO)}, 3, ALL)
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        rotated = store.rotation().run(cipher="aes256gcm")
        assert (rotated.resumed, rotated.cipher) == (True, "xchacha20poly1305")
        assert store.rotation().run(cipher="aes256gcm").cipher == "aes256gcm"


def test_values_of_any_size_are_moved_in_bounded_batches(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencryption, "BATCH_BYTES", 10_000)
    monkeypatch.setattr(reencryption, "BATCH_RECORDS", 5)
    records = {b"%d" % size: bytes(size) for size in (0, 1, 9_000, 50_000, 300, 2_000_000)}
    records |= {b"small %d" % number: b"" for number in range(20)}
    store.insert_many(records.items())
    sizes: list[list[int]] = []
    seal = RecordKeys.seal

    def note(keys: RecordKeys, pairs: list[tuple[bytes, bytes]], *rest: Any) -> list[Row]:
        sizes.append([len(value) for _, value in pairs])
        return seal(keys, pairs, *rest)

    monkeypatch.setattr(RecordKeys, "seal", note)
    assert store.rotation().run().records == len(records)
    assert max(map(len, sizes)) == 5
    assert all(sum(batch[:-1]) < 10_000 for batch in sizes)
    assert sum(map(len, sizes)) == len(records)
    assert dict(store.items()) == records


def test_batches_are_of_500_records_or_4_mib() -> None:
    assert (batches.BATCH_RECORDS, batches.BATCH_BYTES) == (500, 4 * 1024 * 1024)


def test_steps_and_progress_are_told(store: SecureDb) -> None:
    store.insert_many((b"%d" % number, b"") for number in range(1200))
    steps: list[object] = []
    store.rotation().run(
        progress=lambda done, total: steps.append((done, total)), on_step=steps.append
    )
    counts = [(500, 1200), (1000, 1200), (1200, 1200)]
    assert steps == [
        RotationStep("generated", 3),
        RotationStep("rotating", 3),
        *counts,
        RotationStep("validating", 3, 1200),
        *counts,
        RotationStep("active", 3, 1200),
        RotationStep("retiring", 1),
    ]


def test_who_is_told_may_use_the_store_and_may_stop_the_rotation(
    store: SecureDb, database: Path
) -> None:
    store.insert_many((b"%d" % number, b"") for number in range(10))

    def use(step: RotationStep) -> None:
        store.insert(step.step.encode(), b"")
        with store.transaction():
            assert store.get(step.step.encode()) == b""

    store.rotation().run(on_step=use)
    assert found_in(database).rows == {3: 15}

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.rotation().run(progress=stop)
    assert store.rotation().status().unfinished == "rotation"
    assert store.rotation().run().resumed
    assert found_in(database).rows == {4: 15}


def test_a_store_that_is_only_read_refuses_but_tells_its_status(
    store: SecureDb, database: Path
) -> None:
    store.insert(b"name", b"value")
    with store.snapshot() as snapshot, SecureDb.open(database, MASTER, read_only=True) as reader:
        for other in (snapshot, reader):
            rotation = other.rotation()
            for act in (rotation.run, rotation.roll_back, rotation.tend):
                with pytest.raises(StoreUnavailableError, match="reading only"):
                    act()
            assert rotation.status().keys[0].records == 1
    assert store.rotation().run().records == 1


def test_a_transaction_cannot_hold_a_rotation(store: SecureDb, database: Path) -> None:
    store.insert(b"name", b"value")
    rotation = store.rotation()
    with store.transaction():
        store.insert(b"other", b"value")
        for act in (rotation.run, rotation.roll_back, rotation.tend):
            with pytest.raises(RuntimeError, match="part of a transaction"):
                act()
    assert found_in(database).rows == {1: 2}
    assert rotation.run().records == 2


def test_nothing_to_roll_back_is_said(store: SecureDb) -> None:
    with pytest.raises(ConfigurationError, match="none to roll back"):
        store.rotation().roll_back()
    store.rotation().run()
    with pytest.raises(ConfigurationError, match="One that is finished stays"):
        store.rotation().roll_back()


def test_a_moved_file_is_not_rotated(store: SecureDb, database: Path) -> None:
    database.rename(database.with_name("elsewhere.db"))
    with pytest.raises(StoreUnavailableError, match="removed or replaced"):
        store.rotation().run()
    database.with_name("elsewhere.db").rename(database)
    assert store.rotation().run().key_id == 3


def test_a_record_that_does_not_open_again_is_not_written(
    store: SecureDb, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.insert_many([(b"a", b"1"), (b"b", b"2")])
    before = _table(database)
    seal = RecordKeys.seal

    def broken(*arguments: Any) -> list[Row]:
        rows = seal(*arguments)
        return [*rows[:-1], rows[-1]._replace(sealed=rows[-1].sealed[:-1] + b"\0\0")]

    with monkeypatch.context() as patch:
        patch.setattr(RecordKeys, "seal", broken)
        with pytest.raises(IntegrityError, match=r"^Record 2 of .* was not written"):
            store.rotation().run()
    assert _table(database) == before
    assert store.rotation().run().records == 2
    assert dict(store.items()) == {b"a": b"1", b"b": b"2"}


def test_a_sealed_value_that_is_another_is_not_written(
    store: SecureDb, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.insert(b"a", b"1")
    before = _table(database)
    seal = RecordKeys.seal

    def other(keys: RecordKeys, pairs: Any, *rest: Any) -> list[Row]:
        return seal(keys, [(name, value + b"!") for name, value in pairs], *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RecordKeys, "seal", other)
        with pytest.raises(IntegrityError, match="was not written"):
            store.rotation().run()
    assert _table(database) == before


def test_no_key_retires_while_records_are_out_of_reach(
    store: SecureDb, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that gives fewer rows than its index has is damaged, though SQLite says nothing."""
    store.insert_many((b"%d" % number, b"") for number in range(10))
    with monkeypatch.context() as patch:
        patch.setattr(
            key_validation,
            "rows_behind",
            lambda *given, size: [row for row in rows_behind(*given, size=size) if row[0] != 4],
        )
        with pytest.raises(IntegrityError, match="No key was retired"):
            store.rotation().run()
    assert found_in(database).states == {1: A, 3: V}
    store.rotation().run()
    assert found_in(database).states == {1: RE, 3: A}


# Others, in this process and in others


def test_readers_and_writers_with_the_old_keyset_go_on(store: SecureDb, database: Path) -> None:
    """Another connection with its own keys is what another process is."""
    clock = Clock()
    with ExitStack() as stack:
        reader, writer, late = (
            stack.enter_context(SecureDb.open(database, MASTER, clock=clock)) for _ in range(3)
        )
        store.insert(b"name", b"value")
        assert reader.get(b"name") == b"value"
        store.rotation(clock=clock).run()
        assert reader.get(b"name") == b"value"
        assert dict(reader.items()) == {b"name": b"value"}
        assert writer.insert(b"new", b"1")
        assert writer.remove(b"name")
        with late.transaction():
            late.insert(b"late", b"2")
        late.insert_many([(b"later", b"3"), (b"new", b"4")])
        assert found_in(database).rows == {3: 3}
        expected = {b"new": b"4", b"late": b"2", b"later": b"3"}
        assert dict(reader.items()) == dict(store.items()) == expected


def test_rows_that_a_writer_replaces_meanwhile_are_his(
    store: SecureDb, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch was read and sealed when a writer in another process replaces and removes."""
    store.insert_many((b"%d" % number, b"old") for number in range(6))
    seal = RecordKeys.seal
    with SecureDb.open(database, MASTER) as other:

        def interfere(keys: RecordKeys, pairs: Any, *rest: Any) -> list[Row]:
            rows = seal(keys, pairs, *rest)
            monkeypatch.setattr(RecordKeys, "seal", seal)
            other.insert(b"2", b"new")
            other.remove(b"3")
            other.insert(b"6", b"new")
            return rows

        monkeypatch.setattr(RecordKeys, "seal", interfere)
        rotated = store.rotation().run()
    assert (rotated.records, rotated.validated) == (4, 6)
    expected = {b"0": b"old", b"1": b"old", b"2": b"new", b"4": b"old", b"5": b"old", b"6": b"new"}
    assert dict(store.items()) == expected
    assert found_in(database).rows == {3: 6}


@pytest.mark.parametrize("direction", ["forward", "back"])
def test_a_row_with_other_bytes_than_were_read_is_met_again(
    database: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its old key no writer can change it; but a file can be restored in part."""
    primary_id = 3 if direction == "forward" else 1
    make(database, {1: Made(A), 3: Made(RO)}, 4 - primary_id, {b"name": SealedRow(4 - primary_id)})
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        store.insert(b"name", b"first")
        first = _table(database)[0][3]
        store.insert(b"name", b"second")
    with header_keys(database) as (connection, header, sealing), sealing.open(header) as keyset:
        keyset.generation += 1
        keyset.primary_id = primary_id
        assert sealing.seal(keyset).replace(connection, keyset.generation - 1)
    seal, steps = RecordKeys.seal, list[str]()
    with SecureDb.open(database, MASTER, clock=Clock()) as store:

        def interfere(*arguments: Any) -> list[Row]:
            rows = seal(*arguments)
            monkeypatch.setattr(RecordKeys, "seal", seal)
            store._file.connection.execute("UPDATE record SET sealed = ?", (first,))
            return rows

        monkeypatch.setattr(RecordKeys, "seal", interfere)
        rotated = store.rotation().run(on_step=lambda step: steps.append(step.step))
        assert (rotated.records, rotated.key_id) == (1, primary_id)
        assert steps == (
            ["validating", "active", "retiring"] if direction == "forward" else ["retiring"]
        )
        assert store.get(b"name") == b"first"
        assert found_in(database).rows == {primary_id: 1}


def test_a_batch_of_a_rotator_that_was_overtaken_is_not_written(
    store: SecureDb, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading and writing a batch, another process takes the rotation back."""
    store.insert_many((b"%d" % number, b"value") for number in range(4))
    seal = RecordKeys.seal
    with SecureDb.open(database, MASTER) as other:

        def interfere(*arguments: Any) -> list[Row]:
            rows = seal(*arguments)
            monkeypatch.setattr(RecordKeys, "seal", seal)
            with monkeypatch.context() as patch:  # as where there is no lock
                patch.setattr("service_security.store.key_rotation.keys_held", _no_lock)
                other.rotation().roll_back()
            return rows

        monkeypatch.setattr(RecordKeys, "seal", interfere)
        rotated = store.rotation().run()
    assert rotated.rolled_back
    assert found_in(database) == Found({1: A, 3: RE}, 1, {1: 4})
    assert store.count() == 4


def _no_lock(_: Path) -> ExitStack:
    return ExitStack()


def test_threads_read_and_write_while_keys_rotate_again_and_again(
    store: SecureDb, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencryption, "BATCH_RECORDS", 7)
    truth = {b"%d" % number: b"0" for number in range(200)}
    store.insert_many(truth.items())
    stop, failures = threading.Event(), list[BaseException]()

    def guarded(act: Callable[[int], None]) -> threading.Thread:
        def loop() -> None:
            turn = 0
            try:
                while not stop.is_set():
                    turn += 1
                    act(turn)
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    def write(turn: int) -> None:
        name = b"%d" % (turn % 100)
        store.insert(name, b"%d" % turn)
        truth[name] = b"%d" % turn

    def write_many(turn: int) -> None:
        pairs = [(b"%d" % (100 + (turn + n) % 50), b"%d" % turn) for n in range(3)]
        with store.transaction():
            store.insert_many(pairs)
        truth.update(pairs)

    def read(turn: int) -> None:
        assert store.get(b"%d" % (150 + turn % 50)) == b"0"
        assert len(dict(store.items())) == 200

    threads = [guarded(write), guarded(write_many), guarded(read)]
    try:
        for turn in range(8):
            rotation = store.rotation()
            rotation.run(cipher=("aes256gcm", "xchacha20poly1305")[turn % 2])
            rotation.tend()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert dict(store.items()) == truth
    assert found_in(database).rows == {10: 200}
    assert store.verify().is_whole


def test_a_snapshot_of_before_shows_its_moment_after_the_key_is_destroyed(
    database: Path,
) -> None:
    clock = Clock()
    with SecureDb.open(database, MASTER, clock=clock) as store:
        store.insert(b"name", b"before")
        with store.snapshot() as snapshot:
            store.rotation().run()
            clock.now += DAY
            tended = store.rotation().tend()
            assert (tended.destroyed, tended.log_emptied) == ((1,), False)
            store.insert(b"name", b"after")
            assert snapshot.get(b"name") == b"before"
        assert store.get(b"name") == b"after"


# Nonces


def test_a_rotation_and_writers_repeat_no_nonce(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters alone, and uuids by batch: each would do by itself."""
    monkeypatch.setattr(reencryption, "BATCH_RECORDS", 3)
    sealed: list[tuple[int, bytes]] = []
    seal = RecordKeys.seal

    def note(*arguments: Any) -> list[Row]:
        rows = seal(*arguments)
        sealed.extend((row.key_id, row.sealed[:24]) for row in rows)
        return rows

    monkeypatch.setattr(RecordKeys, "seal", note)
    store.insert_many((b"%d" % number, b"") for number in range(20))
    turn = iter(range(10_000))

    def write(_done: int, _total: int) -> None:
        store.insert(b"%d" % (next(turn) % 20), b"more")
        with store.transaction():
            store.insert(b"in a transaction", b"")

    def stop(done: int, _total: int) -> None:
        assert done // (done - 9)

    with pytest.raises(ZeroDivisionError):
        store.rotation().run(progress=stop)
    for _ in range(3):
        store.rotation().run(progress=write)
    assert len(sealed) > 100
    assert len({nonce for _, nonce in sealed}) == len(sealed)
    assert len({nonce[:8] for _, nonce in sealed}) == len(sealed), "a counter was used twice"
    by_uuid: dict[bytes, set[int]] = {}
    for key_id, nonce in sealed:
        by_uuid.setdefault(nonce[8:], set()).add(key_id)
    assert all(len(keys) == 1 for keys in by_uuid.values())
    assert len(by_uuid) > 30


def test_a_batch_without_a_durable_lease_is_not_sealed(
    store: SecureDb, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.insert(b"name", b"value")

    def fail(_: int) -> int:
        raise StoreUnavailableError("no lease.")

    monkeypatch.setattr(store._writer._counters, "_reserve", fail)
    store._writer._counters._next = store._writer._counters._end
    with pytest.raises(StoreUnavailableError, match=r"no lease\. .* goes on where it stopped"):
        store.rotation().run()
    assert found_in(database).rows == {1: 1}
    monkeypatch.undo()
    assert store.rotation().run().records == 1


WRITER = """
import sys, time
from service_security.store import SecureDb, schema

schema.BUSY_TIMEOUT_MS = 60_000  # whatever else the machine does
with SecureDb.open(sys.argv[1], bytes(range(32))) as store:
    for number in range(1_000_000):
        name = b"%d" % (number % 50)
        store.insert(name, b"%d" % number)
        if store.get(name) != b"%d" % number:
            sys.exit("it reads something else")
        print(number, flush=True)
        time.sleep(0.002)  # or the rotation might find no moment to write in
"""


def test_another_process_writes_and_reads_until_it_is_killed(
    store: SecureDb, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencryption, "BATCH_RECORDS", 9)
    store.insert_many((b"old %d" % number, b"old") for number in range(200))
    seen: set[bytes] = set()
    command = [sys.executable, "-c", WRITER, str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(6):
            store.rotation().run()
            rows = _table(database)
            nonces = {sealed[:24] for _, _, _, sealed in rows}
            assert len(nonces) == len(rows)
            seen |= nonces
        assert writer.poll() is None, "it goes on"
        last = 0
        while last <= 50:
            last = int(writer.stdout.readline())
        writer.kill()
        last = int([str(last), *writer.stdout.read().split("\n")][-2])
    store.rotation().run()
    records = dict(store.items())
    assert records.pop(b"%d" % (last % 50)) in (b"%d" % last, b"%d" % (last + 50))
    assert {value for name, value in records.items() if name.startswith(b"old")} == {b"old"}
    assert len(records) == 249
    assert len(seen) > 1200
    assert found_in(database).rows == {9: 250}


# After the grace


def test_a_retired_key_opens_nothing_after_its_grace(database: Path) -> None:
    """Also in a process that runs on; one that never tends, as soon as it loads keys again."""
    make(database, {1: Made(RE), 3: Made(A)}, 3, _rows(WHOLE_1, WHOLE_3))
    clock = Clock()
    with (
        SecureDb.open(database, MASTER, clock=clock) as tended,
        SecureDb.open(database, MASTER, clock=clock) as untended,
    ):
        clock.now += DAY - 1
        assert tended.rotation().tend() == Tended()
        assert tended.get(b"record 0") == b"record 0"
        clock.now += 1
        with SecureDb.open(database, MASTER, clock=clock) as late:
            with pytest.raises(IntegrityError):
                late.get(b"record 0")
            assert late.get(b"record 1") == b"record 1"
        assert tended.rotation().tend().reloaded
        with pytest.raises(IntegrityError):
            tended.get(b"record 0")
        assert tended.get(b"record 1") == b"record 1"
        assert untended.get(b"record 0") == b"record 0"
        tended.rotation().run()
        untended.insert(b"new", b"")  # meets the new generation
        with pytest.raises(IntegrityError):
            untended.get(b"record 0")


def test_tend_loads_what_another_process_has_changed(database: Path) -> None:
    clock = Clock()
    with (
        SecureDb.open(database, MASTER, clock=clock) as one,
        SecureDb.open(database, MASTER, clock=clock) as other,
    ):
        one.insert(b"name", b"value")
        one.rotation().run(cipher="aes256gcm")
        assert other.cipher == "xchacha20poly1305"
        assert other.rotation().tend() == Tended(reloaded=True)
        assert other.cipher == "aes256gcm"
        assert other.rotation().tend() == Tended()


# Damaged records


def test_a_damaged_record_is_named_with_what_to_do_and_its_key_is_kept_until_it_is_gone(
    database: Path,
) -> None:
    make(database, {1: Made(A)}, 1, _rows(WHOLE_1, LOST_1, LOST_1))
    clock = Clock()
    with SecureDb.open(database, MASTER, clock=clock) as store:
        before = _table(database)[1:]
        rotated: Rotated = store.rotation().run()
        assert [(r.position, r.token, r.key_id) for r in rotated.damaged] == [
            (position, token.hex(), 1) for position, token, _, _ in before
        ]
        (sentence,) = rotated.sentences
        assert "position 2 (" in sentence
        assert "Key 1 cannot be destroyed" in sentence
        assert "db verify" in sentence
        assert _table(database)[1:] == before
        assert {damaged.position for damaged in store.verify().damaged} == {2, 3}
        clock.now += 40 * DAY
        tended = store.rotation().tend()
        assert tended.kept == (1,)
        assert "Key 1 cannot be destroyed" in tended.sentences[0]
        assert "2 records still name it" in store.rotation().status().assurance[0]
        store.insert(b"record 1", b"restored")
        store.remove(b"record 2")
        tended = store.rotation().tend()
        assert (tended.destroyed, tended.kept) == ((1,), ())


def test_many_damaged_records_are_named_by_the_first(database: Path) -> None:
    make(database, {1: Made(A)}, 1, _rows(*[LOST_1] * 8))
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        rotated = store.rotation().run()
    assert len(rotated.damaged) == 8
    assert " and 3 more could not be opened" in rotated.sentences[0]


# Status


def test_status_tells_every_key_and_what_is_due(database: Path) -> None:
    keys = {
        1: Made(D, 5, 200),
        3: Made(RE, 2, 100, "aes256gcm"),
        4: Made(RE, 0.5, 50),
        5: Made(A, 10, 40),
        6: Made(RO, 0, 0),
    }
    make(database, keys, 6, _rows(LOST_3, SealedRow(5), SealedRow(6), SealedRow(6), SealedRow(9)))
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        status = store.rotation().status()
    assert [(k.key_id, k.state, k.cipher, k.primary, k.records) for k in status.keys] == [
        (1, "destroyed", "xchacha20poly1305", False, 0),
        (3, "retiring", "aes256gcm", False, 1),
        (4, "retiring", "xchacha20poly1305", False, 0),
        (5, "active", "xchacha20poly1305", False, 1),
        (6, "rotating", "xchacha20poly1305", True, 2),
    ]
    assert status.keys[0].created == datetime.fromtimestamp(NOW - 200 * DAY, UTC)
    assert status.keys[0].since == datetime.fromtimestamp(NOW - 5 * DAY, UTC)
    assert status.unknown == {9: 1}
    assert (status.generation, status.primary_id) == (2, 6)
    assert (status.unfinished, status.is_due, status.overdue) == ("rotation", False, (3,))
    assert status.due == datetime.fromtimestamp(NOW + 90 * DAY, UTC)


def test_status_tells_when_a_rotation_is_due(database: Path) -> None:
    clock = Clock()
    with SecureDb.open(database, MASTER, clock=clock) as store:
        for days, due in [(0, False), (29, False), (30, True), (-999, False)]:
            clock.now = NOW + days * DAY
            assert store.rotation().status(interval=timedelta(days=30)).is_due is due
        status = store.rotation().status(interval=None)
        assert (status.due, status.is_due) == (None, False)
        assert any("clock is behind" in line for line in status.assurance)
        clock.now = NOW
        assert not any("clock is behind" in line for line in store.rotation().status().assurance)


def test_status_tells_of_a_roll_back(database: Path) -> None:
    make(database, {1: Made(A), 3: Made(RO)}, 1, ALL)
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        assert store.rotation().status().unfinished == "roll back"


def test_db_info_tells_the_same_of_every_state(database: Path) -> None:
    keys = {1: Made(D), 3: Made(RE), 4: Made(A), 5: Made(G, cipher="aes256gcm")}
    make(database, keys, 4, _rows(LOST_3, SealedRow(4)))
    _info_is_right(database, ["1 destroyed 0", "3 retiring 1", "4* active 1", "5 generated 0"])
    for state in (RO, V):
        database.unlink()
        make(database, {1: Made(A), 3: Made(state)}, 3, _rows(WHOLE_1, WHOLE_3, WHOLE_3))
        _info_is_right(database, ["1 active 1", f"3* {state.name.lower()} 2"])


def _info_is_right(database: Path, expected: list[str]) -> None:
    info = read_info(database, lambda _done, _total: None)
    assert info.header is not None
    with SecretBytes.copy_of(MASTER) as master:
        keys = read_keys(info.header, master)
    lines = [line.split() for line in describe(info, keys, "opened").splitlines()]
    shown = [f"{cells[0]} {cells[1]} {cells[-1]}" for cells in lines if cells[2:3] == ["record"]]
    assert shown == expected


def test_every_key_of_a_rotation_is_wiped(database: Path) -> None:
    def alive() -> set[int]:
        gc.collect()
        secrets = [each for each in gc.get_objects() if isinstance(each, SecretBytes)]
        return {id(each) for each in secrets if each._page is not None}

    make(database, {1: Made(RE, 2), 3: Made(D, 40), 4: Made(A, 99, 99)}, 4, _rows(LOST_1))
    before = alive()
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        store.rotation().tend()
        store.rotation().status()
        with pytest.raises(ConfigurationError):
            store.rotation().roll_back()
        keys = store._keys.record
        of_header = 2
        in_use = of_header + len(keys.keyset.entries) + len(keys._record_keys)
        assert len(alive() - before) == in_use == 8, "the control: those of the store live"
    assert alive() == before


def test_the_clock_of_a_rotation_can_be_another(store: SecureDb, open_store: Opener) -> None:
    clock = Clock(NOW + 5.5)
    store.rotation(clock=clock).run()
    status = open_store().rotation(clock=clock).status()
    assert status.keys[1].created == datetime.fromtimestamp(NOW + 5, UTC)
