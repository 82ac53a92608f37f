r"""One record: how it is named, sealed and opened. Nothing here touches the disk.

::

    K_record = HKDF(version_key, salt=db_id, info("store/record/" || cipher name), 32)
    K_name   = HKDF(index_key,   salt=db_id, info("store/name"), 32)

    token  = first 16 bytes of HMAC-SHA256(K_name, name)
    sealed = counter u64 || uuid16 || ciphertext || tag16
    nonce  = uuid16 || counter
    AAD    = "SSDB\x01" || cipher u8 || key_id u32 || token16
    plain  = 0x01 || len(name) u16 || name || value

The token hides the name on disk; the name itself is inside the ciphertext, so that iteration
can give it back. The associated data ties a record to its row, its key and this format.
"""

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from ..errors import IntegrityError
from ..keys.derivation import derive
from ..keys.keyset import Keyset
from ..keys.rotation import grace_ends, is_readable
from ..secret_bytes import SecretBytes
from .cipher import CIPHERS, NONCE_BYTES, TAG_BYTES, ExtendedNonceCipher

MAX_NAME_BYTES: Final = 2**16 - 1
MAX_VALUE_BYTES: Final = 2**29
_TOKEN_BYTES: Final = 16
_OVERHEAD: Final = NONCE_BYTES + 3 + TAG_BYTES


class Row(NamedTuple):
    """A record as the table holds it."""

    token: bytes
    key_id: int
    sealed: bytes


class _Version(NamedTuple):
    """A record key: its cipher, and the associated data of its records but for the token."""

    cipher: ExtendedNonceCipher
    aad: bytes


class RecordKeys:
    """Seals and opens records under one generation of a keyset.

    Args:
        keyset: Taken over; ``close`` wipes it.
        db_id: The database's 16-byte identifier.
        now: Unix seconds. A key that has retired for longer than its grace opens nothing.

    Raises:
        IntegrityError: The keyset names a cipher that does not exist.
    """

    def __init__(self, keyset: Keyset, db_id: bytes, now: float) -> None:
        self.generation = keyset.generation
        self.primary_id = keyset.primary_id
        self._keyset = keyset
        by_code = {cipher.code: cipher for cipher in CIPHERS.values()}
        self._record_keys: list[SecretBytes] = []
        self._versions: dict[int, _Version] = {}
        readable = [entry for entry in keyset.record_keys if is_readable(entry, now)]
        self.stale_at: Final = min(map(grace_ends, readable))
        """Unix seconds: from then on, one of these keys may open nothing any more."""
        for entry in readable:
            if entry.cipher not in by_code:
                raise IntegrityError("The keyset is damaged. Restore the database from a backup.")
            cipher = by_code[entry.cipher]
            record_key = derive(entry.key, salt=db_id, context="store/record/" + cipher.name)
            self._record_keys.append(record_key)
            aad = struct.pack(">5sBI", b"SSDB\x01", cipher.code, entry.key_id)
            self._versions[entry.key_id] = _Version(cipher(record_key), aad)
        self.key_ids = frozenset(self._versions)
        """The keys that this generation can open records of."""
        with derive(keyset.name_index.key, salt=db_id, context="store/name") as key, key.view as k:
            self._token_mac = HMAC(k, SHA256())

    @property
    def keyset(self) -> Keyset:
        """What these keys are of; ``close`` wipes it."""
        return self._keyset

    @property
    def cipher_name(self) -> str:
        """Name of the cipher that new records are sealed with."""
        return self._versions[self.primary_id].cipher.name

    def token(self, name: bytes) -> bytes:
        """Return the 16 bytes that stand for a name on disk."""
        mac = self._token_mac.copy()
        mac.update(name)
        return mac.finalize()[:_TOKEN_BYTES]

    def seal(
        self, pairs: Iterable[tuple[bytes, bytes]], uuid: bytes, first_counter: int
    ) -> list[Row]:
        """Return the rows of a call.

        Args:
            pairs: Names and values, checked and fixed before ``uuid`` was drawn.
            uuid: 16 bytes drawn for this call alone.
            first_counter: The first of as many leased counters as there are pairs.
        """
        key_id = self.primary_id
        cipher, aad = self._versions[key_id]
        rows = []
        for number, (name, value) in enumerate(pairs, first_counter):
            counter, token = number.to_bytes(8), self.token(name)
            front = b"\x01" + len(name).to_bytes(2) + name
            sealed = cipher.encrypt(uuid + counter, front + value, aad + token)
            rows.append(Row(token, key_id, counter + uuid + sealed))
        return rows

    def open(
        self, token: bytes, key_id: int, sealed: bytes, expected: bytes | None = None
    ) -> tuple[bytes, bytes]:
        """Return the name and value of a row.

        Args:
            token: As the table holds it, as the others.
            key_id: Which key sealed it.
            sealed: Nonce, ciphertext and tag.
            expected: The name that was asked for, where the row was found by its token. Without
                it, the token is made again from the name inside.

        Raises:
            IntegrityError: The row is not what was written, or belongs to another name.
        """
        version = self._versions.get(key_id)
        # A damaged page may give a value of any type, whatever the table says of its columns.
        if version is None or type(token) is not bytes or type(sealed) is not bytes:
            raise IntegrityError("A record failed its integrity check.")
        if len(sealed) < _OVERHEAD:
            raise IntegrityError("A record failed its integrity check.")
        cipher, aad = version
        nonce = sealed[8:NONCE_BYTES] + sealed[:8]
        plain = cipher.decrypt(nonce, sealed[NONCE_BYTES:], aad + token)
        length = int.from_bytes(plain[1:3])
        if plain[0] != 1 or len(plain) < 3 + length:
            raise IntegrityError("A record failed its integrity check.")
        name, value = plain[3 : 3 + length], plain[3 + length :]
        if self.token(name) != token if expected is None else name != expected:
            raise IntegrityError("A record failed its integrity check.")
        return name, value

    def close(self) -> None:
        """Wipe every key, and let go of what OpenSSL made of them."""
        for key in self._record_keys:
            key.close()
        self._versions.clear()
        del self._token_mac
        self._keyset.close()
