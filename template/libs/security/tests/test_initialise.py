"""``init`` makes a key once, and never beside data that another key sealed."""

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from service_security import _files as files_of_the_library
from service_security._files import make_private_folder
from service_security.errors import (
    ConfigurationError,
    KeyUnavailableError,
    StoreUnavailableError,
    WrongKeyError,
)
from service_security.keys import Envelope, initialise, open_master_key
from service_security.keys.initialise import Initialised
from service_security.keys.provider import WrappingKey
from service_security.secret_bytes import SecretBytes


def _paths(folder: Path) -> tuple[Path, Path]:
    return folder / "data" / "envelope.json", folder / "secrets" / "service.key"


def _source(folder: Path) -> str:
    return f"file:{_paths(folder)[1]}"


def _init(folder: Path, *, data: bool = False) -> Initialised:
    return initialise(_paths(folder)[0], _source(folder), holds_encrypted_data=lambda: data)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_makes_both_files_closed_to_others(tmp_path: Path) -> None:
    made = _init(tmp_path)
    assert (made.created, made.passed_over, made.has_recovery) == (True, (), False)
    assert str(made.provider) == _source(tmp_path)
    envelope, key_file = _paths(tmp_path)
    assert sorted(_files(tmp_path)) == ["data/envelope.json", "secrets/service.key"]
    assert key_file.stat().st_size == 32
    for path in (envelope, key_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    open_master_key(envelope, _source(tmp_path)).close()


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    _init(tmp_path)
    before = _files(tmp_path)
    assert not _init(tmp_path).created
    assert _files(tmp_path) == before


def test_two_services_get_two_keys(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _init(tmp_path / name)
    assert _files(tmp_path / "one") != _files(tmp_path / "two")


def test_an_envelope_whose_key_is_lost_is_not_replaced(tmp_path: Path) -> None:
    _init(tmp_path)
    envelope, key_file = _paths(tmp_path)
    key_file.unlink()
    before = envelope.read_bytes()
    with pytest.raises(KeyUnavailableError):
        _init(tmp_path)
    assert envelope.read_bytes() == before
    assert not key_file.exists()


def test_an_envelope_of_another_key_is_not_replaced(tmp_path: Path) -> None:
    _init(tmp_path)
    _, key_file = _paths(tmp_path)
    key_file.write_bytes(bytes(32))
    before = _files(tmp_path)
    with pytest.raises(WrongKeyError):
        _init(tmp_path)
    assert _files(tmp_path) == before


def test_a_dangling_link_is_not_taken_for_a_free_place(tmp_path: Path) -> None:
    envelope, _ = _paths(tmp_path)
    envelope.parent.mkdir()
    envelope.symlink_to(tmp_path / "unmounted" / "envelope.json")
    with pytest.raises(KeyUnavailableError):
        _init(tmp_path)
    assert not (tmp_path / "secrets").exists()


def test_encrypted_data_without_an_envelope_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="A new key could not read"):
        _init(tmp_path, data=True)
    assert not _files(tmp_path)


def test_data_that_cannot_be_looked_at_counts_as_data(tmp_path: Path) -> None:
    def unreachable() -> bool:
        raise StoreUnavailableError("the volume is not mounted")

    with pytest.raises(StoreUnavailableError):
        initialise(_paths(tmp_path)[0], _source(tmp_path), holds_encrypted_data=unreachable)
    assert not _files(tmp_path)


def test_an_interrupted_init_goes_on_with_its_key(tmp_path: Path) -> None:
    _init(tmp_path)
    envelope, key_file = _paths(tmp_path)
    envelope.unlink()
    key = key_file.read_bytes()
    assert _init(tmp_path).created
    assert key_file.read_bytes() == key


def test_a_key_file_that_is_there_is_read_and_nothing_is_written_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder may be one that can only be read."""
    _, key_file = _paths(tmp_path)
    key_file.parent.mkdir()
    key_file.write_bytes(key := bytes(range(32)))
    key_file.chmod(0o400)

    def refused(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr("service_security.keys.key_file.create_whole", refused)
    assert _init(tmp_path).created
    assert key_file.read_bytes() == key


def test_a_bad_key_file_leaves_no_envelope(tmp_path: Path) -> None:
    envelope, key_file = _paths(tmp_path)
    key_file.parent.mkdir()
    key_file.write_bytes(b"not a key")
    key_file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="holds 9 bytes"):
        _init(tmp_path)
    assert not envelope.exists()
    assert key_file.read_bytes() == b"not a key"


def test_a_container_secret_is_used_and_never_made(tmp_path: Path) -> None:
    envelope, secret = _paths(tmp_path)
    source = f"secret:{secret}"
    with pytest.raises(KeyUnavailableError):
        initialise(envelope, source, holds_encrypted_data=lambda: False)
    assert not _files(tmp_path)
    secret.parent.mkdir()
    secret.write_bytes(bytes(range(32)))
    secret.chmod(0o444)
    assert initialise(envelope, source, holds_encrypted_data=lambda: False).created
    assert sorted(_files(tmp_path)) == ["data/envelope.json", "secrets/service.key"]
    open_master_key(envelope, source).close()


def test_the_envelope_on_disk_is_opened_once_before_it_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Envelope.create
    other = WrappingKey(SecretBytes.generate())
    monkeypatch.setattr(
        Envelope, "create", lambda master, keys: create(master, dict.fromkeys(keys, other))
    )
    with pytest.raises(WrongKeyError):
        _init(tmp_path)


def test_files_and_their_names_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115 - as text
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    _init(tmp_path)
    names = [Path(path).relative_to(tmp_path).as_posix() for path in synced]
    assert names == [
        *(".", "."),  # the names of the two folders
        *("secrets/.service.key.new", "secrets", "data/.envelope.json.new", "data"),
    ]


def test_the_names_of_new_folders_are_synced_from_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("service_security._files.sync_folder", synced.append)
    for _ in range(2):  # the second time they are there
        make_private_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_what_a_killed_init_left_over_is_removed(tmp_path: Path) -> None:
    """It may be a second copy of the key."""
    for path in _paths(tmp_path):
        path.parent.mkdir()
        path.with_name(f".{path.name}.new").write_bytes(b"left over")
    _init(tmp_path)
    assert sorted(_files(tmp_path)) == ["data/envelope.json", "secrets/service.key"]


def test_the_second_name_of_a_key_that_a_killed_init_left_is_removed(tmp_path: Path) -> None:
    """It died between giving the key file its name and taking the draft's away."""
    _, key_file = _paths(tmp_path)
    _init(tmp_path)
    _paths(tmp_path)[0].unlink()
    os.link(key_file, draft := key_file.with_name(".service.key.new"))
    _init(tmp_path)
    assert not draft.exists()
    assert key_file.stat().st_nlink == 1


@pytest.mark.parametrize(
    "place",
    [
        *("data/envelope.json", "data/../data/envelope.json", "link/x", "data/.envelope.json.new"),
        *("data/envelope.json.next", "data/envelope.json.previous", "data/envelope.json.lock"),
        *("data/records.db", "data/records.db-wal", "data/records.db.keys-lock"),
    ],
)
def test_a_place_of_the_services_own_files_cannot_be_the_key_file(
    tmp_path: Path, place: str
) -> None:
    envelope, _ = _paths(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "x").symlink_to(envelope)
    with pytest.raises(ConfigurationError, match="cannot be the key file"):
        initialise(envelope, f"file:{tmp_path / place}", holds_encrypted_data=lambda: False)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("place", ["data/service.key", "elsewhere/envelope.json.next"])
def test_control_other_places_can_be_the_key_file(tmp_path: Path, place: str) -> None:
    source = f"file:{tmp_path / place}"
    assert initialise(_paths(tmp_path)[0], source, holds_encrypted_data=lambda: False).created


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(ConfigurationError, match="data cannot be created"):
        _init(tmp_path)


def _init_at_once(folder: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    files_of_the_library._PATIENCE = 60  # the machine may be busy with other things
    barrier.wait()
    _init(folder)


def test_processes_that_init_at_once_end_with_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        barrier = context.Barrier(4)
        processes = [
            context.Process(target=_init_at_once, args=(folder, barrier)) for _ in range(4)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
        assert sorted(_files(folder)) == ["data/envelope.json", "secrets/service.key"]
        open_master_key(_paths(folder)[0], _source(folder)).close()
