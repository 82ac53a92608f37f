"""The commands of a TPM that a key needs, each with its response checked.

Whatever is opened in the TPM here is flushed out of it at the end of its block, also after an
error. (TCG TPM 2.0 Library, Part 3: 11.1 StartAuthSession, 12.1 Create, 12.2 Load, 12.4
ReadPublic, 12.7 Unseal, 22.4 PCR_Read, 23.7 PolicyPCR, 24.1 CreatePrimary, 28.4 FlushContext.)
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ...errors import ConfigurationError
from ...secret_bytes import SecretBytes
from . import errors
from .areas import name_of, root_key_point, sealed_policy, sealed_template
from .framing import split_authorized
from .marshalling import Reader, sized
from .pcrs import DIGEST_BYTES, POLICY_PCR, PcrSelection
from .session import NONCE_BYTES, Session, kdfa, make_salt
from .transport import Transport, execute

CREATE: Final = 0x153
CREATE_PRIMARY: Final = 0x131
FLUSH_CONTEXT: Final = 0x165
LOAD: Final = 0x157
PCR_READ: Final = 0x17E
READ_PUBLIC: Final = 0x173
START_AUTH_SESSION: Final = 0x176
UNSEAL: Final = 0x15E

_OWNER, _NOTHING, _PASSWORD = 0x40000001, 0x40000007, 0x40000009  # TPM_RH, Part 2, 7.4
_EMPTY_PASSWORD = _PASSWORD.to_bytes(4) + bytes(2) + b"\x01" + bytes(2)
_HMAC, _POLICY = b"\x00", b"\x01"  # TPM_SE, Part 2, 6.11
_AES_128_CFB = b"\x00\x06\x00\x80\x00\x43"
_SHA256 = b"\x00\x0b"


@dataclass(frozen=True, slots=True)
class RootKey:
    """A storage root key in the TPM.

    Attributes:
        handle: Its number.
        name: 34 bytes, which no other key has.
        point: x and y, 64 bytes.
    """

    handle: int
    name: bytes
    point: bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """A sealed object in the TPM.

    Attributes:
        handle: Its number.
        name: 34 bytes.
    """

    handle: int
    name: bytes


class Client:
    """Speaks to one TPM.

    Args:
        transport: Carries the commands.
        sleep: Waits that many seconds while the TPM is busy.
    """

    def __init__(
        self, transport: Transport, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._transport = transport
        self._sleep = sleep

    def root_key_at(self, handle: int) -> RootKey | None:
        """Return the root key that is kept under ``handle``; None if nothing or another key is."""
        try:
            reader = Reader(self._execute(READ_PUBLIC, handles=(handle,)))
        except errors.TpmRefusedError as error:
            if error.reason == errors.HANDLE:
                return None
            raise
        public, name, _ = reader.sized(), reader.sized(), reader.sized()
        reader.end()
        # The whole public area but the point: a key that could leave the TPM, or that does other
        # work as well, would give away what is sealed under it.
        point = root_key_point(public)
        if point is None:
            return None
        if name != name_of(public):
            raise errors.malformed("the name of its root key is another key's")
        return RootKey(handle, name, point)

    @contextlib.contextmanager
    def root_key(self, template: bytes) -> Iterator[RootKey]:
        """Have the TPM make its root key, for the length of the block."""
        # There is no key yet to open a session with, and nothing secret is said.
        parameters = sized(bytes(4)) + sized(template) + sized(b"") + bytes(4)
        try:
            reader = Reader(
                self._execute(
                    CREATE_PRIMARY,
                    parameters,
                    handles=(_OWNER,),
                    authorization=_EMPTY_PASSWORD,
                )
            )
        except errors.TpmRefusedError as error:
            if error.reason in (errors.AUTH_FAIL, errors.BAD_AUTH):
                raise errors.owner_password() from error
            if error.reason == errors.HIERARCHY:
                raise errors.hierarchy_off() from error
            raise
        handle = reader.number(4)
        with self._flushed(handle):
            answer = Reader(split_authorized(reader.rest())[0])
            public = answer.sized()
            _skip_creation(answer)
            name = answer.sized()
            answer.end()
            point = root_key_point(public)
            if point is None or name != name_of(public):
                raise errors.malformed("the root key that it made is not what it was asked for")
            yield RootKey(handle, name, point)

    @contextlib.contextmanager
    def session(self, root_key: RootKey, *, policy: bool = False) -> Iterator[Session]:
        """Open a session that only the TPM with ``root_key`` can take part in.

        Args:
            root_key: It is salted to that key.
            policy: Whether it is for `apply_pcrs`.
        """
        nonce = os.urandom(NONCE_BYTES)
        encrypted_salt, salt = make_salt(root_key.point)
        with salt:
            reader = Reader(
                self._execute(
                    START_AUTH_SESSION,
                    sized(nonce)
                    + sized(encrypted_salt)
                    + (_POLICY if policy else _HMAC)
                    + _AES_128_CFB
                    + _SHA256,
                    handles=(root_key.handle, _NOTHING),
                )
            )
            handle = reader.number(4)
            with self._flushed(handle):
                nonce_tpm = reader.sized()
                reader.end()
                if len(nonce_tpm) != NONCE_BYTES:
                    raise errors.malformed(f"its nonce has {len(nonce_tpm)} bytes")
                opened = Session(handle, kdfa(salt, "ATH", nonce_tpm, nonce), nonce_tpm)
                salt.close()
                try:
                    yield opened
                finally:
                    opened.close()

    def create(
        self, root_key: RootKey, session: Session, policy: bytes, secret: SecretBytes
    ) -> tuple[bytes, bytes]:
        """Seal a secret.

        Args:
            root_key: What it is sealed under.
            session: Hides the secret on its way.
            policy: The digest of the policy that it takes to unseal it, or nothing.
            secret: At most 128 bytes.

        Returns:
            The private area, encrypted by the TPM, and the public area.
        """
        session.renew(secret_goes=True)
        with SecretBytes(4 + len(secret)) as sensitive:  # empty password, then the data
            with sensitive.view as view, secret.view as source:
                view[2:4] = len(secret).to_bytes(2)
                view[4:] = source
            first = sized(session.encrypt(sensitive))
        parameters = first + sized(sealed_template(policy)) + sized(b"") + bytes(4)
        answer = self._authorized(CREATE, (root_key.handle,), (root_key.name,), parameters, session)
        private, public = answer.sized(), answer.sized()
        _skip_creation(answer)
        answer.end()
        if sealed_policy(public) != policy:
            raise errors.malformed("what it sealed is not what it was asked to seal")
        return private, public

    @contextlib.contextmanager
    def load(
        self, root_key: RootKey, session: Session, private: bytes, public: bytes
    ) -> Iterator[Loaded]:
        """Load a sealed object, for the length of the block.

        Raises:
            SealedKeyDamagedError: The TPM does not know it as its own.
        """
        parameters = sized(private) + sized(public)
        session.renew()
        try:
            answer = self._execute(
                LOAD,
                parameters,
                handles=(root_key.handle,),
                authorization=session.authorization(LOAD, (root_key.name,), parameters),
            )
        except errors.TpmRefusedError as error:
            if error.about_parameter:
                raise errors.damaged() from error
            raise _explained(LOAD, error) from error
        reader = Reader(answer)
        handle = reader.number(4)
        with self._flushed(handle):
            said, authorization = split_authorized(reader.rest())
            session.verify(LOAD, said, authorization)
            if said != sized(name_of(public)):
                raise errors.malformed("it loaded another object than it was asked to")
            yield Loaded(handle, name_of(public))

    def unseal(self, sealed: Loaded, session: Session) -> SecretBytes:
        """Return the secret of a sealed object. The caller closes it.

        Raises:
            PcrChangedError: It is bound to PCRs, and they have other values now.
        """
        session.renew(secret_comes=True)
        answer = self._authorized(UNSEAL, (sealed.handle,), (sealed.name,), b"", session)
        data = answer.sized()
        answer.end()
        if not data:
            raise errors.damaged()
        return session.decrypt(data)

    def read_pcrs(self, pcrs: PcrSelection) -> dict[int, bytes]:
        """Return the values of PCRs, by number.

        They come without a proof. It is not needed: what is sealed with wrong ones cannot be
        unsealed again, which is tried at once.

        Raises:
            ConfigurationError: The TPM does not keep the SHA-256 bank.
        """
        values: dict[int, bytes] = {}
        while left := pcrs.without(list(values)):
            reader = Reader(self._execute(PCR_READ, bytes(left)))
            reader.number(4)  # counts the changes
            told = PcrSelection.read(reader)
            if not told:
                raise ConfigurationError(
                    f"The TPM keeps no SHA-256 values of PCR {left}. Switch its SHA-256 bank on in "
                    "the machine's firmware, or bind the key to no PCRs."
                )
            if told.without(left.numbers) or reader.number(4) != len(told.numbers):
                raise errors.malformed("it tells of other PCRs than it was asked for")
            for number in told.numbers:
                values[number] = reader.sized()
                if len(values[number]) != DIGEST_BYTES:
                    raise errors.malformed(f"PCR {number} has {len(values[number])} bytes")
            reader.end()
        return values

    def apply_pcrs(self, session: Session, pcrs: PcrSelection) -> None:
        """Have a policy session stand for the values that PCRs have now."""
        answer = self._execute(POLICY_PCR, sized(b"") + bytes(pcrs), handles=(session.handle,))
        Reader(answer).end()

    def _authorized(
        self,
        code: int,
        handles: Sequence[int],
        names: Sequence[bytes],
        parameters: bytes,
        session: Session,
    ) -> Reader:
        try:
            body = self._execute(
                code,
                parameters,
                handles=handles,
                authorization=session.authorization(code, names, parameters),
            )
        except errors.TpmRefusedError as error:
            raise _explained(code, error) from error
        answer, authorization = split_authorized(body)
        session.verify(code, answer, authorization)
        return Reader(answer)

    def _execute(
        self,
        code: int,
        parameters: bytes = b"",
        *,
        handles: Sequence[int] = (),
        authorization: bytes = b"",
    ) -> bytes:
        return execute(
            self._transport,
            code,
            parameters,
            handles=handles,
            authorization=authorization,
            sleep=self._sleep,
        )

    @contextlib.contextmanager
    def _flushed(self, handle: int) -> Iterator[None]:
        try:
            yield
        finally:
            # The error that ended the block is the one to tell. After a timeout this fails too;
            # /dev/tpmrm0 then throws out what is left when it is closed.
            with contextlib.suppress(errors.TpmError):
                self._execute(FLUSH_CONTEXT, handle.to_bytes(4))


def _skip_creation(answer: Reader) -> None:
    """Take off what a TPM says of how an object was made (Part 2, 10.11.2 and 15.1)."""
    answer.sized()
    answer.sized()
    answer.take(6)  # the ticket's tag and hierarchy
    answer.sized()


def _explained(code: int, error: errors.TpmRefusedError) -> errors.TpmError:
    """Return the error that a refusal within a session is."""
    if error.reason in (errors.POLICY_FAIL, errors.PCR_CHANGED):
        return errors.PcrChangedError(
            "The PCRs that the key is bound to have other values than when it was sealed: the "
            "firmware, its settings or the boot loader were changed. Undo that and start the "
            "machine again, or " + errors.recover()
        )
    if error.reason not in (errors.AUTH_FAIL, errors.BAD_AUTH):
        return error
    if code == UNSEAL:
        return errors.TamperedError(
            "The TPM does not take the command that was sent: it was changed on its way, or the "
            "sealed key has a password, as none of this service has. Look at what is between the "
            "program and the TPM."
        )
    return errors.TpmOwnerError(
        "The root key that the TPM keeps at 0x81000001 has a password, or what is sent is changed "
        "on its way. Have the TPM's owner find out what uses it, then put a root key without a "
        f"password there: {errors.TAKE_AWAY}; {errors.PROVISION}"
    )
