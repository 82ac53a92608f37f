"""Files that appear whole or not at all, in folders that one process works in at a time."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ConfigurationError, StoreUnavailableError

if sys.platform != "win32":
    import fcntl


def exists(path: Path) -> bool:
    """Tell whether there is anything of that name, a dangling link included.

    Raises:
        OSError: It cannot be told, for instance because the folder may not be searched.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def create_whole(path: Path, contents: bytes | memoryview) -> bool:
    """Create ``path`` with ``contents``, mode 0600, durably; never replace a file.

    The caller holds the folder (``held``), so that a draft which is there was left by a process
    that died; it may hold a key and is removed.

    Returns:
        False, with nothing changed, when the path exists already.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    draft = _draft_of(path)
    try:
        draft.unlink(missing_ok=True)
        try:
            write_new(draft, contents)
            return publish_new(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be created: {error.strerror}. Check the folder's owner and mode."
        ) from error


def publish_new(draft: Path, path: Path) -> bool:
    """Give a finished draft its name, durably; False when the name is taken."""
    try:
        os.link(draft, path)  # unlike rename, fails where the name exists
    except FileExistsError:
        return False
    try:
        draft.unlink()
        sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)  # refused is refused: it is not known to be on the disk
        raise
    return True


def replace_whole(path: Path, contents: bytes, check: Callable[[bytes], None]) -> None:
    """Replace a file by ``contents``, mode 0600, durably: at every moment there is one of the two.

    The caller is the only one that does (``locked``), so that a draft which is there was left by a
    process that died, and is removed.

    Args:
        path: The file.
        contents: What it is to hold.
        check: Called with what the disk gives back, before the old contents go.

    Raises:
        ConfigurationError: The folder cannot be written.
        SecurityError: Whatever ``check`` raises; nothing is changed then.
    """
    draft = _draft_of(path)
    try:
        draft.unlink(missing_ok=True)
        try:
            write_new(draft, contents)
            check(draft.read_bytes())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be replaced: {error.strerror}. Check the folder's owner and mode."
        ) from error


def remove_draft(path: Path) -> None:
    """Remove what a process left that died while it made ``path``, where that can be."""
    with suppress(OSError):
        _draft_of(path).unlink()


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def write_new(path: Path, contents: bytes | memoryview) -> None:
    """Create a file under its own name, mode 0600, and sync it; a crash may leave a part of it.

    Raises:
        OSError: It is there, or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a new, renamed or removed name in ``folder`` durable."""
    if sys.platform == "win32":  # NTFS journals names; a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_folder(folder: Path) -> None:
    """Create ``folder`` with mode 0700 unless it is there.

    Raises:
        ConfigurationError: It cannot be created, or something else has its name.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be created: {error.strerror}. "
            "Check the path and the owner of the folder above it."
        ) from error


@contextmanager
def held(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder alone, by an exclusive ``flock`` on it; a running service holds it shared.

    Windows has no such lock, and nothing is held there.

    Args:
        folder: An existing folder.
        wait: Wait for the others, or refuse while there are any.

    Raises:
        StoreUnavailableError: Another process holds the folder, or it cannot be opened.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreUnavailableError(
            f"The folder {folder} cannot be used: {error.strerror}."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise StoreUnavailableError(
                f"The folder {folder} is in use. Stop the service that runs on it, then run the "
                "command again."
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked(lock: Path, busy: str) -> Iterator[None]:
    """Hold a lock file alone, by an exclusive ``flock``; it is made, and stays for the next one.

    Windows has no such lock, and nothing is held there.

    Args:
        lock: The file.
        busy: What to say while another process holds it.

    Raises:
        StoreUnavailableError: Another process holds it, or it cannot be opened.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreUnavailableError(f"{lock} cannot be used: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreUnavailableError(busy) from None
        yield
    finally:
        os.close(descriptor)
