"""A device for SQLite that fails when a test wants it to, and remembers what it had made durable.

While ``failing_device`` is open, every connection of the process goes through it. It stands
between SQLite and the real files, and can do three things:

* count the calls that write, and let the n-th of a kind fail: a write only in part, as on a real
  device, with SQLite's own error;
* keep, beside the real files, what a power cut would leave of them: what was written is in the
  real file at once, as in the kernel's page cache, and in the image only after a sync. When a sync
  fails, Linux takes the pages for clean and never writes them again; so does the image;
* fail for good from the n-th call on, as a device that is gone.

``kill_at_every_call`` is for what is killed in such a call instead.
"""

# ruff: noqa: N802 - the methods have SQLite's names
import itertools
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NoReturn

import apsw

Call = Literal["sync", "write", "truncate"]

_ERRORS: Final[dict[Call, int]] = {
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "write": apsw.SQLITE_IOERR_WRITE,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
}
_NAME: Final = "failing"
_PAGE: Final = 4096


class Device:
    """What a test says to the device, and what the device remembers."""

    def __init__(self) -> None:
        self.counted: Counter[Call] = Counter()
        """Calls so far, by kind."""
        self.failures = 0
        """Calls that failed."""
        self._call: Call | None = None
        self._number = 0
        self._for_good = False
        self._durable: dict[Path, bytearray] = {}
        self._dirty: dict[Path, set[int]] = {}

    def fail(self, call: Call, number: int, *, for_good: bool = False) -> None:
        """Let a call fail.

        Args:
            call: Its kind.
            number: Which one of that kind, counted from now; 1 is the next.
            for_good: From there on every call of any kind fails.
        """
        self._call, self._number, self._for_good = call, self.counted[call] + number, for_good

    def mend(self) -> None:
        """Let nothing fail any more."""
        self._call = None

    def adopt(self, *files: Path) -> None:
        """Take files for durable as they are, for instance a store that was made before."""
        for file in files:
            self._durable[file] = bytearray(file.read_bytes())

    def cut_power(self, folder: Path) -> None:
        """Write what a power cut would leave of the files into another folder."""
        for file, contents in self._durable.items():
            (folder / file.name).write_bytes(contents)

    def _fails(self, call: Call) -> bool:
        self.counted[call] += 1
        if self._call is None or self.counted[self._call] < self._number:
            return False
        if not self._for_good and (call != self._call or self.counted[call] > self._number):
            return False
        self.failures += 1
        return True

    def _write(self, path: Path, offset: int, length: int) -> None:
        pages = range(offset // _PAGE, -(-(offset + length) // _PAGE))
        self._dirty.setdefault(path, set()).update(pages)

    def _sync(self, path: Path, file: apsw.VFSFile) -> None:
        durable = self._durable.setdefault(path, bytearray())
        size = file.xFileSize()
        del durable[size:]
        durable.extend(bytes(size - len(durable)))
        for page in self._dirty.pop(path, ()):
            start = page * _PAGE
            if length := min(_PAGE, size - start):
                durable[start : start + length] = file.xRead(length, start)

    def _drop(self, path: Path) -> None:
        self._dirty.pop(path, None)

    def _delete(self, path: Path) -> None:
        self._drop(path)
        self._durable.pop(path, None)


@contextmanager
def failing_device() -> Iterator[Device]:
    """Put a device under every connection that is opened in the block, and take it away after."""
    device = Device()
    vfs = _Vfs(device, apsw.vfs_names()[0])
    try:
        yield device
    finally:
        vfs.unregister()


class _Vfs(apsw.VFS):
    def __init__(self, device: Device, base: str) -> None:
        self._device = device
        self._base = base
        super().__init__(_NAME, base, makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _File(self._device, self._base, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self._device._delete(Path(filename))


class _File(apsw.VFSFile):
    def __init__(
        self, device: Device, base: str, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        self._device = device
        self._path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "")
        super().__init__(base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._device._fails("write"):
            half = len(data) // 2
            super().xWrite(data[:half], offset)
            self._device._write(self._path, offset, half)
            raise apsw.exception_for(_ERRORS["write"])
        super().xWrite(data, offset)
        self._device._write(self._path, offset, len(data))

    def xSync(self, flags: int) -> None:
        if self._device._fails("sync"):
            self._device._drop(self._path)
            raise apsw.exception_for(_ERRORS["sync"])
        super().xSync(flags)
        self._device._sync(self._path, self)

    def xTruncate(self, newsize: int) -> None:
        if self._device._fails("truncate"):
            raise apsw.exception_for(_ERRORS["truncate"])
        super().xTruncate(newsize)


def kill_at_every_call(
    folder: Path,
    prepare: Callable[[Path], object],
    act: Callable[[int], None],
    check: Callable[[], None],
) -> int:
    """Let children do something and be killed, each in its next call, until one comes to its end.

    Args:
        folder: Has a new folder for each child, which is its current one.
        prepare: Makes such a folder.
        act: Does it in a child, which kills itself with SIGKILL in the call of that number.
        check: Looks in another child at what is left, and ends it.

    Returns:
        How many were killed.
    """
    for number in itertools.count(1):
        inside = folder / str(number)
        prepare(inside)
        status = in_child(inside, lambda: act(number))  # noqa: B023 - at once
        if in_child(inside, check) != 0:
            sys.exit(f"not whole after a kill in call {number}")
        if status == 0:
            return number - 1
        if os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"it ended with {status} before call {number}")
        shutil.rmtree(inside)
    raise AssertionError


def in_child(folder: Path, act: Callable[[], object]) -> int:
    """Do something in a forked process, in a folder, and return the status that it ends with."""
    child = os.fork()
    if not child:
        _end(folder, act)
    return os.waitpid(child, 0)[1]


def _end(folder: Path, act: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        os.chdir(folder)
        act()
        code = 0
    except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)
