"""Proves that a backup and a phrase give every record back, on a machine that has nothing else.

The backup is restored into an empty temporary folder, under a master key that is made for it and
forgotten. Neither the service's key nor its envelope is needed; where its database can be opened,
the two are compared.
"""

import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ..errors import IntegrityError, StoreUnavailableError
from ..keys.derivation import KEY_BYTES
from ..progress import Progress
from ..secret_bytes import SecretBytes
from .backup import restore_backup
from .backup_file import Record, open_backup
from .batches import BATCH_RECORDS
from .cipher import CIPHERS
from .secure_db import SecureDb

_SIGNALS: Final = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@dataclass(frozen=True, slots=True)
class Compared:
    """How the records of a backup stand in the service's database now.

    Attributes:
        equal: Records with the same name and value.
        changed: Records of that name with another value.
        gone: Records that the database does not have any more.
        new: Records that the backup does not have.
        damaged: Records that the database cannot read.
    """

    equal: int
    changed: int
    gone: int
    new: int
    damaged: int


@dataclass(frozen=True, slots=True)
class Drill:
    """What was proven.

    Attributes:
        records: How many were restored and read; the backup tells the same number.
        size: Of the backup, in bytes.
        compared: With the service's database; None where there was none to be had.
    """

    records: int
    size: int
    compared: Compared | None


def recovery_drill(
    backup: Path,
    keys: Mapping[str, SecretBytes],
    live: SecureDb | None,
    *,
    restoring: Progress,
    reading: Progress,
) -> Drill:
    """Restore a backup into an empty folder, read every record, and remove the folder again.

    The folder is where TMPDIR says, and needs as much room as the restored database.

    Args:
        backup: The file.
        keys: What is to open it, by type of slot.
        live: The service's database, to compare with.
        restoring: Told how many records were restored.
        reading: Told how many were read.

    Raises:
        WrongKeyError: The keys do not open the backup.
        IntegrityError: The backup is damaged or incomplete, or did not give every record back.
        SecurityError: As for ``restore_backup``.
    """
    with _empty_folder() as folder, SecretBytes.generate(KEY_BYTES) as master:
        database = folder / "records.db"
        with open_backup(backup, keys) as opened:
            promised = opened.count
        cipher = next(iter(CIPHERS))
        restore_backup(backup, keys, database, master, cipher=cipher, progress=restoring)
        with SecureDb.open(database, master, read_only=True) as store:
            records = _counted(store.items(), promised, reading)
            if live:
                with live.snapshot() as moment:
                    read, compared = _compare(records, moment)
            else:
                read, compared = sum(1 for _ in records), None
        if read != promised:
            raise IntegrityError(
                f"The backup {backup} has {promised} records, and {read} came back. Make another "
                "one, and keep this one to find out why."
            )
        return Drill(read, backup.stat().st_size, compared)


def _counted(records: Iterable[Record], total: int, progress: Progress) -> Iterator[Record]:
    for number, record in enumerate(records, 1):
        yield record
        if number % BATCH_RECORDS == 0 or number == total:
            progress(number, total)


def _compare(records: Iterable[Record], moment: SecureDb) -> tuple[int, Compared]:
    read = equal = changed = gone = damaged = 0
    for name, value in records:
        read += 1
        try:
            found = moment.get(name)
        except IntegrityError:
            damaged += 1
            continue
        equal += found == value
        gone += found is None
        changed += found is not None and found != value
    new = moment.count() - equal - changed - damaged
    return read, Compared(equal, changed, gone, new, damaged)


@contextmanager
def _empty_folder() -> Iterator[Path]:
    """Yield a folder of one's own that is gone behind the block, also after an interrupt."""
    with _Interrupts() as interrupts:
        try:
            with (
                tempfile.TemporaryDirectory(prefix="recovery-drill-") as name,
                interrupts.let_through(),
            ):
                yield Path(name)
        except OSError as error:
            raise StoreUnavailableError(
                f"The temporary folder {error.filename} cannot be used: {error.strerror}. TMPDIR "
                "names where it is made."
            ) from error


class _Interrupts:
    """Makes signals that end a process interrupts, and keeps them back but for a block.

    Only the main thread may do so; elsewhere signals are left as they are.
    """

    def __init__(self) -> None:
        self._let_through = False
        self._kept_back = False
        self._before: dict[int, Any] = {}

    def _handle(self, _number: int, _frame: object) -> None:
        if self._let_through:
            raise KeyboardInterrupt
        self._kept_back = True

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Let interrupts through in the block, and one that was kept back before it."""
        try:
            self._let_through = True
            self._raise_what_was_kept_back()
            yield
        finally:
            self._let_through = False

    def _raise_what_was_kept_back(self) -> None:
        if self._kept_back:
            self._kept_back = False
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._raise_what_was_kept_back()
