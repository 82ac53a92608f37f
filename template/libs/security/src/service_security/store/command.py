"""The commands ``db``: look into a database, check it, back it up, and move its records."""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from .._files import exists
from ..command_options import add_parser, add_quiet, service_source
from ..errors import ConfigurationError, IntegrityError, SecurityError, WrongKeyError
from ..keys import open_keys, open_master_key
from ..keys.key_file import read_key
from ..keys.provider import KEY_FILE, RAW_TYPES, RECOVERY
from ..keys.service_keys import MASTER, ServiceKeys
from ..layout import DataFolder
from ..progress import ProgressLine
from ..secret_bytes import SecretBytes
from ..terminal import read_phrase
from .backup import check_backup, restore_backup, write_backup
from .backup_file import open_backup
from .cipher import CIPHERS
from .info import KeyInfo, read_info, read_keys
from .kind import Kind, kind_of
from .report import describe, size_of, to_json
from .secure_db import SecureDb
from .transfer import Transferred, export_records, import_records

_Ways = dict[str, dict[str, SecretBytes]]
"""Keys that each open a backup alone, by their types of slot, for each way by its name."""


def add_command(
    subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    folders: argparse.ArgumentParser,
) -> None:
    """Register the commands.

    Args:
        subcommands: Where they belong.
        folders: A parser with the options that name the service's folders.
    """
    database = subcommands.add_parser(
        "db", help="look into the database, check it, back it up, move its records in or out"
    )
    commands = database.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser:
        parser = add_parser(commands, folders, name, run, summary)
        add_quiet(parser)
        return parser

    info = add("info", _info, "tell what is in the database, as far as the key is there")
    info.add_argument("--json", action="store_true", help="print it for machines")

    verify = add("verify", _verify, "read and check every record, or a backup; status 1: damaged")
    verify.add_argument("--backup", type=Path, metavar="FILE", help="check this backup instead")
    _add_backup_keys(verify)

    backup = add("backup", _backup, "write an encrypted backup; the service may run meanwhile")
    backup.add_argument("file", type=Path, metavar="FILE", help="where it goes; never replaced")
    backup.add_argument(
        "--leave-out-damaged",
        action="store_true",
        help="save the other records when some are damaged",
    )

    restore = add("restore", _restore, "make the database from a backup; there must be none")
    restore.add_argument("file", type=Path, metavar="FILE", help="the backup")
    _add_backup_keys(restore)
    _add_cipher(restore)

    _add_cipher(add("import", _import, "replace a plain database by an encrypted one"))
    add("export", _export, "replace an encrypted database by a plain one")


def _add_backup_keys(parser: argparse.ArgumentParser) -> None:
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--backup-key-file",
        type=Path,
        metavar="FILE",
        help="the key file of the service that wrote the backup, if it is not this service's",
    )
    keys.add_argument(
        "--recovery-phrase",
        action="store_true",
        help="open the backup with the recovery phrase of the service that wrote it",
    )
    keys.add_argument(
        "--phrase-file",
        type=Path,
        metavar="FILE",
        help="open the backup with the recovery phrase in this file",
    )


def _add_cipher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cipher",
        choices=CIPHERS,
        default=next(iter(CIPHERS)),
        help="for the new database (%(default)s)",
    )


# Looking


def _info(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    with ProgressLine("counted", shown=not options.quiet) as progress:
        found = read_info(folder.database, progress)
    keys: list[KeyInfo] | None = None
    about_key = ""
    if found.header:
        try:
            with open_keys(folder.envelope, service_source(options)) as opened:
                keys = read_keys(found.header, opened.master)
                about_key = f"{opened.provider} and {folder.envelope} open it:"
        except SecurityError as error:
            about_key = f"Its keys cannot be shown. {error}"
    print((to_json if options.json else describe)(found, keys, about_key))
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.backup:
        return _verify_backup(options)
    if options.backup_key_file or options.recovery_phrase or options.phrase_file:
        raise ConfigurationError("Those keys are for a backup. Name that with --backup FILE.")
    folder = DataFolder(options.data_dir)
    with open_master_key(folder.envelope, service_source(options)) as master_key:
        try:
            with (
                _read_only(folder, master_key) as store,
                ProgressLine("checked", shown=not options.quiet) as progress,
            ):
                found = store.verify(progress)
        except IntegrityError as error:
            return _say_damage(error)
    if found.is_whole:
        print(f"All {found.records} records of {folder.database} are whole.")
        return 0
    for problem in found.problems:
        print(problem)
    for record in found.damaged:
        print(f"Record {record.position} is damaged (token {record.token or 'lost'}).")
    print(
        f"{len(found.damaged)} records of {folder.database} are damaged, {found.records} are whole."
    )
    print("With a backup: move the database away, then db restore.")
    print("Without one: save the others with `db backup FILE --leave-out-damaged`, restore that.")
    return 1


def _verify_backup(options: argparse.Namespace) -> int:
    with ExitStack() as opened:
        ways = _ways_of_another(options, opened) or _own_ways(options, opened)
        try:
            with ProgressLine("checked", shown=not options.quiet) as progress:
                count = check_backup(options.backup, _keys_of(ways), progress=progress)
        except IntegrityError as error:
            return _say_damage(error)
        names = [name for name, keys in ways.items() if _opens(options.backup, keys)]
    print(
        f"All {count} records of {options.backup} are whole. It opens with {' or '.join(names)} "
        "alone."
    )
    return 0


def _own_ways(options: argparse.Namespace, opened: ExitStack) -> _Ways:
    folder = DataFolder(options.data_dir)
    own = opened.enter_context(open_keys(folder.envelope, service_source(options)))
    ways = _ways(own)
    if not ways:
        raise ConfigurationError(
            f"No backup opens with {own.provider} alone, and there is no recovery phrase. Make one "
            "with keys recovery-phrase, or name what opens this backup: --backup-key-file."
        )
    return ways


def _ways(own: ServiceKeys) -> _Ways:
    """Return the ways into the service's backups for which the envelope is not needed."""
    return {
        "the recovery phrase" if slot_type == RECOVERY else str(own.provider): _any_raw_type(
            {slot_type: key}
        )
        for slot_type, key in own.for_backups().items()
        if slot_type != MASTER
    }


def _ways_of_another(options: argparse.Namespace, opened: ExitStack) -> _Ways:
    """Return the way that the options name into a backup of another service or another time."""
    if options.backup_key_file:
        key = opened.enter_context(read_key(options.backup_key_file, KEY_FILE))
        return {str(options.backup_key_file): _any_raw_type({KEY_FILE: key})}
    if options.recovery_phrase or options.phrase_file:
        key = opened.enter_context(read_phrase(options.phrase_file))
        return {"the recovery phrase": {RECOVERY: key}}
    return {}


def _keys_of(ways: _Ways) -> dict[str, SecretBytes]:
    return {slot_type: key for keys in ways.values() for slot_type, key in keys.items()}


def _opens(backup: Path, keys: dict[str, SecretBytes]) -> bool:
    try:
        with open_backup(backup, keys):
            return True
    except WrongKeyError:
        return False


def _say_damage(error: IntegrityError) -> int:
    print(f"service_security: {error}", file=sys.stderr)
    return 1


# Backups


def _backup(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    target: Path = options.file
    damaged: list[int] = []
    with open_keys(folder.envelope, service_source(options)) as keys:
        try:
            with (
                _read_only(folder, keys.master) as store,
                ProgressLine("saved", shown=not options.quiet) as progress,
            ):
                count = write_backup(
                    store,
                    target,
                    keys.for_backups(),
                    progress=progress,
                    on_damage=damaged.append if options.leave_out_damaged else None,
                )
        except IntegrityError as error:
            raise IntegrityError(
                f"{error} No backup was written; db verify tells what is damaged and what to do."
            ) from None
        # Read back with what may be all that is left one day.
        names, (first, *others) = zip(*_ways(keys).items(), strict=True)
        with ProgressLine("read back", shown=not options.quiet) as progress:
            check_backup(target, first, progress=progress)
        for other in others:
            with open_backup(target, other):
                pass
    for position in damaged:
        print(f"Record {position} is damaged and was left out.")
    size = size_of(target.stat().st_size)
    print(f"{target} holds {count} records, {size}; it was read back and is whole.")
    print(f"It opens with {' or '.join(names)}, without the envelope and on any machine.")
    print("Keep a copy of that apart from it: whoever has both reads the records,")
    print("and without it nobody does.")
    return 0


def _restore(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    _refuse_to_replace(folder.database)
    with ExitStack() as opened:
        own = opened.enter_context(open_keys(folder.envelope, service_source(options)))
        others = _ways_of_another(options, opened)
        progress = opened.enter_context(ProgressLine("restored", shown=not options.quiet))
        count = restore_backup(
            options.file,
            _keys_of(others) or _any_raw_type(own.for_backups()),
            folder.database,
            own.master,
            cipher=options.cipher,
            progress=progress,
        )
    print(
        f"{folder.database} holds {count} records now, encrypted with {options.cipher} under new "
        "keys."
    )
    return 0


def _refuse_to_replace(database: Path) -> None:
    if exists(database):
        raise ConfigurationError(
            f"{database} is there, and a backup is never restored over it. Move it to another "
            "folder, together with its -wal and -shm, then run the command again."
        )


def _any_raw_type(keys: dict[str, SecretBytes]) -> dict[str, SecretBytes]:
    """Offer a raw key for each type of slot: what a container was given may lie in a file now."""
    raw = next((key for slot_type, key in keys.items() if slot_type in RAW_TYPES), None)
    return {**keys, **dict.fromkeys(RAW_TYPES, raw)} if raw else keys


def _read_only(folder: DataFolder, master_key: SecretBytes) -> SecureDb:
    kind = kind_of(folder.database)
    if kind is not Kind.ENCRYPTED:
        raise ConfigurationError(
            f"{folder.database} is {kind.value}, and this command needs {Kind.ENCRYPTED.value}. "
            "Name its folder with --data-dir or SERVICE_DATA_DIR."
        )
    return SecureDb.open(folder.database, master_key, read_only=True)


# Moving records


def _import(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    with (
        open_master_key(folder.envelope, service_source(options)) as master_key,
        ProgressLine("encrypted", shown=not options.quiet) as progress,
    ):
        done = import_records(folder, master_key, cipher=options.cipher, progress=progress)
    print(f"{folder.database} holds {done.count} records now, encrypted with {done.cipher}.")
    _warn_of_old_file(done)
    return 0


def _export(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    with (
        open_master_key(folder.envelope, service_source(options)) as master_key,
        ProgressLine("exported", shown=not options.quiet) as progress,
    ):
        done = export_records(folder, master_key, progress=progress)
    print(f"{folder.database} holds {done.count} records now, for anyone who has the file to read.")
    _warn_of_old_file(done)
    return 0


def _warn_of_old_file(done: Transferred) -> None:
    if done.old_file_remains:
        print("The old file has a second name (a hard link) somewhere and was not overwritten.")
