"""SQLite with each value as a Fernet token (``cryptography``): what recipes for Python suggest.

Names stay readable on disk. A token is base64, so a value of 1 KiB takes 1.4 KiB and only two fit into a page
of 4 KiB. Fastest here: apsw rather than the standard library's module (a tenth in reads), an ordinary table,
and pages of 8 KiB, for which batches are a quarter faster and the rest is as fast.
"""

from base64 import urlsafe_b64encode
from pathlib import Path

import apsw
from cryptography.fernet import Fernet

from benchmarks.peers.sql import SqlPeer
from template.libs.security.benchmarks.store_worker import serve


class FernetPeer(SqlPeer):
    """Values are encrypted one by one on the way in and out."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, connect)
        fernet = Fernet(urlsafe_b64encode(b"\x5a" * 32))
        self._encrypt = fernet.encrypt
        self._decrypt = fernet.decrypt

    def insert(self, name: bytes, value: bytes) -> None:
        """Store one record durably."""
        super().insert(name, self._encrypt(value))

    def insert_many(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Store records in one transaction."""
        encrypt = self._encrypt
        super().insert_many([(name, encrypt(value)) for name, value in pairs])

    def get(self, name: bytes) -> bytes | None:
        """Return a value."""
        token = super().get(name)
        return None if token is None else self._decrypt(token)


def connect(path: str) -> apsw.Connection:
    """Open a file, each statement committing by itself."""
    connection = apsw.Connection(path)
    connection.pragma("page_size", 8192)
    return connection


if __name__ == "__main__":
    serve(FernetPeer)
