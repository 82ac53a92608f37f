"""Lets a finished draft take a database's name, and overwrites what had it.

::

    records.db.importing   the encrypted draft of an import
    records.db.exporting   the plain draft of an export
    records.db.replaced    the old file, from just before the rename until it is overwritten
"""

import os
import stat
from pathlib import Path
from typing import Final

from .._files import exists, sync_folder
from ..errors import StoreUnavailableError

_WIPE_BLOCK: Final = bytes(1024 * 1024)


def publish(draft: Path, database: Path) -> bool:
    """Let the finished draft take the name; return whether the old file remains somewhere.

    The old file keeps a name until it is overwritten, so that a crash in between is seen.
    """
    for path in (draft, database):
        for suffix in ("-journal", "-wal"):
            if exists(path.with_name(path.name + suffix)):
                raise StoreUnavailableError(
                    f"Another process has {path} open. Stop it, then run the command again."
                )
    os.link(database, beside(database, "replaced"))
    draft.replace(database)
    sync_folder(database.parent)
    return drop_replaced(database)


def drop_replaced(database: Path) -> bool:
    """Overwrite and remove what a transfer has replaced; return whether the file remains."""
    replaced = beside(database, "replaced")
    another_name = replaced.lstat().st_nlink > 1
    discard(replaced)
    sync_folder(database.parent)
    return another_name


def is_the_same_file(replaced: Path, database: Path) -> bool:
    """Tell whether the rename is still to come: both are names of one file then.

    Raises:
        OSError: One of them is missing.
    """
    return os.path.samestat(replaced.lstat(), database.lstat())


def discard(draft: Path) -> None:
    """Remove a file of an earlier attempt, overwriting what it may show.

    A link is removed and not followed; a file with another name loses this one only.
    """
    if exists(draft):
        status = draft.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            wipe(draft)
        draft.unlink()
    for suffix in ("-journal", "-wal", "-shm"):
        draft.with_name(draft.name + suffix).unlink(missing_ok=True)


def is_private_file(draft: Path) -> bool:
    """Tell whether a draft is a file that only its owner could have written."""
    if not exists(draft):
        return False
    status = draft.lstat()
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_nlink == 1
        and stat.S_IMODE(status.st_mode) & 0o077 == 0
        and status.st_uid == os.geteuid()
    )


def wipe(path: Path) -> None:
    """Overwrite a file with zeros, as far as the file system overwrites in place."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "r+b") as file:  # noqa: PTH123 - a descriptor
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, len(_WIPE_BLOCK)):
            file.write(_WIPE_BLOCK[: size - start])
        file.flush()
        os.fsync(file.fileno())


def beside(database: Path, suffix: str) -> Path:
    """Return the name of what lies beside a database."""
    return database.with_name(f"{database.name}.{suffix}")
