"""The header row: which database this is, whose key opens it, and its sealed keyset.

::

    mac = HMAC-SHA256(K_header, fields), each field as length u32 || bytes, in the order
          format u32 || db_id16 || master_id32 || keyset_generation u64 || keyset
    K_header = HKDF(master, salt=db_id, info("store/header"), 32)
    K_keyset = HKDF(master, salt=db_id, info("store/keyset"), 32)
"""

import hmac
import struct
from dataclasses import dataclass
from typing import Self

import apsw

from ..errors import IntegrityError, UnsupportedFormatError, WrongKeyError
from ..keys.derivation import derive, master_id
from ..keys.keyset import Keyset
from ..secret_bytes import SecretBytes
from .schema import FORMAT


class HeaderKeys:
    """The two keys of a database that come from the master key, which is not kept.

    Args:
        db_id: The database's 16-byte identifier.
        master: Check value of the master key, 32 bytes.
        mac_key: Authenticates the header row; taken over.
        keyset_key: Seals the keyset; taken over.
    """

    def __init__(
        self, db_id: bytes, master: bytes, mac_key: SecretBytes, keyset_key: SecretBytes
    ) -> None:
        self.db_id = db_id
        self.master_id = master
        self._mac_key = mac_key
        self._keyset_key = keyset_key

    @classmethod
    def of(cls, master: SecretBytes, db_id: bytes) -> Self:
        """Derive the keys of a database from the master key."""
        return cls(
            db_id,
            master_id(master),
            derive(master, salt=db_id, context="store/header"),
            derive(master, salt=db_id, context="store/keyset"),
        )

    def copy(self) -> Self:
        """Return the same keys in pages of their own, to be closed apart from these."""
        with self._mac_key.view as mac_key, self._keyset_key.view as keyset_key:
            return type(self)(
                self.db_id,
                self.master_id,
                SecretBytes.copy_of(mac_key),
                SecretBytes.copy_of(keyset_key),
            )

    @property
    def canary(self) -> SecretBytes:
        """A secret that lives as long as these keys, and that a fork wipes."""
        return self._mac_key

    def seal(self, keyset: Keyset) -> "Header":
        """Return the header row that carries ``keyset``."""
        box = keyset.seal(self._keyset_key, self.db_id + self.master_id)
        header = Header(FORMAT, self.db_id, self.master_id, keyset.generation, box, mac=b"")
        return Header(*header.fields, mac=self._mac(header))

    def open(self, header: "Header") -> Keyset:
        """Return the keyset of a header row.

        Raises:
            WrongKeyError: Another master key belongs to this database.
            IntegrityError: The row is damaged or of another database.
            UnsupportedFormatError: Another version of the library wrote the keyset.
        """
        if not hmac.compare_digest(header.master_id, self.master_id):
            raise WrongKeyError("The master key is not the one of this database.")
        if header.db_id != self.db_id or not hmac.compare_digest(header.mac, self._mac(header)):
            raise IntegrityError("The database's header is damaged. Restore it from a backup.")
        try:
            keyset = Keyset.open(self._keyset_key, header.keyset, self.db_id + self.master_id)
        except WrongKeyError:
            raise IntegrityError(
                "The database's keyset is damaged. Restore it from a backup."
            ) from None
        if keyset.generation != header.keyset_generation:
            keyset.close()
            raise IntegrityError("The database's header is damaged. Restore it from a backup.")
        return keyset

    def close(self) -> None:
        """Wipe both keys."""
        self._mac_key.close()
        self._keyset_key.close()

    def _mac(self, header: "Header") -> bytes:
        fields = (
            struct.pack(">I", header.format),
            header.db_id,
            header.master_id,
            struct.pack(">Q", header.keyset_generation),
            header.keyset,
        )
        message = b"".join(struct.pack(">I", len(field)) + field for field in fields)
        with self._mac_key.view as key:
            return hmac.digest(key, message, "sha256")


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of the row, in their order."""

    format: int
    db_id: bytes
    master_id: bytes
    keyset_generation: int
    keyset: bytes
    mac: bytes

    @property
    def fields(self) -> tuple[int, bytes, bytes, int, bytes]:
        """The columns that the MAC covers."""
        return self.format, self.db_id, self.master_id, self.keyset_generation, self.keyset

    @classmethod
    def read(cls, connection: apsw.Connection) -> Self:
        """Return the row of a database.

        Raises:
            IntegrityError: There is none, or a number in it is out of range.
            UnsupportedFormatError: Another version of the library wrote it.
        """
        row = connection.execute(
            "SELECT format, db_id, master_id, keyset_generation, keyset, mac FROM header"
            " WHERE id = 1"
        ).fetchone()
        if row is not None and isinstance(row[0], int) and row[0] != FORMAT:
            raise UnsupportedFormatError(
                f"The database has format {row[0]}; this version of service-security reads format "
                f"{FORMAT}. Use the version that wrote it."
            )
        kinds = [int, bytes, bytes, int, bytes, bytes]
        if row is None or [*map(type, row)] != kinds or row[3] < 0 or len(row[1]) != 16:
            raise IntegrityError("The database's header is damaged. Restore it from a backup.")
        return cls(*row)

    def insert(self, connection: apsw.Connection) -> None:
        """Write the row of a new database."""
        connection.execute(
            "INSERT INTO header (id, format, db_id, master_id, keyset_generation, keyset, mac)"
            " VALUES (1, ?, ?, ?, ?, ?, ?)",
            (*self.fields, self.mac),
        )

    def replace(self, connection: apsw.Connection, generation: int) -> bool:
        """Write the row in place of the one of a generation, inside a transaction.

        Returns:
            False, with nothing written, if the row there is of another generation or another
            master key: somebody else has changed the keys meanwhile.
        """
        connection.execute(
            "UPDATE header SET keyset_generation = ?, keyset = ?, mac = ?"
            " WHERE id = 1 AND keyset_generation = ? AND master_id = ?",
            (self.keyset_generation, self.keyset, self.mac, generation, self.master_id),
        )
        return connection.changes() > 0


def read_version(connection: apsw.Connection) -> object:
    """Return generation and MAC of the header on disk, which is None if there is none."""
    return connection.execute("SELECT keyset_generation, mac FROM header WHERE id = 1").fetchone()


def read_generation(connection: apsw.Connection) -> int:
    """Return the generation of the keyset on disk; -1 if there is none."""
    found = connection.execute("SELECT keyset_generation FROM header WHERE id = 1").get
    return found if isinstance(found, int) else -1
