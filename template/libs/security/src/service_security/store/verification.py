"""Reads every record of a store and tells which are damaged."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import apsw

from ..errors import IntegrityError, StoreUnavailableError
from .current_keys import CurrentKeys
from .nonce import check_lease
from .reader import SELECT_PAGE
from .record import Row

_ROWS: Final = 256
_BY_POSITION: Final = "SELECT token, key_id, sealed FROM record WHERE id = ?"
_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that cannot be read.

    Attributes:
        position: As ``SecureDb.page`` gives it.
        token: What stands for its name on disk, in hexadecimal digits; empty if that is gone too.
    """

    position: int
    token: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of reading everything.

    Attributes:
        records: The number of records that are whole.
        damaged: Those that are not.
        problems: What else is wrong with the file, a sentence each.
    """

    records: int
    damaged: tuple[Damaged, ...]
    problems: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was found."""
        return not self.damaged and not self.problems


def verify(
    connection: apsw.Connection, keys: CurrentKeys, progress: Callable[[int, int], None]
) -> Verification:
    """Read every record, and let SQLite check the structure of the file.

    Args:
        connection: Inside a read transaction, so that it all belongs to one moment.
        keys: The keys of that moment.
        progress: Called now and then with the number of records read and the number of all.
    """
    problems = list(_structure(connection))
    rows = _rows_out_of_order(connection) if problems else _rows_in_order(connection)
    problems += _lease(connection)
    total = _count(connection)
    whole, damaged = 0, []
    for number, (position, token, row) in enumerate(rows, 1):
        if row is not None and _opens(row, keys):
            whole += 1
        else:
            damaged.append(Damaged(position, token.hex() if isinstance(token, bytes) else ""))
        if number % _ROWS == 0:
            progress(number, max(number, total))
    done = whole + len(damaged)
    progress(done, done)
    return Verification(whole, tuple(damaged), tuple(problems))


def _structure(connection: apsw.Connection) -> Iterator[str]:
    try:
        for (line,) in connection.execute(f"PRAGMA integrity_check({_PROBLEMS})"):
            if line != "ok":
                yield f"SQLite found: {line}"
    except apsw.CorruptError:
        yield "SQLite could not check the structure of the file: it is damaged."


def _lease(connection: apsw.Connection) -> Iterator[str]:
    try:
        start = connection.execute("SELECT next FROM lease WHERE id = 1").get
        if not isinstance(start, int):
            yield "The nonce lease is lost; the store can be read and no longer written."
        else:
            check_lease(start)
    except apsw.CorruptError:
        yield "The nonce lease cannot be read; the store can no longer be written."
    except StoreUnavailableError as error:
        yield str(error)


def _count(connection: apsw.Connection) -> int:
    try:
        number = connection.execute("SELECT count(*) FROM record").get
    except apsw.CorruptError:
        return 0
    return number if isinstance(number, int) else 0


def _rows_in_order(connection: apsw.Connection) -> Iterator[tuple[int, bytes, Row | None]]:
    position = 0
    while True:
        rows: Any = connection.execute(SELECT_PAGE, (position, _ROWS)).fetchall()
        if not rows:
            return
        for position, token, key_id, sealed in rows:
            yield position, token, Row(token, key_id, sealed)


def _rows_out_of_order(connection: apsw.Connection) -> Iterator[tuple[int, object, Row | None]]:
    """Yield what can be found in a file whose structure is damaged.

    A record is named twice in the file, in the table and in the index of its tokens. What either
    still names is looked up by its position; None stands for a row that is out of reach.
    """
    tokens: dict[int, object] = {}
    for source in ("NOT INDEXED", "INDEXED BY sqlite_autoindex_record_1"):
        with suppress(apsw.CorruptError):
            named: Any = connection.execute(f"SELECT id, token FROM record {source}")  # noqa: S608
            for position, token in named:
                if isinstance(position, int):
                    tokens[position] = token
    for position in sorted(tokens):
        row: Any = None
        with suppress(apsw.CorruptError):
            row = connection.execute(_BY_POSITION, (position,)).fetchone()
        yield position, tokens[position], row and Row(*row)


def _opens(row: Row, keys: CurrentKeys) -> bool:
    try:
        keys.record.open(*row)
    except IntegrityError:
        return False
    return True
