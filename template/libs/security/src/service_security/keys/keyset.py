"""The version keys of one database, sealed together.

Version keys are random and wrapped, never derived from the master key: what can be derived
cannot be destroyed. The primary is named, not positional. ``rotation`` has the life of a key. The
sealed contents are::

    primary id u32 || epoch u64 || count u16
    || count * (id u32 || state u8 || purpose u8 || cipher u8 || key32
                || created u64 || state since u64)          times in Unix seconds

The box around them (``sealed_box``) has magic ``SSKS`` and one field, the generation u64; its
context is ``db_id || master_id``, so a keyset opens in its own database only.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final, Self

from ..errors import IntegrityError
from ..secret_bytes import SecretBytes
from . import sealed_box
from .derivation import KEY_BYTES

_MAGIC: Final = b"SSKS"
_HEAD = struct.Struct(">IQH")
_ENTRY = struct.Struct(f">IBBB{KEY_BYTES}sQQ")
_GENERATION = struct.Struct(">Q")


class KeyState(IntEnum):
    """Where a key is in its life."""

    GENERATED = 1
    """Made, and not used yet."""
    ROTATING = 2
    """Records are moved to it; or, if it is not the primary, away from it again."""
    VALIDATING = 3
    """It has all records, and they are read."""
    ACTIVE = 4
    RETIRING = 5
    """It has no records any more; those that it had are opened for a day still."""
    DESTROYED = 6
    """Its bytes are zeros."""


_OF_A_PRIMARY: Final = (KeyState.ROTATING, KeyState.VALIDATING, KeyState.ACTIVE)


class KeyPurpose(IntEnum):
    """What a key is for."""

    RECORD = 1
    NAME_INDEX = 2


@dataclass(frozen=True, slots=True)
class VersionKey:
    """One key of a keyset.

    Attributes:
        key_id: Number of the key in its keyset, from 1; stored with every row it sealed.
        state: Where it is in its life.
        purpose: Record key or name-index key.
        cipher: Code of the record cipher; 0 for the name-index key.
        key: The 32 key bytes.
        created: Unix seconds.
        state_since: Unix seconds.
    """

    key_id: int
    state: KeyState
    purpose: KeyPurpose
    cipher: int
    key: SecretBytes
    created: int
    state_since: int

    def copy(self, **changes: Any) -> Self:
        """Return the same with other attributes, and the key in a page of its own."""
        if "key" not in changes:
            with self.key.view as view:
                changes["key"] = SecretBytes.copy_of(view)
        return replace(self, **changes)


class Keyset:
    """The keys of a database at one generation.

    Args:
        generation: Counts every change of the keyset, from 1.
        primary_id: The key that new records are sealed under.
        entries: All keys, the name-index key included.
        epoch: Reserved for a monotonic counter outside the file; 0 today.

    Raises:
        IntegrityError: The primary or the name-index key is missing, or no record can be sealed
            with the primary.
    """

    def __init__(
        self, generation: int, primary_id: int, entries: Iterable[VersionKey], epoch: int = 0
    ) -> None:
        self.generation = generation
        self.primary_id = primary_id
        self.epoch = epoch
        self.entries = {entry.key_id: entry for entry in entries}
        index_keys = [e for e in self.entries.values() if e.purpose is KeyPurpose.NAME_INDEX]
        primary = self.entries.get(primary_id)
        if (
            primary is None
            or primary.purpose is not KeyPurpose.RECORD
            or primary.state not in _OF_A_PRIMARY
            or len(index_keys) != 1
        ):
            raise IntegrityError("The keyset is damaged. Restore the database from a backup.")
        self.primary = primary
        self.name_index = index_keys[0]

    @property
    def record_keys(self) -> list[VersionKey]:
        """The keys of records, those that are destroyed included."""
        return [e for e in self.entries.values() if e.purpose is KeyPurpose.RECORD]

    @classmethod
    def new(cls, cipher: int, clock: Callable[[], float]) -> Self:
        """Return the first keyset of a database: one record key, one name-index key."""
        now = int(clock())
        entries = [
            VersionKey(
                key_id, KeyState.ACTIVE, purpose, code, SecretBytes.generate(KEY_BYTES), now, now
            )
            for key_id, purpose, code in (
                (1, KeyPurpose.RECORD, cipher),
                (2, KeyPurpose.NAME_INDEX, 0),
            )
        ]
        return cls(generation=1, primary_id=1, entries=entries)

    def seal(self, key: SecretBytes, context: bytes) -> bytes:
        """Return the keyset as a sealed box. ``context`` is ``db_id || master_id``."""
        with (
            SecretBytes(_HEAD.size + len(self.entries) * _ENTRY.size) as contents,
            contents.view as view,
        ):
            _HEAD.pack_into(view, 0, self.primary_id, self.epoch, len(self.entries))
            for position, entry in enumerate(self.entries.values()):
                offset = _HEAD.size + position * _ENTRY.size
                _ENTRY.pack_into(
                    view,
                    offset,
                    entry.key_id,
                    entry.state,
                    entry.purpose,
                    entry.cipher,
                    b"",
                    entry.created,
                    entry.state_since,
                )
                with entry.key.view as source:
                    view[offset + 7 : offset + 7 + KEY_BYTES] = source
            return sealed_box.seal(
                key,
                contents,
                magic=_MAGIC,
                purpose="keyset",
                context=context,
                fields=_GENERATION.pack(self.generation),
            )

    @classmethod
    def open(cls, key: SecretBytes, box: bytes, context: bytes) -> Self:
        """Return the keyset of a sealed box.

        Raises:
            IntegrityError: The box is damaged or of another database.
            UnsupportedFormatError: Another version of the library wrote it.
            WrongKeyError: ``key`` did not seal it.
        """
        fields, contents = sealed_box.open_box(
            key,
            box,
            magic=_MAGIC,
            purpose="keyset",
            context=context,
            fields_length=_GENERATION.size,
        )
        with contents, contents.view as view:
            try:
                primary_id, epoch, count = _HEAD.unpack_from(view)
                starts = range(_HEAD.size, _HEAD.size + count * _ENTRY.size, _ENTRY.size)
                if len(view) != starts.stop:
                    raise ValueError("the count and the size differ")
                entries = [_entry(view, start) for start in starts]
            except (struct.error, ValueError):
                raise IntegrityError(
                    "The keyset is damaged. Restore the database from a backup."
                ) from None
        return cls(_GENERATION.unpack(fields)[0], primary_id, entries, epoch)

    def close(self) -> None:
        """Wipe every key."""
        for entry in self.entries.values():
            entry.key.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _entry(view: memoryview, start: int) -> VersionKey:
    # Read around the key, so that it is copied from page to page and never becomes a bytes object.
    key_id, state, purpose, cipher = struct.unpack_from(">IBBB", view, start)
    created, since = struct.unpack_from(">QQ", view, start + 7 + KEY_BYTES)
    with view[start + 7 : start + 7 + KEY_BYTES] as key:
        return VersionKey(
            key_id,
            KeyState(state),
            KeyPurpose(purpose),
            cipher,
            SecretBytes.copy_of(key),
            created,
            since,
        )
