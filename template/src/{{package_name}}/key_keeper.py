"""Looks after the keys of the records while the service runs.

It rotates the key when that is due, goes on with a rotation that was interrupted, destroys old
keys when their time is over, and takes over what another process has done. Of several processes
on one database one changes the keys and the others only load them. Whatever happens here, the
service goes on.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import structlog
from service_security.errors import SecurityError
from service_security.store.rotation_report import RotationStep, Tended

_EVERY_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 3600.0
# Stopping waits this long for the step that is under way; what is left is gone on with later.
_STOP_SECONDS = 2.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger("keys")


class Rotation(Protocol):
    """What looks after the keys: `SecureDb.rotation()`."""

    def tend(
        self,
        *,
        interval: timedelta | None,
        cipher: str | None,
        progress: Callable[[int, int], None],
        on_step: Callable[[RotationStep], None],
    ) -> Tended:
        """Do what is due."""


class _StoppedError(Exception):
    """The service stops, and with it the rotation, after any of its steps."""


class KeyKeeper:
    """Does what is due, once for each call of `tend`, and logs it.

    Args:
        rotation: Of an open store.
        interval: How old the key becomes; None leaves its rotation to a person.
        cipher: For new keys.
    """

    def __init__(self, rotation: Rotation, *, interval: timedelta | None, cipher: str) -> None:
        self._rotation = rotation
        self._interval = interval
        self._cipher = cipher
        self._stopped = threading.Event()
        self._failures = 0
        self._told: frozenset[str] = frozenset()

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next round: longer after each that has failed.

        A rotation that fails has perhaps read every record before.
        """
        return min(_EVERY_SECONDS * (1 << self._failures), _LONGEST_PAUSE_SECONDS)

    def tend(self) -> None:
        """Do what is due. Nothing is raised; what is wrong is logged once, until it changes."""
        try:
            tended = self._rotation.tend(
                interval=self._interval,
                cipher=self._cipher,
                progress=lambda _done, _all: self._refuse_when_stopped(),
                on_step=self._log_step,
            )
        except _StoppedError:
            return
        except Exception as error:  # noqa: BLE001 - the records can be served without this
            if not self._stopped.is_set():  # else the store was closed meanwhile
                self._failures = min(self._failures + 1, 10)
                self._tell(_reason(error), level="error")
            return
        self._failures = 0
        if tended.reloaded:
            _log.info("keys loaded anew")
        self._tell(*tended.sentences)

    def run(self) -> None:
        """Tend, now and then, until `stop` is called."""
        while not self._stopped.is_set():
            self.tend()
            self._stopped.wait(self.pause_seconds)

    def stop(self) -> None:
        """Let `run` and a rotation under way come to their end."""
        self._stopped.set()

    def _log_step(self, step: RotationStep) -> None:
        counted = {} if step.records is None else {"records": step.records}
        _log.info("key rotation", step=step.step, key=step.key_id, **counted)
        self._refuse_when_stopped()

    def _refuse_when_stopped(self) -> None:
        if self._stopped.is_set():
            raise _StoppedError

    def _tell(self, *reasons: str, level: str = "warning") -> None:
        for reason in reasons:
            if reason not in self._told:
                getattr(_log, level)("keys need attention", reason=reason)
        self._told = frozenset(reasons)


@contextmanager
def keep_keys(keeper: KeyKeeper) -> Iterator[None]:
    """Have the keys looked after in a thread while the block runs.

    The thread is a daemon: if the disk hangs, the process ends nevertheless.
    """
    thread = threading.Thread(target=keeper.run, name="key-keeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        keeper.stop()
        thread.join(_STOP_SECONDS)


def _reason(error: Exception) -> str:
    # The library's messages are made for people; those of other errors may repeat anything.
    return str(error) if isinstance(error, SecurityError) else type(error).__name__
