"""``doctor``: each check where it finds something, and where it does not."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from service_folders import (
    DATABASE,
    ENVELOPE,
    KEY_FILE,
    NEXT,
    PHRASE,
    PREVIOUS,
    SOURCE,
    Output,
    files,
    into_empty_folder,
    make_service,
    open_database,
    run,
)
from service_security import findings, process
from service_security.cli import main
from service_security.file_systems import MOUNTS, NETWORK, file_system_of
from service_security.findings import Finding
from service_security.layout import DataFolder
from service_security.store import SecureDb
from service_security.store.kind import PLAIN_TABLE

FOLDER = DataFolder(Path("data"))
posix = pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into_empty_folder(tmp_path, monkeypatch)


@pytest.fixture
def service(capsys: Output) -> Output:
    make_service(3)
    with open_database() as store:
        store.insert(b"in the", b"log")
    capsys.readouterr()
    return capsys


def _findings(output: Output, *options: str) -> list[dict[str, str]]:
    output.readouterr()
    status = main(["doctor", "--json", *options])
    shown = output.readouterr()
    assert shown.err == ""
    found: list[dict[str, str]] = json.loads(shown.out)["findings"]
    assert status == bool(found)
    for finding in found:
        assert finding.keys() == {"check", "problem", "action"}
        assert finding["problem"].endswith(".")
        assert finding["action"]
    return found


def _only(output: Output, check: str, *texts: str, options: tuple[str, ...] = ()) -> None:
    """Expect one finding, with those texts in it."""
    found = _findings(output, *options)
    assert [finding["check"] for finding in found] == [check], found
    for text in texts:
        assert text in found[0]["problem"] + " " + found[0]["action"]


def test_nothing_is_found_with_a_service_that_is_well_and_nothing_is_changed(
    service: Output,
) -> None:
    """The control of every check that follows."""
    before = files()
    assert _findings(service) == []
    assert files() == before
    assert main(["doctor"]) == 0
    assert service.readouterr().out.startswith("Nothing is wrong with the files, the key,")


def test_a_finding_is_a_line_what_is_wrong_and_a_line_what_to_do(service: Output) -> None:
    ENVELOPE.chmod(0o644)
    DATABASE.chmod(0o640)
    assert main(["doctor"]) == 1
    assert service.readouterr().out == (
        "Others may read or write data/records.db (mode 0640).\n"
        "    Run: chmod 600 data/records.db\n"
        "Others may read or write data/envelope.json (mode 0644).\n"
        "    Run: chmod 600 data/envelope.json\n"
        "2 findings.\n"
    )


# Files


@posix
@pytest.mark.parametrize(
    "name",
    [
        "records.db",
        "records.db-wal",
        "records.db-shm",
        "records.db.keys-lock",
        "envelope.json",
        "envelope.json.lock",
        "others.db",
    ],
)
@pytest.mark.parametrize("mode", [0o640, 0o602])
def test_a_file_that_others_may_use_is_found(service: Output, name: str, mode: int) -> None:
    with open_database():
        path = Path("data", name)
        path.touch()
        if name == "others.db":
            SecureDb.open("data/copy", bytes(32)).close()
            Path("data/copy").replace(path)
        path.chmod(mode)
        _only(service, "files", f"Others may read or write {path} (mode 0{mode:o})", "chmod 600")
        for each in Path("data").iterdir():  # SQLite gives the log the mode of the database
            each.chmod(0o600)
        assert _findings(service) == []


@posix
def test_a_name_with_a_line_end_hides_no_file(service: Output) -> None:
    Path("data/a copy\nof records.db").touch(mode=0o644)
    assert main(["doctor"]) == 1
    assert "of records.db (mode 0644)" in service.readouterr().out


@posix
def test_a_file_that_is_not_ours_may_have_any_mode(service: Output) -> None:
    Path("data/notes.txt").touch(mode=0o666)
    Path("data/a folder.db").mkdir(mode=0o777)
    assert _findings(service) == []


@posix
def test_a_path_is_quoted_in_what_to_do(service: Output) -> None:
    Path("data").rename("the data")
    Path("the data/records.db").chmod(0o644)
    _only(service, "files", "chmod 600 'the data/records.db'", options=("--data-dir", "the data"))


@posix
@pytest.mark.parametrize(("mode", "found"), [(0o700, False), (0o2770, False), (0o777, True)])
def test_a_folder_that_everybody_may_write_is_found(
    service: Output, mode: int, found: bool
) -> None:
    Path("data").chmod(mode)
    assert [finding["check"] for finding in _findings(service)] == ["files"] * found


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may chown")
def test_a_file_of_another_user_is_found(service: Output) -> None:
    os.chown(ENVELOPE, 65532, 65532)
    _only(service, "files", "belongs to user 65532, and records.db to user 0", "chown 0 data/env")
    for path in Path("data").iterdir():
        os.chown(path, 65532, 65532)
    assert _findings(service) == []


def test_a_file_of_another_user_is_found_without_being_root(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        status = real(path, **options)
        if path.name == "envelope.json":
            fields = list(status)
            fields[4] += 1
            return os.stat_result(fields)
        return status

    monkeypatch.setattr(Path, "stat", stat)
    assert [finding.check for finding in findings.files(FOLDER)] == ["files"]
    del service


def test_a_missing_data_folder_is_found(capsys: Output) -> None:
    _only(capsys, "files", "There is no data folder data", "init")


def test_a_new_service_is_told_to_make_its_key(capsys: Output) -> None:
    Path("data").mkdir(mode=0o700)
    _only(capsys, "key", "There is no key envelope data/envelope.json", "init")


def test_a_folder_that_may_not_be_read_is_an_error(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert main(["doctor"]) == 2
    shown = service.readouterr()
    assert shown.out == ""
    assert "data cannot be looked at: Permission denied. Run doctor as the user" in shown.err


# Left by commands


@pytest.mark.parametrize(
    ("path", "check", "sentence"),
    [
        (NEXT, "envelope", "a change of the master key was interrupted"),
        (PREVIOUS, "envelope", "single fields of an old master key"),
        (Path("data/.envelope.json.new"), "envelope", "left by a command"),
        (Path("data/.envelope.json.next.new"), "envelope", "left by a command"),
        (Path("secrets/.service.key.new"), "key", "left by a command"),
        (Path("data/records.db.importing"), "database", "interrupted db import"),
        (Path("data/records.db.exporting"), "database", "interrupted db export"),
        (Path("data/records.db.replaced"), "database", "interrupted db import or db export"),
    ],
    ids=str,
)
def test_what_an_interrupted_command_left_is_found(
    service: Output, path: Path, check: str, sentence: str
) -> None:
    path.touch(mode=0o600)
    _only(service, check, sentence, str(path))
    path.unlink()
    assert _findings(service) == []


# The key


@posix
def test_a_key_file_that_others_may_read_is_found(service: Output) -> None:
    KEY_FILE.chmod(0o640)
    _only(service, "key", "Others may read or write the key file", "chmod 600")


@posix
@pytest.mark.parametrize(("mode", "found"), [(0o755, False), (0o1777, False), (0o777, True)])
def test_a_key_file_that_everybody_may_replace_is_found(
    service: Output, mode: int, found: bool
) -> None:
    KEY_FILE.parent.chmod(mode)
    assert [finding["check"] for finding in _findings(service)] == ["key"] * found


@pytest.mark.parametrize(("where", "found"), [("data/service.key", True), ("near/key", False)])
def test_a_key_beside_the_records_is_found(service: Output, where: str, found: bool) -> None:
    assert main(["keys", "reseal", "--to", f"file:{where}"]) == 0
    shown = _findings(service, "--key-source", f"file:{where}")
    assert [finding["check"] for finding in shown] == ["key"] * found
    assert all("a copy of that has the records and the key" in f["problem"] for f in shown)


def test_a_key_in_the_environment_is_found(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_WRAPPING_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    monkeypatch.setenv("SERVICE_KEY_SOURCE", "env:SERVICE_WRAPPING_KEY")
    assert main(["keys", "reseal", "--key-source", SOURCE, "--to", "env:SERVICE_WRAPPING_KEY"]) == 0
    _only(service, "key", "environment variable (env:SERVICE_WRAPPING_KEY)", "keys reseal --to")


def test_a_missing_or_wrong_key_is_found(service: Output) -> None:
    key = KEY_FILE.read_bytes()
    KEY_FILE.unlink()
    _only(service, "key", "The key file secrets/service.key is missing", "Put a copy")
    KEY_FILE.write_bytes(bytes(32))
    KEY_FILE.chmod(0o600)
    _only(service, "key", "does not open data/envelope.json", "put back the two")
    KEY_FILE.write_bytes(key)
    assert _findings(service) == []


def test_a_source_that_is_none_is_found(service: Output) -> None:
    _only(service, "key", "does not say where the key is", options=("--key-source", "nonsense"))


def test_sources_are_tried_where_there_is_no_key_yet(capsys: Output) -> None:
    Path("data").mkdir(mode=0o700)
    source = "secret:missing,env:NOT_SET"
    problems = [f["problem"] for f in _findings(capsys, "--key-source", source)]
    assert any("missing is missing" in problem for problem in problems)
    assert any("NOT_SET is not set" in problem for problem in problems)
    source = f"secret:missing,{SOURCE}"  # the second one would do
    _only(capsys, "key", "There is no key envelope", options=("--key-source", source))


# The envelope


def test_a_changed_envelope_is_found(service: Output) -> None:
    ENVELOPE.write_bytes(
        ENVELOPE.read_bytes().replace(b'\\"generation\\": 1', b'\\"generation\\": 2')
    )
    _only(service, "key", "The key envelope data/envelope.json cannot be used", "changed after")


def test_an_envelope_without_a_recovery_phrase_is_found(capsys: Output) -> None:
    make_service(3, "--no-recovery")
    _only(capsys, "envelope", "has no recovery phrase", "keys recovery-phrase")
    assert main(["keys", "recovery-phrase", "--phrase-file", str(PHRASE)]) == 0
    assert _findings(capsys) == []


# The database and its keys


def _sql(statement: str) -> None:
    with closing(apsw.Connection(str(DATABASE))) as connection:
        connection.execute(statement)


def _no_database() -> None:
    for path in Path("data").glob("records.db*"):
        path.unlink()


def test_plain_records_are_found(service: Output) -> None:
    _no_database()
    assert _findings(service) == []
    _sql(PLAIN_TABLE)
    DATABASE.chmod(0o600)
    _only(service, "database", "is plain records, not an encrypted store", "db import")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda: DATABASE.write_bytes(b"damaged" * 1000), "damaged or is no database"),
        (lambda: _sql("UPDATE header SET mac = randomblob(32)"), "header is damaged"),
        (lambda: _sql("UPDATE header SET master_id = randomblob(32)"), "not the one of"),
    ],
    ids=["no database", "damaged header", "another master key"],
)
def test_a_database_that_does_not_open_is_found(
    service: Output, damage: Callable[[], None], sentence: str
) -> None:
    damage()
    _only(service, "database", sentence)


def test_records_of_a_key_that_is_not_there_are_found(service: Output) -> None:
    _sql("UPDATE record SET key_id = 9 WHERE id = 1")
    _only(service, "rotation", "1 records name a key that the keyset does not have", "db verify")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let commands find another time."""
    import time

    real = SecureDb.open.__func__  # type: ignore[attr-defined]

    def set_days(days: float) -> None:
        def opened(cls: Any, *arguments: Any, **options: Any) -> SecureDb:
            seconds = timedelta(days=days).total_seconds()
            store: SecureDb = real(cls, *arguments, clock=lambda: time.time() + seconds, **options)
            return store

        monkeypatch.setattr(SecureDb, "open", classmethod(opened))

    return set_days


def test_a_rotation_that_is_due_is_found(service: Output, later: Callable[[float], None]) -> None:
    later(89)
    assert _findings(service) == []
    later(91)
    _only(service, "rotation", "was due to be rotated", "keys rotate")
    assert _findings(service, "--interval", "off") == []
    assert _findings(service, "--interval", "100") == []


def test_an_unfinished_rotation_is_found(service: Output) -> None:
    class StopError(Exception):
        pass

    def stop(_step: object) -> None:
        raise StopError

    with open_database() as store, pytest.raises(StopError):
        store.rotation().run(on_step=stop)
    _only(service, "rotation", "A rotation of the keys of data/records.db is unfinished")
    assert main(["keys", "rotate"]) == 0
    assert _findings(service) == []


def test_a_retired_key_that_was_not_destroyed_is_found(
    service: Output, later: Callable[[float], None]
) -> None:
    assert main(["keys", "rotate"]) == 0
    assert _findings(service) == []
    later(1.1)
    _only(service, "rotation", "has to be destroyed: key 1 is still there", "--if-due")
    assert main(["keys", "rotate", "--if-due"]) == 0
    assert _findings(service) == []


def test_a_log_that_was_not_emptied_is_found(
    service: Output, later: Callable[[float], None]
) -> None:
    assert main(["keys", "rotate"]) == 0
    later(1.1)
    with open_database() as reader, reader.snapshot(), open_database() as store:
        assert store.rotation().tend(interval=None).log_emptied is False
        _only(service, "rotation", "the log may still hold what a destroyed key had sealed")
    assert main(["keys", "rotate", "--if-due"]) == 0
    assert _findings(service) == []


# Memory


def test_memory_that_cannot_be_locked_is_found(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_can_lock_memory", lambda: False)
    _only(service, "memory", "Keys cannot be locked into memory", "Raise the limit")


def test_core_dumps_that_are_allowed_are_found(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_CORE_DUMPS", "Allow")
    _only(service, "memory", "SERVICE_CORE_DUMPS=allow is set")
    monkeypatch.setenv("SERVICE_CORE_DUMPS", "forbid")
    assert _findings(service) == []


def test_core_dumps_that_cannot_be_turned_off_are_found(
    service: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(process, "_set_not_dumpable", refuse)
    _only(service, "memory", "Core dumps cannot be turned off", "sandbox")


# File systems


MOUNTED = """\
22 27 0:21 / / rw,relatime - ext4 /dev/root rw
23 22 0:22 / /srv rw,relatime shared:1 master:2 - nfs4 server:/srv rw
24 23 0:23 / /srv/local rw - xfs /dev/sdb1 rw
25 22 0:24 / /srv\\040two rw - cifs //server/share rw
26 22 0:25 / /over rw - ext4 /dev/sdc1 rw
27 26 0:26 / /over rw - fuse.sshfs host:/ rw
28 22 0:27 / /tab\\011and\\134 rw - 9p host rw
a line that is none
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/home/data", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/data/not/there", "nfs4"),
        ("/srvdata", "ext4"),
        ("/srv/local/data", "xfs"),
        ("/srv two/data", "cifs"),
        ("/over/data", "fuse.sshfs"),
        ("/tab\tand\\/data", "9p"),
    ],
)
def test_the_file_system_is_the_one_that_is_mounted_closest(folder: str, kind: str) -> None:
    assert file_system_of(Path(folder), MOUNTED) == kind


def test_of_an_unknown_place_no_file_system_is_told() -> None:
    assert file_system_of(Path("/data"), "") == ""
    assert file_system_of(Path("/data"), "1 2 0:1 / /other rw - ext4 x rw\n") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the list is Linux's")
def test_the_file_system_of_this_machine_is_told(tmp_path: Path) -> None:
    mounts = MOUNTS.read_text()
    assert file_system_of(Path("/proc/self"), mounts) == "proc"
    assert file_system_of(tmp_path.resolve(), mounts) not in ("", "proc")


@pytest.mark.parametrize("kind", sorted(NETWORK))
def test_a_network_file_system_is_found(service: Output, tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"22 27 0:21 / {Path('data').resolve()} rw - {kind} server:/ rw\n")
    (found,) = findings.file_system(FOLDER, mounts)
    assert found.check == "file system"
    assert kind in found.problem
    del service


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "apfs"])
def test_a_local_file_system_is_not_found(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"22 27 0:21 / / rw - {kind} /dev/disk rw\n")
    assert not list(findings.file_system(FOLDER, mounts))
    assert not list(findings.file_system(FOLDER, tmp_path / "there is no such list"))


def test_the_types_that_have_to_be_known_are() -> None:
    known = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre"}
    assert known | {"afs", "fuse.glusterfs"} <= NETWORK


def test_a_link_is_followed_to_its_file_system(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "link").symlink_to("mounted")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"22 27 0:21 / {tmp_path.resolve()}/mounted rw - nfs server:/ rw\n")
    assert len(list(findings.file_system(DataFolder(tmp_path / "link"), mounts))) == 1


# The command


def test_a_message_of_one_sentence_is_a_finding_too() -> None:
    assert Finding.of("key", "It is lost") == Finding(
        "key", "It is lost.", "Then run doctor again."
    )
    assert Finding.of("key", "It is. Do this. Or that.").action == "Do this. Or that."


def test_every_file_that_the_library_makes_is_looked_at(service: Output) -> None:
    assert main(["keys", "rotate", "--master", "--phrase-file", "new"]) == 0
    with open_database():
        names = {path.name for path in Path("data").iterdir()}
    assert {"records.db-wal", "records.db.keys-lock", "envelope.json.lock"} < names
    assert not [name for name in names if not findings._OURS.fullmatch(name)]
    del service


@pytest.mark.usefixtures("service")
def test_runs_as_a_command() -> None:
    result = run("doctor", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"findings": []}
