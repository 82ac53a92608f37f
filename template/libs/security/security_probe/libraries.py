"""Which Debian package a shared library of an image belongs to, by the records in ``status.d``.

A package's record is a file with its name, its version and more; beside it, in ``NAME.md5sums``,
stand the digests of its files. A library belongs to a package when path and content are those that
a recorded package has for it.

The interpreter's own libraries belong to no package, and neither do those in the environment of the
service: they came from source and from wheels, which carry records of their own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from .files import STATUS, Tree

_LIBRARY: Final = re.compile(r"[^/]+\.so(?:\.[0-9][0-9A-Za-z]*)*")
_MOVED: Final = re.compile(r"^(?:lib(?:32|64|x32)?|s?bin)/")


@dataclass(frozen=True)
class Libraries:
    """The shared libraries of an image.

    Attributes:
        owned: Those of a package.
        unowned: Those of none.
    """

    owned: frozenset[str]
    unowned: frozenset[str]


def libraries_of(tree: Tree, interpreter: str) -> Libraries:
    """Find the shared libraries and whether they have a package.

    Args:
        tree: Files of the image.
        interpreter: Path of the Python that the service runs with.
    """
    own = _places_of(tree, interpreter)
    digests = _digests(tree)
    found = {
        path: digests.get(path) == entry.md5
        for path, entry in tree.files()
        if _LIBRARY.fullmatch(PurePosixPath(path).name) and not path.startswith(own)
    }
    owned = frozenset(path for path, has_package in found.items() if has_package)
    return Libraries(owned, frozenset(found) - owned)


def _places_of(tree: Tree, interpreter: str) -> tuple[str, ...]:
    """Return where the libraries of the interpreter and of the environment lie."""
    found = []
    environment = PurePosixPath(interpreter.lstrip("/")).parent.parent
    if f"{environment}/pyvenv.cfg" in tree.entries:
        found.append(f"{environment}/lib/")
    if real := tree.resolve(interpreter):
        prefix, name = PurePosixPath(real).parent.parent, PurePosixPath(real).name
        found += [f"{prefix}/lib/{name}/", f"{prefix}/lib/libpython"]
    return tuple(found)


def _digests(tree: Tree) -> Mapping[str, str]:
    """Return the digests of the files of all packages that have a record."""
    found = {}
    for path, content in tree.contents.items():
        record = tree.contents.get(path.removesuffix(".md5sums"), b"")
        if not path.startswith(STATUS) or not path.endswith(".md5sums") or not _is_record(record):
            continue
        for line in content.decode("utf-8", "replace").splitlines():
            digest, _, file = line.partition("  ")
            # Old names: these folders are links into /usr by now.
            found[_MOVED.sub(r"usr/\g<0>", file)] = digest
    return found


def _is_record(content: bytes) -> bool:
    return all(
        re.search(rb"(?m)^" + field + rb": [!-~]+$", content) for field in (b"Package", b"Version")
    )
