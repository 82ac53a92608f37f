"""Keeps the memory of a process, with the keys in it, from core dumps and from other processes.

On Linux by two settings that last until the process ends. Neither is enough alone:

- the core size limit is 0 (setrlimit(2)), so that a crash writes no file;
- the process is not dumpable (prctl(2), PR_SET_DUMPABLE). The limit does not hold for dumps that
  the kernel pipes to a program (core(5)); this does. It also closes ``/proc/PID/mem`` and ptrace(2)
  to every process that is not root's, one of the same user included.

Other systems have no such settings, or none that this library uses: they are for development.
"""

import ctypes
import os
import sys
from contextlib import ExitStack
from typing import Final

from .errors import ConfigurationError
from .secret_bytes import SecretBytes

if sys.platform != "win32":
    import resource

SWITCH: Final = "SERVICE_CORE_DUMPS=allow"
"""The setting of the service that stands for development."""

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>
_STORE_PAGES = 8  # what an open store locks, and what opening one locks for a moment

_MISSING = {
    "darwin": "On macOS, keys cannot be left out of core dumps or wiped in a forked process.",
    "win32": "On Windows, keys cannot be locked into memory or left out of crash dumps.",
}
_UNKNOWN = "On this system, nothing is known to keep keys out of core dumps."
_ALLOWED = (
    f"{SWITCH} is set: core dumps are left on and debuggers let in, and both show every key. "
    "It is for development."
)
_UNLOCKED = (
    "Keys cannot be locked into memory and may reach the swap device. Raise the limit of locked "
    "memory (ulimit -l, LimitMEMLOCK=, ulimits: memlock), or do without swap."
)


def harden_process(*, development: bool, platform: str = sys.platform) -> list[str]:
    """Turn core dumps off and keep other processes out of the memory of this one.

    Call it before the first key is read. A forked process keeps both settings; a program that is
    executed keeps the limit only.

    Args:
        development: Leave core dumps on and debuggers in, and accept a system that cannot do
            without.
        platform: The system, as in ``sys.platform``.

    Returns:
        A sentence about each thing that is not as it should be, to be logged as a warning.

    Raises:
        ConfigurationError: It cannot be done here, and this is not development.
    """
    missing = [] if platform == "linux" else [_MISSING.get(platform, _UNKNOWN)]
    if missing and not development:
        raise ConfigurationError(
            f"{missing[0]} Run the service on Linux; to develop it here, set {SWITCH}."
        )
    if development:
        missing.insert(0, _ALLOWED)
    else:
        _turn_dumps_off()
    return missing if _can_lock_memory() else [*missing, _UNLOCKED]


def _turn_dumps_off() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _set_not_dumpable()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(
            f"Core dumps cannot be turned off: {reason}. A sandbox that forbids setrlimit or prctl "
            f"has to allow them; to develop without, set {SWITCH}."
        ) from error


def _set_not_dumpable() -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]  # variadic: an int would be half filled
    if prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _can_lock_memory() -> bool:
    with ExitStack() as probes:
        return all(probes.enter_context(SecretBytes()).locked for _ in range(_STORE_PAGES))
