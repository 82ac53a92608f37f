"""The file of a backup: how it comes to be, and how it is read. ``backup_stream`` has its bytes."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from .._files import publish_new, sync_folder
from ..errors import (
    ConfigurationError,
    IntegrityError,
    UnsupportedFormatError,
    WrongKeyError,
)
from ..secret_bytes import SecretBytes
from .backup_header import BackupHeader
from .backup_stream import SEALED_CHUNK_BYTES, ChunkCipher, count_at_end, open_records
from .sqlite_errors import translated

Record = tuple[bytes, bytes]
"""Name and value."""


@contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the name ``target`` at the end of the block, or is removed.

    Raises:
        ConfigurationError: The name was taken meanwhile.
        StoreUnavailableError: The file cannot be written.
    """
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with translated(target):
        file = open(os.open(draft, flags, 0o600), "wb")  # noqa: PTH123, SIM115 - a descriptor
    try:
        yield file
        with translated(target):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            if not _publish(draft, target):
                raise taken(target)
    finally:
        with suppress(OSError):  # on a full disk, closing fails once more
            file.close()
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _publish(draft: Path, target: Path) -> bool:
    try:
        return publish_new(draft, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
    # There are no hard links on FAT and some network folders. An empty file takes the name, and
    # only that one is replaced; left behind by a crash in between, it is refused as no backup.
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    draft.replace(target)
    sync_folder(target.parent)
    return True


class BackupFile:
    """A backup that is open for reading. ``open_backup`` makes one.

    Args:
        path: Its name, for messages.
        file: The file, at the first chunk.
        cipher: Of its chunks.

    Attributes:
        count: The number of records, as the end of the file tells it.
    """

    def __init__(self, path: Path, file: BinaryIO, cipher: ChunkCipher) -> None:
        self.path: Final = path
        self._file = file
        self._cipher = cipher
        self._start = file.tell()
        with _named(path):
            size = os.fstat(file.fileno()).st_size - self._start
            self.count: Final = count_at_end(cipher, size, self._read_chunk)

    def records(self) -> Iterator[Record]:
        """Yield all records. The backup is whole only when this ends without an error.

        Raises:
            IntegrityError: It is damaged, from the next record on.
            StoreUnavailableError: It cannot be read.
        """
        with _named(self.path):
            self._file.seek(self._start)
            yield from open_records(self._cipher, self._file.read)

    def _read_chunk(self, number: int) -> bytes:
        self._file.seek(self._start + number * SEALED_CHUNK_BYTES)
        return self._file.read(SEALED_CHUNK_BYTES)


@contextmanager
def open_backup(path: Path, keys: Mapping[str, SecretBytes]) -> Iterator[BackupFile]:
    """Open a backup for the block, with a key that was checked.

    Args:
        path: The file.
        keys: Keys to try, by type of slot.

    Raises:
        WrongKeyError: None of the keys opens it.
        IntegrityError: Its front or its end is damaged or missing, or it is no backup.
        UnsupportedFormatError: Another version of the library wrote it.
        ConfigurationError: It is not a regular file.
        StoreUnavailableError: It cannot be read.
    """

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a pipe would wait for its writer

    with translated(path):
        file = open(path, "rb", opener=open_at_once)  # noqa: SIM115 - closed below
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigurationError(f"{path} is not a regular file. A backup is read from one.")
        with _named(path):
            cipher = ChunkCipher.read(BackupHeader.read(file.read), keys, file.read)
        with cipher:
            yield BackupFile(path, file, cipher)


def taken(path: Path) -> ConfigurationError:
    """Return the error for a name that is not free."""
    return ConfigurationError(
        f"{path} is there already, and is not replaced. Name another file, or move this one away."
    )


@contextmanager
def _named(backup: Path) -> Iterator[None]:
    """Put the backup's name before the sentences about its bytes."""
    try:
        with translated(backup):
            yield
    except (IntegrityError, WrongKeyError, UnsupportedFormatError) as error:
        raise type(error)(f"The backup {backup} cannot be used. {error}") from None
