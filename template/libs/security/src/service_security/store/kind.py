"""Which kind of database a file is: plain records, an encrypted store, or neither.

Both kinds have one name, ``records.db``, and are told apart by their tables.
"""

import stat
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import Final

import apsw

from .._files import exists
from ..errors import IntegrityError
from .schema import connect, tables_of
from .sqlite_errors import translated

PLAIN_TABLE: Final = (
    "CREATE TABLE records (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, value BLOB NOT NULL)"
)
"""The one table of a plain database, to the letter as the plain service creates it."""


class Kind(Enum):
    """What a database file holds; the value finishes the sentence "It is ..."."""

    NONE = "missing or empty"
    PLAIN = "plain records"
    ENCRYPTED = "an encrypted store"
    OTHER = "something else"


def kind_of(database: Path) -> Kind:
    """Tell what is in a database file, changing nothing but what a crash left to roll back.

    Raises:
        IntegrityError: It is damaged, no database, or only its log is there.
        StoreUnavailableError: It cannot be read.
        ConfigurationError: The path is not UTF-8.
    """
    with translated(database):
        refuse_lone_log(database)
        if not exists(database):
            return Kind.NONE
        status = database.stat()
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(
                f"{database} is no regular file, so that it holds no records. Put the database "
                "there, or take it away."
            )
        if status.st_size == 0:
            return Kind.NONE
        try:
            tables = _tables(database, apsw.SQLITE_OPEN_READONLY)
        except apsw.ReadOnlyError:  # a journal to roll back, which only a writer can do
            tables = _tables(database, apsw.SQLITE_OPEN_READWRITE)
    if "header" in tables:
        return Kind.ENCRYPTED
    return Kind.PLAIN if tables == {"records": PLAIN_TABLE} else Kind.OTHER


def refuse_lone_log(database: Path) -> None:
    """Refuse a log without its database: SQLite would play it into whatever comes next.

    Beside a database of no bytes SQLite would throw it away.

    Raises:
        IntegrityError: There is a ``-wal`` or ``-journal`` and no database, or one of no bytes.
        OSError: It cannot be told.
    """
    for suffix in ("-wal", "-journal"):
        log = database.with_name(database.name + suffix)
        if not exists(log) or not log.stat().st_size:
            continue
        if not exists(database) or database.stat().st_size == 0:
            is_empty = ", which is empty" if exists(database) else ""
            raise IntegrityError(
                f"{log} is there without {database}{is_empty}, and may hold records that are "
                "nowhere else. Put the database back beside it; remove the log only if you know it "
                "is worthless."
            )


def _tables(database: Path, flags: int) -> dict[str, str]:
    with closing(connect(database, flags)) as connection:
        return tables_of(connection)
