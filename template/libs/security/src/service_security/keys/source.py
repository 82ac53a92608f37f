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

People put the key itself, or the passphrase, where its place is asked for. So no text is shown
that cannot be a place, and what looks like a key is never taken for one.
"""

import importlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final, Self

from ..errors import ConfigurationError, KeyUnavailableError
from .environment import EnvironmentKey
from .key_file import ContainerSecret, KeyFile
from .provider import KeyProvider

SETTING: Final = "SERVICE_KEY_SOURCE"
"""The variable with the source."""

# Looked for in its folder: by its name, Python would import the whole piece for every service.
_HAS_TPM: Final = (
    PathFinder.find_spec("provider", [str(Path(__file__).with_name("tpm"))]) is not None
)

DEFAULT_SOURCE: Final = f"{'tpm2,' if _HAS_TPM else ''}file:secrets/service.key"
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
            ConfigurationError: It names none, two of one kind, or one whose pieces are not
                installed. The message shows nothing of it.
        """
        found = _providers(text, options)
        if isinstance(found, str):
            del text  # no frame of a traceback below here has it among its variables
            raise ConfigurationError(found)
        return cls(text, found)


def key_source(source: KeySource | str) -> KeySource:
    """Return a source that may be given as its text.

    Raises:
        ConfigurationError: The text names none.
    """
    return source if isinstance(source, KeySource) else KeySource.parse(source)


def _providers(text: str, options: ProviderOptions) -> tuple[KeyProvider, ...] | str:
    """Return what a text names, or a sentence on what is wrong with it."""
    try:
        providers = tuple(_provider(part.strip(), options) for part in text.split(","))
    except ConfigurationError as error:
        return str(error)
    if len({provider.slot_type for provider in providers}) < len(providers):
        # The envelope records the kind that was taken, which has to say which one it was.
        return f"{SETTING} names two sources of one kind. In a list each is of another kind."
    return providers


def _provider(text: str, options: ProviderOptions) -> KeyProvider:
    scheme, colon, rest = text.partition(":")
    named = bool(rest) and not _IS_NO_PLACE.search(rest)
    match scheme:
        case "file" if named:
            return KeyFile(Path(rest))
        case "secret" if named:
            return ContainerSecret(Path(rest), text)
        case "credential" if named and re.fullmatch(r"[\w.@-]+", rest):
            return ContainerSecret(_credential(rest), text)
        case "env" if named and _VARIABLE.fullmatch(rest):
            return EnvironmentKey(rest)
        case "passphrase" if not colon or (named and "/" in Path(rest).as_posix()):
            # Argon2id is not imported where there is no passphrase.
            passphrase = importlib.import_module("service_security.keys.passphrase")
            return _as_provider(
                passphrase.Passphrase(
                    Path(rest) if rest else None,
                    options.ask_passphrase or _nobody_to_ask,
                    options.profile or passphrase.DEFAULT_PROFILE,
                )
            )
        case "tpm2" if not colon or (named and rest.startswith(("/", "unix:/", "tcp:"))):
            if not _HAS_TPM:
                raise ConfigurationError(
                    "This service has no TPM pieces. Add them with `uv run just update --trust "
                    f"--data tpm_enabled=true`, or name another source in {SETTING}."
                )
            tpm = importlib.import_module("service_security.keys.tpm.provider")
            return _as_provider(
                tpm.TpmProvider(rest, pcrs=options.pcrs)
                if rest
                else tpm.TpmProvider(pcrs=options.pcrs)
            )
    raise ConfigurationError(
        f"{SETTING} does not say where the key is. It has to be file:PATH, secret:PATH, "
        "credential:NAME, env:VARIABLE (in capitals), passphrase:PATH (with a folder), tpm2 or "
        "tpm2:ADDRESS. What it says is not shown here, for it may be the key, which does not "
        "belong there."
    )


_IS_NO_PLACE: Final = re.compile(
    r"[\x00-\x1f\x7f]"
    r"|\A\s*(?:[0-9A-Fa-f]{64}|[A-Za-z0-9+/_-]{43}=|[A-Za-z0-9+_-]{43})\s*\Z"
)
"""Control characters; and 32 bytes as people write them: in hexadecimal digits, in base64, or in
base64 without its padding, where a ``/`` is taken for a path's."""

_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,39}")
"""A name as POSIX has them (IEEE 1003.1, 8.1), too short to be a key."""


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
