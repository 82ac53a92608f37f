"""Where the wrapping key comes from, in one setting.

::

    file:secrets/service.key          a key file of the service's own
    secret:/run/secrets/service_key   a file that an orchestrator delivers
    credential:service-key            a systemd credential, in $CREDENTIALS_DIRECTORY
    env:SERVICE_WRAPPING_KEY          a variable with the key in base64
    passphrase:/run/secrets/phrase    a file with a passphrase; without a file, a person is asked
    tpm2                              the TPM at /dev/tpmrm0
    tpm2:unix:/run/swtpm/socket       the TPM at that address
    tpm2,file:secrets/service.key     the first that can be had when the key is made

After the key is made, the slots of the envelope decide: of a list, the source counts that has one.
"""

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ..errors import ConfigurationError, KeyUnavailableError
from .environment import EnvironmentKey
from .key_file import ContainerSecret, KeyFile
from .provider import KeyProvider

SETTING: Final = "SERVICE_KEY_SOURCE"
"""The variable with the source."""

_TPM: Final = "service_security.keys.tpm.provider"


def _has_tpm() -> bool:
    try:
        return importlib.util.find_spec(_TPM) is not None
    except ModuleNotFoundError:
        return False


DEFAULT_SOURCE: Final = f"{'tpm2,' if _has_tpm() else ''}file:secrets/service.key"
"""A key file; with the TPM pieces, a TPM where there is one."""


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """What a source does not say, and a new slot needs.

    Attributes:
        pcrs: For ``tpm2``: the PCRs that the key is bound to.
        profile: For ``passphrase``: the Argon2id profile; None takes the default one.
        ask_passphrase: For ``passphrase`` without a file: returns what a person types.
    """

    pcrs: Sequence[int] = ()
    profile: str | None = None
    ask_passphrase: Callable[[bool], str] | None = None


@dataclass(frozen=True, slots=True)
class KeySource:
    """A parsed setting.

    Attributes:
        text: As it was set.
        providers: At least one, in the order of the text.
    """

    text: str
    providers: tuple[KeyProvider, ...]

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str, options: ProviderOptions = ProviderOptions()) -> Self:
        """Return the source that a text names.

        Raises:
            ConfigurationError: It names none, or one whose pieces are not installed.
        """
        return cls(text, tuple(_provider(part.strip(), options) for part in text.split(",")))


def key_source(source: KeySource | str) -> KeySource:
    """Return a source that may be given as its text.

    Raises:
        ConfigurationError: The text names none.
    """
    return source if isinstance(source, KeySource) else KeySource.parse(source)


def _provider(text: str, options: ProviderOptions) -> KeyProvider:
    scheme, colon, rest = text.partition(":")
    named = bool(colon and rest and rest.isprintable())
    match scheme:
        case "file" if named:
            return KeyFile(Path(rest))
        case "secret" if named:
            return ContainerSecret(Path(rest), text)
        case "credential" if named and re.fullmatch(r"[\w.@-]+", rest):
            return ContainerSecret(_credential(rest), text)
        case "env" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", rest):
            return EnvironmentKey(rest)
        case "passphrase" if named or not colon:
            # Argon2id is not imported where there is no passphrase.
            passphrase = importlib.import_module("service_security.keys.passphrase")
            return _as_provider(
                passphrase.Passphrase(
                    Path(rest) if rest else None,
                    options.ask_passphrase or _nobody_to_ask,
                    options.profile or passphrase.DEFAULT_PROFILE,
                )
            )
        case "tpm2" if named or not colon:
            if not _has_tpm():
                raise ConfigurationError(
                    "This service has no TPM pieces. Add them with `uv run just update --data "
                    f"tpm_enabled=true`, or name another source in {SETTING}."
                )
            tpm = importlib.import_module(_TPM)
            return _as_provider(
                tpm.TpmProvider(rest, pcrs=options.pcrs)
                if rest
                else tpm.TpmProvider(pcrs=options.pcrs)
            )
    shown = text if text.isprintable() and len(text) <= 80 and scheme in _SCHEMES else "..."
    raise ConfigurationError(
        f"{SETTING} does not say where the key is: {shown!r} is no key source. It has to be one of "
        "file:PATH, secret:PATH, credential:NAME, env:VARIABLE, passphrase:PATH, tpm2 or "
        "tpm2:ADDRESS. The key itself does not belong there."
    )


_SCHEMES: Final = ("file", "secret", "credential", "env", "passphrase", "tpm2")


def _as_provider(provider: Any) -> KeyProvider:
    made: KeyProvider = provider
    return made


def _credential(name: str) -> Path:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigurationError(
            "CREDENTIALS_DIRECTORY is not set, so there are no systemd credentials here. Start the "
            f"service from its unit with LoadCredential={name}:FILE, or name another source in "
            f"{SETTING}."
        )
    return Path(folder) / name


def _nobody_to_ask(_new: bool) -> str:
    raise KeyUnavailableError(
        "The passphrase has to be typed, and there is nobody to ask. A service reads it from a "
        f"file: {SETTING}=passphrase:FILE."
    )
