"""Wrapping keys that come from a file: one that is ours, or one that an orchestrator delivers.

Both hold exactly 32 raw bytes. They differ in who may read the file:

``key-file``
    Made by ``init``. Owned by the service's user (or root), mode 0600 or stricter.
``container-secret``
    Delivered by Docker, Kubernetes or systemd, often owned by another user and readable for
    all inside a closed folder. Only that others may *write* it is refused.
"""

import os
import shlex
import stat
from pathlib import Path
from typing import Final

from ..errors import ConfigurationError, KeyUnavailableError
from ..secret_bytes import SecretBytes
from .derivation import KEY_BYTES

KEY_FILE: Final = "key-file"
CONTAINER_SECRET: Final = "container-secret"  # noqa: S105 - a kind of slot


def read_key(path: Path, slot_type: str) -> SecretBytes:
    """Return the 32 key bytes of a file.

    Args:
        path: The file; symbolic links are followed (Kubernetes mounts secrets through them).
        slot_type: ``key-file`` or ``container-secret``, which decides about the mode.

    Raises:
        KeyUnavailableError: The file is missing or may not be read.
        ConfigurationError: Others may read or write it, or it does not hold 32 bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyUnavailableError(
            f"The key file {path} is missing. Put it back, from the backup or the secret store; "
            "without it the data cannot be read. SERVICE_KEY_FILE says where it is looked for."
        ) from None
    except OSError as error:
        raise KeyUnavailableError(
            f"The key file {path} cannot be opened: {error.strerror}. "
            "The user that runs the service must be able to read it."
        ) from error
    try:
        _check_owner_and_mode(path, os.fstat(descriptor), slot_type)
        # One byte is read beyond the key, so that a longer file is refused and not cut.
        with SecretBytes(KEY_BYTES + 1) as buffer, buffer.view as view:
            count = 0
            while count < len(view) and (read := os.readv(descriptor, [view[count:]])):
                count += read
            if count != KEY_BYTES:
                size = f"{count} bytes" if count < KEY_BYTES else "more than 32 bytes"
                raise ConfigurationError(
                    f"The key file {path} holds {size}; a key is exactly {KEY_BYTES} raw bytes, "
                    "not text and with no line end. Put the right file there."
                )
            with view[:KEY_BYTES] as key:
                return SecretBytes.copy_of(key)
    except OSError as error:
        raise KeyUnavailableError(
            f"The key file {path} cannot be read: {error.strerror}."
        ) from error
    finally:
        os.close(descriptor)


def _check_owner_and_mode(path: Path, status: os.stat_result, slot_type: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{path} is not a regular file. A key is read from a file only.")
    if os.name == "nt":  # access there is governed by ACLs, which the mode bits do not show
        return
    mode = stat.S_IMODE(status.st_mode)
    if slot_type == CONTAINER_SECRET:
        if mode & 0o022:
            raise ConfigurationError(
                f"Others may write the secret {path} (mode {mode:04o}). "
                "Deliver it with mode 0444 or stricter."
            )
        return
    if mode & 0o077:
        raise ConfigurationError(
            f"Others may read or write the key file {path} (mode {mode:04o}). "
            f"Run: chmod 600 {shlex.quote(str(path))} . If others could read it, treat the key as "
            "known to them."
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(
            f"The key file {path} belongs to user {status.st_uid}, and the service runs as "
            f"{os.geteuid()}. Run: chown {os.geteuid()} {shlex.quote(str(path))}"
        )
