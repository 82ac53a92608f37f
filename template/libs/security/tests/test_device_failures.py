"""A disk that fails, fills up, turns read-only or goes away: a clear error, and nothing lost.

The first part runs everywhere, on a device that fails in a chosen call (``failing_vfs``). The
second part mounts real file systems, for which it has to be root on Linux: it is skipped
otherwise, or fails if ``SERVICE_SECURITY_REQUIRE_DEVICES=1``.
"""

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

from conftest import MASTER
from failing_vfs import Call, Device, failing_device
from service_security.errors import StoreUnavailableError
from service_security.store import SecureDb
from service_security.store.record import RecordKeys, Row
from service_security.store.store_file import StoreFile

Effect = dict[bytes, bytes | None]
"""What a call is to change: a value for each name, None where the name is removed."""


class Step(NamedTuple):
    """A call, and what it changes."""

    call: Callable[[SecureDb], object]
    effect: Effect


def _insert(name: bytes, value: bytes) -> Step:
    return Step(lambda store: store.insert(name, value), {name: value})


def _insert_many(pairs: dict[bytes, bytes]) -> Step:
    return Step(lambda store: store.insert_many(pairs.items()), {**pairs})


def _remove(name: bytes) -> Step:
    return Step(lambda store: store.remove(name), {name: None})


def _transaction(*steps: Step) -> Step:
    def call(store: SecureDb) -> None:
        with store.transaction():
            for step in steps:
                step.call(store)

    return Step(call, {name: value for step in steps for name, value in step.effect.items()})


FLUSH = Step(lambda store: store.flush(), {})
WORKLOAD = [
    _insert(b"one", b"1"),
    _insert(b"two", b"2" * 1000),
    _insert(b"one", b"another 1"),
    _insert_many({b"batch %d" % number: bytes([number]) * 3000 for number in range(6)}),
    _remove(b"two"),
    FLUSH,
    _insert(b"large", b"l" * 20_000),
    _transaction(_insert(b"three", b"3"), _remove(b"batch 0"), _insert(b"one", b"last 1")),
    _insert_many({b"batch %d" % number: b"replaced" for number in range(2, 5)}),
    _remove(b"large"),
    FLUSH,
    _insert(b"four", b"4"),
]


def _refusal(call: Callable[..., object], *arguments: object) -> str | None:
    """Return with what words a call was refused, or None if it was not."""
    try:
        call(*arguments)
    except StoreUnavailableError as error:
        return str(error)
    return None


class Truth:
    """What a store may hold: all that was acknowledged, and the last refused call or nothing of it.

    A call that is refused because one before it failed must not have reached the file at all.
    """

    def __init__(self) -> None:
        self.acknowledged: Effect = {}
        self.in_doubt: Effect = {}
        self.refused = 0

    def run(self, store: SecureDb, steps: list[Step]) -> None:
        """Call step after step, and note what each of them says."""
        for step in steps:
            refusal = _refusal(step.call, store)
            if refusal is None:
                assert not self.refused, "a write went on after the device had failed"
                self.acknowledged.update(step.effect)
                continue
            if self.refused:
                assert "failed on the device" in refusal
            else:
                self.in_doubt = step.effect
            self.refused += 1

    def holds_in(self, store: SecureDb) -> bool:
        """Tell whether a store holds what it may hold, each record by its name and in the list."""
        names = {step_name for step in WORKLOAD for step_name in step.effect}
        before = {name: self.acknowledged.get(name) for name in names}
        found = {name: store.get(name) for name in names}
        listed = dict(store.items())
        assert listed == {name: value for name, value in found.items() if value is not None}
        return found in (before, {**before, **self.in_doubt})


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Counter and uuid of every record that is sealed, written or not."""
    nonces: list[bytes] = []
    seal = RecordKeys.seal

    def note(*arguments: object) -> list[Row]:
        rows = seal(*arguments)  # type: ignore[arg-type]
        nonces.extend(row.sealed[:24] for row in rows)
        return rows

    monkeypatch.setattr(RecordKeys, "seal", note)
    return nonces


@pytest.fixture
def device() -> Iterator[Device]:
    """A device under every connection of the test."""
    with failing_device() as device:
        yield device


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """An empty store, to be copied for every way to fail."""
    path = tmp_path / "template.db"
    SecureDb.open(path, MASTER).close()
    return path


def _copy(template: Path, name: str) -> Path:
    folder = template.with_name(name)
    folder.mkdir()
    return Path(shutil.copy(template, folder / "records.db"))


def _counters_repeat(nonces: list[bytes]) -> bool:
    """Tell whether a counter repeats: the uuids would hide that, so they are left out."""
    return len({nonce[:8] for nonce in nonces}) < len(nonces)


# A call that fails


def _opened(database: Path, log_pages: int) -> SecureDb:
    """Open a store that moves its log into the file whenever it has so many pages."""
    store = SecureDb.open(database, MASTER)
    store._file.connection.wal_autocheckpoint(log_pages)
    return store


def _calls_of_the_workload(template: Path, log_pages: int) -> "dict[Call, int]":
    with failing_device() as device, _opened(_copy(template, "count"), log_pages) as store:
        device.counted.clear()
        truth = Truth()
        truth.run(store, WORKLOAD)
        assert truth.holds_in(store)
        assert not truth.refused
        return dict(device.counted)


@pytest.mark.parametrize("call", ["sync", "write", "truncate"])
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("log_pages", [1000, 6], ids=["long log", "short log"])
def test_whichever_call_fails_nothing_acknowledged_is_lost(
    template: Path, sealed: list[bytes], call: Call, for_good: bool, log_pages: int
) -> None:
    """For every single call of the workload: in the same object, reopened, and after a power cut.

    After the failure every write is refused. What was acknowledged stays readable; what was not is
    there as a whole or not at all; and nothing is sealed under a counter that was used before.
    """
    total = _calls_of_the_workload(template, log_pages)[call]
    assert total >= 2
    for number in range(1, total + 1):
        database = _copy(template, f"{number}")
        sealed.clear()
        truth = Truth()
        with failing_device() as device:
            device.adopt(database)
            store = _opened(database, log_pages)
            device.fail(call, number, for_good=for_good)
            truth.run(store, WORKLOAD)
            assert device.failures
            assert truth.refused
            assert truth.holds_in(store), number
            (cut := template.with_name(f"{number} cut")).mkdir()
            device.cut_power(cut)
            with suppress(StoreUnavailableError):  # when the device still does not answer
                store.close()
        before = list(sealed)
        for path in (database, cut / "records.db"):
            sealed[:] = before
            with SecureDb.open(path, MASTER) as store:
                assert truth.holds_in(store), (path, number)
                assert store.insert(b"afterwards", b"")
            assert not _counters_repeat(sealed), (path, number)


def test_threads_that_write_together_lose_nothing_acknowledged_when_a_sync_fails(
    template: Path, device: Device
) -> None:
    device.adopt(template)
    (cut := template.with_name("cut")).mkdir()
    acknowledged: list[bytes] = []
    refused: list[bytes] = []

    def write(thread: int) -> None:
        for number in range(30):
            name = b"%d/%d" % (thread, number)
            try:
                store.insert(name, name)
            except StoreUnavailableError:
                refused.append(name)
            else:
                acknowledged.append(name)

    with SecureDb.open(template, MASTER) as store:
        device.fail("sync", 20)  # of 8 writes at most, and one at least
        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(acknowledged) + len(refused) == 240
        assert min(len(acknowledged), len(refused)) > 10
        assert set(acknowledged) <= {name for name, _ in store.items()}
        device.cut_power(cut)
    with SecureDb.open(cut / template.name, MASTER) as store:
        assert set(acknowledged) <= {name for name, value in store.items() if name == value}


def test_a_store_without_the_guard_would_write_on_after_a_failed_sync(
    template: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control for the refusal: a second sync reports success for what the first one lost."""
    with SecureDb.open(template, MASTER) as store:
        store.insert(b"one", b"1")
        device.fail("sync", 1)
        with pytest.raises(StoreUnavailableError, match="device failed"):
            store.insert(b"two", b"2")
        device.mend()
        with pytest.raises(StoreUnavailableError, match=r"failed on the device.*restart"):
            store.insert(b"three", b"3")
        monkeypatch.setattr(StoreFile, "refuse_after_failed_write", lambda _: None)
        assert store.insert(b"three", b"3")


def test_a_power_cut_after_any_call_loses_nothing_acknowledged(
    template: Path, device: Device
) -> None:
    """What was acknowledged is on the device when the call returns, not in its cache."""
    assert not _lost_in_power_cuts(template, device)


def test_the_same_power_cuts_lose_records_of_a_store_that_does_not_sync(
    template: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the model of a power cut can tell."""

    class Careless(apsw.Connection):
        def pragma(self, name: str, value: Any = None, *, schema: str | None = None) -> Any:
            value = "OFF" if name == "synchronous" and value else value
            return super().pragma(name, *(() if value is None else (value,)), schema=schema)

    monkeypatch.setattr(apsw, "Connection", Careless)
    assert _lost_in_power_cuts(template, device)


def _lost_in_power_cuts(template: Path, device: Device) -> list[int]:
    """Cut the power after every step of the workload; return the steps after which it lost some."""
    device.adopt(template)
    truth = Truth()
    cuts = []
    with SecureDb.open(template, MASTER) as store:
        for number, step in enumerate(WORKLOAD):
            truth.run(store, [step])
            (cut := template.with_name(f"after {number}")).mkdir()
            device.cut_power(cut)
            cuts.append((cut / template.name, dict(truth.acknowledged)))
    lost = []
    for number, (path, acknowledged) in enumerate(cuts):
        with SecureDb.open(path, MASTER) as store:
            if any(store.get(name) != value for name, value in acknowledged.items()):
                lost.append(number)
    return lost


def test_nothing_is_sealed_when_the_lease_cannot_be_made_durable(
    template: Path, device: Device, sealed: list[bytes]
) -> None:
    with SecureDb.open(template, MASTER) as store:
        device.fail("sync", 1)
        for write in (WORKLOAD[0], WORKLOAD[3], WORKLOAD[7]):
            with pytest.raises(StoreUnavailableError):
                write.call(store)
        assert device.failures == 1
        assert not sealed
    with SecureDb.open(template, MASTER) as store:
        store.insert(b"one", b"1")
    assert len(sealed) == 1


def test_leases_that_are_not_durable_before_use_would_repeat_counters(
    template: Path, device: Device, sealed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control for the counters: a lease in the cache is handed out again after a power cut."""
    device.adopt(template)
    (cut := template.with_name("cut")).mkdir()
    with SecureDb.open(template, MASTER) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Device, "_sync", lambda *_: None)  # a device that lies about syncs
            store.insert(b"one", b"1")
        device.cut_power(cut)
    with SecureDb.open(cut / template.name, MASTER) as store:
        store.insert(b"one", b"1")
    assert _counters_repeat(sealed)
    assert len(set(sealed)) == len(sealed) == 2, "the uuids keep the nonces apart all the same"


# Creation and opening


@pytest.mark.parametrize("call", ["sync", "write"])
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_a_creation_that_fails_anywhere_leaves_no_half_written_file(
    tmp_path: Path, call: Call, for_good: bool
) -> None:
    number = 0
    while True:
        number += 1
        database = tmp_path / f"{number}" / "records.db"
        database.parent.mkdir()
        with failing_device() as device:
            device.fail(call, number, for_good=for_good)
            try:
                SecureDb.open(database, MASTER).close()
            except StoreUnavailableError:
                left = {path.name for path in database.parent.iterdir()}
                assert left <= {"records.db", "records.db-journal"}, number
            else:
                assert not device.failures
                break
        with SecureDb.open(database, MASTER) as store:
            assert store.insert(b"one", b"1")
        assert [path.name for path in database.parent.iterdir()] == ["records.db"]
    assert number > 3


@pytest.mark.parametrize("call", ["sync", "write", "truncate"])
def test_a_log_that_a_crash_left_survives_a_failing_device(template: Path, call: Call) -> None:
    """Opening, flushing and closing move the log into the file; each call of that in turn."""
    with SecureDb.open(template, MASTER) as store:
        store.flush()
        store.insert_many((b"%d" % number, bytes(2000)) for number in range(5))
        crashed = _copy(template, "crashed")
        shutil.copy(template.with_name(template.name + "-wal"), crashed.with_name("records.db-wal"))
    number, failed = 0, True
    while failed:
        number += 1
        database = _copy(crashed, f"{number}")
        shutil.copy(crashed.with_name("records.db-wal"), database.with_name("records.db-wal"))
        with failing_device() as device:
            device.fail(call, number)
            with suppress(StoreUnavailableError), SecureDb.open(database, MASTER) as store:
                assert store.count() == 5
            failed = bool(device.failures)
        with SecureDb.open(database, MASTER) as store:
            assert {name for name, _ in store.items()} == {b"%d" % number for number in range(5)}
    assert number > 1


def test_a_close_that_fails_has_wiped_the_keys_and_lost_nothing(
    template: Path, device: Device
) -> None:
    store = SecureDb.open(template, MASTER)
    store.insert(b"one", b"1")
    device.fail("sync", 1, for_good=True)
    with pytest.raises(StoreUnavailableError):
        store.close()
    with pytest.raises(ValueError, match="closed"):
        store._keys.record._keyset.name_index.key.check()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.get(b"one")
    store.close()
    device.mend()
    with SecureDb.open(template, MASTER) as store:
        assert store.get(b"one") == b"1"


def test_the_device_is_gone_with_the_test(tmp_path: Path) -> None:
    before = apsw.vfs_names()
    with failing_device():
        assert apsw.vfs_names() != before
    assert apsw.vfs_names() == before
    with closing(apsw.Connection(str(tmp_path / "plain.db"))) as connection:
        assert connection.open_vfs == before[0]


# Real file systems

ROOM = 64 * 1024
"""Bytes for SQLite's two files beside a database, before anything is written into them."""


def _unavailable(reason: str) -> None:
    """Skip the test, or fail it where devices are required."""
    if os.environ.get("SERVICE_SECURITY_REQUIRE_DEVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _run(*command: "str | Path") -> None:
    subprocess.run(command, check=True, capture_output=True)


class Disk:
    """A file system of its own.

    Args:
        folder: Where it is mounted; created.
        kind: ``tmpfs``, or ``ext4`` with the bytes of a block behind it, as in ``ext4/1024``.
        size: Its size in bytes.
    """

    def __init__(self, folder: Path, kind: str, size: int) -> None:
        if sys.platform != "linux" or os.geteuid() != 0:
            _unavailable("only root on Linux may mount file systems")
        for program in ("mount", "umount", "mkfs.ext4"):
            if shutil.which(program) is None:
                _unavailable(f"{program} is not installed (packages: mount, e2fsprogs)")
        self.folder = folder
        self.database = folder / "records.db"
        self._ballast = folder / "ballast"
        self._kind, _, block = kind.partition("/")
        self._source: str | Path = "tmpfs"
        self._options = f"size={size}"
        folder.mkdir()
        _leave_the_mounts_of_others()
        if block:
            self._source, self._options = folder.with_name(f"{folder.name}.image"), "loop"
            with self._source.open("wb") as image:
                image.truncate(size)
            _run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", block, self._source)
        try:
            self.mount()
        except subprocess.CalledProcessError as error:
            _unavailable(f"this machine does not let root mount: {error.stderr.decode().strip()}")

    def mount(self, *options: str) -> None:
        """Mount it, for instance ``ro``."""
        together = ",".join([self._options, *options])
        _run("mount", "-t", self._kind, "-o", together, self._source, self.folder)

    def remount(self, *options: str) -> None:
        """Change the options of the mount."""
        _run("mount", "-o", ",".join(["remount", *options]), self.folder)

    def restart(self, *options: str) -> None:
        """Unmount it and mount it anew; what was not on the device is gone then. Not for tmpfs."""
        _run("umount", self.folder)
        self.mount(*options)

    def pull_out(self) -> None:
        """Take the device away at once: ``EXT4_IOC_SHUTDOWN`` without writing the journal."""
        import fcntl

        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, 0x8004587D, struct.pack("I", 2))
        finally:
            os.close(descriptor)

    def fill(self, leaving: int = 0) -> None:
        """Write a file until the disk is full, and give some bytes back."""
        size = 0
        with self._ballast.open("wb", buffering=0) as file:
            for length in (65536, 1024, 1):
                with suppress(OSError):
                    while True:
                        size += file.write(bytes(length))
            os.fsync(file.fileno())
        os.truncate(self._ballast, max(0, size - leaving))

    def make_room(self) -> None:
        """Remove that file."""
        self._ballast.unlink()

    def files(self) -> set[str]:
        """Return the names of the files on it."""
        return {path.name for path in self.folder.iterdir()} - {"lost+found", "ballast"}

    def close(self) -> None:
        """Unmount it, even if a test that failed has left files open."""
        if self.folder.is_mount():
            with suppress(subprocess.CalledProcessError):
                _run("umount", self.folder)
                return
            _run("umount", "--lazy", self.folder)


@cache
def _leave_the_mounts_of_others() -> None:
    """Let nobody else see what is mounted from here on.

    A container that starts meanwhile would take a copy along: what is unmounted here would live on
    there, and be the same again when it is mounted anew.
    """
    namespace_of_mounts = 0x20000  # CLONE_NEWNS; os.unshare comes with Python 3.12
    if ctypes.CDLL(None, use_errno=True).unshare(namespace_of_mounts) != 0:
        _unavailable(f"no mounts of its own: {os.strerror(ctypes.get_errno())}")
    _run("mount", "--make-rprivate", "/")


@contextmanager
def _mounted(folder: Path, kind: str, size: int) -> Iterator[Disk]:
    with closing(Disk(folder, kind, size)) as disk:
        yield disk


KINDS = ["tmpfs", "ext4/4096", "ext4/1024"]
MEBIBYTE = 1024 * 1024


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A small disk of each kind in turn."""
    with _mounted(tmp_path / "disk", request.param, 24 * MEBIBYTE) as disk:
        yield disk


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Disk]:
    """A disk that keeps what it holds."""
    with _mounted(tmp_path / "disk", "ext4/4096", 16 * MEBIBYTE) as disk:
        yield disk


def _fill_with_records(store: SecureDb, size: int) -> dict[bytes, bytes]:
    """Insert until the disk is full; return what was acknowledged."""
    written: dict[bytes, bytes] = {}
    while True:
        name, value = b"filling %d" % len(written), os.urandom(size)
        if (refusal := _refusal(store.insert, name, value)) is not None:
            assert "is full" in refusal
            assert store.get(name) is None
            return written
        written[name] = value


@pytest.mark.parametrize(
    ("room", "size", "is_moved"),
    [(2 * MEBIBYTE, 1_000, False), (11 * MEBIBYTE, 30_000, True)],
    ids=["for the log", "for the log to be moved"],
)
def test_a_full_disk_refuses_the_write_and_keeps_every_record(
    disk: Disk, room: int, size: int, is_moved: bool
) -> None:
    """The log is moved into the database at 4 MiB; in the second case that runs out of room too."""
    with SecureDb.open(disk.database, MASTER) as store:
        store.insert(b"first", b"before the ballast")
        disk.fill(leaving=room)
        written = _fill_with_records(store, size)
        assert len(written) > 100
        assert (disk.database.stat().st_size > MEBIBYTE) == is_moved
        assert dict(store.items()) == {b"first": b"before the ballast", **written}
        store.check()
        disk.make_room()
        assert store.insert(b"in the same object", b"")
    with SecureDb.open(disk.database, MASTER) as store:
        assert store.count() == len(written) + 2
        assert all(store.get(name) == value for name, value in written.items())


def test_every_write_on_a_full_disk_is_refused_and_changes_nothing(disk: Disk) -> None:
    with SecureDb.open(disk.database, MASTER) as store:
        truth = Truth()
        truth.run(store, WORKLOAD[:5])
        disk.fill()
        _fill_with_records(store, 100_000)
        for step in [*WORKLOAD[5:], _insert(b"one", bytes(100_000))]:
            if len(step.effect) != 1 or step.effect.get(b"one"):  # others may just find room
                with pytest.raises(StoreUnavailableError, match=r"disk of .* is full"):
                    step.call(store)
                assert truth.holds_in(store)
        disk.make_room()
        truth.run(store, WORKLOAD[5:])
        assert truth.holds_in(store)
    with SecureDb.open(disk.database, MASTER) as store:
        assert truth.holds_in(store)


def test_what_is_removed_makes_room_for_what_comes(disk: Disk) -> None:
    """Ten times what the disk has room for; flushing empties the log in between."""
    with SecureDb.open(disk.database, MASTER) as store:
        store.insert_many((b"%d" % number, bytes(1000)) for number in range(1000))
        store.flush()
        disk.fill(leaving=MEBIBYTE)
        for start in range(0, 10_000, 500):
            with store.transaction():
                for number in range(start, start + 500):
                    assert store.remove(b"%d" % number)
            store.flush()
            store.insert_many(
                (b"%d" % number, bytes(1000)) for number in range(start + 1000, start + 1500)
            )
            store.flush()
        assert store.count() == 1000


def test_a_nonce_lease_that_finds_no_room_refuses_the_write(
    disk: Disk, sealed: list[bytes]
) -> None:
    with SecureDb.open(disk.database, MASTER) as store:
        disk.fill()
        for step in (WORKLOAD[0], WORKLOAD[3], WORKLOAD[7]):
            with pytest.raises(StoreUnavailableError, match="full"):
                step.call(store)
        assert not sealed
        disk.make_room()
        assert store.insert(b"one", b"1")
    assert len(sealed) == 1


def test_a_full_disk_gets_no_half_written_store(disk: Disk) -> None:
    refused = 0
    for leaving in range(0, 160 * 1024, 8192):
        disk.fill(leaving)
        refusal = _refusal(lambda: SecureDb.open(disk.database, MASTER).close())
        if refusal is not None:
            assert "full" in refusal or "No space left" in refusal
            assert disk.files() <= {"records.db", "records.db-wal", "records.db-shm"}
            refused += 1
        disk.make_room()
        with SecureDb.open(disk.database, MASTER) as store:
            assert store.insert(b"one", b"1")
        for name in disk.files():
            (disk.folder / name).unlink()
    assert 2 < refused < 18


OPENER = """
import sys
from service_security.errors import StoreUnavailableError
from service_security.store import SecureDb

for read_only in (False, True):
    try:
        with SecureDb.open(sys.argv[1], bytes(range(32)), read_only=read_only) as store:
            print(store.get(b"one"))
    except StoreUnavailableError as error:
        print(error)
"""


def test_opening_on_a_full_disk_says_so_or_reads(disk: Disk, template: Path) -> None:
    """With the log of a crash beside it, and in a process of its own.

    SQLite maps its index of the log into memory: where the disk cannot hold a page of that file,
    the kernel kills the process instead of returning an error.
    """
    with SecureDb.open(template, MASTER) as store:
        store.insert(b"one", b"1")
        store.insert_many((b"%d" % number, bytes(1000)) for number in range(1200))
        crashed = _copy(template, "crashed")
        shutil.copy(f"{template}-wal", f"{crashed}-wal")
    answers: set[bool] = set()
    for leaving in range(0, 2 * ROOM, 12 * 1024):
        for name in disk.files():
            (disk.folder / name).unlink()
        shutil.copy(crashed, disk.database)
        shutil.copy(f"{crashed}-wal", f"{disk.database}-wal")
        disk.fill(leaving)
        result = subprocess.run(
            [sys.executable, "-c", OPENER, disk.database],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        disk.make_room()
        assert (result.returncode, result.stderr) == (0, ""), leaving
        lines = result.stdout.splitlines()
        assert all(line == "b'1'" or "is full" in line for line in lines), (leaving, lines)
        answers.update(line == "b'1'" for line in lines)
        with SecureDb.open(disk.database, MASTER) as store:
            assert store.count() == 1201
    assert answers == {True, False}


def test_a_log_whose_index_finds_no_room_is_a_full_disk_and_no_failed_one(tmp_path: Path) -> None:
    """A value of 17 MB takes more log than one part of its index describes."""
    value, seen = bytes(17_000_000), set()
    with _mounted(tmp_path / "disk", "tmpfs", 24 * MEBIBYTE) as disk:
        with SecureDb.open(disk.database, MASTER) as store:
            store.insert(b"one", value)
            log = disk.folder.joinpath("records.db-wal").stat().st_size
            assert disk.folder.joinpath("records.db-shm").stat().st_size > 32 * 1024
        for leaving in range(log - 8192, log + ROOM, 8192):
            for name in disk.files():
                (disk.folder / name).unlink()
            with SecureDb.open(disk.database, MASTER) as store:
                store.insert(b"two", b"2")
                store.flush()
                disk.fill(leaving)
                refusal = _refusal(store.insert, b"one", value)
                disk.make_room()
                if refusal is not None:
                    assert "is full" in refusal
                    assert store.insert(b"one", value), "a full disk is not a failed device"
                seen.add(refusal is None)
                assert store.get(b"two") == b"2"
    assert seen == {True, False}


# Read-only file systems


def _lay_down(disk: Disk, source: Path, state: str) -> None:
    """Copy a store as a clean stop, a crash, or a copy of a crash would leave it."""
    with SecureDb.open(source, MASTER) as store:
        store.insert(b"one", b"1")
        store.flush()
        if "log" in state:
            store.insert(b"two", b"2")
        shutil.copy(source, disk.database)
        for suffix in ("wal", "shm"):
            shutil.copy(source.with_name(f"{source.name}-{suffix}"), f"{disk.database}-{suffix}")
    if state == "stopped":
        Path(f"{disk.database}-wal").unlink()
    if "index" not in state:
        Path(f"{disk.database}-shm").unlink()
    if "torn index" in state:
        os.truncate(f"{disk.database}-shm", 3)


STATES = [
    "stopped",
    "empty",
    "empty, index",
    "log",
    "log, index",
    "log, torn index",
]


@pytest.mark.parametrize("state", STATES)
def test_a_store_on_a_read_only_file_system_can_be_read_and_is_left_alone(
    ext4: Disk, template: Path, state: str
) -> None:
    """Whatever the last writer left beside it, what it had acknowledged is there."""
    _lay_down(ext4, template, state)
    ext4.restart("ro")
    before = {name: (ext4.folder / name).read_bytes() for name in ext4.files()}
    with SecureDb.open(ext4.database, MASTER, read_only=True) as store:
        expected = {b"one": b"1", **({b"two": b"2"} if "log" in state else {})}
        assert dict(store.items()) == expected
        assert store.get(b"two") == expected.get(b"two")
        with store.snapshot() as snapshot:
            assert dict(snapshot.items()) == expected
        with pytest.raises(StoreUnavailableError, match="for reading only"):
            store.insert(b"three", b"3")
    with (
        pytest.raises(StoreUnavailableError, match="read-only file system"),
        SecureDb.open(ext4.database, MASTER) as store,
    ):
        store.insert(b"three", b"3")
    assert {name: (ext4.folder / name).read_bytes() for name in ext4.files()} == before
    ext4.restart()
    with SecureDb.open(ext4.database, MASTER) as store:
        assert dict(store.items()) == expected


def test_a_reader_behind_a_read_only_mount_sees_what_a_writer_elsewhere_writes(
    ext4: Disk, tmp_path: Path
) -> None:
    """As a container to which a volume is given for reading only."""
    (view := tmp_path / "view").mkdir()
    with SecureDb.open(ext4.database, MASTER) as writer, ExitStack() as stack:
        writer.insert(b"one", b"1")
        _run("mount", "--bind", "-o", "ro", ext4.folder, view)
        stack.callback(_run, "umount", view)
        read = (
            "import sys; from service_security.store import SecureDb\n"
            "with SecureDb.open(sys.argv[1], bytes(range(32)), read_only=True) as store:\n"
            "    while sys.stdin.readline():\n"
            "        print(sorted(store.items()), flush=True)\n"
        )
        reader = subprocess.Popen(
            [sys.executable, "-c", read, view / "records.db"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        for number in (1, 2, 3):
            writer.insert(b"%d" % number, b"")
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == f"{sorted(writer.items())}\n"
        reader.communicate()
        assert reader.returncode == 0


@pytest.mark.parametrize("state", ["stopped", "empty", "log"])
def test_a_reader_without_locks_refuses_a_file_that_somebody_changes(
    ext4: Disk, template: Path, tmp_path: Path, state: str
) -> None:
    """Behind a read-only mount nothing says that another mount of the disk can be written.

    Without the refusal a reader would see old and new records mixed, and no error.
    """
    _lay_down(ext4, template, state)
    (view := tmp_path / "view").mkdir()
    _run("mount", "--bind", "-o", "ro", ext4.folder, view)
    with ExitStack() as stack:
        stack.callback(_run, "umount", view)
        reader = stack.enter_context(SecureDb.open(view / "records.db", MASTER, read_only=True))
        snapshot = stack.enter_context(reader.snapshot())
        assert reader.get(b"one") == snapshot.get(b"one") == b"1"
        command = (
            "import sys; from service_security.store import SecureDb\n"
            "with SecureDb.open(sys.argv[1], bytes(range(32))) as store:\n"
            "    store.insert(b'one', b'2')\n"
        )
        subprocess.run([sys.executable, "-c", command, ext4.database], check=True)
        for store in (reader, snapshot):
            for call in (partial(store.get, b"one"), store.verify, store.count, store.check):
                with pytest.raises(StoreUnavailableError, match="somebody else has changed it"):
                    call()
        reader.close()
        with SecureDb.open(view / "records.db", MASTER, read_only=True) as again:
            assert again.get(b"one") == b"2"


def test_a_read_only_file_system_gets_no_store(ext4: Disk) -> None:
    ext4.restart("ro")
    with pytest.raises(StoreUnavailableError, match="Read-only file system"):
        SecureDb.open(ext4.database, MASTER)
    assert not ext4.files()


def test_a_file_system_that_turns_read_only_refuses_writes_and_reads_on(ext4: Disk) -> None:
    """As ext4 does by itself when it meets an error."""
    with SecureDb.open(ext4.database, MASTER) as store:
        truth = Truth()
        truth.run(store, WORKLOAD[:5])
        ext4.remount("abort")
        with pytest.raises(StoreUnavailableError, match="device failed: Read-only file system"):
            store.insert(b"new", b"")
        for step in WORKLOAD[5:]:
            with pytest.raises(StoreUnavailableError, match="failed on the device"):
                step.call(store)
        assert truth.holds_in(store)
        with pytest.raises(StoreUnavailableError, match="failed on the device"):
            store.check()
    ext4.restart()
    with SecureDb.open(ext4.database, MASTER) as store:
        assert truth.holds_in(store)
        truth.run(store, WORKLOAD[5:])
        assert truth.holds_in(store)


# Devices that fail


def test_a_device_that_is_pulled_out_is_named_and_has_all_that_was_acknowledged(
    ext4: Disk, sealed: list[bytes]
) -> None:
    """Nobody is told to restore a backup, although SQLite reports a page it cannot read as damage.

    What the file system had not been told to sync is gone: this is a real power cut as well.
    """
    truth = Truth()
    with SecureDb.open(ext4.database, MASTER) as store:
        truth.run(store, WORKLOAD)
        ext4.pull_out()
        with pytest.raises(StoreUnavailableError, match="device failed: Input/output error"):
            store.insert(b"new", b"")
        for read in (lambda: store.get(b"one"), lambda: list(store.items()), store.count):
            with pytest.raises(StoreUnavailableError, match="device failed"):
                read()
        with pytest.raises(StoreUnavailableError):
            SecureDb.open(ext4.database, MASTER)
    ext4.restart()
    with SecureDb.open(ext4.database, MASTER) as store:
        assert truth.holds_in(store)
        assert store.insert(b"new", b"")
    assert not _counters_repeat(sealed)


def test_a_store_that_does_not_sync_loses_records_when_the_device_is_pulled_out(
    ext4: Disk,
) -> None:
    """The control: this is what the syncs stand against."""
    SecureDb.open(ext4.database, MASTER).close()
    with SecureDb.open(ext4.database, MASTER) as store:
        store._file.connection.pragma("synchronous", "OFF")
        store.insert_many((b"%d" % number, bytes(1000)) for number in range(100))
        ext4.pull_out()
    ext4.restart()
    with SecureDb.open(ext4.database, MASTER) as store:
        assert store.count() < 100


def test_a_sync_that_fails_on_a_real_device_stops_the_writes_and_loses_nothing(
    tmp_path: Path, sealed: list[bytes]
) -> None:
    """An image on a tmpfs that is full: ext4 has room for the write, its device has none."""
    with _mounted(tmp_path / "below", "tmpfs", 24 * MEBIBYTE) as below:
        with _mounted(below.folder / "disk", "ext4/4096", 64 * MEBIBYTE) as disk:
            with SecureDb.open(disk.database, MASTER) as store:
                store.insert_many((b"%d" % number, bytes(1000)) for number in range(20))
                store.flush()
                store.insert(b"one", b"1")
                below.fill()
                written = 0
                while (refusal := _refusal(store.insert, b"new %d" % written, b"")) is None:
                    written += 1
                assert "device failed" in refusal
                for _ in range(3):
                    with pytest.raises(StoreUnavailableError, match="failed on the device"):
                        store.insert(b"two", b"2")
                assert store.count() == 21 + written
                below.make_room()
            disk.restart()
            with SecureDb.open(disk.database, MASTER) as store:
                assert store.get(b"one") == b"1"
                assert store.get(b"two") is None
                assert store.count() - 21 - written in (0, 1)
                assert store.insert(b"two", b"2")
        assert not _counters_repeat(sealed)
