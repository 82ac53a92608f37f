"""Sign what goes to another machine, and verify it there. Neither needs a network.

A release is a folder: the image's archive, its SBOM, the reports that go with it, ``SHA256SUMS``
over all of them and cosign's signature of that. No log of transparency is asked: who has the key
pair's public half decides alone. Without this package the same is checked by::

    base64 -d SHA256SUMS.sig |
        openssl dgst -sha256 -verify ../cosign.pub -signature /dev/stdin SHA256SUMS
    sha256sum --check --strict SHA256SUMS
"""

import hashlib
import json
import re
import tempfile
from pathlib import Path

from . import SupplyChainError
from .image_archive import Image
from .tools import run

ARCHIVE = "image.tar"
SBOM = "sbom.cdx.json"
SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"

_LINE = re.compile(r"([0-9a-f]{64})  ([\w.+-]+)")


def sign(folder: Path, key: str) -> None:
    """Write the checksums of a release, and cosign's signature of them.

    Args:
        folder: Holds nothing but the files of the release.
        key: The private key: a file, or what else cosign knows, like ``pkcs11:…`` of a token.
            cosign takes its password from ``COSIGN_PASSWORD`` or asks for it.

    Raises:
        SupplyChainError: cosign is missing or fails.
    """
    _needs_file(key, "private key")
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        (folder / name).chmod(0o644)  # whoever may open the folder verifies all of it
    sums = "".join(f"{_digest(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_text(sums, "utf-8")
    run(
        [
            *("cosign", "sign-blob", "--yes", "--key", key),
            *_offline("sign-blob", "--tlog-upload=false"),
            *("--output-signature", str(folder / SIGNATURE), str(folder / SUMS)),
        ],
        "cosign did not sign",
        asks=True,
    )
    (folder / SIGNATURE).chmod(0o644)


def verify(folder: Path, key: str) -> Image:
    """Verify a release with the public key alone, and return the image that it carries.

    Raises:
        SupplyChainError: Something is missing, changed, not covered, or signed by another key; or
            the SBOM is that of another image; or the archive has no name for its image.
    """
    _needs_file(key, "public key")
    for name in (SUMS, SIGNATURE, ARCHIVE, SBOM):
        if not (folder / name).is_file():
            raise SupplyChainError(f"{folder} has no {name}: it is no signed release.")
    covered = _parse(_signed_sums(folder, key))
    for path in sorted(folder.iterdir()):
        if path.name not in covered.keys() | {SUMS, SIGNATURE}:
            raise SupplyChainError(f"{path} is not covered by the signature: move it elsewhere.")
    for name, digest in covered.items():
        if not (folder / name).is_file():
            raise SupplyChainError(f"{name} was signed and is missing in {folder}.")
        if name != SBOM and _digest(folder / name) != digest:
            raise SupplyChainError(f"{folder / name} is not what was signed.")
    sbom = (folder / SBOM).read_bytes()
    if hashlib.sha256(sbom).hexdigest() != covered[SBOM]:
        raise SupplyChainError(f"{folder / SBOM} is not what was signed.")
    described = _described(sbom)
    image = Image.read(folder / ARCHIVE)
    if described != image.identity:
        raise SupplyChainError(
            f"{SBOM} describes the image {described}, and the archive holds {image.identity}."
        )
    if not image.names:
        raise SupplyChainError(
            f"{folder / ARCHIVE} has no name for its image, so nothing would find it once it is"
            " loaded: sign the image by its name, not by its id."
        )
    return image


def _signed_sums(folder: Path, key: str) -> bytes:
    """Return the checksums that cosign has verified: the same bytes, whoever writes to the file."""
    sums = (folder / SUMS).read_bytes()
    with tempfile.TemporaryDirectory(prefix="sums-") as scratch:
        (copy := Path(scratch) / SUMS).write_bytes(sums)
        run(
            [
                *("cosign", "verify-blob", "--key", key),
                *_offline("verify-blob", "--insecure-ignore-tlog=true"),
                *("--signature", str(folder / SIGNATURE), str(copy)),
            ],
            f"The signature of {folder / SUMS} does not hold for {key}",
        )
    return sums


def _offline(command: str, flag: str) -> list[str]:
    """Return the options that keep cosign from its public services.

    Version 3 has two more defaults that would reach for them.
    """
    known = run(["cosign", command, "--help"], "cosign does not run")
    more = ("--use-signing-config", "--new-bundle-format")
    return [flag, *(f"{option}=false" for option in more if f"{option}=true" in known)]


def _parse(sums: bytes) -> dict[str, str]:
    covered: dict[str, str] = {}
    for line in sums.decode("utf-8", errors="replace").splitlines():
        found = _LINE.fullmatch(line)
        if found is None or found[2] in covered:
            raise SupplyChainError(f"{SUMS} has a line that is not of a release: {line[:80]!r}")
        covered[found[2]] = found[1]
    if missing := {ARCHIVE, SBOM} - covered.keys():
        raise SupplyChainError(f"The signature does not cover {', '.join(sorted(missing))}.")
    return covered


def _described(sbom: bytes) -> str:
    try:
        properties = json.loads(sbom)["metadata"]["component"]["properties"]
        (identity,) = (one["value"] for one in properties if one["name"] == "image:id")
    except (ValueError, LookupError, TypeError) as error:
        raise SupplyChainError(f"{SBOM} does not say which image it is of: {error}") from error
    return str(identity)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _needs_file(key: str, what: str) -> None:
    if "://" in key or key.startswith("pkcs11:") or Path(key).is_file():
        return
    raise SupplyChainError(
        f"There is no {what} at {key}. `cosign generate-key-pair` makes a pair:"
        " cosign.key stays with you, cosign.pub goes to whoever verifies."
    )
