"""Moves the records of a service between a plain SQLite file and an encrypted store.

A transfer fills a draft beside the database, compares the two in both directions, and lets the
draft take the name in one rename: at every moment the name holds one whole database of one kind.
The source is locked from before the first record is read until its bytes are overwritten, so no
write is lost on the way. An interrupted transfer is run again and goes on: the data is the
checkpoint. ``replacement`` has the names of what lies beside the database meanwhile.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw

from .._files import exists, held
from ..errors import (
    ConfigurationError,
    IntegrityError,
    UnsupportedFormatError,
    WrongKeyError,
)
from ..layout import DataFolder
from ..secret_bytes import SecretBytes
from .kind import PLAIN_TABLE, Kind, kind_of
from .record import MAX_NAME_BYTES, MAX_VALUE_BYTES
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

_COMMAND: Final = "uv run python -m service_security"
_BATCH_RECORDS: Final = 500
_BATCH_BYTES: Final = 4 * 1024 * 1024

Progress = Callable[[int, int], None]
"""Called with the number of records done and the number of all."""


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


def refuse_other_kind(database: Path, *, cipher: str, key_file: Path) -> None:
    """Refuse to start on plain records, and name the command that imports them.

    Args:
        database: The file that the service is about to open.
        cipher: The cipher that the command is to use.
        key_file: Where the service's key file belongs.

    Raises:
        ConfigurationError: The file holds plain records, or a stopped transfer left some beside it.
        IntegrityError: It is damaged or no database.
        StoreUnavailableError: It cannot be read.
    """
    folders = f"--data-dir {shlex.quote(str(database.parent))}"
    folders += f" --key-file {shlex.quote(str(key_file))}"
    if kind_of(database) is Kind.PLAIN:
        first = f"{_COMMAND} init {folders} && "
        raise ConfigurationError(
            f"{database} holds records that are not encrypted. Nothing was changed. Stop every "
            "service that uses it, then import them with: "
            f"{'' if exists(DataFolder(database.parent).envelope) else first}"
            f"{_COMMAND} db import {folders} --cipher {cipher}"
        )
    with translated(database):
        replaced = beside(database, "replaced")
        if exists(replaced) and not is_the_same_file(replaced, database):
            raise ConfigurationError(
                f"{replaced} still holds the records of before. To have it overwritten, run "
                f"again: {_COMMAND} db import {folders} --cipher {cipher}"
            )
        if exists(beside(database, "exporting")):
            raise ConfigurationError(
                f"{beside(database, 'exporting')} holds readable records of an export that was "
                "stopped. Delete it, or go on with: "
                f"{_COMMAND} db export {folders}"
            )


def leave_note(database: Path) -> None:
    """Leave a text file beside the database that says what it is and how to get the records out.

    A service without this library that finds the database shows it to its user.
    """
    folder = shlex.quote(str(database.parent))
    text = (
        f"{database.name} is an encrypted database. It opens with envelope.json beside it and "
        "the service's key file.\n"
        "To take the records out for a service that does not encrypt them, run this in the "
        "version of the service that wrote them:\n"
        f"{_COMMAND} db export --data-dir {folder}\n"
    )
    with translated(database), suppress(FileExistsError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(_note(database), flags, 0o600), "w") as note:  # noqa: PTH123
            note.write(text)


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
            total = _count(source)
            with closing(_encrypted_draft(draft, master_key, cipher)) as target:
                _encrypt_all(source, target, lambda done: progress(done, total))
                _check_encrypted(source, target, total)
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
                return Transferred(_count(plain), old_file_remains=False, cipher="")
        draft = beside(database, "exporting")
        try:
            with SecureDb.open(database, master_key) as source:
                source.hold()
                with closing(_plain_draft(draft)) as target:
                    total = _decrypt_all(source, target, progress)
                    _check_plain(source, target, total)
                result = Transferred(total, publish(draft, database), source.cipher)
        except Exception:
            discard(draft)  # it holds readable records; an interrupt leaves it, to go on with
            raise
        _note(database).unlink(missing_ok=True)
        return result


# Records


def _encrypt_all(
    source: apsw.Connection, target: SecureDb, progress: Callable[[int], None]
) -> None:
    done = 0
    for batch in _batches(_plain_rows(source)):
        target.insert_many((name, value) for name, value in batch if target.get(name) != value)
        done += len(batch)
        progress(done)


def _plain_rows(source: apsw.Connection) -> Iterator[tuple[bytes, bytes]]:
    rows: Any = source.execute("SELECT id, name, value FROM records ORDER BY id")
    for position, name, value in rows:
        # SQLite keeps any type in any column of such a table.
        encoded = name.encode() if type(name) is str else b""
        if type(name) is not str or type(value) is not bytes or len(encoded) > MAX_NAME_BYTES:
            raise ConfigurationError(
                f"Row {position} of the plain records is not a text name and a BLOB value, as the "
                "service writes them. Correct it, then run the command again; nothing was changed."
            )
        if len(value) > MAX_VALUE_BYTES:
            raise ConfigurationError(
                f"The value of row {position} is larger than {MAX_VALUE_BYTES} bytes. "
                "Nothing was changed."
            )
        yield encoded, value


def _check_encrypted(source: apsw.Connection, target: SecureDb, total: int) -> None:
    """Compare the other way round; what an earlier attempt left over is removed."""
    left_over, count = [], 0
    for name, value in target.items():
        row = source.execute("SELECT value FROM records WHERE name = ?", (_text(name),)).fetchone()
        if row is not None and row[0] == value:
            count += 1
        else:
            left_over.append(name)
    for name in left_over:
        target.remove(name)
    _refuse_difference(count, total)


def _decrypt_all(source: SecureDb, target: apsw.Connection, progress: Progress) -> int:
    done, total = 0, source.count()
    for batch in _batches(source.items()):
        with target:
            for name, value in batch:
                target.execute(
                    "INSERT INTO records (name, value) VALUES (?, ?) ON CONFLICT (name)"
                    " DO UPDATE SET value = excluded.value WHERE value IS NOT excluded.value",
                    (_text(name), value),
                )
        done += len(batch)
        progress(done, total)
    return done


def _check_plain(source: SecureDb, target: apsw.Connection, total: int) -> None:
    left_over, count = [], 0
    rows: Any = target.execute("SELECT id, name, value FROM records")
    for position, name, value in rows:
        if source.get(name.encode()) == value:
            count += 1
        else:
            left_over.append((position,))
    with target:
        target.executemany("DELETE FROM records WHERE id = ?", left_over)
    _refuse_difference(count, total)


def _batches(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield pairs in lists that are bounded in number and in memory."""
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for name, value in pairs:
        batch.append((name, value))
        size += len(name) + len(value)
        if len(batch) >= _BATCH_RECORDS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _refuse_difference(count: int, total: int) -> None:
    if count != total:
        raise IntegrityError(
            f"Of {total} records {count} arrived unchanged. The source was left as it is; check "
            "the disk, then run the command again."
        )


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(
            "The store holds a record whose name is not UTF-8 text. A plain database of this "
            "service has text names only; nothing was changed."
        ) from None


def _count(plain: apsw.Connection) -> int:
    number = plain.execute("SELECT count(*) FROM records").get
    return number if isinstance(number, int) else 0


# Files


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


def _note(database: Path) -> Path:
    return beside(database, "README.txt")
