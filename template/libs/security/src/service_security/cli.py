"""``python -m service_security``: makes the key of a service, and looks after its database.

Folder and key come from the options, or from the variables that the service itself reads:
``SERVICE_DATA_DIR`` and ``SERVICE_KEY_SOURCE``. Errors are one sentence on standard error, and the
exit status is then 2; 130 after an interrupt. Where 1 is said, the command has found what it looks
for.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from . import key_command as keys
from ._files import exists
from .command_options import (
    add_interval,
    add_phrase_options,
    add_slot_options,
    folder_options,
    slot_source,
    unbacked_pcrs,
)
from .errors import SecurityError
from .keys import initialise
from .keys.service_keys import previous_envelope
from .layout import DataFolder
from .secret_bytes import SecretBytes
from .store import command as database
from .store.kind import Kind, kind_of
from .terminal import new_phrase

_OPTIONAL_COMMANDS: Final = ("keys.tpm",)
"""Folders that may be missing, each with a module ``command``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 after an error, or what the command says."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except SecurityError as error:
        print(f"service_security: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as of a pager that was left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
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
    folders = folder_options()

    summary = "make the key of a new service; never replaces one"
    init = commands.add_parser("init", help=summary, description=summary, parents=[folders])
    add_phrase_options(init)
    add_slot_options(init)
    init.set_defaults(run=_init)

    database.add_command(commands, folders)
    keys.add_command(commands, folders)

    summary = "look for what is wrong with files, keys and the system; status 1: something is"
    doctor = commands.add_parser("doctor", help=summary, description=summary, parents=[folders])
    doctor.add_argument("--json", action="store_true", help="print it for machines")
    add_interval(doctor)
    doctor.set_defaults(run=_doctor)

    for name in _OPTIONAL_COMMANDS:
        folder = Path(__file__).parent.joinpath(*name.split("."))
        if PathFinder.find_spec("command", [str(folder)]):
            module = importlib.import_module(f".{name}.command", __package__)
            module.add_command(commands)
    return parser


def _holds_encrypted_data(folder: DataFolder) -> bool:
    if kind_of(folder.database) not in (Kind.NONE, Kind.PLAIN):
        return True
    if exists(previous_envelope(folder.envelope)):
        return True
    return any(kind_of(path) is Kind.ENCRYPTED for path in folder.path.glob("*.db"))


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import run

    return run(options)


def _init(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    source = slot_source(options.key_source, options)
    if options.pcrs and options.no_recovery:
        raise unbacked_pcrs("Leave --no-recovery out.")

    def recovery() -> SecretBytes | None:
        return None if options.no_recovery else new_phrase(options.phrase_file)

    made = initialise(
        folder.envelope,
        source,
        recovery=recovery,
        holds_encrypted_data=lambda: _holds_encrypted_data(folder),
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
        print("There is no recovery phrase: whoever loses key or envelope has lost the records.")
    print("Keep copies of envelope and key, apart from each other. Who has both has the records.")
    return 0
