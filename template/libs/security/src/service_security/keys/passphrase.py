"""A wrapping key made of a passphrase by Argon2id (RFC 9106).

The slot holds the salt and the *name* of a profile. Parameters are never read from a file: whoever
could write them would choose the time and the memory that opening takes.

OpenSSL's Argon2id leaves copies of the passphrase in memory that it gives back, for as long as the
process runs; nothing here can wipe those. The key that it makes is wiped.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from ..errors import (
    ConfigurationError,
    IntegrityError,
    KeyUnavailableError,
    UnsupportedFormatError,
)
from ..secret_bytes import SecretBytes
from .derivation import KEY_BYTES
from .key_file import read_secret
from .provider import CONTAINER_SECRET, PASSPHRASE, WrappingKey

MIN_CHARACTERS: Final = 15
"""The fewest characters of a new passphrase (NIST SP 800-63B-4, 3.1.1.2, for one alone)."""

_MAX_BYTES: Final = 1024
_SALT: Final = 16


class Profile(NamedTuple):
    """Argon2id parameters: passes, lanes, memory in KiB."""

    iterations: int
    lanes: int
    memory_cost: int


PROFILES: Final = {
    "rfc9106-low-memory": Profile(iterations=3, lanes=4, memory_cost=64 * 1024),
    "rfc9106-high-memory": Profile(iterations=1, lanes=4, memory_cost=2 * 1024 * 1024),
}
"""The two recommended choices of RFC 9106, section 4: 64 MiB, and 2 GiB."""

DEFAULT_PROFILE: Final = next(iter(PROFILES))


@dataclass(frozen=True, slots=True)
class Passphrase:
    """A passphrase out of a file, or typed by a person.

    Attributes:
        path: The file; None asks ``ask``.
        ask: Returns what a person types; called with whether the passphrase is a new one.
        profile: Name of the Argon2id profile for a new slot.
    """

    path: Path | None
    ask: Callable[[bool], str]
    profile: str = DEFAULT_PROFILE
    slot_type = PASSPHRASE

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ConfigurationError(
                f"There is no passphrase profile {self.profile!r:.40}. The profiles are: "
                f"{', '.join(PROFILES)}."
            )

    def __str__(self) -> str:
        return f"passphrase:{self.path}" if self.path else "passphrase"

    def probe(self) -> None:
        """See that the file can be read and holds a passphrase. A person is not asked."""
        if self.path:
            self._passphrase(new=True).close()

    def protect(self, known: Mapping[str, str] | None = None) -> WrappingKey:
        """Return a key made of the passphrase and a fresh salt.

        Raises:
            KeyUnavailableError: The file is missing or cannot be read, nobody can be asked, or
                there is too little memory.
            ConfigurationError: The passphrase is too short or too long, or no text.
        """
        del known
        salt = os.urandom(_SALT)
        with self._passphrase(new=True) as passphrase:
            return _stretched(passphrase, self.profile, salt)

    def unprotect(self, fields: Mapping[str, str]) -> WrappingKey:
        """Return the key of a slot.

        Raises:
            KeyUnavailableError: As for ``protect``.
            ConfigurationError: As for ``protect``, but for its length.
            IntegrityError: The slot is damaged.
            UnsupportedFormatError: The slot has a profile of another version.
        """
        if fields.keys() != {"profile", "salt"} or not re.fullmatch(
            rf"[0-9a-f]{{{2 * _SALT}}}", fields["salt"]
        ):
            raise IntegrityError("Its passphrase slot is damaged. Restore it from the backup.")
        if fields["profile"] not in PROFILES:
            raise UnsupportedFormatError(
                f"Its passphrase slot has the profile {fields['profile']!r:.40}, which this "
                "version of service-security does not have. Use the version that wrote it."
            )
        with self._passphrase(new=False) as passphrase:
            return _stretched(passphrase, fields["profile"], bytes.fromhex(fields["salt"]))

    def _passphrase(self, *, new: bool) -> SecretBytes:
        if self.path is None:
            # A lone surrogate, which a terminal may give, is refused as what is no text is.
            typed = bytearray(self.ask(new).encode(errors="surrogatepass"))
            return _checked(typed, "That passphrase", new=new)
        limit = _MAX_BYTES + len(b"\r\n") + 1  # a longer file is refused and not cut
        with read_secret(self.path, CONTAINER_SECRET, limit) as contents, contents.view as view:
            return _checked(bytearray(view), f"The passphrase in {self.path}", new=new)


def _checked(data: bytearray, name: str, *, new: bool) -> SecretBytes:
    """Return the bytes that count: UTF-8 in NFC, without the line end that an editor leaves.

    Wipes ``data``. What is not ASCII becomes a ``str`` on the way, which Python cannot wipe.
    """
    try:
        if data.endswith(b"\n"):
            del data[-2 if data.endswith(b"\r\n") else -1 :]
        characters = len(data) if data.isascii() else _normalised(data)
        if characters is None:
            raise ConfigurationError(f"{name} is not UTF-8 text. Put the right one there.")
        if not data or len(data) > _MAX_BYTES or (new and characters < MIN_CHARACTERS):
            raise ConfigurationError(
                f"{name} is too short or too long: a new one has {MIN_CHARACTERS} characters at "
                f"least, and each has {_MAX_BYTES} bytes at most. Several words that nobody else "
                "would put together are a good one."
            )
        return SecretBytes.copy_of(data)
    finally:
        data[:] = bytes(len(data))


def _normalised(data: bytearray) -> int | None:
    """Bring UTF-8 into NFC in its place, and return the number of characters; None for no UTF-8.

    Nothing is raised where the text, or an error that holds it, could be found in a traceback.
    """
    try:
        text = unicodedata.normalize("NFC", data.decode())
    except UnicodeDecodeError:
        return None
    data[:] = text.encode()
    return len(text)


def _stretched(passphrase: SecretBytes, profile: str, salt: bytes) -> WrappingKey:
    iterations, lanes, memory_cost = PROFILES[profile]
    key = SecretBytes(KEY_BYTES)
    try:
        with passphrase.view as source, key.view as target:
            Argon2id(
                salt=salt,
                length=KEY_BYTES,
                iterations=iterations,
                lanes=lanes,
                memory_cost=memory_cost,
            ).derive_into(source, target)  # type: ignore[arg-type]  # any buffer will do
    except MemoryError:
        key.close()
        raise KeyUnavailableError(
            f"The passphrase profile {profile} takes {memory_cost // 1024} MiB of memory, which "
            "cannot be had. Give the service more, or stop what else takes it."
        ) from None
    return WrappingKey(key, {"profile": profile, "salt": salt.hex()}, profile.encode())
