"""The drill: a backup and a phrase, on an empty folder, and nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from service_folders import (
    DATABASE,
    ENVELOPE,
    NAME,
    PHRASE,
    Output,
    assert_no_secret,
    files,
    into_empty_folder,
    make_service,
    open_database,
    refused,
    run,
    secrets_of,
)
from service_security.cli import main
from service_security.store import backup as backups
from service_security.store import recovery_drill

BACKUP = Path("first.backup")
DRILL = ["keys", "recovery-drill", str(BACKUP), "--phrase-file", str(PHRASE)]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service in the current folder, and an empty folder for what is temporary."""
    here, folder = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    folder.mkdir()
    into_empty_folder(here, monkeypatch)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def service(capsys: Output) -> Output:
    make_service()
    assert main(["db", "backup", str(BACKUP)]) == 0
    capsys.readouterr()
    return capsys


def test_backup_and_phrase_give_every_record_back_without_anything_else(
    service: Output, temporary: Path
) -> None:
    """The fresh machine: neither envelope, nor key, nor database."""
    for folder in ("data", "secrets"):
        shutil.rmtree(folder)
    before = files()
    assert main(DRILL) == 0
    shown = service.readouterr()
    assert "the recovery phrase gave back all of its\n30 records" in shown.out
    assert "Not compared. There is no encrypted data/records.db here." in shown.out
    assert "30 of 30 records restored" in shown.err
    assert "30 of 30 records read" in shown.err
    assert files() == before
    assert not list(temporary.iterdir())


def test_the_records_are_compared_with_the_service_that_runs(
    service: Output, temporary: Path
) -> None:
    with open_database() as store:
        store.insert_many([(NAME % 0, b"changed"), (NAME % 1, b"changed"), (b"new", b"value")])
        store.remove(NAME % 2)
        before = files()
        assert main(DRILL) == 0
        assert files() == before
    shown = service.readouterr().out
    assert "now: 27 records are the same,\n2 have changed, 1 are gone, 1 are new.\n" in shown
    assert "db verify" not in shown
    assert not list(temporary.iterdir())


def test_an_empty_value_is_not_a_missing_record(service: Output) -> None:
    with open_database() as store:
        store.insert(b"empty", b"")
    assert main(["db", "backup", "second.backup"]) == 0
    assert main(["keys", "recovery-drill", "second.backup", "--phrase-file", str(PHRASE)]) == 0
    assert "31 records are the same,\n0 have changed, 0 are gone" in service.readouterr().out


def test_records_that_the_service_cannot_read_are_counted(service: Output) -> None:
    with closing(apsw.Connection(str(DATABASE))) as connection:
        connection.execute("UPDATE record SET sealed = zeroblob(90) WHERE id IN (3, 4)")
    assert main(DRILL) == 0
    shown = service.readouterr().out
    assert "28 records are the same,\n0 have changed, 0 are gone, 0 are new." in shown
    assert "2 cannot be read there: run db verify." in shown


@pytest.mark.parametrize("lost", [ENVELOPE, Path("secrets/service.key")])
def test_a_database_that_does_not_open_is_not_compared_and_said(
    service: Output, lost: Path
) -> None:
    lost.unlink()
    assert main(DRILL) == 0
    shown = service.readouterr().out
    assert "30 records, in an empty folder" in shown
    assert f"Not compared. There is no key envelope {lost}" in shown or (
        f"Not compared. The key file {lost} is missing" in shown
    )


def test_a_passphrase_is_not_asked_for(service: Output) -> None:
    assert main([*DRILL, "--key-source", "passphrase"]) == 0
    assert "Not compared." in service.readouterr().out


def test_the_service_key_opens_nothing_in_the_folder_of_the_drill(
    monkeypatch: pytest.MonkeyPatch, service: Output
) -> None:
    masters: list[bytes] = []
    module: Any = recovery_drill
    real = module.restore_backup

    def restore(source: Path, keys: Any, database: Path, master: Any, **options: Any) -> int:
        masters.append(bytes(master.view))
        assert not list(database.parent.iterdir())
        assert database.parent.stat().st_mode & 0o077 == 0
        count: int = real(source, keys, database, master, **options)
        return count

    monkeypatch.setattr(recovery_drill, "restore_backup", restore)
    for _ in range(2):
        assert main(DRILL) == 0
    secrets = secrets_of()
    assert len(set(masters)) == 2
    for master in masters:
        assert_no_secret(master.hex(), {"master": secrets["master hex"]})
    shown = service.readouterr()
    assert_no_secret(shown.out + shown.err, secrets)


def test_another_phrase_is_refused(service: Output, temporary: Path) -> None:
    assert main(["keys", "recovery-phrase", "--phrase-file", "another"]) == 0
    service.readouterr()
    refused(service, main([*DRILL[:-1], "another"]), "first.backup cannot be used", "phrase")
    assert not list(temporary.iterdir())


def test_a_backup_without_a_recovery_phrase_is_refused(capsys: Output, temporary: Path) -> None:
    make_service(3, "--no-recovery")
    assert main(["db", "backup", str(BACKUP)]) == 0
    assert main(["keys", "recovery-phrase", "--phrase-file", str(PHRASE)]) == 0
    capsys.readouterr()
    refused(capsys, main(DRILL), "It opens with one of: the envelope of its service, file:.")
    assert not list(temporary.iterdir())


def test_a_backup_that_is_not_there_is_refused(service: Output) -> None:
    BACKUP.unlink()
    refused(service, main(DRILL), "first.backup")


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_backup_is_status_one(service: Output, temporary: Path, damage: str) -> None:
    data = bytearray(BACKUP.read_bytes())
    if damage == "flipped":
        data[-200] ^= 1
    else:
        del data[-100:]
    BACKUP.write_bytes(data)
    assert main(DRILL) == 1
    shown = service.readouterr()
    assert shown.out == ""
    assert "is damaged or incomplete" in shown.err
    assert not list(temporary.iterdir())


def test_a_restore_that_loses_a_record_is_noticed(
    service: Output, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    real = backups._fill

    def lose_one(store: Any, backup: Any, progress: Any) -> int:
        count = real(store, backup, progress)
        store.remove(NAME % 5)
        return count

    monkeypatch.setattr(backups, "_fill", lose_one)
    assert main(DRILL) == 1
    assert "has 30 records, and 29 came back" in service.readouterr().err
    assert not list(temporary.iterdir())


def test_a_temporary_folder_that_cannot_be_made_is_said(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "missing")
    refused(service, main(DRILL), "TMPDIR")


DRILL_THAT_WAITS = """
import sys, time
from pathlib import Path
from service_security.cli import main
from service_security.store import recovery_drill

real = recovery_drill.{function}

def wait(*arguments, **options):
    found = real(*arguments, **options)
    print("waits", flush=True)
    for _ in range(4000):  # a signal may come just before a sleep, and be handled behind it
        time.sleep(0.05)
    return found

recovery_drill.{function} = wait
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("function", ["restore_backup", "_compare"])
@pytest.mark.usefixtures("service")
def test_an_interrupt_leaves_nothing_behind(
    temporary: Path, number: signal.Signals, function: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DRILL_THAT_WAITS.format(function=function), *DRILL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        assert len(list(temporary.glob("recovery-drill-*/records.db"))) == 1  # the control
        process.send_signal(number)
        shown = process.communicate(timeout=120)[1]
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "stopped" in shown
    assert "Traceback" not in shown
    assert not list(temporary.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_while_the_folder_is_removed_waits_until_it_is(
    service: Output, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    real = shutil.rmtree

    def interrupted(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # a handler would run now
        real(*arguments, **options)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile._shutil, "rmtree", interrupted)  # type: ignore[attr-defined]
        assert main(DRILL) == 130
    assert "stopped" in service.readouterr().err
    assert not list(temporary.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before
    assert main(DRILL) == 0


def test_the_drill_runs_as_a_command_with_the_phrase_on_standard_input(
    service: Output,
) -> None:
    del service
    result = run(*DRILL[:3], input=PHRASE.read_text())
    assert (result.returncode, "30 records are the same" in result.stdout) == (0, True)
