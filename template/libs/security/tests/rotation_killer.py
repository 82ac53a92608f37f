"""Kills a process in every call with which a change of the keys reaches the device.

Run as ``rotation_killer.py FOLDER CASE``: for each number, from 1 on, a child of this process opens
a new copy of the case's database, does what the case says, and is killed with SIGKILL in the call
of that number that writes, syncs or cuts a file. A second child looks at what is left, ends it and
checks everything. That goes on until a child comes to its end. Nothing that has opened a database
is ever forked.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from conftest import MASTER
from failing_vfs import Call, failing_device, in_child, kill_at_every_call
from rotation_cases import NOW, RE, RO, A, Clock, D, Found, Made, Rows, SealedRow, V, found, make
from service_security.errors import IntegrityError
from service_security.keys.keyset import Keyset
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, key_validation, reencryption

NAMES = [b"record %d" % number for number in range(8)]


def _all_under(key_id: int) -> Rows:
    return {name: SealedRow(key_id) for name in NAMES}


@dataclass(frozen=True)
class Killed:
    """What is done and killed, and what is to be there when it was ended.

    Attributes:
        keys: The keys before.
        primary_id: The primary before.
        rows: The rows before; each has its name as its value.
        act: What is killed.
        results: What may be there after the end, the usual first.
        cipher: Of new records at the end, by primary.
    """

    keys: dict[int, Made]
    primary_id: int
    rows: Rows
    act: Callable[[SecureDb], object]
    results: tuple[Found, ...]


def _run(store: SecureDb) -> object:
    return store.rotation().run(cipher="aes256gcm")


def _back(store: SecureDb) -> object:
    return store.rotation().roll_back()


def _tend(store: SecureDb) -> object:
    return store.rotation().tend(interval=timedelta(days=90))


def _run_in_vain(store: SecureDb) -> object:
    try:
        return store.rotation().run()
    except IntegrityError:
        return None


def _forget_the_old_key_first(store: SecureDb) -> object:
    """A rotation as it must not be, to show that a kill in it is noticed."""
    with store.rotation()._live.read() as now_keys, store._file:
        keyset = now_keys.keyset
        new = keyset.primary.copy(key_id=3, key=SecretBytes.generate())
        following = Keyset(keyset.generation + 1, 3, [new, keyset.name_index.copy()])
    records = list(store.items())
    store.rotation()._live.change(following)
    store.insert_many(records)
    return None


FORWARD = Found({1: RE, 3: A}, 3, {3: 8})
BACKWARD = Found({1: A, 3: RE}, 1, {1: 8})
HALF = {**_all_under(1), **{name: SealedRow(3) for name in NAMES[:5]}}
DAMAGED = {**_all_under(3), NAMES[5]: SealedRow(3, whole=False)}

CASES = {
    "run": Killed({1: Made(A)}, 1, _all_under(1), _run, (FORWARD,)),
    "roll back": Killed({1: Made(A), 3: Made(RO)}, 3, HALF, _back, (BACKWARD, FORWARD)),
    "roll back of what was read": Killed(
        {1: Made(A), 3: Made(V)}, 3, _all_under(3), _back, (BACKWARD, FORWARD)
    ),
    "run in vain": Killed(
        {1: Made(A), 3: Made(V)}, 3, DAMAGED, _run_in_vain, (Found({1: A, 3: RE}, 1, {1: 7, 3: 1}),)
    ),
    "control": Killed({1: Made(A)}, 1, _all_under(1), _forget_the_old_key_first, (FORWARD,)),
    "tend": Killed(
        {1: Made(D, 40), 3: Made(RE, 2), 4: Made(A, 95, 95)},
        4,
        _all_under(4),
        _tend,
        (Found({3: D, 4: RE, 5: A}, 5, {5: 8}),),
    ),
}


def _is_killed(database: Path, case: Killed, number: int) -> None:
    calls = 0

    def kill(_call: Call) -> bool:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    with failing_device() as device:
        device._fails = kill  # type: ignore[method-assign, assignment]
        store = SecureDb.open(database, MASTER, clock=Clock())
        calls = 0
        case.act(store)
        calls = -sys.maxsize
        store.close()


def _checks(database: Path, case: Killed) -> None:
    with SecureDb.open(database, MASTER, clock=Clock(NOW + 60)) as store:
        _check_records(store, case)  # whatever state it is in
        store.insert(b"new", b"new")
        unfinished = store.rotation().status().unfinished
        if unfinished is not None:
            try:
                assert store.rotation().run().resumed
            except IntegrityError:
                assert case.act is _run_in_vain
        elif case.act is _run and found(database).states == {1: A}:
            store.rotation().run()  # it was killed before it was begun
        if case.act is _tend:
            _tend(store)
        store.remove(b"new")
        results = case.results[:1] if unfinished == "roll back" else case.results
        assert found(database) in results, found(database)
        _check_records(store, case)
        damaged: list[int] = []
        assert {name for name, _ in store.items(on_damage=damaged.append)} | {
            name for name, row in case.rows.items() if not row.whole
        } == set(NAMES)
        assert len(damaged) == sum(not row.whole for row in case.rows.values())


def _check_records(store: SecureDb, case: Killed) -> None:
    for name, row in case.rows.items():
        if row.whole:
            assert store.get(name) == name


def main(folder: Path, name: str) -> None:
    """Kill at every call, and print how many kills there were."""
    case = CASES[name]
    reencryption.BATCH_RECORDS = key_validation.BATCH_RECORDS = 3  # type: ignore[attr-defined]
    template = folder / "template"
    template.mkdir()
    database = Path("records.db")  # in the folder of each child
    making = in_child(template, lambda: make(database, case.keys, case.primary_id, case.rows))
    assert making == 0
    kills = kill_at_every_call(
        folder,
        lambda inside: shutil.copytree(template, inside),
        lambda number: _is_killed(database, case, number),
        lambda: _checks(database, case),
    )
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
