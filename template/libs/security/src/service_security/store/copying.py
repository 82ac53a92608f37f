"""Copies every record of a transfer, and compares the two sides the other way round.

A copy goes on where an earlier attempt stopped: what is there already is not written again, and
what an earlier attempt left over is removed by the comparison.
"""

from collections.abc import Iterator
from typing import Any

import apsw

from ..errors import ConfigurationError, IntegrityError
from ..progress import Progress
from .batches import batches
from .record import MAX_NAME_BYTES, MAX_VALUE_BYTES
from .secure_db import SecureDb


def encrypt_all(source: apsw.Connection, target: SecureDb, progress: Progress) -> int:
    """Insert every plain record that the store does not hold; return how many there are.

    Raises:
        ConfigurationError: A row is not what a service writes; the message has its position.
    """
    done, total = 0, count_rows(source)
    for batch in batches(_plain_rows(source)):
        target.insert_many((name, value) for name, value in batch if target.get(name) != value)
        done += len(batch)
        progress(done, total)
    return total


def _plain_rows(source: apsw.Connection) -> Iterator[tuple[bytes, bytes]]:
    rows: Any = source.execute("SELECT id, name, value FROM records ORDER BY id")
    for position, name, value in rows:
        # SQLite keeps any type in any column of such a table.
        encoded = name.encode() if type(name) is str else b""
        if type(name) is not str or type(value) is not bytes or len(encoded) > MAX_NAME_BYTES:
            raise ConfigurationError(
                f"Row {position} of the plain records is not a text name and a BLOB value, as the "
                "service writes them. Correct it, then run the command again; nothing was changed."
            )
        if len(value) > MAX_VALUE_BYTES:
            raise ConfigurationError(
                f"The value of row {position} is larger than {MAX_VALUE_BYTES} bytes. "
                "Nothing was changed."
            )
        yield encoded, value


def check_encrypted(source: apsw.Connection, target: SecureDb, total: int) -> None:
    """Look for every record of the store among the plain ones, and remove what is left over.

    Raises:
        IntegrityError: Fewer than ``total`` are the same in both.
    """
    left_over, count = [], 0
    for name, value in target.items():
        row = source.execute("SELECT value FROM records WHERE name = ?", (_text(name),)).fetchone()
        if row is not None and row[0] == value:
            count += 1
        else:
            left_over.append(name)
    for name in left_over:
        target.remove(name)
    _refuse_difference(count, total)


def decrypt_all(source: SecureDb, target: apsw.Connection, progress: Progress) -> int:
    """Write every record of a store that the plain file does not hold; return how many there are.

    Raises:
        ConfigurationError: A name is not UTF-8 text.
        IntegrityError: A record is damaged.
    """
    done, total = 0, source.count()
    for batch in batches(source.items()):
        with target:
            for name, value in batch:
                target.execute(
                    "INSERT INTO records (name, value) VALUES (?, ?) ON CONFLICT (name)"
                    " DO UPDATE SET value = excluded.value WHERE value IS NOT excluded.value",
                    (_text(name), value),
                )
        done += len(batch)
        progress(done, total)
    return done


def check_plain(source: SecureDb, target: apsw.Connection, total: int) -> None:
    """Look for every plain record in the store, and remove what is left over.

    Raises:
        IntegrityError: Fewer than ``total`` are the same in both.
    """
    left_over, count = [], 0
    rows: Any = target.execute("SELECT id, name, value FROM records")
    for position, name, value in rows:
        if source.get(name.encode()) == value:
            count += 1
        else:
            left_over.append((position,))
    with target:
        target.executemany("DELETE FROM records WHERE id = ?", left_over)
    _refuse_difference(count, total)


def _refuse_difference(count: int, total: int) -> None:
    if count != total:
        raise IntegrityError(
            f"Of {total} records {count} arrived unchanged. The source was left as it is; check "
            "the disk, then run the command again."
        )


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(
            "The store holds a record whose name is not UTF-8 text. A plain database of this "
            "service has text names only; nothing was changed."
        ) from None


def count_rows(plain: apsw.Connection) -> int:
    """Return the number of plain records."""
    number = plain.execute("SELECT count(*) FROM records").get
    return number if isinstance(number, int) else 0
