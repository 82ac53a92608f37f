"""The keyset of an open store: read for a change of it, and changed if nobody was faster.

Every change is one short transaction that compares the generation. So two who change the keys at
once cannot harm each other: one of them finds that it was overtaken, and looks again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass

from ..keys.keyset import Keyset
from .current_keys import CurrentKeys
from .header import Header, read_generation
from .record import RecordKeys
from .store_file import StoreFile
from .writer import Writer

Moment = Callable[[], AbstractContextManager[tuple[StoreFile, CurrentKeys]]]
"""Gives a store's file and keys as they are at one moment."""

WHAT = "a change of the keys"
"""Names it, where it cannot be a part of a transaction."""


class OvertakenError(Exception):
    """Somebody else has changed the keyset meanwhile. Read it again; nothing was written."""


@dataclass(frozen=True, slots=True)
class LiveKeyset:
    """What it takes to change the keys of a store in use.

    Attributes:
        file: The open file.
        keys: The keys of the store.
        moment: Gives both as they are at one moment.
        writer: Returns the writing half, and refuses what is only read.
        clock: Gives Unix seconds.
    """

    file: StoreFile
    keys: CurrentKeys
    moment: Moment
    writer: Callable[[], Writer]
    clock: Callable[[], float]

    @contextmanager
    def read(self) -> Iterator[RecordKeys]:
        """Read the keyset, for work that does not hold up the store.

        Yields:
            Record keys of the caller's own, which are wiped behind the block.

        Raises:
            IntegrityError: The header is damaged, or an older one was put in its place.
        """
        with self.file:
            header = Header.read(self.file.connection)
            own = RecordKeys(self.keys.opened(header), header.db_id, self.clock())
        with closing(own):
            yield own

    def change(self, following: Keyset) -> None:
        """Put a keyset in the place of the one before it, durably, and use it.

        Args:
            following: The keyset; wiped.

        Raises:
            OvertakenError: The keyset on disk is not the one before it.
        """
        connection = self.file.connection
        with following, self.file, self.writer().alone(WHAT):
            header = self.keys.header.seal(following)
            if not header.replace(connection, following.generation - 1):
                raise OvertakenError
        with self.file:
            self.keys.reload(connection)

    def refuse_overtaken(self, keys: RecordKeys) -> None:
        """Refuse to go on under keys that are not those on disk; the caller is alone on the file.

        Raises:
            OvertakenError: The keyset on disk is another one.
        """
        if read_generation(self.file.connection) != keys.generation:
            raise OvertakenError

    def refuse_unwritable(self) -> None:
        """Refuse a store whose keys cannot be changed.

        Raises:
            RuntimeError: This thread is in a transaction.
            StoreUnavailableError: It is only read, was moved away, or has failed.
        """
        writer = self.writer()
        with self.file:
            writer.refuse_in_transaction(WHAT)
            self.file.refuse_after_failed_write()
            self.file.refuse_moved()
