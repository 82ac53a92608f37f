"""A change of the keys that is killed, meets a full or failing disk, or is done twice at once."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import apsw
import pytest

import failing_vfs
import rotation_killer
from conftest import MASTER
from failing_vfs import Device, failing_device
from rotation_cases import DAY, NOW, RE, RO, A, Clock, D, Found, Made, SealedRow, found, make
from service_security.errors import IntegrityError, StoreUnavailableError
from service_security.store import SecureDb, keys_lock, reencryption
from service_security.store.keys_lock import keys_held, keys_held_if_free
from service_security.store.rotation_report import RotationStep, Tended

TESTS = Path(__file__).parent
needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def _kill_everywhere(folder: Path, case: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(TESTS / "rotation_killer.py"), str(folder), case],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@needs_posix
@pytest.mark.parametrize(
    ("case", "calls"),
    [
        ("run", 24),
        ("roll back", 15),
        ("roll back of what was read", 18),
        ("run in vain", 18),
        ("tend", 35),
    ],
)
def test_a_kill_in_any_call_to_the_device_loses_nothing_and_is_ended_by_the_next(
    tmp_path: Path, case: str, calls: int
) -> None:
    """Each commit has calls of its own, so this is every step and the inside of every batch."""
    result = _kill_everywhere(tmp_path, case)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) >= calls


@needs_posix
def test_a_rotation_that_loses_records_when_it_is_killed_is_noticed(tmp_path: Path) -> None:
    """The control of the test above."""
    result = _kill_everywhere(tmp_path, "control")
    assert "not whole after a kill" in result.stderr
    assert result.returncode == 1


def test_every_case_of_the_killer_is_run() -> None:
    ran = {"run", "roll back", "roll back of what was read", "run in vain", "tend", "control"}
    assert rotation_killer.CASES.keys() == ran


# The device


@pytest.fixture
def device() -> Iterator[Device]:
    with failing_device() as device:
        yield device


ROWS = {b"record %d" % number: SealedRow(1) for number in range(8)}


def _all_there(store: SecureDb) -> bool:
    return dict(store.items()) == {name: name for name in ROWS}


def test_a_power_cut_behind_any_sync_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencryption, "BATCH_RECORDS", 3)
    for number in range(1, 50):
        before, after = tmp_path / f"{number}", tmp_path / f"{number} after"
        before.mkdir()
        after.mkdir()
        database = before / "records.db"
        make(database, {1: Made(A)}, 1, ROWS)
        with failing_device() as device:
            device.adopt(database)
            store = SecureDb.open(database, MASTER, clock=Clock())
            device.fail("sync", number, for_good=True)
            refused = _refusal(store)
            device.mend()
            device.cut_power(after)
            store.close()
        if refused is None:
            break
        with SecureDb.open(after / "records.db", MASTER, clock=Clock()) as store:
            assert _all_there(store)
            store.rotation().run()
            assert _all_there(store)
            assert found(after / "records.db").rows.keys() <= {3, 4}
    assert number > 8


def _refusal(store: SecureDb) -> str | None:
    try:
        store.rotation().run()
    except StoreUnavailableError as error:
        return str(error)
    return None


def test_a_full_disk_says_that_the_rotation_goes_on_when_it_is_run_again(
    database: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencryption, "BATCH_RECORDS", 3)
    monkeypatch.setitem(failing_vfs._ERRORS, "write", apsw.SQLITE_FULL)
    make(database, {1: Made(A)}, 1, ROWS)
    refusals = 0
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        for number in range(1, 100):
            device.fail("write", number)
            refusal = _refusal(store)
            device.mend()
            assert _all_there(store)
            if refusal is None:
                break
            assert refusal.startswith(f"The disk of {database} is full.")
            status = store.rotation().status()
            if status.unfinished:
                assert "Run the rotation again when this is mended" in refusal
            refusals += 1
        assert refusals > 5
        after = found(database)
        assert set(after.rows) == {after.primary_id}
        assert store.verify().is_whole
        assert store.insert(b"writes go on", b"")


def test_a_device_that_failed_is_said_and_the_store_opened_anew_goes_on(
    database: Path, device: Device
) -> None:
    make(database, {1: Made(A)}, 1, ROWS)
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        device.fail("sync", 4)
        with pytest.raises(StoreUnavailableError, match=r"device failed.* goes on where it stop"):
            store.rotation().run()
        for act in (store.rotation().run, store.rotation().tend):
            with pytest.raises(StoreUnavailableError, match="failed on the device"):
                act()
        assert _all_there(store)
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        store.rotation().run()
        assert _all_there(store)


def test_a_log_that_cannot_be_emptied_because_the_device_failed_is_an_error(
    database: Path, device: Device
) -> None:
    make(database, {1: Made(RE, 2), 3: Made(A)}, 3, {})
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        device.fail("truncate", 1)
        with pytest.raises(StoreUnavailableError, match="device failed"):
            store.rotation().tend()
    assert found(database).states == {1: D, 3: A}
    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        assert store.rotation().tend().log_emptied in (True, None)
        assert not store.rotation().status().log_may_hold_old


# Two at once


def test_one_rotates_at_a_time_and_the_other_is_told(store: SecureDb, database: Path) -> None:
    lock = database.with_name("records.db.keys-lock")
    store.insert(b"name", b"value")
    with SecureDb.open(database, MASTER) as other:

        def meanwhile(step: RotationStep) -> None:
            if step.step == "rotating":
                for act in (other.rotation().run, other.rotation().roll_back):
                    with pytest.raises(StoreUnavailableError, match="changed by somebody else"):
                        act()
                assert other.rotation().tend() == Tended(reloaded=True, elsewhere=True)

        assert store.rotation().run(on_step=meanwhile).key_id == 3
        assert other.rotation().run().key_id == 4, "the lock is free again"
    assert lock.stat().st_mode & 0o777 == 0o600
    assert lock.stat().st_size == 0


def test_tend_has_no_use_for_the_lock_when_nothing_is_due(store: SecureDb, database: Path) -> None:
    with keys_held(database):
        assert not store.rotation().tend().elsewhere
        assert store.rotation().status().unfinished is None


@needs_posix
def test_the_lock_follows_no_link_and_a_link_to_the_database_has_the_same_one(
    store: SecureDb, database: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(database)
    with keys_held(link), keys_held_if_free(database) as held:
        assert not held
    lock = database.with_name("records.db.keys-lock")
    lock.unlink()
    victim = tmp_path / "victim"
    lock.symlink_to(victim)
    with pytest.raises(StoreUnavailableError):
        store.rotation().run()
    assert not victim.exists()
    lock.unlink()
    assert store.rotation().run().key_id == 3


def test_a_store_whose_device_has_failed_changes_no_keys_even_if_nothing_is_due(
    database: Path,
) -> None:
    with failing_device() as device:
        store = SecureDb.open(database, MASTER, clock=Clock())
        store.insert(b"one", b"1")
        device.fail("sync", 1)
        with pytest.raises(StoreUnavailableError):
            store.insert(b"two", b"2")
        device.mend()
        rotation = store.rotation()
        for change in (rotation.tend, rotation.run, rotation.roll_back):
            with pytest.raises(StoreUnavailableError, match=r"failed on the device.*restart"):
                change()
        assert not database.with_name("records.db.keys-lock").exists()
        store.close()
    assert found(database).states == {1: A}


@needs_posix
def test_a_file_system_without_locks_is_said_and_nothing_stays_open(
    store: SecureDb, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    close = os.close

    def failing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def noted(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("service_security.store.keys_lock.fcntl.flock", failing)
        patch.setattr("service_security.store.keys_lock.os.close", noted)
        with pytest.raises(StoreUnavailableError, match=r"records\.db .*: No locks available"):
            store.rotation().run()
    assert len(closed) == 1
    assert not keys_lock._held
    assert found(database).states == {1: A}
    assert store.rotation().run().key_id == 3


LOCK_IN_A_CHILD = """
import os, sys
from pathlib import Path
from service_security.store.keys_lock import keys_held

database = Path(sys.argv[1])
reader, writer = os.pipe()
with keys_held(database):
    child = os.fork()
    if not child:
        os.read(reader, 1)
        os._exit(0)
with keys_held(database):
    print("held again while the child lives")
os.write(writer, b"x")
os.wait()
"""


@needs_posix
def test_a_child_that_was_forked_meanwhile_does_not_keep_the_lock(database: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOCK_IN_A_CHILD, str(database)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout == "held again while the child lives\n"


TWO_WITHOUT_A_LOCK = """
import contextlib, sys
from service_security.store import SecureDb, key_rotation, reencryption, schema

schema.BUSY_TIMEOUT_MS = 60_000  # whatever else the machine does

if sys.argv[2] == "without":
    key_rotation.keys_held = contextlib.nullcontext
reencryption.BATCH_RECORDS = 3
with SecureDb.open(sys.argv[1], bytes(range(32))) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(5):
        try:
            print(store.rotation().run().key_id, flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
"""


@pytest.mark.parametrize("lock", ["with", "without"])
def test_two_processes_that_rotate_at_once_do_no_harm(database: Path, lock: str) -> None:
    with SecureDb.open(database, MASTER) as store:
        store.insert_many((b"%d" % number, b"%d" % number) for number in range(60))
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", TWO_WITHOUT_A_LOCK, str(database), lock],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    lines = [line for each in said for line in each]
    if lock == "without":
        assert len(lines) == 10
        assert all(line.isdigit() for line in lines), lines
    else:
        refused = [line for line in lines if not line.isdigit()]
        assert all("changed by somebody else" in line for line in refused)
    after = found(database)
    assert [state for state in after.states.values() if state is not RE] == [A]
    assert after.rows == {after.primary_id: 60}
    with SecureDb.open(database, MASTER) as store:
        assert dict(store.items()) == {b"%d" % number: b"%d" % number for number in range(60)}
        assert store.verify().is_whole


def test_a_rotation_that_another_has_ended_meanwhile_says_what_is_there(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there is no lock: between two steps, somebody else does all the rest."""
    make(database, {1: Made(A)}, 1, ROWS)
    monkeypatch.setattr("service_security.store.key_rotation.keys_held", lambda _: ExitStack())
    with (
        SecureDb.open(database, MASTER, clock=Clock()) as store,
        SecureDb.open(database, MASTER, clock=Clock()) as other,
    ):

        def meanwhile(step: RotationStep) -> None:
            if step.step == "rotating":
                assert other.rotation().run().records == 8

        rotated = store.rotation().run(on_step=meanwhile)
        assert (rotated.key_id, rotated.old_key_id, rotated.records) == (3, 1, 0)
        assert not rotated.rolled_back
    assert found(database) == Found({1: RE, 3: A}, 3, {3: 8})


def test_a_failed_validation_that_is_killed_on_its_way_back_names_the_record(
    database: Path,
) -> None:
    rows = {b"a": SealedRow(3), b"b": SealedRow(3, whole=False), b"c": SealedRow(3)}
    make(database, {1: Made(A), 3: Made(RO)}, 3, rows)

    def stop(step: RotationStep) -> None:
        if step.step == "rolling back":
            raise KeyboardInterrupt

    with SecureDb.open(database, MASTER, clock=Clock()) as store:
        with pytest.raises(KeyboardInterrupt):
            store.rotation().run(on_step=stop)
        tended = store.rotation().tend()
        assert tended.rotated is not None
        assert tended.rotated.rolled_back
        assert [record.position for record in tended.rotated.damaged] == [2]
        assert store.rotation(clock=lambda: NOW + 2 * DAY).tend().kept == (3,)
        with pytest.raises(IntegrityError):
            store.get(b"b")
        store.remove(b"b")
        assert store.rotation(clock=lambda: NOW + 2 * DAY).tend().destroyed == (3,)
