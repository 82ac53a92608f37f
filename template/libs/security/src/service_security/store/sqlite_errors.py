"""SQLite's errors as sentences for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from ..errors import IntegrityError, StoreUnavailableError


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise the library's errors in place of SQLite's.

    Raises:
        StoreUnavailableError: Busy, full, read-only, missing, or an input/output error.
        IntegrityError: The file is damaged or no database.
    """
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError):
        raise IntegrityError(
            f"{path} is damaged or is no database. Restore it from a backup; it was left as it is."
        ) from None
    except (apsw.BusyError, apsw.LockedError):
        raise StoreUnavailableError(
            f"{path} is in use by another process for too long. Try again."
        ) from None
    except apsw.FullError:
        raise StoreUnavailableError(
            f"The disk of {path} is full. Nothing was written; make room and try again."
        ) from None
    except (apsw.ReadOnlyError, apsw.PermissionsError):
        raise StoreUnavailableError(
            f"{path} may not be written. Check the owner and mode of the file and its folder."
        ) from None
    except apsw.CantOpenError:
        raise StoreUnavailableError(
            f"{path} cannot be opened. Check that it is there and may be read and written."
        ) from None
    except apsw.Error as error:
        raise StoreUnavailableError(
            f"{path} cannot be used: {type(error).__name__}. "
            "What was acknowledged is kept; check the disk, then open it again."
        ) from None
    except OSError as error:
        raise StoreUnavailableError(
            f"{path} cannot be used: {error.strerror}. Check the file, its folder and their modes."
        ) from error
