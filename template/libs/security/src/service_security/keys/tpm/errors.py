"""Every error of a TPM: a line each on what the caller should do.

All but one are a `KeyUnavailableError`: the key exists, and cannot be had here and now. So is
`OtherTpmError`, because no key was had that could be the wrong one; the key is in the other TPM.
"""

from typing import Final

from ...command_line import command_line
from ...errors import IntegrityError, KeyUnavailableError

# TPM_RC (TCG TPM 2.0 Library, Part 2, 6.6), without the number of what they are about
HIERARCHY: Final = 0x085
HANDLE: Final = 0x08B
AUTH_FAIL: Final = 0x08E
POLICY_FAIL: Final = 0x09D
BAD_AUTH: Final = 0x0A2
PCR_CHANGED: Final = 0x128


class TpmError(KeyUnavailableError):
    """A TPM cannot be used now; never raised itself."""


class TpmAbsentError(TpmError):
    """There is no TPM at the address. Switch it on, or pass it into the container."""


class TpmForbiddenError(TpmError):
    """This user may not open the TPM. Add the group that the message names."""


class TpmSilentError(TpmError):
    """No whole answer came in time. Check the address, then look at the machine's log."""


class TpmBusyError(TpmError):
    """Another program holds the TPM, or it is at work. Try again."""


class TpmLockedOutError(TpmError):
    """Too many wrong passwords were tried. Wait, or have its owner reset the lock-out."""


class TpmFailedError(TpmError):
    """The TPM is there and does not work. Restart the machine; then replace the TPM."""


class NotATpmError(TpmError):
    """What answers is not a TPM 2.0, or a broken one. Correct the address."""


class TpmUnsuitableError(TpmError):
    """The TPM cannot hold a key. Take another source for the key."""


class TpmOwnerError(TpmError):
    """The TPM's owner set a password. Have the owner put a root key there, as the message says."""


class OtherTpmError(TpmError):
    """The key is in another TPM, or was lost when this one was cleared. Recover it."""


class PcrChangedError(TpmError):
    """What the machine started with is not what the key is bound to. Undo that, or recover."""


class TamperedError(TpmError):
    """Somebody between program and TPM changes what they say. Look at the hardware."""


class TpmRefusedError(TpmError):
    """The TPM refuses a command for a reason that is not explained here. Look its number up.

    Args:
        command: The command code.
        code: The response code.
    """

    def __init__(self, command: int, code: int) -> None:
        super().__init__(
            f"The TPM refuses command 0x{command:03x} with response code 0x{code:03x}. "
            f"Look it up: tpm2_rc_decode 0x{code:x}"
        )
        self.reason = code & 0x0BF if code & 0x080 else code
        """The response code, without the number of what it is about."""
        self.about_parameter = code & 0x0C0 == 0x0C0
        """Whether it is about a parameter of the command."""


class SealedKeyDamagedError(IntegrityError):
    """The sealed key in the envelope is not what was written. Restore the envelope."""


PROVISION: Final = (
    "head -c 64 /dev/zero | tpm2_createprimary -C o -P file:OWNER-PASSWORD -G ecc -u - -c root.ctx "
    "-a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt'; "
    "tpm2_evictcontrol -C o -P file:OWNER-PASSWORD -c root.ctx 0x81000001"
)
"""How the owner of a TPM puts the root key there for good."""

TAKE_AWAY: Final = "tpm2_evictcontrol -C o -P file:OWNER-PASSWORD -c 0x81000001"
"""How the owner takes away what is kept there."""

OCCUPIED: Final = (
    ". If another key is at 0x81000001, find out what uses it, then take it away first: "
    + TAKE_AWAY
)
"""What comes first where another key is in the place."""


def recover() -> str:
    """Return what is left to do when the TPM does not give the key any more."""
    return "recover the key with the recovery phrase: " + command_line("keys recover --to tpm2")


def owner_password() -> TpmOwnerError:
    """Return the error about an owner's password, where there is no root key to do without it."""
    return TpmOwnerError(
        "The TPM's owner has set a password, and it holds no root key that could be used without "
        f"it. Have the owner put one there, with the password in a file: {PROVISION}{OCCUPIED}"
    )


def hierarchy_off() -> TpmUnsuitableError:
    """Return the error about an owner hierarchy that is switched off."""
    return TpmUnsuitableError(
        "The TPM's owner hierarchy is switched off, so that it holds no keys. Switch it on in the "
        "machine's firmware, and start the machine again."
    )


def damaged() -> SealedKeyDamagedError:
    """Return the error about a sealed key that is not as it was."""
    return SealedKeyDamagedError(
        "The sealed key in the envelope is damaged. Restore the envelope from the backup, or "
        + recover()
    )


def malformed(what: str) -> NotATpmError:
    """Return the error about an answer that no TPM 2.0 gives."""
    return NotATpmError(
        f"What answers is not a TPM 2.0, or a broken one: {what}. Check the address in "
        "SERVICE_KEY_SOURCE."
    )


def failure(code: int) -> TpmError | None:
    """Return the error that a response code or a test result is, if it is about the TPM itself."""
    match code:
        case 0x100:
            return TpmFailedError(
                "The TPM has not been started. The machine's firmware does that; a software TPM "
                "needs --flags not-need-init,startup-clear."
            )
        case 0x101:
            return TpmFailedError(
                "The TPM is in failure mode: its self-test failed. Switch the machine off and on "
                "again; if that does not help, the TPM is broken."
            )
        case 0x12D:
            return TpmFailedError(
                "The TPM is in the middle of an upgrade of its firmware. Let the vendor's tool "
                "finish it."
            )
        case 0x901 | 0x902 | 0x903 | 0x904 | 0x905 | 0x906:
            return TpmBusyError(
                "The TPM has no room left: programs keep objects or sessions in it. Use "
                "/dev/tpmrm0, which keeps programs apart, or throw out what is left of them: "
                "tpm2_flushcontext --transient-object; tpm2_flushcontext --loaded-session"
            )
        case 0x920 | 0x923:
            return TpmBusyError(
                "The TPM cannot write its own memory now, to spare it. Try again in a minute."
            )
        case 0x921:
            return TpmLockedOutError(
                "The TPM is locked out after too many wrong passwords. Wait, or have its owner "
                "reset it: tpm2_dictionarylockout --clear-lockout."
            )
    return None
