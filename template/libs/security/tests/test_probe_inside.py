"""The program that runs inside a container, run outside of one: here most attempts succeed.

That is the control of points 27 to 35: what is refused in a container is refused there, and not
because it was tried wrongly.
"""

import json
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from security_probe import inside
from security_probe.answer import FORM, check

REFUSED = {"EPERM", "EACCES", "EROFS", "ENOSYS"}


@pytest.fixture
def left_as_it_was(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing may be left behind."""
    folder = tmp_path / "folder"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def _raises(error: BaseException) -> Callable[[], object]:
    def work() -> None:
        raise error

    return work


def test_attempt_is_named_by_its_error_or_done() -> None:
    assert inside.attempt(lambda: None) == "done"
    assert inside.attempt(_raises(PermissionError(13, ""))) == "EACCES"
    assert inside.attempt(_raises(OSError(9999, ""))) == "9999"
    assert inside.attempt(_raises(ValueError())) == "ValueError"


def test_attempt_in_a_child_changes_nothing_here() -> None:
    here = os.getcwd()  # noqa: PTH109
    assert inside.attempt_in_child(lambda: os.chdir("/")) == "done"
    assert os.getcwd() == here  # noqa: PTH109
    assert inside.attempt_in_child(_raises(PermissionError(1, ""))) == "EPERM"
    assert inside.attempt_in_child(lambda: os.kill(os.getpid(), 31)) == "SIGSYS"
    assert inside.attempt_in_child(lambda: os._exit(0)) == "nothing"


def test_file_is_created_and_nothing_stays(left_as_it_was: Path) -> None:
    assert inside.creating(str(left_as_it_was)) == "done"
    file = inside.open_nameless(str(left_as_it_was))
    assert os.fstat(file).st_nlink == 0
    os.close(file)


def test_file_is_created_by_a_name_where_there_are_none_without(
    left_as_it_was: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def without(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "not supported")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without)
    file = inside.open_nameless(str(left_as_it_was))
    assert os.fstat(file).st_nlink == 0
    os.close(file)


def test_folder_is_made_and_removed(left_as_it_was: Path) -> None:
    inside.make_and_remove_folder(str(left_as_it_was))
    assert inside.attempt(lambda: inside.make_and_remove_folder("/proc/self")) in {
        *REFUSED,
        "ENOENT",
    }


def test_only_a_refusal_counts_as_one() -> None:
    assert all(inside.refused(error) for error in ("EROFS", "EACCES", "EPERM", "ENOENT"))
    assert not any(inside.refused(error) for error in ("done", "ENOSPC", "EDQUOT", "EIO", ""))


def test_script_runs_from_a_folder_that_lets_it(left_as_it_was: Path) -> None:
    inside.running_from(str(left_as_it_was))


def test_code_is_loaded_from_a_folder_that_lets_it(left_as_it_was: Path) -> None:
    inside.mapping_from(str(left_as_it_was))


def test_shell_starts_where_there_is_one() -> None:
    assert inside.attempts()["start a shell"] == "done"


def test_every_attempt_of_the_points_is_made() -> None:
    assert {*inside.attempts()} == {
        *("become user 0", "become group 0", "join group 0", "give a file to root"),
        *("make a device", "open a raw socket", "open a packet socket", "change a kernel setting"),
        *("run a file in /tmp", "load code from /tmp", "run a file in /data", "start a shell"),
    }


def test_becoming_root_tries_each_way_until_one_works() -> None:
    tried = []

    def refused() -> None:
        raise PermissionError(1, "")

    assert inside.become(refused, refused) == "EPERM"
    assert inside.become(refused, lambda: tried.append(1)) == "done"
    assert tried == [], "it is tried in a child"


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1), ("riscv64", 1)])
def test_calls_have_the_numbers_of_the_machine(
    machine: str, column: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(inside, "attempt_in_child", lambda work: work() or "done")
    monkeypatch.setattr(inside, "system_call", lambda number, *_: made.append(number))
    found = inside.calls(machine)
    assert set(found) == {*inside.CALLS, "unshare"}
    assert made == [row[column] for row in inside.CALLS.values()] + [inside.UNSHARE[column]]


def test_calls_are_not_made_by_guess() -> None:
    assert inside.calls("s390x") == {}


def test_calls_that_are_let_through_say_something_else_than_refused() -> None:
    # By any user and on any kernel: what the arguments of these make no sense of is not a right.
    found = inside.calls(platform.machine())
    assert set(found) == {*inside.CALLS, "unshare"}
    assert found["setns"] not in REFUSED
    assert found["setns"] == "EBADF"


def test_system_call_raises_what_the_kernel_says() -> None:
    x86_64, common, _ = inside.CALLS["setns"]
    setns = x86_64 if platform.machine() == "x86_64" else common
    with pytest.raises(OSError, match="Errno 9"):
        inside.system_call(setns, -1, 0)


def test_mounts_are_read_with_their_options() -> None:
    found = inside.mounts()
    assert found["/proc"]["kind"] == "proc"
    assert "/" in found
    assert all({*each} == {"options", "kind", "system_options"} for each in found.values())


def test_names_of_mounts_are_read_back() -> None:
    assert inside._unescaped(r"/a\040b\011c\012d\134e") == "/a b\tc\nd\\e"


def test_process_is_read() -> None:
    found = inside.process("self")
    assert set(found) >= {"Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapEff", "CapBnd"}
    assert found["Uid"].split()[1] == str(os.geteuid())


def test_namespaces_are_numbers() -> None:
    assert inside.namespaces()["pid"] == os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116


def test_control_groups_of_both_versions_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/proc/swaps": "Filename Type\n/dev/x partition"}
    monkeypatch.setattr(inside, "read", lambda path: texts.get(path, path))
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    second = inside.limits()
    assert (second["version"], second["swap"]) == ("2", "/sys/fs/cgroup/memory.swap.max")
    assert second["swap_areas"] == "1"
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    first = inside.limits()
    assert (first["version"], first["pids"]) == ("1", "/sys/fs/cgroup/pids/pids.max")


def test_folders_of_others_are_left_out_of_the_walk() -> None:
    left_out = [
        *("/proc/1", "/proc/sys/net/ipv4", "/sys/devices/x", "/tmp/x", "/data/x"),
        "/sys/fs/cgroup/a/b/c",
    ]
    walked = [
        "/proc",
        "/proc/sys",
        "/proc/sys/net",
        "/sys/fs/cgroup/cpu",
        "/tmp",
        "/data",
        "/etc/x",
    ]
    assert all(inside._is_left_out(path) for path in left_out)
    assert not any(inside._is_left_out(path) for path in walked)


def test_walk_finds_what_must_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    shell = folder / "sub" / "bash"
    shell.write_text("")
    shell.chmod(0o755)
    setuid = folder / "su"
    setuid.write_text("")
    setuid.chmod(0o4755)
    monkeypatch.setattr(
        inside,
        "walk",
        lambda: iter(
            [(str(folder), [str(setuid)], True), (str(folder / "sub"), [str(shell)], False)]
        ),
    )
    found = inside.file_system(set())
    assert found["folders"] == 2
    assert found["setuid"] == [str(setuid)]
    assert found["shells"] == [str(shell)]
    assert str(folder) in found["writable"]  # type: ignore[operator]
    assert found["hidden"] == [str(folder / "sub")]
    assert found["devices"] == found["sockets"] == []
    assert stat.S_IMODE(setuid.stat().st_mode) == 0o4755


def test_walk_visits_every_folder_and_follows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "_is_left_out", lambda path: path.endswith("/left-out"))
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "file").write_text("")
    (top / "left-out").mkdir()
    (top / "out").symlink_to("..")
    visited = {folder: (others, listed) for folder, others, listed in inside.walk(str(top))}
    assert visited == {
        str(top): ([str(top / "out")], True),
        str(top / "a"): ([str(top / "a" / "file")], True),
        str(top / "a" / "b"): ([], True),
    }
    assert list(inside.walk(str(top / "gone"))) == [(str(top / "gone"), [], False)]


def test_devices_are_known_by_their_numbers_and_terminals_by_their_place() -> None:
    terminal = os.makedev(136, 0)
    assert inside._is_usual("/dev/null", os.makedev(1, 3))
    assert inside._is_usual("/dev/pts/0", terminal)
    assert inside._is_usual("/dev/console", terminal)
    assert not inside._is_usual("/dev/tpmrm0", terminal)
    assert not inside._is_usual("/dev/mem", os.makedev(1, 1))
    assert not inside._is_usual("/dev/tpmrm0", os.makedev(10, 224))


def test_interpreter_tells_where_it_looks_as_the_service_is_started(tmp_path: Path) -> None:
    isolated = inside.interpreter(["-I"])
    assert set(isolated) == {"path", "writable_path", "modules", "cache_tag", "magic"}
    assert str(Path.cwd()) not in isolated["path"]  # type: ignore[operator]
    assert str(Path.cwd()) in inside.interpreter([])["path"]  # type: ignore[operator]
    assert "ensurepip" in isolated["modules"]  # type: ignore[operator]
    assert inside.putting(str(tmp_path / "not" / "there")) == "done"


def test_certificates_and_time_zones_are_found_where_they_are() -> None:
    assert inside.certificates() >= 0
    assert inside.helsinki_in_july() in (0, 10800)


def test_program_is_plain_source_that_needs_only_the_standard_library() -> None:
    source = Path(inside.__file__).read_text()
    assert "from ." not in source
    assert "service_security" not in source
    told = subprocess.run(
        [sys.executable, "-I", "-B", "-"],
        input=source.replace(
            'if __name__ == "__main__":', "if True:\n    file_system = lambda _: {}\n    "
        ).replace("main(sys.argv[1:])", "print(json.dumps(sorted(answer([]))))"),
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert set(json.loads(told.stdout)) == set(FORM)


def test_answer_has_the_form_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, object] = {"folders": 0}
    for name in ("writable", "hidden", "setuid", "capable", "shells", "devices", "sockets"):
        nothing[name] = []
    monkeypatch.setattr(inside, "file_system", lambda _: nothing)
    check(json.loads(json.dumps(inside.answer(["-I"]))), FORM, "answer")
