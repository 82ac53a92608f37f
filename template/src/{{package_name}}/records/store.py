"""What the service expects of the store that holds the records."""

from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request


class StoreError(Exception):
    """The store could not do what was asked; the text names no record."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached at the moment (disk full, locked, not readable): try later."""


class DamagedRecordError(StoreError):
    """What was read is not what was written."""


@dataclass(frozen=True)
class Page:
    """Some names, and the position to go on from (`None` at the end)."""

    names: list[str]
    next_after: int | None


class RecordStore(Protocol):
    """Named values. Methods may be called from several threads and raise `StoreError` only."""

    def put(self, name: str, value: str) -> bool:
        """Keep a value under a name, durably; return whether the name is new."""

    def get(self, name: str) -> str | None:
        """Return the value, or `None` if there is no such record."""

    def delete(self, name: str) -> bool:
        """Remove a record; return whether there was one."""

    def page(self, after: int, limit: int) -> Page:
        """Return up to `limit` names beyond a position, which is 0 at the beginning.

        The order says nothing, and stays the same while records are added and removed.
        """

    def check(self) -> None:
        """Raise if the store cannot be read."""

    def close(self) -> None:
        """Release the store; nothing may be asked of it afterwards."""


async def _current_store(request: Request) -> RecordStore:
    store: RecordStore = request.app.state.store
    return store


CurrentStore = Annotated[RecordStore, Depends(_current_store)]
