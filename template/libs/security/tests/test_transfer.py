"""Moving records between a plain and an encrypted file: whole, checked, and resumable."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
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
from service_security.store import SecureDb, transfer
from service_security.store.transfer import (
    PLAIN_TABLE,
    Kind,
    export_records,
    import_records,
    kind_of,
    leave_note,
    refuse_other_kind,
)

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


def _import(folder: DataFolder, cipher: str = "xchacha20poly1305", key: bytes = MASTER) -> int:
    with SecretBytes.copy_of(key) as master:
        return import_records(folder, master, cipher=cipher, progress=lambda *_: None)


def _export(folder: DataFolder, key: bytes = MASTER) -> int:
    with SecretBytes.copy_of(key) as master:
        return export_records(folder, master, progress=lambda *_: None)


def _names(folder: DataFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_there_and_back(folder: DataFolder, cipher: str) -> None:
    _write_plain(folder.database, RECORDS)
    assert _import(folder, cipher) == len(RECORDS)
    assert kind_of(folder.database) is Kind.ENCRYPTED
    assert _read_encrypted(folder.database) == RECORDS
    with SecureDb.open(folder.database, MASTER) as store:
        assert store.cipher == cipher
    assert _export(folder) == len(RECORDS)
    assert kind_of(folder.database) is Kind.PLAIN
    assert _read_plain(folder.database) == RECORDS
    assert _names(folder) == ["records.db"]


def test_an_empty_database_goes_there_and_back(folder: DataFolder) -> None:
    _write_plain(folder.database, {})
    assert _import(folder) == 0
    assert _export(folder) == 0
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
    _import(folder)
    assert _read_plain(backup) == RECORDS


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
from service_security.store import transfer

transfer._BATCH = 20
folder = DataFolder(Path(sys.argv[1]))
arguments = {"progress": lambda done, total: print(done, flush=True)}
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
        process = subprocess.Popen(
            [sys.executable, "-c", TRANSFER, str(folder.path), direction], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.004 * turn)
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
    with pytest.raises(ConfigurationError, match="is no file"):
        _import(folder)
    with pytest.raises(ConfigurationError, match="is no file"):
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
    assert _import(folder) == len(RECORDS)


def test_an_encrypted_file_that_any_program_has_open_is_not_exported(folder: DataFolder) -> None:
    with SecureDb.open(folder.database, MASTER) as store:
        store.insert(b"name", b"value")
        with pytest.raises(StoreUnavailableError):
            _export(folder)
        store.insert(b"another", b"value")
    assert _export(folder) == 2


def test_a_plain_file_that_another_program_writes_is_not_imported(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_plain(folder.database, RECORDS)
    monkeypatch.setattr("service_security.store.schema._BUSY_TIMEOUT_MS", 10)
    writer = apsw.Connection(str(folder.database))
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="in use by another process"):
        _import(folder)
    writer.close()


def test_a_service_refuses_plain_records_and_names_the_command(folder: DataFolder) -> None:
    refuse_other_kind(folder.database, cipher="aes256gcm")
    _write_plain(folder.database, RECORDS)
    with pytest.raises(ConfigurationError) as refusal:
        refuse_other_kind(folder.database, cipher="aes256gcm")
    command = f"python -m service_security db import --data-dir {folder.path} --cipher aes256gcm"
    assert str(refusal.value).endswith(command)
    _import(folder)
    refuse_other_kind(folder.database, cipher="aes256gcm")


def test_the_note_names_the_export_and_goes_with_the_encrypted_file(folder: DataFolder) -> None:
    _write_plain(folder.database, RECORDS)
    _import(folder)
    leave_note(folder.database)
    leave_note(folder.database)
    note = folder.path / "records.db.README.txt"
    assert f"python -m service_security db export --data-dir {folder.path}" in note.read_text()
    _export(folder)
    assert not note.exists()


def test_a_file_that_is_no_database_is_refused(folder: DataFolder) -> None:
    folder.database.write_bytes(b"not a database" * 100)
    with pytest.raises(IntegrityError):
        kind_of(folder.database)
    assert transfer.kind_of(folder.path / "missing") is Kind.NONE
