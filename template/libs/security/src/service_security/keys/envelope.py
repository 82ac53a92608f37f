"""The envelope: the master key, sealed once per slot, in a file beside the data.

The file is JSON, ``{"body": "...", "mac": "..."}``. The body is itself JSON, kept as one string
so that the MAC covers exact bytes::

    {"format": "service-security-envelope", "version": 1, "envelope_id": 16 bytes hex,
     "master_id": 32 bytes hex, "generation": 1,
     "slots": [{"type": "key-file", "box": base64, and the provider's own members, all text}]}

    mac      = HMAC-SHA256(HKDF(master, envelope_id, info("envelope/mac"), 32), body), hex
    slot box = sealed_box, magic SSSL, no fields, purpose "slot", under the wrapping key,
               context envelope_id || master_id || type || binding
    binding  = the name of the profile ("passphrase"), the name of the SRK || the PCR selection
               ("tpm2"), nothing else
    after    = a member of the body where the master key followed on another one:
               HMAC-SHA256(HKDF(master before, envelope_id, info("envelope/after"), 32),
               master_id), hex
    kept     = a member of the slot "recovery": the recovery key in a sealed_box, magic SSSL,
               purpose "slot/kept", under the master key, context as above

The recovery key is kept so that every backup opens with the phrase. Whoever has once had the
master key may therefore have the recovery key too: a new master comes with a new phrase.
"""

import base64
import hmac
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from ..errors import IntegrityError, UnsupportedFormatError, WrongKeyError
from ..secret_bytes import SecretBytes
from . import sealed_box
from .derivation import derive, master_id
from .provider import RECOVERY, WrappingKey

FORMAT: Final = "service-security-envelope"
VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024
"""Size of the largest envelope, in bytes."""


_MAGIC: Final = b"SSSL"
_KEPT: Final = "slot/kept"
_TYPE: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Slot:
    """One way to the master key.

    Attributes:
        type: What the wrapping key comes from, one of the types in ``provider``.
        fields: What the provider needs to get it again.
        box: The master key, sealed under the wrapping key.
    """

    type: str
    fields: Mapping[str, str]
    box: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope. Nothing in it is trusted before ``open`` has checked the MAC.

    Attributes:
        envelope_id: 16 random bytes.
        master_id: Check value of the master key, 32 bytes.
        generation: Counts the changes of the envelope, from 1.
        slots: The ways to the master key by their type, in the order of the file.
        after: Shows that who made it had the master key before; empty for a first one.
        body: The exact bytes that the MAC covers.
        mac: 32 bytes.
    """

    envelope_id: bytes
    master_id: bytes
    generation: int
    slots: Mapping[str, Slot]
    after: bytes
    body: bytes
    mac: bytes

    @classmethod
    def create(
        cls,
        master: SecretBytes,
        keys: Mapping[str, WrappingKey],
        *,
        after: SecretBytes | None = None,
    ) -> Self:
        """Return a new envelope.

        Args:
            master: Its master key.
            keys: Wrapping keys for its slots, by type.
            after: The master key that this one takes the place of.
        """
        envelope_id = os.urandom(16)
        proof = _after(after, envelope_id, master_id(master)) if after else b""
        return cls._sealed(master, envelope_id, 1, (), keys, proof)

    def follows(self, master: SecretBytes) -> bool:
        """Tell whether it was made to take the place of a master key, by who had that key."""
        return hmac.compare_digest(self.after, _after(master, self.envelope_id, self.master_id))

    def with_slots(
        self, master: SecretBytes, keys: Mapping[str, WrappingKey], *, keep: Collection[str] = ()
    ) -> Self:
        """Return the next generation of this envelope.

        Args:
            master: Its master key.
            keys: Wrapping keys for new slots, by type.
            keep: Types of slots that stay as they are, unless ``keys`` replaces them.
        """
        kept = [slot for slot in self.slots.values() if slot.type in keep and slot.type not in keys]
        generation = self.generation + 1
        return self._sealed(master, self.envelope_id, generation, kept, keys, self.after)

    @classmethod
    def _sealed(
        cls,
        master: SecretBytes,
        envelope_id: bytes,
        generation: int,
        kept: Collection[Slot],
        keys: Mapping[str, WrappingKey],
        after: bytes,
    ) -> Self:
        identifier = master_id(master)
        slots = {slot.type: slot for slot in kept}
        for slot_type, wrapping in keys.items():
            context = _slot_context(envelope_id, identifier, slot_type)
            fields = dict(wrapping.fields)
            if slot_type == RECOVERY:
                kept_box = sealed_box.seal(
                    master, wrapping.key, magic=_MAGIC, purpose=_KEPT, context=context
                )
                fields["kept"] = base64.b64encode(kept_box).decode()
            box = sealed_box.seal(
                wrapping.key,
                master,
                magic=_MAGIC,
                purpose="slot",
                context=context + wrapping.binding,
            )
            slots[slot_type] = Slot(slot_type, fields, box)
        body = json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "envelope_id": envelope_id.hex(),
                "master_id": identifier.hex(),
                "generation": generation,
                "slots": [
                    {"type": slot.type, "box": base64.b64encode(slot.box).decode(), **slot.fields}
                    for slot in slots.values()
                ],
                **({"after": after.hex()} if after else {}),
            }
        ).encode()
        mac = _mac(master, envelope_id, body)
        return cls(envelope_id, identifier, generation, slots, after, body, mac)

    def to_json(self) -> bytes:
        """Return the bytes of the file."""
        outer = {"body": self.body.decode(), "mac": self.mac.hex()}
        return json.dumps(outer, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> "Envelope":
        """Parse the bytes of an envelope file.

        Raises:
            IntegrityError: They are not an envelope.
            UnsupportedFormatError: Another version of the library wrote it.
        """
        try:
            if len(text) > MAX_BYTES:
                raise ValueError("too long")
            outer = _members(json.loads(text, object_pairs_hook=_unique), {"body": str, "mac": str})
            body = outer["body"].encode()
            inner = json.loads(body, object_pairs_hook=_unique)
            if not isinstance(inner, dict) or inner.get("format") != FORMAT:
                raise ValueError("another kind of file")
            version = inner.get("version")
            if type(version) is int and version != VERSION:
                raise UnsupportedFormatError(
                    f"The envelope has format {version}; this version of service-security reads "
                    f"format {VERSION}. Use the version that wrote it."
                )
            after = _hex(inner.pop("after"), 32) if "after" in inner else b""
            _members(
                inner,
                {
                    "format": str,
                    "version": int,
                    "envelope_id": str,
                    "master_id": str,
                    "generation": int,
                    "slots": list,
                },
            )
            slots = [_slot(entry) for entry in inner["slots"]]
            return cls(
                _hex(inner["envelope_id"], 16),
                _hex(inner["master_id"], 32),
                inner["generation"],
                _unique([(slot.type, slot) for slot in slots]),
                after,
                body,
                _hex(outer["mac"], 32),
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            raise IntegrityError(
                "It is damaged or is no envelope. Restore it from the backup."
            ) from None

    def open(self, wrapping: WrappingKey, slot_type: str) -> SecretBytes:
        """Return the master key out of one slot.

        Raises:
            KeyError: There is no such slot.
            WrongKeyError: ``wrapping`` does not open it.
            IntegrityError: The envelope was changed.
            UnsupportedFormatError: Another version of the library wrote the slot.
        """
        master = sealed_box.open_box(
            wrapping.key,
            self.slots[slot_type].box,
            magic=_MAGIC,
            purpose="slot",
            context=_slot_context(self.envelope_id, self.master_id, slot_type) + wrapping.binding,
        )[1]
        if not hmac.compare_digest(_mac(master, self.envelope_id, self.body), self.mac):
            master.close()
            raise IntegrityError("It was changed after it was written. Restore it from the backup.")
        return master

    def recovery_key(self, master: SecretBytes) -> SecretBytes | None:
        """Return the recovery key that is kept for backups; None without a recovery phrase.

        Args:
            master: Its master key, which proves by ``open`` that the envelope is whole.

        Raises:
            IntegrityError: It is not what was written.
            UnsupportedFormatError: Another version of the library wrote it.
        """
        slot = self.slots.get(RECOVERY)
        if slot is None:
            return None
        try:
            return sealed_box.open_box(
                master,
                base64.b64decode(slot.fields["kept"], validate=True),
                magic=_MAGIC,
                purpose=_KEPT,
                context=_slot_context(self.envelope_id, self.master_id, RECOVERY),
            )[1]
        except (KeyError, ValueError, WrongKeyError):
            raise IntegrityError(
                "Its recovery slot is damaged. Restore it from the backup."
            ) from None


def _slot_context(envelope_id: bytes, identifier: bytes, slot_type: str) -> bytes:
    return envelope_id + identifier + slot_type.encode("ascii")


def _mac(master: SecretBytes, envelope_id: bytes, body: bytes) -> bytes:
    with derive(master, salt=envelope_id, context="envelope/mac") as key, key.view as view:
        return hmac.digest(view, body, "sha256")


def _slot(entry: Any) -> Slot:
    if not isinstance(entry, dict) or not all(type(value) is str for value in entry.values()):
        raise ValueError("a slot is an object of texts")
    if not _TYPE.fullmatch(entry["type"]):  # it is shown, also where nothing is authenticated
        raise ValueError("no type of slot")
    fields = {name: value for name, value in entry.items() if name not in ("type", "box")}
    return Slot(entry["type"], fields, base64.b64decode(entry["box"], validate=True))


def _after(master: SecretBytes, envelope_id: bytes, identifier: bytes) -> bytes:
    with derive(master, salt=envelope_id, context="envelope/after") as key, key.view as view:
        return hmac.digest(view, identifier, "sha256")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers that disagree about which of two equal names counts are a way around a check.
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name appears twice")
    return dict(pairs)


def _members(value: Any, types: dict[str, type]) -> dict[str, Any]:
    """Return ``value`` if it is an object of exactly these members."""
    if not isinstance(value, dict) or value.keys() != types.keys():
        raise ValueError("unexpected members")
    if any(type(value[name]) is not kind for name, kind in types.items()):
        raise ValueError("a member of another type")
    return value


def _hex(text: str, length: int) -> bytes:
    if not re.fullmatch(rf"[0-9a-f]{{{2 * length}}}", text):
        raise ValueError("not hexadecimal digits of the right length")
    return bytes.fromhex(text)
