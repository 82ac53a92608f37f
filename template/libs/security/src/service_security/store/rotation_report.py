"""What a rotation tells: each step while it happens, and what became of it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RotationStep:
    """A step of a key's life, told as soon as it is durable.

    Attributes:
        step: ``generated``: there is a new key. ``rotating``: it is the primary, and records are
            moved to it from here on. ``validating``: every record that can be opened is under it,
            and all are read from here on. ``active``: they were. ``retiring``: the old key has no
            records any more. ``rolling back``: the old key is the primary again, and records are
            moved back to it. ``destroyed``: the key is gone. ``log emptied``: so are old contents
            in the log. ``forgotten``: the keyset does not name the key any more.
        key_id: The key that the step is about.
        records: How many this call has moved, for ``validating`` and a ``retiring`` after a roll
            back; how many were read, for ``active``; None for all others.
    """

    step: str
    key_id: int
    records: int | None = None


OnStep = Callable[[RotationStep], None]


@dataclass(frozen=True, slots=True)
class LeftRecord:
    """A record that was left alone, because it does not open under the key that it names.

    Attributes:
        position: As ``SecureDb.page`` gives it.
        token: What stands for its name on disk, in hexadecimal digits; empty if that is gone too.
        key_id: The key that it names; 0 if that is gone too.
    """

    position: int
    token: str
    key_id: int


@dataclass(frozen=True, slots=True)
class Rotated:
    """What became of a rotation, or of rolling one back.

    Attributes:
        key_id: The primary now, which is active.
        old_key_id: The key that retires now: the primary before, or the one that was given up.
        cipher: Name of the primary's cipher.
        records: How many records this call has moved.
        validated: How many were read before the old key retired; 0 when it was rolled back.
        resumed: Whether it had been unfinished before this call.
        rolled_back: Whether ``key_id`` was the primary before the rotation, too.
        damaged: The records that were left alone.
    """

    key_id: int
    old_key_id: int
    cipher: str
    records: int
    validated: int
    resumed: bool
    rolled_back: bool
    damaged: tuple[LeftRecord, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is to be done; empty if nothing is."""
        if not self.damaged:
            return ()
        keys = {record.key_id for record in self.damaged} - {0}
        kept = f"{_keys(keys)} cannot be destroyed while a record names it. " if keys else ""
        return (
            f"{named(self.damaged)} could not be opened and stayed as they were. {kept}"
            "Let db verify name them, then restore them from a backup or remove them.",
        )


@dataclass(frozen=True, slots=True)
class Tended:
    """What was due.

    Attributes:
        reloaded: Whether keys were loaded that another process had changed, or a key was let go
            whose grace was over.
        elsewhere: Whether somebody else changes the keys right now, so that nothing was done.
        rotated: What became of a rotation that was due or unfinished.
        destroyed: Ids of the keys that were destroyed.
        kept: Ids of the keys that are due to be destroyed, but that records still name.
        forgotten: Ids of the keys that were destroyed long ago, and are not remembered any more.
        log_emptied: Whether the log could be emptied of old contents; None if it had none.
    """

    reloaded: bool = False
    elsewhere: bool = False
    rotated: Rotated | None = None
    destroyed: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    forgotten: tuple[int, ...] = ()
    log_emptied: bool | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is to be done; empty if nothing is."""
        found = list(self.rotated.sentences if self.rotated else ())
        if self.kept:
            found.append(
                f"{_keys(self.kept)} cannot be destroyed, because records still name it that do "
                "not open. Let db verify name them, then restore them from a backup or remove "
                "them."
            )
        if self.log_emptied is False:
            found.append(
                "The log may still hold what a destroyed key had sealed, and that key, because "
                "somebody reads it: a snapshot, a backup or another process. It is tried again "
                "next time."
            )
        return tuple(found)


def named(records: tuple[LeftRecord, ...]) -> str:
    """Return records by position and token; of many the first few."""
    shown = ", ".join(f"{record.position} ({record.token or '-'})" for record in records[:5])
    more = f" and {len(records) - 5} more" if len(records) > 5 else ""
    return f"Records at position {shown}{more}"


def _keys(keys: "set[int] | tuple[int, ...]") -> str:
    return f"Key {', '.join(map(str, sorted(keys)))}"
