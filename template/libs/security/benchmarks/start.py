"""How long a process takes from its start to an open database, and to import each key provider.

Each figure is that of a fresh process, the interpreter's own start included, which stands beside
it. A passphrase is stretched by Argon2id, which is to take its time, and has no bar. Providers that
every process imports with ``service_security.keys`` take nothing more.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from service_security.keys import DEFAULT_SOURCE

from .rotation_worker import SIZE
from .store_driver import TOP
from .store_report import Bar, Result

BARE: Final = "bare interpreter"
BAR: Final = Bar(100.0)
"""Milliseconds from the start of a process to an open database."""
SOURCES: Final = (
    "file:service.key",
    "secret:service.key",
    "env:WRAPPING_KEY",
    "passphrase:data/words",
)
BARRED: Final = tuple(source for source in SOURCES if not source.startswith("passphrase"))
PROVIDERS: Final = ("key_file", "environment", "passphrase", "recovery", "tpm.provider")

_OPENS: Final = """
import sys
from pathlib import Path
from service_security.keys import open_master_key
from service_security.store import SecureDb
source = sys.argv[1]
with open_master_key(Path("data/envelope.json"), source) as master:
    store = SecureDb.open("data/records.db", master)
print(flush=True)
"""
_HAS_TPM: Final = DEFAULT_SOURCE.startswith("tpm2")
_VARIABLES: Final = {"PYTHONPATH": str(TOP), "WRAPPING_KEY": "A" * 43 + "="}
_MAKES: Final = """
import sys
from pathlib import Path
from service_security.keys import initialise, open_master_key
from service_security.store import SecureDb
source, envelope = sys.argv[1], Path("data/envelope.json")
initialise(envelope, source, holds_encrypted_data=lambda: False)
with open_master_key(envelope, source) as master:
    SecureDb.open("data/records.db", master).close()
print(flush=True)
"""
_IMPORTS: Final = """
import importlib, sys, time
import service_security.keys.envelope
begun = time.perf_counter()
importlib.import_module(f"service_security.keys.{sys.argv[1]}")
print((time.perf_counter() - begun) * 1e3)
"""


def measure_start(scratch: Path, *, rounds: int) -> list[Result]:
    """Measure in a folder, and return a line for each figure."""
    folders = {
        source: _service(scratch / str(number), source) for number, source in enumerate(SOURCES)
    }
    work: dict[str, Callable[[], float]] = {
        BARE: lambda: _milliseconds_to_open(scratch, "print(flush=True)"),
        **{source: _opening(folder, source) for source, folder in folders.items()},
        **{name: _importing(name) for name in PROVIDERS if "." not in name or _HAS_TPM},
    }
    found: dict[str, list[float]] = {name: [] for name in work}
    chance = random.Random(1)  # noqa: S311 - turns
    for _ in range(rounds):
        for name in chance.sample(list(work), len(work)):
            found[name].append(work[name]())
    opened = [
        _line(
            f"process start to open store, {source.partition(':')[0]}",
            found[source],
            found[BARE],
            bar,
        )
        for source in SOURCES
        for bar in [BAR if source in BARRED else None]
    ]
    return opened + [
        _line(f"import of keys.{name}", found[name], found[name], None)
        for name in PROVIDERS
        if name in found
    ]


def _line(what: str, ours: list[float], theirs: list[float], bar: Bar | None) -> Result:
    against = BARE if ours is not theirs else ""
    return Result(what, SIZE, "random", "xchacha20poly1305", against, "ms", ours, theirs, ours, bar)


def _service(folder: Path, source: str) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "words").write_text("several words that nobody else has")
    if source.startswith("secret"):
        (folder / "service.key").write_bytes(os.urandom(32))
    _milliseconds_to_open(folder, _MAKES, source)
    return folder


def _opening(folder: Path, source: str) -> Callable[[], float]:
    return lambda: _milliseconds_to_open(folder, _OPENS, source)


def _importing(name: str) -> Callable[[], float]:
    return lambda: float(_run(Path.cwd(), _IMPORTS, name).communicate()[0])


def _milliseconds_to_open(folder: Path, program: str, *arguments: str) -> float:
    begun = time.perf_counter()
    process = _run(folder, program, *arguments)
    with process:
        if process.stdout is None or process.stdout.readline() != "\n":
            raise RuntimeError("the process did not open its database")
        return (time.perf_counter() - begun) * 1e3


def _run(folder: Path, program: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # noqa: S603 - a program of our own
        [sys.executable, "-P", "-c", program, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | _VARIABLES,
    )
