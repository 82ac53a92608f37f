"""``python -m service_security``: makes the key of a service, and looks after its database.

Folder and key come from the options, or from the variables that the service itself reads:
``SERVICE_DATA_DIR`` and ``SERVICE_KEY_SOURCE``. Errors are one sentence on standard error, and the
exit status is then 2; 130 after an interrupt. Where 1 is said, the command has found what it looks
for.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import ConfigurationError, SecurityError
from .keys import DEFAULT_SOURCE, KeySource, initialise
from .keys.passphrase import PROFILES
from .keys.source import SETTING, ProviderOptions
from .layout import DataFolder
from .secret_bytes import SecretBytes
from .store import command as database
from .store.kind import Kind, kind_of
from .terminal import ask_passphrase, new_phrase

_OPTIONAL_COMMANDS = ("service_security.keys.tpm",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 after an error, or what the command says."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except SecurityError as error:
        print(f"service_security: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nservice_security: stopped; run the command again", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service_security",
        description="Make the key of a service, and look after its database.",
        epilog="The defaults come from SERVICE_DATA_DIR and SERVICE_KEY_SOURCE, as in the service.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    folders = _folders()

    summary = "make the key of a new service; never replaces one"
    init = commands.add_parser("init", help=summary, description=summary, parents=[folders])
    phrase = init.add_mutually_exclusive_group()
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
    add_slot_options(init)
    init.set_defaults(run=_init)

    database.add_command(commands, folders)
    for name in _OPTIONAL_COMMANDS:
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:  # a folder of caches, left of a removed command, has none
            importlib.import_module(name).add_command(commands)
    return parser


def _folders() -> argparse.ArgumentParser:
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
        help="where the key is, like file:PATH or secret:PATH (%(default)s)",
    )
    return parser


def add_slot_options(parser: argparse.ArgumentParser) -> None:
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
    """Return the source of a new slot, with those options."""
    return KeySource.parse(
        text, ProviderOptions(options.pcrs, options.passphrase_profile, ask_passphrase)
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


def _init(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    source = slot_source(options.key_source, options)
    if options.pcrs and options.no_recovery:
        raise ConfigurationError(
            "A key that is bound to PCRs is lost when they change, as with an update of the "
            "firmware. It needs a recovery phrase; leave --no-recovery out."
        )

    def recovery() -> SecretBytes | None:
        return None if options.no_recovery else new_phrase(options.phrase_file)

    made = initialise(
        folder.envelope,
        source,
        recovery=recovery,
        holds_encrypted_data=lambda: kind_of(folder.database) not in (Kind.NONE, Kind.PLAIN),
    )
    for reason in made.passed_over:
        print(f"service_security: {reason}", file=sys.stderr)
    if made.passed_over:
        print(
            f"service_security: the key is held by {made.provider} instead, and stays there until "
            "`keys reseal --to` moves it",
            file=sys.stderr,
        )
    if not made.created:
        print(f"{folder.envelope} is there and opens with {made.provider}. Nothing was changed.")
        return 0
    print(f"Made {folder.envelope}: the master key, which opens with {made.provider}", end="")
    print(" or the recovery phrase." if made.has_recovery else ".")
    if not made.has_recovery:
        print("There is no recovery phrase: whoever loses either of the two has lost the records.")
    print("Back up both, apart from each other: whoever has both reads the records.")
    return 0
