"""What can be told about the record keys of a store, and what an old copy of it still opens."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from ..keys.keyset import Keyset, KeyState, VersionKey
from ..keys.rotation import (
    GRACE,
    RETENTION,
    due_to_destroy,
    grace_ends,
    rotation_due,
    unfinished,
)
from .cipher import CIPHERS

_DATE: Final = "%Y-%m-%d %H:%M UTC"


@dataclass(frozen=True, slots=True)
class StatusKey:
    """A record key, without the key.

    Attributes:
        key_id: Its number.
        state: In small letters, like ``active``.
        cipher: Name of its cipher.
        primary: Whether new records are sealed with it.
        created: When it was made, UTC.
        since: When it came into its state, UTC.
        records: How many rows name it.
    """

    key_id: int
    state: str
    cipher: str
    primary: bool
    created: datetime
    since: datetime
    records: int


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """How the keys of a store stand.

    Attributes:
        generation: Counts every change of the keyset, from 1.
        primary_id: The key that new records are sealed with.
        keys: The record keys. The name-index key does not rotate and is left out.
        unknown: The number of rows by key, for keys that the keyset does not have; 0 is for damaged
            rows that name none.
        due: When the primary is as old as it may become; None without an interval.
        is_due: Whether it is by now, and no rotation is under way.
        unfinished: ``rotation``, ``roll back`` or None: what was begun and not ended.
        overdue: Ids of retired keys whose grace is over, and that are not destroyed.
        log_size: Size of the write-ahead log in bytes.
        log_may_hold_old: Whether what a destroyed key has sealed, and that key, may be in it.
        assurance: What an old copy could still open, a sentence each.
    """

    generation: int
    primary_id: int
    keys: tuple[StatusKey, ...]
    unknown: dict[int, int]
    due: datetime | None
    is_due: bool
    unfinished: str | None
    overdue: tuple[int, ...]
    log_size: int
    log_may_hold_old: bool
    assurance: tuple[str, ...]


def key_status(
    keyset: Keyset,
    records: Counter[int],
    *,
    interval: timedelta | None,
    now: float,
    log_size: int,
    log_holds_a_keyset: bool,
) -> KeyStatus:
    """Return how the keys stand.

    Args:
        keyset: The keyset of a moment.
        records: The number of rows by key, of the same moment.
        interval: How old a primary may become.
        now: Unix seconds.
        log_size: Size of the log in bytes.
        log_holds_a_keyset: Whether the log has pages from before a change of the keyset.
    """
    names = {cipher.code: name for name, cipher in CIPHERS.items()}
    due = None if interval is None else rotation_due(keyset, interval)
    begun = unfinished(keyset)
    old_in_log = log_holds_a_keyset and _is_any(keyset, KeyState.DESTROYED)
    return KeyStatus(
        keyset.generation,
        keyset.primary_id,
        tuple(
            StatusKey(
                key.key_id,
                key.state.name.lower(),
                names.get(key.cipher, "unknown"),
                key.key_id == keyset.primary_id,
                _time(key.created),
                _time(key.state_since),
                records[key.key_id],
            )
            for key in keyset.record_keys
        ),
        {key_id: n for key_id, n in sorted(records.items()) if key_id not in keyset.entries},
        None if due is None else _time(due),
        due is not None and begun is None and now >= due,
        begun.value if begun else None,
        tuple(due_to_destroy(keyset, now)),
        log_size,
        old_in_log,
        tuple(_assurance(keyset, records, now, log_size, old_in_log=old_in_log)),
    )


def _assurance(
    keyset: Keyset, records: Counter[int], now: float, log_size: int, *, old_in_log: bool
) -> list[str]:
    keys = sorted(keyset.record_keys, key=lambda key: key.key_id)
    said = [_of_key(key, keys, records[key.key_id], now) for key in keys]
    lines = [line for line in said if line]
    gone = [key for key in keys if key.state is KeyState.DESTROYED]
    if gone:
        last = _date(max(key.state_since for key in gone))
        log = "is empty" if log_size == 0 else f"has {log_size} bytes, none of them older than that"
        if old_in_log:
            log = (
                f"has {log_size} bytes and may still hold what a destroyed key has sealed, and "
                "that key under the master key: it could not be emptied, or was not yet"
            )
        lines += [
            f"The log beside the database {log}.",
            f"A copy of the database from before {last}, for instance of its folder or disk, opens "
            "with the master key of then: the envelope, and the key or phrase that opens it. A new "
            "master key does not change that. Overwrite such copies, or destroy all that opens "
            "their envelope.",
            "Processes that have the database open since before then, and do not tend its keys, "
            "have the destroyed keys in memory until they end.",
            "What the database frees is overwritten with zeros. But where it has moved records to "
            "another page, as it grew or shrank, a copy may be left in the unused part of a page, "
            "sealed under the key of then, until that part is used again.",
            "A disk that writes elsewhere instead of in place, as flash does, may keep old blocks "
            "for a while; so may snapshots of a file system.",
        ]
    else:
        lines.append(
            f"No key was destroyed in the last {RETENTION.days} days: copies of the database from "
            "that time open with the master key."
        )
    lines.append(
        "Backups have keys of their own: they open as before, whatever becomes of keys here."
    )
    if any(key.state_since > now for key in keys):
        lines.append(
            "The clock is behind dates in the keyset. Nothing is destroyed before it has caught "
            "up; set it right."
        )
    return lines


def _of_key(key: VersionKey, keys: list[VersionKey], records: int, now: float) -> str:
    made = f"Key {key.key_id} (made {_date(key.created)}"
    if key.state is KeyState.DESTROYED:
        later = (other.created for other in keys if other.key_id > key.key_id)
        until = min(later, default=key.state_since)
        return (
            f"{made}, in use until {_date(until)} or later) was destroyed "
            f"{_date(key.state_since)}: no record of this database needs it, and its bytes in the "
            "keyset are zeros."
        )
    if key.state is not KeyState.RETIRING:
        return ""
    if now < grace_ends(key):
        return (
            f"{made}) retires: it still opens what others have read before "
            f"{_date(key.state_since)}, and is destroyed after {_date(grace_ends(key))}."
        )
    if records:
        return (
            f"{made}) is not destroyed, because {records} records still name it that do not open. "
            "Let db verify name them, then restore them from a backup or remove them."
        )
    return (
        f"{made}) has opened nothing since its grace of {GRACE // timedelta(hours=1)} hours was "
        "over, and is destroyed when the keys are next tended."
    )


def _is_any(keyset: Keyset, state: KeyState) -> bool:
    return any(key.state is state for key in keyset.record_keys)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _date(seconds: float) -> str:
    return _time(seconds).strftime(_DATE)
