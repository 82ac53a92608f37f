"""The command ``keys recovery-drill``: proves that a backup and the phrase are enough."""

import argparse
import sys
from contextlib import ExitStack

from .errors import IntegrityError, SecurityError
from .keys.provider import RECOVERY
from .keys.service_keys import open_master_key
from .layout import DataFolder
from .progress import ProgressLine
from .store.kind import Kind, kind_of
from .store.recovery_drill import Compared, recovery_drill
from .store.report import size_of
from .store.secure_db import SecureDb
from .terminal import read_phrase


def drill(options: argparse.Namespace) -> int:
    """Run the command; the status is 1 when the backup does not give every record back."""
    with ExitStack() as opened:
        phrase = opened.enter_context(read_phrase(options.phrase_file))
        live, not_compared = _service_database(options, opened)
        restoring = opened.enter_context(ProgressLine("restored", shown=not options.quiet))
        reading = opened.enter_context(ProgressLine("read", shown=not options.quiet))
        try:
            done = recovery_drill(
                options.backup, {RECOVERY: phrase}, live, restoring=restoring, reading=reading
            )
        except IntegrityError as error:
            print(f"service_security: {error}", file=sys.stderr)
            return 1
    print(f"{options.backup} ({size_of(done.size)}) and the recovery phrase gave back all of its")
    print(f"{done.records} records, in an empty folder and under a new key. The folder is removed.")
    print(_comparison(done.compared) if done.compared else f"Not compared. {not_compared}")
    return 0


def _service_database(
    options: argparse.Namespace, opened: ExitStack
) -> tuple[SecureDb | None, str]:
    """Return the service's database, or why there is none to compare with. Nobody is asked."""
    folder = DataFolder(options.data_dir)
    try:
        if kind_of(folder.database) is not Kind.ENCRYPTED:
            return None, f"There is no encrypted {folder.database} here."
        with open_master_key(folder.envelope, options.key_source) as master:
            store = SecureDb.open(folder.database, master, read_only=True)
    except SecurityError as error:  # a drill is for the day when this is lost
        return None, str(error)
    return opened.enter_context(store), ""


def _comparison(found: Compared) -> str:
    lines = [
        f"Compared with the service's database as it is now: {found.equal} records are the same,",
        f"{found.changed} have changed, {found.gone} are gone, {found.new} are new.",
    ]
    if found.damaged:
        lines.append(f"{found.damaged} cannot be read there: run db verify.")
    return "\n".join(lines)
