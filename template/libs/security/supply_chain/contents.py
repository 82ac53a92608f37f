"""What is installed in an image: Python distributions, Debian packages, the interpreter.

Everything is taken from the image's own records: ``*.dist-info``, ``dpkg``'s ``status.d`` and
``pyvenv.cfg``; the files of the distributions are compared with theirs. Nothing of the image is run
for it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import HeaderParser
from pathlib import PurePosixPath
from typing import Any, Self

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from . import SupplyChainError
from .image_archive import Image
from .installed_files import InstalledFiles

_STATUS = "/var/lib/dpkg/status.d/"
_DEP5 = re.compile(r"(?m)^License:[ \t]*(\S.*?)[ \t]*$")
_RELEASE = "/etc/os-release"


def wanted(path: str) -> bool:
    """Tell whether the content of a path is needed to know what is installed."""
    name = path.rsplit("/", 1)[-1]
    return (
        (".dist-info/" in path and (name in {"METADATA", "RECORD", "WHEEL"} or "/sboms/" in path))
        or path.startswith(_STATUS)
        or (path.startswith("/usr/share/doc/") and name == "copyright")
        or name in {"os-release", "pyvenv.cfg"}
    )


@dataclass(frozen=True)
class Bundled:
    """A library inside a wheel."""

    name: str
    version: str
    purl: str
    licence: str = ""
    sha256: str = ""
    cpe: str = ""


@dataclass(frozen=True)
class Distribution:
    """An installed Python distribution."""

    name: str
    """As it is written on an index: lower case and hyphens."""
    version: str
    licence: str
    summary: str
    tags: tuple[str, ...]
    """Of the wheel that it was installed from."""
    requirements: tuple[Requirement, ...]
    bundled: tuple[Bundled, ...]
    faults: tuple[str, ...]
    """What of its files is not as it was installed."""


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package whose files are in the image, all of them or its libraries only."""

    name: str
    version: str
    architecture: str
    source: str
    source_version: str
    homepage: str
    needs: tuple[str, ...]
    licences: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """All that is installed in an image."""

    python: str
    """The version of CPython, like 3.13.5."""
    release: tuple[str, str]
    """The distribution that the base is of, and its version: ``("debian", "13")``."""
    distributions: tuple[Distribution, ...]
    packages: tuple[DebianPackage, ...]
    strangers: tuple[str, ...]
    """Files among the distributions that belong to none."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What markers of requirements are evaluated in."""

    @classmethod
    def of(cls, image: Image) -> Self:
        """Look into an image that was read with :func:`wanted`.

        Raises:
            SupplyChainError: It lacks a record that every image of this service has.
        """
        release = dict(re.findall(r'(?m)^(\w+)="?(.*?)"?$', _needed(image, _RELEASE)))
        settings = [path for path in image.files if path.endswith("/pyvenv.cfg")]
        text = "\n".join(image.text(path) or "" for path in settings)
        if len(settings) > 1 or not (found := re.search(r"(?m)^version_info = (\S+)$", text)):
            raise SupplyChainError(
                f"The image has {len(settings) if len(settings) > 1 else 'no'} pyvenv.cfg of uv:"
                " is it one of this service?"
            )
        folders = [
            path.removesuffix("/METADATA")
            for path in image.files
            if path.endswith(".dist-info/METADATA")
        ]
        files = InstalledFiles.of(image, folders, settings[0].removesuffix("/pyvenv.cfg"))
        return cls(
            python=found[1],
            release=(release.get("ID", "linux"), release.get("VERSION_ID", "")),
            distributions=tuple(sorted(_distributions(image, files), key=lambda one: one.name)),
            packages=tuple(sorted(_packages(image), key=lambda one: one.name)),
            strangers=files.strangers,
            environment=_environment(found[1], image.architecture),
        )


def _needed(image: Image, path: str) -> str:
    text = image.text(path)
    if text is None:
        raise SupplyChainError(f"The image has no {path}: is it one of this service?")
    return text


def _environment(python: str, architecture: str) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": {"amd64": "x86_64", "arm64": "aarch64"}.get(architecture, architecture),
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }


def _distributions(image: Image, files: InstalledFiles) -> Iterator[Distribution]:
    for folder, faults in files.faults.items():
        metadata = HeaderParser().parsestr(_needed(image, f"{folder}/METADATA"))
        wheel = HeaderParser().parsestr(image.text(f"{folder}/WHEEL") or "")
        name, version = canonicalize_name(metadata["Name"]), metadata["Version"]
        inside = [*_bundled(image, f"{folder}/sboms/"), *_sqlite(name, version)]
        yield Distribution(
            name=name,
            version=version,
            licence=_licence(metadata),
            summary=metadata.get("Summary", ""),
            tags=tuple(wheel.get_all("Tag", ())),
            requirements=tuple(_requirements(metadata.get_all("Requires-Dist", ()))),
            bundled=tuple(sorted(inside, key=lambda one: (one.purl, one.name, one.version))),
            faults=faults,
        )


def _licence(metadata: Any) -> str:
    """Return what the metadata says: an expression, a short name, or its classifiers."""
    if expression := metadata.get("License-Expression"):
        return str(expression)
    name = str(metadata.get("License") or "").strip()
    if name and "\n" not in name and len(name) <= 60:  # some put the whole text there
        return name
    classifiers = metadata.get_all("Classifier", ())
    names = [one.rsplit(" :: ", 1)[-1] for one in classifiers if one.startswith("License :: ")]
    return "; ".join(name for name in names if name != "OSI Approved")


def _requirements(lines: list[str] | tuple[str, ...]) -> Iterator[Requirement]:
    for line in lines:
        try:
            yield Requirement(line)
        except InvalidRequirement:  # of an age before the standard; it orders, it installs nothing
            continue


def _bundled(image: Image, folder: str) -> Iterator[Bundled]:
    """Read the SBOMs that a wheel brings along (PEP 770): what is linked into its objects."""
    for path in image.files:
        if not path.startswith(folder):
            continue
        try:
            document = json.loads(_needed(image, path))
            if document.get("bomFormat") != "CycloneDX":
                continue  # SPDX: none of the wheels so far
            for component in document.get("components", ()):
                licence: dict[str, Any] = next(iter(component.get("licenses") or ()), {})
                named = licence.get("license") or {}
                hashes = component.get("hashes") or ()
                yield Bundled(
                    name=component["name"],
                    version=component.get("version", ""),
                    purl=component.get("purl", ""),
                    licence=licence.get("expression") or named.get("id") or "",
                    sha256=next((h["content"] for h in hashes if h["alg"] == "SHA-256"), ""),
                )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise SupplyChainError(f"{path} of the image is no SBOM: {error}") from error


def _sqlite(name: str, version: str) -> Iterator[Bundled]:
    """Add the SQLite inside apsw's wheel, which tells nothing of it.

    The first three numbers of apsw's version are those of the SQLite that it is built with.
    """
    if name == "apsw":
        number = ".".join(version.split(".")[:3])
        yield Bundled(
            name="sqlite",
            version=number,
            purl=f"pkg:generic/sqlite@{number}",
            licence="blessing",
            cpe=f"cpe:2.3:a:sqlite:sqlite:{number}:*:*:*:*:*:*:*",
        )


def _packages(image: Image) -> Iterator[DebianPackage]:
    for path in image.files:
        if not path.startswith(_STATUS) or path.endswith(".md5sums"):
            continue
        record = HeaderParser().parsestr(_needed(image, path))
        name, version = record["Package"], record["Version"]
        if not (name and version):
            raise SupplyChainError(f"{path} of the image is no record of a Debian package.")
        # "bzip2", or "gcc-14 (14.2.0-19)" where the source has another version
        source = re.fullmatch(r"(\S+)(?: \((.+)\))?", record.get("Source") or name)
        needs = ", ".join(filter(None, (record.get("Pre-Depends"), record.get("Depends"))))
        yield DebianPackage(
            name=name,
            version=version,
            architecture=record.get("Architecture", ""),
            source=source[1] if source else name,
            source_version=(source[2] if source else None) or version,
            homepage=record.get("Homepage", ""),
            needs=tuple(re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", needs)),
            licences=_debian_licences(image, name),
        )


def _debian_licences(image: Image, package: str) -> tuple[str, ...]:
    """Return Debian's short names of licences, where the copyright file is made for machines."""
    text = image.text(str(PurePosixPath("/usr/share/doc", package, "copyright")))
    if text is None or not text.startswith("Format:"):
        return ()
    return tuple(sorted(set(_DEP5.findall(text))))
