"""Transactions of the encrypted store: what the contract of every backend does not say."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from conftest import Opener
from service_security.errors import StoreUnavailableError
from service_security.store import SecureDb, writer
from service_security.store.nonce import LEASE


def _counters(store: SecureDb) -> list[int]:
    rows = store._file.connection.execute("SELECT sealed FROM record ORDER BY id")
    return [int.from_bytes(bytes(row[0])[:8]) for row in rows]


def test_no_lease_is_taken_inside_a_transaction(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be undone with the transaction, and its counters be used again."""
    reserved = []
    reserve = store._writer._counters._reserve

    def observed(count: int) -> int:
        reserved.append(store._file.connection.in_transaction)
        return reserve(count)

    monkeypatch.setattr(store._writer._counters, "_reserve", observed)
    with suppress(ZeroDivisionError), store.transaction():
        store.insert_many((b"%d" % number, b"") for number in range(5000))
        raise ZeroDivisionError
    store.insert(b"after", b"")
    assert reserved == [False]
    assert _counters(store) == [5000]


def test_a_transaction_begins_with_enough_counters_for_all_it_may_store(store: SecureDb) -> None:
    store.insert(b"a", b"")
    store._writer._counters.take(LEASE - writer.TRANSACTION_RECORDS)
    with store.transaction():
        store.insert(b"b", b"")
    assert _counters(store) == [0, LEASE]


def test_a_transaction_that_stores_too_much_is_refused_and_undone(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "TRANSACTION_RECORDS", 10)
    store._writer._counters.take(LEASE - 10)

    def store_too_much() -> None:
        with store.transaction():
            for number in range(11):
                store.insert(b"%d" % number, b"")

    with pytest.raises(ValueError, match="at most 10 records a transaction"):
        store_too_much()
    assert store.count() == 0
    store.insert(b"after", b"")


def test_every_call_in_a_transaction_draws_a_uuid_of_its_own(store: SecureDb) -> None:
    with store.transaction():
        for name in (b"a", b"b", b"a"):
            store.insert(name, b"")
    rows = store._file.connection.execute("SELECT sealed FROM record")
    assert len({bytes(row[0])[8:24] for row in rows}) == 2
    assert _counters(store) == [2, 1]


def test_a_transaction_uses_the_keyset_that_is_current_when_it_begins(open_store: Opener) -> None:
    stale, other = open_store(), open_store()
    stale.insert(b"one", b"1")
    keyset = other._keys.record._keyset
    keyset.generation += 1
    header = other._keys.header.seal(keyset)
    other._file.connection.execute(
        "UPDATE header SET keyset_generation = ?, keyset = ?, mac = ?",
        (header.keyset_generation, header.keyset, header.mac),
    )
    with stale.transaction():
        assert stale._keys.record.generation == 2
        stale.insert(b"two", b"2")
    assert other.get(b"two") == b"2"


def test_after_a_failed_statement_nothing_of_a_transaction_is_written(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite may have undone it by then, and what follows would be written by itself."""
    execute = store._writer._execute

    def fails(*_: object) -> bool:
        store._file.connection.execute("ROLLBACK")  # as SQLite does after some errors
        raise apsw.FullError("database or disk is full")

    def catch_and_go_on() -> None:
        with store.transaction():
            store.insert(b"before", b"")
            with monkeypatch.context() as patch:
                patch.setattr(store._writer, "_execute", fails)
                with pytest.raises(StoreUnavailableError, match="full"):
                    store.insert(b"too large", b"")
            assert store._writer._execute == execute
            for call in (
                lambda: store.insert(b"behind", b""),
                lambda: store.insert_many([(b"behind", b"")]),
                lambda: store.remove(b"before"),
            ):
                with pytest.raises(StoreUnavailableError, match="Begin a new one"):
                    call()

    with pytest.raises(StoreUnavailableError, match="nothing of it was written"):
        catch_and_go_on()
    assert store.count() == 0
    with store.transaction():
        store.insert(b"new", b"")
    assert store.count() == 1


def test_a_commit_that_fails_on_the_device_refuses_all_writes_from_then_on(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.insert(b"kept", b"")

    class Failing:
        """The connection, but for its commit."""

        in_transaction, system_errno = True, 5

        def execute(self, sql: str) -> None:
            if sql == "COMMIT":
                raise apsw.IOError("fsync failed")

    def commit_to_a_failing_device() -> None:
        with store.transaction():
            store.insert(b"lost", b"")
            connection = store._file.connection
            monkeypatch.setattr(store._file, "connection", Failing())
            connection.execute("ROLLBACK")

    with monkeypatch.context(), pytest.raises(StoreUnavailableError, match="Input/output error"):
        commit_to_a_failing_device()
    with pytest.raises(StoreUnavailableError, match="failed on the device"):
        store.insert(b"after", b"")
    with pytest.raises(StoreUnavailableError, match="failed on the device"), store.transaction():
        raise AssertionError


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_in_a_transaction_has_no_part_in_it(
    store: SecureDb, database: Path, open_store: Opener
) -> None:
    with store.transaction():
        store.insert(b"parent", b"")
        child = os.fork()
        if child == 0:
            refused = 0
            for call in (lambda: store.insert(b"child", b""), lambda: store.get(b"parent")):
                try:
                    call()
                except StoreUnavailableError:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        store.insert(b"still", b"")
    assert {name for name, _ in open_store(database).items()} == {b"parent", b"still"}


FORK_IN_A_LARGE_TRANSACTION = """
import os, sys
from service_security.store import SecureDb

with SecureDb.open(sys.argv[1], bytes(range(32))) as store:
    with store.transaction():
        for number in range(8000):
            store.insert(b"%d" % number, bytes(1000))
        if not os.fork():
            sys.exit(0)
        os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_child_that_ends_in_a_large_transaction_leaves_it_whole(
    database: Path, open_store: Opener
) -> None:
    """Larger than SQLite's cache, so that pages of it are in the log that both processes share."""
    command = [sys.executable, "-W", "ignore", "-c", FORK_IN_A_LARGE_TRANSACTION, str(database)]
    subprocess.run(command, check=True, timeout=120)
    found = open_store(database).verify()
    assert found.is_whole
    assert found.records == 8000


LEFT_BY_ANOTHER_THREAD = """
import os, sys, threading
from service_security.store import SecureDb

store = SecureDb.open(sys.argv[1], bytes(range(32)))
transaction = store.transaction()

def begin():
    transaction.__enter__()
    store.insert(b"a", b"")

thread = threading.Thread(target=begin)
thread.start()
thread.join()
try:
    transaction.__exit__(None, None, None)
except RuntimeError:
    os._exit(7)
"""


def test_a_transaction_that_another_thread_leaves_is_refused_and_not_written(
    database: Path, open_store: Opener
) -> None:
    """As of a generator that goes on in another thread. The store stays locked in that process."""
    command = [sys.executable, "-c", LEFT_BY_ANOTHER_THREAD, str(database)]
    assert subprocess.run(command, check=False, timeout=120).returncode == 7
    assert open_store(database).count() == 0


def test_nothing_that_ends_a_transaction_can_be_a_part_of_it(store: SecureDb) -> None:
    with store.transaction():
        store.insert(b"a", b"")
        with pytest.raises(RuntimeError, match="part of a transaction"):
            store.flush()
    assert store.count() == 1


@pytest.mark.parametrize("left_open", ["BEGIN IMMEDIATE", "BEGIN"])
def test_what_an_interrupt_left_open_swallows_no_later_write(
    store: SecureDb, open_store: Opener, database: Path, left_open: str
) -> None:
    other = open_store(database)
    for write in (
        lambda: store.insert(b"a", b""),
        lambda: store.insert_many([(b"a", b""), (b"b", b"")]),
        lambda: store.remove(b"a"),
    ):
        store._file.connection.execute(left_open)
        write()
        assert not store._file.connection.in_transaction
    store._file.connection.execute(left_open)
    with store.transaction():
        store.insert(b"c", b"")
    assert {name for name, _ in other.items()} == {b"b", b"c"}


def test_an_interrupt_while_a_batch_waits_for_another_process_leaves_nothing_open(
    store: SecureDb, database: Path
) -> None:
    writer = apsw.Connection(str(database))
    store.insert(b"leased", b"")
    writer.execute("BEGIN IMMEDIATE")

    def interrupt(_: int) -> bool:
        raise KeyboardInterrupt

    store._file.connection.set_busy_handler(interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.insert_many([(b"a", b""), (b"b", b"")])
    assert not store._file.connection.in_transaction
    writer.close()
    store._file.connection.set_busy_handler(None)
    assert store.insert(b"a", b"")
