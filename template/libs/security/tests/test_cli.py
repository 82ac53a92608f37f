"""The commands, as a person runs them; those on a database are in ``test_db_command``."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from service_security.cli import main
from service_security.store import SecureDb


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SERVICE_DATA_DIR", raising=False)
    # The default would take a TPM that the machine has.
    monkeypatch.setenv("SERVICE_KEY_SOURCE", "file:secrets/service.key")


def test_init_says_what_it_made_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--no-recovery"]) == 0
    shown = capsys.readouterr().out
    assert "secrets/service.key" in shown
    assert "data/envelope.json" in shown
    assert "Keep copies of envelope and key" in shown
    assert Path("secrets/service.key").read_bytes().hex() not in shown


def test_init_again_says_that_nothing_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "--no-recovery"])
    key = Path("secrets/service.key").read_bytes()
    capsys.readouterr()
    assert main(["init", "--no-recovery"]) == 0
    assert "Nothing was changed" in capsys.readouterr().out
    assert Path("secrets/service.key").read_bytes() == key


def test_folders_come_from_the_environment_and_options_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVICE_DATA_DIR", "from_environment")
    monkeypatch.setenv("SERVICE_KEY_SOURCE", "file:from_environment.key")
    main(["init", "--no-recovery"])
    assert Path("from_environment/envelope.json").exists()
    assert Path("from_environment.key").exists()
    options = ["--data-dir", "option", "--key-source", "file:option.key"]
    main(["init", "--no-recovery", *options])
    assert Path("option/envelope.json").exists()
    assert Path("option.key").exists()


def test_a_variable_that_is_set_but_empty_counts_as_not_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVICE_DATA_DIR", "")
    monkeypatch.setenv("SERVICE_KEY_SOURCE", "")
    monkeypatch.setattr("service_security.command_options.DEFAULT_SOURCE", "file:the/default.key")
    assert main(["init", "--no-recovery"]) == 0
    assert Path("data/envelope.json").exists()
    assert Path("the/default.key").exists()


def test_init_with_a_container_secret_uses_it() -> None:
    secret = Path("delivered")
    secret.write_bytes(bytes(range(32)))
    secret.chmod(0o444)
    assert main(["init", "--no-recovery", "--key-source", "secret:delivered"]) == 0
    assert not Path("secrets").exists()
    assert main(["init", "--no-recovery", "--key-source", "secret:delivered"]) == 0


def test_errors_are_one_sentence_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--no-recovery", "--key-source", "secret:missing"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("service_security: The key file missing is missing")
    assert shown.err.count("\n") == 1


def test_init_beside_encrypted_data_without_an_envelope_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("data").mkdir()
    SecureDb.open("data/records.db", bytes(range(32))).close()
    assert main(["init", "--no-recovery"]) == 2
    assert "A new key could not read" in capsys.readouterr().err
    assert not Path("data/envelope.json").exists()


@pytest.mark.parametrize("what", ["another database", "the envelope of a master key before"])
def test_init_beside_anything_that_is_sealed_is_refused(
    capsys: pytest.CaptureFixture[str], what: str
) -> None:
    Path("data").mkdir()
    if what == "another database":
        SecureDb.open("data/second.db", bytes(32)).close()
    else:
        Path("data/envelope.json.previous").write_text("{}")
    assert main(["init", "--no-recovery"]) == 2
    assert "A new key could not read" in capsys.readouterr().err
    assert not Path("data/envelope.json").exists()
    assert not Path("secrets").exists()


def test_init_beside_a_database_of_somebody_else_makes_the_key() -> None:
    Path("data").mkdir()
    with closing(apsw.Connection("data/theirs.db")) as connection:
        connection.execute("CREATE TABLE theirs (id INTEGER PRIMARY KEY)")
    assert main(["init", "--no-recovery"]) == 0


def test_help_does_not_show_what_the_setting_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the key itself, put there by mistake."""
    monkeypatch.setenv("SERVICE_KEY_SOURCE", "a-key-of-somebody")
    with pytest.raises(SystemExit):
        main(["init", "--help"])
    shown = capsys.readouterr().out
    assert "SERVICE_KEY_SOURCE" in shown
    assert "a-key-of-somebody" not in shown


def test_init_beside_a_damaged_database_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    Path("data/records.db").write_bytes(b"damaged" * 1000)
    assert main(["init", "--no-recovery"]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not Path("secrets").exists()


def test_an_interrupt_says_that_the_command_can_be_run_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("service_security.cli.initialise", interrupt)
    assert main(["init", "--no-recovery"]) == 130
    assert "run the command again" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SERVICE_DATA_DIR"}
    result = subprocess.run(
        [sys.executable, "-m", "service_security", "init", "--no-recovery"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert Path("data/envelope.json").exists()


SETTINGS_AT_THE_END = """
import ctypes, resource, runpy
from contextlib import suppress

resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
before = resource.getrlimit(resource.RLIMIT_CORE)
with suppress(SystemExit):
    runpy.run_module("service_security", run_name="__main__", alter_sys=True)
limit = resource.getrlimit(resource.RLIMIT_CORE)
print(limit == (0, 0), limit == before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are Linux's")
@pytest.mark.parametrize(("switch", "dumpable"), [("forbid", "0"), ("allow", "1")])
def test_memory_of_a_command_is_private_unless_core_dumps_are_allowed(
    switch: str, dumpable: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SETTINGS_AT_THE_END, "init", "--no-recovery"],
        capture_output=True,
        text=True,
        env=os.environ | {"SERVICE_CORE_DUMPS": switch},
        check=True,
    )
    is_zero, is_unchanged, found = result.stdout.splitlines()[-1].split()
    assert found == dumpable
    assert is_zero == "True" if switch == "forbid" else is_unchanged == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file name is always text")
def test_a_path_that_is_not_text_is_shown_and_stops_nothing() -> None:
    source = os.fsdecode(b"file:key\xff")
    command = ["init", "--no-recovery", "--key-source", source]
    result = subprocess.run(
        [sys.executable, "-m", "service_security", *command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "opens with file:key\\udcff" in result.stdout
    assert Path(os.fsdecode(b"key\xff")).exists()


def test_every_command_on_a_service_takes_its_folders(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [["init"]]
    commands += [["db", name] for name in ("info", "verify", "backup", "restore", "import")]
    for command in commands:
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        shown = capsys.readouterr().out
        assert "--data-dir FOLDER" in shown, command
        assert "--key-source SOURCE" in shown, command


def test_folder_that_a_removed_command_leaves_behind_is_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches stay when the sources go, and Python takes a folder for a package."""
    (tmp_path / "removed_command" / "__pycache__").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("service_security.cli._OPTIONAL_COMMANDS", ("removed_command",))
    assert main(["init", "--no-recovery"]) == 0
