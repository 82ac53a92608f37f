"""Writes the sample files of a release: ``python tests/make_samples.py 1.2.3``.

Run for each release that changes a format, or has a new one. It adds what is missing and never
replaces a file: the files stand for what services in the field have on disk.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from conftest import CIPHERS, MASTER
from service_security.keys import Envelope
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb
from service_security.store.backup import write_backup
from test_backup_format import SAMPLE_RECORDS
from test_format import RECORDS, SAMPLES

WRAPPING = bytes(range(100, 132))


def main() -> None:
    """Add to one release's folder what it does not have."""
    folder: Path = SAMPLES / sys.argv[1]
    folder.mkdir(exist_ok=True)
    _add(folder / "for_testing_only.key", WRAPPING)
    with SecretBytes.copy_of(MASTER) as master, SecretBytes.copy_of(WRAPPING) as wrapping_key:
        for slot_type in ("key-file", "container-secret"):
            envelope = Envelope.create(master, wrapping_key, slot_type)
            _add(folder / f"envelope-{slot_type}.json", envelope.to_json())
            _add_backup(folder / f"{slot_type}.backup", {"master": master, slot_type: wrapping_key})
    for cipher in CIPHERS:
        if not (folder / f"{cipher}.db").exists():
            with SecureDb.open(folder / f"{cipher}.db", MASTER, cipher=cipher) as store:
                store.insert_many(RECORDS.items())
                store.flush()


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
