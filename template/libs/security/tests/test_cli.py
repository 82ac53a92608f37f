"""The commands, as a person runs them."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from service_security.cli import main
from service_security.store.kind import PLAIN_TABLE


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("SERVICE_DATA_DIR", "SERVICE_KEY_FILE"):
        monkeypatch.delenv(variable, raising=False)


def _plain_records(count: int) -> None:
    with closing(apsw.Connection("data/records.db")) as connection, connection:
        connection.execute(PLAIN_TABLE)
        connection.executemany(
            "INSERT INTO records (name, value) VALUES (?, ?)",
            ((f"name {number}", b"value") for number in range(count)),
        )


def test_init_says_what_it_made_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    shown = capsys.readouterr().out
    assert "secrets/service.key" in shown
    assert "data/envelope.json" in shown
    assert "Back up both" in shown
    assert Path("secrets/service.key").read_bytes().hex() not in shown


def test_init_again_says_that_nothing_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["init"])
    key = Path("secrets/service.key").read_bytes()
    capsys.readouterr()
    assert main(["init"]) == 0
    assert "Nothing was changed" in capsys.readouterr().out
    assert Path("secrets/service.key").read_bytes() == key


def test_folders_come_from_the_environment_and_options_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVICE_DATA_DIR", "from_environment")
    monkeypatch.setenv("SERVICE_KEY_FILE", "from_environment.key")
    main(["init"])
    assert Path("from_environment/envelope.json").exists()
    assert Path("from_environment.key").exists()
    main(["init", "--data-dir", "option", "--key-file", "option.key"])
    assert Path("option/envelope.json").exists()
    assert Path("option.key").exists()


def test_a_variable_that_is_set_but_empty_counts_as_not_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVICE_DATA_DIR", "")
    monkeypatch.setenv("SERVICE_KEY_FILE", "")
    assert main(["init"]) == 0
    assert Path("data/envelope.json").exists()
    assert Path("secrets/service.key").exists()


def test_init_with_a_container_secret_uses_it() -> None:
    secret = Path("delivered")
    secret.write_bytes(bytes(range(32)))
    secret.chmod(0o444)
    assert main(["init", "--container-secret", "delivered"]) == 0
    assert not Path("secrets").exists()
    _plain_records(3)
    assert main(["db", "import", "--key-file", "delivered"]) == 0


def test_import_and_export_show_progress_and_the_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["init"])
    _plain_records(1200)
    capsys.readouterr()
    assert main(["db", "import", "--cipher", "aes256gcm"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "data/records.db holds 1200 records now, encrypted with aes256gcm.\n"
    assert "1000 of 1200 records encrypted\n" in shown.err
    assert main(["db", "export"]) == 0
    shown = capsys.readouterr()
    assert "1200 records now, for anyone" in shown.out
    assert "1200 of 1200 records exported\n" in shown.err


def test_progress_is_one_line_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["init"])
    _plain_records(1200)
    capsys.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["db", "import"])
    assert capsys.readouterr().err == (
        "\r500 of 1200 records encrypted\r1000 of 1200 records encrypted"
        "\r1200 of 1200 records encrypted\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["db", "import"], "There is no key envelope data/envelope.json"),
        (["db", "export"], "There is no key envelope data/envelope.json"),
        (["init", "--container-secret", "missing"], "The key file missing is missing"),
    ],
)
def test_errors_are_one_sentence_and_status_two(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"service_security: {sentence}")
    assert shown.err.count("\n") == 1


def test_init_beside_encrypted_data_without_an_envelope_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["init"])
    _plain_records(1)
    main(["db", "import"])
    Path("data/envelope.json").unlink()
    assert main(["init"]) == 2
    assert "A new key could not read" in capsys.readouterr().err
    assert not Path("data/envelope.json").exists()


def test_init_beside_a_damaged_database_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    Path("data/records.db").write_bytes(b"damaged" * 1000)
    assert main(["init"]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not Path("secrets").exists()


def test_an_interrupt_says_that_the_command_can_be_run_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("service_security.cli.initialise", interrupt)
    assert main(["init"]) == 130
    assert "run the command again" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SERVICE_DATA_DIR"}
    result = subprocess.run(
        [sys.executable, "-m", "service_security", "init"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert Path("data/envelope.json").exists()


def test_folder_that_a_removed_command_leaves_behind_is_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches stay when the sources go, and Python takes a folder for a package."""
    (tmp_path / "removed_command" / "__pycache__").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("service_security.cli._OPTIONAL_COMMANDS", ("removed_command",))
    assert main(["init"]) == 0
