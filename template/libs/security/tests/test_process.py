"""A hardened process leaves no core dump, and its memory is closed to others of its user."""

import os
import resource
import subprocess
import sys

import pytest

from service_security import process, secret_bytes
from service_security.errors import ConfigurationError
from service_security.process import harden_process

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the settings are Linux's")

# The settings last for good, and tests of other things may need a core dump.
CHILD = """
import ctypes, os, sys
from resource import RLIMIT_CORE, getrlimit, setrlimit
from service_security.process import harden_process

def state():
    PR_GET_DUMPABLE = 3
    return ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), *getrlimit(RLIMIT_CORE)

mode, where = sys.argv[1:]
setrlimit(RLIMIT_CORE, (getrlimit(RLIMIT_CORE)[1],) * 2)
assert state()[0] == 1
findings = harden_process(development=mode == "development")
if where == "forked" and os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
print(*state(), len(findings), flush=True)
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep the process of the tests as it is, and return what would have been done to it."""
    made: list[str] = []
    monkeypatch.setattr(process, "_set_not_dumpable", lambda: made.append("not dumpable"))
    monkeypatch.setattr(resource, "setrlimit", lambda what, to: made.append(f"{what} {to}"))
    return made


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make locking memory fail, as where ``ulimit -l`` is 0."""
    monkeypatch.setattr(secret_bytes, "_lock", lambda _: False)


def state_of_a_child(mode: str, where: str = "itself") -> list[int]:
    """Return what a child is after hardening: dumpable, soft and hard core limit, findings."""
    said = subprocess.run(
        [sys.executable, "-c", CHILD, mode, where],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [int(number) for number in said.stdout.split()]


@linux_only
@pytest.mark.parametrize("where", ["itself", "forked"])
def test_hardened_process_is_not_dumpable_and_has_no_core_limit_to_raise(where: str) -> None:
    assert state_of_a_child("production", where)[:3] == [0, 0, 0]


@linux_only
def test_development_leaves_both_as_they_were_and_says_so() -> None:
    dumpable, soft, hard, findings = state_of_a_child("development")
    assert dumpable == 1
    assert soft == hard == resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert findings >= 1


def test_linux_in_production_does_both_and_has_nothing_to_say(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_bytes, "_lock", lambda _: True)
    assert harden_process(development=False, platform="linux") == []
    assert calls == [f"{resource.RLIMIT_CORE} (0, 0)", "not dumpable"]


def test_development_on_linux_warns_about_core_dumps_only(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_bytes, "_lock", lambda _: True)
    (finding,) = harden_process(development=True, platform="linux")
    assert "SERVICE_CORE_DUMPS=allow" in finding
    assert calls == []


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize("development", [False, True])
def test_memory_that_cannot_be_locked_is_a_finding_and_no_error(
    calls: list[str], development: bool
) -> None:
    findings = harden_process(development=development, platform="linux")
    assert "ulimit -l" in findings[-1]
    assert len(findings) == 1 + development
    assert bool(calls) is not development


def test_one_page_that_cannot_be_locked_is_enough(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit may hold a page and not all that a store needs."""
    answers = iter([True, True, False] + [True] * 100)
    monkeypatch.setattr(secret_bytes, "_lock", lambda _: next(answers))
    (finding,) = harden_process(development=False, platform="linux")
    assert "ulimit -l" in finding
    assert calls


SYSTEMS = pytest.mark.parametrize(
    ("platform", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("freebsd15", "this system")]
)


@SYSTEMS
def test_other_systems_are_refused_in_production(
    calls: list[str], platform: str, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^On {name}, .*SERVICE_CORE_DUMPS=allow"):
        harden_process(development=False, platform=platform)
    assert calls == []


@SYSTEMS
def test_other_systems_are_warned_about_in_development(
    calls: list[str], platform: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_bytes, "_lock", lambda _: True)
    allowed, missing = harden_process(development=True, platform=platform)
    assert "SERVICE_CORE_DUMPS=allow" in allowed
    assert missing.startswith(f"On {name}, ")
    assert calls == []


@pytest.mark.parametrize("error", [PermissionError(1, "not permitted"), ValueError("too high")])
def test_limit_that_cannot_be_set_is_an_error(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(ConfigurationError, match=r"(not permitted|too high)\. A sandbox"):
        harden_process(development=False, platform="linux")
    assert calls == []


@linux_only
def test_process_that_stays_dumpable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(process, "_PR_SET_DUMPABLE", -1)  # the kernel refuses what it does not know
    with pytest.raises(ConfigurationError, match=os.strerror(22)):
        harden_process(development=False, platform="linux")
