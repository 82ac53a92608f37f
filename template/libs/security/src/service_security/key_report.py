"""What ``keys status`` tells: the same facts for people and for machines. Never a key."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._files import exists
from .errors import SecurityError, WrongKeyError
from .keys.envelope import Envelope
from .keys.provider import RECOVERY
from .keys.service_keys import next_envelope, open_envelope, previous_envelope, read_envelope
from .keys.source import KeySource
from .layout import DataFolder
from .progress import Progress
from .secret_bytes import SecretBytes
from .store.info import read_info
from .store.kind import Kind, kind_of
from .store.secure_db import SecureDb

if TYPE_CHECKING:
    from .store.key_status import KeyStatus, StatusKey

_ISO: Final = "%Y-%m-%dT%H:%M:%SZ"
_HEADINGS: Final = ("key", "state", "cipher", "made", "in this state since", "records")
_LINE: Final = "  {:<6}{:<12}{:<19}{:<22}{:<22}{}"


@dataclass(frozen=True, slots=True)
class Report:
    """What could be found out about the keys of a service.

    Attributes:
        folder: The data folder.
        envelope: The envelope, of which nothing is proven unless ``opened_by`` is there.
        opened_by: The source that opened it; empty if none did.
        closed_because: Why it was not opened, or cannot be read.
        kind: What the database file holds.
        database_closed_because: Why its keyset was not opened although the envelope was.
        status: How the record keys stand, where they could be opened.
        records_of_keys: The number of records by key.
        interval: How often keys are rotated.
    """

    folder: DataFolder
    envelope: Envelope | None
    opened_by: str
    closed_because: str
    kind: Kind
    database_closed_because: str
    status: "KeyStatus | None"
    records_of_keys: dict[int, int]
    interval: timedelta | None

    @property
    def is_interrupted(self) -> bool:
        """Whether a change of the master key was interrupted."""
        return exists(next_envelope(self.folder.envelope))

    @property
    def previous(self) -> Path | None:
        """The envelope of an old master key, if it is still there."""
        path = previous_envelope(self.folder.envelope)
        return path if exists(path) else None


def read_report(
    folder: DataFolder, source: KeySource, interval: timedelta | None, progress: Progress
) -> Report:
    """Find out what can be found out, also without the key.

    Raises:
        SecurityError: There is neither an envelope nor an encrypted database, or that is damaged.
    """
    kind = kind_of(folder.database)
    envelope, opened_by, closed_because, database_closed = None, "", "", ""
    status, of_keys = None, {}
    try:
        envelope = read_envelope(folder.envelope)
        with open_envelope(folder.envelope, source) as keys:
            opened_by = str(keys.provider)
            if kind is Kind.ENCRYPTED:
                try:
                    status = _status(folder.database, keys.master, interval, progress)
                except WrongKeyError as error:  # as in the middle of a change of the master key
                    database_closed = str(error)
    except SecurityError as error:
        if opened_by or (envelope is None and kind is not Kind.ENCRYPTED):
            raise
        closed_because = str(error)
    if status:
        of_keys = {key.key_id: key.records for key in status.keys} | status.unknown
    elif kind is Kind.ENCRYPTED:
        of_keys = read_info(folder.database, progress).records_of_keys
    return Report(
        folder,
        envelope,
        opened_by,
        closed_because,
        kind,
        database_closed,
        status,
        of_keys,
        interval,
    )


def _status(
    database: Path, master: SecretBytes, interval: timedelta | None, progress: Progress
) -> "KeyStatus":
    with SecureDb.open(database, master, read_only=True) as store:
        return store.rotation().status(interval=interval, progress=progress)


def describe(report: Report) -> str:
    """Return the report as lines for people."""
    return "\n".join([*_of_envelope(report), "", *_of_database(report)])


def _of_envelope(report: Report) -> list[str]:
    rows = {}
    if report.envelope:
        rows = {
            "opens by": report.opened_by or "not opened, so nothing of this is proven",
            "slots": ", ".join(report.envelope.slots),
            "recovery phrase": "yes" if RECOVERY in report.envelope.slots else "no",
            "generation": str(report.envelope.generation),
        }
    lines = [str(report.folder.envelope), *(f"  {name:<17}{text}" for name, text in rows.items())]
    if report.closed_because:
        lines.append(report.closed_because)
    if report.is_interrupted:
        lines.append("A change of the master key was interrupted: run keys rotate --master again.")
    if report.previous:
        lines.append(f"{report.previous} is there: delete it when nothing from before needs it.")
    return lines


def _of_database(report: Report) -> list[str]:
    lines = [str(report.folder.database)]
    if report.kind is not Kind.ENCRYPTED:
        return [*lines, f"  It is {report.kind.value}."]
    if report.database_closed_because:
        lines.append(report.database_closed_because)
    status = report.status
    if status is None:
        return lines + _records(report.records_of_keys, "")
    lines += [_LINE.format(*_HEADINGS), *(_LINE.format(*_cells(key)) for key in status.keys)]
    lines.append("  * new records are sealed with it")
    lines += _records(status.unknown, ", which the keyset does not have; they cannot be read")
    lines += ["", *_when(status, report.interval), "", *status.assurance]
    return lines


def _records(of_keys: dict[int, int], more: str) -> list[str]:
    return [f"{n} records are sealed with key {key}{more}." for key, n in sorted(of_keys.items())]


def _cells(key: "StatusKey") -> Sequence[str]:
    return (
        f"{key.key_id}{'*' if key.primary else ''}",
        key.state,
        key.cipher,
        key.created.strftime(_ISO),
        key.since.strftime(_ISO),
        str(key.records),
    )


def _when(status: "KeyStatus", interval: timedelta | None) -> list[str]:
    lines = []
    if status.unfinished:
        lines.append(f"A {status.unfinished} is unfinished: the service, or keys rotate, ends it.")
    elif status.due is None or interval is None:
        lines.append("Keys are rotated by hand only: keys rotate.")
    else:
        due = "was due" if status.is_due else "is due"
        lines.append(
            f"The next rotation {due} {status.due.strftime(_ISO)}, {interval.days} days after the "
            "key was made."
        )
    if status.overdue:
        keys = ", ".join(map(str, status.overdue))
        lines.append(f"To be destroyed: key {keys}. The service does it, or keys rotate --if-due.")
    return lines


def to_json(report: Report) -> str:
    """Return the report for machines. Members that are not known are null."""
    envelope, status = report.envelope, report.status
    return json.dumps(
        {
            "envelope": {
                "path": str(report.folder.envelope),
                "opened_by": report.opened_by or None,
                "closed_because": report.closed_because or None,
                "slots": list(envelope.slots) if envelope else None,
                "recovery_phrase": RECOVERY in envelope.slots if envelope else None,
                "generation": envelope.generation if envelope else None,
                "change_of_master_interrupted": report.is_interrupted,
                "previous": str(report.previous) if report.previous else None,
            },
            "database": {
                "path": str(report.folder.database),
                "kind": report.kind.name.lower(),
                "closed_because": report.database_closed_because or None,
                "key_generation": status.generation if status else None,
                "keys": [_members(key) for key in status.keys] if status else None,
                "records_of_keys": {str(key): n for key, n in report.records_of_keys.items()},
            },
            "rotation": {
                "interval_days": report.interval.days if report.interval else None,
                "due": status.due.strftime(_ISO) if status and status.due else None,
                "is_due": status.is_due if status else None,
                "unfinished": status.unfinished if status else None,
                "to_be_destroyed": list(status.overdue) if status else None,
                "log_bytes": status.log_size if status else None,
                "log_may_hold_old": status.log_may_hold_old if status else None,
                "assurance": list(status.assurance) if status else None,
            },
        },
        indent=2,
    )


def _members(key: "StatusKey") -> dict[str, object]:
    return {
        "id": key.key_id,
        "state": key.state,
        "cipher": key.cipher,
        "primary": key.primary,
        "created": key.created.strftime(_ISO),
        "since": key.since.strftime(_ISO),
        "records": key.records,
    }
