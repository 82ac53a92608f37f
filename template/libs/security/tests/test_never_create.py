"""The never-create rule, for every source: a key is made once, and what is missing stays missing.

Whatever cannot be had later (a file, a secret, a variable, a passphrase, a folder) is an error
that names it. Nothing that runs after ``init`` makes a key, and ``init`` makes none beside an
envelope or beside data.
"""

import base64
import errno
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from service_security import _files
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    KeyUnavailableError,
    SecurityError,
    StoreUnavailableError,
    WrongKeyError,
)
from service_security.keys import initialise, open_keys, open_master_key
from service_security.keys.passphrase import DEFAULT_PROFILE, PROFILES, Profile
from service_security.keys.recovery import RecoveryKey, may_open
from service_security.keys.service_keys import next_envelope, open_with, read_envelope
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb
from service_security.store.kind import Kind, kind_of

ENVELOPE = Path("data/envelope.json")
VARIABLE = "TEST_WRAPPING_KEY"

posix = pytest.mark.skipif(sys.platform == "win32", reason="mode bits and locks of POSIX")

SOURCES = {
    "key-file": "file:secrets/key",
    "container-secret": "secret:secrets/delivered",
    "credential": "credential:delivered",
    "environment": f"env:{VARIABLE}",
    "passphrase": "passphrase:secrets/phrase",
}


def _deliver() -> None:
    """Put there what somebody else delivers."""
    for name, contents in (
        ("delivered", bytes(range(32))),
        ("phrase", b"correct horse battery staple\n"),
    ):
        path = Path("secrets", name)
        path.unlink(missing_ok=True)
        path.write_bytes(contents)
        path.chmod(0o400)


def _set() -> None:
    os.environ[VARIABLE] = base64.b64encode(bytes(range(32))).decode()
    os.environ["CREDENTIALS_DIRECTORY"] = "secrets"
    PROFILES[DEFAULT_PROFILE] = Profile(iterations=1, lanes=1, memory_cost=8)


@pytest.fixture(autouse=True)
def _in_a_folder_with_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(PROFILES, DEFAULT_PROFILE, PROFILES[DEFAULT_PROFILE])
    Path("secrets").mkdir(mode=0o700)
    _deliver()
    _set()


def _no_data() -> bool:
    return False


def _init(source: str) -> bool:
    return initialise(ENVELOPE, source, holds_encrypted_data=_no_data).created


def _state() -> dict[str, bytes | None]:
    """Return everything on the disk: names, and contents where there are any."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def _remove() -> None:
    shutil.rmtree("secrets")
    os.environ.pop(VARIABLE)


def _empty() -> None:
    for path in Path("secrets").iterdir():
        path.chmod(0o600)
        path.write_bytes(b"")
    os.environ[VARIABLE] = ""


def _replace() -> None:
    for path in Path("secrets").iterdir():
        path.chmod(0o600)
        path.write_bytes(b"thirty-two bytes of another key!")
    os.environ[VARIABLE] = base64.b64encode(bytes(32)).decode()


def _garble() -> None:
    for path in Path("secrets").iterdir():
        path.chmod(0o600)
        path.write_bytes(b"\xff" * 33)
    os.environ[VARIABLE] = "garbled"


def _dangle() -> None:
    """The volume with the files is not mounted."""
    for path in Path("secrets").iterdir():
        path.unlink()
        path.symlink_to(f"/nowhere/{path.name}")
    os.environ.pop(VARIABLE)


def _in_the_way() -> None:
    shutil.rmtree("secrets")
    Path("secrets").write_bytes(b"a file where the folder was")
    os.environ.pop(VARIABLE)


TROUBLE: dict[str, Callable[[], None]] = {
    "gone": _remove,
    "empty": _empty,
    "another key": _replace,
    "garbled": _garble,
    "dangling": _dangle,
    "no folder": _in_the_way,
}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_that_fails_later_is_an_error_and_never_a_new_key(kind: str, trouble: str) -> None:
    source = SOURCES[kind]
    assert _init(source)
    open_master_key(ENVELOPE, source).close()  # the control
    TROUBLE[trouble]()
    before = _state()
    for call in (lambda: open_keys(ENVELOPE, source), lambda: _init(source)):
        with pytest.raises((KeyUnavailableError, ConfigurationError, WrongKeyError)) as refusal:
            call()
        named = {"environment": VARIABLE, "credential": "delivered"}.get(kind, "secrets")
        assert named in str(refusal.value)
    assert _state() == before
    for listed in (f"{source},env:ANOTHER", f"tpm2:/nowhere/tpm,{source}"):
        with pytest.raises(SecurityError):
            _init(listed)
    assert _state() == before


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_of_another_kind_opens_nothing_and_makes_nothing(kind: str) -> None:
    _init(SOURCES[kind])
    before = _state()
    for other, source in SOURCES.items():
        if {kind, other} <= {"container-secret", "credential"} or kind == other:
            continue
        for call in (open_keys, lambda *_, named=source: _init(named)):
            with pytest.raises(ConfigurationError, match="move the key there"):
                call(ENVELOPE, source)
    assert _state() == before


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "key-file"])
@pytest.mark.parametrize("trouble", ["gone", "empty", "garbled", "dangling", "no folder"])
def test_what_others_deliver_is_never_made(kind: str, trouble: str) -> None:
    TROUBLE[trouble]()
    before = _state()
    with pytest.raises((KeyUnavailableError, ConfigurationError)):
        _init(SOURCES[kind])
    assert _state() == before


@pytest.mark.parametrize("kind", SOURCES)
def test_encrypted_data_without_an_envelope_is_never_given_a_key(kind: str) -> None:
    before = _state()

    def unreachable() -> bool:
        raise StoreUnavailableError("The volume is not mounted.")

    for holds, error in ((lambda: True, ConfigurationError), (unreachable, StoreUnavailableError)):
        with pytest.raises(error):
            initialise(ENVELOPE, SOURCES[kind], holds_encrypted_data=holds)
    assert _state() == before
    assert _init(SOURCES[kind]), "control: without data a key is made"


DATABASE = Path("data/records.db")


def _there_is_data() -> bool:
    return kind_of(DATABASE) not in (Kind.NONE, Kind.PLAIN)


@pytest.mark.parametrize("with_phrase", [True, False])
def test_encrypted_data_that_comes_while_a_phrase_is_written_down_is_never_given_a_key(
    with_phrase: bool,
) -> None:
    Path("data").mkdir(mode=0o700)

    def restored_meanwhile() -> SecretBytes | None:
        SecureDb.open(DATABASE, bytes(range(32))).close()
        return SecretBytes.generate() if with_phrase else None

    with pytest.raises(ConfigurationError, match="A new key could not read"):
        initialise(
            ENVELOPE,
            SOURCES["environment"],
            recovery=restored_meanwhile,
            holds_encrypted_data=_there_is_data,
        )
    assert not ENVELOPE.exists()


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_log_beside_a_database_of_no_bytes_is_data(suffix: str) -> None:
    """SQLite would throw it away; the database may have been cut off, and all records be in it."""
    Path("data").mkdir(mode=0o700)
    DATABASE.touch()
    log = DATABASE.with_name(DATABASE.name + suffix)
    log.write_bytes(b"records that are nowhere else")
    with pytest.raises(IntegrityError, match="which is empty, and may hold records"):
        initialise(ENVELOPE, SOURCES["environment"], holds_encrypted_data=_there_is_data)
    assert not ENVELOPE.exists()
    assert log.read_bytes() == b"records that are nowhere else"
    log.write_bytes(b"")
    made = initialise(ENVELOPE, SOURCES["environment"], holds_encrypted_data=_there_is_data)
    assert made.created, "control: an empty log"


@posix
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_not_taken_for_no_data(make: Callable[[Path], None]) -> None:
    Path("data").mkdir(mode=0o700)
    make(DATABASE)
    with pytest.raises(IntegrityError, match="no regular file"):
        initialise(ENVELOPE, SOURCES["environment"], holds_encrypted_data=_there_is_data)
    assert not ENVELOPE.exists()


@pytest.mark.parametrize("kind", SOURCES)
def test_an_envelope_that_dangles_is_an_envelope(kind: str) -> None:
    Path("data").mkdir()
    ENVELOPE.symlink_to("/nowhere/envelope.json")
    before = _state()
    with pytest.raises(KeyUnavailableError, match="no key envelope"):
        _init(SOURCES[kind])
    assert _state() == before


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(5, "Input/output error")])
def test_an_envelope_that_cannot_be_looked_for_counts_as_one(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def failing(_: Path) -> os.stat_result:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", failing)
        with pytest.raises(KeyUnavailableError, match="cannot be told"):
            _init(SOURCES["environment"])
    assert not ENVELOPE.exists()
    assert _init(SOURCES["environment"]), "control"


def test_an_unfinished_change_of_the_master_key_counts_as_an_envelope() -> None:
    Path("data").mkdir()
    next_envelope(ENVELOPE).write_bytes(b"")
    with pytest.raises(KeyUnavailableError, match="keys rotate --master"):
        _init(SOURCES["key-file"])
    assert not ENVELOPE.exists()
    assert not Path("secrets/key").exists()


# A recovery phrase that somebody has written down


def test_whatever_fails_after_a_phrase_was_shown_says_that_it_opens_nothing() -> None:
    key = SecretBytes.generate()

    def shown() -> SecretBytes:
        Path("data").write_text("in the way")
        return key

    with pytest.raises(ConfigurationError, match="recovery phrase of this run opens nothing"):
        initialise(ENVELOPE, SOURCES["environment"], recovery=shown, holds_encrypted_data=_no_data)
    with pytest.raises(ValueError, match="closed"):
        key.check()


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_phrase_that_may_open_the_envelope_is_never_to_be_destroyed(
    monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    """The disk fails while the envelope gets its name, and it is there after all."""
    key = SecretBytes.generate()
    kept = SecretBytes.copy_of(key.view)

    def failing(draft: Path, path: Path) -> bool:
        if not is_lost:
            os.link(draft, path)
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(_files, "publish_new", failing)
        said = "opens nothing: destroy it" if is_lost else "Keep the recovery phrase of this run"
        with pytest.raises(ConfigurationError, match=said):
            initialise(
                ENVELOPE,
                SOURCES["environment"],
                recovery=lambda: key,
                holds_encrypted_data=_no_data,
            )
    assert ENVELOPE.exists() != is_lost
    assert may_open(ENVELOPE, kept) != is_lost
    kept.close()


def test_where_it_cannot_be_told_a_phrase_may_open_the_envelope(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(_: Path) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error")

    with SecretBytes.generate() as key:
        assert not may_open(ENVELOPE, key), "control: it is known that there is none"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "lstat", failing)
            assert may_open(ENVELOPE, key)
        _init(SOURCES["environment"])
        assert not may_open(ENVELOPE, key), "control: it is known to have no phrase"
        ENVELOPE.write_bytes(b"damaged")
        assert may_open(ENVELOPE, key)


def test_the_slower_of_two_is_told_that_its_phrase_opens_nothing() -> None:
    winner, loser = SecretBytes.generate(), SecretBytes.generate()
    kept = SecretBytes.copy_of(winner.view)

    def beaten() -> SecretBytes:
        initialise(
            ENVELOPE,
            SOURCES["key-file"],
            recovery=lambda: winner,
            holds_encrypted_data=_no_data,
        )
        return loser

    with pytest.raises(ConfigurationError, match=r"Another command made.*this run opens nothing"):
        initialise(ENVELOPE, SOURCES["key-file"], recovery=beaten, holds_encrypted_data=_no_data)
    with open_with(read_envelope(ENVELOPE), RecoveryKey(kept)) as keys:
        assert keys.recovery == kept
    for key in (winner, loser):
        with pytest.raises(ValueError, match="closed"):
            key.check()
    kept.close()


def test_nobody_is_shown_a_phrase_where_no_key_will_be_made() -> None:
    def never() -> SecretBytes:
        raise AssertionError

    def init(source: str, *, data: bool = False) -> None:
        initialise(ENVELOPE, source, recovery=never, holds_encrypted_data=lambda: data)

    with pytest.raises(ConfigurationError):
        init(SOURCES["key-file"], data=True)
    with pytest.raises(KeyUnavailableError):
        init("secret:secrets/missing")
    _init(SOURCES["key-file"])
    init(SOURCES["key-file"])


# Several at once


@posix
@pytest.mark.parametrize("folder", ["data", "secrets"])
def test_a_folder_that_a_service_holds_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    import fcntl

    monkeypatch.setattr(_files, "_PATIENCE", 0.0)
    Path("data").mkdir(mode=0o700)
    holder = os.open(folder, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_SH)
    with pytest.raises(StoreUnavailableError, match=rf"folder {folder} is in use. Stop the"):
        _init(SOURCES["key-file"])
    os.close(holder)
    assert _init(SOURCES["key-file"]), "control"


@posix
def test_a_folder_that_a_service_holds_is_told_before_a_phrase_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fcntl

    def shown() -> SecretBytes:
        pytest.fail("A phrase was made for nothing.")

    monkeypatch.setattr(_files, "_PATIENCE", 0.0)
    Path("data").mkdir(mode=0o700)
    holder = os.open("data", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_SH)
    with pytest.raises(StoreUnavailableError, match="folder data is in use"):
        initialise(
            Path("data/envelope.json"),
            "file:secrets/service.key",
            recovery=shown,
            holds_encrypted_data=lambda: False,
        )
    os.close(holder)


@posix
def test_who_holds_a_folder_for_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    Path("data").mkdir(mode=0o700)
    holder = os.open("data", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_SH)
    monkeypatch.setattr("service_security._files.time.sleep", lambda _: os.close(holder))
    assert _init(SOURCES["environment"])


@posix
def test_a_folder_that_has_no_locks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("service_security._files.fcntl.flock", failing)
    with pytest.raises(StoreUnavailableError, match="cannot be locked: No locks available"):
        _init(SOURCES["environment"])


def _init_at_once(folder: str, source: str, with_phrase: bool, barrier: Barrier) -> None:
    os.chdir(folder)
    _set()
    _files._PATIENCE = 60  # the machine may be busy with other things
    barrier.wait()
    recovery = SecretBytes.generate if with_phrase else lambda: None
    try:
        initialise(ENVELOPE, source, recovery=recovery, holds_encrypted_data=_no_data)
    except ConfigurationError as error:
        if "this run opens nothing" not in str(error):
            raise
        raise SystemExit(3) from None


@posix
@pytest.mark.parametrize("with_phrase", [False, True], ids=["without a phrase", "with one each"])
@pytest.mark.parametrize("kind", SOURCES)
def test_processes_that_init_at_once_end_with_one_key(
    tmp_path: Path, kind: str, with_phrase: bool
) -> None:
    count = 8 if kind == "key-file" else 2
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(count)
    arguments = (str(tmp_path), SOURCES[kind], with_phrase, barrier)
    processes = [context.Process(target=_init_at_once, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    statuses = [process.exitcode for process in processes]
    if with_phrase:  # each but one had shown its phrase, or came when all was done
        assert statuses.count(0) >= 1
        assert set(statuses) <= {0, 3}
    else:
        assert set(statuses) == {0}
    with open_keys(ENVELOPE, SOURCES[kind]) as keys:
        assert (keys.recovery is not None) == with_phrase
    assert list(Path("data").iterdir()) == [ENVELOPE]
