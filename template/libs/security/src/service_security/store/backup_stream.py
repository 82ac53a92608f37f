r"""The bytes of a backup. Nothing here touches a file.

::

    stream  = header || salt32 || commit32 || chunk*                   header: backup_header
    key32 || commit32 = HKDF-SHA256(backup key, salt32, info("backup/stream") || SHA256(header), 64)
    chunk   = AES-256-GCM(key32, nonce = number u88 || last u8, no AAD)
    payload = record* || 0x00 || count u64
    record  = 0x01 || len(name) u16 || len(value) u32 || name || value

The payload is cut into chunks of 65,536 bytes, of which the last has 1 to 65,536. They are
numbered from 0; ``last`` is 1 for the last one and 0 for the others. No name comes twice.

This is the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizar, 2015) as the age format
has it: where a chunk is cut off, moved, repeated or left out, another nonce is expected. The key is
made for one stream, so counting never gives a nonce twice. The hash of the header is in the key, so
no slot can be edited, and the commitment tells before any chunk is opened.
"""

import hashlib
import hmac
import io
import os
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..keys.derivation import KEY_BYTES, derive, info
from ..secret_bytes import SecretBytes
from .backup_header import BackupHeader, Read, damaged, exactly
from .record import MAX_VALUE_BYTES

CHUNK_BYTES: Final = 2**16
SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + 16
_TAG: Final = 16
_SALT: Final = 32
_COMMIT: Final = 32
_COUNT: Final = 8
_LENGTHS: Final = struct.Struct(">HI")


class ChunkCipher:
    """Seals and opens the chunks of one stream. Use it in a ``with`` block, which wipes its key.

    Args:
        backup_key: Used during this call only.
        header: The exact bytes of the header.
        salt: 32 random bytes, drawn for this stream.
    """

    def __init__(self, backup_key: SecretBytes, header: bytes, salt: bytes) -> None:
        label = info("backup/stream") + hashlib.sha256(header).digest()
        self._keys = derive(backup_key, salt=salt, context=label, length=KEY_BYTES + _COMMIT)
        with self._keys.view as view:
            self._aead = AESGCM(view[:KEY_BYTES])
            self.commitment = bytes(view[KEY_BYTES:])

    @classmethod
    def read(cls, header: BackupHeader, keys: Mapping[str, SecretBytes], read: Read) -> Self:
        """Read what is between header and chunks, and check that all of it belongs together.

        Raises:
            WrongKeyError: None of ``keys`` opens the backup.
            IntegrityError: The front of the stream is damaged.
            UnsupportedFormatError: Another version of the library wrote the slot.
        """
        salt, commitment = exactly(read, _SALT), exactly(read, _COMMIT)
        with header.open(keys) as backup_key:
            cipher = cls(backup_key, header.raw, salt)
        # The slot has proven the key, so what differs here are the bytes.
        if not hmac.compare_digest(cipher.commitment, commitment):
            cipher.close()
            raise damaged()
        return cipher

    def seal(self, number: int, plaintext: bytes, *, last: bool) -> bytes:
        """Return a sealed chunk. Each number is sealed once; the caller answers for that."""
        return self._aead.encrypt(_nonce(number, last), plaintext, None)

    def open(self, number: int, sealed: bytes, *, last: bool) -> bytes:
        """Return the plaintext of a chunk.

        Raises:
            IntegrityError: It is not the chunk of this number, or not (or the only) last one.
        """
        if len(sealed) <= _TAG:
            raise damaged()
        try:
            return self._aead.decrypt(_nonce(number, last), sealed, None)
        except InvalidTag:
            raise damaged() from None

    def close(self) -> None:
        """Wipe the key, and let go of what OpenSSL made of it."""
        del self._aead  # it holds on to the key's page
        self._keys.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def seal_records(
    records: Iterable[tuple[bytes, bytes]], keys: Mapping[str, SecretBytes]
) -> Generator[bytes]:
    """Yield the stream of a backup, piece by piece.

    Args:
        records: Names and values; no name twice.
        keys: The keys that are to open the backup, by type of slot.

    Raises:
        ValueError: As for ``BackupHeader.create``.
    """
    salt = os.urandom(_SALT)
    with SecretBytes.generate(KEY_BYTES) as backup_key:
        header = BackupHeader.create(backup_key, keys)
        cipher = ChunkCipher(backup_key, header.raw, salt)
    with cipher:
        yield header.raw + salt + cipher.commitment
        for number, (chunk, last) in enumerate(_chunks(_payload(records))):
            yield cipher.seal(number, chunk, last=last)


def open_records(cipher: ChunkCipher, read: Read) -> Iterator[tuple[bytes, bytes]]:
    """Yield names and values, each as soon as the chunks that hold it are verified.

    Only when the iteration comes to its end without an error is the backup whole.

    Args:
        cipher: Of this stream.
        read: Continues at the first chunk.

    Raises:
        IntegrityError: A chunk is damaged or missing, or the payload is not well formed.
    """
    plain = _Plaintext(_opened_chunks(cipher, read))
    count = 0
    while (kind := plain.take(1)) == b"\x01":
        name_length, value_length = _LENGTHS.unpack(plain.take(_LENGTHS.size))
        if value_length > MAX_VALUE_BYTES:
            raise damaged()
        yield plain.take(name_length), plain.take(value_length)
        count += 1
    if kind != b"\0" or plain.take(_COUNT) != count.to_bytes(_COUNT) or not plain.is_at_end():
        raise damaged()


def count_at_end(cipher: ChunkCipher, chunk_bytes: int, read_chunk: Callable[[int], bytes]) -> int:
    """Return the number of records, which is at the end, without reading all before it.

    A stream that was cut short or extended is refused here, before hours of work on it.

    Args:
        cipher: Of this stream.
        chunk_bytes: Size of all sealed chunks.
        read_chunk: Returns the sealed chunk of a number.

    Raises:
        IntegrityError: The stream does not end in its last chunk.
    """
    number = last = (chunk_bytes - 1) // SEALED_CHUNK_BYTES
    end = b""
    while len(end) < _COUNT:  # it may reach over two chunks
        if number < 0:
            raise damaged()
        end = cipher.open(number, read_chunk(number), last=number == last) + end
        number -= 1
    return int.from_bytes(end[-_COUNT:])


def _payload(records: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    count = 0
    for name, value in records:
        yield b"\x01" + _LENGTHS.pack(len(name), len(value)) + name
        yield value
        count += 1
    yield b"\0" + count.to_bytes(_COUNT)


def _chunks(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield chunks, and whether each is the last one."""
    chunk = bytearray()
    for piece in pieces:
        rest = memoryview(piece)
        while len(chunk) + len(rest) > CHUNK_BYTES:  # a full chunk waits: it may be the last one
            space = CHUNK_BYTES - len(chunk)
            chunk += rest[:space]
            rest = rest[space:]
            yield bytes(chunk), False
            chunk.clear()
        chunk += rest
    yield bytes(chunk), True


def _opened_chunks(cipher: ChunkCipher, read: Read) -> Iterator[bytes]:
    number, sealed = 0, read(SEALED_CHUNK_BYTES)
    while following := read(SEALED_CHUNK_BYTES):
        yield cipher.open(number, sealed, last=False)
        number, sealed = number + 1, following
    yield cipher.open(number, sealed, last=True)


class _Plaintext:
    """Takes bytes out of chunks. A length that lies allocates no more than there is."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._offset = 0

    def take(self, length: int) -> bytes:
        end = self._offset + length
        if end <= len(self._chunk):
            piece = self._chunk[self._offset : end]
            self._offset = end
            return piece
        collected = io.BytesIO()  # gives out its buffer without a copy
        while missing := length - collected.tell():
            if self._offset == len(self._chunk):
                self._chunk, self._offset = next(self._chunks, b""), 0
                if not self._chunk:
                    raise damaged()
            self._offset += collected.write(self._chunk[self._offset : self._offset + missing])
        return collected.getvalue()

    def is_at_end(self) -> bool:
        return self._offset == len(self._chunk) and next(self._chunks, None) is None


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11) + bytes([last])
