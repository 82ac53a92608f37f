"""Databases with keysets and rows as a test wants them, and what became of them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from conftest import MASTER
from service_security.keys.keyset import KeyPurpose, Keyset, KeyState, VersionKey
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb
from service_security.store.cipher import CIPHERS
from service_security.store.header import Header, HeaderKeys
from service_security.store.nonce import fresh_uuid
from service_security.store.record import RecordKeys

DAY = 86_400
NOW = 1_800_000_000

G, RO, V, A, RE, D = KeyState


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Made(NamedTuple):
    """A key as a test wants it: its state, and how long ago it was made and came into that."""

    state: KeyState
    since_days: float = 0.0
    created_days: float = 0.0
    cipher: str = "xchacha20poly1305"


class SealedRow(NamedTuple):
    """A row as a test wants it: which key it names, and whether it opens under it."""

    key_id: int
    whole: bool = True


Rows = Mapping[bytes, SealedRow]


@contextmanager
def header_keys(database: Path) -> Iterator[tuple[apsw.Connection, Header, HeaderKeys]]:
    """Open the header of a database beside the library."""
    with (
        closing(apsw.Connection(str(database))) as connection,
        SecretBytes.copy_of(MASTER) as master,
    ):
        connection.set_busy_timeout(5_000)
        connection.pragma("secure_delete", True)
        header = Header.read(connection)
        with closing(HeaderKeys.of(master, header.db_id)) as keys:
            yield connection, header, keys


def make(database: Path, keys: Mapping[int, Made], primary_id: int, rows: Rows) -> None:
    """Make a database. Each row has its name as its value."""
    SecureDb.open(database, MASTER, clock=Clock()).close()
    with header_keys(database) as (connection, header, sealing), sealing.open(header) as first:
        entries = [first.name_index.copy()]
        for key_id, wanted in keys.items():
            destroyed = wanted.state is D
            entries.append(
                VersionKey(
                    key_id,
                    wanted.state,
                    KeyPurpose.RECORD,
                    CIPHERS[wanted.cipher].code,
                    SecretBytes(32) if destroyed else SecretBytes.generate(32),
                    int(NOW - wanted.created_days * DAY),
                    int(NOW - wanted.since_days * DAY),
                )
            )
        with Keyset(first.generation + 1, primary_id, entries) as keyset:
            assert sealing.seal(keyset).replace(connection, first.generation)
            for number, (name, row) in enumerate(rows.items()):
                _add(connection, keyset, header.db_id, number, name, row)
            connection.execute("UPDATE lease SET next = next + 1048576")


def _add(
    connection: apsw.Connection,
    keyset: Keyset,
    db_id: bytes,
    number: int,
    name: bytes,
    wanted: SealedRow,
) -> None:
    known = keyset.entries.get(wanted.key_id) or keyset.primary
    sealer = known.copy(state=A, key_id=wanted.key_id)
    one = Keyset(1, wanted.key_id, [sealer, keyset.name_index.copy()])
    with closing(RecordKeys(one, db_id, NOW)) as sealing:
        (row,) = sealing.seal([(name, name)], fresh_uuid(), number)
    sealed = row.sealed if wanted.whole else row.sealed[:-1] + bytes([row.sealed[-1] ^ 1])
    connection.execute(
        "INSERT INTO record (token, key_id, sealed) VALUES (?, ?, ?)",
        (row.token, row.key_id, sealed),
    )


class Found(NamedTuple):
    """What is in a database: states by key, the primary, and rows by key."""

    states: dict[int, KeyState]
    primary_id: int
    rows: dict[int, int]


def found(database: Path) -> Found:
    """Look into a database beside the library."""
    with header_keys(database) as (connection, header, keys), keys.open(header) as keyset:
        named: Any = connection.execute("SELECT key_id FROM record").fetchall()
        rows = Counter(key_id for (key_id,) in named)
        states = {key.key_id: key.state for key in keyset.record_keys}
        assert keyset.name_index.state is A
        return Found(states, keyset.primary_id, dict(rows))
