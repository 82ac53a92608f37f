"""Records in lists that are bounded in number and in memory."""

from collections.abc import Iterable, Iterator
from typing import Final

BATCH_RECORDS: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024


def batches(
    records: Iterable[tuple[bytes, bytes]],
) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield names and values in such lists."""
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record[0]) + len(record[1])
        if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
