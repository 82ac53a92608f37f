"""Opens the master key of a service: its envelope, by the source that the settings name."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from .._files import exists
from ..command_line import command_line
from ..errors import (
    ConfigurationError,
    IntegrityError,
    KeyUnavailableError,
    UnsupportedFormatError,
    WrongKeyError,
)
from ..secret_bytes import SecretBytes
from .envelope import MAX_BYTES, Envelope
from .provider import OPENED_BY, PASSPHRASE, RAW_TYPES, RECOVERY, KeyProvider, WrappingKey
from .source import SETTING, KeySource, key_source

MASTER: Final = "master"
"""What the master key is called among the keys of a backup."""


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """The keys of a service, for work that needs more than the master key. Close it when done.

    Attributes:
        envelope: What they came out of.
        provider: What opened it.
        master: The master key.
        wrapping: The wrapping key.
        recovery: The recovery key, if there is a recovery phrase.
    """

    envelope: Envelope
    provider: KeyProvider
    master: SecretBytes
    wrapping: WrappingKey
    recovery: SecretBytes | None

    def for_backups(self) -> dict[str, SecretBytes]:
        """Return the keys that are to open a backup, by the type of its slot.

        A TPM opens nothing on another machine, and a passphrase nothing without its salt, so those
        backups open with the recovery phrase. The keys stay this object's.
        """
        keys = {MASTER: self.master}
        if self.provider.slot_type in RAW_TYPES:
            keys[self.provider.slot_type] = self.wrapping.key
        if self.recovery:
            keys[RECOVERY] = self.recovery
        return keys

    def known_fields(self, slot_type: str) -> Mapping[str, str] | None:
        """Return the members of a slot that these keys vouch for, as ``protect`` wants them.

        None if there is no such slot; and with the recovery phrase, which is for when the place of
        the slot is lost.
        """
        slot = self.envelope.slots.get(slot_type)
        return slot.fields if slot and self.provider.slot_type != RECOVERY else None

    def close(self) -> None:
        """Wipe every key."""
        self.master.close()
        self.wrapping.close()
        if self.recovery:
            self.recovery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_keys(envelope: Path, source: KeySource | str) -> ServiceKeys:
    """Return the keys of a service. The caller closes them.

    Args:
        envelope: The envelope file, beside the data.
        source: Where the wrapping key is. Of a list, the source counts whose slot is recorded in
            the envelope: a TPM that is missing is never made up for by another key.

    Raises:
        KeyUnavailableError: The envelope or the wrapping key cannot be had, or a change of the
            master key was interrupted.
        ConfigurationError: The source is none, has no slot, or is set up wrongly.
        WrongKeyError: The key is not the one of this envelope.
        IntegrityError: The envelope is damaged.
        UnsupportedFormatError: Another version of the library wrote the envelope.
    """
    if envelope_is_there(next_envelope(envelope)):
        raise KeyUnavailableError(
            f"{next_envelope(envelope)} is there: a change of the master key was interrupted. Go "
            f"on with it: `{command_line('keys rotate --master')}`, with the options of the first "
            "time."
        )
    return open_envelope(envelope, source)


def next_envelope(envelope: Path) -> Path:
    """Return where the envelope of a new master key lies until every database is under it."""
    return envelope.with_name(f"{envelope.name}.next")


def previous_envelope(envelope: Path) -> Path:
    """Return where the envelope of the master key before is kept."""
    return envelope.with_name(f"{envelope.name}.previous")


def open_envelope(envelope: Path, source: KeySource | str) -> ServiceKeys:
    """Return the keys in one envelope file, as ``open_keys`` does, whatever else is going on.

    Raises:
        SecurityError: As for ``open_keys``.
    """
    source = key_source(source)
    parsed = read_envelope(envelope)
    provider = _recorded(envelope, parsed, source)
    try:
        return open_with(parsed, provider)
    except WrongKeyError:
        if provider.slot_type == PASSPHRASE:
            raise WrongKeyError(
                f"What came from {provider} does not open {envelope}. Either it is another "
                "passphrase, or a letter of it is wrong, or the envelope is damaged."
            ) from None
        raise WrongKeyError(
            f"The key from {provider} does not open {envelope}. Either it is the key of another "
            "service, or the envelope is damaged; put back the two that belong together."
        ) from None
    except (IntegrityError, UnsupportedFormatError) as error:
        raise _unusable(envelope, error) from None


def open_master_key(envelope: Path, source: KeySource | str) -> SecretBytes:
    """Return the master key of a service. The caller closes it.

    Args:
        envelope: The envelope file, beside the data.
        source: Where the wrapping key is, as for ``open_keys``.

    Raises:
        SecurityError: As for ``open_keys``.
    """
    with open_keys(envelope, source) as keys, keys.master.view as view:
        return SecretBytes.copy_of(view)


def open_with(envelope: Envelope, provider: KeyProvider) -> ServiceKeys:
    """Return the keys of a parsed envelope, by one provider that has a slot in it.

    Raises:
        SecurityError: As for ``open_keys``, without the names of files.
    """
    slot = envelope.slots.get(provider.slot_type)
    if slot is None:
        raise ConfigurationError(f"The key envelope has no slot that opens with {provider}.")
    wrapping = provider.unprotect(slot.fields)
    try:
        master = envelope.open(wrapping, provider.slot_type)
        try:
            recovery = envelope.recovery_key(master)
        except BaseException:
            master.close()
            raise
    except BaseException:
        wrapping.close()
        raise
    return ServiceKeys(envelope, provider, master, wrapping, recovery)


def read_envelope(path: Path) -> Envelope:
    """Return a parsed envelope, of which nothing is trusted yet.

    Raises:
        KeyUnavailableError: It is missing or cannot be read.
        IntegrityError: It is damaged.
        UnsupportedFormatError: Another version of the library wrote it.
    """
    try:
        # A pipe is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise KeyUnavailableError(f"{path} is no regular file, so no key envelope.")
            text = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise KeyUnavailableError(
            f"There is no key envelope {path}. A new service makes it with "
            f"`{command_line('init')}`. "
            "Where there is data already, put a copy of the envelope back: a new key could not "
            "read it. Without a copy, move the database away, make a new key, and restore a backup."
        ) from None
    except OSError as error:
        raise KeyUnavailableError(
            f"The key envelope {path} cannot be read: {error.strerror}."
        ) from error
    try:
        return Envelope.from_json(text)
    except (IntegrityError, UnsupportedFormatError) as error:
        raise _unusable(path, error) from None


def envelope_is_there(path: Path) -> bool:
    """Tell whether there is an envelope; a dangling link is not "no envelope".

    Raises:
        KeyUnavailableError: It cannot be told, which never counts as none.
    """
    try:
        return exists(path)
    except OSError as error:
        raise KeyUnavailableError(
            f"Whether there is an envelope {path} cannot be told: {error.strerror}."
        ) from error


def _recorded(path: Path, envelope: Envelope, source: KeySource) -> KeyProvider:
    for provider in source.providers:
        if provider.slot_type in envelope.slots:
            return provider
    known = [OPENED_BY[slot_type] for slot_type in envelope.slots if slot_type in OPENED_BY]
    if not known:
        raise UnsupportedFormatError(
            f"The key envelope {path} has no slot that this version of service-security can open. "
            "Use the version that wrote it."
        )
    raise ConfigurationError(
        f"{path} opens with {' or '.join(known)}, and {SETTING} is {source}, which is none of "
        f"them. Set {SETTING} to where the key is, or move the key there: `keys reseal`; with the "
        "recovery phrase: `keys recover`."
    )


def _unusable(
    path: Path, error: IntegrityError | UnsupportedFormatError
) -> IntegrityError | UnsupportedFormatError:
    return type(error)(f"The key envelope {path} cannot be used. {error}")
