"""What the tests share."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from service_security.store import SecureDb

MASTER = bytes(range(32))
"""A master key for tests. Never use a key that anyone else has seen."""

CIPHERS = ("xchacha20poly1305", "aes256gcm")

Opener = Callable[..., SecureDb]

# A shell's background jobs ignore interrupts, and so would the processes that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
def store(open_store: Opener) -> SecureDb:
    """A new, empty store."""
    return open_store()
