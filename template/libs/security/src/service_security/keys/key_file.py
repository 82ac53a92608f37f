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
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path

from .._files import create_whole, exists, held, make_private_folder, remove_draft
from ..errors import ConfigurationError, KeyUnavailableError
from ..layout import DataFolder
from ..secret_bytes import SecretBytes
from .derivation import KEY_BYTES
from .provider import CONTAINER_SECRET, KEY_FILE, KeyProvider, WrappingKey


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file of the service's own. ``protect`` makes it when it is not there.

    Attributes:
        path: The file.
    """

    path: Path
    slot_type = KEY_FILE

    def __str__(self) -> str:
        return f"file:{self.path}"

    def probe(self) -> None:
        """See that the file can be read, or could be made."""
        try:
            if exists(self.path):
                read_key(self.path, KEY_FILE).close()
                return
            folder = self.path.absolute().parent
            while not folder.exists():
                folder = folder.parent
            is_folder = folder.is_dir()
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if not is_folder or not os.access(folder, os.W_OK | os.X_OK):
            raise KeyUnavailableError(
                f"The key file {self.path} cannot be made: {folder} cannot be written by user "
                f"{os.geteuid() if hasattr(os, 'geteuid') else ''}. Check its owner and mode."
            )

    def protect(self, known: Mapping[str, str] | None = None) -> WrappingKey:
        """Return the key in the file, which is made first if there is none.

        Raises:
            KeyUnavailableError: The file cannot be read.
            ConfigurationError: It has a wrong mode, owner or length, or cannot be made.
            StoreUnavailableError: Its folder cannot be opened.
        """
        del known
        make_private_folder(self.path.parent)
        with held(self.path.parent, wait=True):
            try:
                is_there = exists(self.path)
            except OSError as error:
                raise _unreadable(self.path, error) from error
            if is_there:  # perhaps in a folder that can only be read
                remove_draft(self.path)
            else:
                with SecretBytes.generate(KEY_BYTES) as fresh, fresh.view as view:
                    create_whole(self.path, view)
        return WrappingKey(read_key(self.path, KEY_FILE))

    def unprotect(self, fields: Mapping[str, str]) -> WrappingKey:
        """Return the key in the file.

        Raises:
            KeyUnavailableError: The file is missing or cannot be read.
            ConfigurationError: It has a wrong mode, owner or length.
        """
        del fields
        return WrappingKey(read_key(self.path, KEY_FILE))


@dataclass(frozen=True, slots=True)
class ContainerSecret:
    """A secret file that somebody delivers. It is never made here.

    Attributes:
        path: The file.
        source: Its key source.
    """

    path: Path
    source: str
    slot_type = CONTAINER_SECRET

    def __str__(self) -> str:
        return self.source

    def probe(self) -> None:
        """See that the file can be read."""
        read_key(self.path, CONTAINER_SECRET).close()

    def protect(self, known: Mapping[str, str] | None = None) -> WrappingKey:
        """Return the key in the file.

        Raises:
            KeyUnavailableError: The file is missing or cannot be read.
            ConfigurationError: Others may write it, or it does not hold a key.
        """
        del known
        return WrappingKey(read_key(self.path, CONTAINER_SECRET))

    def unprotect(self, fields: Mapping[str, str]) -> WrappingKey:
        """Return the key in the file, as ``protect`` does."""
        del fields
        return self.protect()


def refuse_own_place(provider: KeyProvider, envelope: Path) -> None:
    """Refuse a key file where this library keeps, or makes and removes, files of its own.

    Args:
        provider: Any; only a key file has a place that could be one.
        envelope: The envelope of the service.

    Raises:
        ConfigurationError: The key file would be one of them.
    """
    if not isinstance(provider, KeyFile):
        return
    names = (envelope.name, DataFolder(envelope.parent).database.name)
    for given in (provider.path, Path(realpath(provider.path))):
        is_own_name = given.name.lstrip(".").startswith(names)
        if is_own_name and realpath(given.parent) == realpath(envelope.parent):
            raise ConfigurationError(
                f"{provider.path} cannot be the key file: in {envelope.parent}, names that begin "
                f"with {' or '.join(names)} are those of the service's own files."
            )


def read_key(path: Path, slot_type: str) -> SecretBytes:
    """Return the 32 key bytes of a file.

    Args:
        path: The file; symbolic links are followed (Kubernetes mounts secrets through them).
        slot_type: ``key-file`` or ``container-secret``, which decides about the mode.

    Raises:
        KeyUnavailableError: The file is missing or may not be read.
        ConfigurationError: Others may read or write it, or it does not hold 32 bytes.
    """
    # One byte is read beyond the key, so that a longer file is refused and not cut.
    with read_secret(path, slot_type, KEY_BYTES + 1) as contents, contents.view as view:
        if len(view) != KEY_BYTES:
            size = f"{len(view)} bytes" if len(view) < KEY_BYTES else "more than 32 bytes"
            raise _wrong_length(path, size)
        return SecretBytes.copy_of(view)


def read_secret(path: Path, slot_type: str, limit: int) -> SecretBytes:
    """Return the first ``limit`` bytes of a file that is guarded as one with a key has to be.

    Args:
        path: The file; symbolic links are followed.
        slot_type: ``key-file`` or ``container-secret``, which decides about the mode.
        limit: The most bytes to read.

    Raises:
        KeyUnavailableError: The file is missing or may not be read.
        ConfigurationError: Others may read or write it, or it is empty.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyUnavailableError(
            f"The key file {path} is missing. Put a copy of it there, or open the envelope with "
            "the recovery phrase: `keys recover --to SOURCE`. SERVICE_KEY_SOURCE says where the "
            "service looks for its key."
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        _check_owner_and_mode(path, os.fstat(descriptor), slot_type)
        with SecretBytes(limit) as buffer, buffer.view as view:
            count = 0
            while count < len(view) and (read := os.readv(descriptor, [view[count:]])):
                count += read
            if count == 0:
                raise ConfigurationError(f"{path} is empty. Put the right file there.")
            with view[:count] as contents:
                return SecretBytes.copy_of(contents)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> KeyUnavailableError:
    return KeyUnavailableError(
        f"The key file {path} cannot be read: {error.strerror}. "
        "The user that runs the service must be able to read it."
    )


def _wrong_length(path: Path, size: str) -> ConfigurationError:
    return ConfigurationError(
        f"The key file {path} holds {size}; a key is exactly {KEY_BYTES} raw bytes, "
        "not text and with no line end. Put the right file there."
    )


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
        advice = f"Run: chown {os.geteuid()} {shlex.quote(str(path))}"
        if os.geteuid() == 0:  # which would lock the service out
            advice = f"Run the command as that user: sudo -u '#{status.st_uid}' COMMAND"
        raise ConfigurationError(
            f"The key file {path} belongs to user {status.st_uid}, and the service runs as "
            f"{os.geteuid()}. {advice}"
        )
