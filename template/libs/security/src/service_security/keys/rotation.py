"""The life of a database's record keys: which keyset follows on which, and what is due when.

::

    GENERATED -> ROTATING <-> VALIDATING -> ACTIVE -> RETIRING -> DESTROYED -> forgotten
        |            |                                   ^ 24 hours ^  30 days   ^
        v            v
    DESTROYED     RETIRING                      where the rotation is rolled back

The new key is the primary from ROTATING on, and the old one stays ACTIVE until the new one is. A
key that is ROTATING and not the primary is on its way back: its records are moved to the old one.
So the keyset alone tells how far a rotation is and in which direction it goes.

Nothing here touches a disk. Each function returns a keyset of its own, one generation on, whose
keys are copies; a change that the figure does not have is a ValueError. The name-index key does
not rotate: every token in the database depends on it.
"""

from collections.abc import Collection, Mapping
from datetime import timedelta
from enum import Enum
from math import inf
from typing import Any, Final

from ..errors import ConfigurationError
from ..secret_bytes import SecretBytes
from .derivation import KEY_BYTES
from .keyset import KeyPurpose, Keyset, KeyState, VersionKey

GRACE: Final = timedelta(hours=24)
"""How long a retiring key still opens what others have read before it retired."""
RETENTION: Final = timedelta(days=30)
"""How long the keyset remembers that there was a key."""
DEFAULT_INTERVAL: Final = timedelta(days=90)
MIN_INTERVAL: Final = timedelta(days=30)
MAX_INTERVAL: Final = timedelta(days=365)
MAX_KEYS: Final = 1000
"""The most keys of a keyset; its sealed box holds 1,191."""

NEXT_STATES: Final[Mapping[KeyState, frozenset[KeyState]]] = {
    KeyState.GENERATED: frozenset({KeyState.ROTATING, KeyState.DESTROYED}),
    KeyState.ROTATING: frozenset({KeyState.VALIDATING, KeyState.RETIRING}),
    KeyState.VALIDATING: frozenset({KeyState.ROTATING, KeyState.ACTIVE}),
    KeyState.ACTIVE: frozenset({KeyState.RETIRING}),
    KeyState.RETIRING: frozenset({KeyState.DESTROYED}),
    KeyState.DESTROYED: frozenset(),
}
"""Every change of state that there is."""

_UNFINISHED: Final = (KeyState.GENERATED, KeyState.ROTATING, KeyState.VALIDATING)


class Unfinished(Enum):
    """What a keyset is in the middle of."""

    ROTATION = "rotation"
    ROLL_BACK = "roll back"


def checked_interval(interval: timedelta | None) -> timedelta | None:
    """Return how old a primary may become; None is for keys that rotate by hand only.

    Raises:
        ConfigurationError: It is less than 30 or more than 365 days.
    """
    if interval is not None and not MIN_INTERVAL <= interval <= MAX_INTERVAL:
        raise ConfigurationError(
            f"Keys are rotated every {MIN_INTERVAL.days} to {MAX_INTERVAL.days} days, not every "
            f"{interval / timedelta(days=1):g}."
        )
    return interval


# What a keyset says


def key_in_progress(keyset: Keyset) -> VersionKey | None:
    """Return the key that a rotation is about, if one is unfinished."""
    return next((key for key in keyset.record_keys if key.state in _UNFINISHED), None)


def active_key(keyset: Keyset) -> VersionKey:
    """Return the one key that is active: the primary, or the one before it while keys rotate."""
    return next(key for key in keyset.record_keys if key.state is KeyState.ACTIVE)


def unfinished(keyset: Keyset) -> Unfinished | None:
    """Tell whether a rotation is unfinished, and in which direction it goes."""
    key = key_in_progress(keyset)
    if key is None:
        return None
    forward = key.state is KeyState.GENERATED or key.key_id == keyset.primary_id
    return Unfinished.ROTATION if forward else Unfinished.ROLL_BACK


def grace_ends(key: VersionKey) -> float:
    """Return from when on a key opens nothing any more, in Unix seconds."""
    return key.state_since + GRACE.total_seconds() if key.state is KeyState.RETIRING else inf


def is_readable(key: VersionKey, now: float) -> bool:
    """Tell whether what a key has sealed is opened."""
    return key.state is not KeyState.DESTROYED and now < grace_ends(key)


def rotation_due(keyset: Keyset, interval: timedelta) -> float:
    """Return when the primary becomes older than ``interval``, in Unix seconds."""
    return keyset.primary.created + interval.total_seconds()


def due_to_destroy(keyset: Keyset, now: float) -> list[int]:
    """Return the ids of the keys whose grace is over."""
    return [key.key_id for key in keyset.record_keys if now >= grace_ends(key)]


def destroyed_keys(keyset: Keyset) -> list[int]:
    """Return the ids of the keys that were destroyed and are not forgotten."""
    return [key.key_id for key in keyset.record_keys if key.state is KeyState.DESTROYED]


def due_to_forget(keyset: Keyset, now: float) -> list[int]:
    """Return the ids of the keys that were destroyed long ago.

    The highest id is kept, because the next key has the one above it: ids are never used again.
    """
    newest = max(keyset.entries)
    return [
        key.key_id
        for key in keyset.record_keys
        if key.state is KeyState.DESTROYED
        and now >= key.state_since + RETENTION.total_seconds()
        and key.key_id != newest
    ]


# What may follow on it


def with_new_key(keyset: Keyset, cipher: int, now: float) -> Keyset:
    """Return the keyset with a new key, which nothing is sealed with yet.

    Args:
        keyset: The one before.
        cipher: Code of the new key's record cipher.
        now: Unix seconds.

    Raises:
        ConfigurationError: It has as many keys as it can hold.
        ValueError: A rotation is unfinished.
    """
    if unfinished(keyset):
        raise ValueError("a rotation is unfinished")
    if len(keyset.entries) >= MAX_KEYS:
        raise ConfigurationError(
            f"The database has {len(keyset.entries)} keys, because it was rotated so often. Wait "
            f"until the oldest are forgotten, {RETENTION.days} days after they were destroyed."
        )
    key = VersionKey(
        max(keyset.entries) + 1,
        KeyState.GENERATED,
        KeyPurpose.RECORD,
        cipher,
        SecretBytes.generate(KEY_BYTES),
        _seconds(now),
        _seconds(now),
    )
    return _next(keyset, {}, now, added=[key])


def rotating(keyset: Keyset, now: float) -> Keyset:
    """Return the keyset with the new key as the primary, to which records are moved."""
    key = _in_progress(keyset)
    return _next(keyset, {key.key_id: KeyState.ROTATING}, now, primary_id=key.key_id)


def validating(keyset: Keyset, now: float) -> Keyset:
    """Return the keyset of when all records that can be opened are under the new key."""
    _refuse_roll_back(keyset)
    return _next(keyset, {_in_progress(keyset).key_id: KeyState.VALIDATING}, now)


def finished(keyset: Keyset, now: float) -> Keyset:
    """Return the keyset of when all records were read: the new key is active, the old one not."""
    key = _in_progress(keyset)
    changes = {key.key_id: KeyState.ACTIVE, active_key(keyset).key_id: KeyState.RETIRING}
    return _next(keyset, changes, now)


def rolling_back(keyset: Keyset, now: float) -> Keyset:
    """Return the keyset with the old primary again, to which records are moved back."""
    key = _in_progress(keyset)
    _refuse_roll_back(keyset)
    changes = {
        KeyState.GENERATED: {key.key_id: KeyState.DESTROYED},  # nothing was sealed with it
        KeyState.ROTATING: {},
        KeyState.VALIDATING: {key.key_id: KeyState.ROTATING},
    }[key.state]
    return _next(keyset, changes, now, primary_id=active_key(keyset).key_id)


def rolled_back(keyset: Keyset, now: float) -> Keyset:
    """Return the keyset of when all records that can be opened are back under the old primary.

    The key that was given up retires like any other: somebody may just have read a record that it
    had sealed.
    """
    if unfinished(keyset) is not Unfinished.ROLL_BACK:
        raise ValueError("nothing is rolled back")
    return _next(keyset, {_in_progress(keyset).key_id: KeyState.RETIRING}, now)


def destroyed(keyset: Keyset, key_ids: Collection[int], now: float) -> Keyset:
    """Return the keyset with zeros in place of keys. No record may name one of them any more.

    Raises:
        ValueError: The grace of one is not over.
    """
    if not set(key_ids) <= set(due_to_destroy(keyset, now)):
        raise ValueError("the grace of a key is not over")
    return _next(keyset, dict.fromkeys(key_ids, KeyState.DESTROYED), now)


def forgotten(keyset: Keyset, now: float) -> Keyset:
    """Return the keyset without the keys that were destroyed long ago."""
    return _next(keyset, {}, now, removed=due_to_forget(keyset, now))


def _next(
    keyset: Keyset,
    changes: Mapping[int, KeyState],
    now: float,
    *,
    primary_id: int | None = None,
    added: list[VersionKey] | None = None,
    removed: list[int] | None = None,
) -> Keyset:
    entries = []
    for key_id, key in keyset.entries.items():
        if key_id in (removed or ()):
            continue
        changed: dict[str, Any] = {}
        if (state := changes.get(key_id)) is not None:
            if state not in NEXT_STATES[key.state]:
                raise ValueError(f"a key that is {key.state.name} does not become {state.name}")
            changed = {"state": state, "state_since": _seconds(now)}
            if state is KeyState.DESTROYED:
                changed["key"] = SecretBytes(KEY_BYTES)  # zeros
        entries.append(key.copy(**changed))
    chosen = keyset.primary_id if primary_id is None else primary_id
    return Keyset(keyset.generation + 1, chosen, [*entries, *(added or ())], keyset.epoch)


def _in_progress(keyset: Keyset) -> VersionKey:
    key = key_in_progress(keyset)
    if key is None:
        raise ValueError("no rotation is unfinished")
    return key


def _refuse_roll_back(keyset: Keyset) -> None:
    if unfinished(keyset) is Unfinished.ROLL_BACK:
        raise ValueError("the rotation is rolled back already")


def _seconds(now: float) -> int:
    return max(0, int(now))
