"""Wrapping keys that a TPM 2.0 holds: they open on the machine that it is part of.

The key is 32 random bytes, sealed under the TPM's root key. It goes to the TPM and comes back in a
session that hides it from whoever listens in between. The TPM does not ask who wants it: whoever
may open the device and has the envelope gets the key, as this provider does.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from ...secret_bytes import SecretBytes
from ..derivation import KEY_BYTES
from ..provider import TPM2, WrappingKey
from . import errors
from .address import DEFAULT_ADDRESS, parse_address
from .client import Client, RootKey
from .pcrs import PcrSelection
from .root_key import any_root_key, root_key_named
from .session import Session
from .slot import SealedKey
from .transport import open_transport

TIMEOUT: Final = 30.0
"""Seconds for a key; a slow TPM takes a second or two to make its root key."""


class TpmProvider:
    """A TPM 2.0, as a source of wrapping keys.

    Args:
        address: As in `parse_address`.
        pcrs: Numbers of the PCRs that a new key is bound to. A key that exists stays bound to its
            own.

    Raises:
        ConfigurationError: The address is none, or a number is none of a PCR.
    """

    slot_type = TPM2

    def __init__(self, address: str = DEFAULT_ADDRESS, *, pcrs: Sequence[int] = ()) -> None:
        self._address = parse_address(address)
        self._pcrs = PcrSelection.of(pcrs)

    def __str__(self) -> str:
        return "tpm2" if str(self._address) == DEFAULT_ADDRESS else f"tpm2:{self._address}"

    def probe(self) -> None:
        """Find out whether the TPM could hold a key, changing nothing in it.

        Raises:
            TpmError: It could not; its subclass says why.
            ConfigurationError: The key is to be bound to PCRs that nothing is measured into.
        """
        from .report import ask  # opening a key goes without

        with open_transport(self._address, timeout=TIMEOUT) as transport:
            if obstacle := ask(transport, self._address).obstacle:
                raise obstacle
            if self._pcrs:
                self._pcrs.policy(Client(transport).read_pcrs(self._pcrs))

    def protect(self, known: Mapping[str, str] | None = None) -> WrappingKey:
        """Return a new key that the TPM holds, as it came back out of it.

        Args:
            known: The members of a slot of this TPM that has been opened. The new key is sealed
                under its root key then. Without them whatever answers is taken for the TPM, which
                is for a first key, and after a recovery.

        Raises:
            SealedKeyDamagedError: ``known`` is not what `protect` returned.
            OtherTpmError: ``known`` is of another TPM, or this one was cleared.
            TpmError: The TPM cannot hold one now; its subclass says why.
            ConfigurationError: The key is to be bound to PCRs that nothing is measured into.
        """
        name = SealedKey.parse(known).root_key_name if known is not None else None
        with (
            self._client() as client,
            root_key_named(client, name) if name else any_root_key(client) as root_key,
            client.session(root_key) as session,
        ):
            policy = self._pcrs.policy(client.read_pcrs(self._pcrs)) if self._pcrs else b""
            with SecretBytes.generate(KEY_BYTES) as key:
                private, public = client.create(root_key, session, policy, key)
                sealed = SealedKey(root_key.name, private, public, self._pcrs)
                again = _unseal(client, root_key, session, sealed)
                if again != key:
                    again.close()
                    raise errors.malformed("what it gave back is not what it was given")
            return WrappingKey(again, sealed.fields, sealed.binding)

    def unprotect(self, fields: Mapping[str, str]) -> WrappingKey:
        """Return the key of a slot.

        Args:
            fields: The members of the slot, as `protect` returned them.

        Raises:
            SealedKeyDamagedError: They are not what `protect` returned.
            OtherTpmError: The key is in another TPM, or this one was cleared.
            PcrChangedError: The machine was not started as it was when the key was made.
            TamperedError: Somebody changes what is said between program and TPM.
            TpmError: The TPM cannot be used now; its subclass says why.
        """
        sealed = SealedKey.parse(fields)
        with (
            self._client() as client,
            root_key_named(client, sealed.root_key_name) as root_key,
            client.session(root_key) as session,
        ):
            key = _unseal(client, root_key, session, sealed)
        return WrappingKey(key, sealed.fields, sealed.binding)

    @contextmanager
    def _client(self) -> Iterator[Client]:
        with open_transport(self._address, timeout=TIMEOUT) as transport:
            yield Client(transport)


def _unseal(client: Client, root_key: RootKey, session: Session, sealed: SealedKey) -> SecretBytes:
    with client.load(root_key, session, sealed.private, sealed.public) as loaded:
        if sealed.pcrs:
            with client.session(root_key, policy=True) as policy:
                client.apply_pcrs(policy, sealed.pcrs)
                key = client.unseal(loaded, policy)
        else:
            key = client.unseal(loaded, session)
    if len(key) != KEY_BYTES:
        key.close()
        raise errors.damaged()
    return key
