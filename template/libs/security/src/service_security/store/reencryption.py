"""Moves records to the primary key, in batches, while others read and write.

A batch is read, sealed anew and opened again outside of any transaction; then one short
transaction writes it, if the keyset is still the same, and each row only where it still has the
nonce and the tag that were read. A row that was changed meanwhile was sealed under the primary by
whoever changed it (the write guard), or is gone. So nobody waits for longer than a batch, and it
does no harm if this is stopped anywhere: the rows themselves tell which of them are done.
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
from .row_pages import out_of_order, rows_behind

_PASSES: Final = 4
_MOVE: Final = (
    "UPDATE record SET key_id = ?, sealed = ?"
    " WHERE id = ? AND key_id = ? AND substr(sealed, 1, 24) = ? AND substr(sealed, -16) = ?"
)
_NONCE: Final = slice(0, 24)
_TAG: Final = slice(-16, None)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A row of another key, and what is in it. Nonce and tag stand for its bytes."""

    position: int
    token: bytes
    key_id: int
    nonce: bytes
    tag: bytes
    pair: tuple[bytes, bytes]


_Move = tuple[int, bytes, int, int, bytes, bytes]
"""What ``_MOVE`` takes."""


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
        for _ in range(_PASSES):
            if not self._pass(total if isinstance(total, int) else 0, progress):
                return
            progress = _quiet  # the first pass has met every record
        # Nobody writes a row under another key any more. One that is met in every pass cannot be
        # found by its position: the scan comes to a page that a search does not lead to.
        raise out_of_order(self._file)

    def _pass(self, total: int, progress: Progress) -> bool:
        """Look at every row; return whether any was to be moved."""
        left: list[LeftRecord] = []
        position = seen = found = 0
        while True:
            with self._file:
                self._live.refuse_overtaken(self._keys)
                page = rows_behind(
                    self._file,
                    position,
                    BATCH_RECORDS,
                    size=BATCH_BYTES,
                    without=self._keys.primary_id,
                )
            if not page:
                break
            position = page[-1][0]
            seen += len(page)
            opened = self._opened(page, left)
            if opened:
                found += len(opened)
                self.moved += self._write(self._sealed(opened))
            progress(min(seen, total), total)
        self.left = tuple(left)
        return found > 0

    def _opened(self, page: list[tuple[int, Row]], left: list[LeftRecord]) -> list[_Opened]:
        """Open the rows of a page, which is used up: large values are not to lie there twice."""
        opened = []
        page.reverse()
        while page:
            position, row = page.pop()
            if row.key_id == self._keys.primary_id:
                continue
            try:
                pair = self._keys.open(*row)
            except IntegrityError:
                left.append(left_record(position, row))
            else:
                nonce, tag = row.sealed[_NONCE], row.sealed[_TAG]
                opened.append(_Opened(position, row.token, row.key_id, nonce, tag, pair))
        return opened

    def _sealed(self, opened: list[_Opened]) -> list[_Move]:
        """Seal what was opened, and open each row again."""
        # As for a write: the lease is durable, and the uuid is drawn after the plaintexts are
        # fixed and used for this batch only.
        counter = self._writer.take_counters(len(opened))
        rows = self._keys.seal([each.pair for each in opened], fresh_uuid(), counter)
        moves = list[_Move]()
        for row, old in zip(rows, opened, strict=True):
            if not self._gives(row, old):
                raise IntegrityError(
                    f"Record {old.position} of {self._file.path} was encrypted anew and does not "
                    "open again, so it was not written; nothing is lost. Check the memory of this "
                    "machine, then run the rotation again, or roll it back."
                )
            moves.append((row.key_id, row.sealed, old.position, old.key_id, old.nonce, old.tag))
        return moves

    def _gives(self, row: Row, old: _Opened) -> bool:
        try:
            return row.token == old.token and self._keys.open(*row) == old.pair
        except IntegrityError:
            return False

    def _write(self, moves: list[_Move]) -> int:
        connection = self._file.connection
        with self._file, self._writer.alone(WHAT):
            self._live.refuse_overtaken(self._keys)
            before = connection.total_changes()
            connection.executemany(_MOVE, moves)
            return connection.total_changes() - before


def left_record(position: int, row: Row) -> LeftRecord:
    """Return what names a row that does not open. A damaged page may give values of any type."""
    token = row.token.hex() if isinstance(row.token, bytes) else ""
    return LeftRecord(position, token, row.key_id if isinstance(row.key_id, int) else 0)


def _quiet(_done: int, _total: int) -> None:
    pass
