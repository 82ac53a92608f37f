"""Files that appear whole or not at all, in folders that one process works in at a time."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ConfigurationError, StoreUnavailableError

if sys.platform != "win32":
    import fcntl

_PATIENCE = 3.0  # seconds; who holds a folder for a file or two is done long before
_PAUSE = 0.02


class ReplacedError(StoreUnavailableError):
    """The file was replaced, and after a power failure the old one may be back. Check the disk."""


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
    that died; it may hold a key and is removed. Made by root, the file belongs to whoever the one
    beside it, or the folder, belongs to.

    Returns:
        False, with nothing changed, when the path exists already.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    draft = _draft_of(path)
    try:
        draft.unlink(missing_ok=True)
        try:
            write_new(draft, contents, owner_of=path)
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
    process that died, and is removed. Replaced by root, it belongs to whoever it belonged to.

    Args:
        path: The file.
        contents: What it is to hold.
        check: Called with what the disk gives back, before the old contents go.

    Raises:
        ConfigurationError: The folder cannot be written; nothing is changed.
        ReplacedError: It is replaced, and the disk has not said that it will stay so.
        SecurityError: Whatever ``check`` raises; nothing is changed then.
    """
    draft = _draft_of(path)
    try:
        draft.unlink(missing_ok=True)
        try:
            write_new(draft, contents, owner_of=path)
            check(draft.read_bytes())
            draft.replace(path)
        except BaseException:
            remove_draft(path)
            raise
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be replaced: {error.strerror}. Check the folder's owner and mode."
        ) from error
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise ReplacedError(
            f"{path} was replaced, but after a power failure the old one may be back: "
            f"{error.strerror}. Keep what opens either of them, and check the disk."
        ) from error


def remove_draft(path: Path) -> None:
    """Remove what a process left that died while it made ``path``, where that can be."""
    with suppress(OSError):
        _draft_of(path).unlink()


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def write_new(path: Path, contents: bytes | memoryview, *, owner_of: Path | None = None) -> None:
    """Create ``path`` with ``contents``, mode 0600 and synced; its name is not durable yet.

    Args:
        path: The file.
        contents: What it is to hold.
        owner_of: What it is made for: made by root, it belongs to whoever has that.

    Raises:
        OSError: It is there, or cannot be made; what was written of it stays.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
        if owner_of:
            _give_away(descriptor, owner_of)
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def _give_away(descriptor: int, path: Path) -> None:
    """Give what root has made just now for ``path`` to the user whose service will need it.

    That is the owner of the file that is there, or of the one whose name it extends
    (``envelope.json`` for ``envelope.json.next``), or of the folder. Of what was there before
    nothing is given away: it may be a second name of somebody else's file.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return
    beside = path.with_suffix("")
    for like in (path, beside) if beside.suffix else (path,):
        if exists(like):
            status = like.lstat()
            break
    else:
        status = path.parent.stat()
    os.fchown(descriptor, status.st_uid, status.st_gid)


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
    """Create ``folder`` with mode 0700, durably, unless it is there.

    Raises:
        ConfigurationError: It cannot be created, or something else has its name.
    """
    try:
        new = [each for each in (folder, *folder.parents) if not exists(each)]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in reversed(new):
            sync_folder(each.parent)
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
        wait: Give others a moment to finish, or refuse at once while there are any.

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
    busy = (
        f"The folder {folder} is in use. Stop the service that runs on it, then run the command "
        "again."
    )
    try:
        with _lock(descriptor, folder, busy, patience=_PATIENCE if wait else 0.0):
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
        descriptor = open_lock(lock)
    except OSError as error:
        raise StoreUnavailableError(f"{lock} cannot be used: {error.strerror}.") from error
    try:
        with _lock(descriptor, lock, busy):
            yield
    finally:
        os.close(descriptor)


def open_lock(lock: Path) -> int:
    """Return a descriptor of a lock file, which is made if there is none.

    Made by root, it belongs to whoever the file beside it belongs to.

    Raises:
        OSError: It cannot be opened.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(lock, flags)
    try:
        _give_away(descriptor, lock.with_suffix(""))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _lock(descriptor: int, path: Path, busy: str, *, patience: float = 0.0) -> Iterator[None]:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreUnavailableError(busy) from None
            time.sleep(_PAUSE)
        except OSError as error:
            raise StoreUnavailableError(
                f"{path} cannot be locked: {error.strerror}. Keep it on a local file system."
            ) from error
        else:
            break
    try:
        yield
    finally:
        # Closing is not enough: a child that was forked meanwhile has the descriptor, too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
