"""Restoring: a new database, whole or none, that shares no nonce with the old one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from conftest import CIPHERS, MASTER, Opener
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    SecurityError,
    StoreUnavailableError,
    UnsupportedFormatError,
    WrongKeyError,
)
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb
from service_security.store.backup import restore_backup
from service_security.store.backup_stream import SEALED_CHUNK_BYTES, seal_records
from service_security.store.header import Header, HeaderKeys
from service_security.store.kind import PLAIN_TABLE
from test_backup import Stop, every_secret, never, silent, written
from test_backup_stream import BOTH, FRONT, KEY_FILE_KEY, secrets_of

__all__ = ["every_secret"]  # a fixture

RECORDS = {b"name %d" % number: b"value %d" % number * 20 for number in range(1234)}
OTHER_MASTER = bytes(range(50, 82))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A backup of four chunks, outside the data folder."""
    path = tmp_path / "today.backup"
    with secrets_of(BOTH) as secrets:
        path.write_bytes(b"".join(seal_records(RECORDS.items(), secrets)))
    assert 3 < path.stat().st_size / SEALED_CHUNK_BYTES < 4
    return path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where the restored database goes, in a data folder of its own."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "records.db"


def restored(
    source: Path,
    database: Path,
    keys: Mapping[str, bytes] = BOTH,
    *,
    master: bytes = MASTER,
    cipher: str = "xchacha20poly1305",
    progress: Callable[[int, int], None] = silent,
) -> int:
    """Restore a backup."""
    with secrets_of(keys) as secrets, SecretBytes.copy_of(master) as master_key:
        return restore_backup(
            source, secrets, database, master_key, cipher=cipher, progress=progress
        )


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def read(database: Path, master: bytes = MASTER) -> dict[bytes, bytes]:
    """Return every record of a database."""
    with SecureDb.open(database, master) as store:
        return dict(store.items())


@pytest.mark.parametrize("goal", CIPHERS)
def test_a_store_comes_back_under_any_cipher(
    open_store: Opener, database: Path, tmp_path: Path, cipher: str, goal: str
) -> None:
    records = RECORDS | {b"": b"", b"long": bytes(200_000), b"n" * 65_535: b"\0"}
    target = tmp_path / "today.backup"
    with open_store(tmp_path / "old.db") as store:
        store.insert_many(records.items())
        assert store.cipher == cipher
        written(store, target)
    assert restored(target, database, cipher=goal) == len(records)
    assert read(database) == records
    with SecureDb.open(database, MASTER) as store:
        assert store.cipher == goal
    assert database.stat().st_mode & 0o777 == 0o600
    assert names_in(database.parent) == ["records.db"]


@pytest.mark.parametrize("slot_type", BOTH)
def test_each_slot_restores_alone_and_under_another_master_key(
    source: Path, database: Path, slot_type: str
) -> None:
    restored(source, database, {slot_type: BOTH[slot_type]}, master=OTHER_MASTER)
    assert read(database, OTHER_MASTER) == RECORDS
    with pytest.raises(WrongKeyError):
        read(database)


def test_an_empty_backup_is_an_empty_store(tmp_path: Path, database: Path) -> None:
    with SecureDb.open(tmp_path / "old.db", MASTER) as store:
        written(store, tmp_path / "empty.backup")
    assert restored(tmp_path / "empty.backup", database) == 0
    assert read(database) == {}


def test_progress_counts_up_to_the_number_of_records(source: Path, database: Path) -> None:
    seen: list[tuple[int, int]] = []
    restored(source, database, progress=lambda *step: seen.append(step))
    assert seen == [(500, 1234), (1000, 1234), (1234, 1234)]


def test_the_clock_dates_the_new_keys(source: Path, database: Path) -> None:
    with secrets_of(BOTH) as secrets, SecretBytes.copy_of(MASTER) as master:
        restore_backup(
            source,
            secrets,
            database,
            master,
            cipher="aes256gcm",
            clock=lambda: 1_000_000_000.0,
            progress=silent,
        )
    assert {created for _, _, created in _keys_of(database)} == {1_000_000_000}


# Nonces


def _keys_of(database: Path) -> list[tuple[bytes, int, int]]:
    """Return each key of a database, with its id and its date."""
    with (
        closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)) as connection,
        SecretBytes.copy_of(MASTER) as master,
    ):
        header = Header.read(connection)
        with (
            closing(HeaderKeys.of(master, header.db_id)) as keys,
            keys.open(header) as keyset,
        ):
            return [
                (bytes(entry.key.view), entry.key_id, entry.created)
                for entry in keyset.entries.values()
            ]


def _rows_of(database: Path) -> list[tuple[bytes, bytes]]:
    with closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        rows = connection.execute("SELECT token, sealed FROM record").fetchall()
        return [(bytes(token), bytes(sealed)) for token, sealed in rows]  # type: ignore[arg-type]


def test_a_restored_copy_shares_no_key_and_no_nonce_with_the_original(
    tmp_path: Path, database: Path, cipher: str
) -> None:
    """Both are written to afterwards, from the same counters on."""
    original, target = tmp_path / "old.db", tmp_path / "today.backup"
    with SecureDb.open(original, MASTER, cipher=cipher) as store:
        store.insert(b"name", b"value")
        written(store, target)
    restored(target, database, cipher=cipher)
    for path in (original, database):
        with SecureDb.open(path, MASTER) as store:
            store.insert(b"later", b"value")
            store.flush()
    assert read(original) == read(database)  # the same records, and nothing else is the same:
    with (
        closing(apsw.Connection(str(original))) as one,
        closing(apsw.Connection(str(database))) as other,
    ):
        assert Header.read(one).db_id != Header.read(other).db_id
        assert Header.read(one).keyset != Header.read(other).keyset
    keys = [key for path in (original, database) for key, _, _ in _keys_of(path)]
    assert len(keys) == 4
    assert len(set(keys)) == 4
    rows = [row for path in (original, database) for row in _rows_of(path)]
    assert len({token for token, _ in rows}) == 4
    assert len({sealed[:24] for _, sealed in rows}) == 4  # nonces
    assert len({sealed[24:] for _, sealed in rows}) == 4  # ciphertexts


def test_a_copied_file_does_share_its_keys(tmp_path: Path) -> None:
    """The control: this is what restoring by copying would come to."""
    original, copy = tmp_path / "old.db", tmp_path / "copy.db"
    with SecureDb.open(original, MASTER) as store:
        store.insert(b"name", b"value")
    copy.write_bytes(original.read_bytes())
    assert _keys_of(original) == _keys_of(copy)
    assert _rows_of(original) == _rows_of(copy)


# What is there stays


@pytest.mark.parametrize("kind", ["encrypted", "plain", "empty", "a dangling link"])
def test_a_database_that_is_there_stays(source: Path, database: Path, kind: str) -> None:
    if kind == "encrypted":
        SecureDb.open(database, MASTER).close()
    elif kind == "plain":
        with closing(apsw.Connection(str(database))) as connection:
            connection.execute(PLAIN_TABLE)
    elif kind == "empty":
        database.touch()
    else:
        database.symlink_to("missing")
    before = database.lstat(), b"" if kind == "a dangling link" else database.read_bytes()
    with pytest.raises(ConfigurationError, match="is there already"):
        restored(source, database, progress=never)
    assert before[0] == database.lstat()
    assert names_in(database.parent) == ["records.db"]
    assert before[1] == (b"" if kind == "a dangling link" else database.read_bytes())


def test_a_database_that_appears_meanwhile_stays(source: Path, database: Path) -> None:
    def take_it(*_: int) -> None:
        database.write_bytes(b"precious")

    with pytest.raises(ConfigurationError, match="is there already"):
        restored(source, database, progress=take_it)
    assert database.read_bytes() == b"precious"
    assert names_in(database.parent) == ["records.db"]


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_log_without_its_database_is_not_played_into_the_new_one(
    source: Path, database: Path, suffix: str
) -> None:
    log = database.with_name(database.name + suffix)
    log.write_bytes(b"records that are nowhere else")
    with pytest.raises(IntegrityError, match="without"):
        restored(source, database)
    assert names_in(database.parent) == [log.name]
    log.unlink()
    assert restored(source, database) == len(RECORDS)


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_a_folder_that_a_service_uses_is_refused(source: Path, database: Path) -> None:
    import fcntl

    descriptor = os.open(database.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with pytest.raises(StoreUnavailableError, match="Stop the service"):
        restored(source, database)
    os.close(descriptor)
    assert names_in(database.parent) == []
    assert restored(source, database) == len(RECORDS)


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_the_folder_is_held_meanwhile(source: Path, database: Path) -> None:
    refusals = []

    def try_another(*_: int) -> None:
        with pytest.raises(StoreUnavailableError, match="in use"):
            restored(source, database)
        refusals.append(1)

    assert restored(source, database, progress=try_another) == len(RECORDS)
    assert len(refusals) == 3


def test_a_missing_folder_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="missing"):
        restored(source, tmp_path / "missing" / "records.db")


# Nothing is left of what failed


def _flip(position: int) -> Callable[[bytes], bytes]:
    def flip(stream: bytes) -> bytes:
        changed = bytearray(stream)
        changed[position] ^= 1
        return bytes(changed)

    return flip


def _swap(stream: bytes) -> bytes:
    """Swap the second and the third chunk."""
    one, two, three = (FRONT + number * SEALED_CHUNK_BYTES for number in (1, 2, 3))
    return stream[:one] + stream[two:three] + stream[one:two] + stream[three:]


BAD: dict[str, tuple[Callable[[bytes], bytes], type[SecurityError]]] = {
    "no backup": (lambda _: b"something else", IntegrityError),
    "nothing": (lambda _: b"", IntegrityError),
    "another version": (lambda stream: stream[:4] + b"\x02" + stream[5:], UnsupportedFormatError),
    "an edited identifier": (_flip(5), WrongKeyError),
    "an edited commitment": (_flip(FRONT - 1), IntegrityError),
    "damage in the first chunk": (_flip(1000), IntegrityError),
    "damage in the third chunk": (_flip(150_000), IntegrityError),
    "damage at the end": (_flip(-1), IntegrityError),
    "two chunks swapped": (_swap, IntegrityError),
    "the last byte missing": (lambda stream: stream[:-1], IntegrityError),
    "the last chunk missing": (lambda stream: stream[:-50_000], IntegrityError),
    "a byte too many": (lambda stream: stream + b"\0", IntegrityError),
}


@pytest.mark.parametrize(("change", "error"), BAD.values(), ids=BAD)
def test_a_bad_backup_leaves_no_database(
    source: Path, database: Path, change: Callable[[bytes], bytes], error: type[SecurityError]
) -> None:
    source.write_bytes(change(source.read_bytes()))
    with pytest.raises(error, match=r"The backup .*today\.backup cannot be used"):
        restored(source, database)
    assert names_in(database.parent) == []


@pytest.mark.parametrize("change", ["the last byte missing", "the last chunk missing"])
def test_a_backup_that_was_cut_is_refused_before_any_work(
    source: Path, database: Path, change: str
) -> None:
    source.write_bytes(BAD[change][0](source.read_bytes()))
    with pytest.raises(IntegrityError):
        restored(source, database, progress=never)


def test_records_before_the_damage_were_in_a_draft_only(source: Path, database: Path) -> None:
    source.write_bytes(_flip(150_000)(source.read_bytes()))
    drafts: list[str] = []
    with pytest.raises(IntegrityError):
        restored(source, database, progress=lambda *_: drafts.extend(names_in(database.parent)))
    assert any(name.startswith("records.db.restoring-") for name in drafts)
    assert "records.db" not in drafts
    assert names_in(database.parent) == []


def test_a_name_that_comes_twice_leaves_no_database(source: Path, database: Path) -> None:
    """Also where one of the two would be overwritten in another batch."""
    with secrets_of(BOTH) as secrets:
        pairs = [*RECORDS.items(), (b"name 7", b"another")]
        source.write_bytes(b"".join(seal_records(pairs, secrets)))
    with pytest.raises(IntegrityError, match="has a name twice"):
        restored(source, database)
    assert names_in(database.parent) == []


def test_wrong_keys_and_ciphers_leave_nothing(source: Path, database: Path) -> None:
    with pytest.raises(WrongKeyError):
        restored(source, database, {"key-file": bytes(32)})
    with pytest.raises(WrongKeyError):
        restored(source, database, {"container-secret": KEY_FILE_KEY})
    with pytest.raises(ConfigurationError, match="no cipher"):
        restored(source, database, cipher="rot13")
    with pytest.raises(ConfigurationError, match="32 bytes"):
        restored(source, database, master=bytes(31))
    assert names_in(database.parent) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stop(), OSError("of the caller")])
def test_whatever_stops_it_leaves_nothing(
    source: Path, database: Path, error: BaseException
) -> None:
    def fail(done: int, total: int) -> None:
        if done == total:
            raise error

    with pytest.raises(type(error)) as raised:
        restored(source, database, progress=fail)
    assert raised.value is error
    assert names_in(database.parent) == []


def test_a_draft_that_another_program_has_open_is_not_published(
    source: Path, database: Path
) -> None:
    others: list[apsw.Connection] = []

    def open_draft(*_: int) -> None:
        (draft,) = database.parent.glob("*.restoring-????????????????")
        other = apsw.Connection(str(draft))
        other.execute("SELECT count(*) FROM record").fetchall()
        others.append(other)

    with pytest.raises(StoreUnavailableError, match="Another process"):
        restored(source, database, progress=open_draft)
    for other in others:
        other.close()
    assert names_in(database.parent) == []


def test_every_key_is_wiped_in_the_end(
    source: Path,
    database: Path,
    every_secret: list[SecretBytes],
) -> None:
    def stop(*_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        restored(source, database, progress=stop)
    restored(source, database)
    assert len(every_secret) > 20
    assert all(secret._page is None for secret in every_secret)


# Killed


RESTORE = """
import os, signal, sys
from pathlib import Path
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, backup, creation

source, database, point = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def progress(done, total):
    if point == f"after {done}":
        kill()


def before(owner, name):
    setattr(owner, name, kill)


def after(owner, name):
    original = getattr(owner, name)
    setattr(owner, name, lambda *a, **k: (original(*a, **k), kill()))


if point == "before its file has a name":
    before(creation, "publish_new")
elif point == "before the records are flushed":
    before(SecureDb, "flush")
elif point == "before it is closed":
    after(SecureDb, "flush")
elif point == "before it is published":
    before(backup, "publish_new")
elif point == "between its two names":
    link = os.link
    os.link = lambda a, b: (link(a, b), b == database and kill())
elif point == "after it is published":
    after(backup, "publish_new")
with SecretBytes.copy_of(bytes(range(32))) as master:
    backup.restore_backup(
        source, {"master": master}, database, master, cipher="aes256gcm", progress=progress
    )
"""

BEFORE = (
    "before its file has a name",
    "after 500",
    "after 1000",
    "after 1234",
    "before the records are flushed",
    "before it is closed",
    "before it is published",
)
AFTER = ("between its two names", "after it is published")


def _restore_and_die(source: Path, database: Path, point: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", RESTORE, str(source), str(database), point], check=False
    )
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
@pytest.mark.parametrize("point", BEFORE)
def test_a_killed_restore_leaves_no_database_and_the_next_one_works(
    source: Path, database: Path, point: str
) -> None:
    _restore_and_die(source, database, point)
    assert not database.exists()
    assert any(".restoring-" in name for name in names_in(database.parent))  # something was there
    assert restored(source, database) == len(RECORDS)
    assert read(database) == RECORDS
    assert names_in(database.parent) == ["records.db"]


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
@pytest.mark.parametrize("point", AFTER)
def test_a_restore_that_is_killed_after_publishing_leaves_a_whole_database(
    source: Path, database: Path, point: str
) -> None:
    _restore_and_die(source, database, point)
    assert read(database) == RECORDS
    with pytest.raises(ConfigurationError, match="is there already"):
        restored(source, database)
    assert names_in(database.parent) == ["records.db"]  # and the second name is gone
    assert read(database) == RECORDS


def test_only_drafts_are_removed(source: Path, database: Path) -> None:
    random = "0123456789abcdef"
    drafts = [
        f"records.db.restoring-{random}",
        f"records.db.restoring-{random}-wal",
        f"records.db.restoring-{random}-shm",
        f"records.db.restoring-{random}-journal",
        f".records.db.restoring-{random}.{random}",
        f".records.db.restoring-{random}.{random}-wal",
    ]
    others = [
        f"other.db.restoring-{random}",
        f"recordsXdb.restoring-{random}",
        "records.db.restoring-notes.txt",
        f"records.db.restoring-{random}.txt",
        f"records.db.importing-{random}",
    ]
    for name in drafts + others:
        (database.parent / name).write_bytes(b"of before")
    restored(source, database)
    assert names_in(database.parent) == sorted([*others, "records.db"])


def test_a_draft_is_not_looked_for_in_the_place_of_a_link(
    source: Path, database: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (database.parent / "records.db.restoring-0123456789abcdef").symlink_to(victim)
    restored(source, database)
    assert victim.read_bytes() == b"untouched"
    assert names_in(database.parent) == ["records.db"]
