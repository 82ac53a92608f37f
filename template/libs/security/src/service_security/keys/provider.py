"""What gives wrapping keys: a TPM, a file, a delivered secret, a variable, a passphrase.

The envelope has a *slot* for each way to the master key: the master key sealed under a wrapping
key of 32 bytes. A provider gives that key, and nothing else of it is secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

from ..secret_bytes import SecretBytes

KEY_FILE: Final = "key-file"
CONTAINER_SECRET: Final = "container-secret"  # noqa: S105 - a kind of slot
ENVIRONMENT: Final = "environment"
PASSPHRASE: Final = "passphrase"  # noqa: S105
RECOVERY: Final = "recovery"
TPM2: Final = "tpm2"

OPENED_BY: Final = {
    KEY_FILE: "file:",
    CONTAINER_SECRET: "secret: or credential:",
    ENVIRONMENT: "env:",
    PASSPHRASE: "passphrase",
    RECOVERY: "the recovery phrase",
    TPM2: "tpm2",
}
"""What a person calls each type of slot: the beginning of its key source."""

RAW_TYPES: Final = (KEY_FILE, CONTAINER_SECRET, ENVIRONMENT)
"""Types whose wrapping key is delivered as it is, so that it opens a backup on any machine."""


@dataclass(frozen=True, slots=True)
class WrappingKey:
    """A wrapping key, and what its slot says beside the sealed master key.

    Attributes:
        key: 32 bytes; whoever holds this object closes it.
        fields: Public members of the slot, which the provider needs to get the key again.
        binding: The end of the slot's context: whatever of ``fields`` the sealed box is bound to.
    """

    key: SecretBytes
    fields: Mapping[str, str] = field(default_factory=dict)
    binding: bytes = b""

    def close(self) -> None:
        """Wipe the key."""
        self.key.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class KeyProvider(Protocol):
    """One place that a wrapping key comes from. ``str`` of it is its key source, for messages."""

    @property
    def slot_type(self) -> str:
        """The type of the slots that it opens."""

    def probe(self) -> None:
        """Find out whether it could protect a key here and now, changing nothing.

        Raises:
            KeyUnavailableError: It could not; the message says why and what to do.
            ConfigurationError: It is set up wrongly.
        """

    def protect(self, known: Mapping[str, str] | None = None) -> WrappingKey:
        """Return a wrapping key for a new slot: made here, or delivered.

        Args:
            known: The members of the slot that the new one takes the place of, if the envelope has
                been opened by it. What they say of the place is not trusted anew.

        Raises:
            KeyUnavailableError: There is none to be had.
            ConfigurationError: It is set up wrongly.
        """

    def unprotect(self, fields: Mapping[str, str]) -> WrappingKey:
        """Return the wrapping key of a slot that ``protect`` was asked for.

        Args:
            fields: The slot's members, as ``protect`` returned them. They come out of a file and
                nothing of them is trusted.

        Raises:
            KeyUnavailableError: It cannot be had now.
            ConfigurationError: It is set up wrongly.
            IntegrityError: The fields are not what ``protect`` wrote.
        """
