"""What every storage backend owes, whatever it is built on."""

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conftest import MASTER, Opener
from service_security.errors import StoreUnavailableError
from service_security.store import SecureDb

EDGES = [b"", b"\0", b"a", b"\xff" * 300, "Zürich/\N{ROCKET}".encode(), b"x" * 65_535]


def test_a_new_store_is_empty(store: SecureDb) -> None:
    assert store.get(b"name") is None
    assert not store.remove(b"name")
    assert list(store.items()) == []
    assert store.count() == 0


@pytest.mark.parametrize("name", EDGES, ids=lambda name: f"{len(name)} bytes")
@pytest.mark.parametrize("value", [b"", b"\0", bytes(100_000)], ids=lambda v: f"{len(v)} bytes")
def test_any_bytes_come_back(store: SecureDb, name: bytes, value: bytes) -> None:
    store.insert(name, value)
    assert store.get(name) == value
    assert list(store.items()) == [(name, value)]


def test_insert_tells_new_names_from_replaced_ones(store: SecureDb) -> None:
    assert store.insert(b"name", b"one") is True
    assert store.insert(b"name", b"two") is False
    assert store.get(b"name") == b"two"
    assert store.count() == 1


def test_remove_tells_whether_the_name_was_there(store: SecureDb) -> None:
    store.insert(b"name", b"value")
    assert store.remove(b"name") is True
    assert store.remove(b"name") is False
    assert store.get(b"name") is None


def test_a_batch_is_stored_and_the_last_of_equal_names_counts(store: SecureDb) -> None:
    store.insert_many([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    assert dict(store.items()) == {b"a": b"3", b"b": b"2"}
    store.insert_many([])


def test_a_batch_with_one_bad_pair_stores_nothing(store: SecureDb) -> None:
    with pytest.raises(ValueError, match="at most 65535 bytes"):
        store.insert_many([(b"a", b"1"), (b"x" * 65_536, b"2")])
    assert store.count() == 0


def test_a_batch_may_come_from_a_generator_that_reads_the_store(store: SecureDb) -> None:
    store.insert(b"a", b"1")
    store.insert_many((name + b"2", value) for name, value in store.items())
    assert dict(store.items()) == {b"a": b"1", b"a2": b"1"}


def test_a_generator_that_fails_stores_nothing(store: SecureDb) -> None:
    def pairs() -> "list[tuple[bytes, bytes]]":
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError):
        store.insert_many(pair for pair in pairs())
    assert store.count() == 0


@pytest.mark.parametrize("bad", ["text", bytearray(b"x"), None, 1])
def test_only_bytes_are_taken(store: SecureDb, bad: bytes) -> None:
    for name, value in ((bad, b""), (b"", bad)):
        with pytest.raises(TypeError):
            store.insert(name, value)
    assert store.count() == 0


def test_records_outlive_the_object(open_store: Opener) -> None:
    with open_store() as store:
        store.insert(b"name", b"value")
    assert open_store().get(b"name") == b"value"


def test_records_are_seen_by_another_object_at_once(open_store: Opener) -> None:
    writer, reader = open_store(), open_store()
    writer.insert(b"name", b"value")
    assert reader.get(b"name") == b"value"
    reader.remove(b"name")
    assert writer.get(b"name") is None


def test_pages_hold_every_record_once_in_a_stable_order(store: SecureDb) -> None:
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


def test_a_replaced_record_keeps_its_position(store: SecureDb) -> None:
    store.insert_many((b"%d" % number, b"old") for number in range(10))
    before = [name for name, _ in store.items()]
    store.insert(b"3", b"new")
    assert [name for name, _ in store.items()] == before


def test_iteration_goes_on_while_records_come_and_go(store: SecureDb) -> None:
    store.insert_many((b"%d" % number, b"") for number in range(600))
    seen = set()
    for name, _ in store.items():
        seen.add(name)
        store.remove(name)
        store.insert(b"again " + name, b"") if len(seen) < 300 else None
    assert {b"%d" % number for number in range(600)} <= seen


def test_a_closed_store_refuses_everything(store: SecureDb) -> None:
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


def test_threads_share_one_store(store: SecureDb) -> None:
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


class AgainstDict(RuleBasedStateMachine):
    """Any sequence of calls, compared with a ``dict``."""

    cipher = "xchacha20poly1305"
    folder: Path

    names = st.sampled_from([b"a", b"b", b"c", b"d", b""])
    values = st.binary(max_size=40)

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[bytes, bytes] = {}
        self.path = self.folder / f"{id(self)}.db"
        self.store = SecureDb.open(self.path, MASTER, cipher=self.cipher)

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

    @rule()
    def reopen(self) -> None:
        """Close and open again."""
        self.store.close()
        self.store = SecureDb.open(self.path, MASTER)

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


def test_any_sequence_of_calls_behaves_like_a_dict(tmp_path: Path, cipher: str) -> None:
    machine: Any = type("Machine", (AgainstDict,), {"folder": tmp_path, "cipher": cipher})
    test = machine.TestCase()
    test.settings = settings(
        max_examples=15,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    test.runTest()
