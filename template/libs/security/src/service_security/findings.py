"""What ``doctor`` looks for: each check yields its findings, and changes nothing."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import Final

from ._files import exists
from .errors import ConfigurationError, SecurityError
from .file_systems import MOUNTS, NETWORK, file_system_of
from .keys.provider import ENVIRONMENT, KEY_FILE
from .keys.service_keys import (
    envelope_is_there,
    next_envelope,
    open_envelope,
    previous_envelope,
)
from .keys.source import KeySource
from .layout import DataFolder
from .process import harden_process
from .secret_bytes import SecretBytes
from .store.kind import Kind, kind_of
from .store.secure_db import SecureDb

_OURS: Final = re.compile(r".*(\.db([.-].*)?|envelope\.json.*)", re.DOTALL)
"""Names of databases, envelopes, and what lies beside them."""

_LEFT_BY: Final = {
    ".importing": "db import",
    ".exporting": "db export",
    ".replaced": "db import or db export",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        check: What found it: ``files``, ``key``, ``envelope``, ``database``, ``rotation``,
            ``memory`` or ``file system``.
        problem: What is wrong, a sentence.
        action: What to do.
    """

    check: str
    problem: str
    action: str

    @classmethod
    def of(cls, check: str, sentences: str) -> "Finding":
        """Return the finding of a message that says what is wrong, then what to do."""
        problem, _, action = sentences.partition(". ")
        return cls(check, problem.removesuffix(".") + ".", action or "Then run doctor again.")


def memory(*, development: bool) -> Iterator[Finding]:
    """Look whether keys can reach a core dump, a debugger or the swap device."""
    try:
        sentences = harden_process(development=development)
    except ConfigurationError as error:
        sentences = [str(error)]
    for sentence in sentences:
        yield Finding.of("memory", sentence)


def file_system(folder: DataFolder, mounts: Path = MOUNTS) -> Iterator[Finding]:
    """Look whether the data folder is on another machine."""
    if not mounts.exists():
        return
    kind = file_system_of(folder.path.resolve(), mounts.read_text(errors="surrogateescape"))
    if kind in NETWORK:
        yield Finding(
            "file system",
            f"{folder.path} is on a network file system ({kind}), where SQLite's log is not safe.",
            "Move the folder to a local disk, while the service is stopped.",
        )


def files(folder: DataFolder) -> Iterator[Finding]:
    """Look who may read and write the folder and what the library keeps in it."""
    mode = stat.S_IMODE(folder.path.stat().st_mode)
    if mode & stat.S_IWOTH:
        yield Finding(
            "files",
            f"Everybody may put files into {folder.path} (mode {mode:04o}).",
            f"Run: chmod 700 {quote(str(folder.path))}",
        )
    owner = None
    for path in sorted(folder.path.iterdir(), key=lambda path: (path != folder.database, path)):
        if not _OURS.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        status = path.stat()
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            yield Finding(
                "files",
                f"Others may read or write {path} (mode {mode:04o}).",
                f"Run: chmod 600 {quote(str(path))}",
            )
        if owner is None:
            owner, first = status.st_uid, path
        elif status.st_uid != owner:
            yield Finding(
                "files",
                f"{path} belongs to user {status.st_uid}, and {first.name} to user {owner}: a "
                "command was run as another user than the service.",
                f"Run: chown {owner} {quote(str(path))}",
            )


def leftovers(folder: DataFolder) -> Iterator[Finding]:
    """Look for what an interrupted command has left, and for the envelope of an old master key."""
    upcoming, previous = next_envelope(folder.envelope), previous_envelope(folder.envelope)
    if exists(upcoming):
        yield Finding(
            "envelope",
            f"{upcoming} is there: a change of the master key was interrupted.",
            "Run keys rotate --master again, with the options of the first time.",
        )
    if exists(previous):
        yield Finding(
            "envelope",
            f"{previous} is there: it opens copies and single fields of an old master key.",
            "Seal such fields anew, then delete it and the copies.",
        )
    for suffix, command in _LEFT_BY.items():
        path = folder.database.with_name(folder.database.name + suffix)
        if exists(path):
            yield Finding(
                "database",
                f"{path} was left by an interrupted {command}.",
                "Run that again, or delete the file if you know that nothing in it is needed.",
            )
    for path in (folder.envelope, upcoming, previous):
        yield from _draft_of(path, "envelope")


def key_places(folder: DataFolder, source: KeySource) -> Iterator[Finding]:
    """Look where the key is, which of several sources counts as given."""
    for provider in source.providers:
        if provider.slot_type == ENVIRONMENT:
            yield Finding(
                "key",
                f"The key is in an environment variable ({provider}): it stays in the memory of "
                "the process, and its children and others of the same user can read it.",
                "Let it be delivered as a file, then: keys reseal --to secret:FILE.",
            )
        path = getattr(provider, "path", None)
        if not isinstance(path, Path):
            continue
        if path.resolve().is_relative_to(folder.path.resolve()):
            yield Finding(
                "key",
                f"{path} lies in the data folder: a copy of that has the records and the key.",
                "Move it to another folder, and set SERVICE_KEY_SOURCE to it.",
            )
        if provider.slot_type == KEY_FILE:
            if os.name != "nt" and path.parent.is_dir():
                mode = stat.S_IMODE(path.parent.stat().st_mode)
                if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                    yield Finding(
                        "key",
                        f"Everybody may replace {path}: its folder has mode {mode:04o}.",
                        f"Run: chmod 700 {quote(str(path.parent))}",
                    )
            yield from _draft_of(path, "key")


def _draft_of(path: Path, check: str) -> Iterator[Finding]:
    draft = path.with_name(f".{path.name}.new")
    if exists(draft):
        yield Finding(
            check,
            f"{draft} was left by a command that was interrupted.",
            "Delete it while no command is running.",
        )


def keys_and_database(
    folder: DataFolder, source: KeySource, interval: timedelta | None
) -> Iterator[Finding]:
    """Look whether the envelope opens and is whole, and what is under its key."""
    try:
        kind = kind_of(folder.database)
    except SecurityError as error:
        yield Finding.of("database", str(error))
        kind = Kind.NONE
    if kind in (Kind.PLAIN, Kind.OTHER):
        yield Finding(
            "database",
            f"{folder.database} is {kind.value}, not {Kind.ENCRYPTED.value}.",
            "Stop the service, then: db import.",
        )
    if not envelope_is_there(folder.envelope):
        yield from providers(source)
    try:
        keys = open_envelope(folder.envelope, source)
    except SecurityError as error:
        yield Finding.of("key", str(error))
        return
    with keys:
        if not keys.recovery:
            yield Finding(
                "envelope",
                f"{folder.envelope} has no recovery phrase: if {keys.provider} is lost, so are the "
                "records.",
                "Make one: keys recovery-phrase.",
            )
        if kind is Kind.ENCRYPTED:
            yield from rotation(folder.database, keys.master, interval)


def providers(source: KeySource) -> Iterator[Finding]:
    """Look whether a key could be made here, where there is none yet."""
    found = []
    for provider in source.providers:
        try:
            provider.probe()
        except SecurityError as error:
            found.append(Finding.of("key", str(error)))
        else:
            return
    yield from found


def rotation(database: Path, master: SecretBytes, interval: timedelta | None) -> Iterator[Finding]:
    """Look how old the keys of the records are, and what of their rotation is unfinished."""
    try:
        with SecureDb.open(database, master, read_only=True) as store:
            status = store.rotation().status(interval=interval)
    except SecurityError as error:
        yield Finding.of("database", str(error))
        return
    if status.unfinished:
        yield Finding(
            "rotation",
            f"A {status.unfinished} of the keys of {database} is unfinished.",
            "Start the service, which ends it, or run keys rotate.",
        )
    if status.is_due and status.due:
        yield Finding(
            "rotation",
            f"The key of the records was due to be rotated {status.due:%Y-%m-%d}.",
            "Start the service, which does it, or run keys rotate.",
        )
    if status.overdue or status.log_may_hold_old:
        what = (
            f"key {', '.join(map(str, status.overdue))} is still there"
            if status.overdue
            else "the log may still hold what a destroyed key had sealed"
        )
        yield Finding(
            "rotation",
            f"A retired key has to be destroyed: {what}.",
            "Start the service, which does it, or run keys rotate --if-due.",
        )
    if status.unknown:
        yield Finding(
            "rotation",
            f"{sum(status.unknown.values())} records name a key that the keyset does not have.",
            "Run db verify, then restore them from a backup.",
        )
