"""A key in memory of its own: locked, kept out of core dumps, wiped on close and on fork.

CPython copies ``bytes`` freely and frees them unwiped, so a key lives in a page of its own and
is handed out as a ``memoryview`` of it. What this cannot reach: OpenSSL's contexts while they
are in use, and temporaries on the C stack.
"""

import ctypes
import hmac
import mmap
import os
import sys
from typing import Final, NoReturn, Self

from .errors import StoreUnavailableError

MAX_BYTES: Final = 2**16 - 1
_CANARY = 0xA5
_MADV_DONTDUMP = 16  # <asm-generic/mman-common.h>; the module's own constant is missing before 3.13
_MADV_WIPEONFORK = 18


class SecretBytes:
    """A fixed number of secret bytes that are wiped when closed.

    Args:
        length: Size in bytes, 1 to 65,535. The bytes start as zeros.

    Raises:
        ValueError: ``length`` is out of range.
    """

    __slots__ = ("_length", "_page", "_pid", "locked")

    locked: bool
    """Whether the page is locked into memory, so that it cannot reach a swap device."""

    def __init__(self, length: int = 32) -> None:
        if not 0 < length <= MAX_BYTES:
            raise ValueError(f"a secret has 1 to {MAX_BYTES} bytes, not {length}")
        self._length = length
        self._pid = os.getpid()
        self._page: mmap.mmap | None = _private_pages(length + 1)  # one more for the canary
        self._page[-1] = _CANARY
        self.locked = _lock(self._page)

    @classmethod
    def generate(cls, length: int = 32) -> Self:
        """Return ``length`` bytes of the kernel's randomness, never held anywhere else."""
        secret = cls(length)
        if hasattr(os, "getrandom"):
            os.getrandom(1)  # waits at boot until the kernel has randomness; the device does not
        with open("/dev/urandom", "rb", buffering=0) as source:  # noqa: PTH123 - raw, unbuffered
            _fill(secret, source.fileno())
        return secret

    @classmethod
    def copy_of(cls, data: bytes | bytearray | memoryview) -> Self:
        """Return a copy of ``data``. A ``bytes`` object stays behind unwiped: the caller's."""
        secret = cls(len(data))
        secret.view[:] = data
        return secret

    @property
    def view(self) -> memoryview:
        """The bytes, writable. Do not keep it: closing fails while a view is alive.

        Raises:
            ValueError: The secret is closed.
            StoreUnavailableError: This process was forked from the one that made the secret.
        """
        return memoryview(self._live_page())[: self._length]

    def check(self) -> None:
        """Raise what ``view`` would raise."""
        # The same questions as in _live_page, asked for every call of a store.
        page = self._page
        if page is None or page[-1] != _CANARY or self._pid != os.getpid():
            self._live_page()

    def _live_page(self) -> mmap.mmap:
        page = self._page
        if page is None:
            raise ValueError("the secret is closed")
        # A forked child must not work with keys: it would share nonce leases and SQLite handles
        # with its parent. The kernel wipes the page (MADV_WIPEONFORK), which also catches a fork
        # made behind Python's back; the process id catches it where the kernel has no such advice.
        if page[-1] != _CANARY or self._pid != os.getpid():
            raise StoreUnavailableError(
                "This key was opened before a fork. Open the store again in the child process."
            )
        return page

    def close(self) -> None:
        """Wipe the bytes and give the page back. Closing twice is allowed."""
        page, self._page = self._page, None
        if page is not None:
            page[:] = bytes(len(page))
            page.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_page", None) is not None:
            self.close()

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        """Compare in constant time."""
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self.view, other.view)

    __hash__ = None  # type: ignore[assignment]  # a hash would be a function of the secret

    def __repr__(self) -> str:
        return f"<SecretBytes: {self._length} bytes>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")


def _private_pages(size: int) -> mmap.mmap:
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    page = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        for advice in (_MADV_DONTDUMP, _MADV_WIPEONFORK):
            try:
                page.madvise(advice)
            except OSError:  # a kernel before 4.14, or a sandbox: the process id check still holds
                continue
    return page


def _lock(page: mmap.mmap) -> bool:
    """Lock the pages into memory; False where the system or its limits do not allow it."""
    if sys.platform == "win32":
        return False
    mlock = ctypes.CDLL(None).mlock
    mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return bool(mlock(ctypes.addressof(ctypes.c_char.from_buffer(page)), len(page)) == 0)


def _fill(secret: SecretBytes, descriptor: int) -> None:
    with secret.view as view:
        filled = 0
        while filled < len(view):
            count = os.readv(descriptor, [view[filled:]])
            if count == 0:
                raise EOFError(f"the file ends after {filled} of {len(view)} bytes")
            filled += count
