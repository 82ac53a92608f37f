"""Kills ``keys rotate --master`` in every call with which it reaches the disk.

Run as ``master_killer.py FOLDER CASE``. For each number, from 1 on, a child works on a new copy of
a service's folders and is killed with SIGKILL just before the call of that number that writes,
syncs, cuts, opens for writing, links, renames or removes a file. A second child sees that no
database is without its master key and that the service refuses or finds everything; then it runs
the same command again and checks the end. That goes on until a child comes to its end. Nothing
that has opened a database is ever forked.
"""

import io
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import apsw

from failing_vfs import Call, failing_device, in_child, kill_at_every_call
from service_security.cli import main as command
from service_security.errors import KeyUnavailableError
from service_security.keys import open_master_key
from service_security.keys.derivation import master_id
from service_security.keys.envelope import Envelope
from service_security.keys.provider import RECOVERY
from service_security.keys.recovery import RecoveryKey
from service_security.keys.service_keys import ServiceKeys, open_envelope, open_with, read_envelope
from service_security.store import SecureDb, new_master
from service_security.terminal import read_phrase

ENVELOPE = Path("data/envelope.json")
ENVELOPES = [ENVELOPE, Path("data/envelope.json.next"), Path("data/envelope.json.previous")]
DATABASES = [Path("data/records.db"), Path("data/second.db"), Path("elsewhere/third.db")]
RECORDS = {b"record %d" % number: b"value" for number in range(20)}
OLD, NEW = "file:secrets/service.key", "file:secrets/new.key"
PHRASE = Path("new phrase")
COMMAND = ["keys", "rotate", "--master", "--also", "elsewhere/third.db", "--phrase-file"]

CASES = {
    "same source": OLD,
    "another source": NEW,
    "control": OLD,
}


def make_service() -> None:
    """Make the folders of a service, with three databases."""
    assert command(["init", "--key-source", OLD, "--phrase-file", "old phrase"]) == 0
    Path("elsewhere").mkdir()
    with open_master_key(ENVELOPE, OLD) as master:
        for database in DATABASES:
            with SecureDb.open(database, master) as store:
                store.insert_many(RECORDS.items())
    Path("data/empty.db").touch()


def _rotate(to: str) -> tuple[int, str]:
    shown = io.StringIO()
    with redirect_stdout(shown), redirect_stderr(shown):
        status = command([*COMMAND, str(PHRASE), "--key-source", OLD, "--to", to])
    return status, shown.getvalue()


def _write_the_envelope_last() -> None:
    """Do it as it must not be done, to show that a kill in between is noticed."""
    module: Any = new_master
    replace, publish = module.replace_whole, module._Change._publish
    put_off: list[Any] = []

    def later(path: Path, contents: bytes, check: Callable[[bytes], None]) -> None:
        check(contents)
        put_off[:] = [path, contents, check]

    def now(change: Any) -> None:
        replace(*put_off)
        publish(change)

    module.replace_whole = later
    module._Change._publish = now


def _is_killed(to: str, number: int) -> None:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_database(_call: Call) -> bool:
        count()
        return False

    def on_file(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        if writes or event in ("os.rename", "os.link", "os.remove"):
            count()

    def fsync(descriptor: int, sync: Callable[[int], None] = os.fsync) -> None:
        count()
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(on_file)
    with failing_device() as device:
        device._fails = on_database  # type: ignore[method-assign, assignment]
        status, shown = _rotate(to)
    assert status == 0, shown


def _check(to: str) -> None:
    _check_that_nothing_is_lost()
    interrupted = ENVELOPES[1].exists()
    if interrupted:
        _check_that_no_service_starts(to)
    elif not ENVELOPES[2].exists():
        PHRASE.unlink(missing_ok=True)  # nothing was begun: the command says so
    published = ENVELOPES[2].exists() and ENVELOPE.read_bytes() != ENVELOPES[2].read_bytes()
    status, shown = _rotate(to)
    if published:
        assert status == 2, shown
    else:
        assert status == 0, shown
    _check_end(to)


def _check_that_no_service_starts(source: str) -> None:
    try:
        open_master_key(ENVELOPE, source).close()
    except KeyUnavailableError as error:
        if "keys rotate --master" in str(error):
            return
    raise AssertionError("a service would have started, or not known why it cannot")


def _master_ids() -> dict[bytes, ServiceKeys]:
    found = {}
    for path in ENVELOPES:
        for source in (OLD, NEW):
            if path.exists() and Path(source.removeprefix("file:")).exists():
                try:
                    keys = open_envelope(path, source)
                except Exception:  # noqa: BLE001, S112 - it is the other one
                    continue
                found[master_id(keys.master)] = keys
    return found


def _check_that_nothing_is_lost() -> None:
    keys = _master_ids()
    for database in DATABASES:
        with closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)) as reader:
            owner = reader.execute("SELECT master_id FROM header").get
        assert owner in keys, f"{database} is lost"
        with SecureDb.open(database, keys[owner].master, read_only=True) as store:
            assert dict(store.items()) == RECORDS


def _check_end(to: str) -> None:
    assert not ENVELOPES[1].exists()
    with open_master_key(ENVELOPE, to) as master:
        for database in DATABASES:
            with SecureDb.open(database, master) as store:
                assert dict(store.items()) == RECORDS
                assert store.verify().is_whole
            assert not database.with_name(f"{database.name}-wal").exists()
    by_phrase(ENVELOPE, PHRASE).close()
    by_phrase(ENVELOPES[2], Path("old phrase")).close()
    assert not list(Path("data").glob(".*")), "a draft is left"


def by_phrase(envelope: Path, phrase: Path) -> ServiceKeys:
    """Return the keys in an envelope, by the phrase in a file."""
    parsed: Envelope = read_envelope(envelope)
    assert RECOVERY in parsed.slots
    with read_phrase(phrase) as key:
        return open_with(parsed, RecoveryKey(key))


def main(folder: Path, case: str) -> None:
    """Kill at every call, and print how many kills there were."""
    to = CASES[case]
    if case == "control":
        _write_the_envelope_last()
    template = folder / "template"
    template.mkdir()
    with redirect_stdout(io.StringIO()):
        assert in_child(template, make_service) == 0
    kills = kill_at_every_call(
        folder,
        lambda inside: shutil.copytree(template, inside),
        lambda number: _is_killed(to, number),
        lambda: _check(to),
    )
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
