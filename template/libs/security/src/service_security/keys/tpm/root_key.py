"""The root key of a TPM, under which the service's key is sealed.

It is kept at 0x81000001 by whoever set the machine up (TCG Provisioning Guidance, 7.5.1; systemd
does it too), or made anew each time, which gives the same key until the TPM is cleared.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from . import errors
from .areas import ROOT_KEY_TEMPLATES
from .client import Client, RootKey

HANDLE: Final = 0x81000001


@contextmanager
def any_root_key(client: Client) -> Iterator[RootKey]:
    """Give the root key to seal under.

    A kept one that the TPM would not make again is left alone: what is sealed under it would be
    lost when somebody takes it away.

    Raises:
        TpmOwnerError: None is kept, and to make it takes the owner's password.
        TpmUnsuitableError: The owner hierarchy is switched off.
    """
    kept = client.root_key_at(HANDLE)
    if kept and _can_be_made_again(client, kept):
        yield kept
        return
    with client.root_key(ROOT_KEY_TEMPLATES[0]) as made:
        yield made


def _can_be_made_again(client: Client, kept: RootKey) -> bool:
    try:
        for template in ROOT_KEY_TEMPLATES:
            with client.root_key(template) as made:
                if made.name == kept.name:
                    return True
    except errors.TpmOwnerError:  # that cannot be tried; the owner has put it there
        return True
    return False


@contextmanager
def root_key_named(client: Client, name: bytes) -> Iterator[RootKey]:
    """Give the root key that something was sealed under.

    Args:
        client: Speaks to the TPM.
        name: Of that root key, 34 bytes.

    Raises:
        OtherTpmError: This TPM does not have it.
        TpmOwnerError: None is kept, and to make it takes the owner's password.
        TpmUnsuitableError: None is kept, and the owner hierarchy is switched off.
    """
    kept = client.root_key_at(HANDLE)
    if kept and kept.name == name:
        yield kept
        return
    # It may have been kept when the key was sealed, or may be kept only since then.
    for template in ROOT_KEY_TEMPLATES:
        with ExitStack() as stack:
            try:
                made = stack.enter_context(client.root_key(template))
            except errors.TpmOwnerError as error:
                if kept:  # a password is not what is missing: there is a root key, and another one
                    raise _other() from error
                raise
            if made.name == name:
                yield made
                return
    raise _other()


def _other() -> errors.OtherTpmError:
    return errors.OtherTpmError(
        "The key was sealed by another TPM, or this one was cleared since. Start the service where "
        "that TPM is, or " + errors.recover()
    )
