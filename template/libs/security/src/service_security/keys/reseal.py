"""Changes who can open an envelope. The master key, and all that it opens, stay as they are.

A slot that is taken away revokes nothing: an older copy of the envelope still has it. Only a new
master key does (``keys rotate --master``).
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from .._files import ReplacedError, locked, replace_whole
from ..errors import ConfigurationError, IntegrityError, WrongKeyError
from ..secret_bytes import SecretBytes
from .envelope import Envelope
from .key_file import refuse_own_place
from .provider import RECOVERY, KeyProvider, WrappingKey
from .recovery import RecoveryKey
from .service_keys import ServiceKeys, open_with, read_envelope
from .source import KeySource

BUSY: Final = "Another command is changing the keys. Wait until it is done."


def reseal(envelope: Path, keys: ServiceKeys, to: KeySource) -> KeyProvider:
    """Give an envelope a slot for another source, in place of the one it has.

    The new slot is opened from the disk before the old one goes. A recovery phrase stays good.

    Args:
        envelope: The file that ``keys`` came out of, by the old source or the recovery phrase.
        keys: The keys of the service.
        to: The new source; it has to be a single one.

    Returns:
        The new provider.

    Raises:
        ConfigurationError: ``to`` is a list or set up wrongly, or the folder cannot be written.
        KeyUnavailableError: ``to`` can give no key; or it is another TPM than the one that the key
            is in now, which only the recovery phrase can move it to.
        WrongKeyError: ``to`` gave another key when the new slot was opened. Nothing is changed.
        StoreUnavailableError: Another command is changing the keys.
        ReplacedError: It is done, but may not be on the disk yet.
    """
    if len(to.providers) != 1:
        raise ConfigurationError(
            f"The key can be moved to one source only, and {to} is a list. Name the one."
        )
    provider = to.providers[0]
    refuse_own_place(provider, envelope)
    with provider.protect(keys.known_fields(provider.slot_type)) as wrapping:
        _replace(envelope, keys, {provider.slot_type: wrapping}, keep=(RECOVERY,), prove=provider)
    return provider


def change_recovery(envelope: Path, keys: ServiceKeys, recovery: SecretBytes) -> None:
    """Give an envelope another recovery phrase, or its first one.

    Args:
        envelope: The file that ``keys`` came out of.
        keys: The keys of the service.
        recovery: The recovery key of the new phrase.

    Raises:
        ConfigurationError: The folder cannot be written.
        StoreUnavailableError: Another command is changing the keys.
        ReplacedError: It is done, but may not be on the disk yet.
    """
    provider = RecoveryKey(recovery)
    with provider.protect() as wrapping:
        _replace(
            envelope, keys, {RECOVERY: wrapping}, keep=keys.envelope.slots.keys(), prove=provider
        )


def lock_beside(envelope: Path) -> Path:
    """Return the file that whoever changes an envelope holds locked."""
    return envelope.with_name(f"{envelope.name}.lock")


def _replace(
    path: Path,
    keys: ServiceKeys,
    new: Mapping[str, WrappingKey],
    *,
    keep: Collection[str],
    prove: KeyProvider,
) -> None:
    def check(text: bytes) -> None:
        try:
            with open_with(Envelope.from_json(text), prove) as found:
                is_proven = found.master == keys.master
        except (WrongKeyError, IntegrityError):
            is_proven = False
        if not is_proven:
            raise WrongKeyError(
                f"The new slot does not open with {prove} again, so {path} was left as it was."
            )

    with locked(lock_beside(path), BUSY):
        if read_envelope(path) != keys.envelope:
            raise ConfigurationError(
                f"{path} was changed by another command meanwhile. Run the command again."
            )
        changed = keys.envelope.with_slots(keys.master, new, keep=keep)
        try:
            replace_whole(path, changed.to_json(), check)
        except ReplacedError as error:
            error.args = (f"{error} It opens with {prove} now.",)
            raise
