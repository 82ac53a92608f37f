"""The commands ``db``, as a person or a timer runs them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from service_folders import (
    DATABASE,
    ENVELOPE,
    KEY_FILE,
    SOURCE,
    Output,
    into_empty_folder,
    refused,
    run,
)
from service_security.cli import main
from service_security.errors import WrongKeyError
from service_security.keys import Envelope, KeySource, open_keys, open_master_key
from service_security.keys.provider import WrappingKey
from service_security.keys.reseal import reseal
from service_security.progress import ProgressLine
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, info
from service_security.store.backup import check_backup, write_backup
from service_security.store.header import Header, HeaderKeys
from service_security.store.kind import PLAIN_TABLE, Kind, kind_of

BACKUP = Path("records.backup")

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and locks of POSIX")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into_empty_folder(tmp_path, monkeypatch)


@pytest.fixture
def service(capsys: Output) -> Output:
    """A service's folders with 1,200 records in them; gives what commands print from here on."""
    assert main(["init", "--no-recovery"]) == 0
    _fill(1200)
    capsys.readouterr()
    return capsys


def _open(**options: Any) -> SecureDb:
    with open_master_key(ENVELOPE, SOURCE) as master_key:
        return SecureDb.open(DATABASE, master_key, **options)


def _fill(count: int, **options: Any) -> None:
    with _open(**options) as store:
        store.insert_many((b"name %d" % number, b"value") for number in range(count))


def _contents() -> dict[bytes, bytes]:
    with _open() as store:
        return dict(store.items())


def _sql(statement: str, database: Path = DATABASE) -> list[tuple[Any, ...]]:
    """Change or read a database behind the library's back, while nobody has it open."""
    with closing(apsw.Connection(str(database))) as connection:
        return list(connection.execute(statement))


def _write_plain(count: int) -> None:
    """Make the database of a service that does not encrypt."""
    with closing(apsw.Connection(str(DATABASE))) as connection, connection:
        connection.execute(PLAIN_TABLE)
        connection.executemany(
            "INSERT INTO records (name, value) VALUES (?, ?)",
            ((f"name {number}", b"value") for number in range(count)),
        )


WRITER = """
import time
from pathlib import Path
from service_security.keys import open_master_key
from service_security.store import SecureDb, schema

schema.BUSY_TIMEOUT_MS = 60_000
with open_master_key(Path("data/envelope.json"), "file:secrets/service.key") as master_key:
    store = SecureDb.open("data/records.db", master_key)
with store:
    for number in range(10**9):
        store.insert(b"written meanwhile %d" % number, b"value")
        print(number, flush=True)
        time.sleep(0.002)  # or a command might find no moment to write in
"""


@contextmanager
def _writer() -> Iterator[Callable[[], int]]:
    """Run a process that writes all the time; what is given tells how often it did."""
    process = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, text=True)
    output = process.stdout
    assert output is not None

    def number() -> int:
        return int(output.readline())

    try:
        number()
        yield number
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _folder_in_use() -> Iterator[None]:
    """Hold the data folder as a running service does."""
    import fcntl

    descriptor = os.open("data", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


# import, export


def test_import_and_export_show_progress_and_the_result(capsys: Output) -> None:
    main(["init", "--no-recovery"])
    _write_plain(1200)
    capsys.readouterr()
    assert main(["db", "import", "--cipher", "aes256gcm"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "data/records.db holds 1200 records now, encrypted with aes256gcm.\n"
    assert "1000 of 1200 records encrypted\n" in shown.err
    assert main(["db", "export"]) == 0
    shown = capsys.readouterr()
    assert "1200 records now, for anyone" in shown.out
    assert "1200 of 1200 records exported\n" in shown.err


def test_import_with_a_container_secret(capsys: Output) -> None:
    secret = Path("delivered")
    secret.write_bytes(bytes(range(32)))
    secret.chmod(0o444)
    source = ["--key-source", "secret:delivered"]
    main(["init", "--no-recovery", *source])
    _write_plain(3)
    assert main(["db", "import", *source]) == 0
    assert "3 records" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="transfers are refused there")
def test_transfers_tell_of_an_old_file_that_remains(service: Output) -> None:
    os.link(DATABASE, "another name")
    assert main(["db", "export"]) == 0
    assert "has a second name (a hard link)" in service.readouterr().out
    os.link(DATABASE, "yet another name")
    assert main(["db", "import"]) == 0
    assert "has a second name (a hard link)" in service.readouterr().out


def test_transfers_run_as_a_module() -> None:
    assert run("init", "--no-recovery").returncode == 0
    _write_plain(10)
    assert run("db", "import").returncode == 0
    assert kind_of(DATABASE) is Kind.ENCRYPTED
    assert run("db", "export").returncode == 0
    assert kind_of(DATABASE) is Kind.PLAIN


@pytest.mark.parametrize(
    "command",
    [
        ["verify"],
        ["verify", "--backup", "missing"],
        ["backup", "file"],
        ["restore", "file"],
        ["import"],
        ["export"],
    ],
    ids=" ".join,
)
def test_without_an_envelope_nothing_is_done(command: list[str], capsys: Output) -> None:
    status = main(["db", *command])
    refused(capsys, status, "There is no key envelope data/envelope.json")
    assert list(Path().iterdir()) == []


# info


def _info(output: Output) -> dict[str, Any]:
    assert main(["db", "info", "--json"]) == 0
    told: dict[str, Any] = json.loads(output.readouterr().out)
    return told


def test_info_tells_what_is_in_a_database_and_which_keys_it_has(capsys: Output) -> None:
    main(["init", "--no-recovery"])
    _fill(1200, cipher="aes256gcm", clock=lambda: 1767225600)
    capsys.readouterr()
    assert main(["db", "info"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    db_id = _sql("SELECT hex(db_id) FROM header")[0][0].lower()
    date = "2026-01-01T00:00:00Z"
    assert [line.split() for line in shown.out.splitlines() if line] == [
        ["data/records.db"],
        ["kind", "an", "encrypted", "store"],
        ["format", "1"],
        ["database", "id", db_id],
        ["key", "generation", "1"],
        ["records", "1200"],
        ["size", str(DATABASE.stat().st_size), "bytes"],
        ["of", "it", "free", "0", "bytes"],
        ["log", "0", "bytes"],
        ["file:secrets/service.key", "and", "data/envelope.json", "open", "it:"],
        ["key", "state", "for", "cipher", "made", "in", "this", "state", "since", "records"],
        ["1*", "active", "record", "aes256gcm", date, date, "1200"],
        ["2", "active", "name", "index", "-", date, date, "-"],
        ["*", "new", "records", "are", "sealed", "with", "it"],
    ]


def test_info_for_machines_tells_the_same(capsys: Output) -> None:
    main(["init", "--no-recovery"])
    _fill(1200, clock=lambda: 1767225600)
    capsys.readouterr()
    told = _info(capsys)
    assert told.pop("database_id") == _sql("SELECT hex(db_id) FROM header")[0][0].lower()
    date = "2026-01-01T00:00:00Z"
    common = {"state": "active", "created": date, "since": date}
    assert told == {
        "path": "data/records.db",
        "kind": "encrypted",
        "format": 1,
        "key_generation": 1,
        "records": 1200,
        "records_of_keys": {"1": 1200},
        "size_bytes": DATABASE.stat().st_size,
        "free_bytes": 0,
        "log_bytes": 0,
        "keys_hidden_because": None,
        "keys": [
            {
                **common,
                "id": 1,
                "purpose": "record",
                "cipher": "xchacha20poly1305",
                "primary": True,
                "records": 1200,
            },
            {
                **common,
                "id": 2,
                "purpose": "name index",
                "cipher": None,
                "primary": False,
                "records": 0,
            },
        ],
    }


@pytest.mark.usefixtures("service")
def test_info_runs_as_a_module() -> None:
    result = run("db", "info")
    assert (result.returncode, result.stderr) == (0, "")
    assert "xchacha20poly1305" in result.stdout


def _another_service(folder: str) -> Path:
    """Make the key of another service."""
    key_file = Path(folder, "service.key")
    folders = ["--data-dir", f"{folder}/data", "--key-source", f"file:{key_file}"]
    assert main(["init", "--no-recovery", *folders]) == 0
    return key_file


@pytest.mark.parametrize("trouble", ["no key", "another key", "another envelope", "no envelope"])
def test_info_without_the_key_says_so_and_tells_the_rest(service: Output, trouble: str) -> None:
    other = _another_service("other")
    if trouble == "no key":
        KEY_FILE.unlink()
        reason = "The key file secrets/service.key is missing"
    elif trouble == "another key":
        shutil.copy2(other, KEY_FILE)
        reason = "The key from file:secrets/service.key does not open data/envelope.json"
    elif trouble == "another envelope":
        shutil.copy2(other, KEY_FILE)
        shutil.copy2("other/data/envelope.json", ENVELOPE)
        reason = "The master key is not the one of this database"
    else:
        ENVELOPE.unlink()
        reason = "There is no key envelope data/envelope.json"
    service.readouterr()
    assert main(["db", "info"]) == 0
    shown = service.readouterr().out
    assert f"\n\nIts keys cannot be shown. {reason}" in shown
    assert "  records         1200\n" in shown
    assert shown.endswith("1200 records are sealed with key 1.\n")
    told = _info(service)
    assert told["keys"] is None
    assert reason in told["keys_hidden_because"]
    assert (told["records"], told["records_of_keys"]) == (1200, {"1": 1200})


def test_info_of_a_damaged_header_tells_the_rest(service: Output) -> None:
    _sql("UPDATE header SET mac = zeroblob(32)")
    assert main(["db", "info"]) == 0
    shown = service.readouterr().out
    assert "Its keys cannot be shown. The database's header is damaged." in shown
    assert "records         1200" in shown


def test_info_shows_records_of_a_key_that_is_not_there(service: Output) -> None:
    _sql("UPDATE record SET key_id = 9 WHERE id <= 3")
    assert main(["db", "info"]) == 0
    shown = service.readouterr().out
    assert "3 records are sealed with key 9, which the keyset does not have" in shown
    assert _info(service)["records_of_keys"] == {"1": 1197, "9": 3}


def test_info_counts_in_steps_and_shows_progress(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "_STEP", 500)
    _sql("DELETE FROM record WHERE id BETWEEN 101 AND 300")
    assert _info(service)["records_of_keys"] == {"1": 1000}
    main(["db", "info"])
    assert service.readouterr().err == (
        "500 of 1000 records counted\n1000 of 1000 records counted\n"
    )


def test_info_tells_of_free_space_and_of_the_log(service: Output) -> None:
    with _open() as store:
        for number in range(1000):
            store.remove(b"name %d" % number)
        told = _info(service)
        log = DATABASE.with_name("records.db-wal").stat().st_size
        assert told["log_bytes"] == log > 0
    assert 0 < _info(service)["free_bytes"] < DATABASE.stat().st_size


def test_info_of_a_newer_format_names_it(service: Output) -> None:
    _sql("UPDATE header SET format = 2")
    assert main(["db", "info"]) == 0
    shown = service.readouterr().out
    assert "format          2, which this version does not read; it reads format 1\n" in shown
    assert "key" not in shown
    told = _info(service)
    assert (told["format"], told["records"], told["keys"]) == (2, None, None)


def test_info_of_plain_records_and_of_something_else(capsys: Output) -> None:
    Path("data").mkdir()
    _write_plain(3)
    assert main(["db", "info"]) == 0
    assert "kind            plain records\n  records         3\n" in capsys.readouterr().out
    _sql("CREATE TABLE another (id)")
    told = _info(capsys)
    assert (told["kind"], told["records"]) == ("other", None)


@pytest.mark.parametrize("contents", [None, b"", b"no database" * 1000])
def test_info_of_no_database_is_an_error(contents: bytes | None, capsys: Output) -> None:
    Path("data").mkdir()
    if contents is not None:
        DATABASE.write_bytes(contents)
    status = main(["db", "info"])
    refused(capsys, status, "damaged" if contents else "data/records.db is missing or empty")


def _damage_pages() -> None:
    """Write over pages of the table, so that SQLite itself cannot go through it."""
    contents = bytearray(DATABASE.read_bytes())
    middle = len(contents) // 2 // 4096 * 4096
    contents[middle : middle + 8192] = b"\x13" * 8192
    DATABASE.write_bytes(contents)


def test_info_of_damaged_pages_tells_the_rest(service: Output) -> None:
    _damage_pages()
    assert main(["db", "info"]) == 0
    shown = service.readouterr().out
    assert "  records         cannot be counted: the file is damaged" in shown
    assert "1*   active" in shown
    assert _info(service)["records"] is None


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("DROP TABLE lease", "does not have the tables of an encrypted store"),
        ("ALTER TABLE header DROP COLUMN format", "does not have the tables of an encrypted store"),
        ("DELETE FROM header", "header is damaged"),
    ],
)
def test_info_of_tables_that_are_not_ours_is_an_error(
    service: Output, statement: str, sentence: str
) -> None:
    _sql(statement)
    status = main(["db", "info"])
    refused(service, status, sentence)


def _keys_of_everything() -> list[bytes]:
    """Return every key of the service: wrapping, master, records, names."""
    keys = []
    with open_keys(ENVELOPE, SOURCE) as opened:
        keys += [bytes(opened.master.view), bytes(opened.wrapping.key.view)]
        with closing(apsw.Connection(str(DATABASE))) as connection:
            header = Header.read(connection)
        with (
            closing(HeaderKeys.of(opened.master, header.db_id)) as header_keys,
            header_keys.open(header) as keyset,
        ):
            keys += [bytes(entry.key.view) for entry in keyset.entries.values()]
    return keys


def _holds(text: str, secret: bytes) -> bool:
    """Search for bytes in the forms in which a program may print them."""
    forms = {secret.hex(), repr(secret)[2:-1], str(list(secret))[1:-1]}
    forms |= {secret.decode(encoding, "replace") for encoding in ("utf-8", "latin-1", "utf-16")}
    return any(form in text or form.upper() in text.upper() for form in forms)


def test_info_never_prints_a_key(service: Output) -> None:
    main(["db", "info"])
    main(["db", "info", "--json"])
    text = service.readouterr().out
    keys = _keys_of_everything()
    assert len(keys) == 4
    assert not any(_holds(text, key) for key in keys)
    identifier = _sql("SELECT db_id FROM header")[0][0]
    assert _holds(text, identifier), "control: the search finds what is printed"


@pytest.mark.usefixtures("service")
def test_info_works_beside_a_writer_and_changes_nothing() -> None:
    with _open() as store:
        store.insert(b"in the log", b"value")
        before = DATABASE.read_bytes()
        with store.transaction():
            store.insert(b"not committed", b"value")
            result = run("db", "info", "--json")
        assert DATABASE.read_bytes() == before
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["records"] == 1201
    before = DATABASE.read_bytes()
    main(["db", "info"])
    assert DATABASE.read_bytes() == before


def test_info_is_of_one_moment(service: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_STEP", 500)
    with _open() as store:

        def write(done: int, total: int) -> None:
            assert done <= total == 1200
            store.insert(b"written meanwhile %d" % done, b"value")

        assert info.read_info(DATABASE, write).records == 1200
        assert store.count() > 1200
    assert service.readouterr().out == ""


@posix
@pytest.mark.parametrize("command", [["info"], ["verify"], ["backup", "file"]], ids=" ".join)
def test_looking_and_saving_leave_the_log_to_the_service(
    service: Output, command: list[str]
) -> None:
    """Whoever opens a database for writing moves the log of a killed service into it."""
    with _open() as store:
        store.insert(b"in the log", b"value")
        shutil.copytree("data", "killed")
    before = {path.name: path.read_bytes() for path in Path("killed").glob("records.db*")}
    assert before["records.db-wal"]
    assert main(["db", *command, "--data-dir", "killed"]) == 0
    assert "1201" in service.readouterr().out
    for name in ("records.db", "records.db-wal"):
        assert Path("killed", name).read_bytes() == before[name]
    with open_master_key(ENVELOPE, SOURCE) as master_key:
        SecureDb.open("killed/records.db", master_key).close()
    assert Path("killed/records.db").read_bytes() != before["records.db"], "control"


# verify


def _damage(*positions: int) -> list[str]:
    """Damage records, and return their tokens as hexadecimal digits."""
    where = f"id IN ({', '.join(map(str, positions))})"
    _sql(f"UPDATE record SET sealed = zeroblob(100) WHERE {where}")  # noqa: S608
    rows = _sql(f"SELECT lower(hex(token)) FROM record WHERE {where} ORDER BY id")  # noqa: S608
    return [token for (token,) in rows]


def test_verify_of_whole_records_says_how_many(service: Output) -> None:
    assert main(["db", "verify"]) == 0
    shown = service.readouterr()
    assert shown.out == "All 1200 records of data/records.db are whole.\n"
    assert shown.err.endswith("1200 of 1200 records checked\n")


def test_verify_names_every_damaged_record_and_what_to_do(service: Output) -> None:
    tokens = _damage(7, 700, 1200)
    assert main(["db", "verify"]) == 1
    shown = service.readouterr().out.splitlines()
    assert shown[:3] == [
        f"Record {position} is damaged (token {token})."
        for position, token in zip((7, 700, 1200), tokens, strict=True)
    ]
    rest = "\n".join(shown[3:])
    assert rest.startswith("3 records of data/records.db are damaged, 1197 are whole.\n")
    assert "db restore" in rest
    assert "--leave-out-damaged" in rest


@pytest.mark.usefixtures("service")
def test_verify_runs_as_a_module_and_its_status_tells() -> None:
    assert run("db", "verify").returncode == 0
    _damage(1)
    result = run("db", "verify")
    assert result.returncode == 1
    assert "Record 1 is damaged" in result.stdout


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda: _sql("UPDATE header SET mac = zeroblob(32)"), id="header"),
        pytest.param(lambda: DATABASE.write_bytes(b"no database" * 1000), id="file"),
    ],
)
def test_verify_of_a_database_that_does_not_open_tells_damage(
    service: Output, damage: Callable[[], object]
) -> None:
    damage()
    assert main(["db", "verify"]) == 1
    shown = service.readouterr()
    assert "amaged" in shown.out + shown.err
    assert "whole" not in shown.out


def test_what_is_left_of_a_file_that_was_cut_short_is_saved(service: Output) -> None:
    before = _contents()
    os.truncate(DATABASE, 80_000)
    assert main(["db", "verify"]) == 1
    assert "SQLite found: " in service.readouterr().out
    assert main(["db", "backup", str(BACKUP), "--leave-out-damaged"]) == 0
    _move_database_away()
    assert main(["db", "restore", str(BACKUP)]) == 0
    after = _contents()
    assert 0 < len(after) < len(before)
    assert after.items() <= before.items()


def test_verify_of_damaged_pages_names_what_is_in_them(service: Output) -> None:
    _damage_pages()
    assert main(["db", "verify"]) == 1
    shown = service.readouterr().out.splitlines()
    assert any(line.startswith("SQLite found: ") for line in shown)
    damaged = [
        line for line in shown if re.fullmatch(r"Record \d+ is damaged \(token .+\)\.", line)
    ]
    summary = f"{len(damaged)} records of data/records.db are damaged, "
    whole = next(line for line in shown if line.startswith(summary)).removeprefix(summary)
    assert 1 < len(damaged) <= 1200 - int(whole.split()[0])
    assert int(whole.split()[0]) > 100
    assert "--leave-out-damaged" in shown[-1]


@pytest.mark.parametrize("command", [["verify"], ["backup", str(BACKUP)]], ids=["verify", "backup"])
def test_a_database_of_another_kind_or_key_is_no_damage(
    service: Output, command: list[str]
) -> None:
    DATABASE.rename("encrypted")
    status = main(["db", *command])
    refused(service, status, "data/records.db is missing or empty", "--data-dir")
    _write_plain(3)
    status = main(["db", *command])
    refused(service, status, "data/records.db is plain records", "an encrypted store")
    Path("encrypted").replace(DATABASE)
    _sql("UPDATE header SET format = 2")
    status = main(["db", *command])
    refused(service, status, "format 2", "Use the version that wrote it")
    _sql("UPDATE header SET format = 1")
    other = _another_service("other")
    shutil.copy2("other/data/envelope.json", ENVELOPE)
    service.readouterr()
    status = main(["db", *command, "--key-source", f"file:{other}"])
    refused(service, status, "The key is not the one of data/records.db")
    assert not BACKUP.exists()


@pytest.mark.usefixtures("service")
def test_verify_beside_a_writer() -> None:
    with _writer() as written:
        before = written()
        result = run("db", "verify")
        assert result.returncode == 0
        assert int(result.stdout.split()[1]) >= 1200 + before
        assert written() > before


# backup


def test_a_backup_is_read_back_and_says_what_opens_it(service: Output) -> None:
    assert main(["db", "backup", str(BACKUP)]) == 0
    shown = service.readouterr()
    size = BACKUP.stat().st_size
    assert shown.out.splitlines() == [
        f"{BACKUP} holds 1200 records, {size} bytes; it was read back and is whole.",
        "It opens with file:secrets/service.key, without the envelope and on any machine.",
        "Keep a copy of that apart from it: whoever has both reads the records,",
        "and without it nobody does.",
    ]
    assert "1200 of 1200 records saved\n" in shown.err
    assert "1200 of 1200 records read back\n" in shown.err
    if sys.platform != "win32":
        assert BACKUP.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("slot_type", ["key-file", "container-secret"])
def test_a_backup_opens_with_the_key_file_alone_and_with_the_master_key_alone(
    slot_type: str,
) -> None:
    source = SOURCE
    if slot_type == "container-secret":
        KEY_FILE.parent.mkdir()
        KEY_FILE.write_bytes(bytes(range(32)))
        KEY_FILE.chmod(0o444)
        source = f"secret:{KEY_FILE}"
    main(["init", "--no-recovery", "--key-source", source])
    with open_master_key(ENVELOPE, source) as master, SecureDb.open(DATABASE, master) as store:
        store.insert_many((b"name %d" % number, b"value") for number in range(5))
    assert main(["db", "backup", str(BACKUP), "--key-source", source]) == 0
    with open_keys(ENVELOPE, source) as keys, SecretBytes.generate(32) as other:
        assert keys.provider.slot_type == slot_type
        alone = {slot_type: keys.wrapping.key}
        assert check_backup(BACKUP, alone, progress=lambda *_: None) == 5
        assert check_backup(BACKUP, {"master": keys.master}, progress=lambda *_: None) == 5
        with pytest.raises(WrongKeyError):
            check_backup(BACKUP, {slot_type: other, "master": other}, progress=lambda *_: None)


def test_a_backup_that_cannot_be_read_back_is_reported(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(*arguments: Any, **options: Any) -> int:
        count = write_backup(*arguments, **options)
        contents = bytearray(BACKUP.read_bytes())
        contents[-30] ^= 1
        BACKUP.write_bytes(contents)
        return count

    monkeypatch.setattr("service_security.store.command.write_backup", damaging)
    assert main(["db", "backup", str(BACKUP)]) == 2
    shown = service.readouterr()
    assert shown.out == ""
    assert "damaged" in shown.err


def test_a_backup_replaces_nothing(service: Output) -> None:
    BACKUP.write_bytes(b"the backup of yesterday")
    status = main(["db", "backup", str(BACKUP)])
    refused(service, status, "records.backup is there already")
    assert BACKUP.read_bytes() == b"the backup of yesterday"


def test_a_backup_into_a_folder_that_is_not_there_is_refused(service: Output) -> None:
    status = main(["db", "backup", "missing/file"])
    refused(service, status, "missing/file")
    assert not Path("missing").exists()


def test_a_damaged_record_stops_a_backup_and_the_way_on_is_named(service: Output) -> None:
    _damage(700)
    assert main(["db", "backup", str(BACKUP)]) == 2
    shown = service.readouterr()
    assert shown.out == ""
    assert shown.err.endswith(
        "service_security: Record 700 failed its integrity check. No backup was written; db verify "
        "tells what is damaged and what to do.\n"
    )
    assert _left_behind() == set()


def test_what_is_whole_in_a_file_with_damaged_pages_is_saved(service: Output) -> None:
    before = _contents()
    _damage_pages()
    with _open() as store:
        found = store.verify()
    assert 600 < found.records < 1200
    assert main(["db", "backup", str(BACKUP), "--leave-out-damaged"]) == 0
    shown = service.readouterr().out
    assert shown.count("is damaged and was left out") == len(found.damaged)
    assert f"{BACKUP} holds {found.records} records" in shown
    _move_database_away()
    assert main(["db", "restore", str(BACKUP)]) == 0
    after = _contents()
    assert len(after) == found.records
    assert after.items() <= before.items()


def test_damaged_pages_stop_a_backup_that_is_to_leave_nothing_out(service: Output) -> None:
    _damage_pages()
    status = main(["db", "backup", str(BACKUP)])
    shown = service.readouterr()
    assert (status, shown.out) == (2, "")
    assert shown.err.endswith(
        "No backup was written; db verify tells what is damaged and what to do.\n"
    )
    assert _left_behind() == set()


def test_the_others_are_saved_when_damaged_records_are_left_out(service: Output) -> None:
    _damage(1, 700)
    assert main(["db", "backup", str(BACKUP), "--leave-out-damaged"]) == 0
    shown = service.readouterr().out
    assert shown.startswith(
        "Record 1 is damaged and was left out.\nRecord 700 is damaged and was left out.\n"
        "records.backup holds 1198 records"
    )
    _move_database_away()
    assert main(["db", "restore", str(BACKUP)]) == 0
    expected = {b"name %d" % number for number in range(1200)} - {b"name 0", b"name 699"}
    assert _contents().keys() == expected


@pytest.mark.usefixtures("service")
def test_a_backup_beside_a_writer_holds_one_moment() -> None:
    with _writer() as written:
        before = written()
        result = run("db", "backup", str(BACKUP))
        assert result.returncode == 0, result.stderr
        assert written() > before
    _move_database_away()
    assert main(["db", "restore", str(BACKUP)]) == 0
    later = sorted(int(name.split()[-1]) for name in _contents() if name.startswith(b"written"))
    assert later == list(range(len(later)))
    assert len(later) > before


# restore


def _move_database_away() -> None:
    Path("moved").mkdir(exist_ok=True)
    for path in Path("data").glob("records.db*"):
        path.rename(Path("moved", path.name))


def _left_behind() -> set[str]:
    """Return what is there beside a service's own files."""
    return {path.name for folder in (Path(), Path("data")) for path in folder.iterdir()} - {
        "data",
        "secrets",
        "envelope.json",
        "records.db",
        "records.db-wal",
        "records.db-shm",
    }


def test_a_restored_database_holds_the_same_records_under_new_keys(service: Output) -> None:
    keys, identifier = _keys_of_everything(), _sql("SELECT db_id FROM header")
    main(["db", "backup", str(BACKUP)])
    _move_database_away()
    service.readouterr()
    assert main(["db", "restore", str(BACKUP), "--cipher", "aes256gcm"]) == 0
    shown = service.readouterr()
    assert shown.out == (
        "data/records.db holds 1200 records now, encrypted with aes256gcm under new keys.\n"
    )
    assert shown.err.endswith("1200 of 1200 records restored\n")
    assert _contents() == {b"name %d" % number: b"value" for number in range(1200)}
    with _open() as store:
        assert store.cipher == "aes256gcm"
    assert len(set(keys) & set(_keys_of_everything())) == 2  # master and wrapping key are kept
    assert _sql("SELECT db_id FROM header") != identifier
    assert _left_behind() == {"moved", "records.backup"}


@pytest.mark.usefixtures("service")
def test_backup_and_key_file_are_enough_on_a_fresh_machine() -> None:
    assert run("db", "backup", str(BACKUP)).returncode == 0
    Path("fresh").mkdir()
    shutil.copy2(BACKUP, "fresh")
    shutil.copy2(KEY_FILE, "fresh")
    shutil.rmtree("data")
    shutil.rmtree("secrets")
    folders = ["--data-dir", "data", "--key-source", "file:service.key"]
    assert run("init", "--no-recovery", *folders, cwd="fresh").returncode == 0
    result = run("db", "restore", BACKUP.name, *folders, cwd="fresh")
    assert result.returncode == 0, result.stderr
    os.chdir("fresh")
    with (
        open_master_key(ENVELOPE, "file:service.key") as master_key,
        SecureDb.open(DATABASE, master_key) as store,
    ):
        assert dict(store.items()) == {b"name %d" % number: b"value" for number in range(1200)}


@pytest.mark.parametrize("moved_to", ["container-secret", "key-file"])
def test_a_backup_opens_where_the_same_key_is_of_the_other_type(
    capsys: Output, moved_to: str
) -> None:
    before, after = "file:delivered", "secret:delivered"
    if moved_to == "key-file":
        before, after = after, before
    key = Path("delivered")
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    main(["init", "--no-recovery", "--key-source", before])
    with open_master_key(ENVELOPE, before) as master, SecureDb.open(DATABASE, master) as store:
        store.insert(b"name", b"value")
    assert main(["db", "backup", str(BACKUP), "--key-source", before]) == 0
    shutil.rmtree("data")
    main(["init", "--no-recovery", "--key-source", after])
    with open_keys(ENVELOPE, after) as keys:
        assert keys.provider.slot_type == moved_to
    assert main(["db", "verify", "--backup", str(BACKUP), "--key-source", after]) == 0
    assert main(["db", "restore", str(BACKUP), "--key-source", after]) == 0
    assert "holds 1 records now" in capsys.readouterr().out


def test_a_backup_of_another_service_needs_its_key_file(service: Output) -> None:
    main(["db", "backup", str(BACKUP)])
    other = _another_service("other")
    folders = ["--data-dir", "other/data", "--key-source", f"file:{other}"]
    service.readouterr()
    status = main(["db", "restore", str(BACKUP), *folders])
    refused(service, status, "The backup records.backup cannot be used", "service, file:. What")
    assert not Path("other/data/records.db").exists()
    command = ["db", "restore", str(BACKUP), *folders, "--backup-key-file"]
    status = main([*command, "missing"])
    refused(service, status, "The key file missing is missing")
    assert main([*command, str(KEY_FILE)]) == 0
    assert "other/data/records.db holds 1200 records now" in service.readouterr().out
    assert main(["db", "verify", *folders]) == 0


@pytest.mark.parametrize("there", ["encrypted", "plain", "damaged", "empty", "link", "log"])
def test_a_restore_never_replaces_a_database(service: Output, there: str) -> None:
    main(["db", "backup", str(BACKUP)])
    _move_database_away()
    if there == "encrypted":
        shutil.copy2("moved/records.db", DATABASE)
    elif there == "plain":
        _write_plain(1)
    elif there == "link":
        DATABASE.symlink_to("nowhere")
    elif there == "log":
        DATABASE.with_name("records.db-wal").write_bytes(b"the only copy of something")
    else:
        DATABASE.write_bytes(b"damaged" * 1000 if there == "damaged" else b"")
    before = {path.name: path.lstat().st_size for path in Path("data").iterdir()}
    service.readouterr()
    status = main(["db", "restore", str(BACKUP)])
    expected = "is there without" if there == "log" else "Move it to another folder"
    refused(service, status, f"data/records.db{'-wal' if there == 'log' else ''} is", expected)
    assert {path.name: path.lstat().st_size for path in Path("data").iterdir()} == before


@posix
def test_a_restore_is_refused_while_the_service_runs(service: Output) -> None:
    main(["db", "backup", str(BACKUP)])
    _move_database_away()
    service.readouterr()
    with _folder_in_use():
        status = main(["db", "restore", str(BACKUP)])
    refused(service, status, "The folder data is in use. Stop the service")
    assert not DATABASE.exists()
    assert main(["db", "restore", str(BACKUP)]) == 0


@posix
@pytest.mark.usefixtures("service")
def test_looking_and_saving_work_while_the_service_runs() -> None:
    with _folder_in_use():
        assert main(["db", "info"]) == 0
        assert main(["db", "verify"]) == 0
        assert main(["db", "backup", str(BACKUP)]) == 0


def _changed(backup: Path, change: str) -> None:
    contents = bytearray(backup.read_bytes())
    if change == "a bit":
        contents[len(contents) // 2] ^= 1
    elif change == "cut short":
        del contents[-1:]
    elif change == "extended":
        contents += b"\0"
    elif change == "no backup":
        contents[:] = b"something else" * 100
    elif change == "newer":
        contents[4] = 2
    backup.write_bytes(contents)


@pytest.mark.parametrize(
    ("change", "status"),
    [("a bit", 1), ("cut short", 1), ("extended", 1), ("no backup", 1), ("newer", 2)],
)
def test_a_backup_that_is_not_whole_is_found_and_never_restored(
    service: Output, change: str, status: int
) -> None:
    main(["db", "backup", str(BACKUP)])
    _changed(BACKUP, change)
    _move_database_away()
    service.readouterr()
    assert main(["db", "verify", "--backup", str(BACKUP)]) == status
    shown = service.readouterr()
    assert shown.out == ""
    assert "service_security: The backup records.backup cannot be used." in shown.err
    assert ("format 2" in shown.err) == (change == "newer")
    assert main(["db", "restore", str(BACKUP)]) == 2
    assert "The backup records.backup cannot be used." in service.readouterr().err
    assert _left_behind() == {"moved", "records.backup"}
    assert not DATABASE.exists()


def test_a_missing_backup_is_an_error(service: Output) -> None:
    status = main(["db", "verify", "--backup", str(BACKUP)])
    refused(service, status, "records.backup")
    _move_database_away()
    status = main(["db", "restore", str(BACKUP)])
    refused(service, status, "records.backup")
    assert not DATABASE.exists()


def test_verify_of_a_backup_asks_nothing_but_the_key_file(service: Output) -> None:
    main(["db", "backup", str(BACKUP)])
    service.readouterr()
    assert main(["db", "verify", "--backup", str(BACKUP)]) == 0
    shown = service.readouterr()
    assert shown.out == (
        "All 1200 records of records.backup are whole. "
        "It opens with file:secrets/service.key alone.\n"
    )
    assert "1200 of 1200 records checked\n" in shown.err
    shutil.rmtree("data")
    result = run("db", "verify", "--backup", str(BACKUP), "--backup-key-file", str(KEY_FILE))
    assert result.returncode == 0, result.stderr


def test_a_key_for_a_backup_without_a_backup_is_refused(service: Output) -> None:
    status = main(["db", "verify", "--backup-key-file", str(KEY_FILE)])
    refused(service, status, "Those keys are for a backup", "--backup FILE")


def test_verify_of_a_backup_with_another_key_says_so(service: Output) -> None:
    main(["db", "backup", str(BACKUP)])
    other = str(_another_service("other"))
    service.readouterr()
    status = main(["db", "verify", "--backup", str(BACKUP), "--backup-key-file", other])
    refused(service, status, "it is the key of another service")


def _service_with_a_phrase(source: str) -> Path:
    """Make a service with three records whose recovery phrase is in a file."""
    Path("secrets").mkdir()
    for name, contents in (("delivered", bytes(32)), ("passphrase", b"correct horse battery")):
        Path("secrets", name).write_bytes(contents)
        Path("secrets", name).chmod(0o400)
    phrase = Path("phrase")
    assert main(["init", "--phrase-file", str(phrase), "--key-source", source]) == 0
    with open_master_key(ENVELOPE, source) as master, SecureDb.open(DATABASE, master) as store:
        store.insert_many((b"name %d" % number, b"value") for number in range(3))
    return phrase


@pytest.mark.parametrize(
    ("source", "alone"),
    [
        (SOURCE, f"{SOURCE} or the recovery phrase"),
        ("secret:secrets/delivered", "secret:secrets/delivered or the recovery phrase"),
        ("passphrase:secrets/passphrase", "the recovery phrase"),
    ],
)
def test_backup_and_recovery_phrase_are_enough_on_a_fresh_machine(
    capsys: Output, source: str, alone: str
) -> None:
    phrase = str(_service_with_a_phrase(source))
    options = ["--key-source", source]
    capsys.readouterr()
    assert main(["db", "backup", str(BACKUP), *options]) == 0
    assert f"\nIt opens with {alone}, without the envelope" in capsys.readouterr().out
    assert main(["db", "verify", "--backup", str(BACKUP), *options]) == 0
    assert f"It opens with {alone} alone." in capsys.readouterr().out
    shutil.rmtree("data")
    shutil.rmtree("secrets")
    verify = ["db", "verify", "--backup", str(BACKUP)]
    assert main([*verify, "--phrase-file", phrase]) == 0
    assert "It opens with the recovery phrase alone." in capsys.readouterr().out

    assert main(["init", "--no-recovery"]) == 0
    capsys.readouterr()
    status = main(["db", "restore", str(BACKUP)])
    refused(capsys, status, "it is the key of another service")  # the control
    assert main(["db", "restore", str(BACKUP), "--phrase-file", phrase]) == 0
    with _open() as store:
        assert store.count() == 3


def test_a_backup_of_before_the_key_was_moved_opens_with_what_it_was_written_for(
    capsys: Output,
) -> None:
    _service_with_a_phrase(SOURCE)
    assert main(["db", "backup", str(BACKUP)]) == 0
    moved = "secret:secrets/delivered"
    with open_keys(ENVELOPE, SOURCE) as keys:
        reseal(ENVELOPE, keys, KeySource.parse(moved))
    capsys.readouterr()
    verify = ["db", "verify", "--backup", str(BACKUP)]
    assert main([*verify, "--key-source", moved]) == 0
    assert "It opens with the recovery phrase alone." in capsys.readouterr().out
    assert main([*verify, "--backup-key-file", str(KEY_FILE)]) == 0
    assert f"It opens with {KEY_FILE} alone." in capsys.readouterr().out


def test_a_phrase_that_is_piped_in_opens_a_backup() -> None:
    phrase = _service_with_a_phrase(SOURCE)
    assert main(["db", "backup", str(BACKUP)]) == 0
    shutil.rmtree("data")
    command = [sys.executable, "-m", "service_security", "db", "verify", "--recovery-phrase"]
    for typed, status in ((phrase.read_text(), 0), ("abandon " * 24, 2)):
        result = subprocess.run(
            [*command, "--backup", str(BACKUP)],
            input=typed,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == status, result.stderr
        assert "abandon" not in result.stderr


def test_a_backup_that_would_open_with_the_envelope_only_is_refused(capsys: Output) -> None:
    source = ["--key-source", "passphrase:secrets/passphrase"]
    Path("secrets").mkdir()
    Path("secrets/passphrase").write_text("correct horse battery")
    Path("secrets/passphrase").chmod(0o400)
    assert main(["init", "--no-recovery", *source]) == 0
    with open_master_key(ENVELOPE, source[1]) as master:
        SecureDb.open(DATABASE, master).close()
    capsys.readouterr()
    status = main(["db", "backup", str(BACKUP), *source])
    refused(capsys, status, "lost together with the envelope", "keys recovery-phrase")
    assert not BACKUP.exists()
    status = main(["db", "verify", "--backup", str(BACKUP), *source])
    refused(capsys, status, "No backup opens with passphrase:secrets/passphrase alone")


@pytest.mark.parametrize("both", [["--recovery-phrase"], ["--backup-key-file", "key"]])
def test_two_ways_into_a_backup_at_once_are_refused(both: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["db", "verify", "--backup", str(BACKUP), "--phrase-file", "phrase", *both])


def test_verify_of_a_backup_does_not_fall_back_on_the_master_key(service: Output) -> None:
    """Else a backup would count as whole that is lost with the machine."""
    main(["db", "backup", str(BACKUP)])
    with open_master_key(ENVELOPE, SOURCE) as master, SecretBytes.generate(32) as wrapping:
        ENVELOPE.write_bytes(Envelope.create(master, {"key-file": WrappingKey(wrapping)}).to_json())
        KEY_FILE.write_bytes(bytes(wrapping.view))
    service.readouterr()
    status = main(["db", "verify", "--backup", str(BACKUP)])
    refused(service, status, "it is the key of another service")
    _move_database_away()
    assert main(["db", "restore", str(BACKUP)]) == 0, "control: the master key does open it"


# Names


def test_no_command_prints_a_name_or_a_value(service: Output) -> None:
    names = [b"\xff\xfe\x00binary", "smörgås".encode("utf-16"), "Zürich".encode("latin-1")]
    names += ["ключ".encode("koi8-r"), b"plainly readable", b"\x1b[31mred"]
    with _open() as store:
        for name in names:
            store.insert(name, b"value of " + name)
    position = _sql("SELECT max(id) FROM record")[0][0]
    _damage(position, position - 1)
    commands = [
        ["info"],
        ["info", "--json"],
        ["verify"],
        ["backup", str(BACKUP)],
        ["backup", str(BACKUP), "--leave-out-damaged"],
        ["verify", "--backup", str(BACKUP)],
        ["restore", str(BACKUP)],
        ["export"],
    ]
    text = ""
    for command in commands:
        if command[0] == "restore":
            _move_database_away()
        main(["db", *command])
        shown = service.readouterr()
        assert shown.out + shown.err, command
        text += shown.out + shown.err
    assert not any(_holds(text, name) for name in names)
    assert all(_holds(name.hex() + repr(name), name) for name in names), "control"


# Progress


def _on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_progress_is_one_line_on_a_terminal(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_terminal(monkeypatch)
    seconds = iter([0.0, 0.5, 0.55, 2.0, 30.0, 60.0])
    with ProgressLine("encrypted", clock=lambda: next(seconds)) as progress:
        for done in (100, 200, 300, 950, 1200):
            progress(done, 1200)
    lines = [
        "100 of 1200 records encrypted",
        "300 of 1200 records encrypted, 0:06 left",
        "950 of 1200 records encrypted, 0:08 left",
        "1200 of 1200 records encrypted          ",  # what was longer is written over
    ]
    assert capsys.readouterr().err == "".join(f"\r{line}" for line in lines) + "\n"


def test_progress_without_a_terminal_is_a_line_for_every_tenth(capsys: Output) -> None:
    with ProgressLine("encrypted") as progress:
        for done in range(1, 1201):
            progress(done, 1200)
    tenths = [f"{120 * tenth} of 1200 records encrypted\n" for tenth in range(1, 11)]
    assert capsys.readouterr().err == "".join(tenths)


def test_an_error_begins_on_a_line_of_its_own(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    _damage(700)
    _on_a_terminal(monkeypatch)
    assert main(["db", "backup", str(BACKUP)]) == 2
    lines = service.readouterr().err.split("\n")
    assert lines[0] == "\r500 of 1200 records saved"
    assert lines[1].startswith("service_security: Record 700")


def test_damage_in_a_backup_begins_on_a_line_of_its_own(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open() as store:
        store.insert_many((b"name %d" % number, bytes(200)) for number in range(1200))
    main(["db", "backup", str(BACKUP)])
    contents = bytearray(BACKUP.read_bytes())
    contents[3 * 65536] ^= 1
    BACKUP.write_bytes(contents)
    service.readouterr()
    _on_a_terminal(monkeypatch)
    assert main(["db", "verify", "--backup", str(BACKUP)]) == 1
    lines = service.readouterr().err.split("\n")
    assert lines[0] == "\r500 of 1200 records checked"
    assert lines[1].startswith("service_security: The backup records.backup cannot be used.")


def test_no_progress_is_no_line(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    _on_a_terminal(monkeypatch)
    with ProgressLine("encrypted") as progress:
        pass
    with ProgressLine("encrypted") as progress:
        progress(0, 0)
    assert capsys.readouterr().err == "\r0 of 0 records encrypted\n"


@posix
@pytest.mark.usefixtures("service")
def test_progress_on_a_real_terminal_and_in_a_pipe() -> None:
    import pty

    _fill(6000)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "service_security", "db", "backup", str(BACKUP)],
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    process.communicate()
    assert process.returncode == 0
    saved, read_back, rest = shown.decode().split("\r\n")
    assert rest == ""
    for line, verb in ((saved, "saved"), (read_back, "read back")):
        drawn = line.split("\r")
        assert drawn[0] == ""
        assert len(drawn) > 2
        assert all(re.match(rf"\d+00 of 6000 records {verb}", text) for text in drawn[1:])
        assert drawn[-1].rstrip() == f"6000 of 6000 records {verb}"
    piped = run("db", "verify")
    assert "\r" not in piped.stderr
    assert piped.stderr.count("\n") == 10


@posix
def test_quiet_commands_show_no_progress(service: Output) -> None:
    commands = [["info"], ["verify"], ["backup", str(BACKUP)], ["verify", "--backup", str(BACKUP)]]
    commands += [["restore", str(BACKUP)], ["export"], ["import"]]
    for command in commands:
        if command[0] == "restore":
            _move_database_away()
        assert main(["db", *command, "--quiet"]) == 0
        shown = service.readouterr()
        assert shown.err == "", command
        assert shown.out, command


# Interrupts


@pytest.mark.parametrize("command", ["backup", "restore", "verify", "read back"])
def test_an_interrupt_leaves_no_file_and_can_be_run_again(
    service: Output, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    arguments = {"verify": ["verify"], "read back": ["backup", str(BACKUP)]}.get(
        command, [command, str(BACKUP)]
    )
    if command == "restore":
        main(["db", "backup", str(BACKUP)])
        _move_database_away()
    before = _left_behind()
    service.readouterr()
    verbs = {"backup": "saved", "restore": "restored", "verify": "checked"}

    def interrupt(line: ProgressLine, done: int, total: int) -> None:
        if line._verb == verbs.get(command, command) and done >= total // 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "__call__", interrupt)
        assert main(["db", *arguments]) == 130
    shown = service.readouterr()
    assert (shown.out, shown.err) == ("", "\nservice_security: stopped; run the command again\n")
    if command == "read back":
        BACKUP.unlink()  # it is whole, but nobody has said so
    assert _left_behind() == before
    assert DATABASE.exists() == (command != "restore")
    assert main(["db", *arguments]) == 0


WAITS = """
import sys, time
from service_security.cli import main
from service_security.progress import ProgressLine

call = ProgressLine.__call__

def wait(*arguments):
    call(*arguments)
    for _ in range(2000):  # a signal may come just before a sleep, and be handled behind it
        time.sleep(0.05)

ProgressLine.__call__ = wait
raise SystemExit(main())
"""


@posix
@pytest.mark.parametrize("command", ["backup", "restore"])
@pytest.mark.usefixtures("service")
def test_a_signal_leaves_no_file(command: str) -> None:
    _fill(5000)
    if command == "restore":
        assert run("db", "backup", str(BACKUP)).returncode == 0
        _move_database_away()
    before = _left_behind()
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, "db", command, str(BACKUP)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("500 of 5000 records")
    assert _left_behind() > before, "control: there is something to leave behind"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert out == ""
    assert err.endswith("service_security: stopped; run the command again\n")
    assert _left_behind() == before
    assert DATABASE.exists() == (command == "backup")
