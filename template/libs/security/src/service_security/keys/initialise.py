"""Makes the key of a new service, once.

The never-create rule: a master key is made only here, only with no envelope and no encrypted data,
and no file is ever replaced. Two processes that run at once end with one key and one envelope.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .._files import create_whole, held, make_private_folder
from ..errors import ConfigurationError, KeyUnavailableError, SecurityError
from ..secret_bytes import SecretBytes
from .derivation import KEY_BYTES
from .envelope import Envelope
from .key_file import refuse_own_place
from .provider import RECOVERY, KeyProvider
from .recovery import RecoveryKey, may_open
from .service_keys import envelope_is_there, next_envelope, open_keys
from .source import KeySource, key_source


@dataclass(frozen=True, slots=True)
class Initialised:
    """What ``initialise`` found and made.

    Attributes:
        created: Whether the envelope is new.
        provider: What opens it.
        passed_over: Why sources before it in the list were not taken, a sentence each.
        has_recovery: Whether it opens with a recovery phrase, too.
    """

    created: bool
    provider: KeyProvider
    passed_over: tuple[str, ...]
    has_recovery: bool


def initialise(
    envelope: Path,
    source: KeySource | str,
    *,
    recovery: Callable[[], SecretBytes | None] = lambda: None,
    holds_encrypted_data: Callable[[], bool],
) -> Initialised:
    """Make a master key and its envelope.

    Running it again changes nothing: an envelope that opens is left as it is.

    Args:
        envelope: Where the envelope belongs, beside the data.
        source: Where the wrapping key is to come from; of a list, the first that can give one
            here and now. It never falls back afterwards.
        recovery: Returns the recovery key of a phrase that somebody has written down; closed here.
            Called once it is known that a key will be made, before anything is. Whatever fails
            after that says whether the phrase is to be destroyed or kept.
        holds_encrypted_data: Tells whether data would be lost with a new key. It must answer
            True, or raise, when it cannot know. Asked again right before the envelope is made.

    Raises:
        ConfigurationError: Encrypted data without an envelope, a source that is set up wrongly,
            or a folder that cannot be written; or another process made the envelope while this
            one had a recovery phrase written down.
        KeyUnavailableError: No source can give a key, or it cannot be told whether there is an
            envelope.
        StoreUnavailableError: A folder cannot be opened, or ``holds_encrypted_data`` cannot tell.
        WrongKeyError: An envelope is there and the key does not open it.
        IntegrityError: An envelope is there and is damaged.
    """
    source = key_source(source)
    if envelope_is_there(envelope) or envelope_is_there(next_envelope(envelope)):
        return _as_it_is(envelope, source)
    for provider in source.providers:
        refuse_own_place(provider, envelope)
    _refuse_data(envelope, holds_encrypted_data)
    chosen, passed_over = _first_available(source)
    if envelope.parent.is_dir():
        with held(envelope.parent, wait=True):
            pass  # a service that is in the way is told before a person writes down a phrase
    recovery_key = recovery()
    if recovery_key is None:
        created = _create(envelope, chosen, None, holds_encrypted_data)
    else:
        with recovery_key:
            try:
                created = _create(envelope, chosen, recovery_key, holds_encrypted_data)
                if not created:
                    raise ConfigurationError(f"Another command made {envelope} meanwhile.")
            except SecurityError as error:
                phrase = (
                    "Keep the recovery phrase of this run until init has run again: the envelope "
                    "may be there after all, and open with it."
                    if may_open(envelope, recovery_key)
                    else "The recovery phrase of this run opens nothing: destroy it."
                )
                error.args = (f"{error} {phrase}",)
                raise
    found = _as_it_is(envelope, source)  # proves what is on disk now
    return Initialised(created, found.provider, passed_over, found.has_recovery)


def _refuse_data(envelope: Path, holds_encrypted_data: Callable[[], bool]) -> None:
    if holds_encrypted_data():
        raise ConfigurationError(
            f"There is encrypted data beside {envelope}, but no envelope. A new key could not read "
            "that data. Put a copy of the envelope back. Without one, move the database away, run "
            "init again, and restore a backup. No envelope was made."
        )


def _create(
    envelope: Path,
    provider: KeyProvider,
    recovery: SecretBytes | None,
    holds_encrypted_data: Callable[[], bool],
) -> bool:
    make_private_folder(envelope.parent)
    with ExitStack() as opened:
        keys = {provider.slot_type: opened.enter_context(provider.protect())}
        if recovery:
            keys[RECOVERY] = opened.enter_context(RecoveryKey(recovery).protect())
        opened.enter_context(held(envelope.parent, wait=True))
        if envelope_is_there(envelope):
            return False
        # Again: it may have come while a person wrote the phrase down, from a backup for instance.
        _refuse_data(envelope, holds_encrypted_data)
        master = opened.enter_context(SecretBytes.generate(KEY_BYTES))
        return create_whole(envelope, Envelope.create(master, keys).to_json())


def _first_available(source: KeySource) -> tuple[KeyProvider, tuple[str, ...]]:
    passed_over: list[str] = []
    for provider in source.providers[:-1]:
        try:
            provider.probe()
        except KeyUnavailableError as error:  # what is set up wrongly is not passed over
            passed_over.append(str(error))
        else:
            return provider, tuple(passed_over)
    source.providers[-1].probe()
    return source.providers[-1], tuple(passed_over)


def _as_it_is(envelope: Path, source: KeySource) -> Initialised:
    with open_keys(envelope, source) as keys:
        return Initialised(
            created=False,
            provider=keys.provider,
            passed_over=(),
            has_recovery=keys.recovery is not None,
        )
