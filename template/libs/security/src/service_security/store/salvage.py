"""Finds every row that a damaged file still names.

A row is named twice: in the table, in the order of its position, and in the index of the tokens.
A page of either may be unreadable, or be another page, and then SQLite stops there. So the table is
walked over such places, and what only the index still names is looked up one by one.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any, Final

import apsw

from .record import Row

_DAMAGE: Final = (apsw.CorruptError, UnicodeDecodeError)
"""What reading a damaged page raises."""

_Fetch = Callable[[int, int], list[Any]]
"""Gives rows from a number on, in its order, at most so many; the number is their first column."""

_PROBLEMS: Final = 20
_PAGE: Final = 256
_NEAR: Final = 4096
"""Steps of equal length, which jump over no sound page: more than one lost page asks for."""
_TOKEN_BYTES: Final = 16
_POSITIONS: Final = 2**63
_TOKENS: Final = 2 ** (8 * _TOKEN_BYTES)
_AT_POSITION: Final = "SELECT token, key_id, sealed FROM record NOT INDEXED WHERE id = ?"
_IN_TABLE: Final = "SELECT id, token FROM record NOT INDEXED WHERE id >= ? ORDER BY id LIMIT ?"
_IN_INDEX: Final = (
    "SELECT token, id FROM record INDEXED BY sqlite_autoindex_record_1"
    " WHERE token >= ? ORDER BY token LIMIT ?"
)


def structure_problems(connection: apsw.Connection) -> list[str]:
    """Let SQLite check the structure of the file; return a sentence about each fault it finds."""
    problems = []
    try:
        for (line,) in connection.execute(f"PRAGMA integrity_check({_PROBLEMS})"):
            if line != "ok":
                problems.append(f"SQLite found: {' '.join(str(line).split())}")
    except apsw.CorruptError:
        problems.append("SQLite could not check the structure of the file: it is damaged.")
    return problems


def rows_out_of_order(connection: apsw.Connection) -> Iterator[tuple[int, object, Row | None]]:
    """Yield position, token and row of every record that the table or the index names.

    The row is None where it is out of reach. The order is that of the positions, but for those that
    only the index names: they come last.
    """

    def in_table(start: int, limit: int) -> list[Any]:
        return connection.execute(_IN_TABLE, (start, limit)).fetchall()

    def in_index(start: int, limit: int) -> list[Any]:
        key = start.to_bytes(_TOKEN_BYTES)
        rows: list[Any] = connection.execute(_IN_INDEX, (key, limit)).fetchall()
        if not all(isinstance(row[0], bytes) and len(row[0]) == _TOKEN_BYTES for row in rows):
            raise apsw.CorruptError
        return [(int.from_bytes(token), token, position) for token, position in rows]

    seen = _Positions()
    for position, token in _over_gaps(in_table, _POSITIONS, first_step=1):
        seen.add(position)
        yield position, token, _row_at(connection, position, token)
    # The tokens are spread evenly, and a leaf of the index has its share of them. Steps of less
    # than that do not jump over a leaf that can be read; of six pages at most one is such a leaf.
    step = _TOKENS // (2 * connection.pragma("page_count"))
    for _, token, position in _over_gaps(in_index, _TOKENS, first_step=step):
        if isinstance(position, int) and position > 0 and position not in seen:
            seen.add(position)
            yield position, token, _row_at(connection, position, token)


def _row_at(connection: apsw.Connection, position: int, token: object) -> Row | None:
    row: Any = None
    with suppress(*_DAMAGE):
        row = connection.execute(_AT_POSITION, (position,)).fetchone()
    return Row(*row) if row and row[0] == token else None


def _over_gaps(fetch: _Fetch, end: int, first_step: int) -> Iterator[Any]:
    """Yield rows in the order of their numbers, leaving out what cannot be read.

    A number that is not above the one before stands on a page of another place. SQLite sees no
    error in that, and whoever goes on from there may go round in circles.
    """
    start, limit = 1, _PAGE
    while start < end:
        rows = None
        with suppress(*_DAMAGE):
            rows = fetch(start, limit)
        if rows == []:
            return
        in_order = list(_rising(start, rows or []))
        if in_order:
            yield from in_order
            start = in_order[-1][0] + 1
        elif limit > 1:
            limit //= 4  # what lies before the damage can still be read
        else:
            start, limit = _behind_gap(fetch, start, end, first_step), _PAGE


def _rising(start: int, rows: list[Any]) -> Iterator[Any]:
    for row in rows:
        if row[0] < start:
            return
        yield row
        start = row[0] + 1


def _behind_gap(fetch: _Fetch, start: int, end: int, first_step: int) -> int:
    """Return the first number behind ``start`` that can be read, as far as can be told; or the end.

    SQLite finds a number on the page that it belongs to. So the first one that can be read is the
    first one of the next sound page.
    """

    def can_be_read(number: int) -> bool:
        with suppress(*_DAMAGE):
            return all(row[0] >= number for row in fetch(number, 1))
        return False

    low, step = start, first_step
    for tries in count():
        high = min(low + step, end - 1)
        if can_be_read(high):
            break
        if high == end - 1:
            return end
        low = high
        step *= 1 if tries < _NEAR else 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if can_be_read(middle) else (middle, high)
    return high


class _Positions:
    """A set of positions, which are dense as a rule: a bit each."""

    def __init__(self) -> None:
        self._words: dict[int, int] = {}

    def add(self, position: int) -> None:
        word = position >> 10
        self._words[word] = self._words.get(word, 0) | 1 << (position & 1023)

    def __contains__(self, position: int) -> bool:
        return bool(self._words.get(position >> 10, 0) >> (position & 1023) & 1)
