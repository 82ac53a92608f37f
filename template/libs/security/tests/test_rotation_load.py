"""Large values in a rotation: nobody's write fails, the log stays small, and so does the memory."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import MASTER
from service_security.errors import StoreUnavailableError
from service_security.store import SecureDb, reencryption
from service_security.store.log import log_size
from service_security.store.record import RecordKeys, Row
from service_security.store.row_pages import rows_behind

VALUE = 20_000
RECORDS = 900
LOG = 3 * 4 * 1024 * 1024
"""More than a batch, and what SQLite lets the log grow to before it is moved into the file."""


def _fill(store: SecureDb) -> None:
    for start in range(0, RECORDS, 100):
        store.insert_many(
            (b"%d" % number, os.urandom(VALUE)) for number in range(start, start + 100)
        )
    store.flush()


WRITER = """
import sys, time
from service_security.store import SecureDb, schema

schema.BUSY_TIMEOUT_MS = 60_000  # whatever else the machine does

with SecureDb.open(sys.argv[1], bytes(range(32))) as store:
    for number in range(1_000_000):
        store.insert(b"of another process", b"%d" % number)
        print(number, flush=True)
        time.sleep(0.002)  # or the rotation might find no moment to write in
"""


@contextmanager
def _another_process_that_writes(database: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", WRITER, str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        reader = threading.Thread(target=writer.stdout.read)  # or it would wait for us to read
        reader.start()
        try:
            yield writer
            assert writer.poll() is None, "it goes on"
        finally:
            writer.kill()
            reader.join()


def test_nobodys_write_fails_while_large_values_rotate_and_the_log_stays_small(
    database: Path,
) -> None:
    stop, written, failures = threading.Event(), list[int](), list[StoreUnavailableError]()

    def write() -> None:
        while not stop.is_set():
            try:
                store.insert(b"of this process", b"%d" % len(written))
            except StoreUnavailableError as error:
                failures.append(error)
            written.append(log_size(store._file))

    with SecureDb.open(database, MASTER) as store:
        _fill(store)
        threads = [threading.Thread(target=write) for _ in range(3)]
        with _another_process_that_writes(database):
            for thread in threads:
                thread.start()
            try:
                for _ in range(3):
                    assert store.rotation().run().records >= RECORDS
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
        assert failures == []
        assert len(written) > 30
        assert max(written) < LOG
        assert store.verify().is_whole


@pytest.mark.parametrize("statement", ["closed", "left open"])
def test_a_batch_is_read_to_its_end_before_anybody_writes(
    database: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """Behind each batch that was read, another process writes, and then a thread of this one."""
    seal, failed, sizes = RecordKeys.seal, list[str](), list[int]()
    kept: list[object] = []

    def read(file: Any, *arguments: Any, **more: Any) -> list[tuple[int, Row]]:
        rows = file.connection.execute("SELECT id, sealed FROM record")
        next(rows)
        kept[:] = [rows]
        return rows_behind(file, *arguments, **more)

    def interfere(*arguments: Any) -> list[Row]:
        with monkeypatch.context() as patch:
            patch.setattr(RecordKeys, "seal", seal)
            other.insert(b"of another process", b"")
            try:
                store.insert(b"of this process", b"")
            except StoreUnavailableError as error:
                failed.append(str(error))
        sizes.append(log_size(store._file))
        return seal(*arguments)

    with SecureDb.open(database, MASTER) as store, SecureDb.open(database, MASTER) as other:
        _fill(store)
        monkeypatch.setattr(RecordKeys, "seal", interfere)
        if statement == "closed":
            assert store.rotation().run().records >= RECORDS
            assert failed == []
            assert len(sizes) >= 5
            assert max(sizes) < LOG
        else:  # the control
            monkeypatch.setattr(reencryption, "rows_behind", read)
            with pytest.raises(StoreUnavailableError, match="in use by another process"):
                store.rotation().run()
            assert failed
            kept.clear()


ONE_LARGE_VALUE = """
import re, sys
from pathlib import Path
from service_security.store import SecureDb

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

with SecureDb.open(sys.argv[1], bytes(range(32))) as store:
    store.get(b"nothing")
    before = peak()
    store.rotation().run()
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that tells the peak")
def test_a_large_value_takes_five_and_a_half_times_its_size_at_most(database: Path) -> None:
    size = 32 * 1024 * 1024
    with SecureDb.open(database, MASTER) as store:
        store.insert(b"large", bytes(size))
        store.insert(b"large, too", bytes(size))
    result = subprocess.run(
        [sys.executable, "-c", ONE_LARGE_VALUE, str(database)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert size < int(result.stdout) < 5.5 * size
