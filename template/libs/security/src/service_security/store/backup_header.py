r"""The clear front of a backup: which one it is, and its key, sealed for each way to open it.

::

    header = "SSBK\x01" || backup_id16 || count u8 || slot*            1 to 16 slots
    slot   = length u8 || type || length u16 || box                    no type twice
    box    = sealed_box, magic SSSL, no fields, purpose "backup/slot",
             context backup_id || type; inside, the random 32-byte backup key

A type is 1 to 255 lower-case letters, digits and hyphens.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from ..errors import IntegrityError, SecurityError, UnsupportedFormatError, WrongKeyError
from ..keys import sealed_box
from ..keys.derivation import KEY_BYTES
from ..keys.provider import OPENED_BY
from ..keys.service_keys import MASTER
from ..secret_bytes import SecretBytes

VERSION: Final = 1
_MAGIC: Final = b"SSBK"
_ID: Final = 16
_MAX_SLOTS: Final = 16
_TYPE: Final = re.compile(rb"[a-z0-9-]{1,255}")

Read = Callable[[int], bytes]
"""Returns so many bytes of a stream, fewer only at its end."""


@dataclass(frozen=True, slots=True)
class BackupHeader:
    """A parsed header. Nothing in it is trusted before ``ChunkCipher.read`` has checked it.

    Attributes:
        backup_id: 16 random bytes.
        slots: The backup key by type of slot, each sealed under another key.
        raw: The exact bytes.
    """

    backup_id: bytes
    slots: dict[str, bytes]
    raw: bytes

    @classmethod
    def create(cls, backup_key: SecretBytes, keys: Mapping[str, SecretBytes]) -> Self:
        """Return the header of a new backup, with a slot for each of ``keys``.

        Raises:
            ValueError: There are none or too many, or a type cannot be written.
        """
        if not 1 <= len(keys) <= _MAX_SLOTS:
            raise ValueError(f"a backup has 1 to {_MAX_SLOTS} slots, not {len(keys)}")
        backup_id = os.urandom(_ID)
        slots = {}
        raw = _MAGIC + bytes([VERSION]) + backup_id + bytes([len(keys)])
        for slot_type, key in keys.items():
            label = slot_type.encode()
            if not _TYPE.fullmatch(label):
                raise ValueError(f"{slot_type!r} is no type of slot")
            box = sealed_box.seal(
                key,
                backup_key,
                magic=b"SSSL",
                purpose="backup/slot",
                context=backup_id + label,
            )
            slots[slot_type] = box
            raw += bytes([len(label)]) + label + len(box).to_bytes(2) + box
        return cls(backup_id, slots, raw)

    @classmethod
    def read(cls, read: Read) -> Self:
        """Read the header of a stream.

        Raises:
            IntegrityError: The stream is no backup, or its header is damaged.
            UnsupportedFormatError: Another version of the library wrote it.
        """
        if read(len(_MAGIC)) != _MAGIC:
            raise IntegrityError("It is no backup.")
        raw = bytearray(_MAGIC)

        def take(length: int) -> bytes:
            raw.extend(piece := exactly(read, length))
            return piece

        version = take(1)[0]
        if version != VERSION:
            raise UnsupportedFormatError(
                f"It has format {version}; this version of service-security reads format "
                f"{VERSION}. Use the version that wrote it."
            )
        backup_id, count = take(_ID), take(1)[0]
        if not 1 <= count <= _MAX_SLOTS:
            raise damaged()
        slots: dict[str, bytes] = {}
        for _ in range(count):
            label = take(take(1)[0])
            if not _TYPE.fullmatch(label) or label.decode() in slots:
                raise damaged()
            slots[label.decode()] = take(int.from_bytes(take(2)))
        return cls(backup_id, slots, bytes(raw))

    def open(self, keys: Mapping[str, SecretBytes]) -> SecretBytes:
        """Return the backup key, out of the first slot that one of ``keys`` opens.

        Raises:
            WrongKeyError: None of them does.
            IntegrityError: The slot is damaged.
            UnsupportedFormatError: Another version of the library wrote the slot.
        """
        failures: list[SecurityError] = []
        for slot_type, key in keys.items():
            if slot_type not in self.slots:
                continue
            try:
                return self._open_slot(slot_type, key)
            except (WrongKeyError, IntegrityError, UnsupportedFormatError) as error:
                failures.append(error)
        if failures and not any(isinstance(failure, WrongKeyError) for failure in failures):
            raise failures[0]
        raise WrongKeyError(
            f"It opens with one of: {', '.join(map(_source_of, self.slots))}. What was given does "
            "not open it: either it is the key of another service, or the front of the file is "
            "damaged."
        )

    def _open_slot(self, slot_type: str, key: SecretBytes) -> SecretBytes:
        try:
            backup_key = sealed_box.open_box(
                key,
                self.slots[slot_type],
                magic=b"SSSL",
                purpose="backup/slot",
                context=self.backup_id + slot_type.encode(),
            )[1]
        except IntegrityError:
            raise damaged() from None
        if len(backup_key) != KEY_BYTES:
            backup_key.close()
            raise damaged()
        return backup_key


def _source_of(slot_type: str) -> str:
    if slot_type == MASTER:
        return "the envelope of its service"
    return OPENED_BY.get(slot_type, slot_type)


def exactly(read: Read, length: int) -> bytes:
    """Return the next ``length`` bytes.

    Raises:
        IntegrityError: The stream ends before that.
    """
    piece = read(length)
    if len(piece) != length:
        raise damaged()
    return piece


def damaged() -> IntegrityError:
    """Return the one error for every way in which a backup is not what was written."""
    return IntegrityError("It is damaged or incomplete. Use another one.")
