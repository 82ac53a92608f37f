"""The key moves to another source, and at every moment one of the two opens the envelope."""

import base64
import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from failing_vfs import in_child
from service_security import _files
from service_security._files import locked
from service_security.cli import main
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    KeyUnavailableError,
    SecurityError,
    StoreUnavailableError,
    WrongKeyError,
)
from service_security.keys import Envelope, KeySource, initialise, open_keys, open_master_key
from service_security.keys.key_file import KeyFile
from service_security.keys.passphrase import DEFAULT_PROFILE, PROFILES, Profile
from service_security.keys.provider import KeyProvider, WrappingKey
from service_security.keys.recovery import RecoveryKey
from service_security.keys.reseal import change_recovery, lock_beside, reseal
from service_security.keys.service_keys import open_with, read_envelope
from service_security.secret_bytes import SecretBytes
from service_security.store.keys_lock import keys_held

ENVELOPE = Path("data/envelope.json")
OLD, NEW = "file:old.key", "file:new.key"

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and locks of POSIX")


@pytest.fixture(autouse=True)
def _in_a_folder_with_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEST_KEY", base64.b64encode(bytes(range(32, 64))).decode())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "delivered"))
    monkeypatch.setitem(PROFILES, DEFAULT_PROFILE, Profile(iterations=1, lanes=1, memory_cost=8))
    Path("delivered").mkdir()
    Path("delivered/key").write_bytes(bytes(range(64, 96)))
    Path("delivered/key").chmod(0o400)
    Path("delivered/phrase").write_text("correct horse battery staple\n")
    Path("delivered/phrase").chmod(0o400)


SOURCES = {
    "key-file": OLD,
    "another key file": NEW,
    "container-secret": "secret:delivered/key",
    "credential": "credential:key",
    "environment": "env:TEST_KEY",
    "passphrase": "passphrase:delivered/phrase",
}


def _init(source: str = OLD, recovery: SecretBytes | None = None) -> bytes:
    """Make a service's key, and return it."""

    def copy() -> SecretBytes | None:
        if recovery is None:
            return None
        with recovery.view as view:
            return SecretBytes.copy_of(view)

    initialise(ENVELOPE, source, recovery=copy, holds_encrypted_data=lambda: False)
    return _master(source)


def _master(source: str) -> bytes:
    with open_master_key(ENVELOPE, source) as master, master.view as view:
        return bytes(view)


def _reseal(old: str, new: str) -> KeyProvider:
    with open_keys(ENVELOPE, old) as keys:
        return reseal(ENVELOPE, keys, KeySource.parse(new))


def _slots() -> list[str]:
    return list(read_envelope(ENVELOPE).slots)


def _drafts() -> list[str]:
    expected = (ENVELOPE, lock_beside(ENVELOPE))
    return [path.name for path in Path("data").iterdir() if path not in expected]


@pytest.mark.parametrize("new", SOURCES)
@pytest.mark.parametrize("old", SOURCES)
def test_the_key_moves_from_each_source_to_each_other(old: str, new: str) -> None:
    master = _init(SOURCES[old])
    before = read_envelope(ENVELOPE)
    assert str(_reseal(SOURCES[old], SOURCES[new])) == SOURCES[new]
    assert _master(SOURCES[new]) == master
    after = read_envelope(ENVELOPE)
    assert (after.envelope_id, after.master_id) == (before.envelope_id, before.master_id)
    assert after.generation == before.generation + 1
    assert len(_slots()) == 1
    assert ENVELOPE.stat().st_mode & 0o777 == 0o600
    assert _drafts() == []
    same = {"container-secret", "credential"}
    if old != new and not {old, new} <= same:
        with pytest.raises((ConfigurationError, WrongKeyError, KeyUnavailableError)):
            _master(SOURCES[old])


def test_a_list_is_refused_and_changes_nothing() -> None:
    _init()
    before = ENVELOPE.read_bytes()
    with pytest.raises(ConfigurationError, match="one source only"):
        _reseal(OLD, "env:TEST_KEY,file:new.key")
    assert ENVELOPE.read_bytes() == before
    assert not Path("new.key").exists()


@pytest.mark.parametrize(
    ("new", "kind"),
    [
        ("secret:missing", KeyUnavailableError),
        ("env:NOT_SET", KeyUnavailableError),
        ("passphrase:delivered/missing", KeyUnavailableError),
        ("file:data/envelope.json", ConfigurationError),
        ("file:envelope.json/x/new.key", SecurityError),
    ],
)
def test_a_source_that_gives_no_key_changes_nothing(new: str, kind: type[SecurityError]) -> None:
    _init()
    Path("envelope.json").write_text("a file where a folder is needed")
    before = ENVELOPE.read_bytes()
    with pytest.raises(kind):
        _reseal(OLD, new)
    assert ENVELOPE.read_bytes() == before
    _master(OLD)


class Fickle:
    """A provider that gives another key when it is asked again."""

    slot_type = "environment"
    gives_another = True

    def probe(self) -> None:
        """Do nothing."""

    def protect(self, known: Mapping[str, str] | None = None) -> WrappingKey:
        assert known is None
        return WrappingKey(SecretBytes.copy_of(bytes(range(32))))

    def unprotect(self, fields: Mapping[str, str]) -> WrappingKey:
        assert fields == {}
        return WrappingKey(
            SecretBytes.copy_of(bytes(range(self.gives_another, 32 + self.gives_another)))
        )

    def __str__(self) -> str:
        return "something fickle"


@pytest.mark.parametrize("gives_another", [True, False], ids=["fickle", "the control"])
def test_the_new_slot_is_opened_from_the_disk_before_the_old_one_goes(gives_another: bool) -> None:
    _init()
    before = ENVELOPE.read_bytes()
    provider = Fickle()
    provider.gives_another = gives_another
    to = KeySource("something fickle", (provider,))
    with open_keys(ENVELOPE, OLD) as keys:
        if gives_another:
            with pytest.raises(WrongKeyError, match=r"something fickle again.*left as it was"):
                reseal(ENVELOPE, keys, to)
            assert ENVELOPE.read_bytes() == before
            assert _drafts() == []
            _master(OLD)
        else:
            reseal(ENVELOPE, keys, to)
            assert _slots() == ["environment"]


@pytest.mark.parametrize("failing", ["a flipped bit", "the end is lost", "no more to be had"])
def test_what_the_disk_does_not_give_back_never_replaces_the_old(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    _init()
    before = ENVELOPE.read_bytes()
    read = Path.read_bytes

    def damaged(path: Path) -> bytes:
        contents = bytearray(read(path))
        if failing == "no more to be had":
            raise OSError(5, "Input/output error")
        if failing == "the end is lost":
            return bytes(contents[:-40])
        contents[200] ^= 1
        return bytes(contents)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", damaged)
        with pytest.raises((WrongKeyError, ConfigurationError)):
            _reseal(OLD, NEW)
    assert ENVELOPE.read_bytes() == before
    assert _drafts() == []
    _reseal(OLD, NEW)  # the control


def test_a_new_slot_with_another_master_key_never_replaces_the_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fault of our own, which would lose every record."""
    _init()
    before = ENVELOPE.read_bytes()

    def faulty(
        _: Envelope, __: SecretBytes, keys: Mapping[str, WrappingKey], **___: object
    ) -> Envelope:
        with SecretBytes.generate() as other:
            return Envelope.create(other, keys)

    with monkeypatch.context() as patch:
        patch.setattr(Envelope, "with_slots", faulty)
        with pytest.raises(WrongKeyError, match="left as it was"):
            _reseal(OLD, NEW)
    assert ENVELOPE.read_bytes() == before


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_envelope_that_was_edited_is_refused(when: str) -> None:
    _init()
    outer = json.loads(ENVELOPE.read_text())
    outer["body"] = outer["body"].replace('"generation": 1', '"generation": 7')
    with open_keys(ENVELOPE, OLD) as keys:
        ENVELOPE.write_text(json.dumps(outer))
        if when == "meanwhile":
            with pytest.raises(ConfigurationError, match="changed by another command"):
                reseal(ENVELOPE, keys, KeySource.parse(NEW))
    with pytest.raises(IntegrityError):
        _reseal(OLD, NEW)
    assert json.loads(ENVELOPE.read_text()) == outer


@pytest.mark.parametrize("place", [".envelope.json.new", "envelope.json.next", "records.db-wal"])
def test_a_key_does_not_move_to_the_place_of_a_file_of_the_services_own(place: str) -> None:
    _init()
    before = ENVELOPE.read_bytes()
    with pytest.raises(ConfigurationError, match="cannot be the key file"):
        _reseal(OLD, f"file:data/{place}")
    assert ENVELOPE.read_bytes() == before
    assert not Path("data", place).exists()
    _reseal(OLD, "file:data/service.key")  # the control


def test_an_envelope_that_was_replaced_on_a_failing_disk_is_not_said_to_be_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    master = _init()
    sync = _files.sync_folder

    def failing(folder: Path) -> None:
        if folder == ENVELOPE.parent:
            raise OSError(errno.EIO, "Input/output error")
        sync(folder)

    command = ["keys", "reseal", "--data-dir", "data", "--key-source", OLD, "--to", NEW]
    with monkeypatch.context() as patch:
        patch.setattr(_files, "sync_folder", failing)
        assert main(command) == 2
    said = capsys.readouterr().err
    assert "was replaced, but after a power failure the old one may be back" in said
    assert f"It opens with {NEW} now." in said
    assert _master(NEW) == master


def test_control_an_envelope_that_was_not_replaced_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    master = _init()

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(ConfigurationError, match="cannot be replaced"):
            _reseal(OLD, NEW)
    assert _master(OLD) == master
    assert _drafts() == []


@posix
def test_what_root_makes_belongs_to_the_user_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For ``sudo … keys recovery-phrase``. Of what was there before nothing is given away."""
    given: list[str] = []

    def noted(descriptor: int, user: int, group: int) -> None:
        status = ENVELOPE.stat()
        assert (user, group) == (status.st_uid, status.st_gid)
        given.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)  # noqa: PTH115

    _init("env:TEST_KEY")
    monkeypatch.setattr(os, "fchown", noted)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    _reseal("env:TEST_KEY", "passphrase:delivered/phrase")
    assert given == [], "control: any other user"
    lock_beside(ENVELOPE).unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for _ in range(2):
        _reseal("passphrase:delivered/phrase", "passphrase:delivered/phrase")
    assert given == ["envelope.json.lock", ".envelope.json.new", ".envelope.json.new"]


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root gives files away"
)
def test_after_root_the_service_still_reads_its_envelope_and_holds_its_lock() -> None:
    with SecretBytes.generate() as key, SecretBytes.generate() as other:
        _init("env:TEST_KEY", key)
        os.chown(ENVELOPE, 65534, 65533)
        with open_keys(ENVELOPE, "env:TEST_KEY") as keys:
            change_recovery(ENVELOPE, keys, other)
    database = Path("data/records.db")
    database.touch()
    os.chown(database, 65534, 65533)
    with keys_held(database):
        pass
    for path in (ENVELOPE, lock_beside(ENVELOPE), Path("data/records.db.keys-lock")):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_envelope_that_went_meanwhile_is_not_made_again() -> None:
    _init()
    with open_keys(ENVELOPE, OLD) as keys:
        ENVELOPE.unlink()
        with pytest.raises(KeyUnavailableError):
            reseal(ENVELOPE, keys, KeySource.parse(NEW))
    assert not ENVELOPE.exists()


def test_an_envelope_with_a_new_master_key_that_came_meanwhile_is_not_replaced() -> None:
    """Its generation is that of the first one again, so the number alone tells nothing."""
    _init()
    with open_keys(ENVELOPE, OLD) as keys, SecretBytes.generate() as master:
        new = Envelope.create(master, {keys.provider.slot_type: keys.wrapping}, after=keys.master)
        assert new.generation == keys.envelope.generation
        ENVELOPE.write_bytes(new.to_json())
        with pytest.raises(ConfigurationError, match="changed by another command meanwhile"):
            reseal(ENVELOPE, keys, KeySource.parse(NEW))
    assert ENVELOPE.read_bytes() == new.to_json()


def test_a_removed_slot_opens_nothing_and_an_old_copy_of_the_envelope_still_does() -> None:
    """What ``keys reseal`` says of itself: it revokes nothing. A new master key does."""
    master = _init()
    shutil.copy2(ENVELOPE, "copy.json")
    _reseal(OLD, "env:TEST_KEY")
    with pytest.raises(ConfigurationError, match="opens with env:"):
        _master(OLD)
    with open_master_key(Path("copy.json"), OLD) as old, old.view as view:
        assert bytes(view) == master


def test_slots_that_are_put_back_from_an_old_copy_are_refused() -> None:
    _init()
    old = json.loads(json.loads(ENVELOPE.read_text())["body"])
    _reseal(OLD, "env:TEST_KEY")
    outer = json.loads(ENVELOPE.read_text())
    body = json.loads(outer["body"])
    body["slots"] += old["slots"]
    outer["body"] = json.dumps(body)
    ENVELOPE.write_text(json.dumps(outer))
    for source in (OLD, "env:TEST_KEY"):
        with pytest.raises(IntegrityError, match="changed after it was written"):
            _master(source)


@posix
def test_while_another_command_changes_the_keys_none_does() -> None:
    _init()
    before = ENVELOPE.read_bytes()
    with locked(lock_beside(ENVELOPE), "busy"), pytest.raises(StoreUnavailableError, match="Wait"):
        _reseal(OLD, NEW)
    assert ENVELOPE.read_bytes() == before
    _reseal(OLD, NEW)


# The recovery phrase


def test_the_recovery_phrase_still_opens_after_a_reseal() -> None:
    with SecretBytes.generate() as phrase:
        master = _init(recovery=phrase)
        _reseal(OLD, "env:TEST_KEY")
        _reseal("env:TEST_KEY", "passphrase:delivered/phrase")
        assert _slots() == ["recovery", "passphrase"]
        with open_with(read_envelope(ENVELOPE), RecoveryKey(phrase)) as keys:
            assert bytes(keys.master.view) == master
            assert keys.recovery == phrase


def test_the_recovery_phrase_gives_a_service_a_key_again() -> None:
    with SecretBytes.generate() as phrase:
        master = _init(recovery=phrase)
        Path("old.key").unlink()
        with open_with(read_envelope(ENVELOPE), RecoveryKey(phrase)) as keys:
            reseal(ENVELOPE, keys, KeySource.parse(NEW))
        assert _master(NEW) == master
        assert _slots() == ["recovery", "key-file"]


def test_a_new_phrase_replaces_the_old_one_but_not_in_old_copies() -> None:
    with SecretBytes.generate() as old, SecretBytes.generate() as new:
        master = _init(recovery=old)
        shutil.copy2(ENVELOPE, "copy.json")
        with open_keys(ENVELOPE, OLD) as keys:
            change_recovery(ENVELOPE, keys, new)
        with open_with(read_envelope(ENVELOPE), RecoveryKey(new)) as keys:
            assert bytes(keys.master.view) == master
        with pytest.raises(WrongKeyError):
            open_with(read_envelope(ENVELOPE), RecoveryKey(old))
        with open_keys(ENVELOPE, OLD) as keys:
            assert keys.recovery == new
        with open_with(read_envelope(Path("copy.json")), RecoveryKey(old)) as keys:
            assert bytes(keys.master.view) == master


def test_a_service_without_a_phrase_gets_its_first_one() -> None:
    master = _init()
    with SecretBytes.generate() as phrase:
        with open_keys(ENVELOPE, OLD) as keys:
            assert keys.recovery is None
            change_recovery(ENVELOPE, keys, phrase)
        assert _slots() == ["key-file", "recovery"]
        assert _master(OLD) == master
        with open_with(read_envelope(ENVELOPE), RecoveryKey(phrase)) as keys:
            assert bytes(keys.master.view) == master


# Killed, and two at once

DEADLY = ("open", "fsync", "link", "unlink", "replace", "close", "mkdir", "lstat", "stat")


def _die_at(call: int, command: str) -> None:
    left = call

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return counted

    keys = open_keys(ENVELOPE, OLD) if command == "reseal" else None
    for name in DEADLY:
        setattr(os, name, dying(getattr(os, name)))
    if keys:
        reseal(ENVELOPE, keys, KeySource.parse(NEW))
    else:
        initialise(ENVELOPE, NEW, holds_encrypted_data=lambda: False)


def _killed_at(call: int, command: str) -> bool:
    """Run a command in a child that is killed at its n-th call of the system; tell whether so."""
    status = os.waitstatus_to_exitcode(in_child(Path(), lambda: _die_at(call, command)))
    assert status in (0, -signal.SIGKILL)
    return status != 0


@posix
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_killed_reseal_leaves_an_envelope_that_opens_with_one_of_the_two() -> None:
    master = _init()
    shutil.copytree("data", "as it was")
    opened: list[str] = []
    call = 0
    while True:
        call += 1
        was_killed = _killed_at(call, "reseal")
        envelope = read_envelope(ENVELOPE)  # is whole
        opens = OLD if envelope.generation == 1 else NEW
        assert _master(opens) == master
        opened.append(opens)
        if not was_killed:
            break
        _reseal(opens, NEW)  # goes on, and cleans up
        assert _master(NEW) == master
        assert _drafts() == []
        assert not Path(".new.key.new").exists()
        shutil.rmtree("data")
        shutil.copytree("as it was", "data")
        Path("new.key").unlink()
    assert call > 12, "control: it was killed at many calls"
    assert {OLD, NEW} == set(opened), "control: before the rename, and after it"
    assert opened == sorted(opened, key=[OLD, NEW].index)


@posix
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_killed_init_goes_on_and_leaves_no_second_copy() -> None:
    call = 0
    while True:
        call += 1
        was_killed = _killed_at(call, "init")
        if ENVELOPE.exists():
            _master(NEW)
        key = Path("new.key").read_bytes() if Path("new.key").exists() else None
        initialise(ENVELOPE, NEW, holds_encrypted_data=lambda: False)
        _master(NEW)
        if key:
            assert Path("new.key").read_bytes() == key
        assert not Path(".new.key.new").exists()
        assert Path("new.key").stat().st_nlink == 1
        if not was_killed:
            break
        shutil.rmtree("data")
        Path("new.key").unlink()
    assert call > 15, "control: it was killed at many calls"


def _reseal_at_once(folder: str, to: str, barrier: Barrier) -> None:
    os.chdir(folder)
    with open_keys(ENVELOPE, OLD) as keys:
        barrier.wait()
        try:
            reseal(ENVELOPE, keys, KeySource.parse(to))
        except (StoreUnavailableError, ConfigurationError):
            raise SystemExit(3) from None


@posix
def test_of_two_reseals_at_once_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    master = _init()
    for _ in range(3):
        shutil.rmtree("again", ignore_errors=True)
        shutil.copytree("data", "again/data")
        shutil.copy2("old.key", "again")
        barrier = context.Barrier(2)
        targets = ["file:one.key", "file:two.key"]
        arguments = [(str(tmp_path / "again"), to, barrier) for to in targets]
        processes = [context.Process(target=_reseal_at_once, args=each) for each in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        statuses = [process.exitcode for process in processes]
        assert sorted(statuses, key=str) == [0, 3]
        won = targets[statuses.index(0)]
        with open_master_key(Path("again/data/envelope.json"), won.replace(":", ":again/")) as key:
            assert bytes(key.view) == master


def test_every_key_is_wiped_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    _init()
    made: list[SecretBytes] = []
    init = SecretBytes.__init__

    def noted(self: SecretBytes, length: int = 32) -> None:
        init(self, length)
        made.append(self)

    monkeypatch.setattr(SecretBytes, "__init__", noted)
    provider = Fickle()
    with open_keys(ENVELOPE, OLD) as keys:
        with pytest.raises(WrongKeyError):
            reseal(ENVELOPE, keys, KeySource("fickle", (provider,)))
        reseal(ENVELOPE, keys, KeySource.parse(NEW))
    KeyFile(Path("new.key")).probe()
    assert len(made) > 20
    for secret in made:
        with pytest.raises(ValueError, match="closed"):
            secret.check()
