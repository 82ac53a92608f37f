"""Records in an encrypted database: on disk there are neither their names nor their values."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from service_security.errors import IntegrityError, SecurityError
from service_security.keys import KeySource, open_keys
from service_security.store import SecureDb
from service_security.store.key_rotation import KeyRotation
from service_security.store.other_kind import leave_note, refuse_other_kind

from ..errors import StartError
from .store import DamagedRecordError, Page, StoreError, StoreUnavailableError

_log: structlog.stdlib.BoundLogger = structlog.get_logger("records")


class SecureRecordStore:
    """A `RecordStore` on `SecureDb`."""

    def __init__(self, database: SecureDb) -> None:
        self._database = database
        self._trouble: str | None = None

    @classmethod
    def open(
        cls, path: Path, *, envelope: Path, key_source: str, cipher: str
    ) -> "SecureRecordStore":
        """Open a database, or create it under a key that `init` has made.

        Args:
            path: The database.
            envelope: The sealed master key.
            key_source: Where the key is that opens the envelope.
            cipher: For a new database; an existing one keeps its own.

        Raises:
            StartError: The key or the database cannot be used, or the records are not encrypted.
        """
        try:
            refuse_other_kind(path, cipher=cipher, key_source=key_source)
            source = KeySource.parse(key_source)
            with open_keys(envelope, source) as keys:
                if keys.provider is not source.providers[0]:
                    _log.warning(
                        "the key is not in the first place that SERVICE_KEY_SOURCE names",
                        first=str(source.providers[0]),
                        used=str(keys.provider),
                    )
                database = SecureDb.open(path, keys.master, cipher=cipher)
            leave_note(path)
        except SecurityError as error:
            raise StartError(str(error)) from error
        return cls(database)

    def put(self, name: str, value: str) -> bool:
        """Keep a value under a name, durably; return whether the name is new."""
        with _store_errors():
            return self._database.insert(name.encode(), value.encode())

    def get(self, name: str) -> str | None:
        """Return the value, or `None` if there is no such record."""
        with _store_errors():
            value = self._database.get(name.encode())
        return None if value is None else _text(value)

    def delete(self, name: str) -> bool:
        """Remove a record; return whether there was one."""
        with _store_errors():
            return self._database.remove(name.encode())

    def page(self, after: int, limit: int) -> Page:
        """Return up to `limit` names beyond a position.

        Damaged records are left out, so that one of them does not hide all the others, and logged.
        """
        with _store_errors():
            rows = self._database.page(after, limit + 1, on_damage=_report_damage)
        names = [_text(name) for _, name, _ in rows[:limit]]
        return Page(names, rows[limit - 1][0] if len(rows) > limit else None)

    def check(self) -> None:
        """Raise if the database cannot be read, or no longer belongs to the key.

        Whoever asks gets no details, so the reason is logged: once, until it changes.
        """
        try:
            with _store_errors():
                self._database.check()
        except StoreError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                _log.error("not ready", reason=self._trouble)
            raise
        if self._trouble:
            self._trouble = None
            _log.info("ready again")

    def rotation(self, clock: Callable[[], float] = time.time) -> KeyRotation:
        """Return what changes the keys of the database.

        Args:
            clock: Gives Unix seconds.
        """
        return self._database.rotation(clock=clock)

    def close(self) -> None:
        """Close the database and wipe the keys."""
        self._database.close()


def _report_damage(position: int) -> None:
    _log.error("damaged record left out", position=position)


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise DamagedRecordError(str(error)) from error
    except SecurityError as error:
        raise StoreUnavailableError(str(error)) from error


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise DamagedRecordError("a stored name or value is not text") from None
