"""Reads every record of one moment, to see that all are under the primary key and open."""

from dataclasses import dataclass

from ..errors import IntegrityError
from ..progress import Progress
from .batches import BATCH_BYTES, BATCH_RECORDS
from .current_keys import CurrentKeys
from .reencryption import left_record
from .rotation_report import LeftRecord
from .row_pages import rows_behind
from .store_file import StoreFile


@dataclass(frozen=True, slots=True)
class Validation:
    """What reading everything has shown.

    Attributes:
        records: How many records opened.
        unreadable: Those under the primary that did not. The rotation has damaged them.
        damaged: Those under other keys that did not, as before it.
        strayed: How many opened under another key.
    """

    records: int
    unreadable: tuple[LeftRecord, ...]
    damaged: tuple[LeftRecord, ...]
    strayed: int


def validate(file: StoreFile, keys: CurrentKeys, progress: Progress) -> Validation:
    """Read every record.

    Args:
        file: Shows one moment.
        keys: The keys of that moment.
        progress: Told how many records were read.

    Raises:
        IntegrityError: The table is damaged. Records may be out of reach.
    """
    primary_id = keys.record.primary_id
    with file:
        total = file.connection.execute("SELECT count(*) FROM record").get
    records = strayed = position = seen = 0
    left: list[LeftRecord] = []
    while True:
        with file:
            page = rows_behind(file, position, BATCH_RECORDS, size=BATCH_BYTES)
        if not page:
            break
        for position, row in page:
            try:
                keys.record.open(*row)
            except IntegrityError:
                left.append(left_record(position, row))
            else:
                records += 1
                strayed += row.key_id != primary_id
        seen += len(page)
        progress(seen, total if isinstance(total, int) else seen)
    # A page that is another page of the same table hides records, and SQLite sees no error.
    if seen != total:
        raise IntegrityError(
            f"{file.path} is damaged: records are out of place or missing. No key was retired. "
            "Verify it, which names them, and restore it from a backup."
        )
    return Validation(
        records,
        tuple(each for each in left if each.key_id == primary_id),
        tuple(each for each in left if each.key_id != primary_id),
        strayed,
    )
