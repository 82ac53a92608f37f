"""Rotates the record keys of an open store while it is in use; ``keys.rotation`` has the states.

The keyset and the rows on disk are all the state there is. Whatever is stopped, by a crash or by a
full disk, goes on from there when ``run`` or ``tend`` is called again, in any process.
"""

from datetime import timedelta

from ..keys.rotation import (
    DEFAULT_INTERVAL,
    checked_interval,
    destroyed_keys,
    rotation_due,
    unfinished,
)
from ..progress import Progress
from .cipher import cipher_named
from .key_retirement import KeyRetirement
from .key_status import KeyStatus, key_status
from .keys_lock import keys_held, keys_held_if_free
from .live_keyset import LiveKeyset
from .log import log_holds_a_keyset, log_size
from .rotation_report import OnStep, Rotated, RotationStep, Tended
from .rotation_steps import RotationSteps
from .row_pages import count_by_key


def _quiet_progress(_done: int, _total: int) -> None:
    pass


def _quiet_step(_step: RotationStep) -> None:
    pass


class KeyRotation:
    """Changes the keys of a store; made by ``SecureDb.rotation``.

    Args:
        live: The keyset of the store.
    """

    def __init__(self, live: LiveKeyset) -> None:
        self._live = live

    def run(
        self,
        *,
        cipher: str | None = None,
        progress: Progress = _quiet_progress,
        on_step: OnStep = _quiet_step,
    ) -> Rotated:
        """Rotate the key of the records, or end what is unfinished.

        Others read and write meanwhile. What is unfinished goes on in its direction, with the key
        and the cipher that it has.

        Args:
            cipher: Of the new key: ``xchacha20poly1305`` or ``aes256gcm``; None for that of the
                key before.
            progress: Told how many records were looked at, of those there are: once while they
                are moved, and once more, from nothing, while they are read.
            on_step: Told of every step.

        Raises:
            ConfigurationError: There is no such cipher, or the database was rotated too often.
            IntegrityError: A record did not open under the new key, and the rotation was rolled
                back; or the file is damaged.
            RuntimeError: This thread is in a transaction.
            StoreUnavailableError: The file cannot be written, is only read, or somebody else
                changes its keys. What was begun goes on when this is called again.
        """
        chosen = None if cipher is None else cipher_named(cipher).code
        self._live.refuse_unwritable()
        with keys_held(self._live.file.absolute):
            return RotationSteps(self._live, progress, on_step).run(chosen)

    def roll_back(
        self, *, progress: Progress = _quiet_progress, on_step: OnStep = _quiet_step
    ) -> Rotated:
        """Make the old key the primary again, and move what the new one has sealed back to it.

        Args:
            progress: Told how many records were looked at, of those there are.
            on_step: Told of every step.

        Raises:
            ConfigurationError: No rotation is unfinished.
            IntegrityError: The file is damaged.
            RuntimeError: As for ``run``.
            StoreUnavailableError: As for ``run``.
        """
        self._live.refuse_unwritable()
        with keys_held(self._live.file.absolute):
            return RotationSteps(self._live, progress, on_step).roll_back()

    def tend(
        self,
        *,
        interval: timedelta | None = DEFAULT_INTERVAL,
        cipher: str | None = None,
        progress: Progress = _quiet_progress,
        on_step: OnStep = _quiet_step,
    ) -> Tended:
        """Do what is due: what a service calls every few minutes or hours, in any thread.

        Keys that another process has changed are loaded, and keys whose grace is over let go. A
        rotation that is unfinished goes on; one begins when the primary is older than
        ``interval``. Retired keys are destroyed after their grace, and forgotten later.

        Args:
            interval: 30 to 365 days; None to begin no rotation.
            cipher: As for ``run``.
            progress: As for ``run``.
            on_step: As for ``run``.

        Raises:
            ConfigurationError: The interval is out of range, or as for ``run``.
            IntegrityError: As for ``run``.
            RuntimeError: As for ``run``.
            StoreUnavailableError: As for ``run``; but it is no error when somebody else changes
                the keys.
        """
        checked_interval(interval)
        chosen = None if cipher is None else cipher_named(cipher).code
        self._live.refuse_unwritable()
        file, retirement = self._live.file, KeyRetirement(self._live, on_step)
        with file:
            reloaded = self._live.keys.refresh(file.connection)
        if not (self._is_rotation_due(interval) or retirement.is_due()):
            return Tended(reloaded)
        with keys_held_if_free(file.absolute) as held:
            if not held:
                return Tended(reloaded, elsewhere=True)
            rotated = None
            if self._is_rotation_due(interval):
                rotated = RotationSteps(self._live, progress, on_step).run(chosen)
            destroyed, kept = retirement.destroy()
            forgotten = retirement.forget()
            emptied = retirement.empty_log()
            return Tended(reloaded, False, rotated, destroyed, kept, forgotten, emptied)

    def status(
        self,
        *,
        interval: timedelta | None = DEFAULT_INTERVAL,
        progress: Progress = _quiet_progress,
    ) -> KeyStatus:
        """Return how the keys stand. It counts the records, and changes nothing.

        Args:
            interval: As for ``tend``.
            progress: Told how many records were counted.

        Raises:
            ConfigurationError: The interval is out of range.
            IntegrityError: The file is damaged.
            StoreUnavailableError: The file cannot be read.
        """
        checked_interval(interval)
        now = self._live.clock()
        with self._live.moment() as (file, keys):
            gone = frozenset(destroyed_keys(keys.record.keyset))
            is_clean = gone <= self._live.keys.log_emptied_of
            return key_status(
                keys.record.keyset,
                count_by_key(file, progress),
                interval=interval,
                now=now,
                log_size=log_size(file),
                log_holds_a_keyset=not is_clean and log_holds_a_keyset(file),
            )

    def _is_rotation_due(self, interval: timedelta | None) -> bool:
        with self._live.read() as now_keys:
            keyset = now_keys.keyset
            if unfinished(keyset) is not None:
                return True
            due = None if interval is None else rotation_due(keyset, interval)
            return due is not None and self._live.clock() >= due
