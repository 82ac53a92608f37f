"""Writers to be killed, forked and cloned: a program that ``test_nonce_harness.py`` starts.

Every nonce is logged with a digest of what it sealed before its row can reach the disk, so a nonce that was
sealed and never committed counts too. A log is written with ``os.write``: what a killed process wrote stays.
"""

import argparse
import ctypes
import hashlib
import itertools
import json
import mmap
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import apsw
from service_security import secret_bytes
from service_security.errors import StoreUnavailableError
from service_security.store import SecureDb, writer
from service_security.store.record import RecordKeys
from service_security.store.schema import connect

MASTER = bytes(range(32))
BATCH = 20
SLOTS = 10
FLUSH_EVERY = 50
FORKS = 12
CLONE_SYSTEM_CALL = {"x86_64": 56, "aarch64": 220}


class Store(Protocol):
    """What a writer needs of a scheme."""

    def insert(self, name: bytes, value: bytes) -> bool:
        """Store one record, durably."""

    def insert_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Store records in one transaction."""

    def flush(self) -> None:
        """Save what is not saved yet."""

    def close(self) -> None:
        """Close the file."""


class Journal:
    """What one process sealed and what it was told is stored, in two files named after its tag."""

    def __init__(self, folder: Path, tag: str) -> None:
        self._folder = folder
        self.follow(tag)

    def follow(self, tag: str) -> None:
        """Go on under another tag, as a forked child does."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self.tag = tag
        self._sealed = os.open(self._folder / f"{tag}.sealed", flags, 0o600)
        self._acknowledged = os.open(self._folder / f"{tag}.acknowledged", flags, 0o600)

    def sealed(self, seals: Iterable[tuple[bytes, bytes, bytes]]) -> None:
        """Log nonces with the name and value that each has sealed."""
        os.write(self._sealed, b"".join(nonce + digest(name, value) for nonce, name, value in seals))

    def acknowledged(self, names: Iterable[bytes], number: int) -> None:
        """Log that a version of some records is stored."""
        os.write(self._acknowledged, b"".join(b"%s %d\n" % (name, number) for name in names))


class Original:
    """The scheme of the Rust original: a uuid for a database, a counter in memory that ``flush`` saves."""

    def __init__(self, database: Path, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        release = self._lock.release  # SQLite stands still during a fork, or its locks are lost in the child
        os.register_at_fork(before=self._lock.acquire, after_in_parent=release, after_in_child=release)
        self.use(database)
        with self._transaction():
            for table in (
                "state (id INTEGER PRIMARY KEY, uuid BLOB, counter INTEGER)",
                "record (name BLOB PRIMARY KEY, nonce BLOB, value BLOB)",
            ):
                self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            self._connection.execute("INSERT OR IGNORE INTO state VALUES (1, ?, 0)", (os.urandom(16),))
        row: Any = self._connection.execute("SELECT uuid, counter FROM state").fetchone()
        self._uuid: bytes = row[0]
        self._counter: int = row[1]

    def use(self, database: Path) -> None:
        """Go on in another file."""
        self._connection = apsw.Connection(str(database))
        self._connection.set_busy_timeout(5_000)
        self._connection.pragma("journal_mode", "wal")
        self._connection.pragma("synchronous", "FULL")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # The connection's own context would wait for another process without letting other threads run.
        self._connection.execute("BEGIN IMMEDIATE")
        yield
        self._connection.execute("COMMIT")

    def insert(self, name: bytes, value: bytes) -> bool:
        """Store one record, durably."""
        self.insert_many([(name, value)])
        return True

    def insert_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Store records in one transaction."""
        with self._lock:
            rows = []
            for name, value in pairs:
                self._counter += 1
                rows.append((self._counter.to_bytes(8) + self._uuid, name, value))
            self._journal.sealed(rows)
            with self._transaction():
                self._connection.executemany(
                    "INSERT OR REPLACE INTO record (nonce, name, value) VALUES (?, ?, ?)", rows
                )

    def flush(self) -> None:
        """Save the counter."""
        with self._lock, self._transaction():
            self._connection.execute("UPDATE state SET counter = ?", (self._counter,))

    def close(self) -> None:
        """Close the file; like dropping the original's store, this saves no counter."""
        self._connection.close()


def digest(name: bytes, value: bytes) -> bytes:
    """Return 32 bytes that stand for a plaintext."""
    return hashlib.sha256(len(name).to_bytes(2) + name + value).digest()


def value_of(name: bytes, number: int) -> bytes:
    """Return a value that no other call writes, and that shows whether it is whole."""
    content = number.to_bytes(8) + os.urandom(32)
    return content + hashlib.sha256(name + content).digest()


def number_in(name: bytes, value: bytes) -> int:
    """Return the version number in a value of ``value_of``; the value has to be whole."""
    if hashlib.sha256(name + value[:40]).digest() != value[40:]:
        raise AssertionError(f"the value of {name!r} is not whole")
    return int.from_bytes(value[:8])


def observe(journal: Journal) -> None:
    """Log what the library seals, at the moment it has sealed it."""
    seal: Callable[..., list[Any]] = RecordKeys.seal

    def observed(keys: RecordKeys, pairs: Iterable[tuple[bytes, bytes]], *arguments: Any) -> list[Any]:
        pairs = list(pairs)
        rows = seal(keys, pairs, *arguments)
        journal.sealed((row.sealed[:24], *pair) for row, pair in zip(rows, pairs, strict=True))
        return rows

    patch.object(RecordKeys, "seal", observed).start()


def weaken(scheme: str) -> None:
    """Take one of the library's two defences away, or both."""
    if scheme == "uuid-per-open":
        patch.object(writer, "fresh_uuid", os.urandom(16).__bytes__).start()
    if scheme in ("lease-alone", "neither"):
        patch.object(writer, "fresh_uuid", bytes(16).__bytes__).start()
    if scheme in ("uuid-alone", "neither"):
        patch.object(writer.Writer, "_reserve_counters", lambda _store, _count: 0).start()


def open_store(scheme: str, database: Path, cipher: str, journal: Journal) -> Store:
    """Open a database under a scheme."""
    if scheme == "original":
        return Original(database, journal)
    weaken(scheme)
    store: Store = SecureDb.open(database, MASTER, cipher=cipher)
    return store


def write(store: Store, journal: Journal, group: str, count: int | None = None) -> None:
    """Write some names again and again, singly if ``group`` starts with an s and in batches otherwise."""
    for number in itertools.count(1) if count is None else range(1, count + 1):
        name = f"{journal.tag}/{group}/{number % SLOTS}".encode()
        if group.startswith("s"):
            names = [name]
            store.insert(name, value_of(name, number))
        else:
            names = [b"%s/%d" % (name, part) for part in range(BATCH)]
            store.insert_many([(part, value_of(part, number)) for part in names])
        journal.acknowledged(names, number)
        if number % FLUSH_EVERY == 0:
            with suppress(StoreUnavailableError):  # others are reading
                store.flush()


def say(word: str) -> None:
    """Tell the test something, past every buffer."""
    os.write(sys.stdout.fileno(), word.encode() + b"\n")


def write_from_threads(store: Store, journal: Journal) -> None:
    """Write from four threads until killed; say so when the first record is stored."""
    stored = threading.Event()

    def start(group: str) -> None:
        write(store, journal, group, count=1)
        stored.set()
        write(store, journal, group)

    for group in ("s0", "s1", "s2", "b0"):
        threading.Thread(target=start, args=(group,), daemon=True).start()
    stored.wait()
    say("stored")


def end_on_errors_in_threads() -> None:
    """Let no error of a writer pass for a kill."""

    def end(error: threading.ExceptHookArgs) -> None:
        sys.__excepthook__(error.exc_type, error.exc_value or error.exc_type(), error.exc_traceback)
        os._exit(1)

    threading.excepthook = end


def until_killed() -> None:
    """Leave the threads to it; the end of a test that failed ends this process too."""
    sys.stdin.read()
    os._exit(1)


def in_a_child(work: Callable[[], object]) -> int:
    """Run something in a forked child that never comes back, and return the child's process id."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)  # so that none writes on for ever when its parent fails
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def tried(store: SecureDb) -> list[str]:
    """Call everything of a store, and return what was not refused."""
    calls: dict[str, Callable[[], object]] = {
        "insert": lambda: store.insert(b"inherited", b""),
        "insert_many": lambda: store.insert_many([(b"inherited/1", b""), (b"inherited/2", b"")]),
        "get": lambda: store.get(b"inherited"),
        "page": lambda: store.page(0, 1),
        "items": lambda: list(store.items()),
        "count": store.count,
        "check": store.check,
        "flush": store.flush,
        "remove": lambda: store.remove(b"inherited"),
    }
    allowed = []
    for name, call in calls.items():
        with suppress(StoreUnavailableError):
            call()
            allowed.append(name)
    return allowed


def fork(options: argparse.Namespace, journal: Journal) -> None:
    """Fork while threads write; each child tries the inherited store, opens its own, and is killed."""
    store = open_store(options.scheme, options.database, options.cipher, journal)

    def child() -> None:
        journal.follow(f"{options.tag}.{turn}")
        if isinstance(store, SecureDb) and (allowed := tried(store)):
            raise AssertionError(f"not refused in a forked child: {allowed}")
        own = open_store(options.scheme, options.database, options.cipher, journal)
        write(own, journal, "s0", count=1)
        os.write(ready, b"x")
        write(own, journal, "s0")

    stop = threading.Event()

    def write_until_stopped(group: str) -> None:
        for round_ in itertools.count():
            write(store, journal, f"{group}.{round_}", count=1)
            if stop.is_set():
                return

    threads = [threading.Thread(target=write_until_stopped, args=(group,), daemon=True) for group in "sb"]
    for thread in threads:
        thread.start()
    for turn in range(FORKS):
        heard, ready = os.pipe()
        pid = in_a_child(child)
        os.close(ready)
        if os.read(heard, 1) == b"x":
            time.sleep(0.002 * (turn % 4))
            os.kill(pid, signal.SIGKILL)
        os.close(heard)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
            raise AssertionError("a child ended before it was killed")
    stop.set()
    for thread in threads:
        thread.join()
    store.close()


def raw_fork(options: argparse.Namespace, journal: Journal) -> None:
    """Fork behind Python's back and try the store in the child.

    Another thread is in the middle of a call meanwhile, which holds a lock that nobody in the child ever
    gives back. Not where the child is to get through: it would wait for that lock.
    """
    guards = set(options.guards.split("+"))
    if "page" not in guards:
        patch.object(secret_bytes, "_MADV_WIPEONFORK", mmap.MADV_NORMAL).start()
    store = SecureDb.open(options.database, MASTER, cipher=options.cipher)
    store.insert(b"parent", b"")
    inside, done = threading.Event(), threading.Event()

    def stay_inside() -> None:
        with store._file:
            inside.set()
            done.wait()

    if guards != {"none"}:
        threading.Thread(target=stay_inside, daemon=True).start()
        inside.wait()
    if "pid" not in guards:
        patch.object(os, "getpid", os.getpid().__int__).start()
    libc = ctypes.PyDLL(None)  # keeps the interpreter's lock, which the child needs to have
    if options.how == "libc":
        child = libc.fork()
    else:
        libc.syscall.argtypes = [ctypes.c_long] * 6
        child = libc.syscall(CLONE_SYSTEM_CALL[os.uname().machine], signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        signal.alarm(20)
        journal.follow(f"{options.tag}.child")
        say(json.dumps(tried(store)))
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        raise AssertionError("the child hung or crashed")
    done.set()
    store.insert(b"parent", b"goes on")
    store.close()


def clone(options: argparse.Namespace, journal: Journal) -> None:
    """Make two exact clones of a process with an open store, each with its own copy of the disk."""
    patch.object(secret_bytes, "_MADV_WIPEONFORK", mmap.MADV_NORMAL).start()
    store = open_store(options.scheme, options.database, options.cipher, journal)
    write(store, journal, "s0", count=7)
    store.flush()
    pid = os.getpid()

    def go_on() -> None:
        # A restored snapshot has the same process id, and nothing tells it that it is the second one.
        patch.object(os, "getpid", pid.__int__).start()
        journal.follow(f"{options.tag}.{number}")
        if isinstance(store, Original):
            store.use(copy)
        else:
            inherited.append(store._file.connection)  # type: ignore[attr-defined]
            store._file.connection = connect(copy)  # type: ignore[attr-defined]
        write(store, journal, "s0", count=100)
        write(store, journal, "b0", count=10)

    inherited: list[object] = []  # kept, so that nothing closes what is the parent's
    for number in range(2):
        copy = options.database.with_name(f"clone{number}.db")
        for suffix in ("", "-wal"):
            shutil.copy(f"{options.database}{suffix}", f"{copy}{suffix}")
        if os.waitpid(in_a_child(go_on), 0)[1] != 0:
            raise AssertionError("a clone could not write")
    store.close()


def read(database: Path, cipher: str) -> None:
    """Print every record's version and digest, and the nonces on disk; every record has to be whole."""
    with SecureDb.open(database, MASTER, cipher=cipher) as store:
        records = {
            name.decode(): (number_in(name, value), digest(name, value).hex())
            for name, value in store.items()
        }
        for name, (number, _) in records.items():
            if number_in(name.encode(), store.get(name.encode()) or b"") != number:
                raise AssertionError(f"get and items differ for {name}")
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    nonces = [bytes(sealed[:24]).hex() for (sealed,) in connection.execute("SELECT sealed FROM record")]
    connection.close()
    print(json.dumps({"records": records, "nonces": nonces}))


def main() -> None:
    """Play the part that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("write", "fork", "raw-fork", "clone", "read"))
    parser.add_argument("database", type=Path)
    parser.add_argument("--tag", default="reader")
    parser.add_argument("--scheme", default="store")
    parser.add_argument("--cipher", default="xchacha20poly1305")
    parser.add_argument("--how", default="libc")
    parser.add_argument("--guards", default="pid+page")
    options = parser.parse_args()
    if options.part == "read":
        read(options.database, options.cipher)
        return
    end_on_errors_in_threads()
    journal = Journal(options.database.parent, options.tag)
    observe(journal)
    say("opening")
    if options.part == "write":
        write_from_threads(open_store(options.scheme, options.database, options.cipher, journal), journal)
        until_killed()
    {"fork": fork, "raw-fork": raw_fork, "clone": clone}[options.part](options, journal)


if __name__ == "__main__":
    main()
