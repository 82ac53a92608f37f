"""Reads every record of a store and tells which are damaged."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import apsw

from ..errors import IntegrityError, StoreUnavailableError
from .current_keys import CurrentKeys
from .nonce import check_lease
from .record import Row
from .salvage import rows_out_of_order, structure_problems

_STEP: Final = 256
_ALL: Final = "SELECT id, token, key_id, sealed FROM record ORDER BY id"


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
    connection: apsw.Connection, keys: CurrentKeys
) -> Generator[tuple[int, int], None, Verification]:
    """Read every record, and let SQLite check the structure of the file.

    Args:
        connection: Inside a read transaction, so that it all belongs to one moment.
        keys: The keys of that moment.

    Yields:
        Now and then, the number of records read and the number of all.

    Returns:
        What was found.
    """
    problems = structure_problems(connection)
    rows = rows_out_of_order(connection) if problems else _rows_in_order(connection)
    problems += _lease(connection)
    total = _count(connection)
    whole, damaged = 0, []
    for number, (position, token, row) in enumerate(rows, 1):
        if row is not None and _opens(row, keys):
            whole += 1
        else:
            damaged.append(Damaged(position, token.hex() if isinstance(token, bytes) else ""))
        if number % _STEP == 0:
            yield number, max(number, total)
    done = whole + len(damaged)
    yield done, done
    return Verification(whole, tuple(damaged), tuple(problems))


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


def _rows_in_order(connection: apsw.Connection) -> Iterator[tuple[int, object, Row | None]]:
    rows: Any = connection.execute(_ALL)
    for position, token, key_id, sealed in rows:
        yield position, token, Row(token, key_id, sealed)


def _opens(row: Row, keys: CurrentKeys) -> bool:
    try:
        keys.record.open(*row)
    except IntegrityError:
        return False
    return True
