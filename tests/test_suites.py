"""The rendered projects pass their own checks, with every test run and none skipped.

BARTIZAN_REQUIRE=all makes a missing interpreter or TPM simulator a failure; without it, what needs them is
skipped and says so. Nothing is downloaded for it.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scaffold import (
    HARDENED,
    HARDENED_TPM,
    OLDEST_PYTHON,
    PLAIN,
    Answers,
    Shared,
    Template,
    commit_all,
    contents,
    git,
    install,
    outside_environment,
    require,
    run,
)

# Run where they are there, as in the public workflow's matrix, and required nowhere.
OPTIONAL_PYTHONS = ("3.14",)
REPORT = ".report.xml"
# The library's suite alone takes six minutes where other work goes on.
PATIENCE = 1200
# Fewer tests than this in a suite mean that it was not collected, not that it became leaner.
FLOORS = {"service": 150, "library": 1500}


@dataclass(frozen=True)
class Suite:
    """What one inner run of pytest reported."""

    run: int
    failed: int
    skipped: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "Suite":
        """Read the report that pytest left in a folder."""
        cases = list(ElementTree.parse(folder / REPORT).iter("testcase"))  # noqa: S314
        return cls(
            run=len(cases),
            failed=sum(case.find("failure") is not None or case.find("error") is not None for case in cases),
            skipped=tuple(
                f"{case.get('classname')}.{case.get('name')}"
                for case in cases
                if case.find("skipped") is not None
            ),
        )


def interpreter(version: str) -> str:
    """Find an installed Python of that version."""
    found = subprocess.run(
        ["uv", "python", "find", "--no-python-downloads", "--no-project", version],
        env=outside_environment() | {"UV_PYTHON_DOWNLOADS": "never"},
        check=False,
        capture_output=True,
        text=True,
    )
    # A shim of pyenv may name an interpreter and refuse to start it.
    require(found.returncode == 0, f"Python {version}", optional=version in OPTIONAL_PYTHONS)
    return found.stdout.strip()


def project_on(place: Path, rendered: Path, python: str) -> Path:
    """Copy a render, as its owner would have it in git, and install it on one interpreter."""
    shutil.copytree(rendered, place)
    git(place, "init", "--quiet")
    commit_all(place)
    install(place, python)
    return place


def passing(project: Path, *command: str, python: str, options: str = f"--junitxml={REPORT}") -> str:
    """Run a command of the project that has to succeed, and return what it printed."""
    environment = {"UV_PYTHON": python, "PYTEST_ADDOPTS": options}
    done = run(project, *command, environment=environment, timeout=PATIENCE)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def collected(folder: Path, python: str) -> int:
    """Count the tests that a suite holds."""
    listed = passing(folder, "uv", "run", "pytest", python=python, options="--collect-only -q")
    (count,) = re.findall(r"^(\d+) tests? collected", listed, re.MULTILINE)
    return int(count)


def suites_of(project: Path) -> dict[str, Path]:
    """Return the folders of a project that have a test suite."""
    library = project / "libs" / "security"
    return {"service": project} | ({"library": library} if library.exists() else {})


NEED_ROOT = (
    "tests.test_device_failures.",
    "tests.test_doctor.test_a_file_of_another_user_is_found",
    "tests.test_fork.test_a_lock_that_root_has_made_or_left_belongs_to_the_owner_of_the_database",
    "tests.test_new_master.test_after_root_both_envelopes_belong_to_the_user_of_the_service",
    "tests.test_reseal.test_after_root_the_service_still_reads_its_envelope_and_holds_its_lock",
)


def may_be_skipped(test: str) -> bool:
    """Tell whether a test needs root, for mounts or to give files away, and nobody requires that here."""
    return test.startswith(NEED_ROOT) and os.environ.get("SERVICE_SECURITY_REQUIRE_DEVICES") != "1"


def expect_all_ran(suites: dict[str, Path], python: str) -> None:
    """Require that suites ran every test that they hold."""
    for name, folder in suites.items():
        suite = Suite.read(folder)
        assert [test for test in suite.skipped if not may_be_skipped(test)] == [], name
        assert suite.failed == 0, name
        assert suite.run == collected(folder, python), name
        assert suite.run > FLOORS[name], name


def require_tpm_tools() -> None:
    """Require what the tests of the TPM piece speak to."""
    for program in ("swtpm", "tpm2_getcap"):
        require(shutil.which(program) is not None, program)


VARIANTS = {"plain": PLAIN, "hardened": HARDENED, "hardened with AES-256-GCM and TPM": HARDENED_TPM}


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_main_variant_passes_its_own_check(
    tmp_path: Path, rendered: Callable[[Answers], Path], variant: str
) -> None:
    answers = VARIANTS[variant]
    if answers.get("tpm_enabled"):
        require_tpm_tools()
    project = project_on(tmp_path / "project", rendered(answers), OLDEST_PYTHON)
    passing(project, "uv", "run", "just", "check", python=OLDEST_PYTHON)
    assert ("library" in suites_of(project)) is bool(answers)
    expect_all_ran(suites_of(project), OLDEST_PYTHON)


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("version", ["3.12", "3.13", *OPTIONAL_PYTHONS])
@pytest.mark.parametrize("variant", ["plain", "hardened with AES-256-GCM and TPM"])
def test_newer_interpreters_run_every_test(
    tmp_path: Path, rendered: Callable[[Answers], Path], variant: str, version: str
) -> None:
    answers = VARIANTS[variant]
    python = interpreter(version)
    if answers:
        require_tpm_tools()
    project = project_on(tmp_path / "project", rendered(answers), python)
    for folder in suites_of(project).values():
        passing(folder, "uv", "run", "pytest", python=python)
    expect_all_ran(suites_of(project), python)


def test_unpruned_superset_passes_its_own_tests(
    tmp_path: Path, shared: Shared, template: Template, rendered: Callable[[Answers], Path]
) -> None:
    superset = shared.render(template, HARDENED, skip_tasks=True)
    assert (superset / "libs/security/tests/test_tpm_report.py").exists()
    # Its library is, to the byte, the one whose suite runs above.
    assert contents(superset / "libs") == contents(rendered(HARDENED_TPM) / "libs")
    project = project_on(tmp_path / "project", superset, OLDEST_PYTHON)
    passing(project, "uv", "run", "pytest", python=OLDEST_PYTHON)
    expect_all_ran({"service": project}, OLDEST_PYTHON)


def test_skipped_and_failing_tests_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"><skipped/></testcase>'
        '<testcase classname="a" name="c"><failure/></testcase></testsuite></testsuites>'
    )
    assert Suite.read(tmp_path) == Suite(run=2, failed=1, skipped=("a.b",))
