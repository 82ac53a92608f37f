"""No key of a TPM is left in the memory of a process that has closed it."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from software_tpm import SoftwareTpm, software_tpms
from test_memory import child, pytestmark  # noqa: F401 - where memory can be read

# Keys that are derived on the way are told masked, so that telling them leaves no copy of them.
TELLS_ITS_KEYS = """
import json, sys
from pathlib import Path
from service_security.keys.tpm import client, session
from service_security.keys.tpm.provider import TpmProvider

told = []

def tell(key):
    with key.view as view:
        told.append(bytes(byte ^ 0xA5 for byte in view).hex())
    return key

def kdfa(*arguments, derive=session.kdfa):
    return tell(derive(*arguments))

def make_salt(point, make=session.make_salt):
    encrypted, salt = make(point)
    return encrypted, tell(salt)

client.kdfa = session.kdfa = kdfa
client.make_salt = make_salt
provider = TpmProvider(sys.argv[1])
"""

USES_KEYS = (
    TELLS_ITS_KEYS
    + """
made = provider.protect()
opened = [provider.unprotect(made.fields) for _ in range(20)]
for key in (made, *opened):
    tell(key.key)
Path(sys.argv[2]).write_text(json.dumps(told))
print("open", flush=True)
sys.stdin.readline()
for key in (made, *opened):
    key.close()
print("closed", flush=True)
sys.stdin.readline()
"""
)

IS_REFUSED = (
    TELLS_ITS_KEYS
    + """
from service_security.keys.tpm.errors import TamperedError

def refuse(*_):
    raise TamperedError("changed")

with provider.protect() as made:
    session.Session.verify = refuse
    try:
        provider.unprotect(made.fields)
    except TamperedError as error:
        kept = error
    tell(made.key)
Path(sys.argv[2]).write_text(json.dumps(told))
print("refused", flush=True)
sys.stdin.readline()
"""
)

# Some of the copies are overwritten by what comes after them; of a hundred, some stay.
HOLDS_BYTES = (
    TELLS_ITS_KEYS
    + """
with provider.protect() as made:
    copies = [bytes(made.key.view) for _ in range(100)]
    tell(made.key)
Path(sys.argv[2]).write_text(json.dumps(told[-1:]))
print("open", flush=True)
sys.stdin.readline()
del copies
print("closed", flush=True)
sys.stdin.readline()
"""
)


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    """A software TPM."""
    (tmp_path / "tpms").mkdir()
    with software_tpms(tmp_path / "tpms") as make:
        yield make()


def keys_told_in(path: Path) -> dict[str, bytes]:
    """Return the keys that a process told."""
    told = json.loads(path.read_text())
    masked = {f"{number} of {len(told)}": bytes.fromhex(key) for number, key in enumerate(told)}
    return {name: bytes(byte ^ 0xA5 for byte in key) for name, key in masked.items()}


def test_closed_key_is_not_left_in_memory(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """Neither is anything that it was derived or decrypted with."""
    with child(USES_KEYS, tpm.address, tmp_path / "told") as process:
        process.says("open")
        keys = keys_told_in(tmp_path / "told")
        # 3 keys of the session that seals, and 2 of each use: salt, session key, a key for CFB.
        assert len(keys) == 2 + 2 + 20 * 3 + 21
        (wrapping_key,) = set(list(keys.values())[-21:])
        assert process.holds({"wrapping key": wrapping_key}) == {"wrapping key"}
        assert wrapping_key not in list(keys.values())[:-21]
        assert process.holds(dict(list(keys.items())[:-21])) == set()
        process.goes_on()
        process.says("closed")
        assert process.holds(keys) == set()


def test_refused_key_is_not_left_in_memory(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """The error is kept, and with it every frame that it went through."""
    with child(IS_REFUSED, tpm.address, tmp_path / "told") as process:
        process.says("refused")
        keys = keys_told_in(tmp_path / "told")
        assert len(keys) == 4 + 2 + 1
        assert process.holds(keys) == set()


def test_the_same_scan_finds_a_key_that_was_read_as_bytes(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """The control: what would be left of a key without a page of its own."""
    with child(HOLDS_BYTES, tpm.address, tmp_path / "told") as process:
        process.says("open")
        (key,) = keys_told_in(tmp_path / "told").values()
        keys = {"wrapping key": key, "another key": secrets.token_bytes(32)}
        assert process.holds(keys) == {"wrapping key"}
        process.goes_on()
        process.says("closed")
        assert process.holds(keys) == {"wrapping key"}
