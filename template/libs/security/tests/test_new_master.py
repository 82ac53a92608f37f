"""A new master key: no database is ever without its key, whatever is killed or refused."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import master_killer
from conftest import until
from service_folders import (
    DATABASE,
    ENVELOPE,
    KEY_FILE,
    NEXT,
    PHRASE,
    PREVIOUS,
    SOURCE,
    Output,
    contents,
    expected,
    files,
    fill,
    into_empty_folder,
    make_service,
    open_database,
    refused,
)
from service_security import terminal
from service_security.cli import main
from service_security.errors import (
    KeyUnavailableError,
    SecurityError,
    StoreUnavailableError,
    WrongKeyError,
)
from service_security.keys import open_keys, open_master_key
from service_security.keys.derivation import master_id
from service_security.keys.service_keys import open_envelope
from service_security.rotate_command import rotate
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, new_master, schema
from service_security.store.header import Header
from service_security.store.keys_lock import keys_held
from service_security.store.kind import PLAIN_TABLE
from service_security.store.rewrapping import rewrap

if sys.platform != "win32":
    import fcntl

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and locks of POSIX")

TESTS = Path(__file__).parent
SECOND = Path("data/second.db")
ELSEWHERE = Path("elsewhere/third.db")
NEW_PHRASE = Path("new phrase")
ROTATE = ["keys", "rotate", "--master", "--phrase-file", str(NEW_PHRASE)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into_empty_folder(tmp_path, monkeypatch)


@pytest.fixture
def service(capsys: Output) -> Output:
    make_service()
    capsys.readouterr()
    return capsys


def _header(path: Path = DATABASE) -> Header:
    with closing(apsw.Connection(str(path))) as connection:
        return Header.read(connection)


def _interrupted_after(
    step: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str] = ROTATE
) -> None:
    """Run the command, and stop it as an interrupt does, behind a step."""

    def stop(_path: Path) -> str:
        raise KeyboardInterrupt

    class Stopping:
        format = staticmethod(stop)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules[rotate.__module__]._MASTER_STEPS, step, Stopping)
        assert main(arguments) == 130


# Killed


def _kill_everywhere(folder: Path, case: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(TESTS / "master_killer.py"), str(folder), case],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@posix
@pytest.mark.parametrize("case", ["same source", "another source"])
def test_a_kill_at_any_call_loses_no_database_and_the_same_command_goes_on(
    tmp_path: Path, case: str
) -> None:
    """Each file and each commit has calls of its own, so this is every step and its inside."""
    result = _kill_everywhere(tmp_path, case)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) >= 60


@posix
def test_a_change_that_loses_a_database_when_it_is_killed_is_noticed(tmp_path: Path) -> None:
    """The control of the test above."""
    result = _kill_everywhere(tmp_path, "control")
    assert "is lost" in result.stderr
    assert "not whole after a kill" in result.stderr
    assert result.returncode == 1


def test_every_case_of_the_killer_is_run() -> None:
    assert master_killer.CASES.keys() == {"same source", "another source", "control"}


# Changed


def test_records_stay_and_only_the_new_key_opens_them(service: Output) -> None:
    before = _header()
    rows = _rows()
    with open_master_key(ENVELOPE, SOURCE) as old:
        assert main(ROTATE) == 0
        with pytest.raises(WrongKeyError):
            SecureDb.open(DATABASE, old)
    after = _header()
    assert contents() == expected(30)
    assert _rows() == rows
    assert (after.db_id, after.keyset_generation) == (before.db_id, before.keyset_generation + 1)
    assert after.master_id != before.master_id
    assert "opens with file:secrets/service.key or the new" in service.readouterr().out


def _rows() -> list[object]:
    with closing(apsw.Connection(str(DATABASE))) as connection:
        return list(connection.execute("SELECT * FROM record ORDER BY id"))


@pytest.mark.usefixtures("service")
def test_the_old_header_is_nowhere_in_the_files_of_the_database() -> None:
    with open_database() as store:
        store.insert(b"something", b"that is in the log")
        keyset = _header().keyset
        assert any(keyset in text for text in files(Path("data")).values())  # the control
    assert main(ROTATE) == 0
    assert not [path for path, text in files(Path("data")).items() if keyset in text]


@pytest.mark.usefixtures("service")
def test_the_new_phrase_opens_the_new_envelope_and_the_old_one_the_previous() -> None:
    assert main(ROTATE) == 0
    master_killer.by_phrase(ENVELOPE, NEW_PHRASE).close()
    master_killer.by_phrase(PREVIOUS, PHRASE).close()
    for envelope, phrase in ((ENVELOPE, PHRASE), (PREVIOUS, NEW_PHRASE)):
        with pytest.raises(WrongKeyError):
            master_killer.by_phrase(envelope, phrase)


def test_the_new_envelope_has_its_name_durably(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure could bring the old one back, when the service has written under it."""
    old, synced = ENVELOPE.read_bytes(), list[tuple[Path, bool]]()

    def note(folder: Path) -> None:
        assert "is the new one now" not in service.readouterr().out
        synced.append((folder, ENVELOPE.read_bytes() != old and not NEXT.exists()))

    monkeypatch.setattr(new_master, "sync_folder", note)
    assert main(ROTATE) == 0
    assert synced == [(ENVELOPE.parent, True)]


def test_without_a_phrase_that_is_said(service: Output) -> None:
    assert main(["keys", "rotate", "--master", "--no-recovery"]) == 0
    assert "there is no recovery phrase" in service.readouterr().out
    with open_keys(ENVELOPE, SOURCE) as keys:
        assert keys.recovery is None


def test_another_source_is_taken_and_the_setting_is_said(service: Output) -> None:
    assert main([*ROTATE, "--to", "file:secrets/new.key"]) == 0
    assert "Set SERVICE_KEY_SOURCE=file:secrets/new.key for" in service.readouterr().out
    assert contents(source="file:secrets/new.key") == expected(30)
    with pytest.raises(WrongKeyError):
        open_keys(ENVELOPE, SOURCE)


def test_without_another_source_no_setting_is_said(service: Output) -> None:
    assert main(ROTATE) == 0
    assert "SERVICE_KEY_SOURCE" not in service.readouterr().out


def test_every_database_of_the_folder_and_those_named_are_changed(service: Output) -> None:
    ELSEWHERE.parent.mkdir()
    for path in (SECOND, ELSEWHERE):
        fill(5, path)
    assert main([*ROTATE, "--also", str(ELSEWHERE)]) == 0
    shown = service.readouterr().out
    for path in (SECOND, ELSEWHERE):
        assert f"{path} is under it." in shown
        assert contents(path) == expected(5)


def test_a_database_named_twice_is_changed_once(service: Output) -> None:
    assert main([*ROTATE, "--also", str(DATABASE), "--also", str(DATABASE.absolute())]) == 0
    assert service.readouterr().out.count("is under it.") == 1


def test_a_service_without_a_database_gets_a_new_key(capsys: Output) -> None:
    make_service()
    for path in Path("data").glob("records.db*"):
        path.unlink()
    assert main(ROTATE) == 0
    assert "is under it" not in capsys.readouterr().out


@pytest.mark.usefixtures("service")
def test_an_unfinished_rotation_of_record_keys_goes_on_under_the_new_key() -> None:
    class StopError(Exception):
        pass

    def stop(_step: object) -> None:
        raise StopError

    with open_database() as store, pytest.raises(StopError):
        store.rotation().run(on_step=stop)
    assert main(ROTATE) == 0
    with open_database() as store:
        assert store.rotation().status().unfinished == "rotation"
        assert store.rotation().run().resumed
        assert dict(store.items()) == expected(30)


@pytest.mark.usefixtures("service")
def test_the_profile_and_the_pcrs_of_before_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("secrets/pass").write_text("a passphrase of several words")
    assert main(["keys", "reseal", "--to", "passphrase:secrets/pass"]) == 0
    asked = []
    command = sys.modules[rotate.__module__]
    real = command.slot_source

    def slot_source(text: str, options: argparse.Namespace) -> object:
        asked.append((text, options.pcrs, options.passphrase_profile))
        return real(text, options)

    monkeypatch.setattr(command, "slot_source", slot_source)
    with open_envelope(ENVELOPE, "passphrase:secrets/pass") as keys:
        fields = keys.envelope.slots["passphrase"].fields
        fields["pcrs"] = "4,7"  # type: ignore[index]
        monkeypatch.setattr(command, "open_envelope", lambda *_: keys)
        main([*ROTATE, "--key-source", "passphrase:secrets/pass"])
    assert asked == [("passphrase:secrets/pass", (4, 7), "rfc9106-low-memory")]


def test_pcrs_without_a_phrase_are_refused(service: Output) -> None:
    before = files()
    arguments = ["keys", "rotate", "--master", "--no-recovery", "--pcrs", "7"]
    refused(service, main(arguments), "bound to PCRs is lost", "Leave --no-recovery out")
    assert files() == before


# Refused


@posix
def test_refused_while_a_service_runs(service: Output) -> None:
    before = files()
    descriptor = os.open("data", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        refused(service, main(ROTATE), "Stop the service")
    finally:
        os.close(descriptor)
    assert files() == before
    assert main(ROTATE) == 0


@posix
def test_refused_while_a_rotation_runs(service: Output) -> None:
    before = files()
    with keys_held(DATABASE):
        refused(service, main(ROTATE), "are being changed by somebody else")
    assert files() == before


@pytest.mark.usefixtures("service")
def test_a_database_whose_keys_change_right_now_is_left_until_that_is_done() -> None:
    """A rotation may have begun since all databases were looked at."""
    with open_master_key(ENVELOPE, SOURCE) as old, SecretBytes.generate() as new:
        before = _header()
        with keys_held(DATABASE), pytest.raises(StoreUnavailableError, match="somebody else"):
            rewrap(DATABASE, old, new)
        assert _header() == before
        rewrap(DATABASE, old, new)
        assert _header().master_id == master_id(new)


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root gives files away"
)
@pytest.mark.usefixtures("service")
def test_after_root_both_envelopes_belong_to_the_user_of_the_service() -> None:
    """The folder may be root's, so it is the envelope beside them that counts."""
    os.chown(ENVELOPE, 65534, 65533)
    assert main(ROTATE) == 0
    for path in (ENVELOPE, PREVIOUS):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)
        assert path.stat().st_mode & 0o777 == 0o600


def test_refused_while_the_envelope_of_an_earlier_change_is_there(service: Output) -> None:
    assert main(ROTATE) == 0
    service.readouterr()
    before = files()
    refused(service, main([*ROTATE[:-1], "third phrase"]), f"{PREVIOUS} is there", "Delete it")
    assert files() == before
    PREVIOUS.unlink()
    assert main([*ROTATE[:-1], "third phrase"]) == 0


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda: DATABASE.write_bytes(b"damaged" * 1000), "damaged or is no database"),
        (lambda: _sql("UPDATE header SET mac = randomblob(32)"), "header is damaged"),
        (lambda: _sql("UPDATE header SET master_id = randomblob(32)"), "another master key"),
    ],
    ids=["no database", "damaged header", "another master key"],
)
def test_refused_when_the_database_of_the_service_cannot_be_changed(
    service: Output, damage: Callable[[], None], sentence: str
) -> None:
    damage()
    before = files()
    refused(service, main(ROTATE), sentence)
    assert files() == before


def _sql(statement: str, path: Path = DATABASE) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(statement)


def test_other_files_of_the_folder_are_named_and_left(service: Output) -> None:
    SecureDb.open("data/others.db", bytes(32)).close()
    _sql(PLAIN_TABLE, Path("data/plain.db"))
    _sql("CREATE TABLE anything (x)", Path("data/something.db"))
    Path("data/damaged.db").write_bytes(b"damaged" * 1000)
    Path("data/folder.db").mkdir()
    Path("data/empty.db").touch()
    left = {name: Path(f"data/{name}.db").read_bytes() for name in ("others", "plain", "damaged")}
    assert main(ROTATE) == 0
    shown = service.readouterr().out
    for sentence in (
        "data/others.db was left as it is: under another master key.",
        "data/plain.db was left as it is: plain records.",
        "data/something.db was left as it is: something else.",
        "data/damaged.db was left as it is: damaged, or no database.",
    ):
        assert sentence in shown
    assert shown.count("was left") == 4
    assert {name: Path(f"data/{name}.db").read_bytes() for name in left} == left


@pytest.mark.parametrize("kind", ["missing", "others", "plain", "damaged"])
def test_a_named_file_that_cannot_be_changed_is_refused(service: Output, kind: str) -> None:
    ELSEWHERE.parent.mkdir()
    if kind == "others":
        SecureDb.open(ELSEWHERE, bytes(32)).close()
    if kind == "plain":
        _sql(PLAIN_TABLE, ELSEWHERE)
    if kind == "damaged":
        ELSEWHERE.write_bytes(b"damaged" * 1000)
    before = files()
    refused(service, main([*ROTATE, "--also", str(ELSEWHERE)]), str(ELSEWHERE))
    assert files() == before


def test_a_list_is_no_source_of_a_master_key(service: Output) -> None:
    before = files()
    refused(service, main([*ROTATE, "--to", "file:a,secret:b"]), "is a list")
    assert files() == before


@pytest.mark.usefixtures("service")
def test_a_key_file_in_the_data_folder_does_not_wait_for_the_folder() -> None:
    """It is held alone by the change, and for a moment by whoever makes a key file in it."""
    assert main([*ROTATE, "--to", "file:data/service.key"]) == 0
    assert contents(source="file:data/service.key") == expected(30)


def test_an_envelope_that_changes_while_a_person_writes_is_refused(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = terminal.new_phrase

    def meanwhile(file: Path | None) -> SecretBytes:
        assert main(["keys", "reseal", "--to", SOURCE]) == 0
        return real(file)

    monkeypatch.setattr(terminal, "new_phrase", meanwhile)
    assert main(ROTATE) == 2
    shown = service.readouterr()
    assert "was changed by another command meanwhile" in shown.err
    assert "new phrase is removed again: that phrase opens nothing" in shown.err
    assert not NEW_PHRASE.exists()
    assert not NEXT.exists()
    assert contents() == expected(30)


# Interrupted


def test_a_service_does_not_start_in_between_and_is_told_what_to_run(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_master_key(ENVELOPE, SOURCE).close()
    _interrupted_after("sealed", monkeypatch)
    with pytest.raises(KeyUnavailableError, match="just keys rotate --master`"):
        open_master_key(ENVELOPE, SOURCE)
    service.readouterr()
    refused(service, main(["db", "verify"]), "a change of the master key was interrupted")
    assert main(ROTATE) == 0
    open_master_key(ENVELOPE, SOURCE).close()


@pytest.mark.parametrize("step", ["sealed", "changed", "kept"])
def test_an_interrupt_leaves_what_the_same_command_ends(
    service: Output, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    fill(5, SECOND)
    _interrupted_after(step, monkeypatch)
    assert NEW_PHRASE.exists()
    assert NEXT.exists()
    service.readouterr()
    assert main(ROTATE) == 0
    shown = service.readouterr().out
    assert "Going on with the change that was interrupted" in shown
    assert "has a new master key" not in shown
    assert contents() == expected(30)
    assert contents(SECOND) == expected(5)
    master_killer.by_phrase(ENVELOPE, NEW_PHRASE).close()


def test_an_interrupt_at_the_end_is_past_it(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted_after("published", monkeypatch)
    assert NEW_PHRASE.exists()
    assert not NEXT.exists()
    service.readouterr()
    refused(service, main(ROTATE), f"{PREVIOUS} is there")
    assert contents() == expected(30)


def test_going_on_asks_for_the_source_of_the_first_time(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = Path("delivered")
    secret.write_bytes(bytes(range(32)))
    for to in ("secret:delivered", "file:secrets/new.key"):
        _interrupted_after("changed", monkeypatch, [*ROTATE, "--to", to])
        service.readouterr()
        before = files()
        refused(service, main(ROTATE), "was interrupted", "--to SOURCE")
        assert files() == before
        assert main([*ROTATE, "--to", to]) == 0
        assert contents(source=to) == expected(30)
        PREVIOUS.unlink()
        NEW_PHRASE.unlink()
        assert main(["keys", "reseal", "--key-source", to, "--to", SOURCE]) == 0


def test_a_damaged_next_envelope_is_said_and_nothing_is_changed(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted_after("changed", monkeypatch)
    NEXT.write_bytes(NEXT.read_bytes().replace(b'\\"generation\\": 1', b'\\"generation\\": 2'))
    service.readouterr()
    before = files()
    refused(service, main(ROTATE), f"{NEXT} cannot be used")
    assert files() == before


def test_a_copy_of_the_envelope_is_no_new_master_key(service: Output) -> None:
    NEXT.write_bytes(ENVELOPE.read_bytes())
    before = files()
    refused(service, main(ROTATE), "was not made to follow")
    assert files() == before


@pytest.mark.parametrize("earlier", [0, 1], ids=["the first", "one that followed on another"])
def test_an_older_envelope_put_there_does_not_bring_its_master_key_back(
    service: Output, earlier: int
) -> None:
    """Its MAC is right and the same key opens it: it was the envelope before the leak."""
    for change in range(earlier + 1):
        leaked = ENVELOPE.read_bytes()
        assert main(ROTATE) == 0
        PREVIOUS.unlink()
        NEW_PHRASE.unlink()
        assert ("after" in json.loads(json.loads(leaked)["body"])) == (change > 0)
    service.readouterr()
    NEXT.write_bytes(leaked)
    before = files()
    refused(service, main(ROTATE), "was not made to follow")
    assert files() == before
    NEXT.unlink()
    assert contents() == expected(30)


def test_a_log_that_somebody_reads_is_emptied_the_next_time(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_MS", 50)
    with open_database(read_only=True) as store, store.snapshot():
        assert main(ROTATE) == 2
        assert "could not be emptied" in service.readouterr().err
    assert NEXT.exists()
    assert main(ROTATE) == 0
    assert contents() == expected(30)


# Several at once


@pytest.mark.usefixtures("service")
def test_whoever_has_the_database_open_under_the_old_key_can_do_no_harm() -> None:
    with open_database() as store:
        assert main(ROTATE) == 0
        with pytest.raises(SecurityError):
            store.insert(b"under the old key", b"value")
        with pytest.raises(SecurityError):
            store.rotation().run()
    assert contents() == expected(30)


WAITS_WHILE_IT_IS_ALONE = """
import sys
from service_security import rotate_command
from service_security.cli import main

class Waiting:
    def format(self, path):
        sys.stdin.readline()
        return "The others have been refused."

rotate_command._MASTER_STEPS["sealed"] = Waiting()
raise SystemExit(main(sys.argv[1:]))
"""


@posix
@pytest.mark.usefixtures("service")
def test_of_two_at_once_one_makes_the_key_and_the_other_changes_nothing() -> None:
    for path in (SECOND, Path("data/third.db")):
        fill(5, path)
    arguments = [sys.executable, "-c", WAITS_WHILE_IT_IS_ALONE, *ROTATE[:-1]]
    processes = [
        subprocess.Popen(
            [*arguments, f"phrase {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    until(lambda: sum(process.poll() is not None for process in processes) >= 2)
    errors = [process.communicate("\n", timeout=120)[1] for process in processes]
    ended = [process.returncode for process in processes]
    assert sorted(ended) == [0, 2, 2], errors
    made = ended.index(0)
    assert [path.name for path in Path().glob("phrase *")] == [f"phrase {made}"]
    master_killer.by_phrase(ENVELOPE, Path(f"phrase {made}")).close()
    assert contents() == expected(30)
    assert contents(SECOND) == expected(5)


@pytest.mark.usefixtures("service")
def test_the_key_file_is_the_one_of_before() -> None:
    key = KEY_FILE.read_bytes()
    assert main(ROTATE) == 0
    assert KEY_FILE.read_bytes() == key
