"""Compare the files of the installed distributions with what their ``RECORD`` says of them.

``RECORD`` came with the wheel, whose hash was compared when it was installed, and has the SHA-256
of every file. It lies in the image too: whoever changes a file and its ``RECORD`` alike is not seen
here. Building the image again shows that.
"""

import base64
import csv
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from .image_archive import File, Image

_BYTECODE = re.compile(r"(.*/)__pycache__/([^/]+?)\.\w+-\d+(?:\.opt-\w+)?\.pyc")
_LINKS = re.compile(r"bin/python[\d.]*|lib64")


@dataclass(frozen=True)
class InstalledFiles:
    """What does not fit between the files of the distributions and their records."""

    faults: Mapping[str, tuple[str, ...]]
    """By folder of a distribution's records: which of its files are not as installed, and why."""
    strangers: tuple[str, ...]
    """Files among the packages that belong to no distribution."""

    @classmethod
    def of(cls, image: Image, folders: Iterable[str], environment: str) -> Self:
        """Compare every file that is recorded, and look for those that are not.

        Args:
            image: Read with the content of each ``RECORD``.
            folders: The ``*.dist-info`` of each distribution.
            environment: The folder of the virtual environment.
        """
        faults: dict[str, list[str]] = {folder: [] for folder in sorted(folders)}
        recorded: set[str] = set()
        owners: dict[str, set[str]] = {}
        for folder, found in faults.items():
            for path, digest, size in _rows(image, folder, found):
                recorded.add(path)
                owners.setdefault(_part(folder, path), set()).add(folder)
                if wrong := _wrong(image.files.get(path), digest, size, path == f"{folder}/RECORD"):
                    found.append(f"{_short(path)}: {wrong}")
        strangers = []
        for path in sorted(image.files.keys() - recorded):
            if not _is_installed(path, environment, image.files[path]):
                continue
            if _is_bytecode(path, recorded):
                continue
            # Among the files of a distribution, it may be imported instead of one of them.
            whose = {one for folder in faults for one in owners.get(_part(folder, path), ())}
            for folder in whose:
                faults[folder].append(f"{_short(path)}: not recorded")
            if not whose:
                strangers.append(path)
        return cls({folder: tuple(found) for folder, found in faults.items()}, tuple(strangers))


def _rows(image: Image, folder: str, faults: list[str]) -> Iterator[tuple[str, bytes, int | None]]:
    """Return path, SHA-256 and size of each file that the distribution has recorded."""
    text = image.text(f"{folder}/RECORD")
    if text is None:
        faults.append("no RECORD")
        return
    for line in filter(None, text.splitlines()):
        try:
            ((name, digest, size),) = csv.reader([line])
            kind, _, encoded = digest.partition("=")
            row = _decoded(encoded) if kind == "sha256" else b"", int(size) if size else None
        except (ValueError, csv.Error):
            faults.append(f"RECORD has the line {line[:80]!r}")
            continue
        yield posixpath.normpath(posixpath.join(posixpath.dirname(folder), name)), *row


def _decoded(digest: str) -> bytes:
    return base64.b64decode(digest + "=" * (-len(digest) % 4), altchars=b"-_", validate=True)


def _wrong(file: File | None, digest: bytes, size: int | None, is_record: bool) -> str:
    if file is None:
        return "missing"
    if is_record:  # cannot have its own hash
        return ""
    if not digest:
        return "recorded without a SHA-256"
    return "" if file.sha256 == digest and size in {None, file.size} else "changed"


def _part(folder: str, path: str) -> str:
    """Return the package or module, by its name for an import, that a path belongs to."""
    place = posixpath.dirname(folder) + "/"
    if not path.startswith(place):
        return path
    first, _, rest = path.removeprefix(place).partition("/")
    return place + (first if rest else first.partition(".")[0])


def _short(path: str) -> str:
    return path.rpartition("/site-packages/")[2]


def _is_installed(path: str, environment: str, file: File) -> bool:
    """Tell whether a path is one that the interpreter may import from."""
    if path.startswith(f"{environment}/"):
        name = path.removeprefix(f"{environment}/")
        return not (name == "pyvenv.cfg" or (file.target and _LINKS.fullmatch(name)))
    return "/site-packages/" in path or "/dist-packages/" in path


def _is_bytecode(path: str, recorded: set[str]) -> bool:
    """Tell whether a path is where the bytecode of a recorded module lies."""
    found = _BYTECODE.fullmatch(path)
    return found is not None and f"{found[1]}{found[2]}.py" in recorded
