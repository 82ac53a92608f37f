"""The folder that the service keeps its data in."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import StartError

if sys.platform != "win32":
    import fcntl


@contextmanager
def hold_data_folder(path: Path) -> Iterator[None]:
    """Hold the data folder while the service runs; create it first, for its owner only.

    The lock is a shared one on the folder itself: several processes may serve it, and a tool that
    must have it alone takes the lock exclusively.

    Raises:
        StartError: it cannot be used, or a tool is at work on it.
    """
    with ExitStack() as stack:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if sys.platform != "win32":
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"A tool is at work on the data folder {path}. Start again when it is done."
            ) from None
        except OSError as error:
            raise StartError(
                f"The data folder {path} cannot be used: {error.strerror}."
                " SERVICE_DATA_DIR names the folder."
            ) from error
        yield
