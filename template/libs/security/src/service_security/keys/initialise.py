"""Makes the key of a new service, once.

The never-create rule: a key is made only here, only with no envelope and no encrypted data, and
no file is ever replaced. Two processes that run at once end with one key file and one envelope.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .._files import create_whole, exists, held, make_private_folder
from ..errors import ConfigurationError, KeyUnavailableError
from ..secret_bytes import SecretBytes
from .derivation import KEY_BYTES
from .envelope import Envelope, open_master_key
from .key_file import KEY_FILE, read_key


@dataclass(frozen=True, slots=True)
class Initialised:
    """What ``initialise`` found and made.

    Attributes:
        created_key: Whether the key file is new.
        created_envelope: Whether the envelope is new.
    """

    created_key: bool
    created_envelope: bool


def initialise(
    envelope: Path,
    key_file: Path,
    *,
    slot_type: str = KEY_FILE,
    holds_encrypted_data: Callable[[], bool],
) -> Initialised:
    """Make the wrapping key (unless it is delivered) and the envelope of a new master key.

    Running it again changes nothing: an envelope that opens is left as it is.

    Args:
        envelope: Where the envelope belongs, beside the data.
        key_file: Where the wrapping key belongs, or was delivered.
        slot_type: ``key-file`` (created with mode 0600 when missing, used when there) or
            ``container-secret`` (must be there).
        holds_encrypted_data: Tells whether data would be lost with a new key. It must answer
            True, or raise, when it cannot know.

    Raises:
        ConfigurationError: Encrypted data without an envelope, a key file of wrong mode, owner
            or length, or a folder that cannot be written.
        KeyUnavailableError: The container secret is missing or unreadable, or it cannot be told
            whether there is an envelope.
        StoreUnavailableError: A folder cannot be opened, or ``holds_encrypted_data`` cannot tell.
        WrongKeyError: An envelope is there and the key does not open it.
        IntegrityError: An envelope is there and is damaged.
    """
    if _is_there(envelope):
        open_master_key(envelope, key_file).close()
        return Initialised(created_key=False, created_envelope=False)
    if key_file.absolute() == envelope.absolute():
        raise ConfigurationError(f"{envelope} cannot be the key file: it is the envelope's place.")
    if holds_encrypted_data():
        raise ConfigurationError(
            f"There is encrypted data beside {envelope}, but no envelope. A new key could not read "
            "that data. Put the envelope back from the backup; nothing was changed."
        )
    make_private_folder(envelope.parent)
    created_key = slot_type == KEY_FILE and _create_key(key_file)
    with (
        held(envelope.parent, wait=True),
        read_key(key_file, slot_type) as wrapping_key,
        SecretBytes.generate(KEY_BYTES) as master,
    ):
        contents = Envelope.create(master, wrapping_key, slot_type).to_json()
        created_envelope = create_whole(envelope, contents)
    open_master_key(envelope, key_file).close()  # proves the pair that is on disk now
    return Initialised(created_key, created_envelope)


def _is_there(envelope: Path) -> bool:
    try:
        return exists(envelope)  # a dangling link is not "no envelope"
    except OSError as error:
        raise KeyUnavailableError(
            f"Whether there is an envelope {envelope} cannot be told: {error.strerror}."
        ) from error


def _create_key(key_file: Path) -> bool:
    make_private_folder(key_file.parent)
    with (
        held(key_file.parent, wait=True),
        SecretBytes.generate(KEY_BYTES) as fresh,
        fresh.view as view,
    ):
        return create_whole(key_file, view)
