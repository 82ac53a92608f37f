"""What every storage backend owes, whatever it is built on.

A backend is a function in ``BACKENDS`` that opens a file, or makes it. The plain one is what the
benchmarks compare the store with: here it shows that nothing in the suite is about encryption.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from benchmarks.plain_twin import PlainDb
from conftest import CIPHERS, MASTER
from service_security.errors import StoreUnavailableError
from service_security.store import SecureDb


class Store(Protocol):
    """The interface, as ``SecureDb`` documents it."""

    def insert(self, name: bytes, value: bytes) -> bool: ...
    def insert_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> None: ...
    def get(self, name: bytes) -> bytes | None: ...
    def remove(self, name: bytes) -> bool: ...
    def transaction(self) -> AbstractContextManager[None]: ...
    def page(self, after: int, limit: int) -> list[tuple[int, bytes, bytes]]: ...
    def items(self) -> Iterator[tuple[bytes, bytes]]: ...
    def count(self) -> int: ...
    def check(self) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


Opener = Callable[[], Store]

BACKENDS: dict[str, Callable[[Path], Store]] = {"plain": PlainDb.open} | {
    cipher: partial(SecureDb.open, master_key=MASTER, cipher=cipher) for cipher in CIPHERS
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Callable[[Path], Store]:
    """Each backend in turn."""
    return BACKENDS[request.param]


@pytest.fixture
def open_store(database: Path, backend: Callable[[Path], Store]) -> Iterator[Opener]:
    """Open the test's database, and close whatever was opened."""
    with ExitStack() as stack:

        def opener() -> Store:
            store = backend(database)
            stack.callback(store.close)
            return store

        yield opener


@pytest.fixture
def store(open_store: Opener) -> Store:
    """A new, empty store."""
    return open_store()


EDGES = [b"", b"\0", b"a", b"\xff" * 300, "Zürich/\N{ROCKET}".encode(), b"x" * 65_535]


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.get(b"name") is None
    assert not store.remove(b"name")
    assert list(store.items()) == []
    assert store.count() == 0


@pytest.mark.parametrize("name", EDGES, ids=lambda name: f"{len(name)} bytes")
@pytest.mark.parametrize("value", [b"", b"\0", bytes(100_000)], ids=lambda v: f"{len(v)} bytes")
def test_any_bytes_come_back(store: Store, name: bytes, value: bytes) -> None:
    store.insert(name, value)
    assert store.get(name) == value
    assert list(store.items()) == [(name, value)]


def test_insert_tells_new_names_from_replaced_ones(store: Store) -> None:
    assert store.insert(b"name", b"one") is True
    assert store.insert(b"name", b"two") is False
    assert store.get(b"name") == b"two"
    assert store.count() == 1


def test_remove_tells_whether_the_name_was_there(store: Store) -> None:
    store.insert(b"name", b"value")
    assert store.remove(b"name") is True
    assert store.remove(b"name") is False
    assert store.get(b"name") is None


def test_a_batch_is_stored_and_the_last_of_equal_names_counts(store: Store) -> None:
    store.insert_many([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    assert dict(store.items()) == {b"a": b"3", b"b": b"2"}
    store.insert_many([])


def test_a_batch_with_one_bad_pair_stores_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="at most 65535 bytes"):
        store.insert_many([(b"a", b"1"), (b"x" * 65_536, b"2")])
    assert store.count() == 0


def test_a_batch_may_come_from_a_generator_that_reads_the_store(store: Store) -> None:
    store.insert(b"a", b"1")
    store.insert_many((name + b"2", value) for name, value in store.items())
    assert dict(store.items()) == {b"a": b"1", b"a2": b"1"}


def test_a_generator_that_fails_stores_nothing(store: Store) -> None:
    def pairs() -> "list[tuple[bytes, bytes]]":
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError):
        store.insert_many(pair for pair in pairs())
    assert store.count() == 0


@pytest.mark.parametrize("bad", ["text", bytearray(b"x"), None, 1])
def test_only_bytes_are_taken(store: Store, bad: bytes) -> None:
    for name, value in ((bad, b""), (b"", bad)):
        with pytest.raises(TypeError):
            store.insert(name, value)
    assert store.count() == 0


def test_records_outlive_the_object(open_store: Opener) -> None:
    store = open_store()
    store.insert(b"name", b"value")
    store.close()
    assert open_store().get(b"name") == b"value"


def test_records_are_seen_by_another_object_at_once(open_store: Opener) -> None:
    writer, reader = open_store(), open_store()
    writer.insert(b"name", b"value")
    assert reader.get(b"name") == b"value"
    reader.remove(b"name")
    assert writer.get(b"name") is None


def test_pages_hold_every_record_once_in_a_stable_order(store: Store) -> None:
    records = {b"%d" % number: b"value %d" % number for number in range(50)}
    store.insert_many(records.items())
    found, position = [], 0
    while page := store.page(position, 7):
        assert len(page) <= 7
        position = page[-1][0]
        found += [(name, value) for _, name, value in page]
    assert found == list(store.items())
    assert dict(found) == records
    assert len(found) == 50


def test_a_replaced_record_keeps_its_position(store: Store) -> None:
    store.insert_many((b"%d" % number, b"old") for number in range(10))
    before = [name for name, _ in store.items()]
    store.insert(b"3", b"new")
    assert [name for name, _ in store.items()] == before


def test_iteration_goes_on_while_records_come_and_go(store: Store) -> None:
    store.insert_many((b"%d" % number, b"") for number in range(600))
    seen = set()
    for name, _ in store.items():
        seen.add(name)
        store.remove(name)
        store.insert(b"again " + name, b"") if len(seen) < 300 else None
    assert {b"%d" % number for number in range(600)} <= seen


def test_a_closed_store_refuses_everything(store: Store) -> None:
    store.close()
    store.close()
    for call in (
        lambda: store.get(b""),
        lambda: store.insert(b"", b""),
        lambda: store.remove(b""),
        lambda: list(store.items()),
        store.flush,
        store.check,
        store.count,
    ):
        with pytest.raises(StoreUnavailableError, match="closed"):
            call()


def test_threads_share_one_store(store: Store) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                name = b"%d/%d" % (number, turn)
                store.insert(name, name)
                assert store.get(name) == name
                if turn % 3 == 0:
                    store.remove(name)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = {b"%d/%d" % (n, t) for n in range(8) for t in range(30) if t % 3}
    assert {name for name, _ in store.items()} == expected


# Transactions


def test_a_transaction_is_seen_as_a_whole_or_not_at_all(open_store: Opener) -> None:
    store, other = open_store(), open_store()
    store.insert(b"gone", b"1")
    with store.transaction():
        store.insert(b"a", b"1")
        store.insert_many([(b"b", b"2"), (b"c", b"3")])
        store.remove(b"gone")
        assert dict(other.items()) == {b"gone": b"1"}
    assert dict(other.items()) == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_a_transaction_sees_what_it_has_written(store: Store) -> None:
    store.insert(b"gone", b"1")
    with store.transaction():
        assert store.insert(b"a", b"1") is True
        assert store.insert(b"a", b"2") is False
        assert store.remove(b"gone") is True
        assert store.get(b"a") == b"2"
        assert store.get(b"gone") is None
        assert dict(store.items()) == {b"a": b"2"}
        assert store.count() == 1


def test_an_exception_undoes_the_whole_transaction_and_passes_unchanged(store: Store) -> None:
    store.insert(b"kept", b"1")
    error = OSError(28, "of the caller, not of the store")

    def fail_after_writing() -> None:
        with store.transaction():
            store.insert(b"a", b"1")
            store.insert_many([(b"kept", b"2"), (b"c", b"3")])
            store.remove(b"kept")
            raise error

    with pytest.raises(OSError, match="of the caller") as raised:
        fail_after_writing()
    assert raised.value is error
    assert dict(store.items()) == {b"kept": b"1"}
    assert store.insert(b"a", b"1") is True


def test_an_empty_transaction_changes_nothing(store: Store) -> None:
    with store.transaction():
        pass
    assert store.count() == 0


def test_a_bad_argument_in_a_transaction_may_be_caught(store: Store) -> None:
    with store.transaction():
        store.insert(b"a", b"1")
        with pytest.raises(ValueError, match="at most"):
            store.insert(b"x" * 65_536, b"")
        store.insert(b"b", b"2")
    assert dict(store.items()) == {b"a": b"1", b"b": b"2"}


def test_a_transaction_cannot_begin_in_another_one(store: Store) -> None:
    with store.transaction():
        store.insert(b"a", b"1")
        with pytest.raises(RuntimeError, match="another"), store.transaction():
            raise AssertionError
        store.insert(b"b", b"2")
    assert dict(store.items()) == {b"a": b"1", b"b": b"2"}
    with store.transaction():
        store.remove(b"a")
    assert store.count() == 1


def test_a_store_that_is_closed_in_a_transaction_wrote_nothing_of_it(open_store: Opener) -> None:
    store = open_store()

    def close_after_writing() -> None:
        with store.transaction():
            store.insert(b"a", b"1")
            store.close()

    with pytest.raises(StoreUnavailableError):
        close_after_writing()
    assert open_store().count() == 0


def test_a_closed_store_begins_no_transaction(store: Store) -> None:
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"), store.transaction():
        raise AssertionError


def _count_up(stores: list[Store], increment: Callable[[Store], None]) -> int:
    """Let a thread for each store count up by 25, and return what they came to."""
    stores[0].insert(b"number", b"0")

    def count(store: Store) -> None:
        for _ in range(25):
            increment(store)

    threads = [threading.Thread(target=count, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return int(stores[0].get(b"number") or b"0")


def _increment(store: Store) -> None:
    store.insert(b"number", b"%d" % (int(store.get(b"number") or b"0") + 1))


def _increment_in_a_transaction(store: Store) -> None:
    with store.transaction():
        _increment(store)


def test_reading_and_writing_in_a_transaction_loses_no_update(open_store: Opener) -> None:
    """Neither of threads that share an object, nor of objects that share a file."""
    shared = open_store()
    stores = [shared, shared, shared, open_store(), open_store()]
    assert _count_up(stores, _increment_in_a_transaction) == 125


def test_control_without_a_transaction_updates_are_lost(open_store: Opener) -> None:
    barrier = threading.Barrier(2, timeout=10)

    def slow_increment(store: Store) -> None:
        number = int(store.get(b"number") or b"0")
        with suppress(threading.BrokenBarrierError):
            barrier.wait()
        store.insert(b"number", b"%d" % (number + 1))

    assert _count_up([open_store(), open_store()], slow_increment) < 50


class AgainstDict(RuleBasedStateMachine):
    """Any sequence of calls, compared with a ``dict``."""

    backend: Callable[[Path], Store]
    folder: Path

    names = st.sampled_from([b"a", b"b", b"c", b"d", b""])
    values = st.binary(max_size=40)

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[bytes, bytes] = {}
        self.path = self.folder / f"{id(self)}.db"
        self.store = type(self).backend(self.path)

    @rule(name=names, value=values)
    def insert(self, name: bytes, value: bytes) -> None:
        """Insert one."""
        assert self.store.insert(name, value) == (name not in self.model)
        self.model[name] = value

    @rule(pairs=st.lists(st.tuples(names, values), max_size=5))
    def insert_many(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Insert a batch."""
        self.store.insert_many(pairs)
        self.model.update(pairs)

    @rule(name=names)
    def remove(self, name: bytes) -> None:
        """Remove one."""
        assert self.store.remove(name) == (self.model.pop(name, None) is not None)

    @rule(name=names)
    def get(self, name: bytes) -> None:
        """Read one."""
        assert self.store.get(name) == self.model.get(name)

    @rule(steps=st.lists(st.tuples(names, st.none() | values), max_size=5), undone=st.booleans())
    def transact(self, steps: list[tuple[bytes, bytes | None]], undone: bool) -> None:
        """Insert and remove in a transaction, and leave it or undo it."""
        model = self.model.copy()
        with suppress(ZeroDivisionError), self.store.transaction():
            for name, value in steps:
                if value is None:
                    assert self.store.remove(name) == (model.pop(name, None) is not None)
                else:
                    assert self.store.insert(name, value) == (name not in model)
                    model[name] = value
                assert dict(self.store.items()) == model
            if undone:
                raise ZeroDivisionError
        self.model = self.model if undone else model

    @rule()
    def reopen(self) -> None:
        """Close and open again."""
        self.store.close()
        self.store = type(self).backend(self.path)

    @precondition(lambda self: bool(self.model))
    @rule()
    def flush(self) -> None:
        """Empty the log."""
        self.store.flush()

    @invariant()
    def holds_the_same(self) -> None:
        """Iteration gives what the model has."""
        assert dict(self.store.items()) == self.model
        assert self.store.count() == len(self.model)

    def teardown(self) -> None:
        """Close, and give the space back."""
        self.store.close()
        self.path.unlink()


def test_any_sequence_of_calls_behaves_like_a_dict(
    tmp_path: Path, backend: Callable[[Path], Store]
) -> None:
    members = {"folder": tmp_path, "backend": staticmethod(backend)}
    machine: Any = type("Machine", (AgainstDict,), members)
    test = machine.TestCase()
    test.settings = settings(
        max_examples=15,
        stateful_step_count=20,
        suppress_health_check=list(HealthCheck),
    )
    test.runTest()
