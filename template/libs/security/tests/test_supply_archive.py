"""An archive of an image is read as the engine would lay it out, or refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from image_maker import read_parts, save_image, write_parts
from supply_chain import SupplyChainError
from supply_chain.image_archive import Image


def everything(_: str) -> bool:
    return True


@pytest.mark.parametrize("compressed", [False, True])
def test_identity_and_files_are_those_that_were_saved(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "image.tar"
    saved = save_image(
        path,
        {"etc": ("folder", ""), "etc/one": "1", "etc/link": ("link", "one")},
        {"./etc/two": "2", "etc/again": ("hard", "etc/two")},
        compressed=compressed,
    )
    image = Image.read(path, everything)
    assert image.identity == saved
    assert image.names == ("orders:latest",)
    assert image.architecture == "amd64"
    assert set(image.files) == {"/etc/one", "/etc/link", "/etc/two", "/etc/again"}
    assert image.text("/etc/one") == image.text("/etc/link") == "1"
    assert image.text("/etc/two") == image.text("/etc/again") == "2"
    for name, content in (("one", b"1"), ("two", b"2"), ("again", b"2")):
        file = image.files[f"/etc/{name}"]
        assert (file.size, file.sha256) == (1, hashlib.sha256(content).digest())
    assert image.files["/etc/link"].sha256 == b""


def test_content_is_kept_only_where_it_is_wanted(tmp_path: Path) -> None:
    save_image(tmp_path / "image.tar", {"wanted": "1", "other": "2"})
    image = Image.read(tmp_path / "image.tar", lambda path: path == "/wanted")
    assert image.text("/wanted") == "1"
    assert image.text("/other") is None
    assert image.files["/other"].sha256 == hashlib.sha256(b"2").digest()


def test_later_layer_replaces_and_hides_what_earlier_ones_have(tmp_path: Path) -> None:
    save_image(
        tmp_path / "image.tar",
        {"a/one": "1", "a/two": "1", "b/deep/three": "1", "c/four": "1", "d/five": "1", "e": "1"},
        {
            "a/.wh.one": "",
            "a/two": "2",
            ".wh.b": "",
            "c/.wh..wh..opq": "",
            "c/new": "2",
            "d": ("link", "e"),
        },
    )
    image = Image.read(tmp_path / "image.tar", everything)
    assert set(image.files) == {"/a/two", "/c/new", "/d", "/e"}
    assert image.text("/a/two") == "2"
    assert image.text("/d") == "1"


def test_links_are_followed_through_folders_and_out_of_circles(tmp_path: Path) -> None:
    save_image(
        tmp_path / "image.tar",
        {
            "doc/gcc/copyright": "terms",
            "doc/libgcc": ("link", "gcc"),
            "short": ("link", "/doc/../doc/libgcc"),
            "here": ("link", "there"),
            "there": ("link", "here"),
        },
    )
    image = Image.read(tmp_path / "image.tar", everything)
    assert image.text("/doc/libgcc/copyright") == "terms"
    assert image.text("/short/copyright") == "terms"
    with pytest.raises(SupplyChainError, match="circle"):
        image.text("/here")


def flip(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(parts: dict[str, bytes]) -> None:
        content = bytearray(parts[name])
        content[600 if name == "blobs/0" else -3] ^= 1
        parts[name] = bytes(content)

    return change


def drop(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda parts: parts.__delitem__(name)


def lose_a_layer(parts: dict[str, bytes]) -> None:
    (entry,) = json.loads(parts["manifest.json"])
    entry["Layers"] = entry["Layers"][:1]
    parts["manifest.json"] = json.dumps([entry]).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip("blobs/0"), "Layer sha256:[0-9a-f]{64} of the image is not what"),
        (flip("blobs/config"), "no whole archive|of the image is not what"),
        (drop("blobs/1"), "no blobs/1"),
        (drop("manifest.json"), "no manifest.json"),
        (lose_a_layer, "does not have the layers"),
    ],
)
def test_archive_whose_parts_do_not_belong_together_is_refused(
    tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    path = tmp_path / "image.tar"
    save_image(path, {"one": "1" * 100}, {"two": "2"})
    parts = read_parts(path)
    write_parts(path, parts)
    Image.read(path)  # control: taken apart and put together, it is still one
    change(parts)
    write_parts(path, parts)
    with pytest.raises(SupplyChainError, match=message):
        Image.read(path)


def test_archive_of_several_images_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "image.tar", {"one": "1"}, images=2)
    with pytest.raises(SupplyChainError, match="holds 2 images"):
        Image.read(tmp_path / "image.tar")


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\0" * 10_240])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.tar").write_bytes(content)
    with pytest.raises(SupplyChainError, match=r"image\.tar|manifest\.json"):
        Image.read(tmp_path / "image.tar")
