"""Rows in the order of their position, a page at a time, and how many each key has sealed.

Nothing here leaves a statement open. On a connection that others share, one would be a read
transaction behind their backs: their writes fail when another process has written meanwhile, and
the log is not moved into the file.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import Any, Final

import apsw

from ..errors import IntegrityError
from ..progress import Progress
from .record import Row
from .store_file import StoreFile

_LAST_POSITION: Final = 2**63 - 1
_COUNTED: Final = 5_000
_SELECT_PAGE: Final = (
    "SELECT id, token, key_id, sealed FROM record WHERE id > ? ORDER BY id LIMIT ?"
)
_SELECT_PAGE_OF_OTHERS: Final = (
    "SELECT id, token, key_id, iif(key_id = ?3, NULL, sealed) FROM record"
    " WHERE id > ?1 ORDER BY id LIMIT ?2"
)
_POSITIONS: Final = "SELECT id FROM record NOT INDEXED WHERE id > ? ORDER BY id LIMIT ?"
_WHAT_NAMES_IT: Final = "SELECT token, key_id FROM record NOT INDEXED WHERE id = ?"
COUNT_PAGE: Final = (
    "SELECT key, count(*), max(id) FROM"
    " (SELECT id, iif(typeof(key_id) = 'integer', key_id, 0) AS key FROM record"
    " WHERE id > ? ORDER BY id LIMIT ?) GROUP BY key"
)
"""Counts rows by key. In a damaged one the id may be of any type; 0 stands for all of those."""
_DAMAGE: Final = (apsw.CorruptError, UnicodeDecodeError)
"""What reading a damaged row raises."""


def rows_behind(
    file: StoreFile, after: int, limit: int, *, size: int | None = None, without: int | None = None
) -> list[tuple[int, Row]]:
    """Return up to ``limit`` rows behind a position; the caller is alone on the file.

    A row that SQLite cannot read is given without bytes, which opens under no key.

    Args:
        file: The open file.
        after: Position of the last row of the page before.
        limit: Most rows to return.
        size: Go on until the rows come to so many bytes, with one row at least; None for no end.
        without: Id of a key. What it has sealed is not read: such a row has no bytes.

    Raises:
        IntegrityError: The rows are not in order.
    """
    try:
        return _page(file, after, limit, size, without)
    except _DAMAGE:
        file.connection.read("main", 0, 0, 1)  # a device that is gone looks like damage; not this
        return _one_by_one(file, after, limit, size, without)


def _page(
    file: StoreFile, after: int, limit: int, size: int | None, without: int | None
) -> list[tuple[int, Row]]:
    window: tuple[int, ...] = min(after, _LAST_POSITION), min(limit, _LAST_POSITION)
    query = _SELECT_PAGE
    if without is not None:
        query, window = _SELECT_PAGE_OF_OTHERS, (*window, without)
    rows: Any = file.connection.execute(query, window)
    with closing(rows):  # also when it is left in the middle
        # In a damaged file the types need not be what the table says; without bytes the row is
        # refused as damaged.
        return _limited(
            file,
            after,
            size,
            (
                (position, Row(token, key_id, sealed if type(sealed) is bytes else b""))
                for position, token, key_id, sealed in rows
            ),
        )


def _one_by_one(
    file: StoreFile, after: int, limit: int, size: int | None, without: int | None
) -> list[tuple[int, Row]]:
    window = min(after, _LAST_POSITION), min(limit, _LAST_POSITION)
    positions: Any = file.connection.execute(_POSITIONS, window).fetchall()
    rows = ((position, _row_at(file, position, without)) for (position,) in positions)
    return _limited(file, after, size, rows)


def _limited(
    file: StoreFile, after: int, size: int | None, rows: Iterable[tuple[int, Row]]
) -> list[tuple[int, Row]]:
    found, read = list[tuple[int, Row]](), 0
    for position, row in rows:
        # In a damaged file the order may be broken, and reading in pages never come to an end.
        if type(position) is not int or position <= after:
            raise out_of_order(file)
        found.append((position, row))
        after = position
        read += len(row.sealed)
        if size is not None and read >= size:
            break
    return found


def _row_at(file: StoreFile, position: int, without: int | None) -> Row:
    with suppress(*_DAMAGE):
        for found, row in _page(file, position - 1, 1, None, without):
            if found == position:
                return row
    with suppress(*_DAMAGE):
        named: Any = file.connection.execute(_WHAT_NAMES_IT, (position,)).fetchone()
        if named is not None:
            return Row(named[0], named[1], b"")
    return Row(b"", 0, b"")


def count_by_key(file: StoreFile, progress: Progress = lambda _done, _total: None) -> Counter[int]:
    """Return how many rows name each key. Those whose key cannot be told count for 0.

    Args:
        file: Shows one moment.
        progress: Told how many rows were counted.

    Raises:
        IntegrityError: The table is damaged, and rows may be out of reach.
    """
    with file:
        total = file.connection.execute("SELECT count(*) FROM record").get
    counts: Counter[int] = Counter()
    position = 0
    while True:
        with file:
            rows: Any = file.connection.execute(COUNT_PAGE, (position, _COUNTED)).fetchall()
        if not rows:
            break
        last = max(row[2] for row in rows)
        if last <= position:
            raise out_of_order(file)
        position = last
        for key_id, count, _ in rows:
            counts[key_id] += count
        progress(counts.total(), total if isinstance(total, int) else counts.total())
    if counts.total() != total:  # counted in the index of the tokens, which has every row again
        raise out_of_order(file)
    return counts


def out_of_order(file: StoreFile) -> IntegrityError:
    """Return the error of a table that gives its rows in one way and not in another."""
    return IntegrityError(
        f"{file.path} is damaged: its records are not in order. Restore it from a backup."
    )
