"""Moves records to the primary key, in batches, while others read and write.

A batch is read, sealed anew and opened again outside of any transaction; then one short
transaction writes it, if the keyset is still the same, and each row only where it still has the
bytes that were read. A row that was changed meanwhile was sealed under the primary by whoever
changed it (the write guard), or is gone. So nobody waits for longer than a batch, and it does no
harm if this is stopped anywhere: the rows themselves tell which of them are done.
"""

from dataclasses import dataclass
from typing import Final

from ..errors import IntegrityError
from ..progress import Progress
from .batches import BATCH_BYTES, BATCH_RECORDS
from .live_keyset import WHAT, LiveKeyset
from .nonce import fresh_uuid
from .record import RecordKeys, Row
from .rotation_report import LeftRecord
from .row_pages import rows_behind, up_to

_MOVE: Final = "UPDATE record SET key_id = ?, sealed = ? WHERE id = ? AND key_id = ? AND sealed = ?"


@dataclass(frozen=True, slots=True)
class _Opened:
    """A row of another key, and what is in it."""

    position: int
    row: Row
    pair: tuple[bytes, bytes]


class Reencryption:
    """Moves what can be opened to the primary of a keyset.

    Args:
        live: The keyset of the store.
        keys: What it gave to read.
        progress: Told how many records were looked at; outside of every lock.
    """

    def __init__(self, live: LiveKeyset, keys: RecordKeys, progress: Progress) -> None:
        self._live = live
        self._file = live.file
        self._writer = live.writer()
        self._keys = keys
        self._progress = progress
        self.moved = 0
        """Records that were written under the primary."""
        self.left: tuple[LeftRecord, ...] = ()
        """Records that do not open, and so stay under the key that they name."""

    def run(self) -> None:
        """Move records until there is none left that can be opened and names another key.

        The last pass finds none: each row was then seen under the primary, or does not open. No
        lock is needed for that, because the write guard lets nobody write a row under another key
        any more.

        Raises:
            OvertakenError: Somebody else has changed the keyset.
            IntegrityError: The table is damaged, or a record that was sealed does not open again.
            StoreUnavailableError: The file cannot be read or written.
        """
        with self._file:
            total = self._file.connection.execute("SELECT count(*) FROM record").get
        progress = self._progress
        while self._pass(total if isinstance(total, int) else 0, progress):
            progress = _quiet  # the first pass has met every record

    def _pass(self, total: int, progress: Progress) -> bool:
        """Look at every row; return whether any was to be moved."""
        left: list[LeftRecord] = []
        position = seen = found = 0
        while True:
            with self._file:
                self._live.refuse_overtaken(self._keys)
                rows = rows_behind(
                    self._file, position, BATCH_RECORDS, without=self._keys.primary_id
                )
                page = list(up_to(BATCH_BYTES, rows))
            if not page:
                break
            opened = self._opened(page, left)
            found += len(opened)
            if opened:
                self.moved += self._write(opened, self._sealed(opened))
            position = page[-1][0]
            seen += len(page)
            progress(min(seen, total), total)
        self.left = tuple(left)
        return found > 0

    def _opened(self, page: list[tuple[int, Row]], left: list[LeftRecord]) -> list[_Opened]:
        opened = []
        for position, row in page:
            if row.key_id == self._keys.primary_id:
                continue
            try:
                opened.append(_Opened(position, row, self._keys.open(*row)))
            except IntegrityError:
                left.append(left_record(position, row))
        return opened

    def _sealed(self, opened: list[_Opened]) -> list[Row]:
        # As for a write: the lease is durable, and the uuid is drawn after the plaintexts are
        # fixed and used for this batch only.
        counter = self._writer.take_counters(len(opened))
        rows = self._keys.seal([each.pair for each in opened], fresh_uuid(), counter)
        for each, row in zip(opened, rows, strict=True):
            if not self._gives(row, each):
                raise IntegrityError(
                    f"Record {each.position} of {self._file.path} was encrypted anew and does not "
                    "open again, so it was not written; nothing is lost. Check the memory of this "
                    "machine, then run the rotation again, or roll it back."
                )
        return rows

    def _gives(self, row: Row, opened: _Opened) -> bool:
        try:
            return row.token == opened.row.token and self._keys.open(*row) == opened.pair
        except IntegrityError:
            return False

    def _write(self, opened: list[_Opened], rows: list[Row]) -> int:
        connection = self._file.connection
        with self._file, self._writer.alone(WHAT):
            self._live.refuse_overtaken(self._keys)
            before = connection.total_changes()
            connection.executemany(
                _MOVE,
                (
                    (new.key_id, new.sealed, old.position, old.row.key_id, old.row.sealed)
                    for new, old in zip(rows, opened, strict=True)
                ),
            )
            return connection.total_changes() - before


def left_record(position: int, row: Row) -> LeftRecord:
    """Return what names a row that does not open. A damaged page may give values of any type."""
    token = row.token.hex() if isinstance(row.token, bytes) else ""
    return LeftRecord(position, token, row.key_id if isinstance(row.key_id, int) else 0)


def _quiet(_done: int, _total: int) -> None:
    pass
