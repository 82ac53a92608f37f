"""A service without the flag carries no dependency, no module and no file of the hardening.

Each test states the whole difference between the two, so a new one has to be written down here.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scaffold import HARDENED, PLAIN, Answers, files, run
from service import python

# What the application loads, with its store open. Modules of the standard library count by their own name.
LOADED = """
import json, os, sys, tempfile
os.chdir(tempfile.mkdtemp())
os.mkdir("data", 0o700)
if {hardened}:
    import subprocess
    init = [sys.executable, "-m", "service_security", "init", "--no-recovery"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    for name in list(sys.modules):
        if name == "subprocess":
            del sys.modules[name]
from my_service.app import create_app
from my_service.settings import load_settings
from my_service.storage import open_record_store
settings = load_settings()
store = open_record_store(settings)
create_app(settings, store).openapi()
store.close()
json.dump(sorted({{name.split(".")[0] for name in sys.modules}}), sys.stdout)
"""


def dependencies(project: Path) -> set[str]:
    """Name what the service installs where it runs."""
    arguments = ("--no-dev", "--no-header", "--no-annotate", "--no-hashes", "--no-emit-project")
    done = run(project, "uv", "export", "--frozen", *arguments)
    assert done.returncode == 0, done.stderr
    names = [line.removeprefix("-e ").partition("==")[0].strip() for line in done.stdout.splitlines()]
    return set(filter(None, names))


def modules(project: Path, hardened: bool) -> set[str]:
    """Name the top-level modules that the running application has loaded."""
    done = run(project, python(project), "-c", LOADED.format(hardened=hardened))
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.fixture
def both(installed: Callable[[Answers], Path]) -> tuple[Path, Path]:
    """Return a plain and a hardened project with their environments."""
    return installed(PLAIN), installed(HARDENED)


def test_dependencies(both: tuple[Path, Path]) -> None:
    plain, hardened = (dependencies(project) for project in both)
    assert {"fastapi", "uvicorn"} <= plain
    assert plain - hardened == set()
    print("only hardened:", sorted(hardened - plain))
    assert hardened - plain == {"./libs/security", "apsw", "cryptography", "cffi", "pycparser"}


def test_modules_of_the_running_application(both: tuple[Path, Path]) -> None:
    plain, hardened = modules(both[0], hardened=False), modules(both[1], hardened=True)
    print("only hardened:", sorted(hardened - plain))
    print("only plain:", sorted(plain - hardened))
    assert {"service_security", "apsw", "cryptography"} <= hardened - plain
    assert plain - hardened == {"sqlite3", "_sqlite3"}


def test_files(rendered: Callable[[Answers], Path]) -> None:
    plain, hardened = (set(files(rendered(answers))) for answers in (PLAIN, HARDENED))
    print("only hardened:", *sorted(hardened - plain), sep="\n")
    # Each kind has one store; everything else of a plain service is in a hardened one, too.
    assert plain - hardened == {"src/my_service/records/sqlite_store.py", "tests/test_sqlite_store.py"}
    assert {name.partition("/")[0] for name in hardened - plain} == {
        ".github",
        "deploy",
        "docker",
        "docs",
        "libs",
        "renovate.json",
        "scripts",
        "src",
        "tests",
    }
