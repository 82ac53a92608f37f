"""Every error of a TPM: a line each on what the caller should do."""

from ...errors import KeyUnavailableError


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


def malformed(what: str) -> NotATpmError:
    """Return the error about an answer that no TPM 2.0 gives."""
    return NotATpmError(
        f"What answers is not a TPM 2.0, or a broken one: {what}. Check the address in SERVICE_TPM."
    )


def failure(code: int) -> TpmError | None:
    """Return the error that a response code or a test result is, if it is about the TPM itself.

    The codes are those of TPM_RC (TCG TPM 2.0 Library, Part 2, 6.6).
    """
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
        case 0x921:
            return TpmLockedOutError(
                "The TPM is locked out after too many wrong passwords. Wait, or have its owner "
                "reset it: tpm2_dictionarylockout --clear-lockout."
            )
    return None
