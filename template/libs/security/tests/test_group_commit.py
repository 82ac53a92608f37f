"""Writers that share a transaction: what becomes of one is nobody else's business."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from conftest import Opener, until
from service_security.errors import StoreUnavailableError
from service_security.store import SecureDb
from service_security.store.group_commit import GroupCommit, Write


class Writers:
    """Threads that write at once, behind a leader that is held up inside its commit."""

    def __init__(self, store: SecureDb) -> None:
        self.store = store
        self.groups: list[list[bytes]] = []
        self.outcomes: dict[bytes, object] = {}
        self.hook: Callable[[Sequence[Write]], None] = lambda _: None
        self._threads: list[threading.Thread] = []
        self._go_on, self._is_held = threading.Event(), threading.Event()
        self._commit = store._writer._queue._commit
        store._writer._queue._commit = self._observed

    def _observed(self, group: Sequence[Write]) -> None:
        names = [write.pairs[0][0] if write.pairs else write.removed or b"" for write in group]
        self.groups.append(names)
        if names == [b"leader"]:
            self._is_held.set()
            assert self._go_on.wait(120)
        self.hook(group)
        self._commit(group)

    def start(self, name: bytes, call: Callable[[], object]) -> threading.Thread:
        """Run a call in a thread of its own, and note what it returns or raises."""

        def work() -> None:
            try:
                self.outcomes[name] = call()
            except BaseException as error:  # noqa: BLE001 - looked at by the test
                self.outcomes[name] = error

        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()
        return thread

    @contextmanager
    def behind_a_leader(self) -> Iterator[None]:
        """Hold a leader up while the block starts its followers; then let all of them finish."""
        self.start(b"leader", lambda: self.store.insert(b"leader", b""))
        assert self._is_held.wait(120)
        try:
            yield
        finally:
            self._go_on.set()
            for thread in self._threads:
                thread.join(120)
                assert not thread.is_alive()

    def follow(self, *names: bytes) -> None:
        """Start inserts, in this order."""
        for name in names:
            self.follow_with(name, partial(self.store.insert, name, name))

    def follow_with(self, name: bytes, call: Callable[[], object]) -> None:
        """Start a call, and return when it waits."""
        waiting = len(self.store._writer._queue._waiting)
        self.start(name, call)
        until(lambda: len(self.store._writer._queue._waiting) == waiting + 1)


@pytest.fixture
def writers(store: SecureDb) -> Writers:
    """Writers on the test's store."""
    return Writers(store)


def test_three_that_wait_share_one_transaction(writers: Writers) -> None:
    with writers.behind_a_leader():
        writers.follow(b"a", b"b", b"c")
    assert writers.groups == [[b"leader"], [b"a", b"b", b"c"]]
    assert writers.outcomes == dict.fromkeys((b"leader", b"a", b"b", b"c"), True)
    assert {name for name, _ in writers.store.items()} == {b"leader", b"a", b"b", b"c"}


def test_two_that_wait_take_turns(writers: Writers) -> None:
    with writers.behind_a_leader():
        writers.follow(b"a", b"b")
    assert writers.groups == [[b"leader"], [b"a"], [b"b"]]


def test_every_kind_of_write_can_share_and_has_its_own_result(writers: Writers) -> None:
    store = writers.store
    store.insert(b"old", b"1")
    store.insert(b"gone", b"1")
    with writers.behind_a_leader():
        writers.follow_with(b"old", lambda: store.insert(b"old", b"2"))
        writers.follow_with(b"new", lambda: store.insert(b"new", b"2"))
        writers.follow_with(b"gone", lambda: store.remove(b"gone"))
        writers.follow_with(b"never", lambda: store.remove(b"never"))
        writers.follow_with(b"many", lambda: store.insert_many([(b"x", b"2"), (b"y", b"2")]))
        writers.follow_with(b"again", lambda: store.insert(b"x", b"3"))
    assert len(writers.groups[-1]) == 6
    del writers.outcomes[b"leader"]
    assert writers.outcomes == {
        b"old": False,
        b"new": True,
        b"gone": True,
        b"never": False,
        b"many": None,
        b"again": False,
    }
    expected = {b"old": b"2", b"new": b"2", b"x": b"3", b"y": b"2", b"leader": b""}
    assert dict(store.items()) == expected


def test_records_of_one_group_share_a_uuid_and_no_counter(writers: Writers) -> None:
    with writers.behind_a_leader():
        writers.follow(b"a", b"b", b"c")
    sql = "SELECT sealed FROM record ORDER BY id DESC LIMIT 3"
    sealed = [bytes(row[0]) for row in writers.store._file.connection.execute(sql)]
    assert len({record[8:24] for record in sealed}) == 1
    assert len({record[:8] for record in sealed}) == 3


def test_a_group_of_writers_with_an_old_keyset_seals_again(
    writers: Writers, open_store: Opener
) -> None:
    other = open_store()
    with writers.behind_a_leader():
        writers.follow(b"a", b"b", b"c")
        keyset = other._keys.record._keyset
        keyset.generation += 1
        header = other._keys.header.seal(keyset)
        other._file.connection.execute(
            "UPDATE header SET keyset_generation = ?, keyset = ?, mac = ?",
            (header.keyset_generation, header.keyset, header.mac),
        )
    assert writers.outcomes[b"c"] is True
    assert writers.store._keys.record.generation == 2
    assert other.get(b"c") == b"c"


def _fail_for(name: bytes, error: BaseException) -> Callable[[Sequence[Write]], None]:
    def hook(group: Sequence[Write]) -> None:
        if any(pair[0] == name for write in group for pair in write.pairs):
            raise error

    return hook


def test_one_bad_write_fails_alone(writers: Writers) -> None:
    writers.hook = _fail_for(b"bad", apsw.TooBigError("string or blob too big"))
    with writers.behind_a_leader():
        writers.follow(b"a", b"bad", b"c")
    assert writers.groups[1:] == [[b"a", b"bad", b"c"], [b"a"], [b"bad"], [b"c"]]
    assert isinstance(writers.outcomes[b"bad"], StoreUnavailableError)
    assert writers.outcomes[b"a"] is writers.outcomes[b"c"] is True
    assert {name for name, _ in writers.store.items()} == {b"leader", b"a", b"c"}


def test_a_bad_write_of_the_leader_fails_alone(writers: Writers) -> None:
    writers.hook = _fail_for(b"bad", apsw.TooBigError("string or blob too big"))
    with writers.behind_a_leader():
        writers.follow(b"bad", b"b", b"c")
    assert isinstance(writers.outcomes[b"bad"], StoreUnavailableError)
    assert writers.outcomes[b"b"] is writers.outcomes[b"c"] is True


def test_an_error_in_the_middle_of_a_group_leaves_nothing_of_it_behind(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is undone as a whole before its writes are tried alone."""
    store, seen = writers.store, []
    execute = store._writer._execute

    def fails_once(write: Write, rows: Any) -> bool:
        seen.append(write.pairs[0][0])
        if seen == [b"leader", b"a", b"b"]:
            raise apsw.FullError("database or disk is full")
        return execute(write, rows)

    monkeypatch.setattr(store._writer, "_execute", fails_once)
    with writers.behind_a_leader():
        writers.follow(b"a", b"b", b"c")
    assert seen == [b"leader", b"a", b"b", b"a", b"b", b"c"]
    assert set(writers.outcomes.values()) == {True}


def test_a_device_error_of_the_leader_is_never_a_success_of_its_followers(
    writers: Writers, monkeypatch: pytest.MonkeyPatch, open_store: Opener, database: Path
) -> None:
    def fail() -> None:
        raise apsw.IOError("fsync failed")

    writers.store.insert(b"leased", b"")
    with writers.behind_a_leader():
        writers.follow(b"a", b"b", b"c")
        monkeypatch.setattr(writers.store._file, "commit", fail)
    for name in (b"a", b"b", b"c"):
        outcome = writers.outcomes[name]
        assert isinstance(outcome, StoreUnavailableError)
        assert "failed on the device" in str(outcome)
    writers.store.close()
    assert {name for name, _ in open_store(database).items()} == {b"leased", b"leader"}


def test_a_busy_file_is_waited_for_once_and_not_by_one_behind_the_other(
    writers: Writers, database: Path
) -> None:
    writers.store.insert(b"leased", b"")
    writers.groups.clear()
    other = apsw.Connection(str(database))
    with writers.behind_a_leader():
        writers.follow(b"a", b"b", b"c")

        def lock_before_the_group(group: Sequence[Write]) -> None:
            if len(group) == 3:
                writers.store._file.connection.set_busy_timeout(10)
                other.execute("BEGIN IMMEDIATE")

        writers.hook = lock_before_the_group
    other.close()
    assert [len(group) for group in writers.groups] == [1, 3]
    for name in (b"a", b"b", b"c"):
        assert "in use by another process" in str(writers.outcomes[name])


def test_a_write_inside_a_write_of_the_same_thread_is_refused(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a signal handler, which would wait for itself."""
    refused = []
    execute = store._writer._execute

    def interrupted(write: Write, rows: Any) -> bool:
        with pytest.raises(RuntimeError, match="inside another one"):
            store.insert(b"inner", b"")
        refused.append(True)
        return execute(write, rows)

    monkeypatch.setattr(store._writer, "_execute", interrupted)
    assert store.insert(b"outer", b"")
    assert refused
    monkeypatch.undo()
    assert store.insert(b"later", b"")


class Interrupted(BaseException):
    """As KeyboardInterrupt, which only the main thread gets."""


def test_an_interrupted_leader_hands_its_followers_on(writers: Writers) -> None:
    def hook(group: Sequence[Write]) -> None:
        if len(group) == 3:
            writers.hook = lambda _: None
            raise Interrupted

    writers.hook = hook
    with writers.behind_a_leader():
        writers.follow(b"a", b"b", b"c")
    assert isinstance(writers.outcomes[b"a"], Interrupted)
    assert writers.outcomes[b"b"] is writers.outcomes[b"c"] is True
    assert {name for name, _ in writers.store.items()} == {b"leader", b"b", b"c"}


def test_an_interrupt_right_behind_the_commit_does_not_write_the_others_again(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = writers.store._file.commit
    writers.store.insert(b"leased", b"")
    writers.groups.clear()

    def interrupted() -> None:
        commit()
        raise Interrupted

    with writers.behind_a_leader():
        writers.follow(b"a", b"b", b"c")
        monkeypatch.setattr(writers.store._file, "commit", interrupted)
    assert len(writers.groups) == 2
    assert isinstance(writers.outcomes[b"a"], Interrupted)
    assert writers.outcomes[b"b"] is writers.outcomes[b"c"] is True
    assert writers.store.count() == 5


class InterruptedSleep(Write):
    """A write whose writer is interrupted while it waits."""

    def __init__(self, name: bytes, when: Callable[["InterruptedSleep"], bool]) -> None:
        super().__init__([(name, name)])
        self._when = when

    def sleep(self) -> None:
        """Wait for the moment, then be interrupted."""
        until(lambda: self._when(self))
        raise Interrupted


def test_a_follower_that_stops_waiting_is_not_written(writers: Writers) -> None:
    queue = writers.store._writer._queue
    cancel = threading.Event()
    write = InterruptedSleep(b"b", lambda _: cancel.is_set())
    with writers.behind_a_leader():
        writers.follow(b"a")
        writers.follow_with(b"b", lambda: queue.submit(write))
        writers.follow(b"c", b"d")
        cancel.set()
        until(lambda: b"b" in writers.outcomes)
    assert isinstance(writers.outcomes[b"b"], Interrupted)
    assert writers.groups == [[b"leader"], [b"a", b"c", b"d"]]
    assert writers.store.get(b"b") is None


def test_a_follower_that_stops_waiting_as_it_is_to_lead_passes_the_lead_on(
    writers: Writers,
) -> None:
    queue = writers.store._writer._queue
    write = InterruptedSleep(b"a", lambda own: queue._leader is own)
    with writers.behind_a_leader():
        writers.follow_with(b"a", lambda: queue.submit(write))
        writers.follow(b"b", b"c")
    assert isinstance(writers.outcomes[b"a"], Interrupted)
    assert writers.outcomes[b"b"] is writers.outcomes[b"c"] is True
    assert queue._leader is None
    assert not queue._waiting


def test_a_follower_that_stops_waiting_while_it_is_committed_disturbs_nobody(
    writers: Writers,
) -> None:
    queue = writers.store._writer._queue
    write = InterruptedSleep(b"b", lambda own: own not in queue._waiting)
    writers.hook = lambda group: until(lambda: len(group) == 1 or b"b" in writers.outcomes)
    with writers.behind_a_leader():
        writers.follow(b"a")
        writers.follow_with(b"b", lambda: queue.submit(write))
        writers.follow(b"c")
    assert writers.groups == [[b"leader"], [b"a", b"b", b"c"]]
    assert isinstance(writers.outcomes[b"b"], Interrupted)
    assert writers.outcomes[b"a"] is writers.outcomes[b"c"] is True
    assert writers.store.get(b"b") == b"b"  # as a call may be that nobody knows the end of


def test_a_follower_that_left_is_not_put_back_by_an_interrupted_leader(writers: Writers) -> None:
    """It would be handed the lead, with nobody there to take it."""
    queue = writers.store._writer._queue
    write = InterruptedSleep(b"b", lambda own: own not in queue._waiting)

    def hook(group: Sequence[Write]) -> None:
        if len(group) == 3:
            until(lambda: b"b" in writers.outcomes)
            raise Interrupted

    writers.hook = hook
    with writers.behind_a_leader():
        writers.follow(b"a")
        writers.follow_with(b"b", lambda: queue.submit(write))
        writers.follow(b"c")
    assert writers.outcomes[b"c"] is True
    assert writers.groups == [[b"leader"], [b"a", b"b", b"c"], [b"c"]]
    assert writers.store.insert(b"later", b"")


def test_a_group_is_bounded_in_bytes_and_records(writers: Writers) -> None:
    large = bytes(3 * 1024 * 1024)
    store = writers.store
    with writers.behind_a_leader():
        for name in (b"a", b"b", b"c"):
            writers.follow_with(name, partial(store.insert, name, large))
        many = [(b"%d" % number, b"") for number in range(2**16)]
        writers.follow_with(b"0", lambda: store.insert_many(many))
        writers.follow(b"d", b"e")
    assert [len(group) for group in writers.groups] == [1, 1, 1, 1, 1, 1, 1]
    assert store.count() == 2**16 + 6


def test_a_transaction_of_one_thread_keeps_the_others_waiting(writers: Writers) -> None:
    store = writers.store
    with store.transaction():
        store.insert(b"inside", b"1")
        threads = [
            writers.start(name, partial(store.insert, name, b"2"))
            for name in (b"inside", b"b", b"c", b"d")
        ]
        until(lambda: len(store._writer._queue._waiting) == 3)
        assert store.get(b"inside") == b"1"
        store.remove(b"inside")
    for thread in threads:
        thread.join(120)
    assert writers.outcomes == {b"inside": True, b"b": True, b"c": True, b"d": True}


def test_a_store_that_is_closed_meanwhile_refuses_those_who_wait(writers: Writers) -> None:
    def close_before_the_group(group: Sequence[Write]) -> None:
        if len(group) == 3:
            writers.store.close()

    writers.hook = close_before_the_group
    with writers.behind_a_leader():
        writers.follow(b"a", b"b", b"c")
    for name in (b"a", b"b", b"c"):
        assert isinstance(writers.outcomes[name], StoreUnavailableError)
        assert "closed" in str(writers.outcomes[name])


def test_many_threads_at_once_are_all_served(store: SecureDb) -> None:
    expected: dict[bytes, bytes] = {}
    threads = []
    for number in range(16):
        names = [b"%d/%d" % (number, turn) for turn in range(40)]
        expected |= dict.fromkeys(names, b"value")

        def work(names: list[bytes] = names) -> None:
            for name in names:
                assert store.insert(name, b"value")
                assert store.get(name) == b"value"

        threads.append(threading.Thread(target=work))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(store.items()) == expected


def test_control_a_queue_that_commits_nothing_is_noticed(store: SecureDb) -> None:
    """The tests above would not pass if writes were acknowledged and not written."""

    def forget(group: Sequence[Write]) -> None:
        for write in group:
            write.done = True

    store._writer._queue = GroupCommit(store._file, forget)
    store.insert(b"name", b"value")
    assert store.get(b"name") is None
