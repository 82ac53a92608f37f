"""Finds the databases under a master key, and seals their keysets under another one.

Only the header of a database changes: its records stay as they are. The header names the master
key, so whoever was interrupted looks there.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import apsw

from ..errors import ConfigurationError, IntegrityError, StoreUnavailableError, WrongKeyError
from ..keys.derivation import master_id
from ..layout import DataFolder
from ..secret_bytes import SecretBytes
from .header import Header, HeaderKeys
from .keys_lock import keys_held
from .kind import Kind, kind_of
from .schema import check_tables, connect, use_journal
from .sqlite_errors import translated

_MOVE: Final = (
    "UPDATE header SET master_id = ?, keyset_generation = ?, keyset = ?, mac = ?"
    " WHERE id = 1 AND keyset_generation = ? AND master_id = ?"
)
_ANOTHERS: Final = "under another master key"


def find_databases(
    folder: DataFolder, also: Collection[Path], masters: Iterable[SecretBytes]
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the databases under one of the keys, each proven, and the files that are not.

    Args:
        folder: A data folder, whose databases are all looked at.
        also: Databases elsewhere.
        masters: The master keys.

    Returns:
        The databases; and the others of the folder, with what they are.

    Raises:
        ConfigurationError: One that was named, and not merely found, is not under them.
        IntegrityError: The header of one that is under them is damaged.
        StoreUnavailableError: One cannot be written now.
        WrongKeyError: The service's database is under another master key.
    """
    by_id = {master_id(master): master for master in masters}
    databases: list[Path] = []
    left: list[tuple[Path, str]] = []
    known: set[Path] = set()
    found = sorted(path for path in folder.path.glob("*.db") if path.is_file())
    for path in (folder.database, *also, *found):
        if path.resolve() in known:
            continue
        known.add(path.resolve())
        reason = _reason_to_leave(path, by_id, named=path == folder.database or path in also)
        if not reason:
            databases.append(path)
        elif path in also:
            raise ConfigurationError(
                f"{path} is {reason}, and cannot be put under the new master key. Leave it out."
            )
        elif path == folder.database and reason == _ANOTHERS:
            raise WrongKeyError(
                f"{path} is {reason} than the one in {folder.envelope}. Put back the two "
                "that belong together."
            )
        elif reason != Kind.NONE.value:
            left.append((path, reason))
    return databases, left


def _reason_to_leave(path: Path, masters: Mapping[bytes, SecretBytes], *, named: bool) -> str:
    """Return what a file is that is under none of the keys; empty if it is under one."""
    try:
        kind = kind_of(path)
    except IntegrityError:
        if named:
            raise
        return "damaged, or no database"
    if kind is not Kind.ENCRYPTED:
        return str(kind.value)
    with keys_held(path), translated(path), closing(connect(path)) as connection:
        check_tables(connection, path)
        connection.execute("BEGIN IMMEDIATE")  # it can be written, and nobody else writes
        header = Header.read(connection)
        master = masters.get(header.master_id)
        if master is None:
            return _ANOTHERS
        with closing(HeaderKeys.of(master, header.db_id)) as keys:
            keys.open(header).close()
    return ""


def rewrap(database: Path, old: SecretBytes, new: SecretBytes) -> None:
    """Seal the keyset of a database under another master key, unless it is, and empty the log.

    Raises:
        IntegrityError: Its header is damaged.
        StoreUnavailableError: It cannot be written, or the log cannot be emptied.
        WrongKeyError: It is under neither key.
    """
    with (
        keys_held(database),
        translated(database),
        closing(connect(database)) as connection,
    ):
        use_journal(connection, database, "wal")
        connection.execute("BEGIN IMMEDIATE")
        header = Header.read(connection)
        if header.master_id != master_id(new):
            _move(connection, header, old, new)
        connection.execute("COMMIT")
        # What the log still has of the old header opens with the old master key.
        result: Any = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if result is None or result[0]:  # (busy, pages in the log, pages moved)
            raise StoreUnavailableError(
                f"The log of {database} could not be emptied while another process reads it. Stop "
                "that one, then run the command again; it goes on."
            )


def _move(connection: apsw.Connection, header: Header, old: SecretBytes, new: SecretBytes) -> None:
    with (
        closing(HeaderKeys.of(old, header.db_id)) as old_keys,
        closing(HeaderKeys.of(new, header.db_id)) as new_keys,
        old_keys.open(header) as keyset,
    ):
        keyset.generation += 1
        moved = new_keys.seal(keyset)
        connection.execute(
            _MOVE,
            (
                moved.master_id,
                moved.keyset_generation,
                moved.keyset,
                moved.mac,
                header.keyset_generation,
                header.master_id,
            ),
        )
        new_keys.open(Header.read(connection)).close()  # what is about to be committed
