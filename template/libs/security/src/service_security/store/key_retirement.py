"""What becomes of retired keys: destroyed, gone from the log, and forgotten in the end."""

from collections import Counter
from typing import Final

from ..keys import rotation
from ..keys.keyset import Keyset
from .live_keyset import LiveKeyset, OvertakenError
from .log import empty_log, log_holds_a_keyset
from .rotation_report import OnStep, RotationStep
from .row_pages import count_by_key

_PATIENCE_MS: Final = 200


class KeyRetirement:
    """Ends the life of keys, for a caller that holds them.

    Args:
        live: The keyset of the store.
        on_step: Told of every step, behind it.
    """

    def __init__(self, live: LiveKeyset, on_step: OnStep) -> None:
        self._live = live
        self._on_step = on_step

    def is_due(self) -> bool:
        """Tell whether there is anything to do."""
        with self._live.read() as now_keys:
            now, keyset = self._live.clock(), now_keys.keyset
            due = rotation.due_to_destroy(keyset, now) or rotation.due_to_forget(keyset, now)
        return bool(due) or self._log_is_due()

    def destroy(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Destroy what is due; return which keys were, and which records still name."""
        with self._live.read() as now_keys:
            now = self._live.clock()
            due = rotation.due_to_destroy(now_keys.keyset, now)
            # Nobody writes a row under these keys any more, so what is free stays free.
            records: Counter[int] = self._records_by_key() if due else Counter()
            free = tuple(key_id for key_id in due if not records[key_id])
            kept = tuple(key_id for key_id in due if records[key_id])
            if not free:
                return (), kept
            following = rotation.destroyed(now_keys.keyset, free, now)
        if not self._changed(following):
            return (), kept  # the next time
        for key_id in free:
            self._on_step(RotationStep("destroyed", key_id))
        return free, kept

    def forget(self) -> tuple[int, ...]:
        """Remove what was destroyed long ago from the keyset; return which keys that were."""
        with self._live.read() as now_keys:
            now = self._live.clock()
            due = rotation.due_to_forget(now_keys.keyset, now)
            if not due:
                return ()
            following = rotation.forgotten(now_keys.keyset, now)
        if not self._changed(following):
            return ()  # the next time
        for key_id in due:
            self._on_step(RotationStep("forgotten", key_id))
        return tuple(due)

    def empty_log(self) -> bool | None:
        """Empty the log of what is older than the last destroyed key.

        Returns:
            Whether it could be; None if there was nothing in it.
        """
        gone = self._gone()
        if not gone or not log_holds_a_keyset(self._live.file):
            return None
        # What was emptied once has nothing of them any more, whatever it looks like. It is emptied
        # again for other processes, which cannot know that; but if it cannot be, nothing is wrong.
        is_clean = gone <= self._live.keys.log_emptied_of
        if not empty_log(self._live.file, patience_ms=_PATIENCE_MS):
            return None if is_clean else False
        self._live.keys.log_emptied_of = gone
        if is_clean:
            return None
        self._on_step(RotationStep("log emptied", max(gone)))
        return True

    def _log_is_due(self) -> bool:
        return bool(self._gone()) and log_holds_a_keyset(self._live.file)

    def _gone(self) -> frozenset[int]:
        with self._live.read() as now_keys:
            return frozenset(rotation.destroyed_keys(now_keys.keyset))

    def _records_by_key(self) -> Counter[int]:
        with self._live.moment() as (file, _):
            return count_by_key(file)

    def _changed(self, following: Keyset) -> bool:
        try:
            self._live.change(following)
        except OvertakenError:
            return False
        return True
