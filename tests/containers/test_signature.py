"""A release is signed and verified without a network, with cosign itself; whatever was changed is refused."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from scaffold import Shared, outside_environment, require, run

from containers.engine import Variants
from containers.supply import SBOM, described, identity, image_name, one_at_a_time, read, recipe

PASSWORD = "a password for tests only"
# Nothing listens there: whatever asks a service on the network for something fails at once.
OFFLINE = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")
SECRETS = {"COSIGN_PASSWORD": PASSWORD}


def cosign(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run cosign without a network."""
    return run(folder, "cosign", *arguments, environment=OFFLINE | SECRETS)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two key pairs: `ours` and `theirs`."""
    require(shutil.which("cosign") is not None, "cosign (scripts/containers/cosign.sh)")
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        done = cosign(folder, "generate-key-pair", "--output-key-prefix", name)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def project(engine: docker.DockerClient, variants: Variants, shared: Shared) -> Path:
    """Return a built project with its environment. Read only."""
    del engine  # required first
    return described(variants, shared)


def sign(project: Path, folder: Path, key: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `just sign`, offline but for the engine."""
    return recipe(project, "sign", "--key", str(key), *arguments, str(folder), **OFFLINE, **SECRETS)


@pytest.fixture(scope="module")
def signed(project: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a release that is signed with our key. Read only."""
    folder = tmp_path_factory.mktemp("signed") / "release"
    report = tmp_path_factory.mktemp("report") / "security-probe.md"
    report.write_text("36 of 36 points hold.\n", "utf-8")
    done = sign(project, folder, keys / "ours.key", "--add", str(report))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def release(signed: Path, tmp_path: Path) -> Path:
    """Return a copy of it that may be changed."""
    return Path(shutil.copytree(signed, tmp_path / "release"))


@pytest.fixture
def verify(project: Path, keys: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `just verify-image` with our public key, or another."""

    def run_it(folder: Path, *arguments: str, key: str = "ours.pub") -> subprocess.CompletedProcess[str]:
        return recipe(project, "verify-image", "--key", str(keys / key), *arguments, str(folder), **OFFLINE)

    return run_it


Verify = Callable[..., subprocess.CompletedProcess[str]]


def test_release_holds_archive_sbom_and_report_and_verifies(
    engine: docker.DockerClient, release: Path, verify: Verify, variants: Variants
) -> None:
    assert {path.name for path in release.iterdir()} == {
        "SHA256SUMS",
        "SHA256SUMS.sig",
        "image.tar",
        "sbom.cdx.json",
        "security-probe.md",
    }
    done = verify(release)
    assert done.returncode == 0, done.stderr
    assert identity(engine, variants.image("default")) in done.stdout


def test_verified_image_that_is_loaded_takes_its_name_back(
    engine: docker.DockerClient,
    project: Path,
    keys: Path,
    verify: Verify,
    variants: Variants,
    tmp_path: Path,
) -> None:
    ours, name, release = variants.image("default"), image_name("release"), tmp_path / "release"
    engine.images.get(ours).tag(name)
    done = sign(project, release, keys / "ours.key", "--image", name)
    assert done.returncode == 0, done.stderr
    (tmp_path / "Dockerfile").write_text(f"FROM {ours}\nLABEL other=image\n", "utf-8")
    made = one_at_a_time(tmp_path, "docker", "buildx", "build", "--quiet", "--load", "--tag", name, ".")
    assert made.returncode == 0, made.stderr
    assert identity(engine, name) != identity(engine, ours)
    done = verify(release, "--load")
    assert done.returncode == 0, done.stderr
    assert identity(engine, name) == identity(engine, ours)
    assert f"The engine has it as {name}:latest." in done.stdout


def flip_a_bit(release: Path) -> None:
    archive = release / "image.tar"
    with archive.open("r+b") as file:
        file.seek(archive.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def swap_the_sbom(release: Path) -> None:
    text = (release / "sbom.cdx.json").read_text("utf-8")
    (release / "sbom.cdx.json").write_text(text.replace('"apsw"', '"apws"', 1), "utf-8")


def change_the_report(release: Path) -> None:
    (release / "security-probe.md").write_text("37 of 36 points hold.\n", "utf-8")


def change_the_sums(release: Path) -> None:
    sums = release / "SHA256SUMS"
    sums.write_text(sums.read_text("utf-8").replace("  sbom.cdx.json", "  other.cdx.json"), "utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip_a_bit, "image.tar is not what was signed"),
        (swap_the_sbom, "sbom.cdx.json is not what was signed"),
        (change_the_report, "security-probe.md is not what was signed"),
        (change_the_sums, "does not hold for"),
        (lambda release: (release / "SHA256SUMS.sig").unlink(), "no SHA256SUMS.sig"),
        (lambda release: (release / "SHA256SUMS.sig").write_text("AAAA\n"), "does not hold for"),
        (lambda release: (release / "security-probe.md").unlink(), "was signed and is missing"),
        (lambda release: (release / "extra.md").write_text("trust me\n"), "not covered by the signature"),
    ],
    ids=[
        "a bit of the archive",
        "the SBOM",
        "a report",
        "the checksums",
        "no signature",
        "a signature of nothing",
        "a file less",
        "a file more",
    ],
)
def test_release_that_was_changed_is_refused(
    release: Path, verify: Verify, change: Callable[[Path], object], message: str
) -> None:
    change(release)
    done = verify(release)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_release_that_another_key_signed_is_refused(release: Path, verify: Verify) -> None:
    done = verify(release, key="theirs.pub")
    assert done.returncode != 0
    assert "does not hold for" in done.stderr


def test_sbom_of_another_image_is_refused_even_if_it_is_signed(
    release: Path, verify: Verify, keys: Path
) -> None:
    """What an honest mistake of the one who signs would look like."""
    sbom = release / "sbom.cdx.json"
    described_image = next(
        one["value"] for one in read(sbom)["metadata"]["component"]["properties"] if one["name"] == "image:id"
    )
    sbom.write_text(sbom.read_text("utf-8").replace(described_image, "sha256:" + "0" * 64), "utf-8")
    sums = run(release, "sha256sum", "image.tar", "sbom.cdx.json", "security-probe.md")
    (release / "SHA256SUMS").write_text(sums.stdout, "utf-8")
    done = cosign(
        release,
        *("sign-blob", "--yes", "--tlog-upload=false", "--key", str(keys / "ours.key")),
        *("--output-signature", "SHA256SUMS.sig", "SHA256SUMS"),
    )
    assert done.returncode == 0, done.stderr
    refused = verify(release)
    assert refused.returncode != 0
    assert f"describes the image sha256:{'0' * 64}, and the archive holds {described_image}" in refused.stderr


def test_neither_signing_nor_verifying_asks_the_network(release: Path, keys: Path, verify: Verify) -> None:
    """Both were done without one above; a signature that cosign would publish cannot be made there."""
    assert verify(release).returncode == 0
    done = cosign(
        release,
        *("sign-blob", "--yes", "--key", str(keys / "ours.key"), "--output-signature", "x", "SHA256SUMS"),
    )
    assert done.returncode != 0, "control"
    assert "127.0.0.1:9" in done.stderr


def test_password_of_the_key_is_in_no_command_line(project: Path, keys: Path, tmp_path: Path) -> None:
    """A cosign that writes down its arguments before it becomes the real one."""
    real, spy = shutil.which("cosign"), tmp_path / "bin" / "cosign"
    assert real is not None
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\nexec {real} "$@"\n', "utf-8")
    spy.chmod(0o755)
    path = f"{spy.parent}:{outside_environment()['PATH']}"
    done = recipe(
        project,
        "sign",
        "--key",
        str(keys / "ours.key"),
        str(tmp_path / "out"),
        PATH=path,
        **OFFLINE,
        **SECRETS,
    )
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "arguments").read_text("utf-8")
    assert "sign-blob" in arguments
    assert PASSWORD not in arguments


@pytest.mark.parametrize(
    ("key", "secrets", "message"),
    [
        ("ours.key", {"COSIGN_PASSWORD": "another password"}, "decrypt"),
        ("none.key", SECRETS, "There is no private key at"),
    ],
)
def test_release_that_cannot_be_signed_is_not_left_half_done(
    project: Path, keys: Path, tmp_path: Path, key: str, secrets: dict[str, str], message: str
) -> None:
    done = recipe(project, "sign", "--key", str(keys / key), str(tmp_path / "out"), **OFFLINE, **secrets)
    assert done.returncode != 0
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_image_that_is_given_by_its_id_is_not_signed_because_the_archive_has_no_name(
    engine: docker.DockerClient, project: Path, keys: Path, variants: Variants, tmp_path: Path
) -> None:
    image = identity(engine, variants.image("default"))
    done = sign(project, tmp_path / "out", keys / "ours.key", "--image", image)
    assert done.returncode != 0
    assert f"{image} is no name: sign the image by the name" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sbom_in_the_release_is_the_one_that_just_sbom_writes(project: Path, signed: Path) -> None:
    assert (signed / "sbom.cdx.json").read_bytes() == (project / SBOM).read_bytes()
