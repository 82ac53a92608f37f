"""The keys of an open store, which another process may replace by a new generation."""

from collections.abc import Callable
from pathlib import Path

import apsw

from ..errors import IntegrityError
from ..keys.keyset import Keyset
from .header import Header, HeaderKeys, read_version
from .record import RecordKeys


class CurrentKeys:
    """The record keys in use, and what it takes to load the next generation of them.

    Args:
        header_keys: Taken over.
        record: The record keys of the header as it is now; taken over.
        mac: Of that header.
        path: The database file, for messages.
        clock: Gives Unix seconds. Whether the grace of a retired key is over is looked up when
            keys are loaded, and not for every record: a process that never calls ``refresh`` goes
            on to open what that key has sealed until something else makes it load them.
    """

    def __init__(
        self,
        header_keys: HeaderKeys,
        record: RecordKeys,
        mac: bytes,
        path: Path,
        clock: Callable[[], float],
    ) -> None:
        self.header = header_keys
        self.record = record
        self.clock = clock
        self.log_emptied_of: frozenset[int] = frozenset()
        """Destroyed keys: this process has emptied the log since, so nothing of them is in it."""
        self._mac = mac
        self._path = path

    def reload(self, connection: apsw.Connection) -> None:
        """Load the keyset that is in the database now.

        Raises:
            IntegrityError: The header is damaged, or not one that may follow on the one in use.
            UnsupportedFormatError: Another version of the library wrote it.
        """
        header = Header.read(connection)
        keyset = self.opened(header)
        old, self.record = self.record, RecordKeys(keyset, header.db_id, self.clock())
        self._mac = header.mac
        old.close()

    def check(self, connection: apsw.Connection) -> None:
        """See that the keyset in the database opens, and may follow on the one in use.

        Raises:
            IntegrityError: As for ``reload``.
            UnsupportedFormatError: As for ``reload``.
        """
        self.opened(Header.read(connection)).close()

    def refresh(self, connection: apsw.Connection) -> bool:
        """Load the keyset again if it is another one by now, or if the grace of a key is over.

        Returns:
            Whether it was loaded.

        Raises:
            IntegrityError: As for ``reload``.
            UnsupportedFormatError: As for ``reload``.
        """
        is_current = read_version(connection) == (self.record.generation, self._mac)
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

    def opened(self, header: Header) -> Keyset:
        """Return the keyset of a header that was read just now; the caller is alone on the file.

        Generations only grow, and each is written once. So an older header, or another one of the
        same generation, was put there beside the library: what was written since may be lost.

        Raises:
            IntegrityError: As for ``reload``.
            UnsupportedFormatError: As for ``reload``.
        """
        keyset = self.header.open(header)
        if keyset.generation < self.record.generation:
            keyset.close()
            raise IntegrityError(
                f"The keyset of {self._path} went back to an older generation. "
                "Restore the database from a backup."
            )
        if keyset.generation == self.record.generation and header.mac != self._mac:
            keyset.close()
            raise IntegrityError(
                f"The keyset of {self._path} is not the one in use, though of the same generation: "
                "an older one was put back and changed. Restore the database from a backup."
            )
        return keyset

    def close(self) -> None:
        """Wipe every key."""
        self.record.close()
        self.header.close()
