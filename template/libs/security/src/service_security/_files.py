"""Files that appear whole or not at all."""

import os
import secrets
from pathlib import Path

from .errors import ConfigurationError


def create_whole(path: Path, contents: bytes | memoryview) -> bool:
    """Create ``path`` with ``contents``, mode 0600, durably; never replace a file.

    Returns:
        False, with nothing changed, when the path exists already.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                file.write(contents)
                os.fsync(file.fileno())
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
    sync_folder(path.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Make a new, renamed or removed name in ``folder`` durable."""
    if os.name == "nt":  # NTFS journals names; a folder cannot be opened
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
