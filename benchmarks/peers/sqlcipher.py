"""SQLCipher through ``sqlcipher3``: SQLite whose pages are encrypted, AES-256-CBC with an HMAC.

Run as ``python -m benchmarks.peers.sqlcipher PAGE_SIZE``. Fastest here: an ordinary table, and HMAC-SHA1 in
place of HMAC-SHA512, which is about a tenth faster in everything. Pages of 4 KiB are best for inserts and
reads, by 5 to 10 %, of 8 KiB for batches, by a quarter: both take part. A table WITHOUT ROWID was two to
ten times slower, because values of 1 KiB spill out of their pages.
"""

import sys
from functools import partial

import sqlcipher3.dbapi2

from benchmarks.peers.sql import SqlPeer
from template.libs.security.benchmarks.store_worker import serve

_KEY = "5a" * 32  # as SQLCipher takes a raw key, in hexadecimal


def connect(path: str, page_size: int) -> sqlcipher3.dbapi2.Connection:
    """Open a file, each statement committing by itself."""
    connection = sqlcipher3.dbapi2.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA key = \"x'{_KEY}'\"")
    connection.execute("PRAGMA cipher_hmac_algorithm = HMAC_SHA1")
    connection.execute(f"PRAGMA cipher_page_size = {page_size}")
    return connection


if __name__ == "__main__":
    _connect = partial(connect, page_size=int(sys.argv[1]))
    serve(lambda folder: SqlPeer(folder, _connect))
