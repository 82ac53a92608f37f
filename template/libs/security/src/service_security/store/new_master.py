"""Puts the databases of a service under a new master key.

::

    envelope.json            the master key that the service opens
    envelope.json.next       the new one, until the last database is under it
    envelope.json.previous   the one before, which a person deletes

Only the header of a database is sealed anew; its records stay as they are. Each header names its
master key, so a change that was interrupted goes on where it stopped, and at every moment the
master key of each database is in an envelope on the disk.

Single fields (``field``) lie in databases that are not known here. They stay under the old master
key, which the previous envelope still opens.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .._files import create_whole, exists, held, locked, replace_whole, sync_folder
from ..errors import (
    ConfigurationError,
    IntegrityError,
    StoreUnavailableError,
    WrongKeyError,
)
from ..keys.derivation import KEY_BYTES
from ..keys.envelope import Envelope
from ..keys.key_file import refuse_own_place
from ..keys.provider import RECOVERY, KeyProvider, WrappingKey
from ..keys.recovery import RecoveryKey
from ..keys.reseal import BUSY, lock_beside
from ..keys.service_keys import (
    ServiceKeys,
    envelope_is_there,
    next_envelope,
    open_with,
    previous_envelope,
    read_envelope,
)
from ..keys.source import KeySource
from ..layout import DataFolder
from ..secret_bytes import SecretBytes
from .rewrapping import find_databases, rewrap
from .sqlite_errors import translated

OnStep = Callable[[str, Path], None]
"""Called behind each step with what was done, and with its file."""


@dataclass(frozen=True, slots=True)
class NewMaster:
    """What became of a change of the master key.

    Attributes:
        resumed: Whether it had been begun before.
        provider: What opens the new envelope.
        has_recovery: Whether it opens with a recovery phrase, too.
        databases: Those that are under the new master key.
        left: Files of the data folder that were left alone, and what they are.
        previous: Where the old envelope is kept.
    """

    resumed: bool
    provider: KeyProvider
    has_recovery: bool
    databases: tuple[Path, ...]
    left: tuple[tuple[Path, str], ...]
    previous: Path


def change_master(
    folder: DataFolder,
    old: ServiceKeys,
    to: KeySource,
    *,
    recovery: Callable[[], SecretBytes | None],
    also: Iterable[Path] = (),
    on_step: OnStep = lambda _step, _file: None,
) -> NewMaster:
    """Make a new master key, or go on with the one of a change that was interrupted.

    Whoever had the old master key may have the recovery key too, which is kept under it: so the new
    one comes with a new phrase.

    Args:
        folder: The service's data folder. No service may be running on it.
        old: The keys in its envelope.
        to: A single source, which the new master key is sealed by.
        recovery: Returns the recovery key of a new phrase that somebody has written down; closed
            here. Called when nothing stands in the way any more, and only for a new change.
        also: Databases elsewhere. Of the data folder all are taken.
        on_step: Told ``sealed`` for the next envelope, or ``resumed`` if it was there; ``changed``
            for each database, ``kept`` for the previous envelope, ``published`` for the new one.

    Raises:
        ConfigurationError: The envelope of an earlier change is still there, a file of ``also`` is
            not under the old master key, ``to`` is a list or not where an interrupted change goes
            to, or a folder cannot be written.
        KeyUnavailableError: ``to`` gives no key.
        IntegrityError: A database or the next envelope is damaged.
        WrongKeyError: The service's database is under another master key, or ``to`` does not open
            the next envelope.
        StoreUnavailableError: A service or another command is at work, or a database cannot be
            written. Run it again when that is mended.
    """
    if len(to.providers) != 1:
        raise ConfigurationError(
            f"A master key is sealed by one source only, and {to} is a list. Name the one."
        )
    provider, change = to.providers[0], _Change(folder, old, tuple(also), on_step)
    refuse_own_place(provider, folder.envelope)
    with ExitStack() as opened:
        with change.alone():
            if envelope_is_there(change.next):
                new = opened.enter_context(_open_next(change.next, provider, old.master))
                on_step("resumed", change.next)
                return change.finish(new, resumed=True)
            change.find(old.master)
        known = old.known_fields(provider.slot_type)
        # Not while the folder is held: a person takes time, and a key file may belong into it.
        keys = {provider.slot_type: opened.enter_context(provider.protect(known))}
        if key := recovery():
            opened.callback(key.close)
            keys[RECOVERY] = opened.enter_context(RecoveryKey(key).protect())
        with change.alone():
            new = opened.enter_context(change.seal(provider, keys))
            return change.finish(new, resumed=False)


class _Change:
    """The steps. All but ``alone`` are for its block."""

    def __init__(
        self, folder: DataFolder, old: ServiceKeys, also: tuple[Path, ...], on_step: OnStep
    ) -> None:
        self._folder = folder
        self._old = old
        self._also = also
        self._on_step = on_step
        self.next = next_envelope(folder.envelope)
        self.previous = previous_envelope(folder.envelope)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the service and other commands out, and see that nobody has changed the envelope."""
        envelope = self._folder.envelope
        with held(self._folder.path, wait=False), locked(lock_beside(envelope), BUSY):
            if read_envelope(envelope) != self._old.envelope:
                raise ConfigurationError(
                    f"{envelope} was changed by another command meanwhile. Run the command again."
                )
            with translated(self.previous):
                if exists(self.previous) and self.previous.read_bytes() != envelope.read_bytes():
                    raise ConfigurationError(
                        f"{self.previous} is there: the master key was changed before. It opens "
                        "copies and single fields of before that. Delete it if nothing needs it "
                        "any more, or move it away; then run the command again."
                    )
            yield

    def find(self, *masters: SecretBytes) -> tuple[list[Path], list[tuple[Path, str]]]:
        """Return the databases under one of the keys, and the files that are left alone."""
        return find_databases(self._folder, self._also, masters)

    def seal(self, provider: KeyProvider, keys: dict[str, WrappingKey]) -> ServiceKeys:
        """Make the next envelope with a new master key, and return what the disk gives back."""
        if envelope_is_there(self.next):
            raise StoreUnavailableError(BUSY)

        with ExitStack() as undo:
            proven: list[ServiceKeys] = []

            def check(text: bytes) -> None:
                envelope = Envelope.from_json(text)
                proven.append(undo.enter_context(open_with(envelope, provider)))
                if RECOVERY in keys:
                    open_with(envelope, RecoveryKey(keys[RECOVERY].key)).close()

            with SecretBytes.generate(KEY_BYTES) as master:
                replace_whole(
                    self.next,
                    Envelope.create(master, keys, after=self._old.master).to_json(),
                    check,
                )
            undo.pop_all()
        self._on_step("sealed", self.next)
        return proven[0]

    def finish(self, new: ServiceKeys, *, resumed: bool) -> NewMaster:
        """Put every database under the new master key, then let its envelope take the name."""
        databases, left = self.find(self._old.master, new.master)
        for database in databases:
            rewrap(database, self._old.master, new.master)
            self._on_step("changed", database)
        self._publish()
        has_recovery = new.recovery is not None
        return NewMaster(
            resumed, new.provider, has_recovery, tuple(databases), tuple(left), self.previous
        )

    def _publish(self) -> None:
        envelope = self._folder.envelope
        with translated(envelope):
            create_whole(self.previous, envelope.read_bytes())
            self._on_step("kept", self.previous)
            self.next.replace(envelope)
            sync_folder(envelope.parent)
        self._on_step("published", envelope)


def _open_next(path: Path, provider: KeyProvider, old: SecretBytes) -> ServiceKeys:
    envelope = read_envelope(path)
    opens_by = " or ".join(slot for slot in envelope.slots if slot != RECOVERY)
    where = (
        f"A change of the master key was interrupted, and {path} has the new one, which opens by "
        f"{opens_by}"
    )
    if provider.slot_type not in envelope.slots:
        raise ConfigurationError(f"{where}. Name where that key is, with --to SOURCE.")
    try:
        keys = open_with(envelope, provider)
    except WrongKeyError:
        raise WrongKeyError(
            f"{where}. {provider} is another one: name the source of the first time, with "
            "--to SOURCE."
        ) from None
    except IntegrityError as error:
        raise IntegrityError(f"{path} cannot be used. {error}") from None
    # An older envelope may have been put there, to bring back a master key that has leaked.
    if not envelope.follows(old):
        keys.close()
        raise IntegrityError(
            f"{path} was not made to follow on the envelope beside it, so no change of the master "
            "key here has left it. Find out who put it there and remove it, then run the command "
            "again."
        )
    return keys
