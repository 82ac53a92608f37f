"""Read ``uv.lock``: which wheel of which SHA-256 a distribution of the image was installed from."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from packaging.tags import parse_tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from . import SupplyChainError


@dataclass(frozen=True)
class LockedPackage:
    """A version of a package, with the wheels that it may be installed from."""

    from_index: bool
    """Whether an index delivers it. The others lie in this project, or come from a repository."""
    wheels: Mapping[str, str]
    """The SHA-256 of each wheel by its file name."""

    def wheel(self, tags: Iterable[str]) -> tuple[str, str] | None:
        """Find the wheel that was installed by its tags, which it takes along into the image.

        Args:
            tags: The ``Tag`` lines of the installed ``WHEEL`` file.

        Returns:
            Its file name and SHA-256, or nothing if no wheel has these tags.
        """
        installed = frozenset[Any]().union(*map(parse_tag, tags))
        for name, digest in sorted(self.wheels.items()):
            try:
                if parse_wheel_filename(name)[3] == installed:
                    return name, digest
            except InvalidWheelFilename:
                continue
        return None


@dataclass(frozen=True)
class Lock:
    """The packages of a lock file."""

    service: str
    """The name of the project that the lock file is of."""
    packages: Mapping[tuple[str, str], LockedPackage]
    """By canonical name and version."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a lock file.

        Raises:
            SupplyChainError: There is none, or it is not of the form that uv writes.
        """
        try:
            entries = tomllib.loads(path.read_text("utf-8"))["package"]
            packages: dict[tuple[str, str], LockedPackage] = {
                (canonicalize_name(entry["name"]), entry.get("version", "")): _locked(entry)
                for entry in entries
            }
            (service,) = (
                canonicalize_name(entry["name"])
                for entry in entries
                if "." in (entry["source"].get("editable"), entry["source"].get("virtual"))
            )
        except FileNotFoundError as error:
            raise SupplyChainError(f"There is no {path}: run `uv lock`.") from error
        except (tomllib.TOMLDecodeError, LookupError, TypeError, ValueError) as error:
            raise SupplyChainError(f"{path} is no lock file of uv: {error}") from error
        return cls(service, packages)


def _locked(entry: Mapping[str, Any]) -> LockedPackage:
    wheels = {}
    for wheel in entry.get("wheels", ()):
        place = wheel.get("url") or wheel.get("path") or wheel.get("filename")
        name = PurePosixPath(unquote(urlsplit(place).path)).name
        if found := re.fullmatch(r"sha256:([0-9a-f]{64})", wheel.get("hash", "")):
            wheels[name] = found[1]
    return LockedPackage("registry" in entry["source"], wheels)
