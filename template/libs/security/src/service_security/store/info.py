"""What can be told about a database: without its key, and what the key adds."""

from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import apsw

from ..errors import ConfigurationError
from ..keys.keyset import KeyPurpose, VersionKey
from ..progress import Progress
from ..secret_bytes import SecretBytes
from .cipher import CIPHERS
from .copying import count_rows
from .header import Header, HeaderKeys
from .kind import Kind, kind_of
from .row_pages import COUNT_PAGE
from .schema import FORMAT, check_tables, connect_to_read
from .sqlite_errors import translated

_STEP: Final = 250_000


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """What a file shows to anyone who can read it.

    Attributes:
        path: The database file.
        kind: What it holds.
        size: Of the file, in bytes.
        log_size: Of the write-ahead log beside it, in bytes.
        free: Bytes in the file that deleted records have left for new ones.
        format: Of an encrypted store.
        header: Of an encrypted store whose format this version reads.
        records: Their number; None where the file is damaged, or this version cannot read it.
        records_of_keys: The number of records by the id of the key that sealed them.
    """

    path: Path
    kind: Kind
    size: int
    log_size: int
    free: int
    format: int | None
    header: Header | None
    records: int | None
    records_of_keys: dict[int, int]


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key of a keyset, without the key.

    Attributes:
        key_id: Its number.
        state: In small letters, like ``active``.
        purpose: ``record`` or ``name index``.
        cipher: Name of the record cipher.
        primary: Whether new records are sealed with it.
        created: When it was made, UTC.
        since: When it came into its state, UTC.
    """

    key_id: int
    state: str
    purpose: str
    cipher: str | None
    primary: bool
    created: datetime
    since: datetime


def read_info(database: Path, progress: Progress) -> DatabaseInfo:
    """Look at a database, read-only, also while a service writes to it.

    Args:
        database: The file.
        progress: Told how many records were counted, if there are many.

    Raises:
        ConfigurationError: There is no database.
        IntegrityError: It is damaged, or is no database.
        StoreUnavailableError: It cannot be read.
    """
    kind = kind_of(database)
    if kind is Kind.NONE:
        raise ConfigurationError(
            f"{database} is {kind.value}. The service makes it when it first starts; --data-dir or "
            "SERVICE_DATA_DIR names its folder."
        )
    log = database.with_name(f"{database.name}-wal")
    with translated(database), closing(connect_to_read(database)[0]) as connection:
        connection.execute("BEGIN")  # one moment for all that follows
        found, header, records = None, None, None
        of_keys: dict[int, int] = {}
        if kind is Kind.PLAIN:
            records = count_rows(connection)
        if kind is Kind.ENCRYPTED:
            found = _format(connection)
            if found in (None, FORMAT):
                check_tables(connection, database)
                header = Header.read(connection)
                with suppress(apsw.CorruptError):  # the rest can be told all the same
                    of_keys = _records_of_keys(connection, progress)
                    records = sum(of_keys.values())
        return DatabaseInfo(
            database,
            kind,
            database.stat().st_size,
            log.stat().st_size if log.exists() else 0,
            int(connection.pragma("freelist_count")) * int(connection.pragma("page_size")),
            found,
            header,
            records,
            of_keys,
        )


def read_keys(header: Header, master_key: SecretBytes) -> list[KeyInfo]:
    """Return what the keyset of a database tells of its keys.

    Args:
        header: Out of ``read_info``.
        master_key: The master key of the service.

    Raises:
        WrongKeyError: The key is not the one of this database.
        IntegrityError: The header or the keyset is damaged.
        UnsupportedFormatError: Another version of the library wrote the keyset.
    """
    with closing(HeaderKeys.of(master_key, header.db_id)) as keys, keys.open(header) as keyset:
        return [
            _key_info(entry, primary=entry.key_id == keyset.primary_id)
            for entry in keyset.entries.values()
        ]


def _key_info(entry: VersionKey, *, primary: bool) -> KeyInfo:
    names = {cipher.code: cipher.name for cipher in CIPHERS.values()}
    return KeyInfo(
        entry.key_id,
        entry.state.name.lower(),
        entry.purpose.name.lower().replace("_", " "),
        names.get(entry.cipher) if entry.purpose is KeyPurpose.RECORD else None,
        primary,
        datetime.fromtimestamp(entry.created, UTC),
        datetime.fromtimestamp(entry.state_since, UTC),
    )


def _format(connection: apsw.Connection) -> int | None:
    try:
        found = connection.execute("SELECT format FROM header WHERE id = 1").get
    except apsw.SQLError:  # another version may name its columns otherwise
        return None
    return found if isinstance(found, int) else None


def _records_of_keys(connection: apsw.Connection, progress: Progress) -> dict[int, int]:
    total = connection.execute("SELECT count(*) FROM record").get
    counts: dict[int, int] = {}
    position = done = 0
    while True:
        rows: Any = connection.execute(COUNT_PAGE, (position, _STEP)).fetchall()
        if not rows:
            return counts
        if max(row[2] for row in rows) <= position:
            raise apsw.CorruptError("the records are not in order")
        for key_id, count, last in rows:
            counts[key_id] = counts.get(key_id, 0) + count
            position = max(position, last)
            done += count
        if isinstance(total, int) and total > _STEP:
            progress(done, total)
