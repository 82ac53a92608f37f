"""The SBOM has what is in the image, with the hashes of the lock file, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from image_maker import (
    CREATED,
    EXAMPLE_LIB,
    LOCK,
    NATIVE,
    PURE,
    SITE_PACKAGES,
    debian,
    distribution,
    record_row,
    save_image,
    service_image,
)
from supply_chain import SupplyChainError
from supply_chain.contents import Contents, wanted
from supply_chain.image_archive import Image
from supply_chain.lock_file import Lock
from supply_chain.sbom import Sbom


def sbom_of(folder: Path, *layers: Any, lock: str = LOCK) -> tuple[Sbom, dict[str, Any]]:
    """Write the SBOM of an image made of these layers."""
    save_image(folder / "image.tar", *layers)
    (folder / "uv.lock").write_text(lock, "utf-8")
    image = Image.read(folder / "image.tar", wanted)
    sbom = Sbom(image, Contents.of(image), Lock.read(folder / "uv.lock"))
    return sbom, json.loads(sbom.text())


def components(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["bom-ref"]: one for one in document["components"]}


def test_everything_installed_is_listed_and_nothing_else(tmp_path: Path) -> None:
    sbom, document = sbom_of(tmp_path, service_image())
    assert set(components(document)) == {
        "python:example-lib@2.1",
        "cpython@3.13.5",
        "os:debian@13",
        "deb:libc6@2.41-12",
        "deb:libgcc-s1@14.2.0-19",
    }
    root = document["metadata"]["component"]
    assert (root["name"], root["version"], root["type"]) == ("orders", "0.1.0", "container")
    assert root["licenses"] == [{"license": {"id": "MIT"}}]
    assert sbom.not_locked == sbom.without_hash == sbom.warnings("uv.lock") == []


def test_purls_name_what_scanners_look_up(tmp_path: Path) -> None:
    _, document = sbom_of(tmp_path, service_image())
    found = {ref: one.get("purl") for ref, one in components(document).items()}
    assert found == {
        "python:example-lib@2.1": "pkg:pypi/example-lib@2.1",
        "cpython@3.13.5": "pkg:generic/python@3.13.5",
        "os:debian@13": None,
        "deb:libc6@2.41-12": "pkg:deb/debian/libc6@2.41-12"
        "?arch=amd64&distro=debian-13&upstream=glibc",
        "deb:libgcc-s1@14.2.0-19": "pkg:deb/debian/libgcc-s1@14.2.0-19"
        "?arch=amd64&distro=debian-13&upstream=gcc-14%4014.2.0-20",
    }
    assert "purl" not in document["metadata"]["component"], "the name may be another's on the index"


def test_hash_is_that_of_the_wheel_with_the_installed_tags(tmp_path: Path) -> None:
    _, document = sbom_of(tmp_path, service_image())
    assert components(document)["python:example-lib@2.1"]["hashes"] == [
        {"alg": "SHA-256", "content": PURE}
    ]
    tags = ("cp313-cp313-manylinux_2_28_x86_64",)
    native = distribution("example-lib", "2.1", tags=tags, files=EXAMPLE_LIB)
    _, document = sbom_of(tmp_path, service_image(), native)
    found = components(document)["python:example-lib@2.1"]
    assert found["hashes"][0]["content"] == NATIVE
    assert found["properties"] == [
        {"name": "uv.lock:wheel", "value": "example_lib-2.1-cp313-cp313-manylinux_2_28_x86_64.whl"}
    ]


def test_wheel_that_the_lock_file_does_not_have_gets_no_hash_and_is_named(tmp_path: Path) -> None:
    tags = ("cp313-cp313-musllinux_1_2_x86_64",)
    other = distribution("example-lib", "2.1", tags=tags, files=EXAMPLE_LIB)
    sbom, document = sbom_of(tmp_path, service_image(), other)
    assert "hashes" not in components(document)["python:example-lib@2.1"]
    assert sbom.without_hash == ["example-lib 2.1"]


ONE = f"{SITE_PACKAGES}/example_lib/parts/one.py"
RECORD = f"{SITE_PACKAGES}/example_lib-2.1.dist-info/RECORD"


def recorded(*more: str) -> dict[str, str]:
    """Return the RECORD of the library with lines that it lacks; the last one of a path counts."""
    before = service_image()[RECORD]
    names = {line.partition(",")[0].strip('"') for line in more}
    kept = [line for line in str(before).splitlines() if line.partition(",")[0] not in names]
    return {RECORD: "\n".join([*kept, *more, ""])}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({ONE: "one = 2\n"}, "example_lib/parts/one.py: changed"),
        ({ONE: ("link", "/data/one.py")}, "example_lib/parts/one.py: changed"),
        ({f"{SITE_PACKAGES}/example_lib/parts/.wh.one.py": ""}, "parts/one.py: missing"),
        ({f"{SITE_PACKAGES}/example_lib/parts": ("link", "/data")}, "parts/one.py: missing"),
        ({f"{SITE_PACKAGES}/example_lib/one.abi3.so": "x"}, "example_lib/one.abi3.so: not record"),
        ({f"{SITE_PACKAGES}/example_lib.abi3.so": "x"}, "example_lib.abi3.so: not recorded"),
        (
            {f"{SITE_PACKAGES}/example_lib/__pycache__/other.cpython-313.pyc": "x"},
            "example_lib/__pycache__/other.cpython-313.pyc: not recorded",
        ),
        ({f"{SITE_PACKAGES}/example_lib/parts/one.pyc": "x"}, "parts/one.pyc: not recorded"),
        (
            {f"{SITE_PACKAGES}/example_lib-2.1.dist-info/entry_points.txt": "[x]\n"},
            "example_lib-2.1.dist-info/entry_points.txt: not recorded",
        ),
        (recorded("example_lib/parts/one.py,,"), "parts/one.py: recorded without a SHA-256"),
        (recorded("example_lib/parts/one.py,md5=x,8"), "parts/one.py: recorded without a SHA-256"),
        (recorded("example_lib/parts/one.py,sha256=,8"), "one.py: recorded without a SHA-256"),
        (
            recorded(record_row("example_lib/parts/one.py", "one = 1\n")[:-1] + "9"),
            "one.py: changed",
        ),
        (recorded("no row"), "RECORD has the line 'no row'"),
        (recorded("x,sha256=?,1"), "RECORD has the line 'x,sha256=?,1'"),
        (recorded("x,sha256=AAAA,many"), "RECORD has the line 'x,sha256=AAAA,many'"),
        (recorded(record_row("../../../../out.py", "")), "/app/out.py: missing"),
        ({f"{SITE_PACKAGES}/example_lib-2.1.dist-info/.wh.RECORD": ""}, "no RECORD"),
    ],
)
def test_distribution_that_is_not_as_installed_gets_no_hash_and_is_named(
    tmp_path: Path, change: Any, fault: str
) -> None:
    sbom, document = sbom_of(tmp_path, service_image())
    assert "hashes" in components(document)["python:example-lib@2.1"], "control"
    assert sbom.not_as_installed == []
    sbom, document = sbom_of(tmp_path, service_image(), change)
    assert "hashes" not in components(document)["python:example-lib@2.1"]
    assert [one for one in sbom.not_as_installed if one.startswith("example-lib 2.1 (")]
    assert fault in sbom.not_as_installed[0]
    assert sbom.warnings("uv.lock")[0].startswith("changed after it was installed: example-lib 2.1")


@pytest.mark.parametrize(
    "change",
    [
        {"/app/config.py": "x"},
        {ONE: "one = 1\n"},
        {f"{SITE_PACKAGES}/example_lib/parts/__pycache__/one.cpython-313.pyc": "x"},
        {f"{SITE_PACKAGES}/example_lib/parts/__pycache__/one.cpython-313.opt-2.pyc": "x"},
        recorded("example_lib/parts/one.py," + record_row("", "one = 1\n").split(",")[1] + ","),
        recorded('"example_lib/parts/one.py",' + record_row("", "one = 1\n").partition(",")[2]),
        recorded(record_row("../../../share/doc.txt", "x")) | {"/app/.venv/share/doc.txt": "x"},
    ],
    ids=["outside", "same again", "bytecode", "optimised", "without a size", "quoted", "shared"],
)
def test_what_an_installation_has_besides_is_no_fault(tmp_path: Path, change: Any) -> None:
    sbom, document = sbom_of(tmp_path, service_image(), change)
    assert sbom.warnings("uv.lock") == []
    assert "hashes" in components(document)["python:example-lib@2.1"]


@pytest.mark.parametrize(
    "path",
    [
        f"{SITE_PACKAGES}/start.pth",
        f"{SITE_PACKAGES}/sitecustomize.py",
        f"{SITE_PACKAGES}/__pycache__/sitecustomize.cpython-313.pyc",
        f"{SITE_PACKAGES}/other/module.py",
        "/app/.venv/lib/python3.13/another.py",
        "/app/.venv/bin/tool",
        "/usr/local/lib/python3.13/site-packages/other.py",
        "/usr/lib/python3/dist-packages/other.py",
    ],
)
def test_file_of_no_distribution_is_named_and_takes_no_hash_away(tmp_path: Path, path: str) -> None:
    sbom, document = sbom_of(tmp_path, service_image(), {path: "x"})
    assert sbom.warnings("uv.lock") == [f"of no distribution of the image: {path}"]
    assert "hashes" in components(document)["python:example-lib@2.1"]


def test_records_of_a_distribution_without_metadata_cover_nothing(tmp_path: Path) -> None:
    rows = "\n".join([record_row("evil.py", "x"), "evil-1.dist-info/RECORD,,", ""])
    evil = {f"{SITE_PACKAGES}/evil.py": "x", f"{SITE_PACKAGES}/evil-1.dist-info/RECORD": rows}
    sbom, _ = sbom_of(tmp_path, service_image(), evil)
    (warning,) = sbom.warnings("uv.lock")
    assert f"{SITE_PACKAGES}/evil.py" in warning


def test_warning_names_the_first_of_many_files(tmp_path: Path) -> None:
    many = {f"{SITE_PACKAGES}/other/{number}.py": "x" for number in range(9)}
    sbom, _ = sbom_of(tmp_path, service_image(), many)
    (warning,) = sbom.warnings("uv.lock")
    assert f"{SITE_PACKAGES}/other/4.py; 4 more" in warning
    assert "other/5.py" not in warning


@pytest.mark.parametrize(
    ("more", "reference", "not_locked"),
    [
        (distribution("Smuggled.In", "6.6"), "python:smuggled-in@6.6", ["smuggled-in 6.6"]),
        (debian("libevil1", "6.6"), "deb:libevil1@6.6", []),
    ],
)
def test_one_more_package_in_the_image_is_one_more_component(
    tmp_path: Path, more: Any, reference: str, not_locked: list[str]
) -> None:
    _, before = sbom_of(tmp_path, service_image())
    sbom, after = sbom_of(tmp_path, service_image(), more)
    assert set(components(after)) - set(components(before)) == {reference}
    assert sbom.not_locked == not_locked


def test_package_that_a_later_layer_removed_is_not_listed(tmp_path: Path) -> None:
    _, before = sbom_of(tmp_path, service_image())
    assert "deb:libc6@2.41-12" in components(before)
    _, after = sbom_of(tmp_path, service_image(), {"/var/lib/dpkg/status.d/.wh.libc6": ""})
    assert "deb:libc6@2.41-12" not in components(after)


def test_same_image_gives_the_same_bytes_and_another_one_another_serial_number(
    tmp_path: Path,
) -> None:
    first, document = sbom_of(tmp_path, service_image())
    second, _ = sbom_of(tmp_path, service_image())
    assert first.text() == second.text() == first.text()
    _, other = sbom_of(tmp_path, service_image(), {"one/more": "file"})
    assert other["serialNumber"] != document["serialNumber"]
    assert document["metadata"]["timestamp"] == CREATED.replace("Z", "+00:00")


def test_image_id_is_a_property_of_the_root(tmp_path: Path) -> None:
    identity = save_image(tmp_path / "image.tar", service_image())
    _, document = sbom_of(tmp_path, service_image())
    properties = document["metadata"]["component"]["properties"]
    assert {"name": "image:id", "value": identity} in properties


def graph(document: dict[str, Any]) -> dict[str, set[str]]:
    return {one["ref"]: set(one.get("dependsOn", ())) for one in document["dependencies"]}


def test_dependencies_follow_requirements_that_hold_with_the_extras_asked_for(
    tmp_path: Path,
) -> None:
    service = distribution("orders", "0.1.0", "Requires-Dist: example-lib[fast]>=2")
    library = distribution(
        "example-lib",
        "2.1",
        "Requires-Dist: accelerator; extra == 'fast' and python_version >= '3.13'",
        "Requires-Dist: idle; extra == 'other'",
        "Requires-Dist: windows-only; sys_platform == 'win32'",
        "Requires-Dist: not-installed",
    )
    others = [distribution(name, "1") for name in ("accelerator", "idle", "windows-only")]
    _, document = sbom_of(tmp_path, service_image(), service, library, *others)
    edges = graph(document)
    assert edges["python:orders@0.1.0"] == {
        "python:example-lib@2.1",
        "cpython@3.13.5",
        "os:debian@13",
    }
    assert edges["python:example-lib@2.1"] == {"python:accelerator@1"}
    assert edges["python:idle@1"] == set()
    assert edges["os:debian@13"] == {"deb:libc6@2.41-12", "deb:libgcc-s1@14.2.0-19"}
    assert edges["deb:libc6@2.41-12"] == {"deb:libgcc-s1@14.2.0-19"}


def test_what_a_wheel_bundles_stands_inside_its_distribution(tmp_path: Path) -> None:
    inner = {
        "bomFormat": "CycloneDX",
        "components": [
            {
                "name": "openssl",
                "version": "4.0.3",
                "purl": "pkg:generic/openssl@4.0.3",
                "hashes": [{"alg": "SHA-256", "content": "ab" * 32}],
                "licenses": [{"expression": "Apache-2.0 OR MIT"}],
            },
            {"name": "without-anything"},
        ],
    }
    folder = "example_lib-2.1.dist-info/sboms"
    files = {f"{folder}/one.cdx.json": json.dumps(inner), f"{folder}/two.spdx.json": "{}"}
    library = distribution("example-lib", "2.1", files=EXAMPLE_LIB | files)
    sbom, document = sbom_of(tmp_path, service_image(), library)
    assert sbom.warnings("uv.lock") == []
    bundled = components(document)["python:example-lib@2.1"]["components"]
    assert {one["name"] for one in bundled} == {"openssl", "without-anything"}
    (openssl,) = (one for one in bundled if one["name"] == "openssl")
    assert openssl["purl"] == "pkg:generic/openssl@4.0.3"
    assert openssl["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert openssl["licenses"] == [{"expression": "Apache-2.0 OR MIT"}]
    with pytest.raises(SupplyChainError, match=r"one\.cdx\.json of the image is no SBOM"):
        sbom_of(tmp_path, service_image(), {f"{SITE_PACKAGES}/{folder}/one.cdx.json": "not JSON"})


def test_sqlite_inside_apsw_is_listed(tmp_path: Path) -> None:
    _, document = sbom_of(tmp_path, service_image(), distribution("apsw", "3.54.1.0"))
    (sqlite,) = components(document)["python:apsw@3.54.1.0"]["components"]
    assert (sqlite["name"], sqlite["version"]) == ("sqlite", "3.54.1")
    assert sqlite["cpe"] == "cpe:2.3:a:sqlite:sqlite:3.54.1:*:*:*:*:*:*:*"


def test_licences_are_read_from_metadata_and_copyright_files(tmp_path: Path) -> None:
    _, document = sbom_of(
        tmp_path,
        service_image(),
        distribution("compound", "1", "License-Expression: MIT OR Apache-2.0"),
        distribution("named", "1", "License: Custom terms"),
        distribution("classified", "1", "Classifier: License :: OSI Approved :: BSD License"),
        {
            "/usr/share/doc/libc6/copyright": "Format: x\n\nFiles: *\nLicense: LGPL-2.1+\n\n"
            "Files: a\nLicense: GPL-2+\n\nLicense: GPL-2+\n terms\n",
            "/usr/share/doc/libgcc-s1": ("link", "gcc-14-base"),
            "/usr/share/doc/gcc-14-base/copyright": "Prose, not made for machines.\nLicense: no\n",
        },
    )
    found = {ref: one.get("licenses") for ref, one in components(document).items()}
    assert found["python:compound@1"] == [{"expression": "MIT OR Apache-2.0"}]
    assert found["python:named@1"] == [{"license": {"name": "Custom terms"}}]
    assert found["python:classified@1"] == [{"license": {"name": "BSD License"}}]
    assert found["deb:libc6@2.41-12"] == [
        {"license": {"name": "GPL-2+"}},
        {"license": {"name": "LGPL-2.1+"}},
    ]
    assert found["deb:libgcc-s1@14.2.0-19"] is None


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("/usr/lib/os-release", "no /etc/os-release"),
        ("/app/.venv/pyvenv.cfg", "no pyvenv.cfg"),
        (f"{SITE_PACKAGES}/orders-0.1.0.dist-info/METADATA", "orders"),
    ],
)
def test_image_of_something_else_is_refused(tmp_path: Path, removed: str, message: str) -> None:
    files = service_image()
    del files[removed]
    with pytest.raises(SupplyChainError, match=message):
        sbom_of(tmp_path, files)


def test_image_with_two_environments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SupplyChainError, match=r"has 2 pyvenv\.cfg"):
        sbom_of(tmp_path, service_image(), {"/other/pyvenv.cfg": "version_info = 3.13.5\n"})


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        (None, "run `uv lock`"),
        ("[", "no lock file of uv"),
        ("version = 1\n", "no lock file of uv"),
        ('[[package]]\nname = "x"\nversion = "1"\nsource = { registry = "r" }\n', "no lock file"),
    ],
)
def test_lock_file_that_is_missing_or_none_is_refused(
    tmp_path: Path, lock: str | None, message: str
) -> None:
    path = tmp_path / "uv.lock"
    if lock is not None:
        path.write_text(lock, "utf-8")
    with pytest.raises(SupplyChainError, match=message):
        Lock.read(path)
