"""Moving records between a plain and an encrypted file: whole, checked, and resumable."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest

from conftest import MASTER
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    StoreUnavailableError,
    WrongKeyError,
)
from service_security.layout import DataFolder
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, replacement, transfer
from service_security.store.kind import PLAIN_TABLE, Kind, kind_of
from service_security.store.other_kind import leave_note, refuse_other_kind
from service_security.store.transfer import Transferred, export_records, import_records

RECORDS = {f"name {number}": b"value %d" % number for number in range(1234)}


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """An empty data folder."""
    return DataFolder(tmp_path)


def _write_plain(path: Path, records: dict[str, bytes]) -> None:
    path.unlink(missing_ok=True)
    with closing(apsw.Connection(str(path))) as connection, connection:
        connection.execute(PLAIN_TABLE)
        connection.executemany("INSERT INTO records (name, value) VALUES (?, ?)", records.items())


def _read_plain(path: Path) -> dict[str, bytes]:
    with closing(apsw.Connection(str(path))) as connection:
        return dict(connection.execute("SELECT name, value FROM records"))


def _read_encrypted(path: Path) -> dict[str, bytes]:
    with SecureDb.open(path, MASTER) as store:
        return {name.decode(): value for name, value in store.items()}


def _import(
    folder: DataFolder, cipher: str = "xchacha20poly1305", key: bytes = MASTER
) -> Transferred:
    with SecretBytes.copy_of(key) as master:
        return import_records(folder, master, cipher=cipher, progress=lambda *_: None)


def _export(folder: DataFolder, key: bytes = MASTER) -> Transferred:
    with SecretBytes.copy_of(key) as master:
        return export_records(folder, master, progress=lambda *_: None)


def _names(folder: DataFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_there_and_back(folder: DataFolder, cipher: str) -> None:
    _write_plain(folder.database, RECORDS)
    assert _import(folder, cipher) == Transferred(
        len(RECORDS), old_file_remains=False, cipher=cipher
    )
    assert kind_of(folder.database) is Kind.ENCRYPTED
    assert _read_encrypted(folder.database) == RECORDS
    with SecureDb.open(folder.database, MASTER) as store:
        assert store.cipher == cipher
    assert _export(folder) == Transferred(len(RECORDS), old_file_remains=False, cipher=cipher)
    assert kind_of(folder.database) is Kind.PLAIN
    assert _read_plain(folder.database) == RECORDS
    assert _names(folder) == ["records.db"]


def test_an_empty_database_goes_there_and_back(folder: DataFolder) -> None:
    _write_plain(folder.database, {})
    assert _import(folder).count == 0
    assert _export(folder).count == 0
    assert _read_plain(folder.database) == {}


def test_an_imported_file_shows_no_name_and_no_value(folder: DataFolder) -> None:
    _write_plain(folder.database, RECORDS)
    assert b"name 1000" in folder.database.read_bytes()  # the control
    _import(folder)
    for path in folder.path.iterdir():
        assert b"name 1000" not in path.read_bytes()
        assert b"value 1000" not in path.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot lose its name there")
def test_the_plain_file_is_wiped_but_another_name_of_it_is_not(
    folder: DataFolder, tmp_path: Path
) -> None:
    _write_plain(folder.database, RECORDS)
    with folder.database.open("rb") as old:
        before = old.read()
        _import(folder)
        old.seek(0)
        assert old.read() == bytes(len(before))
    _export(folder)
    (tmp_path / "backups").mkdir()
    backup = tmp_path / "backups" / "records.db"
    os.link(folder.database, backup)
    assert _import(folder).old_file_remains
    assert _read_plain(backup) == RECORDS
    assert sorted(_names(folder)) == ["backups", "records.db"]


def test_progress_counts_up_to_the_number_of_records(folder: DataFolder) -> None:
    _write_plain(folder.database, RECORDS)
    seen: list[tuple[int, int]] = []
    with SecretBytes.copy_of(MASTER) as master:
        import_records(folder, master, cipher="aes256gcm", progress=lambda *step: seen.append(step))
        export_records(folder, master, progress=lambda *step: seen.append(step))
    assert seen == [(500, 1234), (1000, 1234), (1234, 1234)] * 2


def test_a_left_over_of_an_earlier_attempt_does_not_come_back(folder: DataFolder) -> None:
    draft = folder.path / "records.db.importing"
    with SecureDb.open(draft, MASTER) as store:
        store.insert_many([(b"removed since", b"1"), (b"name 1", b"changed since")])
    _write_plain(folder.database, RECORDS)
    _import(folder)
    assert _read_encrypted(folder.database) == RECORDS
    _write_plain(folder.path / "records.db.exporting", {"removed since": b"1", "name 1": b"old"})
    _export(folder)
    assert _read_plain(folder.database) == RECORDS


TRANSFER = """
import sys
from pathlib import Path
from service_security.layout import DataFolder
from service_security.secret_bytes import SecretBytes
from service_security.store import batches, transfer

batches.BATCH_RECORDS = 20
folder = DataFolder(Path(sys.argv[1]))

def progress(done, total):
    print(done, flush=True)
    if sys.argv[3] == "waits" and done >= total // 2:
        sys.stdin.read()

arguments = {"progress": progress}
with SecretBytes.copy_of(bytes(range(32))) as master:
    if sys.argv[2] == "import":
        transfer.import_records(folder, master, cipher="xchacha20poly1305", **arguments)
    else:
        transfer.export_records(folder, master, **arguments)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_killed_transfer_leaves_one_whole_database_and_goes_on(
    folder: DataFolder, direction: str
) -> None:
    _write_plain(folder.database, RECORDS)
    source, goal = Kind.PLAIN, Kind.ENCRYPTED
    if direction == "export":
        _import(folder)
        source, goal = goal, source
    kills = 0
    for turn in range(40):
        how = "waits" if turn < 2 else "goes on"
        process = subprocess.Popen(
            [sys.executable, "-c", TRANSFER, str(folder.path), direction, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.005 * 1.25**turn)  # 38 s in the end, so that it does come to its end
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
        if kind_of(folder.database) is goal:
            break
        assert kind_of(folder.database) is source
        if source is Kind.PLAIN:
            assert _read_plain(folder.database) == RECORDS
    else:
        pytest.fail("the transfer never came to its end")
    assert kills > 1
    read = _read_encrypted if goal is Kind.ENCRYPTED else _read_plain
    assert read(folder.database) == RECORDS


def test_a_wrong_key_changes_nothing(folder: DataFolder) -> None:
    _write_plain(folder.database, RECORDS)
    _import(folder)
    with pytest.raises(WrongKeyError):
        _export(folder, key=bytes(32))
    assert _read_encrypted(folder.database) == RECORDS


def test_each_command_refuses_what_the_other_one_is_for(folder: DataFolder) -> None:
    with pytest.raises(ConfigurationError, match="is missing or empty"):
        _import(folder)
    with pytest.raises(ConfigurationError, match="is missing or empty"):
        _export(folder)
    _write_plain(folder.database, RECORDS)
    with pytest.raises(ConfigurationError, match="is plain records"):
        _export(folder)
    _import(folder)
    with pytest.raises(ConfigurationError, match="is an encrypted store"):
        _import(folder)
    assert _read_encrypted(folder.database) == RECORDS


def test_a_database_of_something_else_is_left_alone(folder: DataFolder) -> None:
    with closing(apsw.Connection(str(folder.database))) as connection:
        connection.execute("CREATE TABLE other (id)")
    before = folder.database.read_bytes()
    assert kind_of(folder.database) is Kind.OTHER
    for command in (_import, _export):
        with pytest.raises(ConfigurationError, match="is something else"):
            command(folder)
    assert folder.database.read_bytes() == before


def test_a_damaged_record_stops_the_export_and_changes_nothing(folder: DataFolder) -> None:
    _write_plain(folder.database, RECORDS)
    _import(folder)
    with closing(apsw.Connection(str(folder.database))) as connection:
        connection.execute("UPDATE record SET sealed = zeroblob(100) WHERE id = 700")
    with pytest.raises(IntegrityError):
        _export(folder)
    assert kind_of(folder.database) is Kind.ENCRYPTED


def test_names_that_are_no_text_stop_the_export(folder: DataFolder) -> None:
    with SecureDb.open(folder.database, MASTER) as store:
        store.insert(b"\xff", b"")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        _export(folder)
    assert kind_of(folder.database) is Kind.ENCRYPTED


def test_a_difference_after_copying_is_refused(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_plain(folder.database, RECORDS)
    monkeypatch.setattr(SecureDb, "items", lambda _: iter([(b"name 1", b"value 1")]))
    with pytest.raises(IntegrityError, match="Of 1234 records 1 arrived"):
        _import(folder)
    assert _read_plain(folder.database) == RECORDS


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no data folder.*--data-dir"):
        _import(DataFolder(tmp_path / "missing"))


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_a_folder_that_a_service_uses_is_refused(folder: DataFolder) -> None:
    import fcntl

    _write_plain(folder.database, RECORDS)
    descriptor = os.open(folder.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with pytest.raises(StoreUnavailableError, match="Stop the service"):
        _import(folder)
    os.close(descriptor)
    assert _import(folder).count == len(RECORDS)


def test_an_encrypted_file_that_any_program_has_open_is_not_exported(folder: DataFolder) -> None:
    with SecureDb.open(folder.database, MASTER) as store:
        store.insert(b"name", b"value")
        with pytest.raises(StoreUnavailableError):
            _export(folder)
        store.insert(b"another", b"value")
    assert _export(folder).count == 2


def test_a_plain_file_that_another_program_writes_is_not_imported(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_plain(folder.database, RECORDS)
    monkeypatch.setattr("service_security.store.schema.BUSY_TIMEOUT_MS", 10)
    writer = apsw.Connection(str(folder.database))
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="in use by another process"):
        _import(folder)
    writer.close()


def test_a_service_refuses_plain_records_and_names_the_command(folder: DataFolder) -> None:
    refuse_other_kind(folder.database, cipher="aes256gcm", key_source="file:a key")
    _write_plain(folder.database, RECORDS)
    with pytest.raises(ConfigurationError) as refusal:
        refuse_other_kind(folder.database, cipher="aes256gcm", key_source="file:a key")
    folders = f"--data-dir {folder.path} --key-source 'file:a key'"
    init = f"uv run just init {folders}"
    command = f"uv run just db import {folders} --cipher aes256gcm"
    assert str(refusal.value).endswith(f": {init} && {command}")
    folder.envelope.write_text("an envelope")
    with pytest.raises(ConfigurationError) as refusal:
        refuse_other_kind(folder.database, cipher="aes256gcm", key_source="file:a key")
    assert str(refusal.value).endswith(f": {command}")
    folder.envelope.unlink()
    _import(folder)
    refuse_other_kind(folder.database, cipher="aes256gcm", key_source="file:a key")


def test_messages_name_the_command_of_a_container(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_COMMAND", "docker compose run --rm init")
    _write_plain(folder.database, RECORDS)
    with pytest.raises(ConfigurationError, match="docker compose run --rm init db import --data-"):
        refuse_other_kind(folder.database, cipher="aes256gcm", key_source="file:a key")


def test_the_note_names_the_export_and_goes_with_the_encrypted_file(folder: DataFolder) -> None:
    _write_plain(folder.database, RECORDS)
    _import(folder)
    leave_note(folder.database)
    leave_note(folder.database)
    note = folder.path / "records.db.README.txt"
    assert f"uv run just db export --data-dir {folder.path}" in note.read_text()
    _export(folder)
    assert not note.exists()


def test_a_file_that_is_no_database_is_refused(folder: DataFolder) -> None:
    folder.database.write_bytes(b"not a database" * 100)
    with pytest.raises(IntegrityError):
        kind_of(folder.database)
    assert kind_of(folder.path / "missing") is Kind.NONE


# Crashes between the steps


class Crash(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def _crash_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    def crash(*_: object, **__: object) -> None:
        raise Crash

    monkeypatch.setattr(owner, name, crash)


CRASHES = [
    (replacement, "wipe"),
    (Path, "replace"),
    (transfer, "publish"),
    (replacement, "drop_replaced"),
    (transfer, "check_encrypted"),
    (transfer, "check_plain"),
]


@pytest.mark.parametrize("direction", ["import", "export"])
@pytest.mark.parametrize(("owner", "name"), CRASHES, ids=[name for _, name in CRASHES])
def test_a_transfer_that_stops_at_any_step_goes_on(
    folder: DataFolder, direction: str, owner: object, name: str
) -> None:
    run: Callable[[DataFolder], Transferred] = _import
    goal, read = Kind.ENCRYPTED, _read_encrypted
    _write_plain(folder.database, RECORDS)
    if direction == "export":
        _import(folder)
        run, goal, read = _export, Kind.PLAIN, _read_plain
    with pytest.MonkeyPatch.context() as patch:
        _crash_at(patch, owner, name)
        with suppress(Crash):
            run(folder)
    left_over = {"records.db.importing", "records.db.exporting", "records.db.replaced"}
    if left_over & set(_names(folder)):  # else this direction does not take that step
        assert run(folder).count == len(RECORDS)
    assert kind_of(folder.database) is goal
    assert read(folder.database) == RECORDS
    assert _names(folder) == ["records.db"]


def test_the_name_right_before_the_rename_is_not_taken_for_the_old_file(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At that moment ``records.db.replaced`` is the live database itself."""
    _write_plain(folder.database, RECORDS)
    with monkeypatch.context() as patch:
        _crash_at(patch, Path, "replace")
        with pytest.raises(Crash):
            _import(folder)
    assert (folder.path / "records.db.replaced").samefile(folder.database)
    assert _import(folder).count == len(RECORDS)
    assert _read_encrypted(folder.database) == RECORDS


def test_an_old_file_that_another_transfer_left_is_not_overwritten(folder: DataFolder) -> None:
    """After a stop before the rename and a restored backup it may be the only copy."""
    _write_plain(folder.database, {"restored": b"1"})
    only_copy = folder.path / "records.db.replaced"
    _write_plain(only_copy, RECORDS)
    with pytest.raises(ConfigurationError, match="move it to another folder to keep it"):
        _import(folder)
    assert _read_plain(only_copy) == RECORDS
    assert _read_plain(folder.database) == {"restored": b"1"}


def test_a_link_in_the_place_of_the_old_file_is_not_followed(
    folder: DataFolder, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    SecureDb.open(folder.database, MASTER).close()
    (folder.path / "records.db.replaced").symlink_to(victim)
    assert _import(folder).count == 0  # finishes what it takes for a stopped transfer
    assert victim.read_bytes() == b"untouched"
    assert not (folder.path / "records.db.replaced").is_symlink()
    with pytest.raises(OSError, match="symbolic link"):
        replacement.wipe(_link_to(victim))
    assert victim.read_bytes() == b"untouched"


def _link_to(victim: Path) -> Path:
    link = victim.with_name("link")
    link.symlink_to(victim)
    return link


def test_a_second_name_of_the_database_itself_keeps_no_service_from_starting(
    folder: DataFolder,
) -> None:
    SecureDb.open(folder.database, MASTER).close()
    os.link(folder.database, folder.path / "records.db.replaced")
    refuse_other_kind(folder.database, cipher="aes256gcm", key_source="file:a key")


def test_a_service_does_not_start_beside_readable_left_overs(folder: DataFolder) -> None:
    SecureDb.open(folder.database, MASTER).close()
    for suffix, command in (("replaced", "db import"), ("exporting", "db export")):
        left_over = folder.path / f"records.db.{suffix}"
        left_over.write_bytes(b"readable")
        with pytest.raises(ConfigurationError, match=f"{suffix}.*{command}"):
            refuse_other_kind(folder.database, cipher="aes256gcm", key_source="file:a key")
        left_over.unlink()
    refuse_other_kind(folder.database, cipher="aes256gcm", key_source="file:a key")


def test_a_failed_export_leaves_no_readable_draft(folder: DataFolder) -> None:
    with SecureDb.open(folder.database, MASTER) as store:
        store.insert_many([(b"readable", b""), (b"\xff", b"")])
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        _export(folder)
    assert _names(folder) == ["records.db"]


def test_an_import_removes_the_draft_of_a_stopped_export(folder: DataFolder) -> None:
    _write_plain(folder.database, RECORDS)
    _write_plain(folder.path / "records.db.exporting", RECORDS)
    _import(folder)
    assert _names(folder) == ["records.db"]


# Drafts that are of no use


@pytest.mark.parametrize("suffix", ["importing", "exporting"])
@pytest.mark.parametrize("draft", ["a link", "readable by all", "damaged", "of another key"])
def test_a_draft_that_cannot_be_trusted_is_begun_anew(
    tmp_path: Path, suffix: str, draft: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    data = DataFolder(tmp_path / "data")
    data.path.mkdir()
    _write_plain(data.database, RECORDS)
    if suffix == "exporting":
        _import(data)
    path = data.path / f"records.db.{suffix}"
    if draft == "a link":
        (outside / "victim").write_bytes(b"untouched")
        path.symlink_to(outside / "victim")
    elif draft == "of another key":
        SecureDb.open(path, bytes(32)).close()
    else:
        path.write_bytes(b"damaged" * 100 if draft == "damaged" else b"")
        path.chmod(0o644 if draft == "readable by all" else 0o600)
    (_import if suffix == "importing" else _export)(data)
    assert (_read_encrypted if suffix == "importing" else _read_plain)(data.database) == RECORDS
    assert data.database.stat().st_mode & 0o777 == 0o600
    assert _names(data) == ["records.db"]
    if draft == "a link":
        assert (outside / "victim").read_bytes() == b"untouched"


def test_an_import_with_another_cipher_begins_anew(folder: DataFolder) -> None:
    _write_plain(folder.database, RECORDS)
    SecureDb.open(folder.path / "records.db.importing", MASTER, cipher="aes256gcm").close()
    _import(folder, "xchacha20poly1305")
    with SecureDb.open(folder.database, MASTER) as store:
        assert store.cipher == "xchacha20poly1305"


# Sources that are not what the service writes


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE extra (id)",
        "CREATE INDEX by_value ON records (value)",
        "ALTER TABLE records ADD COLUMN owner TEXT",
    ],
)
def test_a_plain_database_with_anything_else_in_it_is_left_alone(
    folder: DataFolder, statement: str
) -> None:
    _write_plain(folder.database, RECORDS)
    with closing(apsw.Connection(str(folder.database))) as connection:
        connection.execute(statement)
    before = folder.database.read_bytes()
    with pytest.raises(ConfigurationError, match="something else"):
        _import(folder)
    assert folder.database.read_bytes() == before


@pytest.mark.parametrize(
    "row",
    [("n", 5), ("n", "text"), ("n", 1.5), (b"n", b""), ("n" * 70_000, b"")],
    ids=["integer", "text", "real", "BLOB name", "long name"],
)
def test_a_row_that_the_service_cannot_have_written_stops_the_import(
    folder: DataFolder, row: tuple[object, object]
) -> None:
    _write_plain(folder.database, RECORDS)
    with closing(apsw.Connection(str(folder.database))) as connection:
        connection.execute("INSERT INTO records (name, value) VALUES (?, ?)", row)
    before = folder.database.read_bytes()
    with pytest.raises(ConfigurationError, match="Row 1235 of the plain records"):
        _import(folder)
    assert folder.database.read_bytes() == before


def test_a_database_behind_a_link_is_refused(folder: DataFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    _write_plain(elsewhere, RECORDS)
    folder.database.symlink_to(elsewhere)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        _import(folder)
    assert _read_plain(elsewhere) == RECORDS


KILLED_IN_A_TRANSACTION = """
import os, signal, sqlite3, sys

connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
for number in range(500):
    connection.execute("UPDATE records SET value = ?", (bytes(500),))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_plain_database_with_a_transaction_to_roll_back_is_imported(folder: DataFolder) -> None:
    _write_plain(folder.database, RECORDS)
    subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_TRANSACTION, str(folder.database)], check=False
    )
    assert (folder.path / "records.db-journal").stat().st_size > 0
    assert kind_of(folder.database) is Kind.PLAIN
    _import(folder)
    assert _read_encrypted(folder.database) == RECORDS


# Others at work


LATE_WRITER = """
import sys
import apsw
from service_security.errors import SecurityError
from service_security.store import SecureDb

class Telling(apsw.Connection):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        print("has the file", flush=True)

apsw.Connection = Telling
try:
    with SecureDb.open(sys.argv[1], bytes(range(32))) as store:
        store.insert(b"late", b"write")
    print("written")
except SecurityError as error:
    print(type(error).__name__)
"""


def test_no_write_slips_in_between_the_check_and_the_rename(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_plain(folder.database, RECORDS)
    _import(folder)
    answers = []
    publish = replacement.publish

    def publish_after_a_late_writer(draft: Path, database: Path) -> bool:
        writer = subprocess.Popen(
            [sys.executable, "-c", LATE_WRITER, str(database)], stdout=subprocess.PIPE, text=True
        )
        answers.append(writer)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "has the file\n"  # and now it waits for the lock
        return publish(draft, database)

    monkeypatch.setattr(transfer, "publish", publish_after_a_late_writer)
    assert _export(folder).count == len(RECORDS)
    assert answers[0].communicate(timeout=120)[0].strip() == "IntegrityError"
    assert _read_plain(folder.database) == RECORDS
