"""Writing and checking backups: of one moment, whole or not at all, and showing nothing."""

import errno
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import pytest

from conftest import MASTER, Opener, until
from service_security._files import publish_new
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    StoreUnavailableError,
    UnsupportedFormatError,
    WrongKeyError,
)
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, backup_file, backup_stream
from service_security.store.backup import check_backup, write_backup
from service_security.store.backup_file import open_backup
from service_security.store.backup_stream import seal_records
from test_backup_stream import BOTH, KEY_FILE_KEY, secrets_of

RECORDS = {b"name %d" % number: b"value %d" % number for number in range(1234)}


def silent(*_: int) -> None:
    """Say nothing of the progress."""


def never(*_: int) -> None:
    """Fail if there is any progress."""
    pytest.fail("work was done")


def written(
    store: SecureDb,
    target: Path,
    keys: Mapping[str, bytes] = BOTH,
    progress: Callable[[int, int], None] = silent,
    on_damage: Callable[[int], None] | None = None,
) -> int:
    """Write a backup."""
    with secrets_of(keys) as secrets:
        return write_backup(store, target, secrets, progress=progress, on_damage=on_damage)


def checked(
    source: Path,
    keys: Mapping[str, bytes] = BOTH,
    progress: Callable[[int, int], None] = silent,
) -> int:
    """Check a backup."""
    with secrets_of(keys) as secrets:
        return check_backup(source, secrets, progress=progress)


def records_in(source: Path) -> dict[bytes, bytes]:
    """Return what is in a backup."""
    with secrets_of(BOTH) as secrets, open_backup(source, secrets) as opened:
        return dict(opened.records())


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, without those of the test's database."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("records.db"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a test's backup goes; nothing is there yet."""
    return tmp_path / "today.backup"


@pytest.fixture
def full_store(store: SecureDb) -> SecureDb:
    """A store with records."""
    store.insert_many(RECORDS.items())
    return store


def test_a_backup_holds_every_record_and_any_slot_opens_it(
    full_store: SecureDb, target: Path
) -> None:
    assert written(full_store, target) == len(RECORDS)
    assert records_in(target) == RECORDS
    for slot_type, key in BOTH.items():
        assert checked(target, {slot_type: key}) == len(RECORDS)
    assert target.stat().st_mode & 0o777 == 0o600
    assert names_in(target.parent) == ["today.backup"]
    assert dict(full_store.items()) == RECORDS


def test_an_empty_store_has_a_backup_too(store: SecureDb, target: Path) -> None:
    assert written(store, target) == 0
    assert checked(target) == 0


def test_a_store_that_is_open_for_reading_only_can_be_backed_up(
    open_store: Opener, database: Path, target: Path
) -> None:
    open_store().insert_many(RECORDS.items())
    with SecureDb.open(database, MASTER, read_only=True) as reader:
        assert written(reader, target) == len(RECORDS)
    assert records_in(target) == RECORDS


def test_progress_counts_up_to_the_number_of_records(full_store: SecureDb, target: Path) -> None:
    seen: list[tuple[int, int]] = []
    written(full_store, target, progress=lambda *step: seen.append(step))
    checked(target, progress=lambda *step: seen.append(step))
    assert seen == [(500, 1234), (1000, 1234), (1234, 1234)] * 2


def test_a_backup_that_the_master_key_alone_would_open_is_refused(
    store: SecureDb, target: Path
) -> None:
    for keys in ({"master": MASTER}, {}):
        with pytest.raises(ConfigurationError, match="lost together with the envelope"):
            written(store, target, keys)
    assert names_in(target.parent) == []
    written(store, target, {"container-secret": KEY_FILE_KEY})
    assert checked(target, {"container-secret": KEY_FILE_KEY}) == 0


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "a folder"])
def test_what_has_the_name_stays(full_store: SecureDb, target: Path, kind: str) -> None:
    if kind == "a file":
        target.write_bytes(b"precious")
    elif kind == "a folder":
        target.mkdir()
    else:
        target.symlink_to(target.parent / "missing")
    with pytest.raises(ConfigurationError, match=r"today\.backup is there already"):
        written(full_store, target, progress=never)
    assert kind != "a file" or target.read_bytes() == b"precious"
    assert names_in(target.parent) == ["today.backup"]


def test_a_file_that_takes_the_name_meanwhile_stays(full_store: SecureDb, target: Path) -> None:
    def take_it(*_: int) -> None:
        target.write_bytes(b"precious")

    with pytest.raises(ConfigurationError, match="is there already"):
        written(full_store, target, progress=take_it)
    assert target.read_bytes() == b"precious"
    assert names_in(target.parent) == ["today.backup"]


def test_a_wrong_key_is_told_from_damage(full_store: SecureDb, target: Path) -> None:
    written(full_store, target)
    with pytest.raises(WrongKeyError, match=r"today\.backup"):
        checked(target, {"key-file": bytes(32)})
    contents = bytearray(target.read_bytes())
    contents[-1] ^= 1
    target.write_bytes(contents)
    with pytest.raises(IntegrityError, match=r"today\.backup.*damaged"):
        checked(target)
    contents[4] = 2
    target.write_bytes(contents)
    with pytest.raises(UnsupportedFormatError, match=r"today\.backup.*format 2"):
        checked(target)


def test_a_name_that_comes_twice_is_refused(target: Path) -> None:
    pairs = [(b"%d" % number, b"") for number in range(1000)]
    for records, is_good in ((pairs, True), ([*pairs, (b"7", b"another")], False)):
        with secrets_of(BOTH) as secrets:
            target.write_bytes(b"".join(seal_records(records, secrets)))
        if is_good:
            assert checked(target) == 1000  # the control
        else:
            with pytest.raises(IntegrityError, match="has a name twice"):
                checked(target)


def test_checking_writes_nothing(full_store: SecureDb, target: Path) -> None:
    written(full_store, target)
    target.chmod(0o400)
    before = target.read_bytes(), target.stat().st_mtime_ns, sorted(target.parent.iterdir())
    checked(target)
    assert before == (
        target.read_bytes(),
        target.stat().st_mtime_ns,
        sorted(target.parent.iterdir()),
    )


def test_what_cannot_be_a_backup_is_named(target: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=r"today\.backup.*No such file"):
        checked(target)
    with pytest.raises(StoreUnavailableError, match="Is a directory"):
        checked(target.parent)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        checked(Path(os.devnull))
    target.write_bytes(b"PK\x03\x04 some other file")
    with pytest.raises(IntegrityError, match="is no backup"):
        checked(target)


@pytest.mark.parametrize("change", [lambda contents: contents[:-1], lambda c: c + b"\0"])
def test_a_file_of_another_length_is_refused_before_any_work(
    full_store: SecureDb, target: Path, change: Callable[[bytes], bytes]
) -> None:
    written(full_store, target)
    target.write_bytes(change(target.read_bytes()))
    with pytest.raises(IntegrityError):
        checked(target, progress=never)


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are POSIX")
def test_a_pipe_does_not_make_it_wait(target: Path) -> None:
    os.mkfifo(target)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        checked(target)


# Damaged records


def _damage(store: SecureDb, *positions: int) -> None:
    for position in positions:
        store._file.connection.execute(
            "UPDATE record SET sealed = zeroblob(100) WHERE id = ?", (position,)
        )


def test_a_damaged_record_stops_a_backup_that_nobody_watches(
    full_store: SecureDb, target: Path
) -> None:
    _damage(full_store, 700)
    with pytest.raises(IntegrityError, match="Record 700"):
        written(full_store, target)
    assert names_in(target.parent) == []


def test_damaged_records_are_told_and_left_out(full_store: SecureDb, target: Path) -> None:
    positions = [1, 500, 700, 1234]
    _damage(full_store, *positions)
    told: list[int] = []
    steps: list[tuple[int, int]] = []
    count = written(
        full_store, target, progress=lambda *step: steps.append(step), on_damage=told.append
    )
    assert told == positions
    assert count == len(RECORDS) - len(positions)
    assert steps == [(500, 1234), (1000, 1234), (1234, 1234)]
    lost = {b"name %d" % (position - 1) for position in positions}
    assert records_in(target) == {
        name: value for name, value in RECORDS.items() if name not in lost
    }


# Failures while writing


class Stop(BaseException):
    """Stands for any interrupt."""


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        Stop(),
        BrokenPipeError("of whoever shows the progress"),
        IntegrityError("of the store"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_stops_it_leaves_no_file_and_is_not_renamed(
    full_store: SecureDb, target: Path, error: BaseException
) -> None:
    drafts: list[str] = []

    def fail(done: int, total: int) -> None:
        drafts.extend(names_in(target.parent))
        if done == total:
            raise error

    with pytest.raises(type(error)) as raised:
        written(full_store, target, progress=fail)
    assert raised.value is error
    assert len(set(drafts)) == 1  # there was a draft
    assert names_in(target.parent) == []
    full_store.flush()  # and the snapshot is closed


def test_a_draft_is_for_its_owner_only_and_cannot_be_foreseen(
    full_store: SecureDb, target: Path
) -> None:
    seen: set[str] = set()

    def look(*_: int) -> None:
        (draft,) = names_in(target.parent)
        seen.add(draft)
        assert (target.parent / draft).stat().st_mode & 0o777 == 0o600

    old = os.umask(0)
    try:
        for _ in range(2):
            written(full_store, target, progress=look)
            assert target.stat().st_mode & 0o777 == 0o600
            target.unlink()
    finally:
        os.umask(old)
    assert len(seen) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_a_file_that_cannot_grow_is_named_and_removed(store: SecureDb, target: Path) -> None:
    import resource

    store.insert_many((b"%d" % number, bytes(1000)) for number in range(1000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(StoreUnavailableError, match=r"today\.backup.*File too large"):
            written(store, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(target.parent) == []
    assert written(store, target) == 1000


@pytest.mark.parametrize("step", ["open", "fsync", "link"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_device_that_fails_at_any_step_is_named(
    full_store: SecureDb, target: Path, step: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        said = "is full" if code == errno.ENOSPC else os.strerror(code)
        with pytest.raises(StoreUnavailableError, match=f"today.backup.*{said}"):
            written(full_store, target)
    assert names_in(target.parent) == []
    assert written(full_store, target) == len(RECORDS)


def test_a_missing_folder_is_named(full_store: SecureDb, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=r"missing.*No such file"):
        written(full_store, tmp_path / "missing" / "today.backup")


def test_the_file_and_its_name_are_on_the_disk_when_it_returns(
    full_store: SecureDb, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync = os.fsync

    def note_fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        steps.append("folder" if os.path.samestat(found, target.parent.stat()) else "file")
        fsync(descriptor)

    def note_publish(draft: Path, path: Path) -> bool:
        steps.append("publish")
        return publish_new(draft, path)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(backup_file, "publish_new", note_publish)
    written(full_store, target)
    assert steps == ["file", "publish", "folder"]


# Keys


@pytest.fixture
def every_secret(monkeypatch: pytest.MonkeyPatch) -> list[SecretBytes]:
    """Each secret that is made from here on."""
    made: list[SecretBytes] = []
    original = SecretBytes.__init__

    def note(self: SecretBytes, length: int = 32) -> None:
        made.append(self)
        original(self, length)

    monkeypatch.setattr(SecretBytes, "__init__", note)
    return made


def _are_wiped(secrets: list[SecretBytes]) -> bool:
    return all(secret._page is None for secret in secrets)


def test_every_key_is_wiped_in_the_end(
    full_store: SecureDb, target: Path, every_secret: list[SecretBytes]
) -> None:
    lengths = []

    def look(*_: int) -> None:
        assert not _are_wiped(every_secret)  # the control
        lengths.append(len(every_secret))

    written(full_store, target, progress=look)
    checked(target, progress=look)
    assert len(lengths) == 6
    assert _are_wiped(every_secret)


def test_every_key_is_wiped_after_a_failure(
    full_store: SecureDb, target: Path, every_secret: list[SecretBytes]
) -> None:
    def stop(*_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        written(full_store, target, progress=stop)
    written(full_store, target)
    with pytest.raises(Stop):
        checked(target, progress=stop)
    with pytest.raises(WrongKeyError):
        checked(target, {"key-file": bytes(32)})
    contents = target.read_bytes()
    for position in (150, 300, 400, len(contents) - 1):
        changed = bytearray(contents)
        changed[position] ^= 1
        target.write_bytes(changed)
        with pytest.raises((IntegrityError, WrongKeyError)):
            checked(target)
    target.write_bytes(contents[:-1])
    with pytest.raises(IntegrityError):
        checked(target)
    assert len(every_secret) > 50
    assert _are_wiped(every_secret)


# One moment


def _transfer(store: SecureDb, source: bytes, goal: bytes, amount: int) -> None:
    with store.transaction():
        accounts = [int(store.get(name) or b"0") for name in (source, goal)]
        store.insert(source, b"%d" % (accounts[0] - amount))
        store.insert(goal, b"%d" % (accounts[1] + amount))


def _sum(records: Iterator[tuple[bytes, bytes]]) -> int:
    return sum(int(value) for name, value in records if name.startswith(b"account"))


@pytest.fixture
def bank(store: SecureDb) -> SecureDb:
    """Two accounts with a thousand in all, and much between them."""
    store.insert(b"account 1", b"600")
    store.insert_many((b"between %d" % number, bytes(50)) for number in range(3000))
    store.insert(b"account 2", b"400")
    return store


def test_reading_without_a_snapshot_sees_a_torn_sum(bank: SecureDb) -> None:
    """The control: what the backup would hold if it were read like this."""
    items = bank.items()
    first_page = list(islice(items, 10))
    _transfer(bank, b"account 1", b"account 2", 100)
    assert _sum(iter([*first_page, *items])) == 1100
    assert _sum(bank.items()) == 1000


def test_a_backup_is_of_one_moment_while_a_thread_writes(bank: SecureDb, target: Path) -> None:
    stop = threading.Event()
    transfers: list[int] = []

    def one_more(*_: int) -> None:
        before = len(transfers)
        until(lambda: len(transfers) > before or not writer.is_alive())

    def work() -> None:
        while not stop.is_set():
            amount = 7 if len(transfers) % 2 else -7
            _transfer(bank, b"account 1", b"account 2", amount)
            transfers.append(amount)

    writer = threading.Thread(target=work)
    writer.start()
    try:
        during = []
        for _ in range(5):
            one_more()
            before = len(transfers)
            written(bank, target, progress=one_more)
            during.append(len(transfers) - before)
            found = records_in(target)
            assert _sum(iter(found.items())) == 1000
            assert len(found) == 3002
            target.unlink()
    finally:
        stop.set()
        writer.join()
    assert min(during) > 2  # it did write meanwhile


def test_what_is_written_meanwhile_is_not_in_the_backup(full_store: SecureDb, target: Path) -> None:
    def write_more(done: int, _: int) -> None:
        full_store.insert(b"late %d" % done, b"")
        full_store.remove(b"name 1233")

    written(full_store, target, progress=write_more)
    assert records_in(target) == RECORDS
    assert full_store.get(b"name 1233") is None  # the control
    assert full_store.count() == len(RECORDS) + 3 - 1


# Nothing to read in it


def test_no_name_and_no_value_is_in_the_file(full_store: SecureDb, target: Path) -> None:
    written(full_store, target)
    contents = target.read_bytes()
    plain = b"".join(backup_stream._payload(RECORDS.items()))
    for name, value in RECORDS.items():
        if len(value) >= 8:  # a shorter one may be there by chance
            assert name in plain  # the control
            assert value in plain
            assert name not in contents
            assert value not in contents


def test_no_key_is_in_the_file(full_store: SecureDb, target: Path) -> None:
    written(full_store, target)
    contents = target.read_bytes()
    for key in BOTH.values():
        assert key not in contents


def test_no_error_shows_a_name_or_a_value(target: Path) -> None:
    records = [(b"a secret name", b"a secret value")] * 2
    with secrets_of(BOTH) as secrets:
        target.write_bytes(b"".join(seal_records(records, secrets)))
    with pytest.raises(IntegrityError) as refusal:
        checked(target)
    assert "secret" not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def test_memory_does_not_grow_with_the_store(store: SecureDb, target: Path) -> None:
    for number in range(40):
        store.insert(b"%d" % number, bytes(1024 * 1024))
    tracemalloc.start()
    try:
        written(store, target)
        checked(target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert target.stat().st_size > 40 * 1024 * 1024
    assert 4 * 1024 * 1024 < peak < 16 * 1024 * 1024


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_where_there_are_no_hard_links_the_file_appears_all_the_same(
    store: SecureDb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As on FAT, which most memory sticks have."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    store.insert_many(RECORDS.items())
    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "stick.backup"
    written(store, target)
    assert records_in(target) == RECORDS
    with pytest.raises(ConfigurationError, match="is there already"):
        written(store, target)
    other = tmp_path / "taken meanwhile.backup"
    with pytest.raises(ConfigurationError, match="is there already"):
        written(store, other, progress=lambda *_: other.touch())
    assert other.read_bytes() == b""
    assert {path.name for path in tmp_path.iterdir() if ".backup" in path.name} == {
        "stick.backup",
        "taken meanwhile.backup",
    }
