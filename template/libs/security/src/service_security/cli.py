"""``python -m service_security``: makes the key of a service, and moves its records.

The folders come from the options, or from the variables that the service itself reads:
``SERVICE_DATA_DIR`` and ``SERVICE_KEY_FILE``. Errors are one sentence on standard error, and the
exit status is then 2.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import SecurityError
from .keys import initialise, open_master_key
from .keys.key_file import CONTAINER_SECRET, KEY_FILE
from .layout import DataFolder
from .store.cipher import CIPHERS
from .store.kind import Kind, kind_of
from .store.transfer import Transferred, export_records, import_records

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
        print("\nservice_security: stopped; run the command again to go on", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service_security",
        description="Make the key of a service, and move its records.",
        epilog="Folders default to SERVICE_DATA_DIR and SERVICE_KEY_FILE, as in the service.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make the key of a new service; never replaces one")
    _add_folders(init)
    init.add_argument(
        "--container-secret",
        type=Path,
        metavar="FILE",
        help="use the 32-byte wrapping key that an orchestrator delivers in FILE",
    )
    init.set_defaults(run=_init)

    database = commands.add_parser("db", help="move records between plain and encrypted files")
    transfers = database.add_subparsers(required=True, metavar="COMMAND")
    importing = transfers.add_parser("import", help="replace a plain database by an encrypted one")
    _add_folders(importing)
    importing.add_argument("--cipher", choices=CIPHERS, default=next(iter(CIPHERS)))
    importing.set_defaults(run=_import)
    exporting = transfers.add_parser("export", help="replace an encrypted database by a plain one")
    _add_folders(exporting)
    exporting.set_defaults(run=_export)

    for name in _OPTIONAL_COMMANDS:
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:  # a folder of caches, left of a removed command, has none
            importlib.import_module(name).add_command(commands)
    return parser


def _add_folders(parser: argparse.ArgumentParser) -> None:
    environment = os.environ
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


def _import(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    with open_master_key(folder.envelope, options.key_file) as master_key:
        done = import_records(
            folder, master_key, cipher=options.cipher, progress=_Progress("encrypted")
        )
    print(f"{folder.database} holds {done.count} records now, encrypted with {done.cipher}.")
    _warn_of_old_file(done)
    return 0


def _export(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    with open_master_key(folder.envelope, options.key_file) as master_key:
        done = export_records(folder, master_key, progress=_Progress("exported"))
    print(f"{folder.database} holds {done.count} records now, for anyone who has the file to read.")
    _warn_of_old_file(done)
    return 0


def _warn_of_old_file(done: Transferred) -> None:
    if done.old_file_remains:
        print("The old file has a second name (a hard link) somewhere and was not overwritten.")


class _Progress:
    """A line on standard error: rewritten on a terminal, one for every tenth elsewhere."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._tenth = 0

    def __call__(self, done: int, total: int) -> None:
        line = f"{done} of {total} records {self._verb}"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        elif (tenth := done * 10 // max(total, 1)) > self._tenth:
            self._tenth = tenth
            print(line, file=sys.stderr, flush=True)
