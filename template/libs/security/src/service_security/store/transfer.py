"""Moves the records of a service between a plain SQLite file and an encrypted store.

A transfer fills a draft beside the database, compares the two in both directions, and lets the
draft take the name in one rename: at every moment the name holds one whole database of one kind.
The source is locked from before the first record is read until its bytes are overwritten, so no
write is lost on the way. An interrupted transfer is run again and goes on: the data is the
checkpoint. ``replacement`` has the names of what lies beside the database meanwhile.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from .._files import exists, held
from ..errors import (
    ConfigurationError,
    IntegrityError,
    UnsupportedFormatError,
    WrongKeyError,
)
from ..layout import DataFolder
from ..progress import Progress
from ..secret_bytes import SecretBytes
from .copying import check_encrypted, check_plain, count_rows, decrypt_all, encrypt_all
from .kind import PLAIN_TABLE, Kind, kind_of
from .other_kind import note_beside
from .replacement import (
    beside,
    discard,
    drop_replaced,
    is_private_file,
    is_the_same_file,
    publish,
)
from .schema import connect, use_journal
from .secure_db import SecureDb
from .sqlite_errors import translated


@dataclass(frozen=True, slots=True)
class Transferred:
    """What a transfer came to.

    Attributes:
        count: The number of records.
        old_file_remains: The old file has a second name (a hard link) and was not overwritten.
        cipher: The cipher of the encrypted store.
    """

    count: int
    old_file_remains: bool
    cipher: str


def import_records(
    folder: DataFolder, master_key: SecretBytes, *, cipher: str, progress: Progress
) -> Transferred:
    """Replace a plain database by an encrypted one of the same records.

    The plain file is overwritten with zeros, as far as the file system overwrites in place.

    Args:
        folder: The service's data folder. No service may be running on it.
        master_key: The key of the new store.
        cipher: The cipher of the new store.
        progress: Told after every batch.

    Raises:
        ConfigurationError: There are no plain records to import, or a row is not text and BLOB.
        StoreUnavailableError: A service uses the folder, or a file cannot be written. Run it
            again when that is mended.
        IntegrityError: Source and copy differ. The source is unchanged.
    """
    with _work_on(folder, Kind.PLAIN, Kind.ENCRYPTED) as (database, overwritten):
        if overwritten:
            with SecureDb.open(database, master_key) as store:
                return Transferred(store.count(), old_file_remains=False, cipher=store.cipher)
        discard(beside(database, "exporting"))
        draft = beside(database, "importing")
        with closing(_locked_plain(database)) as source:
            with closing(_encrypted_draft(draft, master_key, cipher)) as target:
                total = encrypt_all(source, target, progress)
                check_encrypted(source, target, total)
            return Transferred(total, publish(draft, database), cipher)


def export_records(
    folder: DataFolder, master_key: SecretBytes, *, progress: Progress
) -> Transferred:
    """Replace an encrypted database by a plain one of the same records.

    Args:
        folder: The service's data folder. No service may be running on it.
        master_key: The key of the store.
        progress: Told after every batch.

    Raises:
        ConfigurationError: There is no encrypted store, or a name in it is not text.
        StoreUnavailableError: A service uses the folder, or a file cannot be written. Run it
            again when that is mended.
        IntegrityError: A record is damaged, or source and copy differ. The source is unchanged.
        WrongKeyError: The key is not the one of the store.
    """
    with _work_on(folder, Kind.ENCRYPTED, Kind.PLAIN) as (database, overwritten):
        if overwritten:
            with closing(_locked_plain(database)) as plain:
                return Transferred(count_rows(plain), old_file_remains=False, cipher="")
        draft = beside(database, "exporting")
        try:
            with SecureDb.open(database, master_key) as source:
                source.hold()
                with closing(_plain_draft(draft)) as target:
                    total = decrypt_all(source, target, progress)
                    check_plain(source, target, total)
                result = Transferred(total, publish(draft, database), source.cipher)
        except Exception:
            discard(draft)  # it holds readable records; an interrupt leaves it, to go on with
            raise
        note_beside(database).unlink(missing_ok=True)
        return result


@contextmanager
def _work_on(folder: DataFolder, source: Kind, goal: Kind) -> Iterator[tuple[Path, bool]]:
    """Hold the folder, and yield the database and whether a stopped transfer was finished.

    Raises:
        ConfigurationError: There is no such folder, or the database is not of the kind ``source``.
        StoreUnavailableError: A service or another transfer uses the folder.
    """
    if sys.platform == "win32":
        raise ConfigurationError(
            "Windows lets no open file be replaced, so a transfer cannot be made safe there. Run "
            "it on Linux or macOS, or in a container."
        )
    database = folder.database
    if not folder.path.is_dir():
        raise ConfigurationError(
            f"There is no data folder {folder.path}. Name it with --data-dir or SERVICE_DATA_DIR."
        )
    if database.is_symlink():
        raise ConfigurationError(
            f"{database} is a symbolic link. Name the folder that holds the file itself."
        )
    with held(folder.path, wait=False), translated(database):
        kind = kind_of(database)
        was_stopped = _finish(database, kind is goal)
        if kind is not source and not (was_stopped and kind is goal):
            raise ConfigurationError(
                f"{database} is {kind.value}, and this command needs {source.value}. "
                "Nothing was changed."
            )
        yield database, kind is not source


def _finish(database: Path, renamed: bool) -> bool:
    """Finish a transfer that was stopped around its rename; return whether there was one.

    Args:
        database: The file with the name.
        renamed: Whether it is of the kind that the transfer leads to. Only then is the other file
            the old one; otherwise it may be the only copy of something.

    Raises:
        ConfigurationError: There is an old file, and it is not this command that left it.
    """
    replaced = beside(database, "replaced")
    if not exists(replaced):
        return False
    if is_the_same_file(replaced, database):
        replaced.unlink()
        return False
    if not renamed:
        raise ConfigurationError(
            f"{replaced} holds records of before, and this command did not leave it. Run the "
            "other of the two, db import or db export, to have it overwritten, or move it to "
            "another folder to keep it; nothing was changed."
        )
    drop_replaced(database)
    return True


def _locked_plain(database: Path) -> apsw.Connection:
    """Open a plain database that nobody else can read or write until it is closed."""
    connection = connect(database)
    try:
        use_journal(connection, database, "delete")
        connection.execute("BEGIN EXCLUSIVE")
    except BaseException:
        connection.close()
        raise
    return connection


def _encrypted_draft(draft: Path, master_key: SecretBytes, cipher: str) -> SecureDb:
    """Open the draft of an earlier attempt if it is of use, and begin a new one otherwise."""
    if is_private_file(draft):
        try:
            store = SecureDb.open(draft, master_key, cipher=cipher)
        except (WrongKeyError, IntegrityError, UnsupportedFormatError):
            pass
        else:
            if store.cipher == cipher:
                return store
            store.close()
    discard(draft)
    return SecureDb.open(draft, master_key, cipher=cipher)


def _plain_draft(draft: Path) -> apsw.Connection:
    try:
        usable = is_private_file(draft) and kind_of(draft) is Kind.PLAIN
    except IntegrityError:
        usable = False
    if not usable:
        discard(draft)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = connect(draft)
    use_journal(connection, draft, "delete")
    if not usable:
        connection.execute(PLAIN_TABLE)
    return connection
