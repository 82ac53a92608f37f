"""A package index of one's own, with a password that stays out of everything that is built."""

import hashlib
import json
import re
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import yaml
from scaffold import run

from containers.engine import Variants
from containers.package_index import Index, serving, upstream_of
from containers.supply import build, changed, identity, image_name, one_at_a_time

GUIDE = Path("docs", "security", "SUPPLY-CHAIN.md")


@pytest.fixture(scope="module")
def index(engine: docker.DockerClient, variants: Variants) -> Iterator[Index]:
    """Serve packages to whoever has the password."""
    del engine  # required first
    upstream = upstream_of(variants.built("default") / "uv.lock")
    with serving(Index(upstream, "robot", secrets.token_hex(16))) as running:
        yield running


@pytest.fixture(scope="module")
def project(index: Index, variants: Variants, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a project whose lock file was written with that index, and its password file."""
    with changed(variants.built("default"), tmp_path_factory.mktemp("index")) as place:
        (place / "netrc").write_text(index.netrc, "utf-8")
        (documented,) = re.findall(r"(?s)```yaml\n(.*?)```", (place / GUIDE).read_text("utf-8"))
        override = yaml.safe_load(documented)
        override["services"]["service"]["build"]["network"] = "host"  # the index is on this machine
        (place / "docker-compose.override.yml").write_text(yaml.safe_dump(override), "utf-8")
        (place / "uv.lock").unlink()
        locked = run(
            place,
            *("uv", "lock", "--quiet"),
            environment={"UV_DEFAULT_INDEX": index.url, "NETRC": str(place / "netrc")},
        )
        assert locked.returncode == 0, locked.stderr
        assert upstream_of(place / "uv.lock") == index.url
        yield place


def own(index: Index) -> dict[str, str]:
    """Return the settings of a build that uses the index."""
    return {"UV_DEFAULT_INDEX": index.url, "NETRC": "./netrc"}


def everything_saved(name: str, folder: Path) -> Iterator[bytes]:
    """Return all that there is of an image: every file of its archive, and those of its layers."""
    path = folder / "saved.tar"
    done = run(folder, "docker", "image", "save", "--output", str(path), name)
    assert done.returncode == 0, done.stderr
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and (content := archive.extractfile(member)) is not None:
                yield content.read()


def told_of(name: str) -> str:
    """Return what the engine tells of an image: its description and its history."""
    shown = [
        run(Path.cwd(), "docker", "image", *words, name)
        for words in (("inspect",), ("history", "--no-trunc"))
    ]
    assert all(one.returncode == 0 for one in shown)
    return "".join(one.stdout for one in shown)


def test_password_lets_the_build_pass_and_is_nowhere_in_it(
    engine: docker.DockerClient, index: Index, project: Path, variants: Variants, tmp_path: Path
) -> None:
    name = image_name("index")
    index.asked.clear()
    done = build(project, name, "--no-cache", **own(index))
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert len([path for path in index.asked if path.endswith(".whl")]) > 20
    assert not [path for path in index.asked if "uv-build" in path or "uv_build" in path]
    assert identity(engine, name) == identity(engine, variants.image("default"))
    assert index.password not in done.stdout + done.stderr + told_of(name)
    for part in everything_saved(name, tmp_path):
        assert index.password.encode() not in part


def test_without_the_password_the_build_says_that_it_is_missing(index: Index, project: Path) -> None:
    (project / "netrc").write_text("", "utf-8")
    before = index.refused
    try:
        done = build(
            project, image_name("refused"), "--no-cache", UV_DEFAULT_INDEX=index.url, NETRC="./netrc"
        )
    finally:
        (project / "netrc").write_text(index.netrc, "utf-8")
    assert done.returncode != 0
    assert index.refused > before
    assert "401 Unauthorized" in done.stdout + done.stderr, (done.stdout + done.stderr)[-3000:]
    assert index.url.removesuffix("simple") + "files/" in done.stdout + done.stderr


def test_password_in_the_address_would_be_found_where_a_secret_is_not(
    index: Index, project: Path, tmp_path: Path
) -> None:
    """Control: the builder's own history and the build's metadata hold what was passed as an argument."""
    with_password = index.url.replace("://", f"://{index.user}:{index.password}@")

    def told(address: str, netrc: str) -> str:
        name, metadata = image_name("builder"), tmp_path / "metadata.json"
        done = one_at_a_time(
            project,
            *("docker", "buildx", "build", "--load", "--network", "host", "--target", "builder"),
            *("--secret", f"id=netrc,src={netrc}", "--build-arg", f"UV_DEFAULT_INDEX={address}"),
            *("--tag", name, "--metadata-file", str(metadata), "."),
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        assert json.loads(metadata.read_text("utf-8"))
        saved = b"".join(everything_saved(name, tmp_path))
        return told_of(name) + metadata.read_text("utf-8") + saved.decode("latin-1")

    (tmp_path / "empty").touch()
    assert index.password not in told(index.url, "netrc")
    assert index.password in told(with_password, str(tmp_path / "empty"))


def test_file_that_the_index_swapped_stops_the_build(index: Index, project: Path, tmp_path: Path) -> None:
    with changed(project, tmp_path) as place:
        lock = place / "uv.lock"
        text = lock.read_text("utf-8")
        start = text.index("h11-")
        digest = text[text.index("sha256:", text.index(".whl", start)) :][7:71]
        lock.write_text(text.replace(digest, hashlib.sha256(b"what was locked").hexdigest()), "utf-8")
        done = build(place, image_name("swapped"), **own(index))
        assert done.returncode != 0
        assert "Hash mismatch for `h11==" in done.stdout + done.stderr
