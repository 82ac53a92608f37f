"""What a service that encrypts says about records that are not encrypted, and the other way round.

Records of the other kind are never taken for none: the service that finds them refuses to start
and names the command that moves them.
"""

import os
import shlex
from contextlib import suppress
from pathlib import Path

from .._files import exists
from ..command_line import command_line
from ..errors import ConfigurationError
from ..keys.source import KeySource
from ..layout import DataFolder
from .kind import Kind, kind_of
from .replacement import beside, is_the_same_file
from .sqlite_errors import translated


def refuse_other_kind(database: Path, *, cipher: str, key_source: KeySource | str) -> None:
    """Refuse to start on plain records, and name the command that imports them.

    Args:
        database: The file that the service is about to open.
        cipher: The cipher that the command is to use.
        key_source: Where the service's key is.

    Raises:
        ConfigurationError: The file holds plain records, or a stopped transfer left some beside it;
            or the source is none.
        IntegrityError: It is damaged or no database.
        StoreUnavailableError: It cannot be read.
    """
    folders = f"--data-dir {shlex.quote(str(database.parent))}"
    source = key_source if isinstance(key_source, KeySource) else KeySource.parse(key_source)
    folders += f" --key-source {shlex.quote(str(source))}"
    if kind_of(database) is Kind.PLAIN:
        first = command_line(f"init {folders}") + " && "
        raise ConfigurationError(
            f"{database} holds records that are not encrypted. Nothing was changed. Stop every "
            "service that uses it, then import them with: "
            f"{'' if exists(DataFolder(database.parent).envelope) else first}"
            + command_line(f"db import {folders} --cipher {cipher}")
        )
    with translated(database):
        replaced = beside(database, "replaced")
        if exists(replaced) and not is_the_same_file(replaced, database):
            raise ConfigurationError(
                f"{replaced} still holds the records of before. To have it overwritten, run "
                "again: " + command_line(f"db import {folders} --cipher {cipher}")
            )
        if exists(beside(database, "exporting")):
            raise ConfigurationError(
                f"{beside(database, 'exporting')} holds readable records of an export that was "
                "stopped. Delete it, or go on with: " + command_line(f"db export {folders}")
            )


def leave_note(database: Path) -> None:
    """Leave a text file beside the database that says what it is and how to get the records out.

    A service without this library that finds the database shows it to its user.
    """
    folder = shlex.quote(str(database.parent))
    text = (
        f"{database.name} is an encrypted database. It opens with envelope.json beside it and "
        "the service's key.\n"
        "To take the records out for a service that does not encrypt them, run this in the "
        "version of the service that wrote them:\n"
        + command_line(f"db export --data-dir {folder}\n")
    )
    with translated(database), suppress(FileExistsError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(note_beside(database), flags, 0o600), "w") as note:  # noqa: PTH123
            note.write(text)


def note_beside(database: Path) -> Path:
    """Return the name of the text file that ``leave_note`` writes."""
    return beside(database, "README.txt")
