"""SQLite3 Multiple Ciphers through ``apsw-sqlite3mc``: SQLite whose pages are encrypted.

It overwrites apsw when both are installed, so it has an environment of its own. Fastest here: AEGIS-256
(ChaCha20 took half as much again, the other ciphers more), an ordinary table, pages of 4 KiB.
"""

from pathlib import Path

import apsw

from benchmarks.peers.sql import SqlPeer
from template.libs.security.benchmarks.store_worker import serve

_KEY = "5a" * 32  # as it takes a raw key, in hexadecimal


def connect(path: str) -> apsw.Connection:
    """Open a file, each statement committing by itself.

    Raises:
        RuntimeError: This is stock apsw, which would take the pragmas and encrypt nothing.
    """
    connection = apsw.Connection(path)
    if connection.pragma("cipher", "aegis") != "aegis":
        raise RuntimeError("this apsw encrypts nothing")
    connection.pragma("key", f"raw:{_KEY}")
    return connection


def open_store(folder: Path) -> SqlPeer:
    """Open the store in a folder."""
    return SqlPeer(folder, connect)


if __name__ == "__main__":
    serve(open_store)
