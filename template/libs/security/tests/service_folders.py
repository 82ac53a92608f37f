"""The folders of a service in the current one, for tests of commands."""

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service_security.cli import main
from service_security.keys.service_keys import open_envelope
from service_security.store import SecureDb
from service_security.terminal import read_phrase

DATABASE = Path("data/records.db")
ENVELOPE = Path("data/envelope.json")
NEXT = Path("data/envelope.json.next")
PREVIOUS = Path("data/envelope.json.previous")
KEY_FILE = Path("secrets/service.key")
PHRASE = Path("phrase")
SOURCE = f"file:{KEY_FILE}"
NAME, VALUE = b"the name of record %d", b"the value of record %d"

Output = pytest.CaptureFixture[str]


def into_empty_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to an empty folder, with the settings of a service whose key is in a file."""
    monkeypatch.chdir(folder)
    for variable in ("SERVICE_DATA_DIR", "SERVICE_KEY_ROTATION_DAYS", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SERVICE_KEY_SOURCE", SOURCE)


def make_service(count: int = 30, *options: str) -> None:
    """Make a key with a phrase, and a database of ``count`` records."""
    assert main(["init", *(options or ("--phrase-file", str(PHRASE)))]) == 0
    fill(count)


def open_database(path: Path = DATABASE, source: str = SOURCE, **options: Any) -> SecureDb:
    """Open a database with the master key of the envelope."""
    with open_envelope(ENVELOPE, source) as keys:
        return SecureDb.open(path, keys.master, **options)


def fill(count: int, path: Path = DATABASE) -> None:
    """Put records into a database."""
    with open_database(path) as store:
        store.insert_many((NAME % number, VALUE % number) for number in range(count))


def contents(path: Path = DATABASE, source: str = SOURCE) -> dict[bytes, bytes]:
    """Return every record of a database."""
    with open_database(path, source) as store:
        return dict(store.items())


def expected(count: int) -> dict[bytes, bytes]:
    """Return what ``fill`` puts there."""
    return {NAME % number: VALUE % number for number in range(count)}


def files(folder: Path = Path()) -> dict[str, bytes]:
    """Return every file below a folder, but for locks, empty logs and the index of a log."""
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("lock", "-shm"))
        if path.stat().st_size or not path.name.endswith("-wal")
    }


def refused(output: Output, status: int, *sentences: str) -> None:
    """Expect one line on standard error, with those sentences in it, and nothing else."""
    shown = output.readouterr()
    assert status == 2
    assert shown.out == ""
    assert shown.err.startswith("service_security: ")
    assert shown.err.count("\n") == 1
    for sentence in sentences:
        assert sentence in shown.err


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "service_security", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | options.pop("environment", {}),
        **options,
    )


def secrets_of(source: str = SOURCE, phrase: Path | None = PHRASE) -> dict[str, str]:
    """Return what must never be shown, by a name for it: keys as text, and words of the phrase."""
    keys = {}
    with open_envelope(ENVELOPE, source) as opened:
        keys = {"master": bytes(opened.master.view), "wrapping": bytes(opened.wrapping.key.view)}
    found = {}
    if phrase:
        with read_phrase(phrase) as recovery:
            keys["recovery"] = bytes(recovery.view)
        words = phrase.read_text().split()
        found = {f"words {place}": " ".join(words[place : place + 2]) for place in range(0, 23)}
    for name, key in keys.items():
        found |= {
            f"{name} hex": key.hex(),
            f"{name} base64": base64.b64encode(key).decode(),
            f"{name} repr": repr(key)[2:-1],
        }
    return found


def assert_no_secret(shown: str, secrets: dict[str, str]) -> None:
    """Expect no secret, and no record, in what was shown."""
    for name, secret in secrets.items():
        assert secret not in shown, name
    assert "the name of record" not in shown
    assert "the value of record" not in shown
