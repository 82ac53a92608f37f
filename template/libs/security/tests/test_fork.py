"""A fork beside threads that open, close and read: the child inherits nothing, and may fork."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import apsw
import pytest

from conftest import MASTER
from service_security.store import SecureDb, store_file
from service_security.store.keys_lock import keys_held, keys_held_if_free
from service_security.store.schema import connect

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system"),
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]

BESIDE_SNAPSHOTS = """
import os, signal, sys, threading
import apsw
from service_security.store import SecureDb

store = SecureDb.open(sys.argv[1], bytes(range(32)))
store.insert_many((b"%d" % number, bytes(500)) for number in range(500))
stop = threading.Event()

def look():
    while not stop.is_set():
        with SecureDb.open(sys.argv[1], bytes(range(32))) as other:
            other.rotation().status()
        store.rotation().status()

threads = [threading.Thread(target=look) for _ in range(2)]
for thread in threads:
    thread.start()
ends = []
for _ in range(120):
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            store._file.connection.txn_state()
        except apsw.ConnectionClosedError:
            if not os.fork():
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
        os._exit(3)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in threads:
    thread.join()
print(set(ends), store.count())
"""


def test_a_child_of_a_process_that_takes_snapshots_inherits_nothing_and_forks(
    database: Path,
) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BESIDE_SNAPSHOTS, str(database)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("{0} 500\n", "")


def _end_of_child(check: Callable[[], object]) -> int:
    """Fork, and return how the child ends, which checks something and then forks as well."""
    child = os.fork()
    if not child:
        _be_child(check)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _be_child(check: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        signal.alarm(60)
        check()
        if not os.fork():
            os._exit(0)
        os.wait()
        code = 0
    finally:
        os._exit(code)


def test_a_store_that_is_closed_while_a_fork_waits_for_it_does_no_harm(database: Path) -> None:
    with SecureDb.open(database, MASTER) as store:
        store.insert(b"name", b"value")
        closed = 0
        for _ in range(5):
            snapshot, held = store.snapshot(), threading.Event()

            def close(snapshot: SecureDb = snapshot, held: threading.Event = held) -> None:
                with snapshot._file.lock:
                    held.set()
                    while not store_file._one_fork_at_a_time.locked():
                        time.sleep(0.0005)
                    time.sleep(0.01)  # less than a fork is patient
                    snapshot.close()

            thread = threading.Thread(target=close)
            thread.start()
            assert held.wait(60)
            assert _end_of_child(lambda: _refuse_open(store._file.connection)) == 0
            thread.join()
            closed += snapshot._file.closed
        assert closed == 5
        assert store.get(b"name") == b"value"


def test_a_store_that_is_opened_while_a_fork_waits_for_another_is_not_inherited(
    database: Path,
) -> None:
    with SecureDb.open(database, MASTER) as store:
        opened, held = list[SecureDb](), threading.Event()

        def open_another() -> None:
            with store._file.lock:
                held.set()
                while not store_file._one_fork_at_a_time.locked():
                    time.sleep(0.0005)
                time.sleep(0.005)  # the fork knows which files are open
                opened.append(store.snapshot())

        for _ in range(5):
            held.clear()
            thread = threading.Thread(target=open_another)
            thread.start()
            assert held.wait(60)
            assert _end_of_child(lambda: _refuse_open(opened[-1]._file.connection)) == 0
            thread.join()
        assert len(opened) == 5
        for snapshot in opened:
            snapshot.close()


def _refuse_open(connection: apsw.Connection) -> None:
    assert _is_closed(connection)


def _is_closed(connection: apsw.Connection) -> bool:
    with suppress(apsw.ConnectionClosedError):
        connection.txn_state()
        return False
    return True


@pytest.mark.parametrize("waits", [True, False])
def test_a_fork_waits_for_a_store_that_is_being_opened(
    database: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Or the child would have a connection that nobody closes."""
    made, is_connected, goes_on = list[apsw.Connection](), threading.Event(), threading.Event()
    stand_still = store_file._all_stand_still

    def slow(path: Path) -> apsw.Connection:
        made.append(connect(path))
        is_connected.set()
        assert goes_on.wait(60)
        return made[0]

    def noted() -> bool:
        if stand_still():
            return True
        goes_on.set()  # the fork has found that it has to wait
        return False

    SecureDb.open(database, MASTER).close()
    monkeypatch.setattr("service_security.store.secure_db.connect", slow)
    monkeypatch.setattr(store_file, "_all_stand_still", noted)
    if not waits:  # the control
        monkeypatch.setattr(store_file, "_busy", _Forgetful())
    opened: list[SecureDb] = []
    thread = threading.Thread(target=lambda: opened.append(SecureDb.open(database, MASTER)))
    thread.start()
    assert is_connected.wait(60)

    def check() -> None:
        assert _is_closed(made[0]) is waits

    try:
        assert _end_of_child(check) == 0
    finally:
        goes_on.set()
        thread.join()
    assert opened[0].insert(b"name", b"value")
    opened[0].close()


class _Forgetful(list[Any]):
    def append(self, _: object) -> None:
        pass

    def remove(self, _: object) -> None:
        pass


def test_an_error_in_the_child_does_not_make_the_next_fork_wait(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise apsw.IOError

    monkeypatch.setattr(store_file, "_abandon", fail)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with SecureDb.open(database, MASTER):
        assert _end_of_child(lambda: None) == 0


def test_threads_that_open_stores_in_transactions_do_not_wait_for_a_fork_for_ever(
    tmp_path: Path,
) -> None:
    """Who waits for the fork does not hold what the fork waits for."""
    stop, failures = threading.Event(), list[BaseException]()

    def use(database: Path) -> None:
        try:
            while not stop.is_set():
                with SecureDb.open(database, MASTER) as store, store.transaction():
                    store.insert(b"name", b"value")
                    with SecureDb.open(database, MASTER, read_only=True) as other:
                        other.get(b"name")
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [
        threading.Thread(target=use, args=(tmp_path / f"{number}.db",)) for number in range(3)
    ]
    for thread in threads:
        thread.start()
    try:
        ends = [_end_of_child(lambda: None) for _ in range(10)]
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert (set(ends), failures) == ({0}, [])


# The lock of the keys

KILLED_WITH_A_CHILD = """
import os, signal, sys, time
from pathlib import Path
from service_security.store import keys_lock

if sys.argv[2] == "kept":
    keys_lock._let_go_in_child.__code__ = (lambda: None).__code__
with keys_lock.keys_held(Path(sys.argv[1])):
    ready, told = os.pipe()
    if not os.fork():
        os.write(told, b"x")
        os.close(1)
        time.sleep(600)
    os.read(ready, 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("in_child", ["closed", "kept"])
def test_a_child_does_not_keep_the_lock_of_a_process_that_was_killed(
    database: Path, in_child: str
) -> None:
    database.touch()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WITH_A_CHILD, str(database), in_child],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.wait(120) == -signal.SIGKILL
        try:
            with keys_held_if_free(database) as held:
                assert held is (in_child == "closed")
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_child_that_leaves_the_block_does_not_take_the_lock_from_its_parent(
    database: Path,
) -> None:
    database.touch()
    inside, told = os.pipe()
    with keys_held(database):
        child = os.fork()
        if child:
            os.close(told)
            assert os.read(inside, 1) == b""
            with keys_held_if_free(database) as held:
                assert not held
    if not child:
        os._exit(0)  # it has left the block; its end of the pipe closes
    assert os.waitpid(child, 0)[1] == 0
    os.close(inside)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may chown")
def test_a_lock_that_root_has_made_or_left_belongs_to_the_owner_of_the_database(
    database: Path, tmp_path: Path
) -> None:
    lock = database.with_name("records.db.keys-lock")
    SecureDb.open(database, MASTER).close()
    os.chown(database, 12345, 23456)

    def owner_after_use() -> tuple[int, int]:
        with keys_held(database):
            status = lock.stat()
        return status.st_uid, status.st_gid

    assert owner_after_use() == (12345, 23456)
    os.chown(lock, 0, 0)
    assert owner_after_use() == (12345, 23456), "one that was left is mended"
    os.chown(lock, 0, 0)
    os.link(lock, tmp_path / "second name")
    assert owner_after_use() == (0, 0)
    (tmp_path / "second name").unlink()
    lock.write_bytes(b"something")
    assert owner_after_use() == (0, 0)
    lock.write_bytes(b"")
    os.chown(lock, 54321, 54321)
    assert owner_after_use() == (54321, 54321), "what is somebody's stays so"
