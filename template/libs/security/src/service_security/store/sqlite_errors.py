"""SQLite's errors as sentences for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from ..errors import IntegrityError, SecurityError, StoreUnavailableError

_SENTENCES: list[tuple[tuple[type[Exception], ...], type[SecurityError], str]] = [
    (
        (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError),
        IntegrityError,
        "{path} is damaged or is no database. Restore it from a backup; it was left as it is.",
    ),
    (
        (apsw.BusyError, apsw.LockedError),
        StoreUnavailableError,
        "{path} is in use by another process for too long. Try again.",
    ),
    (
        (apsw.FullError,),
        StoreUnavailableError,
        "The disk of {path} is full. Nothing was written; make room and try again.",
    ),
    (
        (apsw.ReadOnlyError, apsw.PermissionsError),
        StoreUnavailableError,
        "{path} may not be written. Check the owner and mode of the file and its folder.",
    ),
    (
        (apsw.CantOpenError,),
        StoreUnavailableError,
        "{path} cannot be opened. Check that it is there and may be read and written.",
    ),
    (
        (apsw.Error,),
        StoreUnavailableError,
        "{path} cannot be used: {kind}. What was acknowledged is kept; check the disk, then open "
        "it again.",
    ),
    (
        (OSError,),
        StoreUnavailableError,
        "{path} cannot be used: {reason}. Check the file, its folder and their modes.",
    ),
]


def translation(error: BaseException, path: Path) -> SecurityError | None:
    """Return the library's error for one of SQLite or the system, and None for any other."""
    for kinds, kind, sentence in _SENTENCES:
        if isinstance(error, kinds):
            reason = error.strerror if isinstance(error, OSError) else None
            return kind(sentence.format(path=path, kind=type(error).__name__, reason=reason))
    return None


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise the library's errors in place of SQLite's and the system's.

    Raises:
        StoreUnavailableError: Busy, full, read-only, missing, or an input/output error.
        IntegrityError: The file is damaged or no database.
    """
    try:
        yield
    except Exception as error:
        if (ours := translation(error, path)) is None:
            raise
        raise ours from None
