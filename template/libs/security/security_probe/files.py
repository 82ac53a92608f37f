"""The files of an image, as the engine exports them: a tar stream that is read once and not stored.

Of most files only what the header says and a digest is kept; a few small ones are kept whole.
"""

import hashlib
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import IO, Final, Literal, cast

from .errors import ProbeError

MOST_FILES: Final = 500_000
MOST_BYTES: Final = 16 << 30
KEPT_WHOLE: Final = 4 << 20
"""Bytes of a file that is kept."""

CA_BUNDLE: Final = "etc/ssl/certs/ca-certificates.crt"
USERS: Final = "etc/passwd"
STATUS: Final = "var/lib/dpkg/status.d/"

_PIECE: Final = 1 << 20
_OVERLAP: Final = 4096
_PRIVATE_KEY: Final = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[ \t]*\r?\n"
    rb"(?:[A-Za-z-]+: [^\r\n]*\r?\n|\r?\n)*[A-Za-z0-9+/=]{32}"
)
"""A private key itself: code that reads keys has the first line among its texts, and no more."""

Kind = Literal["file", "folder", "link", "device", "other"]


@dataclass(frozen=True)
class Entry:
    """A file of the image, or a folder, link or device.

    Attributes:
        kind: Which of these.
        mode: The permission bits, with setuid, setgid and sticky.
        uid: Number of its owner.
        gid: Number of its group.
        size: Bytes of a file.
        changed: Seconds since 1970.
        target: Where a link leads, as it is written.
        capabilities: Whether the kernel gives it capabilities when it is run.
        md5: Digest of a file: what dpkg's lists have, and enough to tell two builds apart.
        start: The first 16 bytes of a file.
        private_key: Whether a private key in PEM is in it.
    """

    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    changed: int = 0
    target: str = ""
    capabilities: bool = False
    md5: str = ""
    start: bytes = b""
    private_key: bool = False

    @property
    def executable(self) -> bool:
        """Whether anyone may run it."""
        return self.kind == "file" and bool(self.mode & 0o111)


@dataclass(frozen=True)
class Tree:
    """All files of an image, by their paths without the first slash.

    Attributes:
        entries: What lies there.
        contents: What is in the few files that were kept whole.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    contents: Mapping[str, bytes] = field(default_factory=dict)

    def resolve(self, path: str) -> str | None:
        """Follow links from a path to what is none; nothing is returned where they lead nowhere."""
        rest = [part for part in path.split("/") if part not in ("", ".")][::-1]
        here: list[str] = []
        links = 0
        while rest:
            part = rest.pop()
            if part == "..":
                here = here[:-1]
                continue
            entry = self.entries.get("/".join([*here, part]))
            if entry is None and not rest:
                return None
            if entry is None or entry.kind != "link":  # archives may leave folders out
                here.append(part)
                continue
            links += 1
            if links > 40:  # as the kernel does
                return None
            if entry.target.startswith("/"):
                here = []
            rest += [each for each in entry.target.split("/") if each not in ("", ".")][::-1]
        return "/".join(here)

    def at(self, path: str) -> Entry | None:
        """Return what lies where a path leads, or nothing."""
        real = self.resolve(path)
        return None if real is None else self.entries.get(real)

    def programs(self) -> Iterator[tuple[str, str]]:
        """Yield each path that leads to a program, with the path of the program itself."""
        for path, entry in self.entries.items():
            real = self.resolve(path) if entry.kind == "link" else path
            if real is not None and real in self.entries and self.entries[real].executable:
                yield path, real

    @cached_property
    def has_python(self) -> bool:
        """Whether there is an interpreter among them."""
        return any(is_python(path) and entry.executable for path, entry in self.files())

    def files(self) -> Iterator[tuple[str, Entry]]:
        """Yield the regular files."""
        return ((path, entry) for path, entry in self.entries.items() if entry.kind == "file")


def is_python(path: str) -> bool:
    """Tell whether a program is an interpreter, by its name."""
    return bool(re.fullmatch(r"python[0-9.]*", posixpath.basename(path)))


def read_tree(stream: IO[bytes]) -> Tree:
    """Read an exported file system.

    Raises:
        ProbeError: It is no tar stream, or larger than any image of a service.
    """
    entries: dict[str, Entry] = {}
    contents: dict[str, bytes] = {}
    seen = 0
    source = _ToTheEnd(stream)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], source), mode="r|", errorlevel=2) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # a stream is never looked back on
                path = posixpath.normpath("/" + member.name).lstrip("/")
                if not path:
                    continue
                seen += member.size
                if len(entries) >= MOST_FILES or seen > MOST_BYTES:
                    raise ProbeError(
                        f"The image has more than {MOST_FILES:,} files or {MOST_BYTES >> 30} GiB: "
                        "this is not the image of a service."
                    )
                if member.islnk():  # a second name of a file that came before
                    first = posixpath.normpath("/" + member.linkname).lstrip("/")
                    entries[path] = entries.get(first, Entry("other"))
                    if first in contents:
                        contents[path] = contents[first]
                    continue
                entries[path], content = _entry(archive, member, path)
                if content is not None:
                    contents[path] = content
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise ProbeError(f"The files of the image cannot be read: {error}.") from error
    if not source.was_whole():
        raise ProbeError("The files of the image cannot be read: the archive is cut short.")
    return Tree(entries, contents)


class _ToTheEnd:
    """Passes a stream on, and tells whether it ended as an archive does: with 1024 zeros.

    One that is cut off between two files looks whole to ``tarfile``.
    """

    _MARK = bytes(1024)

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._last = b""

    def read(self, size: int) -> bytes:
        """Read up to so many bytes."""
        piece = self._stream.read(size)
        self._last = (self._last + piece)[-len(self._MARK) :]
        return piece

    def was_whole(self) -> bool:
        """Read what is left, and look at the end."""
        while self.read(_PIECE):
            pass
        return self._last == self._MARK


def _entry(
    archive: tarfile.TarFile, member: tarfile.TarInfo, path: str
) -> tuple[Entry, bytes | None]:
    kinds: dict[Kind, bool] = {
        "file": member.isreg(),
        "folder": member.isdir(),
        "link": member.issym(),
        "device": member.isdev(),
    }
    kind: Kind = next((name for name, is_it in kinds.items() if is_it), "other")
    header = Entry(
        kind,
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        size=member.size,
        changed=int(member.mtime),
        target=member.linkname,
        capabilities=any(name.endswith("xattr.security.capability") for name in member.pax_headers),
    )
    source = archive.extractfile(member) if kind == "file" else None
    if source is None:
        return header, None
    digest = hashlib.md5(usedforsecurity=False)
    start, kept, before = b"", bytearray(), b""
    private_key = False
    wanted = _is_kept(path, member.size)
    while piece := source.read(_PIECE):
        digest.update(piece)
        start = start or piece[:16]
        private_key = private_key or bool(_PRIVATE_KEY.search(before + piece))
        before = piece[-_OVERLAP:]
        if wanted:
            kept += piece
    entry = replace(header, md5=digest.hexdigest(), start=start, private_key=private_key)
    return entry, bytes(kept) if wanted else None


def _is_kept(path: str, size: int) -> bool:
    wanted = path in (USERS, CA_BUNDLE) or path.startswith(STATUS)
    return wanted and size <= KEPT_WHOLE
