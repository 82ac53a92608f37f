"""One rotation of the record keys, step after step, from whatever state it is in.

The keyset and the rows on disk are all the state there is. So a rotation that was stopped anywhere
goes on from there, whoever does it.
"""

from dataclasses import dataclass

from ..errors import ConfigurationError, IntegrityError, StoreUnavailableError
from ..keys import rotation
from ..keys.keyset import Keyset, KeyState
from ..keys.rotation import Unfinished, unfinished
from ..progress import Progress
from .key_validation import validate
from .live_keyset import LiveKeyset, OvertakenError
from .record import RecordKeys
from .reencryption import Reencryption
from .rotation_report import LeftRecord, OnStep, Rotated, RotationStep, named

_GOES_ON = (
    "The keys of the database are between two states, which harms nothing: all records can be read "
    "and written. Run the rotation again when this is mended, and it goes on where it stopped."
)
_STAYS = (
    "The keys of the database are between two states, and all of them are kept: records that open "
    "can be read and written. Let db verify name what is damaged. A rotation goes on, or is rolled "
    "back, when that is mended."
)


@dataclass(slots=True)
class _Work:
    """What a rotation is about, and what was done so far."""

    key_id: int
    other_id: int
    resumed: bool
    moved: int = 0
    validated: int = 0
    damaged: tuple[LeftRecord, ...] = ()
    unreadable: tuple[LeftRecord, ...] = ()


def _work_on(keyset: Keyset) -> _Work | None:
    """Return what is unfinished."""
    key = rotation.key_in_progress(keyset)
    if key is None:
        return None
    return _Work(key.key_id, rotation.active_key(keyset).key_id, resumed=True)


class RotationSteps:
    """Takes the steps of a rotation, for a caller that holds the keys.

    Args:
        live: The keyset of the store.
        progress: Told how many records were looked at, of those there are.
        on_step: Told of every step, behind it.
    """

    def __init__(self, live: LiveKeyset, progress: Progress, on_step: OnStep) -> None:
        self._live = live
        self._progress = progress
        self._on_step = on_step

    def run(self, cipher: int | None) -> Rotated:
        """Rotate, or end what is unfinished; ``KeyRotation.run`` has the rest.

        Args:
            cipher: Code of the new key's cipher; None for that of the key before.
        """
        while True:
            with self._live.read() as now_keys:
                work = _work_on(now_keys.keyset)
                if work is None:
                    code = now_keys.keyset.primary.cipher if cipher is None else cipher
                    work = self._begin(now_keys.keyset, code)
            if work is not None:
                return self._complete(work)

    def _begin(self, keyset: Keyset, cipher: int) -> _Work | None:
        """Make the new key; return None if somebody else was faster with another change."""
        following = rotation.with_new_key(keyset, cipher, self._live.clock())
        work = _Work(max(following.entries), keyset.primary_id, resumed=False)
        try:
            self._live.change(following)
        except OvertakenError:
            return None
        self._on_step(RotationStep("generated", work.key_id))
        return work

    def roll_back(self) -> Rotated:
        """Move everything back; ``KeyRotation.roll_back`` has the rest."""
        with self._live.read() as now_keys:
            work = _work_on(now_keys.keyset)
            back = unfinished(now_keys.keyset) is Unfinished.ROTATION
        if work is None:
            raise ConfigurationError(
                f"No rotation of the keys of {self._live.file.path} is unfinished, so there is "
                "none to roll back. One that is finished stays; the keys can be rotated again."
            )
        return self._complete(work, back=back)

    def _complete(self, work: _Work, *, back: bool = False) -> Rotated:
        """Take step after step until nothing is unfinished; turn around first if ``back``."""
        try:
            while True:
                try:
                    if not self._step(work, back=back):
                        break
                    back = False
                except OvertakenError:
                    continue  # look again at what there is now
        except StoreUnavailableError as error:
            raise StoreUnavailableError(f"{error} {_GOES_ON}") from None
        except IntegrityError as error:
            raise IntegrityError(f"{error} {_STAYS}") from None
        with self._live.read() as now_keys:
            primary_id, cipher = now_keys.primary_id, now_keys.cipher_name
        if work.unreadable:
            raise IntegrityError(
                f"{named(work.unreadable)} of {self._live.file.path} did not open under the new "
                f"key {work.key_id}, although they did when they were written. The rotation was "
                f"rolled back: new records and all others are under key {primary_id}. Check the "
                "memory and the disk of this machine, restore these records from a backup or "
                "remove them, then rotate again."
            )
        forward = primary_id == work.key_id
        return Rotated(
            primary_id,
            work.other_id if forward else work.key_id,
            cipher,
            work.moved,
            work.validated if forward else 0,
            work.resumed,
            not forward,
            work.damaged,
        )

    def _step(self, work: _Work, *, back: bool) -> bool:
        """Take the step that comes next; return False if there is none."""
        with self._live.read() as now_keys:
            keyset = now_keys.keyset
            direction, key = unfinished(keyset), rotation.key_in_progress(keyset)
            if direction is None or key is None:
                return False
            work.key_id, work.other_id = key.key_id, rotation.active_key(keyset).key_id
            if direction is Unfinished.ROLL_BACK:
                self._move(now_keys, work)
                self._live.change(rotation.rolled_back(keyset, self._live.clock()))
                self._on_step(RotationStep("retiring", key.key_id, work.moved))
            elif back:
                self._turn_around(keyset, work)
            elif key.state is KeyState.GENERATED:
                self._live.change(rotation.rotating(keyset, self._live.clock()))
                self._on_step(RotationStep("rotating", key.key_id))
            elif key.state is KeyState.ROTATING:
                self._move(now_keys, work)
                self._live.change(rotation.validating(keyset, self._live.clock()))
                self._on_step(RotationStep("validating", key.key_id, work.moved))
            else:
                self._validate(keyset, work)
        return True

    def _move(self, now_keys: RecordKeys, work: _Work) -> None:
        moving = Reencryption(self._live, now_keys, self._progress)
        try:
            moving.run()
        finally:
            work.moved += moving.moved
        work.damaged = moving.left

    def _validate(self, keyset: Keyset, work: _Work) -> None:
        with self._live.moment() as (file, keys):
            if keys.record.generation != keyset.generation:
                raise OvertakenError
            found = validate(file, keys, self._progress)
        work.damaged = found.damaged
        if found.unreadable:
            work.unreadable = found.unreadable
            self._turn_around(keyset, work)
        elif found.strayed:  # somebody has put old rows back into the file
            self._live.change(rotation.rotating(keyset, self._live.clock()))
            self._on_step(RotationStep("rotating", work.key_id))
        else:
            self._live.change(rotation.finished(keyset, self._live.clock()))
            work.validated = found.records
            self._on_step(RotationStep("active", work.key_id, found.records))
            self._on_step(RotationStep("retiring", work.other_id))

    def _turn_around(self, keyset: Keyset, work: _Work) -> None:
        following = rotation.rolling_back(keyset, self._live.clock())
        unused = unfinished(following) is None
        self._live.change(following)
        self._on_step(RotationStep("destroyed" if unused else "rolling back", work.key_id))
