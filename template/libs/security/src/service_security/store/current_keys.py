"""The keys of an open store, which another process may replace by a new generation."""

from collections.abc import Callable
from pathlib import Path

import apsw

from ..errors import IntegrityError
from ..keys.keyset import Keyset
from .header import Header, HeaderKeys, read_generation
from .record import RecordKeys


class CurrentKeys:
    """The record keys in use, and what it takes to load the next generation of them.

    Args:
        header_keys: Taken over.
        record: The record keys of the header as it is now; taken over.
        path: The database file, for messages.
        clock: Gives Unix seconds. Whether the grace of a retired key is over is looked up when
            keys are loaded, and not for every record: a process that never calls ``refresh`` goes
            on to open what that key has sealed until something else makes it load them.
    """

    def __init__(
        self,
        header_keys: HeaderKeys,
        record: RecordKeys,
        path: Path,
        clock: Callable[[], float],
    ) -> None:
        self.header = header_keys
        self.record = record
        self.clock = clock
        self._path = path

    def reload(self, connection: apsw.Connection) -> None:
        """Load the keyset that is in the database now.

        Raises:
            IntegrityError: The header is damaged, or its keyset is older than the one in use.
            UnsupportedFormatError: Another version of the library wrote it.
        """
        keyset, header = self._on_disk(connection)
        old, self.record = self.record, RecordKeys(keyset, header.db_id, self.clock())
        old.close()

    def check(self, connection: apsw.Connection) -> None:
        """See that the keyset in the database opens and is not older than the one in use.

        Raises:
            IntegrityError: As for ``reload``.
            UnsupportedFormatError: As for ``reload``.
        """
        self._on_disk(connection)[0].close()

    def refresh(self, connection: apsw.Connection) -> bool:
        """Load the keyset again if it is another one by now, or if the grace of a key is over.

        Returns:
            Whether it was loaded.

        Raises:
            IntegrityError: As for ``reload``.
            UnsupportedFormatError: As for ``reload``.
        """
        is_current = read_generation(connection) == self.record.generation
        if is_current and self.clock() < self.record.stale_at:
            return False
        self.reload(connection)
        return True

    def that_know(self, key_id: int, connection: apsw.Connection) -> RecordKeys:
        """Return the record keys; a key that they do not have may be of a newer generation.

        Raises:
            IntegrityError: As for ``reload``.
            UnsupportedFormatError: As for ``reload``.
        """
        if key_id not in self.record.key_ids:
            self.reload(connection)
        return self.record

    def _on_disk(self, connection: apsw.Connection) -> tuple[Keyset, Header]:
        header = Header.read(connection)
        keyset = self.header.open(header)
        if keyset.generation < self.record.generation:
            keyset.close()
            raise IntegrityError(
                f"The keyset of {self._path} went back to an older generation. "
                "Restore the database from a backup."
            )
        return keyset, header

    def close(self) -> None:
        """Wipe every key."""
        self.record.close()
        self.header.close()
