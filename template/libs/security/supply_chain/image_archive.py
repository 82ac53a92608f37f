"""Read an archive of ``docker image save``: its image id, and the files that a container would see.

The id is the SHA-256 of the image's configuration. That names the SHA-256 of every layer, and each
is compared while it is read: an id that this module returns speaks for every byte of the image.
Engines with the containerd image store show another id for the same image, that of its manifest;
this one is the same everywhere.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from . import SupplyChainError

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MOST_LINKS = 40  # as in the kernel


@dataclass(frozen=True)
class File:
    """One entry of the image's file system."""

    target: str = ""
    """Where a link leads; empty for anything else."""
    content: bytes | None = None
    """The bytes, if they were asked for."""
    size: int = 0
    sha256: bytes = b""
    """The digest of a regular file, also where its bytes are not kept; empty for anything else."""

    @classmethod
    def regular(cls, stream: IO[bytes], *, keep: bool) -> Self:
        """Read a regular file to its end."""
        kept, size, hashing = [], 0, hashlib.sha256()
        while block := stream.read(1 << 20):
            size += len(block)
            hashing.update(block)
            if keep:
                kept.append(block)
        return cls("", b"".join(kept) if keep else None, size, hashing.digest())


@dataclass(frozen=True)
class Image:
    """One image, read from an archive."""

    identity: str
    """``sha256:`` and the digest of its configuration."""
    created: str
    architecture: str
    names: tuple[str, ...]
    """The names that it was saved under."""
    files: Mapping[str, File]
    """Every file and link by its absolute path, without the folders."""

    @classmethod
    def read(cls, archive: Path, wanted: Callable[[str], bool] = lambda _: False) -> Self:
        """Read the only image of an archive.

        Args:
            archive: What ``docker image save`` has written.
            wanted: Whether the content of a path is kept.

        Raises:
            SupplyChainError: It is no such archive, or its parts do not belong together.
        """
        try:
            with tarfile.open(archive) as opened:
                return cls._of(opened, wanted)
        except (tarfile.TarError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
            raise SupplyChainError(f"{archive} is no whole archive of an image: {error}") from error

    @classmethod
    def _of(cls, archive: tarfile.TarFile, wanted: Callable[[str], bool]) -> Self:
        manifest = json.load(_member(archive, "manifest.json"))
        if len(manifest) != 1:
            raise SupplyChainError(
                f"The archive holds {len(manifest)} images; save one of them alone."
            )
        (entry,) = manifest
        raw = _member(archive, entry["Config"]).read()
        config: dict[str, Any] = json.loads(raw)
        layers, expected = entry["Layers"], config["rootfs"]["diff_ids"]
        if len(layers) != len(expected):
            raise SupplyChainError("The archive does not have the layers that its image names.")
        files: dict[str, File] = {}
        for name, digest in zip(layers, expected, strict=True):
            layer = _Layer.read(_member(archive, name), wanted)
            if layer.digest != digest:
                raise SupplyChainError(f"Layer {digest} of the image is not what the archive has.")
            files = layer.over(files)
        return cls(
            identity="sha256:" + hashlib.sha256(raw).hexdigest(),
            created=config.get("created") or "1970-01-01T00:00:00Z",
            architecture=config["architecture"],
            names=tuple(entry.get("RepoTags") or ()),
            files=files,
        )

    def resolve(self, path: str) -> str:
        """Return where a path leads once every link on the way is followed."""
        followed = 0
        waiting = list(reversed(PurePosixPath(path).parts[1:]))
        place = PurePosixPath("/")
        while waiting:
            part = waiting.pop()
            if part == "..":
                place = place.parent
                continue
            file = self.files.get(str(place / part))
            if file is None or not file.target:
                place /= part
                continue
            followed += 1
            if followed > _MOST_LINKS:
                raise SupplyChainError(f"The links of the image at {path} lead in a circle.")
            target = PurePosixPath(file.target)
            place = PurePosixPath("/") if target.is_absolute() else place
            waiting.extend(reversed([part for part in target.parts if part != "/"]))
        return str(place)

    def text(self, path: str) -> str | None:
        """Return a text file whose content was asked for, or nothing if there is none."""
        file = self.files.get(self.resolve(path))
        if file is None or file.content is None:
            return None
        return file.content.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class _Layer:
    digest: str
    files: Mapping[str, File]
    hidden: frozenset[str]
    emptied: frozenset[str]

    @classmethod
    def read(cls, stream: IO[bytes], wanted: Callable[[str], bool]) -> Self:
        start = stream.read(2)
        stream.seek(0)
        packed = start == b"\x1f\x8b"
        hashing = _Hashing(gzip.GzipFile(fileobj=stream) if packed else stream)
        files: dict[str, File] = {}
        hidden, emptied = set(), set()
        with tarfile.open(fileobj=hashing, mode="r|") as layer:
            for member in layer:
                path = str(PurePosixPath("/", member.name))
                folder, name = path.rsplit("/", 1)
                if name == _OPAQUE:
                    emptied.add(folder)
                elif name.startswith(_WHITEOUT):
                    hidden.add(f"{folder}/{name.removeprefix(_WHITEOUT)}")
                elif member.issym():
                    files[path] = File(target=member.linkname)
                elif member.islnk():  # a second name of a file that came before it
                    files[path] = files[str(PurePosixPath("/", member.linkname))]
                elif member.isfile() and (found := layer.extractfile(member)):
                    files[path] = File.regular(found, keep=wanted(path))
                elif not member.isdir():
                    files[path] = File()
        return cls(hashing.rest(), files, frozenset(hidden), frozenset(emptied))

    def over(self, lower: Mapping[str, File]) -> dict[str, File]:
        """Lay this layer over what is there."""

        def survives(path: str) -> bool:
            parents = {str(parent) for parent in PurePosixPath(path).parents}
            return (
                not (self.hidden & ({path} | parents))
                and not (self.emptied & parents)
                and not (self.files.keys() & parents)  # a folder became a file
            )

        return {path: file for path, file in lower.items() if survives(path)} | dict(self.files)


class _Hashing(io.RawIOBase):
    """Hashes what is read through it."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        block = self._stream.read(size)
        self._hash.update(block)
        return block

    def rest(self) -> str:
        """Read to the end, and return the digest of everything."""
        while self.read(1 << 20):
            pass
        return "sha256:" + self._hash.hexdigest()


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    with suppress(KeyError):
        if (found := archive.extractfile(name)) is not None:
            return found
    raise SupplyChainError(f"The archive has no {name}: is it one of docker image save?")
