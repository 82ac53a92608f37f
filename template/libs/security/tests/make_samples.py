"""Writes the sample files of a release: ``python tests/make_samples.py 1.2.3``.

Run once for each release that changes a format, and never again for that release: the files
stand for what services in the field have on disk.
"""

import sys
from pathlib import Path

from conftest import CIPHERS, MASTER
from service_security.keys import Envelope
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb
from test_format import RECORDS, SAMPLES

WRAPPING = bytes(range(100, 132))


def main() -> None:
    """Write one release's folder; refuse to replace it."""
    folder: Path = SAMPLES / sys.argv[1]
    folder.mkdir()
    (folder / "for_testing_only.key").write_bytes(WRAPPING)
    with SecretBytes.copy_of(MASTER) as master, SecretBytes.copy_of(WRAPPING) as wrapping_key:
        for slot_type in ("key-file", "container-secret"):
            envelope = Envelope.create(master, wrapping_key, slot_type)
            (folder / f"envelope-{slot_type}.json").write_bytes(envelope.to_json())
    for cipher in CIPHERS:
        with SecureDb.open(folder / f"{cipher}.db", MASTER, cipher=cipher) as store:
            store.insert_many(RECORDS.items())
            store.flush()


if __name__ == "__main__":
    main()
