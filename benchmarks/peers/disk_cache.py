"""``diskcache``: a dictionary on disk that encrypts nothing, which many reach for first.

Durable by ``synchronous=FULL``; it would otherwise lose its last writes when the power fails. Nothing is ever
evicted. Its page cache of 32 MiB and its memory map of 64 MiB are left to it. Fastest here: its own defaults
otherwise; values of 32 KiB and more would go into files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diskcache

from template.libs.security.benchmarks.store_worker import serve


class DiskCachePeer:
    """A cache that keeps everything."""

    def __init__(self, folder: Path) -> None:
        self._cache = diskcache.Cache(
            str(folder), eviction_policy="none", cull_limit=0, sqlite_synchronous=2, sqlite_secure_delete=1
        )

    def insert(self, name: bytes, value: bytes) -> None:
        """Store one record durably."""
        self._cache.set(name, value)

    def insert_many(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Store records in one transaction."""
        with self._cache.transact():
            for name, value in pairs:
                self._cache.set(name, value)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the calls in a block one transaction."""
        with self._cache.transact():
            yield

    def get(self, name: bytes) -> bytes | None:
        """Return a value."""
        value: bytes | None = self._cache.get(name)
        return value

    def flush(self) -> None:
        """Leave the log to SQLite, which empties it by itself."""

    def close(self) -> None:
        """Close the file."""
        self._cache.close()


if __name__ == "__main__":
    serve(DiskCachePeer)
