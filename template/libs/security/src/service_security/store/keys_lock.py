"""One change of a database's keys at a time, among all processes.

::

    records.db.keys-lock   empty, mode 0600; stays, because a lock on a name that is gone is none

The lock spares the work of two who would do the same. Nothing depends on it: every change of the
keyset compares its generation.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreUnavailableError
from .sqlite_errors import translated

if sys.platform != "win32":
    import fcntl


@contextmanager
def keys_held(database: Path) -> Iterator[None]:
    """Hold the keys of a database alone.

    Raises:
        StoreUnavailableError: Somebody else holds them, or the folder cannot be written.
    """
    with keys_held_if_free(database) as held:
        if not held:
            raise StoreUnavailableError(
                f"The keys of {database} are being changed by somebody else right now, a service "
                "or a command. Wait until that is done, then try again."
            )
        yield


@contextmanager
def keys_held_if_free(database: Path) -> Iterator[bool]:
    """Hold the keys of a database alone, and yield whether that was possible.

    Windows has no such lock, and nothing is held there.

    Raises:
        StoreUnavailableError: The folder cannot be written.
    """
    if sys.platform == "win32":
        yield True
        return
    with translated(database):
        file = database.resolve()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(file.with_name(f"{file.name}.keys-lock"), flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            # Closing is not enough: a child that was forked meanwhile has the descriptor, too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
