"""Data goes along when the flag flips: refused first, with the command that moves it, then served again."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from scaffold import HARDENED, PLAIN, Answers, commit_all, git, install, run, update
from service import PACKAGE, python, running

RECORDS = {f"order-{number}": f"value {number} äöü 🚀" for number in range(7)}
NAMED = re.compile(r"uv run just db (import|export).*")


def refusal(project: Path) -> str:
    """Start a service that must not start, and return what it says."""
    done = run(project, python(project), "-m", PACKAGE, environment={"SERVICE_PORT": "0"}, timeout=30)
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def tool(project: Path, *arguments: str) -> str:
    """Run a command of the library in a project; it has to succeed."""
    done = run(project, python(project), "-m", "service_security", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def flip(project: Path, hardened: bool) -> None:
    """Change the flag by an update, as its owner would."""
    update(project, {"enable_security_hardening": hardened})
    install(project)
    commit_all(project, f"Hardened: {hardened}")


def on_disk(project: Path) -> bytes:
    """Read everything in the data folder."""
    return b"".join(path.read_bytes() for path in (project / "data").rglob("*") if path.is_file())


@pytest.fixture
def service(project: Callable[[Answers], Path]) -> Callable[[Answers], Path]:
    """Make a project with its environment and with some records in it."""

    def make(answers: Answers) -> Path:
        place = project(answers)
        install(place)
        commit_all(place, "Locked")
        if answers.get("enable_security_hardening"):
            tool(place, "init", "--no-recovery")
        with running(place) as client:
            client.put(RECORDS)
            assert client.all() == RECORDS
        assert "data" not in git(place, "status", "--porcelain")
        return place

    return make


def test_records_survive_the_flag_going_on_and_off_again(service: Callable[[Answers], Path]) -> None:
    project = service(PLAIN)
    assert b"order-3" in on_disk(project), "control for the search below"
    before = on_disk(project)

    flip(project, hardened=True)
    refusal(project)
    assert on_disk(project) == before, "nothing is made beside plain records before there is a key"
    tool(project, "init", "--no-recovery")
    said = refusal(project)
    assert (project / "data" / "records.db").read_bytes() == before
    named = NAMED.search(said)
    assert named is not None, said
    assert named[1] == "import"
    assert run(project, *shlex.split(named[0])).returncode == 0, "the command works as it stands"
    with running(project) as client:
        assert client.all() == RECORDS
        client.put({"order-3": "changed while hardened"})
    assert b"order-3" not in on_disk(project)
    assert b"changed while hardened" not in on_disk(project)

    tool(project, "db", "export")
    flip(project, hardened=False)
    with running(project) as client:
        assert client.all() == RECORDS | {"order-3": "changed while hardened"}
    assert not (project / "libs" / "security" / "pyproject.toml").exists()


def test_plain_service_refuses_encrypted_records_and_names_the_way_back(
    service: Callable[[Answers], Path],
) -> None:
    project = service(HARDENED)
    before = (project / "data" / "records.db").read_bytes()
    flip(project, hardened=False)
    said = refusal(project)
    assert "uv run just db export" in said
    assert (project / "data" / "records.db").read_bytes() == before

    # As the sentence asks: back to the commit with the library, export, and forward again.
    git(project, "checkout", "--quiet", "HEAD~1")
    install(project)
    tool(project, "db", "export")
    git(project, "checkout", "--quiet", "main")
    install(project)
    with running(project) as client:
        assert client.all() == RECORDS
