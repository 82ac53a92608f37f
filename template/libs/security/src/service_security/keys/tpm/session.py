"""A session with a TPM: proves each command and response, and hides the secret in them.

::

    salt        = KDFe(ECDH(ephemeral key, root key), "SECRET", ephemeral x, root key x)
    session key = KDFa(salt, "ATH", nonce TPM || nonce caller)
    key16 || iv16 = KDFa(session key, "CFB", newer nonce || older nonce), AES-128-CFB
    command proof  = HMAC(session key, SHA-256(code || names || parameters)
                          || nonce caller || nonce TPM || attributes)
    response proof = HMAC(session key, SHA-256(0 u32 || code || parameters)
                          || nonce TPM || nonce caller || attributes)
    authorization  = session u32 || nonce (sized) || attributes u8 || proof (sized)

(TCG TPM 2.0 Library, Part 1, 11.4.10, 18.6, 19.6 and 21, C.6.1.) KDFa is NIST SP 800-108 in
counter mode with HMAC-SHA256, KDFe is the one-step KDF of NIST SP 800-56C with SHA-256, 32 bytes
each. The objects in question have empty passwords, so the keys are the session's alone.

The salt can be computed by the TPM that has the root key, and by nobody who listens. It comes out
of ``ECDH`` as a ``bytes`` object, which Python frees without wiping: who reads this process's
memory later, and has recorded the bus before, could decrypt the recording. Every other key here is
wiped.
"""

import hashlib
import hmac
import os
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from ...secret_bytes import SecretBytes
from .errors import TamperedError, malformed
from .marshalling import Reader, sized

NONCE_BYTES: Final = 32
_KEY_BYTES: Final = 32

_CONTINUE, _DECRYPT, _ENCRYPT = 0x01, 0x20, 0x40  # TPMA_SESSION, Part 2, 8.4


class Session:
    """An open session.

    Args:
        handle: Its number in the TPM.
        key: The session key, which ``close`` wipes.
        nonce_tpm: The TPM's latest nonce.
    """

    def __init__(self, handle: int, key: SecretBytes, nonce_tpm: bytes) -> None:
        self.handle = handle
        self._key = key
        self._nonce_tpm = nonce_tpm
        self._nonce_caller = b""
        self._attributes = 0

    def close(self) -> None:
        """Wipe the session key; the TPM's side is closed by the client."""
        self._key.close()

    def renew(self, *, secret_goes: bool = False, secret_comes: bool = False) -> None:
        """Begin the next command.

        Args:
            secret_goes: Whether the first parameter of the command is encrypted.
            secret_comes: Whether the first parameter of the response is to be.
        """
        self._nonce_caller = os.urandom(NONCE_BYTES)
        self._attributes = (
            _CONTINUE | (_DECRYPT if secret_goes else 0) | (_ENCRYPT if secret_comes else 0)
        )

    def encrypt(self, secret: SecretBytes) -> bytes:
        """Return the contents of the first parameter of the command, encrypted."""
        with (
            kdfa(self._key, "CFB", self._nonce_caller, self._nonce_tpm) as keys,
            keys.view as view,
            secret.view as plaintext,
        ):
            return Cipher(AES(view[:16]), CFB(view[16:])).encryptor().update(plaintext)

    def authorization(self, code: int, names: Sequence[bytes], parameters: bytes) -> bytes:
        """Return the authorization of a command, its parameters already encrypted."""
        digest = hashlib.sha256(code.to_bytes(4) + b"".join(names) + parameters).digest()
        proof = self._proof(digest, self._nonce_caller, self._nonce_tpm)
        return (
            self.handle.to_bytes(4)
            + sized(self._nonce_caller)
            + bytes([self._attributes])
            + sized(proof)
        )

    def verify(self, code: int, parameters: bytes, authorization: bytes) -> None:
        """See that a response is the TPM's answer to the command.

        Raises:
            TamperedError: It is not.
            NotATpmError: The authorization is none.
        """
        reader = Reader(authorization)
        nonce, attributes, proof = reader.sized(), reader.number(1), reader.sized()
        reader.end()
        if len(nonce) != NONCE_BYTES:
            raise malformed(f"its nonce has {len(nonce)} bytes where {NONCE_BYTES} are due")
        digest = hashlib.sha256(bytes(4) + code.to_bytes(4) + parameters).digest()
        expected = self._proof(digest, nonce, self._nonce_caller)
        if attributes != self._attributes or not hmac.compare_digest(proof, expected):
            raise TamperedError(
                "What the TPM said was changed on its way here, or something else answers in its "
                "place. Look at what is between the program and the TPM; do not try again before."
            )
        self._nonce_tpm = nonce

    def decrypt(self, data: bytes) -> SecretBytes:
        """Return the contents of the first parameter of a verified response."""
        secret = SecretBytes(len(data))
        with (
            kdfa(self._key, "CFB", self._nonce_tpm, self._nonce_caller) as keys,
            keys.view as view,
            secret.view as plaintext,
        ):
            Cipher(AES(view[:16]), CFB(view[16:])).decryptor().update_into(data, plaintext)
        return secret

    def _proof(self, digest: bytes, newer: bytes, older: bytes) -> bytes:
        message = digest + newer + older + bytes([self._attributes])
        with self._key.view as key:
            return hmac.digest(key, message, "sha256")


def kdfa(key: SecretBytes, label: str, context_u: bytes, context_v: bytes) -> SecretBytes:
    """Return 32 bytes of KDFa with SHA-256 (Part 1, 11.4.10.2)."""
    derived = SecretBytes(_KEY_BYTES)
    with key.view as source, derived.view as target:
        KBKDFHMAC(
            SHA256(),
            Mode.CounterMode,
            length=_KEY_BYTES,
            rlen=4,
            llen=4,
            location=CounterLocation.BeforeFixed,
            label=label.encode(),
            context=context_u + context_v,
            fixed=None,
        ).derive_into(source, target)
    return derived


def make_salt(
    point: bytes, *, ephemeral: ec.EllipticCurvePrivateKey | None = None
) -> tuple[bytes, SecretBytes]:
    """Return a salt, first as only the TPM can read it, then as it is.

    Args:
        point: x and y of the root key, 64 bytes.
        ephemeral: A private key on P-256, for tests with published vectors only.

    Raises:
        NotATpmError: The point is not on P-256.
    """
    curve = ec.SECP256R1()
    try:
        root_key = ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\4" + point)
    except ValueError:
        raise malformed("the point of its root key is not on the curve P-256") from None
    ephemeral = ephemeral or ec.generate_private_key(curve)
    numbers = ephemeral.public_key().public_numbers()
    x, y = numbers.x.to_bytes(32), numbers.y.to_bytes(32)
    salt = SecretBytes(_KEY_BYTES)
    with salt.view as target:
        ConcatKDFHash(SHA256(), _KEY_BYTES, b"SECRET\0" + x + point[:32]).derive_into(
            ephemeral.exchange(ec.ECDH(), root_key), target
        )
    return sized(x) + sized(y), salt
