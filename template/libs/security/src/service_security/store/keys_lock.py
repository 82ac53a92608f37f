"""One change of a database's keys at a time, among all processes.

::

    records.db.keys-lock   empty, mode 0600; stays, because a lock on a name that is gone is none

The lock spares the work of two who would do the same. Nothing depends on it: every change of the
keyset compares its generation.
"""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._files import exists, open_lock
from ..errors import StoreUnavailableError
from .sqlite_errors import translated
from .store_file import no_fork

if sys.platform != "win32":
    import fcntl

_held: set[int] = set()
"""Descriptors of locks that are held."""


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
        StoreUnavailableError: The folder cannot be written, or its file system has no locks.
    """
    if sys.platform == "win32":
        yield True
        return
    with translated(database), no_fork():
        file = database.resolve()
        descriptor = open_lock(file.with_name(f"{file.name}.keys-lock"))
        _held.add(descriptor)
    try:
        with translated(database):
            _mend_owner(descriptor, file)
            held = _lock(descriptor)
        yield held
    finally:
        with no_fork():
            if descriptor in _held:  # not in a child that was forked in the block
                _held.discard(descriptor)
                # A child that was forked just now may not have closed its descriptor yet.
                with suppress(OSError):  # where there are no locks
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _mend_owner(descriptor: int, database: Path) -> None:
    """Give a lock that root has left to the user whose service is to lock it, too.

    Root may have made it by a version that did not. Only what nobody can have put there for another
    purpose is given away: an empty file of root's, with no second name.
    """
    if os.geteuid() != 0 or not exists(database):
        return
    lock, owner = os.fstat(descriptor), database.stat()
    is_plain = stat.S_ISREG(lock.st_mode) and lock.st_size == 0 and lock.st_nlink == 1
    if is_plain and lock.st_uid == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _let_go_in_child() -> None:
    # A child has the parent's descriptors. If the parent were killed, the lock would live on as
    # long as the child. To unlock here would take the lock from the parent; closing does not.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
