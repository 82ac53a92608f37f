"""The envelope: the master key, sealed once per slot, in a file beside the data.

The file is JSON, ``{"body": "...", "mac": "..."}``. The body is itself JSON, kept as one string
so that the MAC covers exact bytes::

    {"format": "service-security-envelope", "version": 1, "envelope_id": 16 bytes hex,
     "master_id": 32 bytes hex, "generation": 1, "slots": [{"type": "key-file", "box": base64}]}

    mac      = HMAC-SHA256(HKDF(master, envelope_id, info("envelope/mac"), 32), body), hex
    slot box = sealed_box, magic SSSL, no fields, purpose "slot",
               context envelope_id || master_id || type
"""

import base64
import hmac
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ..errors import (
    IntegrityError,
    KeyUnavailableError,
    UnsupportedFormatError,
    WrongKeyError,
)
from ..secret_bytes import SecretBytes
from . import sealed_box
from .derivation import derive, master_id
from .key_file import CONTAINER_SECRET, KEY_FILE, read_key

FORMAT: Final = "service-security-envelope"
VERSION: Final = 1
_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Slot:
    """One way to the master key.

    Attributes:
        type: What holds the wrapping key: ``key-file`` or ``container-secret``.
        box: The master key, sealed under the wrapping key.
    """

    type: str
    box: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope. Nothing in it is trusted before ``open`` has checked the MAC.

    Attributes:
        envelope_id: 16 random bytes.
        master_id: Check value of the master key, 32 bytes.
        generation: Counts the changes of the envelope, from 1.
        slots: The ways to the master key; the first of a known type is used.
        body: The exact bytes that the MAC covers.
        mac: 32 bytes.
    """

    envelope_id: bytes
    master_id: bytes
    generation: int
    slots: tuple[Slot, ...]
    body: bytes
    mac: bytes

    @classmethod
    def create(cls, master: SecretBytes, wrapping_key: SecretBytes, slot_type: str) -> "Envelope":
        """Return a new envelope of one slot for ``master``."""
        envelope_id, identifier = os.urandom(16), master_id(master)
        box = sealed_box.seal(
            wrapping_key,
            master,
            magic=b"SSSL",
            purpose="slot",
            context=_slot_context(envelope_id, identifier, slot_type),
        )
        body = json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "envelope_id": envelope_id.hex(),
                "master_id": identifier.hex(),
                "generation": 1,
                "slots": [{"type": slot_type, "box": base64.b64encode(box).decode()}],
            }
        ).encode()
        slots = (Slot(slot_type, box),)
        mac = _mac(master, envelope_id, body)
        return cls(envelope_id, identifier, 1, slots, body, mac)

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
            if len(text) > _MAX_BYTES:
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
            slots = tuple(
                Slot(slot["type"], base64.b64decode(slot["box"], validate=True))
                for slot in (_members(entry, {"type": str, "box": str}) for entry in inner["slots"])
            )
            return cls(
                _hex(inner["envelope_id"], 16),
                _hex(inner["master_id"], 32),
                inner["generation"],
                slots,
                body,
                _hex(outer["mac"], 32),
            )
        except (ValueError, TypeError, RecursionError):
            raise IntegrityError(
                "It is damaged or is no envelope. Restore it from the backup."
            ) from None

    def open(self, wrapping_key: SecretBytes, slot: Slot) -> SecretBytes:
        """Return the master key out of one slot.

        Raises:
            WrongKeyError: ``wrapping_key`` does not open the slot.
            IntegrityError: The envelope was changed.
            UnsupportedFormatError: Another version of the library wrote the slot.
        """
        master = sealed_box.open_box(
            wrapping_key,
            slot.box,
            magic=b"SSSL",
            purpose="slot",
            context=_slot_context(self.envelope_id, self.master_id, slot.type),
        )[1]
        if not hmac.compare_digest(_mac(master, self.envelope_id, self.body), self.mac):
            master.close()
            raise IntegrityError("It was changed after it was written. Restore it from the backup.")
        return master


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """The two keys of a service, for work that needs both. Close it as soon as it is done.

    Attributes:
        master: The master key.
        wrapping: The key out of the key file, which opens the envelope.
        slot_type: What the key file is: ``key-file`` or ``container-secret``.
    """

    master: SecretBytes
    wrapping: SecretBytes
    slot_type: str

    def close(self) -> None:
        """Wipe both keys."""
        self.master.close()
        self.wrapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_keys(envelope: Path, key_file: Path) -> ServiceKeys:
    """Return both keys of a service. The caller closes them.

    Args:
        envelope: The envelope file, beside the data.
        key_file: The file with the 32-byte wrapping key.

    Raises:
        KeyUnavailableError: The envelope or the key file is missing or unreadable.
        ConfigurationError: The key file has a wrong mode, owner or length.
        WrongKeyError: The key is not the one of this envelope.
        IntegrityError: The envelope is damaged.
        UnsupportedFormatError: Another version of the library wrote the envelope.
    """
    text = _read(envelope)
    try:
        parsed = Envelope.from_json(text)
        slots = [slot for slot in parsed.slots if slot.type in (KEY_FILE, CONTAINER_SECRET)]
        if not slots:
            raise UnsupportedFormatError(
                "It has no slot that this version of service-security can open. "
                "Use the version that wrote it."
            )
        wrapping = read_key(key_file, slots[0].type)
        try:
            return ServiceKeys(parsed.open(wrapping, slots[0]), wrapping, slots[0].type)
        except BaseException:
            wrapping.close()
            raise
    except WrongKeyError:
        raise WrongKeyError(
            f"The key in {key_file} does not open {envelope}. Either it is the key of another "
            "service, or the envelope is damaged; put back the two that belong together."
        ) from None
    except (IntegrityError, UnsupportedFormatError) as error:
        raise type(error)(f"The key envelope {envelope} cannot be used. {error}") from None


def open_master_key(envelope: Path, key_file: Path) -> SecretBytes:
    """Return the master key of a service. The caller closes it.

    Args:
        envelope: The envelope file, beside the data.
        key_file: The file with the 32-byte wrapping key.

    Raises:
        SecurityError: As for ``open_keys``.
    """
    keys = open_keys(envelope, key_file)
    keys.wrapping.close()
    return keys.master


def _read(envelope: Path) -> bytes:
    try:
        with envelope.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise KeyUnavailableError(
            f"There is no key envelope {envelope}. A new service makes its key with `uv run python "
            "-m service_security init`; where there is data already, put the envelope back from "
            "the backup: a new key could not read it."
        ) from None
    except OSError as error:
        raise KeyUnavailableError(
            f"The key envelope {envelope} cannot be read: {error.strerror}."
        ) from error


def _slot_context(envelope_id: bytes, identifier: bytes, slot_type: str) -> bytes:
    return envelope_id + identifier + slot_type.encode("ascii")


def _mac(master: SecretBytes, envelope_id: bytes, body: bytes) -> bytes:
    with derive(master, salt=envelope_id, context="envelope/mac") as key, key.view as view:
        return hmac.digest(view, body, "sha256")


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
