"""The folder that the service keeps its data in."""

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import StartError

if sys.platform != "win32":
    import fcntl


class DataFolder:
    """Holds the data folder for as long as the service runs.

    The lock is a shared one on the folder itself: several processes may serve it, and a tool that
    must have it alone takes the lock exclusively.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Create the folder if it is missing, for its owner only, and lock it.

        Raises:
            StartError: it cannot be used, or a tool is at work on it.
        """
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if sys.platform != "win32":
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise StartError(
                f"A tool is at work on the data folder {self._path}. Start again when it is done."
            ) from None
        except OSError as error:
            self._release()
            raise StartError(
                f"The data folder {self._path} cannot be used: {error.strerror}."
                " SERVICE_DATA_DIR names the folder."
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the folder free."""
        self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
