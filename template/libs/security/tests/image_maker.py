"""Make archives like those of ``docker image save``, small ones, for the tests of supply_chain."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

Layer = Mapping[str, "str | tuple[str, str]"]
"""By path: a text, ``("link", target)``, ``("hard", first name)`` or ``("folder", "")``."""

SITE_PACKAGES = "/app/.venv/lib/python3.13/site-packages"
EXAMPLE_LIB = {"example_lib/__init__.py": "", "example_lib/parts/one.py": "one = 1\n"}
CREATED = "2026-03-01T00:00:00Z"

_KINDS = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "folder": tarfile.DIRTYPE}


def tar_of(files: Layer) -> bytes:
    """Pack files as a layer has them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            if isinstance(content, tuple):
                member.type, member.linkname = _KINDS[content[0]], content[1]
                archive.addfile(member)
            else:
                member.size = len(content.encode())
                archive.addfile(member, io.BytesIO(content.encode()))
    return packed.getvalue()


def save_image(
    path: Path, *layers: Layer, compressed: bool = False, images: int = 1, named: bool = True
) -> str:
    """Write an image's archive, and return its id."""
    tars = [tar_of(layer) for layer in layers]
    config = json.dumps(
        {
            "architecture": "amd64",
            "created": CREATED,
            "rootfs": {"type": "layers", "diff_ids": [_named(tar) for tar in tars]},
        }
    ).encode()
    parts = {
        f"blobs/{number}": gzip.compress(t) if compressed else t for number, t in enumerate(tars)
    }
    entry = {
        "Config": "blobs/config",
        "RepoTags": ["orders:latest"] if named else None,
        "Layers": list(parts),
    }
    parts |= {"blobs/config": config, "manifest.json": json.dumps([entry] * images).encode()}
    write_parts(path, parts)
    return _named(config)


def write_parts(path: Path, parts: Mapping[str, bytes]) -> None:
    """Write the parts of an archive as they are given."""
    with tarfile.open(path, "w") as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def read_parts(path: Path) -> dict[str, bytes]:
    """Take an archive apart, to change something in it."""
    with tarfile.open(path) as archive:
        found = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in found.items() if file is not None}


def distribution(
    name: str,
    version: str,
    *more: str,
    tags: Sequence[str] = ("py3-none-any",),
    files: Mapping[str, str] = MappingProxyType({}),
) -> Layer:
    """Return the files of an installed distribution with its records.

    Args:
        name: As its metadata has it.
        version: Its version.
        more: Lines of its metadata.
        tags: Of its wheel.
        files: What it has besides, by the path below ``site-packages``.
    """
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = [f"Name: {name}", f"Version: {version}", *more]
    wheel = ["Wheel-Version: 1.0", *(f"Tag: {tag}" for tag in tags)]
    installed = {
        f"{folder}/METADATA": "\n".join(["Metadata-Version: 2.4", *metadata]) + "\n\nText\n",
        f"{folder}/WHEEL": "\n".join(wheel) + "\n",
        **files,
    }
    rows = [record_row(path, content) for path, content in installed.items()]
    installed[f"{folder}/RECORD"] = "\n".join([*rows, f"{folder}/RECORD,,", ""])
    return {f"{SITE_PACKAGES}/{path}": content for path, content in installed.items()}


def record_row(path: str, content: str) -> str:
    """Return the line that ``RECORD`` has for a file."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=")
    return f"{path},sha256={digest.decode()},{len(content.encode())}"


def debian(name: str, version: str, *more: str) -> Layer:
    """Return the record that a Debian package has in a distroless image."""
    record = [f"Package: {name}", "Status: install ok installed", "Architecture: amd64"]
    return {
        f"/var/lib/dpkg/status.d/{name}": "\n".join([*record, f"Version: {version}", *more]) + "\n"
    }


def service_image() -> dict[str, "str | tuple[str, str]"]:
    """Return the records of an image of a service: what every one of them has."""
    return {
        "/etc/os-release": ("link", "../usr/lib/os-release"),
        "/usr/lib/os-release": 'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="13"\n',
        "/app/.venv/pyvenv.cfg": "home = /usr/local/bin\nuv = 0.13.9\nversion_info = 3.13.5\n",
        **distribution(
            "orders", "0.1.0", "Requires-Dist: example-lib>=2", "License-Expression: MIT"
        ),
        **distribution(
            "example-lib", "2.1", "Requires-Dist: idle; extra == 'never'", files=EXAMPLE_LIB
        ),
        f"{SITE_PACKAGES}/example_lib/__pycache__/__init__.cpython-313.pyc": "bytecode",
        "/app/.venv/bin/python": ("link", "/usr/local/bin/python3.13"),
        "/app/.venv/lib64": ("link", "lib"),
        **debian("libc6", "2.41-12", "Source: glibc", "Depends: libgcc-s1"),
        **debian("libgcc-s1", "14.2.0-19", "Source: gcc-14 (14.2.0-20)", "Depends: gcc-14-base"),
    }


PURE, NATIVE = "aa" * 32, "bb" * 32
"""The hashes of the two wheels below."""

LOCK = f"""
version = 1

[[package]]
name = "orders"
version = "0.1.0"
source.editable = "."

[[package]]
name = "example-lib"
version = "2.1"
source.registry = "https://index.example/simple"

[[package.wheels]]
url = "https://index.example/example_lib-2.1-cp313-cp313-manylinux_2_28_x86_64.whl"
hash = "sha256:{NATIVE}"

[[package.wheels]]
url = "https://index.example/example_lib-2.1-py3-none-any.whl"
hash = "sha256:{PURE}"
"""


def _named(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
