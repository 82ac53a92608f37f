"""Options that several commands share, with defaults from the variables that the service reads."""

import argparse
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from .errors import ConfigurationError
from .keys.passphrase import PROFILES
from .keys.provider import KeyProvider
from .keys.source import DEFAULT_SOURCE, SETTING, KeySource, ProviderOptions
from .terminal import ask_passphrase

INTERVAL_SETTING: Final = "SERVICE_KEY_ROTATION_DAYS"
_OFF: Final = "off"


def folder_options() -> argparse.ArgumentParser:
    """Return the options that every command on a service's folders has."""
    environment = os.environ
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(environment.get("SERVICE_DATA_DIR") or "data"),
        metavar="FOLDER",
        help="the service's data folder (%(default)s)",
    )
    parser.add_argument(
        "--key-source",
        default=environment.get(SETTING) or DEFAULT_SOURCE,
        metavar="SOURCE",
        # Not its value: a person may have put the key itself there.
        help=f"where the key is, like file:PATH or secret:PATH ({SETTING}, or {DEFAULT_SOURCE})",
    )
    return parser


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    folders: argparse.ArgumentParser,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    """Add a command of that name, with the options of ``folders``, and return its parser."""
    parser = commands.add_parser(name, help=summary, description=summary, parents=[folders])
    parser.set_defaults(run=run)
    return parser


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add the option not to show progress."""
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def service_source(options: argparse.Namespace) -> KeySource:
    """Return where the service's key is; a passphrase without a file is asked for.

    Raises:
        ConfigurationError: The setting names no source.
    """
    return KeySource.parse(options.key_source, ProviderOptions(ask_passphrase=ask_passphrase))


def add_slot_options(parser: "argparse._ActionsContainer") -> None:
    """Add the options of commands that seal the master key anew."""
    parser.add_argument(
        "--pcrs",
        type=_numbers,
        default=(),
        metavar="N,N",
        help="bind a key in the TPM to these PCRs; needs a recovery phrase",
    )
    parser.add_argument(
        "--passphrase-profile", choices=PROFILES, help="Argon2id parameters of a new passphrase"
    )


def slot_source(text: str, options: argparse.Namespace) -> KeySource:
    """Return the source of a new slot, with those options.

    Raises:
        ConfigurationError: It is no source, or the options do not suit it.
    """
    return KeySource.parse(
        text, ProviderOptions(options.pcrs, options.passphrase_profile, ask_passphrase)
    )


def add_phrase_options(parser: "argparse._ActionsContainer") -> None:
    """Add the options of commands that may make a recovery phrase."""
    phrase = parser.add_mutually_exclusive_group()
    phrase.add_argument(
        "--phrase-file",
        type=Path,
        metavar="FILE",
        help="write the recovery phrase to this new file",
    )
    phrase.add_argument(
        "--no-recovery",
        action="store_true",
        help="make no recovery phrase: whoever loses the key has lost the records",
    )


def add_interval(parser: argparse.ArgumentParser) -> None:
    """Add how often keys are rotated; the option's value is a timedelta or None."""
    parser.add_argument(
        "--interval",
        type=_interval,
        default=os.environ.get(INTERVAL_SETTING) or "90",
        metavar="DAYS",
        help="after how many days a key is due to be rotated, or off (%(default)s)",
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


def _interval(text: str) -> timedelta | None:
    if text.strip().lower() == _OFF:
        return None
    if not text.strip().isdecimal() or len(text) > 4:
        raise argparse.ArgumentTypeError(
            f"it is a number of days, or off; {INTERVAL_SETTING} gives it where the option does not"
        )
    return timedelta(days=int(text))


def unbacked_pcrs(what_to_do: str) -> ConfigurationError:
    """Return the error for a key that would be lost with the next update of the firmware."""
    return ConfigurationError(
        "A key that is bound to PCRs is lost when they change, as with an update of the firmware. "
        f"It needs a recovery phrase. {what_to_do}"
    )


def say_setting(provider: KeyProvider, options: argparse.Namespace) -> None:
    """Say how to set the source, unless it leads to the provider as it is."""
    if str(provider) not in map(str, service_source(options).providers):
        print(f"Set {SETTING}={provider} for the service and for these commands.")
