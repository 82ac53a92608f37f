"""No nonce twice under one key: not after kill -9, in a second process, a fork or a copy."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import apsw
import pytest

from conftest import MASTER, Opener
from service_security.errors import StoreUnavailableError
from service_security.store import SecureDb
from service_security.store.nonce import LEASE, CounterLease, check_lease, fresh_uuid

WRITER = """
import sys
from service_security.store import SecureDb, schema

schema.BUSY_TIMEOUT_MS = 60_000  # whatever else the machine does

with SecureDb.open(sys.argv[1], bytes(range(32))) as store:
    number = 0
    while True:
        number += 1
        name = b"%s/%d" % (sys.argv[2].encode(), number)
        store.insert(name, name)
        print(name.decode(), flush=True)
"""


def _rows(database: Path) -> list[tuple[bytes, bytes]]:
    """Return counter and uuid of every record on disk."""
    connection = apsw.Connection(str(database))
    sealed = [bytes(row[0]) for row in connection.execute("SELECT sealed FROM record")]
    connection.close()
    return [(record[:8], record[8:24]) for record in sealed]


def test_layout_is_counter_then_uuid(store: SecureDb, database: Path) -> None:
    store.insert(b"a", b"")
    store.insert_many([(b"b", b""), (b"c", b"")])
    (a, b, c) = _rows(database)
    assert [counter for counter, _ in (a, b, c)] == [bytes([0] * 7 + [n]) for n in (0, 1, 2)]
    assert b[1] == c[1]
    assert a[1] != b[1]


def test_uuids_are_fresh_for_every_call(store: SecureDb, database: Path) -> None:
    for number in range(200):
        store.insert(b"%d" % number, b"")
    rows = _rows(database)
    assert len({uuid for _, uuid in rows}) == len({counter for counter, _ in rows}) == 200


def test_a_lease_is_durable_before_its_first_counter_is_used(
    store: SecureDb, database: Path
) -> None:
    def next_free() -> object:
        connection = apsw.Connection(str(database))
        try:
            return connection.execute("SELECT next FROM lease").get
        finally:
            connection.close()

    assert next_free() == 0
    store.insert(b"name", b"value")
    assert next_free() == LEASE


def test_reopening_never_goes_back(open_store: Opener, database: Path) -> None:
    for number in range(5):
        with open_store() as store:
            store.insert(b"%d" % number, b"")
    counters = [int.from_bytes(counter) for counter, _ in _rows(database)]
    assert counters == [number * LEASE for number in range(5)]


def test_a_write_without_a_durable_lease_is_refused(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> int:
        raise StoreUnavailableError("no lease")

    monkeypatch.setattr(store._writer._counters, "_reserve", fail)
    with pytest.raises(StoreUnavailableError):
        store.insert(b"name", b"value")
    assert store.count() == 0


def test_a_failed_call_skips_its_counters(store: SecureDb, database: Path) -> None:
    store.insert(b"a", b"")
    store._file.connection.pragma("max_page_count", store._file.connection.pragma("page_count"))
    with pytest.raises(StoreUnavailableError):
        store.insert(b"large", bytes(1_000_000))
    store._file.connection.pragma("max_page_count", 1_000_000)
    store.insert(b"b", b"")
    assert [int.from_bytes(counter) for counter, _ in _rows(database)] == [0, 2]


@pytest.mark.parametrize("start", [-1, 2**63 - 2 * LEASE + 1, 2**63 - 1])
def test_the_end_of_the_counter_space_is_refused(start: int) -> None:
    with pytest.raises(StoreUnavailableError, match="counters left"):
        check_lease(start)
    check_lease(2**63 - 2 * LEASE)


def test_a_lease_that_was_rolled_to_its_end_refuses_writes(
    open_store: Opener, database: Path
) -> None:
    open_store().close()
    connection = apsw.Connection(str(database))
    connection.execute("UPDATE lease SET next = ?", (2**63 - LEASE,))
    connection.close()
    with pytest.raises(StoreUnavailableError, match="counters left"):
        open_store().insert(b"name", b"value")


def test_takes_of_any_size_are_disjoint() -> None:
    reserved = iter(range(0, 100 * LEASE, LEASE))
    lease = CounterLease(lambda _: next(reserved))
    taken: set[int] = set()
    for count in (1, 7, LEASE, 1, LEASE - 3, 5, LEASE):
        counters = range(lease.take(count), 0)
        start = counters.start
        assert taken.isdisjoint((start, start + count - 1))
        taken.update(range(start, start + count, max(1, count - 1)))


def test_a_uuid_is_sixteen_bytes_and_never_the_same() -> None:
    uuids = {fresh_uuid() for _ in range(1000)}
    assert len(uuids) == 1000
    assert {len(uuid) for uuid in uuids} == {16}


def test_a_uuid_holds_the_kernels_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 0)
    monkeypatch.setattr(os, "getpid", lambda: 0)
    monkeypatch.setattr(os, "urandom", lambda count: bytes(range(count)))
    assert fresh_uuid() == bytes(range(16))


def test_a_uuid_differs_by_time_and_process_where_randomness_repeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    clock = iter([1, 2, 2])
    monkeypatch.setattr("time.time_ns", lambda: next(clock))
    first, second = fresh_uuid(), fresh_uuid()
    monkeypatch.setattr(os, "getpid", lambda: 0)
    assert len({first, second, fresh_uuid()}) == 3


def _start_writer(database: Path, tag: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(database), tag], stdout=subprocess.PIPE, text=True
    )


def test_killed_writers_lose_nothing_acknowledged_and_repeat_no_nonce(database: Path) -> None:
    """Ten rounds of two processes on one file, killed while they write."""
    SecureDb.open(database, MASTER).close()
    acknowledged: set[str] = set()
    for turn in range(10):
        writers = [_start_writer(database, f"{turn}.{number}") for number in range(2)]
        for writer in writers:
            assert writer.stdout is not None
            acknowledged.update(writer.stdout.readline().strip() for _ in range(1 + turn % 4))
        for writer in writers:
            writer.kill()
        for writer in writers:
            rest, _ = writer.communicate()
            acknowledged.update(line for line in rest.split("\n")[:-1] if line)
            assert writer.returncode == -signal.SIGKILL
    with SecureDb.open(database, MASTER) as store:
        records = dict(store.items())
    assert len(acknowledged) >= 2 * (1 + 2 + 3 + 4 + 1 + 2 + 3 + 4 + 1 + 2)
    assert acknowledged <= {name.decode() for name in records}
    assert all(name == value for name, value in records.items())
    assert max(Counter(_rows(database)).values()) == 1


def test_a_restored_copy_that_is_written_beside_the_original_repeats_no_nonce(
    open_store: Opener, database: Path, tmp_path: Path
) -> None:
    """Both go on from one lease; the counters repeat, and the uuids keep the nonces apart."""
    copy = tmp_path / "copy.db"
    with open_store() as store:
        store.insert(b"before", b"")
    shutil.copy(database, copy)
    for path in (database, copy):
        with open_store(path) as store:
            for number in range(20):
                store.insert(b"%d" % number, b"")
    original, restored = set(_rows(database)[1:]), set(_rows(copy)[1:])
    assert len(original) == len(restored) == 20
    assert {counter for counter, _ in original} == {counter for counter, _ in restored}
    assert original.isdisjoint(restored)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_cannot_use_the_parents_store(store: SecureDb, database: Path) -> None:
    store.insert(b"name", b"value")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answers = []
        for call in (
            store.check,
            lambda: store.insert(b"child", b""),
            lambda: store.get(b"name"),
            lambda: store.remove(b"name"),
            lambda: list(store.items()),
            store.flush,
        ):
            try:
                call()
                answers.append("done")
            except StoreUnavailableError:
                answers.append("refused")
        store.close()
        with SecureDb.open(database, MASTER) as own:
            answers.append(str(own.get(b"name")))
        os.write(writer, " ".join(answers).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 200).decode() == "refused " * 6 + "b'value'"
    os.close(reader)
    os.close(writer)
    assert store.insert(b"parent", b"still works")
    assert store.get(b"name") == b"value"


FORKER = """
import os, subprocess, sys
from service_security.store import SecureDb

path, other = sys.argv[1:]
store = SecureDb.open(path, bytes(range(32)))
store.insert(b"parent", b"")
child = os.fork()
if child == 0:
    sys.stdin.readline()  # until the parent and the other process are gone
    sys.exit(0)
store.close()
subprocess.run([sys.executable, "-c", other, path])
os._exit(0)
"""
KILLED = """
import os, signal, sys
from service_security.store import SecureDb

store = SecureDb.open(sys.argv[1], bytes(range(32)))
for number in range(50):
    store.insert(b"%d" % number, b"")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_the_end_of_a_forked_child_leaves_the_log_of_others_alone(database: Path) -> None:
    """SQLite closes the inherited connection when the child ends, as if it were the last one."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKER, str(database), KILLED],
        stdin=subprocess.PIPE,
    )
    process.wait(timeout=120)  # the child lives on, holding the other end of the pipe
    log = database.with_name(database.name + "-wal")
    assert log.stat().st_size > 0
    process.communicate(b"\n")
    for _ in range(300):
        if not _is_open_anywhere(database):
            break
        time.sleep(0.01)
    with SecureDb.open(database, MASTER) as store:
        assert store.count() == 51


def _is_open_anywhere(database: Path) -> bool:
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if descriptor.readlink() == database:
                return True
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_fork_waits_for_calls_of_other_threads_and_the_child_does_not_hang(
    store: SecureDb,
) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            store.insert(b"name", b"value")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                with contextlib.suppress(StoreUnavailableError):
                    store.get(b"name")
                store.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


OUTLIVING = """
import os, sys
from service_security.store import SecureDb

path = sys.argv[1]
store = SecureDb.open(path, bytes(range(32)))
store.insert(b"parent", b"")
to_parent, to_child = os.pipe(), os.pipe()
if os.fork():
    os.read(to_parent[0], 1)  # the child has opened a store of its own
    store.close()
    os.write(to_child[1], b"x")
    os.wait()
else:
    own = SecureDb.open(path, bytes(range(32)))
    own.insert(b"child", b"")
    os.write(to_parent[1], b"x")
    os.read(to_child[0], 1)  # the parent has closed the file
    for number in range(50):
        own.insert(b"%d" % number, b"")
    with SecureDb.open(path, bytes(range(32))) as other:
        print(other.count(), flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_what_a_child_writes_outlives_the_parents_close(database: Path) -> None:
    """As in a server that opens the store, forks its workers, and ends before they do."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OUTLIVING, str(database)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout.strip() == "52"
    with SecureDb.open(database, MASTER) as store:
        assert store.count() == 52


FORK_BESIDE_TWO_STORES = """
import os, sys, threading
from service_security.store import SecureDb

first = SecureDb.open(sys.argv[1] + ".first", bytes(range(32)))
second = SecureDb.open(sys.argv[1] + ".second", bytes(range(32)))
stop, has_written = threading.Event(), threading.Event()

def write(outer, inner):
    while not stop.is_set():
        with outer.transaction():
            inner.insert(b"name", b"value")
        has_written.set()

threads = [threading.Thread(target=write, args=(first, second), daemon=True)]
for thread in threads:
    thread.start()
has_written.wait()
for _ in range(30):
    if not os.fork():
        os._exit(0)
    os.wait()
stop.set()
for thread in threads:
    thread.join()
print(first.verify().is_whole, second.count())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_does_not_wait_for_a_thread_that_waits_for_the_fork(database: Path) -> None:
    """The thread holds one store and wants the other; the fork wants both."""
    command = [sys.executable, "-W", "ignore", "-c", FORK_BESIDE_TWO_STORES, str(database)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.split() == ["True", "1"]
