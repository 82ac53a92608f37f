"""The key of the container is made once, whole, and never beside records of another one."""

import runpy
import secrets
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "container_key.py"
KEY = Path("secrets/container.key")

# What docker is asked, and the status that each ends with.
DOCKER = """#!{python}
import json, sys

match sys.argv[1:]:
    case ["compose", "config", "--format", "json"]:
        service, volume = {{"service": {{"image": "i"}}}}, {{"data": {{"name": "v"}}}}
        print(json.dumps({{"services": service, "volumes": volume}}))
        print("no compose file", file=sys.stderr)
        sys.exit({config})
    case ["volume", "inspect", "v"]:
        sys.exit({volume})
    case ["run", *words]:
        assert "v:/data:ro" in words
        sys.exit({data})
sys.exit("unknown")
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a docker in the path that knows a volume, with data in it or without, or knows none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(*, volume: int = 1, data: int = 0, config: int = 0) -> None:
        program = folder / "docker"
        text = DOCKER.format(python=sys.executable, volume=volume, data=data, config=config)
        program.write_text(text)
        program.chmod(0o755)

    return make


def script() -> dict[str, Any]:
    """Load the script."""
    return runpy.run_path(str(SCRIPT))


def mode(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("volume", [0, 1])
def test_key_is_made_where_there_are_no_records_of_another(
    docker: Callable[..., None], volume: int
) -> None:
    docker(volume=volume)
    assert script()["main"]() == 0
    assert len(KEY.read_bytes()) == 32
    assert (mode(KEY), mode(KEY.parent)) == (0o444, 0o700)
    assert list(KEY.parent.iterdir()) == [KEY]
    first = KEY.read_bytes()
    assert script()["main"]() == 0
    assert KEY.read_bytes() == first


def test_folder_that_others_could_open_is_closed(docker: Callable[..., None]) -> None:
    docker()
    KEY.parent.mkdir(mode=0o755)
    assert script()["main"]() == 0
    assert mode(KEY.parent) == 0o700


@pytest.mark.parametrize("content", [b"", b"some key"])
def test_key_that_is_there_stays_whatever_it_is(content: bytes) -> None:
    KEY.parent.mkdir()
    KEY.write_bytes(content)
    assert script()["main"]() == 0
    assert KEY.read_bytes() == content


def test_no_key_is_made_beside_records_of_another_unless_that_is_lost(
    docker: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    docker(volume=0, data=1)
    assert script()["main"]() == 2
    said = capsys.readouterr().err
    assert "the volume v has records of it. Put your copy of the key back" in said
    assert not KEY.parent.exists()
    monkeypatch.setattr(sys, "argv", ["container_key.py", "--lost"])
    assert script()["main"]() == 0
    assert len(KEY.read_bytes()) == 32


def test_key_that_cannot_be_written_leaves_nothing(
    docker: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    docker()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    main = script()["main"]
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main() == 2
    assert capsys.readouterr().err == f"{KEY} cannot be made: No space left on device.\n"
    assert list(KEY.parent.iterdir()) == []


def test_key_that_somebody_else_made_meanwhile_is_not_replaced(
    docker: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    docker()
    main = script()["main"]

    def slowly(size: int) -> bytes:
        KEY.write_bytes(b"theirs")
        return b"x" * size

    monkeypatch.setattr(secrets, "token_bytes", slowly)
    assert main() == 2
    assert KEY.read_bytes() == b"theirs"
    assert list(KEY.parent.iterdir()) == [KEY]


def test_missing_docker_and_its_errors_are_named(
    docker: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script()["main"]() == 2
    assert capsys.readouterr().err == "docker is not on this machine.\n"
    docker(config=1)
    assert script()["main"]() == 2
    assert capsys.readouterr().err == "docker compose config failed: no compose file\n"
    assert not KEY.exists()
