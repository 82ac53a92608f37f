"""A release is whole or refused; and what cosign is told, in both of its versions.

cosign itself is not here: a program in its place makes and checks the same kind of signature, ECDSA
over SHA-256 on P-256, and knows the options of one version only.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from image_maker import EXAMPLE_LIB, LOCK, SITE_PACKAGES, distribution, save_image, service_image
from supply_chain import SupplyChainError, release

COSIGN = """#!{python} -IB
import base64, sys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

command, *words = sys.argv[1:]
if words == ["--help"]:
    print({known!r})
    sys.exit()
given = dict()
message = words.pop()
while words:
    name, _, value = words.pop(0).partition("=")
    given[name] = value or (words.pop(0) if name != "--yes" else "true")
if given.keys() - set({allowed!r}) or not given.items() >= set({required!r}):
    sys.exit("unknown or missing options: " + repr(given))
content, algorithm = open(message, "rb").read(), ec.ECDSA(hashes.SHA256())
key = open(given["--key"], "rb").read()
if command == "sign-blob":
    made = serialization.load_pem_private_key(key, None).sign(content, algorithm)
    open(given["--output-signature"], "wb").write(base64.b64encode(made))
else:
    made = base64.b64decode(open(given["--signature"], "rb").read())
    try:
        serialization.load_pem_public_key(key).verify(made, content, algorithm)
    except InvalidSignature:
        sys.exit("invalid signature")
"""

COMMON = {"--key", "--yes", "--output-signature", "--signature"}
OFFLINE = {"--tlog-upload": "false"}
NEWER = {"--use-signing-config": "false", "--new-bundle-format": "false"}


def install_cosign(folder: Path, *, newer: bool = False) -> None:
    """Put a program in cosign's place, of version 2 or 3."""
    more = NEWER if newer else {}
    known = "\n".join(f"    {option}=true:" for option in more)
    allowed = sorted(COMMON | OFFLINE.keys() | {"--insecure-ignore-tlog"} | more.keys())
    required = sorted(more.items())
    text = COSIGN.format(python=sys.executable, known=known, allowed=allowed, required=required)
    (folder / "cosign").write_text(text, "utf-8")
    (folder / "cosign").chmod(0o755)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a key pair, with cosign on the path."""
    folder = tmp_path / "keys"
    folder.mkdir()
    install_cosign(folder)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    key = ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "cosign.key").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "cosign.pub").write_bytes(key.public_key().public_bytes(pem, public))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with an archive and the SBOM of its image, not signed."""
    made = tmp_path / "release"
    made.mkdir()
    identity = save_image(made / "image.tar", service_image())
    properties = [{"name": "image:id", "value": identity}]
    document = {"metadata": {"component": {"properties": properties}}}
    (made / "sbom.cdx.json").write_text(json.dumps(document), "utf-8")
    return made


@pytest.mark.parametrize("newer", [False, True], ids=["cosign 2", "cosign 3"])
def test_what_was_signed_verifies_and_is_the_image_of_the_archive(
    folder: Path, keys: Path, newer: bool
) -> None:
    install_cosign(keys, newer=newer)
    release.sign(folder, str(keys / "cosign.key"))
    image = release.verify(folder, str(keys / "cosign.pub"))
    assert image.identity in (folder / "sbom.cdx.json").read_text("utf-8")
    assert (folder / "SHA256SUMS").read_text("utf-8").count("\n") == 2


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ("", "does not cover image.tar, sbom.cdx.json"),
        ("{digest}  sbom.cdx.json\n", "does not cover image.tar"),
        ("{digest}  image.tar\n{digest}  image.tar\n", "a line that is not of a release"),
        ("{digest}  ../image.tar\n", "a line that is not of a release"),
        ("{digest} *image.tar\n", "a line that is not of a release"),
        ("image.tar\n", "a line that is not of a release"),
    ],
)
def test_checksums_of_something_else_are_refused_even_if_they_are_signed(
    folder: Path, keys: Path, sums: str, message: str
) -> None:
    release.sign(folder, str(keys / "cosign.key"))
    (folder / "SHA256SUMS").write_text(sums.format(digest="0" * 64), "utf-8")
    words = ["--yes", "--key", str(keys / "cosign.key"), "--tlog-upload=false"]
    target = ["--output-signature", str(folder / "SHA256SUMS.sig"), str(folder / "SHA256SUMS")]
    subprocess.run([str(keys / "cosign"), "sign-blob", *words, *target], check=True)
    with pytest.raises(SupplyChainError, match=message):
        release.verify(folder, str(keys / "cosign.pub"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"metadata": {"component": {"properties": []}}}']
)
def test_sbom_that_names_no_image_is_refused(folder: Path, keys: Path, text: str) -> None:
    (folder / "sbom.cdx.json").write_text(text, "utf-8")
    release.sign(folder, str(keys / "cosign.key"))
    with pytest.raises(SupplyChainError, match="does not say which image it is of"):
        release.verify(folder, str(keys / "cosign.pub"))


def test_sbom_of_another_image_is_refused_even_if_it_is_signed(folder: Path, keys: Path) -> None:
    sbom = folder / "sbom.cdx.json"
    other = "sha256:" + "0" * 64
    sbom.write_text(re.sub("sha256:[0-9a-f]{64}", other, sbom.read_text("utf-8")), "utf-8")
    release.sign(folder, str(keys / "cosign.key"))
    with pytest.raises(SupplyChainError, match=f"describes the image {other}, and the archive"):
        release.verify(folder, str(keys / "cosign.pub"))


@pytest.mark.parametrize(
    ("named", "message"), [(True, None), (False, r"image\.tar has no name for its image")]
)
def test_archive_without_a_name_is_refused(
    folder: Path, keys: Path, named: bool, message: str | None
) -> None:
    save_image(folder / "image.tar", service_image(), named=named)
    release.sign(folder, str(keys / "cosign.key"))
    if message is None:  # control
        release.verify(folder, str(keys / "cosign.pub"))
        return
    with pytest.raises(SupplyChainError, match=message):
        release.verify(folder, str(keys / "cosign.pub"))


def test_checksums_that_are_exchanged_after_cosign_said_yes_are_not_used(
    folder: Path, keys: Path
) -> None:
    release.sign(folder, str(keys / "cosign.key"))
    forged = keys / "forged"
    forged.mkdir()
    sbom = (folder / "sbom.cdx.json").read_text("utf-8")
    (ours,) = re.findall("sha256:[0-9a-f]{64}", sbom)
    theirs = save_image(forged / "image.tar", service_image(), {"/one/more": "file"})
    (forged / "sbom.cdx.json").write_text(sbom.replace(ours, theirs), "utf-8")
    sums = "".join(
        f"{hashlib.sha256((forged / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("image.tar", "sbom.cdx.json")
    )
    (forged / "SHA256SUMS").write_text(sums, "utf-8")
    real = (keys / "cosign").replace(keys / "real")
    (keys / "cosign").write_text(
        f'#!/bin/sh\n{real} "$@" || exit 1\n[ "$2" = --help ] || cp {forged}/* {folder}\n', "utf-8"
    )
    (keys / "cosign").chmod(0o755)
    with pytest.raises(SupplyChainError, match=r"image\.tar is not what was signed"):
        release.verify(folder, str(keys / "cosign.pub"))
    assert (folder / "SHA256SUMS").read_text("utf-8") == sums, "control: they were exchanged"
    with pytest.raises(SupplyChainError, match="does not hold for"):
        release.verify(folder, str(keys / "cosign.pub"))


def test_missing_key_or_program_is_said(
    folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SupplyChainError, match=r"no private key at .*`cosign generate-key-pair`"):
        release.sign(folder, str(keys / "other.key"))
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(SupplyChainError, match=r"cosign is not installed\. Debian 13 has it"):
        release.sign(folder, str(keys / "cosign.key"))


DOCKER = """#!/bin/sh
[ "$1 $2 $3" = "image save --output" ] || exit 2
[ "$5" = orders ] || { echo "No such image: $5" >&2; exit 1; }
cp "$SAVED" "$4"
"""


def run(folder: Path, keys: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a project whose engine has one image, called orders."""
    (keys / "docker").write_text(DOCKER, "utf-8")
    (keys / "docker").chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": str(Path(release.__file__).parents[1]),
        "SAVED": str(folder / "saved.tar"),
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", "supply_chain", *words],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with a lock file, and what its engine saves."""
    made = tmp_path / "project"
    made.mkdir()
    (made / "uv.lock").write_text(LOCK, "utf-8")
    save_image(made / "saved.tar", service_image())
    return made


def test_command_line_signs_into_a_folder_that_appears_when_it_is_whole(
    project: Path, keys: Path
) -> None:
    done = run(project, keys, "sign", "--image", "orders", "--key", str(keys / "cosign.key"))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (project / "release").iterdir()} == {
        "SHA256SUMS",
        "SHA256SUMS.sig",
        "image.tar",
        "sbom.cdx.json",
    }
    done = run(project, keys, "verify", "--key", str(keys / "cosign.pub"))
    assert done.returncode == 0, done.stderr
    assert "orders:latest" in done.stdout
    again = run(project, keys, "sign", "--image", "orders", "--key", str(keys / "cosign.key"))
    assert again.returncode == 1
    assert "release is not empty" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sign", "--image", "other"], "did not save the image other: No such image: other"),
        (["sign", "--image", "orders", "--add", "none.md"], "none.md is not there"),
        (["sign", "--image", "orders", "--add", "uv.lock", "--add", "./uv.lock"], "name is taken"),
        (["sign", "--image", "orders", "--lock", "none.lock"], "There is no none.lock"),
        (["sbom", "--image", "orders", "--lock", "none.lock"], "There is no none.lock"),
        (["verify", "nowhere"], "There is no public key"),
    ],
)
def test_command_line_says_what_is_wrong_and_leaves_nothing_behind(
    project: Path, keys: Path, words: list[str], message: str
) -> None:
    before = set(project.iterdir())
    if words[0] == "sign":
        words = [*words, "--key", str(keys / "cosign.key")]
    done = run(project, keys, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert set(project.iterdir()) == before


def test_image_with_what_is_not_locked_is_described_and_not_signed(
    project: Path, keys: Path
) -> None:
    save_image(project / "saved.tar", service_image(), distribution("smuggled", "6.6"))
    done = run(project, keys, "sbom", "--image", "orders")
    assert done.returncode == 0
    assert "warning: smuggled 6.6 of the image is not in uv.lock" in done.stderr
    assert "smuggled" in (project / "reports" / "sbom.cdx.json").read_text("utf-8")
    shutil.rmtree(project / "reports")
    done = run(project, keys, "sign", "--image", "orders", "--key", str(keys / "cosign.key"))
    assert done.returncode == 1
    assert "Build the image again before you sign it" in done.stderr
    assert not (project / "release").exists()


def test_image_whose_wheel_is_not_locked_is_described_with_a_warning(
    project: Path, keys: Path
) -> None:
    tags = ("cp313-cp313-musllinux_1_2_x86_64",)
    other = distribution("example-lib", "2.1", tags=tags, files=EXAMPLE_LIB)
    save_image(project / "saved.tar", service_image(), other)
    done = run(project, keys, "sbom", "--image", "orders")
    assert done.returncode == 0
    assert "no wheel in uv.lock is the installed example-lib 2.1: no hash" in done.stderr


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            f"{SITE_PACKAGES}/example_lib/parts/one.py",
            "changed after it was installed: example-lib 2.1 (example_lib/parts/one.py: changed)",
        ),
        (
            f"{SITE_PACKAGES}/start.pth",
            f"of no distribution of the image: {SITE_PACKAGES}/start.pth",
        ),
    ],
)
def test_image_that_was_changed_after_its_build_is_described_and_not_signed(
    project: Path, keys: Path, path: str, message: str
) -> None:
    words = ["sign", "--image", "orders", "--key", str(keys / "cosign.key")]
    done = run(project, keys, "sbom", "--image", "orders")
    assert (done.returncode, done.stderr) == (0, ""), "control"
    save_image(project / "saved.tar", service_image(), {path: "import evil\n"})
    done = run(project, keys, "sbom", "--image", "orders")
    assert done.returncode == 0
    assert done.stderr == f"warning: {message}\n"
    done = run(project, keys, *words)
    assert done.returncode == 1
    assert done.stderr == f"error: {message}. Build the image again before you sign it.\n"
    assert not (project / "release").exists()
    save_image(project / "saved.tar", service_image())
    assert run(project, keys, *words).returncode == 0, "control"


def test_image_that_is_signed_by_its_id_is_refused(project: Path, keys: Path) -> None:
    save_image(project / "saved.tar", service_image(), named=False)
    done = run(project, keys, "sbom", "--image", "orders")
    assert done.returncode == 0, "an SBOM needs no name"
    done = run(project, keys, "sign", "--image", "orders", "--key", str(keys / "cosign.key"))
    assert done.returncode == 1
    assert "orders is no name: sign the image by the name" in done.stderr
    assert not (project / "release").exists()
