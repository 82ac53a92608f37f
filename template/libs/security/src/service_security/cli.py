"""``python -m service_security``: makes the key of a service, and looks after its database.

The folders come from the options, or from the variables that the service itself reads:
``SERVICE_DATA_DIR`` and ``SERVICE_KEY_FILE``. Errors are one sentence on standard error, and the
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

from .errors import SecurityError
from .keys import initialise
from .keys.key_file import CONTAINER_SECRET, KEY_FILE
from .layout import DataFolder
from .store import command as database
from .store.kind import Kind, kind_of

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
        epilog="Folders default to SERVICE_DATA_DIR and SERVICE_KEY_FILE, as in the service.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    folders = _folders()

    summary = "make the key of a new service; never replaces one"
    init = commands.add_parser("init", help=summary, description=summary, parents=[folders])
    init.add_argument(
        "--container-secret",
        type=Path,
        metavar="FILE",
        help="use the 32-byte wrapping key that an orchestrator delivers in FILE",
    )
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
        "--key-file",
        type=Path,
        default=Path(environment.get("SERVICE_KEY_FILE") or "secrets/service.key"),
        metavar="FILE",
        help="the file with the wrapping key (%(default)s)",
    )
    return parser


def _init(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    delivered: Path | None = options.container_secret
    key_file = delivered or options.key_file
    made = initialise(
        folder.envelope,
        key_file,
        slot_type=CONTAINER_SECRET if delivered else KEY_FILE,
        holds_encrypted_data=lambda: kind_of(folder.database) not in (Kind.NONE, Kind.PLAIN),
    )
    if not made.created_envelope:
        print(f"{folder.envelope} is there and opens with {key_file}. Nothing was changed.")
        return 0
    print(f"{'Made' if made.created_key else 'Used'}  {key_file}  the wrapping key, 32 bytes")
    print(f"Made  {folder.envelope}  the master key, sealed under it")
    print("Back up both, apart from each other: whoever has both reads the records,")
    print("and whoever loses either has lost them.")
    return 0
