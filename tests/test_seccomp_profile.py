"""The container's seccomp profile lets a service do its work and refuses what an intruder would like to do.

Asked here on both architectures through the filter that libseccomp makes of it, and loaded on this one;
tests/containers runs the service behind it. docs/decisions/0015 tells how the list was found.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scaffold import ROOT, require
from seccomp_filter import ALLOW, ERRNO, LAYERS, NATIVE, Profile, answer, exists, library, number

PROFILE = ROOT / "template" / "docker" / "seccomp.json"
HELPER = Path(__file__).with_name("seccomp_filter.py")
EPERM, ENOSYS = 1, 38
# One that no call in these tests gives by itself.
MARK = 99

# What a call is named on arm64, where the C library has to use the general form. None: not needed there.
ON_ARM64 = {
    "access": "faccessat",
    "arch_prctl": None,
    "chmod": "fchmodat",
    "dup2": "dup3",
    "epoll_wait": "epoll_pwait",
    "getpgrp": "getpgid",
    "link": "linkat",
    "lstat": "newfstatat",
    "mkdir": "mkdirat",
    "open": "openat",
    "pause": "ppoll",
    "pipe": "pipe2",
    "poll": "ppoll",
    "readlink": "readlinkat",
    "rename": "renameat",
    "rmdir": "unlinkat",
    "select": "pselect6",
    "stat": "newfstatat",
    "symlink": "symlinkat",
    "unlink": "unlinkat",
    "vfork": "clone",
}

# Other processes, the kernel, privileges, namespaces, mounts, files behind the back, programs out of memory,
# the machine, calls known for their faults, memory and messages of others, and a rest.
_LISTED = """
    kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace
    bpf delete_module finit_module init_module kexec_file_load kexec_load perf_event_open syslog
    capset chown fchown fchownat lchown setfsuid setgid setgroups setregid setresgid setresuid setuid
    setns unshare
    chroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root umount2
    fanotify_init mknod mknodat name_to_handle_at open_by_handle_at quotactl setxattr
    execveat memfd_create memfd_secret uselib
    acct adjtimex clock_adjtime clock_settime ioperm iopl reboot sethostname settimeofday swapon
    add_key keyctl modify_ldt personality request_key splice tee userfaultfd vmsplice
    mbind migrate_pages move_pages mq_open msgget semget shmat shmget
    landlock_create_ruleset mlockall seccomp sysfs ustat vhangup
"""
DANGEROUS = _LISTED.split()
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_TIPC, AF_ALG, AF_VSOCK = 1, 2, 10, 16, 17, 30, 38, 40
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
THREAD, CHILD, VFORK = 0x003D0F00, 0x01200011, 0x00004111
I386, ARM, X32 = 0x40000003, 0x40000028, 0x40000000
NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}


@pytest.fixture(scope="module")
def profile() -> Profile:
    require(library() is not None, "libseccomp")
    require(NATIVE != "", "a processor that the profile is for")
    return Profile.read(PROFILE)


@pytest.fixture(params=LAYERS)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Decide = Callable[..., int]


def decider(profile: Profile, architecture: str) -> Decide:
    """Return what tells how the kernel would decide on one architecture."""
    program = profile.compiled(architecture)

    def decide(name: str, *arguments: int) -> int:
        call = number(name, architecture)
        assert call >= 0, f"{architecture} has no {name}"
        return answer(program, LAYERS[architecture], call, *arguments)

    return decide


@pytest.fixture
def decide(profile: Profile, architecture: str) -> Decide:
    return decider(profile, architecture)


def test_profile_is_for_both_architectures_and_none_of_their_older_ones(profile: Profile) -> None:
    assert profile.architectures == ["amd64", "arm64"]
    assert all(entry["subArchitectures"] == [] for entry in profile.content["archMap"])


def test_what_has_no_rule_is_refused(profile: Profile) -> None:
    assert (profile.content["defaultAction"], profile.content["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", EPERM)
    assert {rule["action"] for rule in profile.content["syscalls"]} == {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"}


def test_every_name_is_a_system_call(profile: Profile) -> None:
    names = profile.names("SCMP_ACT_ALLOW") | profile.names("SCMP_ACT_ERRNO")
    assert {name for name in names if not any(exists(name, each) for each in LAYERS)} == set()
    assert not any(exists("opennat", each) for each in LAYERS)  # the control


def test_a_name_stands_in_one_group_only(profile: Profile) -> None:
    plain = [name for rule in profile.content["syscalls"] if "args" not in rule for name in rule["names"]]
    assert sorted(plain) == sorted(set(plain) - {"clone", "socket", "socketpair"})


def test_every_call_that_arm64_lacks_is_allowed_there_in_its_general_form(profile: Profile) -> None:
    missing = {name for name in profile.names("SCMP_ACT_ALLOW") if not exists(name, "arm64")}
    assert missing == set(ON_ARM64)
    decide = decider(profile, "arm64")
    assert {name for name in ON_ARM64.values() if name and decide(name) != ALLOW} == set()


def test_every_allowed_call_passes_the_filter(profile: Profile, decide: Decide, architecture: str) -> None:
    with_conditions = {"clone", "socket", "socketpair"}
    names = {
        name for name in profile.names("SCMP_ACT_ALLOW") - with_conditions if number(name, architecture) >= 0
    }
    assert len(names) > 120
    assert {name for name in names if decide(name) != ALLOW} == set()


def test_a_dangerous_call_is_refused(decide: Decide, architecture: str) -> None:
    here = [name for name in DANGEROUS if number(name, architecture) >= 0]
    assert len(here) > 70
    assert {name: decide(name) for name in here} == dict.fromkeys(here, ERRNO | EPERM)


@pytest.mark.usefixtures("profile")
def test_the_table_of_dangerous_calls_has_no_wrong_name() -> None:
    assert {name for name in DANGEROUS if not any(exists(name, each) for each in LAYERS)} == set()


def test_calls_by_way_of_another_architecture_kill_the_process(profile: Profile, architecture: str) -> None:
    program = profile.compiled(architecture)
    getpid = number("getpid", architecture)
    assert answer(program, LAYERS[architecture], getpid) == ALLOW
    kill = {0, 0x80000000}  # the thread, or the process
    for layer, call in ((I386, 20), (ARM, 20), (LAYERS["amd64"], X32 | getpid)):
        assert answer(program, layer, call) in kill


@pytest.mark.parametrize("flags", [THREAD, CHILD, VFORK])
def test_threads_and_children_are_allowed(decide: Decide, flags: int) -> None:
    assert decide("clone", flags) == ALLOW


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_no_child_gets_a_namespace_of_its_own(decide: Decide, namespace: str) -> None:
    assert decide("clone", CHILD | NAMESPACES[namespace]) == ERRNO | EPERM


@pytest.mark.parametrize("name", ["clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"])
def test_calls_that_a_filter_cannot_judge_are_said_to_be_missing(decide: Decide, name: str) -> None:
    assert decide(name) == ERRNO | ENOSYS


@pytest.mark.parametrize(
    ("family", "protocol", "allowed"),
    [
        (AF_UNIX, 0, True),
        (AF_INET, 0, True),
        (AF_INET6, 0, True),
        (AF_NETLINK, NETLINK_ROUTE, True),
        (AF_NETLINK, NETLINK_NETFILTER, False),
        (AF_PACKET, 0, False),
        (AF_ALG, 0, False),
        (AF_VSOCK, 0, False),
    ],
)
def test_sockets_are_of_the_families_that_a_service_needs(
    decide: Decide, family: int, protocol: int, allowed: bool
) -> None:
    assert (decide("socket", family, 1, protocol) == ALLOW) is allowed


def test_pairs_of_sockets_are_of_the_unix_family(decide: Decide) -> None:
    assert decide("socketpair", AF_UNIX, 1, 0) == ALLOW
    assert decide("socketpair", AF_TIPC, 1, 0) == ERRNO | EPERM


def behind(*command: str, profile: Path = PROFILE, options: tuple[str, ...] = ()) -> str:
    """Run a program behind a profile on this machine."""
    helper = [sys.executable, str(HELPER), *options, str(profile)]
    done = subprocess.run([*helper, *command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Arguments of -1 are wrong for all of them: whatever gets through the filter does nothing.
TRY = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for name, number in json.loads(sys.argv[1]).items():
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    found[name] = ctypes.get_errno()
print(json.dumps(found))
"""
# They would do something even so, or change the process that tries them.
NOT_TRIED = {"vhangup", "setfsuid", "seccomp"}


@pytest.mark.usefixtures("profile")
def test_the_kernel_refuses_dangerous_calls_behind_the_filter() -> None:
    calls = {name: number(name, NATIVE) for name in DANGEROUS if name not in NOT_TRIED}
    calls = {name: call for name, call in calls.items() if call >= 0}
    said = json.dumps(calls)
    filtered = json.loads(behind(sys.executable, "-c", TRY, said, options=("--errno", str(MARK))))
    assert filtered == dict.fromkeys(calls, MARK)
    # The control: without the filter none of them gives that error.
    free = subprocess.run([sys.executable, "-c", TRY, said], check=True, capture_output=True, text=True)
    assert MARK not in json.loads(free.stdout).values()


ORDINARY = """
import asyncio, ctypes, os, shutil, socket, subprocess, sys, tempfile, threading, time
assert open("/proc/self/status").read().count("Seccomp:\\t2") == 1
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "file")
    with open(path, "w") as file:
        file.write("text")
        os.fsync(file.fileno())
    shutil.copy2(path, path + ".copy")
    os.replace(path, path + ".moved")
    os.symlink("file.moved", path)
    shutil.copytree(folder, folder + "/tree", symlinks=True)
    os.utime(path)
    assert sorted(os.listdir(folder)) == ["file", "file.copy", "file.moved", "tree"]
    os.statvfs(folder)
threads = [threading.Thread(target=time.sleep, args=[0.01]) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
command = [sys.executable, "-I", "-c", "print(1)"]
assert subprocess.run(command, capture_output=True, start_new_session=True, cwd="/").stdout == b"1\\n"
socket.getaddrinfo("localhost", 80)
if os.fork() == 0:
    os._exit(0)
os.wait()

async def serve():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
    child = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", "")
    assert await child.wait() == 0

asyncio.run(serve())
print(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)())
"""


@pytest.mark.usefixtures("profile")
def test_ordinary_work_of_a_python_service_passes_the_filter() -> None:
    assert behind(sys.executable, "-I", "-c", ORDINARY) == "7\n"


FILL = """
import sys
from pathlib import Path
from service_security.keys.service_keys import open_keys
from service_security.store import SecureDb
data = Path(sys.argv[1])
with open_keys(data / "envelope.json", sys.argv[2]) as keys:
    database = SecureDb.open(data / "records.db", keys.master)
database.insert_many((b"name %d" % number, b"value" * 100) for number in range(3000))
database.close()
"""


def test_commands_on_keys_and_database_pass_the_filter(profile: Profile, tmp_path: Path) -> None:
    data, key, phrase = tmp_path / "data", tmp_path / "service.key", str(tmp_path / "phrase")
    data.mkdir(mode=0o700)
    # Root gives what it makes to the owner of the folder. The user of the container never does.
    rules = [*profile.content["syscalls"], {"names": ["fchown"], "action": "SCMP_ACT_ALLOW"}]
    ours = tmp_path / "seccomp.json"
    ours.write_text(json.dumps(profile.content | {"syscalls": rules}))

    def command(*words: str, source: str = f"file:{key}") -> str:
        options = ("--data-dir", str(data), "--key-source", source)
        return behind(sys.executable, "-m", "service_security", *words, *options, profile=ours)

    command("init", "--phrase-file", phrase)
    behind(sys.executable, "-c", FILL, str(data), f"file:{key}", profile=ours)
    command("db", "backup", str(tmp_path / "backup"))
    command("db", "verify", "--backup", str(tmp_path / "backup"))
    command("keys", "rotate")
    command("keys", "recovery-drill", str(tmp_path / "backup"), "--phrase-file", phrase)
    (tmp_path / "secret").write_text("correct horse battery staple")
    by_phrase = f"passphrase:{tmp_path / 'secret'}"
    command("keys", "reseal", "--to", by_phrase)
    command("keys", "rotate", "--master", "--no-recovery", source=by_phrase)
    command("db", "export", source=by_phrase)
    command("db", "import", source=by_phrase)
    assert "3000 records" in command("db", "verify", source=by_phrase).replace(",", "")
