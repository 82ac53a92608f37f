"""No key is left in the memory of a process that has closed its store.

A second process works with a store and stays alive, and its memory is read through ``/proc``. It
is not hardened (``process.py``), or only root could look. The keys are computed here, from the
files, by the independent reader.
"""

import base64
import hashlib
import json
import os
import secrets
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from independent_reader import (
    PREFIX,
    hkdf,
    open_box,
    passphrase_key,
    read_envelope,
    read_slots,
    recovery_key,
)
from service_security.cli import main
from service_security.layout import DataFolder
from service_security.secret_bytes import SecretBytes
from service_security.store.cipher import HChaCha20
from test_format import WORDS

_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="/proc/PID/mem is Linux's"),
    pytest.mark.skipif(
        _PTRACE_SCOPE.exists() and int(_PTRACE_SCOPE.read_text()) > 1 and os.geteuid() != 0,
        reason="here only root may read the memory of its children",
    ),
]

USES_A_STORE = """
import sys
from pathlib import Path
from service_security.keys import open_master_key
from service_security.store import SecureDb

envelope, key_file, database, cipher = sys.argv[1:]
with open_master_key(Path(envelope), f"file:{key_file}") as master_key:
    store = SecureDb.open(database, master_key, cipher=cipher)

def use():
    for number in range(20):
        store.insert(b"name %d" % number, b"value" * 20)
    store.insert_many((b"batch %d" % number, b"value" * 200) for number in range(500))
    assert store.get(b"name 3") == b"value" * 20
    assert len(list(store.items())) == 520
    assert store.remove(b"name 4")
    store.check()
    store.flush()

use()
print("open", flush=True)
sys.stdin.readline()
store.close()
print("closed", flush=True)
sys.stdin.readline()
"""

IS_REFUSED = """
import sys
from pathlib import Path
from service_security.errors import WrongKeyError
from service_security.keys import open_master_key

try:
    open_master_key(Path(sys.argv[1]), f"file:{sys.argv[2]}")
except WrongKeyError as error:
    kept = error
    print("refused", flush=True)
sys.stdin.readline()
"""

# Whatever the source is, its key is used once and gone; the recovery key is typed first.
USES_A_SOURCE = """
import os, sys
from pathlib import Path
from service_security.keys import open_keys
from service_security.keys.recovery import RecoveryKey, key_of
from service_security.keys.service_keys import open_with, read_envelope

envelope, source, phrase = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
with key_of(phrase.read_text()) as typed:
    keys = open_with(read_envelope(envelope), RecoveryKey(typed))
    keys.close()
with open_keys(envelope, source) as keys:
    print("open", flush=True)
    sys.stdin.readline()
print("closed", flush=True)
sys.stdin.readline()
"""

# Some of the copies are overwritten by what comes after them; of a hundred, some stay.
HOLDS_BYTES = """
import sys
from pathlib import Path

keys = [Path(sys.argv[1]).read_bytes() for _ in range(100)]
print("open", flush=True)
sys.stdin.readline()
del keys
print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Return where the wrapping key goes."""
    return tmp_path / "key"


@pytest.fixture
def data(tmp_path: Path, key_file: Path) -> DataFolder:
    """Return a data folder with an envelope."""
    folder = DataFolder(tmp_path / "data")
    folder.path.mkdir(mode=0o700)
    folders = ["--data-dir", str(folder.path), "--key-source", f"file:{key_file}"]
    assert main(["init", "--no-recovery", *folders]) == 0
    return folder


class Child:
    """A process that says a word, waits for a line, goes on, and says the next."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    def says(self, word: str) -> None:
        """Wait until it says ``word`` and nothing else."""
        assert self._stdout.readline() == f"{word}\n"

    def goes_on(self) -> None:
        """Let it do what comes next."""
        self._stdin.write("\n")
        self._stdin.flush()

    def holds(self, keys: dict[str, bytes]) -> set[str]:
        """Return the names of the keys that are whole somewhere in its memory."""
        found = set()
        for memory in _memory_of(self._process.pid):
            found |= {name for name, key in keys.items() if key in memory}
        return found


@contextmanager
def child(program: str, *arguments: object) -> Iterator[Child]:
    """Run a program, and let it end with the test."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Child(process)
        process.communicate("\n", timeout=120)
    assert process.returncode == 0


def _memory_of(pid: int) -> Iterator[bytes]:
    """Yield the contents of every mapping that the process can read."""
    folder = Path(f"/proc/{pid}")
    with (folder / "mem").open("rb", buffering=0) as memory:
        for line in (folder / "maps").read_text().splitlines():
            addresses, mode = line.split()[:2]
            if "r" not in mode or "[vvar" in line or "[vsyscall]" in line:
                continue  # the kernel's own pages: the clock, and an old way to ask for it
            start, end = (int(address, 16) for address in addresses.split("-"))
            memory.seek(start)
            contents = memory.read(end - start)
            assert len(contents) == end - start, line
            yield contents


def _keys_of(data: DataFolder, wrapping_key: bytes) -> dict[str, bytes]:
    """Compute every key of a database, and the subkeys of its records, from its files."""
    master = read_envelope(data.envelope, wrapping_key)
    with closing(sqlite3.connect(data.database)) as connection:
        ((db_id, master_id, keyset),) = connection.execute(
            "SELECT db_id, master_id, keyset FROM header"
        )
        nonces = [
            sealed[8:24] + sealed[:8]
            for (sealed,) in connection.execute("SELECT sealed FROM record ORDER BY id LIMIT 25")
        ]
    keyset_key = hkdf(master, db_id, PREFIX + b"store/keyset")
    plain = open_box(keyset_key, keyset, b"keyset", db_id + master_id, 8)
    record, index = struct.iter_unpack(">IBBB32sQQ", plain[14:])
    assert (record[2], index[2]) == (1, 2)  # what they are for
    record_key, subkey = {
        1: (hkdf(record[4], db_id, PREFIX + b"store/record/xchacha20poly1305"), _xchacha_subkey),
        2: (hkdf(record[4], db_id, PREFIX + b"store/record/aes256gcm"), _xaes_subkey),
    }[record[3]]
    return {
        "wrapping key": wrapping_key,
        "master key": master,
        "header key": hkdf(master, db_id, PREFIX + b"store/header"),
        "keyset key": keyset_key,
        "version key": record[4],
        "record key": record_key,
        "index key": index[4],
        "name key": hkdf(index[4], db_id, PREFIX + b"store/name"),
        "slot key": _slot_key(data.envelope, wrapping_key),
        **{f"subkey {number}": subkey(record_key, nonce) for number, nonce in enumerate(nonces)},
    }


def _slot_key(envelope: Path, wrapping_key: bytes) -> bytes:
    body = json.loads(json.loads(envelope.read_text())["body"])
    slot = body["slots"][0]
    context = bytes.fromhex(body["envelope_id"] + body["master_id"]) + slot["type"].encode()
    salt = base64.b64decode(slot["box"])[5:37]
    return hkdf(wrapping_key, salt, PREFIX + b"slot" + hashlib.sha256(context).digest())


def _xchacha_subkey(record_key: bytes, nonce: bytes) -> bytes:
    with SecretBytes.copy_of(record_key) as key:  # the library's, held to the published vector
        return bytes(HChaCha20(key).subkey(nonce[:16]))


def _xaes_subkey(record_key: bytes, nonce: bytes) -> bytes:
    subkey = b""
    for number in (1, 2):
        mac = CMAC(AES(record_key))
        mac.update(bytes([0, number]) + b"X\0" + nonce[:12])
        subkey += mac.finalize()
    return subkey


def test_closed_store_leaves_no_key_in_memory(
    data: DataFolder, key_file: Path, cipher: str
) -> None:
    with child(USES_A_STORE, data.envelope, key_file, data.database, cipher) as process:
        process.says("open")
        keys = _keys_of(data, key_file.read_bytes())
        held = process.holds(keys)
        # The scan finds what an open store needs, and only that: neither of the keys that open it.
        assert {"version key", "index key", "record key", "header key", "keyset key"} <= held
        assert any(name.startswith("subkey ") for name in held)
        assert not {"wrapping key", "master key", "slot key"} & held
        process.goes_on()
        process.says("closed")
        assert process.holds(keys) == set()


def test_the_same_scan_finds_a_key_that_was_read_as_bytes(data: DataFolder, key_file: Path) -> None:
    """The control: what would be left of a key without a page of its own."""
    keys = {"wrapping key": key_file.read_bytes(), "another key": secrets.token_bytes(32)}
    assert data.envelope.exists()
    with child(HOLDS_BYTES, key_file) as process:
        process.says("open")
        assert process.holds(keys) == {"wrapping key"}
        process.goes_on()
        process.says("closed")
        assert process.holds(keys) == {"wrapping key"}


def test_refused_key_is_not_left_in_memory(data: DataFolder, key_file: Path) -> None:
    key_file.write_bytes(wrong := secrets.token_bytes(32))
    with child(IS_REFUSED, data.envelope, key_file) as process:
        process.says("refused")
        assert process.holds({"wrong key": wrong}) == set()


@pytest.mark.parametrize("kind", ["environment", "passphrase", "file"])
def test_closed_keys_leave_nothing_of_any_source_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The texts of a variable and a phrase stay as ``str``; OpenSSL keeps the passphrase."""
    key, phrase = secrets.token_bytes(32), tmp_path / "phrase"
    passphrase = secrets.token_urlsafe(30)
    monkeypatch.setenv("TEST_WRAPPING_KEY", base64.b64encode(key).decode())
    for name, contents in (("key", key), ("passphrase", passphrase.encode())):
        (tmp_path / name).write_bytes(contents)
        (tmp_path / name).chmod(0o600)
    source = {
        "environment": "env:TEST_WRAPPING_KEY",
        "passphrase": f"passphrase:{tmp_path}/passphrase",
        "file": f"file:{tmp_path}/key",
    }[kind]
    envelope = tmp_path / "data" / "envelope.json"
    folders = ["--data-dir", str(envelope.parent), "--key-source", source]
    assert main(["init", "--phrase-file", str(phrase), *folders]) == 0

    slots = read_slots(envelope)
    wrapping = passphrase_key(passphrase, slots["passphrase"]) if kind == "passphrase" else key
    keys = {
        "wrapping key": wrapping,
        "master key": read_envelope(envelope, wrapping),
        "recovery key": recovery_key(phrase.read_text(), WORDS),
        "passphrase": passphrase.encode(),
    }
    with child(USES_A_SOURCE, envelope, source, phrase) as process:
        process.says("open")
        held = process.holds(keys)
        assert held - {"passphrase"} == {"wrapping key", "master key", "recovery key"}, (
            "the control"
        )
        process.goes_on()
        process.says("closed")
        assert process.holds(keys) <= {"passphrase"}
