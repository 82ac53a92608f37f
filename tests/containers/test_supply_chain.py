"""The SBOM against the image itself, the image against its sources, and what a build refuses."""

import hashlib
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import docker
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from scaffold import Shared

from containers.engine import PYTHON, Variants
from containers.supply import (
    SBOM,
    Unpacked,
    build,
    changed,
    described,
    identity,
    image_name,
    one_at_a_time,
    read,
    recipe,
)

STATUS = "/var/lib/dpkg/status.d/"


@pytest.fixture(scope="module")
def project(engine: docker.DockerClient, variants: Variants, shared: Shared) -> Path:
    """Return a built project with the SBOM of its image. Read only."""
    del engine  # required first
    return described(variants, shared)


@pytest.fixture(scope="module")
def image(variants: Variants) -> str:
    """Return the name of its image."""
    return variants.image("default")


@pytest.fixture(scope="module")
def sbom(project: Path) -> dict[str, Any]:
    """Return its SBOM."""
    return read(project / SBOM)


@pytest.fixture(scope="module")
def unpacked(
    engine: docker.DockerClient, project: Path, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Unpacked:
    """Return the files of its image."""
    del project  # built first
    return Unpacked.of(engine, image, tmp_path_factory.mktemp("export"))


def versions(sbom: dict[str, Any], kind: str) -> set[tuple[str, str]]:
    """Return name and version of all components of a kind; the service is one of Python's."""
    components = [*sbom["components"], sbom["metadata"]["component"]]
    return {(one["name"], one["version"]) for one in components if one["bom-ref"].startswith(f"{kind}:")}


# ---------------------------------------------------------------- The SBOM


def test_sbom_has_every_python_distribution_of_the_image_and_no_other(
    sbom: dict[str, Any], unpacked: Unpacked
) -> None:
    folders = {path.split("/")[-2] for path in unpacked.files if path.endswith(".dist-info/METADATA")}
    installed = {tuple(folder.removesuffix(".dist-info").rsplit("-", 1)) for folder in folders}
    assert len(installed) > 20
    assert versions(sbom, "python") == {(name.replace("_", "-"), version) for name, version in installed}


def test_sbom_has_every_debian_package_of_the_image_and_no_other(
    sbom: dict[str, Any], unpacked: Unpacked
) -> None:
    records = {
        path.removeprefix(STATUS): content.decode()
        for path, content in unpacked.files.items()
        if path.startswith(STATUS) and not path.endswith(".md5sums")
    }
    installed = {(name, re.findall(r"(?m)^Version: (\S+)$", record)[0]) for name, record in records.items()}
    assert len(installed) > 10
    assert versions(sbom, "deb") == installed


def test_every_shared_object_belongs_to_a_component_of_the_sbom(
    sbom: dict[str, Any], unpacked: Unpacked
) -> None:
    packages = {name for name, _ in versions(sbom, "deb")}
    owned: dict[str, str] = {}
    for path, content in unpacked.files.items():
        if path.startswith(STATUS) and path.endswith(".md5sums"):
            assert path.removeprefix(STATUS).removesuffix(".md5sums") in packages
            for line in content.decode().splitlines():
                digest, name = line.split(maxsplit=1)
                owned[f"/{name}"] = digest
    objects = {path: content for path, content in unpacked.files.items() if content[:4] == b"\x7fELF"}
    recorded = {  # of the distributions: `RECORD` names their files
        str(Path(path).parents[1] / line.split(",")[0])
        for path, content in unpacked.files.items()
        if path.endswith(".dist-info/RECORD")
        for line in content.decode().splitlines()
    }
    counted = {"debian": 0, "cpython": 0, "wheel": 0}
    for path, content in objects.items():
        if path.startswith("/app/.venv/"):
            assert path in recorded
            counted["wheel"] += 1
        elif path.startswith(("/usr/local/bin/python3", "/usr/local/lib/")):
            counted["cpython"] += 1
        else:
            usr = path if path in owned else f"/usr{path}"
            assert owned[usr] == hashlib.md5(content, usedforsecurity=False).hexdigest(), path
            counted["debian"] += 1
    assert min(counted.values()) > 5, counted


def test_sbom_fits_the_schema_of_cyclonedx(project: Path) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    text = (project / SBOM).read_text("utf-8")
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"bomFormat"', '"bomShape"')), "control"


def test_every_component_is_reached_from_the_service(sbom: dict[str, Any]) -> None:
    edges = {one["ref"]: one.get("dependsOn", []) for one in sbom["dependencies"]}
    reached: set[str] = set()
    waiting = [sbom["metadata"]["component"]["bom-ref"]]
    while waiting:
        if (one := waiting.pop()) not in reached:
            reached.add(one)
            waiting += edges[one]
    inner = {part["bom-ref"] for one in sbom["components"] for part in one.get("components", ())}
    assert {one["bom-ref"] for one in sbom["components"]} <= reached
    assert reached - {sbom["metadata"]["component"]["bom-ref"]} == set(edges) - inner - {
        sbom["metadata"]["component"]["bom-ref"]
    }


def test_versions_are_those_that_the_image_itself_tells(
    engine: docker.DockerClient, image: str, sbom: dict[str, Any]
) -> None:
    code = (
        "import platform, apsw, re; from cryptography.hazmat.backends.openssl import backend as b;"
        "print(platform.python_version(), apsw.sqlite_lib_version(), b.openssl_version_text().split()[1])"
    )
    said = engine.containers.run(
        image, ["-I", "-c", code], entrypoint=[PYTHON], name=image_name("versions"), remove=True
    )
    python, sqlite, openssl = said.decode().split()
    inner = {
        (part["name"], part["version"]) for one in sbom["components"] for part in one.get("components", ())
    }
    assert ("sqlite", sqlite) in inner
    assert ("openssl", openssl) in inner
    (cpython,) = (one for one in sbom["components"] if one["name"] == "python")
    assert cpython["version"] == python


def test_hash_of_every_distribution_from_the_index_is_in_the_lock_file(
    project: Path, sbom: dict[str, Any]
) -> None:
    locked = {
        (package["name"], wheel["hash"].removeprefix("sha256:"))
        for package in tomllib.loads((project / "uv.lock").read_text("utf-8"))["package"]
        for wheel in package.get("wheels", ())
    }
    hashed = {
        one["name"]: one["hashes"][0]["content"]
        for one in sbom["components"]
        if one.get("purl", "").startswith("pkg:pypi/")
    }
    assert len(hashed) > 20
    assert set(hashed.items()) <= locked
    service = sbom["metadata"]["component"]["name"]
    assert versions(sbom, "python") - {
        (name, version) for name, version in versions(sbom, "python") if name in hashed
    } == {
        (service, "0.1.0"),
        ("service-security", "0.1.0"),
    }


def test_same_image_gives_the_same_bytes_under_another_name_at_another_time(
    engine: docker.DockerClient, project: Path, image: str, tmp_path: Path
) -> None:
    other = image_name("renamed")
    engine.images.get(image).tag(other)
    done = recipe(project, "sbom", "--image", other, "--output", str(tmp_path / "again.json"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "an image as it was built gives no warning"
    assert (tmp_path / "again.json").read_bytes() == (project / SBOM).read_bytes()
    properties = read(project / SBOM)["metadata"]["component"]["properties"]
    assert {"name": "image:id", "value": identity(engine, image)} in properties


def test_package_that_is_added_to_the_image_is_added_to_the_sbom_and_is_not_signed(
    project: Path, image: str, sbom: dict[str, Any], tmp_path: Path
) -> None:
    context = tmp_path / "context"
    for path, text in {
        "smuggled-6.6.dist-info/METADATA": "Metadata-Version: 2.1\nName: smuggled\nVersion: 6.6\n",
        "libevil1": "Package: libevil1\nArchitecture: amd64\nVersion: 6.6-1\n",
    }.items():
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        (context / path).write_text(text, "utf-8")
    (context / "Dockerfile").write_text(
        f"FROM {image}\nCOPY smuggled-6.6.dist-info /app/.venv/lib/smuggled-6.6.dist-info\n"
        f"COPY libevil1 {STATUS}libevil1\n",
        "utf-8",
    )
    more = image_name("more")
    made = one_at_a_time(context, "docker", "buildx", "build", "--quiet", "--load", "--tag", more, ".")
    assert made.returncode == 0, made.stderr
    done = recipe(project, "sbom", "--image", more, "--output", str(tmp_path / "more.json"))
    assert done.returncode == 0, done.stderr
    assert "smuggled 6.6 of the image is not in uv.lock" in done.stderr
    found = read(tmp_path / "more.json")
    assert versions(found, "python") - versions(sbom, "python") == {("smuggled", "6.6")}
    assert versions(found, "deb") - versions(sbom, "deb") == {("libevil1", "6.6-1")}
    assert found["serialNumber"] != sbom["serialNumber"]
    refused = recipe(project, "sign", "--image", more, "--key", "unused", str(tmp_path / "release"))
    assert refused.returncode != 0
    assert "smuggled 6.6 of the image is not in uv.lock" in refused.stderr
    assert "Build the image again" in refused.stderr
    assert not (tmp_path / "release").exists()


def test_package_whose_code_was_changed_in_the_image_gets_no_hash_and_is_not_signed(
    project: Path, image: str, sbom: dict[str, Any], unpacked: Unpacked, tmp_path: Path
) -> None:
    (path,) = (path for path in unpacked.files if path.endswith("/site-packages/h11/_connection.py"))
    context = tmp_path / "context"
    context.mkdir()
    (context / "evil.py").write_bytes(unpacked.files[path] + b"import evil\n")
    (context / "Dockerfile").write_text(f"FROM {image}\nCOPY evil.py {path}\n", "utf-8")
    tampered = image_name("tampered")
    made = one_at_a_time(context, "docker", "buildx", "build", "--quiet", "--load", "--tag", tampered, ".")
    assert made.returncode == 0, made.stderr
    done = recipe(project, "sbom", "--image", tampered, "--output", str(tmp_path / "tampered.json"))
    assert done.returncode == 0, done.stderr
    (version,) = (one["version"] for one in sbom["components"] if one["name"] == "h11")
    warning = f"changed after it was installed: h11 {version} (h11/_connection.py: changed)"
    assert done.stderr.strip() == f"warning: {warning}"
    hashed, before = (
        {one["name"] for one in document["components"] if one.get("hashes")}
        for document in (read(tmp_path / "tampered.json"), sbom)
    )
    assert before - hashed == {"h11"}
    refused = recipe(project, "sign", "--image", tampered, "--key", "unused", str(tmp_path / "release"))
    assert refused.returncode != 0
    assert f"error: {warning}. Build the image again before you sign it." in refused.stderr
    assert not (tmp_path / "release").exists()


# ---------------------------------------------------------------- The same image again


def test_build_from_another_folder_at_another_time_gives_the_same_image(
    engine: docker.DockerClient, project: Path, image: str, tmp_path: Path
) -> None:
    again = image_name("again")
    with changed(project, tmp_path) as place:
        for path in place.rglob("*"):
            if not path.is_symlink() and ".git" not in path.parts:
                path.chmod(0o700 if path.is_dir() else 0o600)
                os.utime(path, (1_000_000_000, 1_000_000_000))
        assert (made := build(place, again, "--no-cache")).returncode == 0, made.stderr
        assert identity(engine, again) == identity(engine, image)

        made = build(place, again, SOURCE_DATE_EPOCH="1000000000")
        assert made.returncode == 0, made.stderr
        assert identity(engine, again) != identity(engine, image), "control: another time"
        (module,) = place.glob("src/*/health.py")
        module.write_text(module.read_text("utf-8") + "# one more line\n", "utf-8")
        assert (made := build(place, again)).returncode == 0, made.stderr
        assert identity(engine, again) != identity(engine, image), "control: another source"
        module.write_text(module.read_text("utf-8").removesuffix("# one more line\n"), "utf-8")
        assert (made := build(place, again)).returncode == 0, made.stderr
        assert identity(engine, again) == identity(engine, image)


# ---------------------------------------------------------------- What a build refuses


def test_every_file_that_the_lock_file_names_has_its_hash(project: Path) -> None:
    packages = tomllib.loads((project / "uv.lock").read_text("utf-8"))["package"]
    named = [
        file
        for package in packages
        if "registry" in package["source"]
        for file in (*package.get("wheels", ()), *filter(None, [package.get("sdist")]))
    ]
    assert len(named) > 500
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", file.get("hash", "")) for file in named)
    ours = {package["name"] for package in packages if "registry" not in package["source"]}
    assert ours == {read(project / SBOM)["metadata"]["component"]["name"], "service-security"}


def test_wheel_that_is_not_the_locked_one_stops_the_build(project: Path, tmp_path: Path) -> None:
    with changed(project, tmp_path) as place:
        lock = place / "uv.lock"
        text = lock.read_text("utf-8")
        (used,) = (
            one["hashes"][0]["content"] for one in read(project / SBOM)["components"] if one["name"] == "h11"
        )
        lock.write_text(text.replace(used, hashlib.sha256(b"another wheel").hexdigest()), "utf-8")
        assert lock.read_text("utf-8") != text
        name = image_name("tampered")
        done = build(place, name)
        assert done.returncode != 0
        assert "Hash mismatch for `h11==" in done.stderr + done.stdout, done.stderr[-2000:]
        lock.write_text(text, "utf-8")
        assert (done := build(place, name)).returncode == 0, done.stderr


def test_lock_file_that_does_not_fit_the_project_stops_the_build(project: Path, tmp_path: Path) -> None:
    with changed(project, tmp_path) as place:
        described = place / "pyproject.toml"
        text = described.read_text("utf-8")
        described.write_text(text.replace('"pydantic>=2', '"idna>=3",\n    "pydantic>=2'), "utf-8")
        assert described.read_text("utf-8") != text
        done = build(place, image_name("unlocked"))
        assert done.returncode != 0
        said = done.stderr + done.stdout
        assert "The lockfile at `uv.lock` needs to be updated" in said, said[-2000:]
