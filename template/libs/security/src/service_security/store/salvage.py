"""Finds the rows of a file whose structure is damaged."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import apsw

from .record import Row

_PROBLEMS: Final = 20
_ALL: Final = "SELECT id, token, key_id, sealed FROM record NOT INDEXED"
_INDEX: Final = "SELECT id, token FROM record INDEXED BY sqlite_autoindex_record_1"
_BY_POSITION: Final = "SELECT token, key_id, sealed FROM record WHERE id = ?"


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
    """Yield what can be found in a file whose structure is damaged: position, token and row.

    A record is named twice in the file, in the table and in the index of its tokens. What the
    table leads to comes first; what only the index names is looked up by its position, and comes
    without its row where that is out of reach.
    """
    seen: set[int] = set()
    with suppress(apsw.CorruptError):
        rows: Any = connection.execute(_ALL)
        for position, token, key_id, sealed in rows:
            if isinstance(position, int) and position not in seen:
                seen.add(position)
                yield position, token, Row(token, key_id, sealed)
    named: dict[int, object] = {}
    with suppress(apsw.CorruptError):
        entries: Any = connection.execute(_INDEX)
        named.update((position, token) for position, token in entries if isinstance(position, int))
    for position in sorted(named.keys() - seen):
        row: Any = None
        with suppress(apsw.CorruptError):
            row = connection.execute(_BY_POSITION, (position,)).fetchone()
        yield position, named[position], row and Row(*row)
