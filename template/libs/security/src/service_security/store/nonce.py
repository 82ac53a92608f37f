"""Nonces that never repeat under one key.

::

    stored = counter u64 || uuid16          24 bytes, the front of every sealed record
    used   = uuid16 || counter              as the cipher takes it

Two things stand against a repetition. The uuid is fresh for every call and drawn after the
plaintext is fixed; alone it would do wherever the kernel's randomness holds. The counter comes
from a lease that is durable before its first number is used, so a crash skips numbers and a
second process gets others; alone it would do for every file but a copy that is written to.
"""

import os
import time
from collections.abc import Callable
from typing import Final

from ..errors import StoreUnavailableError

LEASE: Final = 2**20
"""Counters reserved at a time; also the most records of one call."""
_LAST: Final = 2**63 - 2 * LEASE


def fresh_uuid() -> bytes:
    """Return 16 bytes for one call.

    Kernel randomness, with the time and the process id mixed in: a virtual machine restored
    twice from one snapshot may have equal kernel randomness for a moment, and the clock then
    still differs. Mixing by XOR with what is not chosen by an attacker takes nothing away.
    """
    mixed = int.from_bytes(os.urandom(16)) ^ time.time_ns() ^ (os.getpid() << 64)
    return mixed.to_bytes(16)


class CounterLease:
    """Hands out counters from durable leases. Not for several threads at once.

    Args:
        reserve: Reserves that many counters durably and returns the first of them.
    """

    def __init__(self, reserve: Callable[[int], int]) -> None:
        self._reserve = reserve
        self._next = 0
        self._end = 0

    def provide(self, count: int) -> None:
        """Make sure that the next ``count`` counters are taken from the lease that is there.

        Args:
            count: At most ``LEASE``.

        Raises:
            StoreUnavailableError: No lease could be made durable. Nothing may be sealed then.
        """
        if self._end - self._next < count:
            start = self._reserve(LEASE)
            self._next, self._end = start, start + LEASE

    def take(self, count: int) -> int:
        """Return the first of ``count`` consecutive counters that nobody else has.

        Raises:
            ValueError: ``count`` is more than ``LEASE``.
            StoreUnavailableError: As for ``provide``.
        """
        if count > LEASE:
            raise ValueError(f"at most {LEASE} counters at a time, not {count}")
        self.provide(count)
        first = self._next
        self._next += count
        return first


def check_lease(start: int) -> None:
    """Refuse a lease near the end of the counter space.

    Raises:
        StoreUnavailableError: There are no counters left to reserve.
    """
    if not 0 <= start <= _LAST:
        raise StoreUnavailableError(
            "The database has no nonce counters left. Export its records and import them anew."
        )
