"""The commands ``keys`` on a service's folders; the new master key has tests of its own."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from service_folders import (
    DATABASE,
    ENVELOPE,
    KEY_FILE,
    NEXT,
    PHRASE,
    SOURCE,
    Output,
    assert_no_secret,
    contents,
    expected,
    files,
    fill,
    into_empty_folder,
    make_service,
    open_database,
    refused,
    run,
    secrets_of,
)
from service_security.cli import main
from service_security.errors import KeyUnavailableError, WrongKeyError
from service_security.keys import open_keys
from service_security.keys.key_file import KeyFile
from service_security.keys.provider import WrappingKey
from service_security.keys.recovery import RecoveryKey
from service_security.keys.service_keys import open_with, read_envelope
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, new_master
from service_security.store.keys_lock import keys_held
from service_security.terminal import read_phrase

DAY = timedelta(days=1).total_seconds()
NEW_PHRASE = Path("new phrase")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into_empty_folder(tmp_path, monkeypatch)


@pytest.fixture
def service(capsys: Output) -> Output:
    make_service()
    capsys.readouterr()
    return capsys


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let commands find another time."""
    real = SecureDb.open.__func__  # type: ignore[attr-defined]

    def set_days(days: float) -> None:
        def opened(cls: Any, *arguments: Any, **options: Any) -> SecureDb:
            store: SecureDb = real(
                cls, *arguments, clock=lambda: time.time() + days * DAY, **options
            )
            return store

        monkeypatch.setattr(SecureDb, "open", classmethod(opened))

    return set_days


def _status(output: Output, *options: str) -> dict[str, Any]:
    output.readouterr()
    assert main(["keys", "status", "--json", "--quiet", *options]) == 0
    found: dict[str, Any] = json.loads(output.readouterr().out)
    return found


def _states(output: Output) -> dict[int, str]:
    return {key["id"]: key["state"] for key in _status(output)["database"]["keys"]}


def _damage(*positions: int) -> None:
    with closing(apsw.Connection(str(DATABASE))) as connection:
        for position in positions:
            connection.execute(
                "UPDATE record SET sealed = zeroblob(length(sealed)) WHERE id = ?", (position,)
            )


def _opens_by_phrase(phrase: Path, envelope: Path = ENVELOPE) -> bool:
    with read_phrase(phrase) as key:
        try:
            open_with(read_envelope(envelope), RecoveryKey(key)).close()
        except WrongKeyError:
            return False
    return True


# Status


def test_status_tells_how_the_keys_stand(service: Output) -> None:
    assert main(["keys", "status"]) == 0
    shown = service.readouterr().out
    for line in (
        "data/envelope.json",
        "  opens by         file:secrets/service.key",
        "  slots            key-file, recovery",
        "  recovery phrase  yes",
        "  generation       1",
        "data/records.db",
        "  * new records are sealed with it",
    ):
        assert f"{line}\n" in shown
    assert re.search(r"^  1\*    active +xchacha20poly1305  20\S+Z  20\S+Z  30$", shown, re.M)
    assert re.search(r"The next rotation is due \S+, 90 days after the key was made.", shown)
    assert "No key was destroyed" in shown


def test_status_for_machines_has_the_same_facts(service: Output) -> None:
    found = _status(service, "--interval", "30")
    assert found["envelope"] == {
        "path": "data/envelope.json",
        "opened_by": SOURCE,
        "closed_because": None,
        "slots": ["key-file", "recovery"],
        "recovery_phrase": True,
        "generation": 1,
        "change_of_master_interrupted": False,
        "previous": None,
    }
    assert [key["records"] for key in found["database"]["keys"]] == [30]
    assert found["database"]["records_of_keys"] == {"1": 30}
    assert found["rotation"]["interval_days"] == 30
    assert found["rotation"]["is_due"] is False
    assert found["rotation"]["assurance"]


def test_status_without_the_key_tells_what_the_files_show(service: Output) -> None:
    KEY_FILE.unlink()
    assert main(["keys", "status"]) == 0
    shown = service.readouterr().out
    assert "not opened, so nothing of this is proven" in shown
    assert "The key file secrets/service.key is missing" in shown
    assert "30 records are sealed with key 1." in shown
    found = _status(service)
    assert found["database"]["keys"] is None
    assert found["database"]["records_of_keys"] == {"1": 30}
    assert "is missing" in found["envelope"]["closed_because"]
    assert found["envelope"]["slots"] == ["key-file", "recovery"]


def test_status_without_the_envelope_tells_what_the_database_shows(service: Output) -> None:
    ENVELOPE.unlink()
    assert main(["keys", "status"]) == 0
    shown = service.readouterr().out
    assert "There is no key envelope" in shown
    assert "30 records are sealed with key 1." in shown
    assert _status(service)["envelope"]["slots"] is None


def test_status_where_there_is_nothing_is_an_error(capsys: Output) -> None:
    refused(capsys, main(["keys", "status"]), "There is no key envelope", "init")


def test_status_of_plain_or_no_records_says_so(service: Output) -> None:
    for path in Path("data").glob("records.db*"):
        path.unlink()
    assert main(["keys", "status"]) == 0
    assert "It is missing or empty." in service.readouterr().out
    assert _status(service)["rotation"]["due"] is None


def test_status_of_a_damaged_database_is_an_error(service: Output) -> None:
    DATABASE.write_bytes(b"damaged" * 1000)
    refused(service, main(["keys", "status"]), "damaged or is no database")


def test_status_names_records_of_keys_that_are_not_there(service: Output) -> None:
    with closing(apsw.Connection(str(DATABASE))) as connection:
        connection.execute("UPDATE record SET key_id = 9 WHERE id < 4")
    assert main(["keys", "status"]) == 0
    assert "3 records are sealed with key 9, which the keyset does not" in service.readouterr().out
    assert _status(service)["database"]["records_of_keys"] == {"1": 27, "9": 3}


def test_status_tells_of_a_rotation_that_is_due_or_unfinished(service: Output, later: Any) -> None:
    later(91)
    assert main(["keys", "status"]) == 0
    assert "The next rotation was due" in service.readouterr().out
    assert _status(service)["rotation"]["is_due"] is True
    assert _status(service, "--interval", "off")["rotation"]["due"] is None
    assert main(["keys", "status", "--interval", "off"]) == 0
    assert "Keys are rotated by hand only" in service.readouterr().out
    _stop_after("rotating")
    assert main(["keys", "status"]) == 0
    assert "A rotation is unfinished" in service.readouterr().out


class StopError(Exception):
    """Stops a rotation."""


def _stop_after(step: str) -> None:
    def stop(found: Any) -> None:
        if found.step == step:
            raise StopError

    with open_database() as store, pytest.raises(StopError):
        store.rotation().run(on_step=stop)


def test_status_tells_of_an_interrupted_change_of_the_master_key(service: Output) -> None:
    NEXT.write_bytes(ENVELOPE.read_bytes())
    assert main(["keys", "status"]) == 0
    assert "run keys rotate --master again" in service.readouterr().out
    assert _status(service)["envelope"]["change_of_master_interrupted"] is True


def test_status_of_a_database_under_another_master_key_says_so(service: Output) -> None:
    for path in Path("data").glob("records.db*"):
        path.unlink()
    SecureDb.open(DATABASE, bytes(32)).close()
    assert main(["keys", "status"]) == 0
    shown = service.readouterr().out
    assert "opens by         file:secrets/service.key" in shown
    assert "The key is not the one of data/records.db" in shown
    assert "not the one" in _status(service)["database"]["closed_because"]


# Rotation


def test_rotate_moves_every_record_to_a_new_key_and_tells_each_step(service: Output) -> None:
    assert main(["keys", "rotate"]) == 0
    shown = service.readouterr()
    steps = [
        "Key 3 was made.",
        "Key 3 seals new records; the others are moved to it.",
        "30 records were moved to key 3. All are read now.",
        "30 records were read; key 3 is active.",
        "Key 1 retires.",
        "Key 3 (xchacha20poly1305) seals the records; 30 were moved to it.",
        "Backups have keys of their own",
    ]
    assert [shown.out.index(step) for step in steps] == sorted(
        shown.out.index(step) for step in steps
    )
    assert "30 of 30 records moved" in shown.err
    assert "30 of 30 records read" in shown.err
    assert _states(service) == {1: "retiring", 3: "active"}
    assert contents() == expected(30)


def test_rotate_with_another_cipher_uses_it(service: Output) -> None:
    assert main(["keys", "rotate", "--cipher", "aes256gcm"]) == 0
    assert "Key 3 (aes256gcm)" in service.readouterr().out
    with open_database() as store:
        assert store.cipher == "aes256gcm"


def test_quiet_shows_the_result_only(service: Output) -> None:
    assert main(["keys", "rotate", "--quiet"]) == 0
    shown = service.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("Key 3 (xchacha20poly1305) seals the records")
    assert main(["keys", "rotate", "--if-due", "--quiet"]) == 0
    assert service.readouterr() == ("", "")


@pytest.mark.usefixtures("service")
def test_rotate_while_the_service_runs_loses_no_write() -> None:
    with _service_that_writes() as written:
        for _ in range(3):
            assert main(["keys", "rotate", "--quiet"]) == 0
    found = contents()
    assert len(written) > 1
    assert all(found[name] == b"value" for name in written)
    assert expected(30).items() <= found.items()


@contextmanager
def _service_that_writes() -> Iterator[list[bytes]]:
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from service_security.keys import open_master_key\n"
        "from service_security.store import SecureDb, schema\n"
        "schema.BUSY_TIMEOUT_MS = 60_000\n"
        f"with open_master_key(Path({str(ENVELOPE)!r}), {SOURCE!r}) as master:\n"
        f"    store = SecureDb.open({str(DATABASE)!r}, master)\n"
        "for number in range(10**9):\n"
        "    store.insert(b'meanwhile %d' % number, b'value')\n"
        "    print('meanwhile', number, flush=True)\n"
        "    time.sleep(0.005)\n"  # or the command might find no moment to write in
    )
    written: list[bytes] = []
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    output = process.stdout
    assert output is not None
    begun = threading.Event()

    def read() -> None:
        for line in output:
            if line.endswith(b"\n"):
                written.append(line.strip())
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert begun.wait(120)
        yield written
        begun.clear()
        assert begun.wait(120)  # it goes on
    finally:
        process.kill()
        process.wait()
        reader.join()
        output.close()


def test_nothing_is_due_right_after_a_rotation(service: Output) -> None:
    assert main(["keys", "rotate", "--if-due"]) == 0
    assert service.readouterr().out == "Nothing is due.\n"
    assert _states(service) == {1: "active"}


def test_if_due_rotates_destroys_and_forgets_in_time(service: Output, later: Any) -> None:
    later(91)
    assert main(["keys", "rotate", "--if-due"]) == 0
    assert "Key 3 (xchacha20poly1305) seals the records" in service.readouterr().out
    assert _states(service) == {1: "retiring", 3: "active"}
    later(91.5)
    assert main(["keys", "rotate", "--if-due"]) == 0
    assert service.readouterr().out == "Nothing is due.\n"
    later(92.1)
    assert main(["keys", "rotate", "--if-due"]) == 0
    shown = service.readouterr().out
    assert "Key 1 was destroyed." in shown
    assert "opens with the master key of then" in shown
    assert _states(service) == {1: "destroyed", 3: "active"}
    later(92.1 + 31)
    assert main(["keys", "rotate", "--if-due"]) == 0
    assert "Key 1 is not listed any more." in service.readouterr().out
    assert _states(service) == {3: "active"}


@pytest.mark.parametrize(
    ("days", "setting", "option", "due"),
    [
        (31, None, "30", True),
        (31, "30", None, True),
        (31, "30", "60", False),
        (91, None, None, True),
        (31, None, None, False),
        (31, "", None, False),
        (400, None, "off", False),
        (400, "OFF", None, False),
    ],
)
def test_the_interval_is_the_one_of_the_option_then_of_the_service(
    service: Output,
    later: Any,
    monkeypatch: pytest.MonkeyPatch,
    days: int,
    setting: str | None,
    option: str | None,
    due: bool,
) -> None:
    if setting is not None:
        monkeypatch.setenv("SERVICE_KEY_ROTATION_DAYS", setting)
    later(days)
    arguments = ["keys", "rotate", "--if-due", *(["--interval", option] if option else [])]
    assert main(arguments) == 0
    assert ("seals the records" in service.readouterr().out) is due


@pytest.mark.parametrize("interval", ["29", "366", "9999"])
def test_an_interval_out_of_range_is_refused(service: Output, interval: str) -> None:
    refused(service, main(["keys", "rotate", "--if-due", "--interval", interval]), "30 to 365 days")
    refused(service, main(["keys", "status", "--quiet", "--interval", interval]), "30 to 365 days")


@pytest.mark.parametrize("interval", ["soon", "-1", "", "12345", "1e2"])
def test_an_interval_that_is_no_number_is_refused_and_the_setting_is_named(
    service: Output, interval: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["keys", "rotate", f"--interval={interval}"])
    assert stopped.value.code == 2
    assert "SERVICE_KEY_ROTATION_DAYS" in service.readouterr().err


def test_an_unfinished_rotation_goes_on(service: Output) -> None:
    _stop_after("rotating")
    assert main(["keys", "rotate"]) == 0
    assert _states(service) == {1: "retiring", 3: "active"}
    assert contents() == expected(30)


def test_an_unfinished_rotation_is_rolled_back(service: Output, later: Any) -> None:
    """The old key is as old as it is: that another rotation is due is no part of it."""
    _stop_after("validating")
    later(91)
    assert main(["keys", "rotate", "--roll-back"]) == 0
    shown = service.readouterr().out
    assert "Key 3 is given up; its records are moved back" in shown
    assert "Key 1 (xchacha20poly1305) seals the records again; 30 were moved to it." in shown
    assert _states(service) == {1: "active", 3: "retiring"}
    assert contents() == expected(30)
    refused(service, main(["keys", "rotate", "--roll-back"]), "none to roll back")


def test_damaged_records_are_named_and_the_status_is_one(service: Output, later: Any) -> None:
    _damage(4, 7)
    assert main(["keys", "rotate", "--quiet"]) == 1
    shown = service.readouterr().out
    assert re.search(r"Records at position 4 \([0-9a-f]{32}\), 7 \([0-9a-f]{32}\) could not", shown)
    assert _states(service) == {1: "retiring", 3: "active"}
    later(2)
    assert main(["keys", "rotate", "--if-due"]) == 1
    assert "Key 1 cannot be destroyed" in service.readouterr().out
    assert _states(service) == {1: "retiring", 3: "active"}


def test_rotate_is_refused_while_somebody_else_changes_the_keys(
    service: Output, later: Any
) -> None:
    later(91)
    with keys_held(DATABASE):
        refused(service, main(["keys", "rotate"]), "being changed by somebody else")
        assert main(["keys", "rotate", "--if-due"]) == 0
        assert "nothing was done here" in service.readouterr().out
    assert _states(service) == {1: "active"}


def test_of_two_rotations_at_once_neither_harms(service: Output) -> None:
    fill(2000)
    arguments = [sys.executable, "-m", "service_security", "keys", "rotate", "--quiet"]
    processes = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert {process.wait(timeout=120) for process in processes} <= {0, 2}
    assert contents() == expected(2000)
    assert _status(service)["rotation"]["unfinished"] is None


@pytest.mark.parametrize("prepare", ["no database", "plain"])
def test_rotate_makes_no_database(service: Output, prepare: str) -> None:
    for path in Path("data").glob("records.db*"):
        path.unlink()
    if prepare == "plain":
        with closing(apsw.Connection(str(DATABASE))) as connection:
            connection.execute("CREATE TABLE something (x)")
    before = files()
    refused(service, main(["keys", "rotate"]), "--data-dir or SERVICE_DATA_DIR")
    assert files() == before


@pytest.mark.parametrize(
    "options",
    [
        ["--to", "file:x"],
        ["--also", "x.db"],
        ["--phrase-file", "x"],
        ["--no-recovery"],
        ["--pcrs", "7"],
        ["--passphrase-profile", "rfc9106-low-memory"],
    ],
    ids=lambda options: options[0],
)
def test_options_of_a_new_master_key_are_refused_without_one(
    service: Output, options: list[str]
) -> None:
    before = files()
    sentence = f"{options[0]} is for a new master key. Add --master"
    refused(service, main(["keys", "rotate", *options]), sentence)
    assert files() == before


@pytest.mark.parametrize("option", ["--master", "--roll-back"])
def test_a_cipher_is_refused_where_no_record_key_is_made(service: Output, option: str) -> None:
    refused(service, main(["keys", "rotate", option, "--cipher", "aes256gcm"]), "--cipher is for")


def test_only_one_kind_of_rotation_is_done_at_a_time() -> None:
    for options in (["--master", "--if-due"], ["--roll-back", "--if-due"]):
        with pytest.raises(SystemExit):
            main(["keys", "rotate", *options])


# Other places for the key


def test_reseal_moves_the_key_and_says_how_to_set_it(service: Output) -> None:
    before = DATABASE.read_bytes()
    assert main(["keys", "reseal", "--to", "file:secrets/new.key"]) == 0
    shown = service.readouterr().out
    assert "opens with file:secrets/new.key now, and with the recovery phrase as before" in shown
    assert f"does not open with {SOURCE} any more; older copies of it do" in shown
    assert "Set SERVICE_KEY_SOURCE=file:secrets/new.key for the service" in shown
    assert contents(source="file:secrets/new.key") == expected(30)
    assert DATABASE.read_bytes() == before
    with pytest.raises(WrongKeyError):
        open_keys(ENVELOPE, SOURCE)
    assert _opens_by_phrase(PHRASE)


def test_reseal_to_the_same_place_needs_no_setting(service: Output) -> None:
    assert main(["keys", "reseal", "--to", SOURCE]) == 0
    shown = service.readouterr().out
    assert "SERVICE_KEY_SOURCE" not in shown
    assert "any more" not in shown
    assert contents() == expected(30)


def test_reseal_to_a_source_of_the_list_that_is_set_needs_no_setting(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("delivered").write_bytes(bytes(range(32)))
    monkeypatch.setenv("SERVICE_KEY_SOURCE", f"secret:delivered,{SOURCE}")
    assert main(["keys", "reseal", "--to", "secret:delivered"]) == 0
    assert "SERVICE_KEY_SOURCE" not in service.readouterr().out
    assert main(["keys", "reseal", "--to", "secret:./delivered"]) == 0
    assert "Set SERVICE_KEY_SOURCE=secret:./delivered" in service.readouterr().out


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("file:a,secret:b", "is a list. Name the one"),
        ("secret:missing", "is missing"),
        ("nonsense", "does not say where the key is"),
        ("env:NOT_SET", "NOT_SET is not set"),
    ],
)
def test_a_target_that_gives_no_key_changes_nothing(
    service: Output, to: str, sentence: str
) -> None:
    before = files()
    refused(service, main(["keys", "reseal", "--to", to]), sentence)
    arguments = ["keys", "recover", "--to", to, "--phrase-file", str(PHRASE)]
    refused(service, main(arguments), sentence)
    assert files() == before
    assert contents() == expected(30)


def test_pcrs_without_a_recovery_phrase_are_refused(capsys: Output) -> None:
    make_service(3, "--no-recovery")
    capsys.readouterr()
    before = files()
    for command in (["init"], ["keys", "rotate", "--master"]):
        refused(capsys, main([*command, "--no-recovery", "--pcrs", "7"]), "Leave --no-recovery out")
    arguments = ["keys", "reseal", "--to", SOURCE, "--pcrs", "7"]
    refused(capsys, main(arguments), "Make one first: keys recovery-phrase")
    assert files() == before
    assert main(["keys", "recovery-phrase", "--phrase-file", str(PHRASE)]) == 0
    assert main(arguments) == 0


# Recovery


def test_recover_opens_by_the_phrase_when_the_key_is_lost(service: Output) -> None:
    KEY_FILE.unlink()
    with pytest.raises(KeyUnavailableError):
        open_keys(ENVELOPE, SOURCE)
    assert main(["keys", "recover", "--to", SOURCE, "--phrase-file", str(PHRASE)]) == 0
    shown = service.readouterr().out
    assert f"opens with {SOURCE} now, and with the recovery phrase as before" in shown
    assert "SERVICE_KEY_SOURCE" not in shown
    assert contents() == expected(30)
    assert _opens_by_phrase(PHRASE)


def test_recover_with_another_phrase_changes_nothing(service: Output) -> None:
    assert main(["keys", "recovery-phrase", "--phrase-file", str(NEW_PHRASE)]) == 0
    service.readouterr()
    KEY_FILE.unlink()
    before = files()
    arguments = ["keys", "recover", "--to", SOURCE, "--phrase-file"]
    refused(service, main([*arguments, str(PHRASE)]), "does not open data/envelope.json")
    assert files() == before
    assert main([*arguments, str(NEW_PHRASE)]) == 0


def test_recover_does_not_blame_the_phrase_for_what_the_new_source_does(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the file does not give the key that it was given, when the new slot is proven."""

    def another(_self: object, _fields: object) -> WrappingKey:
        return WrappingKey(SecretBytes.generate())

    monkeypatch.setattr(KeyFile, "unprotect", another)
    status = main(["keys", "recover", "--to", "file:new", "--phrase-file", str(PHRASE)])
    refused(service, status, "does not open with file:new again")


def test_recover_without_a_recovery_slot_says_so_before_anything_is_typed(
    capsys: Output,
) -> None:
    make_service(3, "--no-recovery")
    capsys.readouterr()
    refused(capsys, main(["keys", "recover", "--to", "file:new"]), "no recovery slot", "key-file")


def test_recover_without_an_envelope_says_so(capsys: Output) -> None:
    refused(capsys, main(["keys", "recover", "--to", "file:new"]), "There is no key envelope")


def test_recover_with_a_changed_envelope_is_refused(service: Output) -> None:
    ENVELOPE.write_bytes(
        ENVELOPE.read_bytes().replace(b'\\"generation\\": 1', b'\\"generation\\": 2')
    )
    before = files()
    arguments = ["keys", "recover", "--to", "file:new", "--phrase-file", str(PHRASE)]
    refused(service, main(arguments), "data/envelope.json cannot be used")
    assert files() == before


def test_recover_in_the_middle_of_a_new_master_key_opens_both_envelopes(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its phrase. The key is lost when one database is changed and one is not."""
    fill(5, Path("data/second.db"))
    module: Any = new_master
    real, calls = module.rewrap, []

    def once(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(new_master, "rewrap", once)
        assert main(["keys", "rotate", "--master", "--phrase-file", str(NEW_PHRASE)]) == 130
    KEY_FILE.unlink()
    for phrase, envelope in ((PHRASE, ENVELOPE), (NEW_PHRASE, NEXT)):
        service.readouterr()
        arguments = ["keys", "recover", "--to", SOURCE, "--phrase-file", str(phrase)]
        assert main(arguments) == 0
        assert f"{envelope} opens with" in service.readouterr().out
    assert main(["keys", "rotate", "--master", "--phrase-file", str(NEW_PHRASE)]) == 0
    assert contents() == expected(30)
    assert contents(Path("data/second.db")) == expected(5)


def test_a_new_phrase_takes_the_place_of_the_old_one(service: Output) -> None:
    assert main(["keys", "recovery-phrase", "--phrase-file", str(NEW_PHRASE)]) == 0
    assert "The old one still opens older copies" in service.readouterr().out
    assert _opens_by_phrase(NEW_PHRASE)
    assert not _opens_by_phrase(PHRASE)
    assert contents() == expected(30)


def test_a_first_phrase_is_made_later(capsys: Output) -> None:
    make_service(3, "--no-recovery")
    assert main(["keys", "recovery-phrase", "--phrase-file", str(NEW_PHRASE)]) == 0
    assert "The old one" not in capsys.readouterr().out
    assert _opens_by_phrase(NEW_PHRASE)


def test_a_phrase_file_that_is_there_is_refused(service: Output) -> None:
    before = files()
    refused(
        service, main(["keys", "recovery-phrase", "--phrase-file", str(PHRASE)]), "never replaces"
    )
    assert files() == before


# All of them


COMMANDS = [
    ["keys", "status"],
    ["keys", "status", "--json"],
    ["doctor"],
    ["doctor", "--json"],
    ["keys", "rotate"],
    ["keys", "rotate", "--if-due"],
    ["keys", "recovery-drill", "backup", "--phrase-file", str(PHRASE)],
    ["keys", "recovery-phrase", "--phrase-file", "new phrase"],
    ["keys", "recover", "--to", SOURCE, "--phrase-file", "new phrase"],
    ["keys", "reseal", "--to", SOURCE],
    ["keys", "rotate", "--master", "--phrase-file", "newest phrase"],
]


@pytest.mark.usefixtures("service")
def test_no_command_shows_a_key_a_word_or_a_record() -> None:
    assert main(["db", "backup", "backup"]) == 0
    secrets = secrets_of()
    shown = ""
    for command in COMMANDS:
        result = run(*command)
        assert result.returncode in (0, 1), (command, result.stderr)
        shown += result.stdout + result.stderr
        for phrase in ("new phrase", "newest phrase"):
            if Path(phrase).exists():
                for name, secret in secrets_of(phrase=Path(phrase)).items():
                    secrets[f"{phrase}: {name}"] = secret
    assert len(secrets) > 60
    assert_no_secret(shown, secrets)
    with pytest.raises(AssertionError):  # the control
        assert_no_secret(shown + PHRASE.read_text(), secrets)


def test_every_error_is_one_sentence_without_a_secret(service: Output) -> None:
    secrets = secrets_of()
    KEY_FILE.write_bytes(bytes(32))
    for command in (
        ["keys", "rotate"],
        ["keys", "rotate", "--master", "--no-recovery"],
        ["keys", "reseal", "--to", "file:new"],
        ["keys", "recovery-phrase", "--phrase-file", "new"],
    ):
        assert main(command) == 2
        shown = service.readouterr()
        assert shown.err.count("\n") == 1
        assert_no_secret(shown.out + shown.err, secrets)


def test_every_command_takes_the_folders_of_the_service(capsys: Output) -> None:
    names = ["status", "rotate", "reseal", "recover", "recovery-phrase", "recovery-drill"]
    for command in [*(["keys", name] for name in names), ["doctor"]]:
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        shown = capsys.readouterr().out
        assert "--data-dir FOLDER" in shown, command
        assert "--key-source SOURCE" in shown, command


def test_commands_do_not_import_what_they_do_not_need() -> None:
    """Each of these would be paid for by every start of a command."""
    script = (
        "import sys\n"
        "from service_security.cli import _parser\n"
        "_parser()\n"
        "print(*(name.removeprefix('service_security.') for name in sys.modules\n"
        "        if name.startswith('service_security.')))\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "key_command" in loaded
    for name in (
        "doctor",
        "drill_command",
        "file_systems",
        "findings",
        "key_report",
        "rotate_command",
        "store.new_master",
        "store.recovery_drill",
        "store.rewrapping",
    ):
        assert name not in loaded
