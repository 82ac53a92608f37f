"""What the tests share."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from service_security.store import SecureDb, log, schema

MASTER = bytes(range(32))
"""A master key for tests. Never use a key that anyone else has seen."""

CIPHERS = ("xchacha20poly1305", "aes256gcm")

Opener = Callable[..., SecureDb]

# How long an example takes says how busy the machine is, and nothing about the example.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# As long as nothing waits in vain: on a busy machine, whoever else writes may be slow.
schema.BUSY_TIMEOUT_MS = log.BUSY_TIMEOUT_MS = 60_000  # type: ignore[attr-defined, misc]

# A shell's background jobs ignore interrupts, and so would the processes that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread or process is about to do."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(params=CIPHERS)
def cipher(request: pytest.FixtureRequest) -> str:
    """Each record cipher in turn."""
    name: str = request.param
    return name


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where a test's database goes; nothing is there yet."""
    return tmp_path / "records.db"


@pytest.fixture
def open_store(database: Path, cipher: str) -> Iterator[Opener]:
    """Open the test's database, and close whatever was opened."""
    with ExitStack() as stack:

        def opener(path: Path = database, key: bytes = MASTER) -> SecureDb:
            return stack.enter_context(SecureDb.open(path, key, cipher=cipher))

        yield opener


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an emptying of the log that others prevent be given up at once."""
    monkeypatch.setattr(log.empty_log, "__kwdefaults__", {"patience_ms": 10})


@pytest.fixture
def store(open_store: Opener) -> SecureDb:
    """A new, empty store."""
    return open_store()
