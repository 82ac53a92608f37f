"""Writes the sample files of a release: ``python tests/make_samples.py 1.2.3``.

Run for each release that changes a format, or has a new one. It adds what is missing and never
replaces a file: the files stand for what services in the field have on disk.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from conftest import CIPHERS, MASTER
from service_security.keys import Envelope
from service_security.keys.passphrase import Passphrase
from service_security.keys.provider import WrappingKey
from service_security.keys.recovery import key_of
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb
from service_security.store.backup import write_backup
from test_backup_format import SAMPLE_RECORDS
from test_format import PASSPHRASE, PHRASE, RECORDS, SAMPLES

WRAPPING = bytes(range(100, 132))


def main() -> None:
    """Add to one release's folder what it does not have."""
    folder: Path = SAMPLES / sys.argv[1]
    folder.mkdir(exist_ok=True)
    _add(folder / "for_testing_only.key", WRAPPING)
    with SecretBytes.copy_of(MASTER) as master, SecretBytes.copy_of(WRAPPING) as wrapping_key:
        wrapping = WrappingKey(wrapping_key)
        for slot_type in ("key-file", "container-secret", "environment"):
            _add_envelope(folder, slot_type, master, {slot_type: wrapping})
            _add_backup(folder / f"{slot_type}.backup", {"master": master, slot_type: wrapping_key})
        with Passphrase(None, lambda _: PASSPHRASE).protect() as stretched:
            _add_envelope(folder, "passphrase", master, {"passphrase": stretched})
        with key_of(PHRASE) as recovery_key:
            recovery = {"recovery": WrappingKey(recovery_key)}
            _add_envelope(folder, "recovery", master, {"key-file": wrapping, **recovery})
            _add_backup(folder / "recovery.backup", {"master": master, "recovery": recovery_key})
    for cipher in CIPHERS:
        if not (folder / f"{cipher}.db").exists():
            with SecureDb.open(folder / f"{cipher}.db", MASTER, cipher=cipher) as store:
                store.insert_many(RECORDS.items())
                store.flush()


def _add_envelope(
    folder: Path, name: str, master: SecretBytes, keys: dict[str, WrappingKey]
) -> None:
    _add(folder / f"envelope-{name}.json", Envelope.create(master, keys).to_json())


def _add(path: Path, contents: bytes) -> None:
    if not path.exists():
        path.write_bytes(contents)


def _add_backup(path: Path, keys: dict[str, SecretBytes]) -> None:
    if path.exists():
        return
    with TemporaryDirectory() as folder, SecureDb.open(Path(folder, "records.db"), MASTER) as store:
        store.insert_many(SAMPLE_RECORDS.items())
        write_backup(store, path, keys, progress=lambda *_: None)


if __name__ == "__main__":
    main()
