"""Backups: every record of one moment in one encrypted file, and a new database out of it.

``backup_file`` has the file, ``backup_stream`` its bytes. A backup has a random key of its own,
which opens with any of the keys it was written for; one of them must be other than the master key,
so that the records survive the loss of the envelope. A backup and a restored database appear whole
or not at all, and neither ever replaces a file::

    .<target>.<random>             a backup that is being written
    <database>.restoring-<random>  a database that is being restored; the next run removes it

A killed process leaves such a draft. It shows nothing without the keys.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Self

import apsw

from .._files import exists, held, publish_new
from ..errors import (
    ConfigurationError,
    IntegrityError,
    StoreUnavailableError,
)
from ..keys.service_keys import MASTER
from ..progress import Progress
from ..secret_bytes import SecretBytes
from .backup_file import BackupFile, Record, new_file, open_backup, taken
from .backup_stream import seal_records
from .batches import BATCH_RECORDS, batches
from .kind import refuse_lone_log
from .secure_db import SecureDb
from .sqlite_errors import translated


def write_backup(
    store: SecureDb,
    target: Path,
    keys: Mapping[str, SecretBytes],
    *,
    progress: Progress,
    on_damage: Callable[[int], None] | None = None,
) -> int:
    """Write every record of this moment to a new file; return their number.

    Others may go on reading and writing the store.

    Args:
        store: What to back up.
        target: The file to make, mode 0600. It appears when it is whole and on the disk.
        keys: What is to open it, by type of slot: ``master``, ``recovery``, and those of
            ``RAW_TYPES``; one other than ``master`` at least.
        progress: Told after every 500 records.
        on_damage: Called with the position of each damaged record, which is then left out.
            Without it a damaged record stops the backup.

    Raises:
        ConfigurationError: There is a file of that name, or only the master key would open it.
        IntegrityError: A record is damaged, and nobody was there to be told. There is no file.
        StoreUnavailableError: The store cannot be read, or the file cannot be written.
    """
    if not keys.keys() - {MASTER}:
        raise ConfigurationError(
            "A backup that opens with the master key only is lost together with the envelope, "
            "which has the master key. Make a recovery phrase: keys recovery-phrase."
        )
    with translated(target):
        if exists(target):
            raise taken(target)
    written = 0

    def counted(records: Iterable[Record], total: int) -> Iterator[Record]:
        nonlocal written
        for record in records:
            yield record
            written += 1
            if written % BATCH_RECORDS == 0 and written < total:
                progress(written, total)
        if total:
            progress(total, total)  # of which the damaged ones were left out

    moment = nullcontext(store) if store.is_snapshot else store.snapshot()
    with moment as snapshot, new_file(target) as file:
        records = counted(snapshot.items(on_damage=on_damage), _count(snapshot, on_damage))
        with closing(seal_records(records, keys)) as stream:
            for piece in stream:
                with translated(target):
                    file.write(piece)
    return written


def _count(store: SecureDb, on_damage: Callable[[int], None] | None) -> int:
    try:
        return store.count()
    except IntegrityError:  # a page that is needed for counting is damaged
        if on_damage is None:
            raise
        return 0


def check_backup(source: Path, keys: Mapping[str, SecretBytes], *, progress: Progress) -> int:
    """Read a whole backup as a restore would, and write nothing; return the number of records.

    Remembers 16 bytes of each name, in about 30 bytes of memory.

    Args:
        source: The file.
        keys: Keys to try, by type of slot.
        progress: Told after every batch of records.

    Raises:
        WrongKeyError: None of the keys opens it.
        IntegrityError: It is damaged or incomplete, or is no backup.
        UnsupportedFormatError: Another version of the library wrote it.
        ConfigurationError: It is not a regular file.
        StoreUnavailableError: It cannot be read.
    """
    with open_backup(source, keys) as backup, _Names() as names:
        done = 0
        for batch in batches(backup.records()):
            if not names.are_new(name for name, _ in batch):
                raise _has_a_name_twice(source)
            done += len(batch)
            progress(done, backup.count)
        return done


def restore_backup(
    source: Path,
    keys: Mapping[str, SecretBytes],
    database: Path,
    master_key: SecretBytes,
    *,
    cipher: str,
    clock: Callable[[], float] = time.time,
    progress: Progress,
) -> int:
    """Make a new database out of a backup; return the number of records.

    It has an identifier and keys of its own, so that its nonces cannot meet those of the database
    that was backed up, even where both are written to. It takes its name when the last byte of the
    backup is verified and all records are on the disk.

    Args:
        source: The backup.
        keys: Keys to try on the backup, by type of slot.
        database: The file to make. No service may be running on its folder.
        master_key: The key of the new database.
        cipher: The cipher of the new database.
        clock: Gives Unix seconds, for the dates in the keyset.
        progress: Told after every batch of records.

    Raises:
        ConfigurationError: There is a file of that name, or there is no such cipher.
        WrongKeyError: None of the keys opens the backup.
        IntegrityError: The backup is damaged or incomplete, or is no backup; or there is a log
            without its database. There is no database.
        UnsupportedFormatError: Another version of the library wrote the backup.
        StoreUnavailableError: A service uses the folder, or a file cannot be read or written.
    """
    with (
        held(database.parent, wait=False),
        _draft_database(database) as draft,
        open_backup(source, keys) as backup,
    ):
        with SecureDb.open(draft, master_key, cipher=cipher, clock=clock) as store:
            count = _fill(store, backup, progress)
            store.flush()
        _publish(draft, database)
        return count


def _fill(store: SecureDb, backup: BackupFile, progress: Progress) -> int:
    done = 0
    for batch in batches(backup.records()):
        store.insert_many(batch)
        done += len(batch)
        progress(done, backup.count)
    if store.count() != done:
        raise _has_a_name_twice(backup.path)
    return done


def _publish(draft: Path, database: Path) -> None:
    with translated(database):
        if any(exists(draft.with_name(draft.name + suffix)) for suffix in ("-wal", "-journal")):
            raise StoreUnavailableError(
                f"Another process has {draft} open. Stop it, then restore again."
            )
        if not publish_new(draft, database):
            raise taken(database)


class _Names:
    """Notices a name that comes twice. SQLite's table takes a third of what a set would."""

    def __init__(self) -> None:
        self._connection = apsw.Connection(":memory:")
        self._connection.execute("CREATE TABLE seen (name BLOB PRIMARY KEY) WITHOUT ROWID")

    def are_new(self, names: Iterable[bytes]) -> bool:
        """Remember names; return False if one of them came before."""
        try:
            with self._connection:
                self._connection.executemany(
                    "INSERT INTO seen VALUES (?)",
                    ((hashlib.sha256(name).digest()[:16],) for name in names),
                )
        except apsw.ConstraintError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@contextmanager
def _draft_database(database: Path) -> Iterator[Path]:
    """Yield the name of a draft, and remove what has it at the end of the block.

    The caller holds the folder, so that drafts which are there were left by a process that died.

    Raises:
        ConfigurationError: The database's name is taken.
        IntegrityError: There is a log without a database.
        StoreUnavailableError: The folder cannot be read or written.
    """
    with translated(database):
        _remove_drafts(database)
        refuse_lone_log(database)
        if exists(database):
            raise taken(database)
    try:
        yield database.with_name(f"{database.name}.restoring-{secrets.token_hex(8)}")
    finally:
        with suppress(OSError):
            _remove_drafts(database)


def _remove_drafts(database: Path) -> None:
    """Remove drafts of the database, their logs, and what SecureDb was making them from."""
    draft = re.compile(
        rf"\.?{re.escape(database.name)}\.restoring-[0-9a-f]{{16}}(\.[0-9a-f]{{16}})?"
        r"(-journal|-wal|-shm)?"
    )
    for path in list(database.parent.iterdir()):
        if draft.fullmatch(path.name):
            path.unlink()


def _has_a_name_twice(backup: Path) -> IntegrityError:
    return IntegrityError(f"The backup {backup} has a name twice. Use another one.")
