"""Rows in the order of their position, a page at a time, and how many each key has sealed."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, Final

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
_COUNT_PAGE: Final = (
    "SELECT key_id, count(*), max(id) FROM"
    " (SELECT id, key_id FROM record WHERE id > ? ORDER BY id LIMIT ?) GROUP BY key_id"
)


def rows_behind(
    file: StoreFile, after: int, limit: int, *, without: int | None = None
) -> Iterator[tuple[int, Row]]:
    """Yield up to ``limit`` rows behind a position; the caller is alone on the file.

    Args:
        file: The open file.
        after: Position of the last row of the page before.
        limit: Most rows to yield.
        without: Id of a key. What it has sealed is not read: such a row has no bytes.

    Raises:
        IntegrityError: The rows are not in order.
    """
    window: tuple[int, ...] = min(after, _LAST_POSITION), min(limit, _LAST_POSITION)
    query = _SELECT_PAGE
    if without is not None:
        query, window = _SELECT_PAGE_OF_OTHERS, (*window, without)
    rows: Any = file.connection.execute(query, window)
    with closing(rows):  # an error that somebody keeps would keep the statement open
        yield from _checked(file, rows, after)


def _checked(file: StoreFile, rows: Iterable[Any], after: int) -> Iterator[tuple[int, Row]]:
    for position, token, key_id, sealed in rows:
        # In a damaged file the order may be broken, and reading in pages never come to an end.
        if type(position) is not int or position <= after:
            raise _out_of_order(file)
        # Nor are the types what the table says; without bytes the row is refused as damaged.
        yield position, Row(token, key_id, sealed if type(sealed) is bytes else b"")
        after = position


def up_to(limit: int, rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """Yield rows until they come to ``limit`` bytes, one row at least."""
    size = 0
    for position, row in rows:
        yield position, row
        size += len(row.sealed)
        if size >= limit:
            return


def count_by_key(file: StoreFile, progress: Progress = lambda _done, _total: None) -> Counter[int]:
    """Return how many rows name each key.

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
            rows: Any = file.connection.execute(_COUNT_PAGE, (position, _COUNTED)).fetchall()
        if not rows:
            break
        last = max(row[2] for row in rows)
        if last <= position:
            raise _out_of_order(file)
        position = last
        for key_id, count, _ in rows:
            counts[key_id] += count
        progress(counts.total(), total if isinstance(total, int) else counts.total())
    if counts.total() != total:  # counted in the index of the tokens, which has every row again
        raise _out_of_order(file)
    return counts


def _out_of_order(file: StoreFile) -> IntegrityError:
    return IntegrityError(
        f"{file.path} is damaged: its records are not in order. Restore it from a backup."
    )
