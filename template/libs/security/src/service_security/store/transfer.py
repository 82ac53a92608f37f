"""Moves the records of a service between a plain SQLite file and an encrypted store.

Both kinds have one name, ``records.db``, and are told apart by their tables. A transfer fills a
file beside it, compares the two in both directions, and lets the new one take the name in one
rename: at every moment the name holds one whole database of one kind. An interrupted transfer is
run again and goes on with what is there; the data is the checkpoint.

The plain table is ``records (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, value BLOB NOT
NULL)``.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Final

import apsw

from .._files import create_whole, sync_folder
from ..errors import ConfigurationError, IntegrityError, StoreUnavailableError
from ..layout import DataFolder
from ..secret_bytes import SecretBytes
from .schema import connect, use_journal
from .secure_db import SecureDb
from .sqlite_errors import translated

PLAIN_TABLE: Final = (
    "CREATE TABLE records (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, value BLOB NOT NULL)"
)
_BATCH: Final = 500
_WIPE_BLOCK: Final = 1024 * 1024

Progress = Callable[[int, int], None]
"""Called with the number of records done and the number of all."""


class Kind(Enum):
    """What a database file holds."""

    NONE = "no file"
    PLAIN = "plain records"
    ENCRYPTED = "an encrypted store"
    OTHER = "something else"


def kind_of(database: Path) -> Kind:
    """Tell what is in a database file, without changing it.

    Raises:
        IntegrityError: It is damaged or no database.
        StoreUnavailableError: It cannot be read.
    """
    if not os.path.lexists(database):
        return Kind.NONE
    with translated(database):
        flags = apsw.SQLITE_OPEN_READONLY
        with closing(apsw.Connection(os.fspath(database), flags=flags)) as connection:
            found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            tables = {name for (name,) in found}
    if "header" in tables:
        return Kind.ENCRYPTED
    return Kind.PLAIN if "records" in tables else Kind.OTHER


def refuse_other_kind(database: Path, *, cipher: str) -> None:
    """Refuse to start on plain records, and name the command that imports them.

    Args:
        database: The file that the service is about to open.
        cipher: The cipher that the command is to use.

    Raises:
        ConfigurationError: The file holds plain records.
        IntegrityError: It is damaged or no database.
        StoreUnavailableError: It cannot be read.
    """
    if kind_of(database) is Kind.PLAIN:
        raise ConfigurationError(
            f"{database} holds records that are not encrypted. Nothing was changed. Stop every "
            "service that uses it, then import them with: python -m service_security db import "
            f"--data-dir {shlex.quote(str(database.parent))} --cipher {cipher}"
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
        f"python -m service_security db export --data-dir {folder}\n"
    )
    create_whole(_note(database), text.encode())


def import_records(
    folder: DataFolder,
    master_key: SecretBytes,
    *,
    cipher: str,
    progress: Progress,
) -> int:
    """Replace a plain database by an encrypted one of the same records.

    The plain file is overwritten with zeros after it has lost its name, as far as the file
    system overwrites in place.

    Args:
        folder: The service's data folder. No service may be running on it.
        master_key: The key of the new store.
        cipher: The cipher of the new store.
        progress: Told after every batch.

    Returns:
        The number of records.

    Raises:
        ConfigurationError: There are no plain records to import.
        StoreUnavailableError: A service uses the folder, or a file cannot be written. Run it
            again when that is mended.
        IntegrityError: Source and copy differ. The source is unchanged.
    """
    with _alone_in(folder):
        _expect(folder.database, Kind.PLAIN)
        draft = folder.database.with_name(folder.database.name + ".importing")
        with translated(folder.database), closing(_rollback_mode(folder.database)) as source:
            source.execute("BEGIN EXCLUSIVE")
            total = _count(source)
            with SecureDb.open(draft, master_key, cipher=cipher) as target:
                _encrypt_all(source, target, lambda done: progress(done, total))
                _check_encrypted(source, target, total)
        _publish(draft, folder.database)
        return total


def export_records(folder: DataFolder, master_key: SecretBytes, *, progress: Progress) -> int:
    """Replace an encrypted database by a plain one of the same records.

    Args:
        folder: The service's data folder. No service may be running on it.
        master_key: The key of the store.
        progress: Told after every batch.

    Returns:
        The number of records.

    Raises:
        ConfigurationError: There is no encrypted store, or a name in it is not text.
        StoreUnavailableError: A service uses the folder, or a file cannot be written. Run it
            again when that is mended.
        IntegrityError: A record is damaged, or source and copy differ. The source is unchanged.
        WrongKeyError: The key is not the one of the store.
    """
    with _alone_in(folder):
        _expect(folder.database, Kind.ENCRYPTED)
        draft = folder.database.with_name(folder.database.name + ".exporting")
        with translated(folder.database):
            # Leaving WAL mode succeeds only if nobody else has the file open, in any program.
            _rollback_mode(folder.database).close()
        with (
            SecureDb.open(folder.database, master_key) as source,
            translated(draft),
            closing(_new_plain(draft)) as target,
        ):
            total = _decrypt_all(source, target, progress)
            _check_plain(source, target, total)
        _publish(draft, folder.database)
        _note(folder.database).unlink(missing_ok=True)
        return total


def _encrypt_all(
    source: apsw.Connection, target: SecureDb, progress: Callable[[int], None]
) -> None:
    done = position = 0
    while True:
        rows: Any = source.execute(
            "SELECT id, name, value FROM records WHERE id > ? ORDER BY id LIMIT ?",
            (position, _BATCH),
        ).fetchall()
        if not rows:
            return
        position = rows[-1][0]
        pairs = [(name.encode(), bytes(value)) for _, name, value in rows]
        target.insert_many((name, value) for name, value in pairs if target.get(name) != value)
        done += len(rows)
        progress(done)


def _check_encrypted(source: apsw.Connection, target: SecureDb, total: int) -> None:
    """Compare the other way round; what an earlier attempt left over is removed."""
    left_over, count = [], 0
    for name, value in target.items():
        row = source.execute(
            "SELECT value FROM records WHERE name = ?", (name.decode(),)
        ).fetchone()
        if row is not None and bytes(row[0]) == value:
            count += 1
        else:
            left_over.append(name)
    for name in left_over:
        target.remove(name)
    _refuse_difference(count, total)


def _decrypt_all(source: SecureDb, target: apsw.Connection, progress: Progress) -> int:
    done, position = 0, 0
    total = source.count()
    while page := source.page(position, _BATCH):
        with target:
            for position, name, value in page:  # noqa: B007 - the last position is used above
                target.execute(
                    "INSERT INTO records (name, value) VALUES (?, ?) ON CONFLICT (name)"
                    " DO UPDATE SET value = excluded.value WHERE value IS NOT excluded.value",
                    (_text(name), value),
                )
        done += len(page)
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


def _rollback_mode(database: Path) -> apsw.Connection:
    connection = connect(database)
    try:
        use_journal(connection, database, "delete")
    except BaseException:
        connection.close()
        raise
    return connection


def _new_plain(draft: Path) -> apsw.Connection:
    create_whole(draft, b"")
    connection = _rollback_mode(draft)
    if not connection.execute("SELECT 1 FROM sqlite_schema").fetchall():
        connection.execute(PLAIN_TABLE)
    return connection


def _count(plain: apsw.Connection) -> int:
    number = plain.execute("SELECT count(*) FROM records").get
    return number if isinstance(number, int) else 0


def _expect(database: Path, kind: Kind) -> None:
    found = kind_of(database)
    if found is not kind:
        raise ConfigurationError(
            f"{database} is {found.value}, and this command needs {kind.value}. "
            "Nothing was changed."
        )


def _publish(draft: Path, database: Path) -> None:
    """Let the finished draft take the name, and wipe the file that had it."""
    for path in (draft, database):
        for suffix in ("-journal", "-wal"):
            if path.with_name(path.name + suffix).exists():
                raise StoreUnavailableError(
                    f"Another process has {path} open. Stop it, then run the command again."
                )
    with open(database, "r+b", buffering=0) as old:  # noqa: PTH123 - raw, unbuffered
        size = os.fstat(old.fileno()).st_size
        draft.replace(database)
        sync_folder(database.parent)
        # The old bytes stay on the device until something else is written there. A file that has
        # another name, such as a backup by hard link, is left alone.
        if sys.platform != "win32" and os.fstat(old.fileno()).st_nlink == 0:
            for start in range(0, size, _WIPE_BLOCK):
                old.write(bytes(min(_WIPE_BLOCK, size - start)))
            os.fsync(old.fileno())


@contextmanager
def _alone_in(folder: DataFolder) -> Iterator[None]:
    """Hold the data folder exclusively; a running service holds it shared (flock).

    Raises:
        ConfigurationError: There is no such folder.
        StoreUnavailableError: A service or another transfer uses it.
    """
    if not folder.path.is_dir():
        raise ConfigurationError(
            f"There is no data folder {folder.path}. Name it with --data-dir or SERVICE_DATA_DIR."
        )
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreUnavailableError(
                f"The data folder {folder.path} is in use. Stop the service that runs on it, "
                "then run the command again."
            ) from None
        yield
    finally:
        os.close(descriptor)


def _note(database: Path) -> Path:
    return database.with_name(database.name + ".README.txt")
