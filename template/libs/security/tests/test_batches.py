"""Batches keep the memory of transfers and restores bounded, whatever the records are."""

from collections.abc import Iterator

from service_security.store.batches import batches


def test_small_records_are_bounded_in_number() -> None:
    records = ((b"%d" % number, b"") for number in range(1234))
    assert [len(batch) for batch in batches(records)] == [500, 500, 234]


def test_large_records_are_bounded_in_bytes() -> None:
    """60 values of 1 MiB never meet in memory."""

    def records() -> Iterator[tuple[bytes, bytes]]:
        for number in range(60):
            yield b"%d" % number, bytes(1024 * 1024)

    sizes = [sum(len(value) for _, value in batch) for batch in batches(records())]
    assert sum(sizes) == 60 * 1024 * 1024
    assert max(sizes) <= 4 * 1024 * 1024


def test_a_record_larger_than_the_bound_is_a_batch_of_its_own() -> None:
    records = [(b"a", b""), (b"b", bytes(5_000_000)), (b"c", b"")]
    assert [len(batch) for batch in batches(records)] == [2, 1]


def test_nothing_makes_no_batch() -> None:
    assert list(batches([])) == []
