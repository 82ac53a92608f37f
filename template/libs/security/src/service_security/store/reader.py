"""Reads records, one by name or all in pages, and tells the damaged from the whole."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from ..errors import IntegrityError
from .current_keys import CurrentKeys
from .record import Row
from .row_pages import rows_behind
from .salvage import rows_out_of_order, structure_problems
from .store_file import StoreFile

OnDamage = Callable[[int], None]
"""Called with the position of a damaged record, which is then left out."""

_PAGE: Final = 256
_PAGE_BYTES: Final = 4 * 1024 * 1024
_SELECT: Final = "SELECT key_id, sealed FROM record WHERE token = ?"


class Reader:
    """The reading half of a store; ``SecureDb`` says what its methods promise.

    Args:
        file: The open file.
        keys: Its keys.
    """

    def __init__(self, file: StoreFile, keys: CurrentKeys) -> None:
        self._file = file
        self._keys = keys

    def get(self, name: bytes) -> bytes | None:
        """Return the value of ``name``, or None."""
        with self._file:
            connection = self._file.connection
            token = self._keys.record.token(name)
            found: Any = connection.execute(_SELECT, (token,)).get
            if found is None:
                return None
            key_id, sealed = found
            keys = self._keys.that_know(key_id, connection)
            return keys.open(token, key_id, sealed, name)[1]

    def page(
        self, after: int, limit: int, on_damage: OnDamage | None
    ) -> list[tuple[int, bytes, bytes]]:
        """Return up to ``limit`` records behind a position."""
        found: list[tuple[int, bytes, bytes]] = []
        while len(found) < limit:
            wanted = limit - len(found)
            with self._file:
                rows = rows_behind(self._file, after, wanted)
                opened = [self._opened(*row) for row in rows]
            found += _whole(opened, on_damage)
            if len(rows) < wanted:
                break
            after = rows[-1][0]
        return found

    def items(self, on_damage: OnDamage | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield every name and value."""
        if on_damage is not None:
            with self._file:
                in_order = not structure_problems(self._file.connection)
            if not in_order:
                yield from self._salvaged(on_damage)
                return
        position = number = 0
        moment = self._moment()
        while True:
            with self._file:
                rows = rows_behind(self._file, position, _PAGE, size=_PAGE_BYTES)
            if not rows:
                break
            for position, row in rows:
                with self._file:
                    opened = self._opened(position, row)
                for _, name, value in _whole([opened], on_damage):
                    yield name, value
            number += len(rows)
        # A page that is another page of the same table hides records, and SQLite sees no error.
        if number != self.count() and self._moment() == moment:
            raise IntegrityError(
                f"{self._file.path} is damaged: records are out of place or missing. Verify it, "
                "which names them, and restore it from a backup."
            )

    def _salvaged(self, on_damage: OnDamage) -> Iterator[tuple[bytes, bytes]]:
        """Yield what can be found where the table cannot be read in order."""
        rows = rows_out_of_order(self._file.connection)
        while True:
            with self._file:
                found = next(rows, None)
                if found is None:
                    return
                position, _, row = found
                opened = position if row is None else self._opened(position, row)
            for _, name, value in _whole([opened], on_damage):
                yield name, value

    def count(self) -> int:
        """Return the number of records."""
        with self._file:
            number = self._file.connection.execute("SELECT count(*) FROM record").get
            return number if isinstance(number, int) else 0

    def _moment(self) -> tuple[object, int]:
        """Return what changes when anybody writes: what others have committed, and we."""
        with self._file:
            connection = self._file.connection
            return connection.pragma("data_version"), connection.total_changes()

    def _opened(self, position: int, row: Row) -> tuple[int, bytes, bytes] | int:
        """Return a record as position, name and value; of a damaged one the position."""
        keys = self._keys.that_know(row.key_id, self._file.connection)
        try:
            return (position, *keys.open(*row))
        except IntegrityError:
            return position


def _whole(
    opened: Iterable[tuple[int, bytes, bytes] | int], on_damage: OnDamage | None
) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield what is not damaged. Outside the lock, so that who is told may use the store."""
    for record in opened:
        if isinstance(record, tuple):
            yield record
        elif on_damage is None:
            raise IntegrityError(f"Record {record} failed its integrity check.")
        else:
            on_damage(record)
