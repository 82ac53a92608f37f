"""A disk that syncs slowly: a shim between SQLite and the file system.

What a durable write costs is mostly the disk's sync, and disks differ by a factor of a hundred.
The shim lets every sync take at least a given time, so that a fast disk stands for a slow one.
It becomes the default of its process, which leaves no trace of it in the store that is measured.
"""

import time

import apsw

_SPIN_SECONDS = 100e-6
"""A sleep ends late by up to this much; the rest of the wait is spent looking at the clock."""


class SlowDisk(apsw.VFS):
    """SQLite's own file system with slower syncs. Keep the object for as long as it is needed.

    Args:
        sync_ms: Least duration of a sync in milliseconds.
    """

    def __init__(self, sync_ms: float) -> None:
        self._base = apsw.vfs_names()[0]
        self._sync_seconds = sync_ms / 1000
        super().__init__("slow-disk", self._base, makedefault=True)

    def xOpen(  # noqa: N802 - SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        """Open a file whose syncs are slow."""
        return _SlowFile(self._base, name, flags, self._sync_seconds)


class _SlowFile(apsw.VFSFile):
    def __init__(
        self, base: str, name: str | apsw.URIFilename | None, flags: list[int], seconds: float
    ) -> None:
        super().__init__(base, name, flags)
        self._seconds = seconds

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        end = time.perf_counter() + self._seconds
        super().xSync(flags)
        if (left := end - time.perf_counter() - _SPIN_SECONDS) > 0:
            time.sleep(left)
        while time.perf_counter() < end:
            pass
