"""The commands ``keys``: how the keys stand, new ones, other places for them, and the drill.

Exit status 1 says that records were found damaged: the keys are changed all the same.
"""

import argparse
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from ._files import locked
from .command_options import (
    add_interval,
    add_parser,
    add_phrase_options,
    add_quiet,
    add_slot_options,
    say_setting,
    service_source,
    slot_source,
    unbacked_pcrs,
)
from .errors import ConfigurationError, IntegrityError, WrongKeyError
from .keys.envelope import Envelope
from .keys.provider import RECOVERY
from .keys.recovery import RecoveryKey
from .keys.reseal import BUSY, change_recovery, lock_beside, reseal
from .keys.service_keys import (
    ServiceKeys,
    envelope_is_there,
    next_envelope,
    open_keys,
    open_with,
    read_envelope,
)
from .keys.source import KeySource
from .layout import DataFolder
from .progress import ProgressLine
from .secret_bytes import SecretBytes
from .store.cipher import CIPHERS
from .terminal import NewPhrase, read_phrase


def add_command(
    subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    folders: argparse.ArgumentParser,
) -> None:
    """Register the commands.

    Args:
        subcommands: Where they belong.
        folders: A parser with the options that name the service's folders.
    """
    keys = subcommands.add_parser(
        "keys", help="tell how the keys stand, rotate, move and recover them"
    )
    commands = keys.add_subparsers(required=True, metavar="COMMAND")

    add = partial(add_parser, commands, folders)
    status = add("status", _status, "tell how the keys stand, as far as the key is there")
    status.add_argument("--json", action="store_true", help="print it for machines")
    add_quiet(status)
    add_interval(status)

    rotate = add("rotate", _rotate, "make a new key and re-encrypt; the service may run meanwhile")
    what = rotate.add_mutually_exclusive_group()
    what.add_argument(
        "--if-due", action="store_true", help="do only what is due, for a timer; else say so"
    )
    what.add_argument(
        "--roll-back", action="store_true", help="go back to the old key of an unfinished rotation"
    )
    what.add_argument(
        "--master",
        action="store_true",
        help="make a new master key and a new recovery phrase; stop the service first",
    )
    add_interval(rotate)
    rotate.add_argument("--cipher", choices=CIPHERS, help="of the new key (that of the old one)")
    add_quiet(rotate)
    master = rotate.add_argument_group("with --master")
    master.add_argument("--to", metavar="SOURCE", help="where the new key is to be (as it is)")
    master.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a database of this service in another folder; may be given again",
    )
    add_phrase_options(master)
    add_slot_options(master)

    move = add(
        "reseal", _reseal, "move the key to another source; data and phrase stay as they are"
    )
    move.add_argument("--to", required=True, metavar="SOURCE", help="where the key is to be")
    add_slot_options(move)

    recover = add("recover", _recover, "open the envelope by its recovery phrase, and move the key")
    recover.add_argument("--to", required=True, metavar="SOURCE", help="where the key is to be")
    _add_phrase(recover)
    add_slot_options(recover)

    phrase = add("recovery-phrase", _recovery_phrase, "make a recovery phrase in place of the old")
    phrase.add_argument(
        "--phrase-file", type=Path, metavar="FILE", help="write it to this new file"
    )

    drill = add(
        "recovery-drill", _drill, "prove that a backup and the phrase give all records back"
    )
    drill.add_argument("backup", type=Path, metavar="BACKUP", help="the backup")
    _add_phrase(drill)
    add_quiet(drill)


def _add_phrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--phrase-file", type=Path, metavar="FILE", help="a file with the recovery phrase"
    )


def _status(options: argparse.Namespace) -> int:
    from .key_report import describe, read_report, to_json

    folder = DataFolder(options.data_dir)
    with ProgressLine("counted", shown=not options.quiet) as progress:
        report = read_report(folder, service_source(options), options.interval, progress)
    print((to_json if options.json else describe)(report))
    return 0


def _rotate(options: argparse.Namespace) -> int:
    from .rotate_command import rotate

    return rotate(options)


def _drill(options: argparse.Namespace) -> int:
    from .drill_command import drill

    return drill(options)


def _reseal(options: argparse.Namespace) -> int:
    folder, to = DataFolder(options.data_dir), _target(options)
    with open_keys(folder.envelope, service_source(options)) as keys:
        if options.pcrs and not keys.recovery:
            raise unbacked_pcrs("Make one first: keys recovery-phrase.")
        provider = reseal(folder.envelope, keys, to)
        print(f"{folder.envelope} opens with {provider} now", end="")
        print(", and with the recovery phrase as before." if keys.recovery else ".")
        if str(keys.provider) != str(provider):
            print(f"It does not open with {keys.provider} any more; older copies of it do.")
    say_setting(provider, options)
    return 0


def _target(options: argparse.Namespace) -> KeySource:
    to = slot_source(options.to, options)
    if len(to.providers) != 1:
        raise ConfigurationError(
            f"The key can be moved to one source only, and {to} is a list. Name the one."
        )
    return to


def _recover(options: argparse.Namespace) -> int:
    folder, to = DataFolder(options.data_dir), _target(options)
    # In the middle of a change of the master key there are two envelopes, each with its phrase.
    paths = (folder.envelope, next_envelope(folder.envelope))
    envelopes = {
        path: read_envelope(path)
        for path in paths
        if path == folder.envelope or envelope_is_there(path)
    }
    with_phrase = {path: found for path, found in envelopes.items() if RECOVERY in found.slots}
    if not with_phrase:
        raise ConfigurationError(
            f"{folder.envelope} has no recovery slot: it was made without a recovery phrase. It "
            f"opens by {' or '.join(envelopes[folder.envelope].slots)} only."
        )
    to.providers[0].probe()  # before somebody types 24 words
    opened = []
    with read_phrase(options.phrase_file) as phrase:
        for path, envelope in with_phrase.items():
            keys = _by_phrase(path, envelope, phrase)
            if keys is None:
                continue
            with keys:
                is_next = path != folder.envelope
                with locked(lock_beside(folder.envelope), BUSY) if is_next else nullcontext():
                    reseal(path, keys, to)
                opened.append(path)
    if not opened:
        raise WrongKeyError(
            f"That recovery phrase does not open {folder.envelope}. Either a word is wrong (one "
            "wrong phrase in 256 fits together by chance), or it is not the phrase that was made "
            "last. Nothing was changed."
        )
    for path in opened:
        print(f"{path} opens with {to} now, and with the recovery phrase as before.")
    say_setting(to.providers[0], options)
    print(
        "A lost key still opens older copies of the envelope, and backups of before. If others may"
    )
    print("have it or have seen the phrase: keys rotate --master --to SOURCE.")
    return 0


def _by_phrase(path: Path, envelope: Envelope, phrase: SecretBytes) -> ServiceKeys | None:
    """Return the keys in an envelope; None if another phrase opens it."""
    try:
        return open_with(envelope, RecoveryKey(phrase))
    except WrongKeyError:
        return None
    except IntegrityError as error:
        raise IntegrityError(f"The key envelope {path} cannot be used. {error}") from None


def _recovery_phrase(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    with (
        open_keys(folder.envelope, service_source(options)) as keys,
        NewPhrase(options.phrase_file, folder.envelope) as phrase,
        phrase.make() as key,
    ):
        change_recovery(folder.envelope, keys, key)
        print(f"{folder.envelope} opens with the new recovery phrase.")
        if keys.recovery:
            print(
                "The old one still opens older copies of it, and the backups of before. If others"
            )
            print("may have seen it, make a new master key: keys rotate --master.")
    return 0
