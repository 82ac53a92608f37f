"""The program that runs inside the container: tries what must not be possible, and tells.

It is sent to the interpreter over its standard input, since there is no shell and nothing may be
installed, and prints one line of JSON. It judges nothing.

Nothing stays behind. What is created has no name (``O_TMPFILE``) where the file system can do that,
and is removed at once where it cannot. Calls that must be refused are made so that they would do
nothing if they were not, and from a child process where they would change the caller.
"""

import ctypes
import errno
import importlib.util
import json
import mmap
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial

SECONDS = 90
"""After which the program ends itself: nobody else would, once the caller is gone."""

DONE = "done"
"""What is said of an attempt that was not refused; of others it is the name of the error."""

_SHELLS = (
    "ash bash busybox csh dash elvish fish ksh ksh93 mksh nu posh rbash rksh sash sh tcsh toybox "
    "xonsh zsh"
)
SHELLS = frozenset(_SHELLS.split())
_INSTALLERS = (
    "pip ensurepip venv uv tkinter _tkinter setuptools pkg_resources wheel idlelib lib2to3 "
    "virtualenv"
)
INSTALLERS = tuple(_INSTALLERS.split())
USUAL_DEVICES = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)})
"""Numbers of null, zero, full, random, urandom, tty, console and ptmx, by whichever name."""
TERMINALS = "/dev/pts/"
"""The place of pseudo-terminals; one that is elsewhere was put there."""

# Numbers of system calls: of x86-64, and of the kernel's common table that arm64 and RISC-V use.
# All are asked with arguments that make no sense, so that a kernel which lets them through answers
# something else than EPERM and ENOSYS, and does nothing: a mount of nothing, a negative process or
# descriptor, a null pointer. kexec_load: more segments than there may be; none would unload.
_NOTHING: tuple[int, ...] = (0, 0, 0, 0, 0, 0)
CALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "add_key": (248, 217, _NOTHING),
    "bpf": (321, 280, _NOTHING),
    "clone3": (435, 435, _NOTHING),
    "delete_module": (176, 106, _NOTHING),
    "fsopen": (430, 430, _NOTHING),
    "init_module": (175, 105, _NOTHING),
    "io_uring_setup": (425, 425, _NOTHING),
    "kexec_load": (246, 104, (0, 17, 0, 0, 0, 0)),
    "keyctl": (250, 219, (-1, 0, 0, 0, 0, 0)),
    "mount": (165, 40, _NOTHING),
    "move_mount": (429, 429, (-1, 0, -1, 0, 0, 0)),
    "name_to_handle_at": (303, 264, (-1, 0, 0, 0, 0, 0)),
    "open_by_handle_at": (304, 265, (-1, 0, 0, 0, 0, 0)),
    "perf_event_open": (298, 241, _NOTHING),
    "pivot_root": (155, 41, _NOTHING),
    "process_vm_readv": (310, 270, (-1, 0, 0, 0, 0, 0)),
    "ptrace": (101, 117, (16, -1, 0, 0, 0, 0)),
    "request_key": (249, 218, _NOTHING),
    "setns": (308, 268, (-1, 0, 0, 0, 0, 0)),
    "swapon": (167, 224, _NOTHING),
    "umount2": (166, 39, _NOTHING),
    "userfaultfd": (323, 282, (-1, 0, 0, 0, 0, 0)),
}
UNSHARE = (272, 97)
NEW_USER_NAMESPACE = 0x10000000
X86_64 = ("x86_64",)
COMMON_TABLE = ("aarch64", "riscv64", "loongarch64")


def attempt(work: Callable[[], object]) -> str:
    """Do something that should be refused, and tell how it went."""
    try:
        work()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the answer
        return type(error).__name__
    return DONE


def attempt_in_child(work: Callable[[], object]) -> str:
    """Do it in a child process, which it may change or end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, attempt(work).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:  # a descriptor
        said = pipe.read(100).decode("ascii", "replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return said or "nothing"


def system_call(number: int, *arguments: int) -> None:
    """Make a system call; an error is raised as such."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) == -1:
        raise OSError(ctypes.get_errno(), "")


def calls(machine: str) -> dict[str, str]:
    """Try every dangerous call; none on a machine whose numbers are not known."""
    if machine not in X86_64 + COMMON_TABLE:
        return {}
    column = 0 if machine in X86_64 else 1
    tried = {
        name: attempt_in_child(partial(system_call, (x86_64, common)[column], *given))
        for name, (x86_64, common, given) in CALLS.items()
    }
    unshare = partial(system_call, UNSHARE[column], NEW_USER_NAMESPACE)
    tried["unshare"] = attempt_in_child(unshare)
    return tried


def open_nameless(folder: str, flags: int = os.O_RDWR) -> int:
    """Open a new file in a folder, one without a name or one that loses it at once."""
    try:
        return os.open(folder, os.O_TMPFILE | flags, 0o700)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    path = unused_name(folder)
    found = os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | flags, 0o700)
    os.unlink(path)  # a name, not a path that was chosen
    return found


def unused_name(folder: str) -> str:
    """Return a name that nobody has."""
    return f"{folder.rstrip('/')}/.security-probe-{os.urandom(8).hex()}"


def creating(folder: str) -> str:
    """Try to create a file in a folder.

    Where the kernel says that it would allow it, it is believed except in small file systems in
    memory: a layered file system would copy the folder into the container first, and keep it.
    """
    if os.access(folder, os.W_OK | os.X_OK) and folder not in ("/tmp", "/data"):
        return DONE
    if folder.startswith("/sys/fs/cgroup"):
        return attempt(lambda: make_and_remove_folder(folder))
    return attempt(lambda: os.close(open_nameless(folder)))


def make_and_remove_folder(folder: str) -> None:
    """Make a folder in one where no files can be made: a control group."""
    path = unused_name(folder)
    os.mkdir(path)
    os.rmdir(path)


def refused(said: str) -> bool:
    """Tell whether an attempt failed for a reason that will not go away, as a full disk does."""
    return said in {"EROFS", "EACCES", "EPERM", "ENOENT", "ENOTDIR"}


def walk(top: str = "/") -> Iterator[tuple[str, list[str], bool]]:
    """Yield each folder with the names of what is no folder in it, and whether it could be listed.

    Not what lies below the two that may be written to, and of the kernel's own only the beginning.
    """
    rest = [top]
    while rest:
        folder = rest.pop()
        others: list[str] = []
        listed = True
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        others.append(entry.path)
                    elif not _is_left_out(entry.path):
                        rest.append(entry.path)
        except OSError:
            listed = False
        yield folder, others, listed


def _is_left_out(path: str) -> bool:
    parts = path.split("/")[1:]
    if parts[0] == "proc":
        return len(parts) > 3 or (len(parts) > 1 and parts[1].isdigit())
    if parts[0] == "sys":
        return len(parts) > 5 or (len(parts) > 2 and parts[1] != "fs")
    return parts[0] in ("tmp", "data") and len(parts) > 1


def file_system(mount_points: set[str]) -> dict[str, object]:
    """Look at every file and folder, and try to write to each."""
    folders = 0
    kinds = ("writable", "hidden", "setuid", "capable", "shells", "devices", "sockets")
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for folder, others, listed in walk():
        folders += 1
        if not refused(creating(folder)):
            found["writable"].append(folder)
        if not listed and os.access(folder, os.X_OK):
            found["hidden"].append(folder)
        kernels_own = folder.startswith(("/proc", "/sys"))
        for path in others:
            try:
                status = os.lstat(path)
            except OSError:
                continue
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFREG:
                if not kernels_own:
                    _look_at(path, status.st_mode, mount_points, found)
                # What is written to /proc/pressure is forgotten when it is closed.
                elif folder != "/proc/pressure" and os.access(path, os.W_OK):
                    found["writable"].append(path)
            elif kind == stat.S_IFSOCK:
                found["sockets"].append(path)
            elif kind == stat.S_IFBLK or (
                kind == stat.S_IFCHR and not _is_usual(path, status.st_rdev)
            ):
                found["devices"].append(path)
    return {"folders": folders, **{name: sorted(paths)[:500] for name, paths in found.items()}}


def _look_at(path: str, mode: int, mount_points: set[str], found: dict[str, list[str]]) -> None:
    if path in mount_points:  # mounted by itself, so nothing would be copied
        can = attempt(lambda: os.close(os.open(path, os.O_WRONLY | os.O_NOFOLLOW)))
        writable = not refused(can)
    else:
        writable = os.access(path, os.W_OK)
    if writable and not path.startswith(("/tmp/", "/data/")):
        found["writable"].append(path)
    if mode & (stat.S_ISUID | stat.S_ISGID):
        found["setuid"].append(path)
    if mode & 0o111 and path.rsplit("/", 1)[-1] in SHELLS:
        found["shells"].append(path)
    with suppress(OSError):  # most have none
        if os.getxattr(path, "security.capability", follow_symlinks=False):
            found["capable"].append(path)


def _is_usual(path: str, device: int) -> bool:
    # The console of a container with a terminal is one of the pseudo-terminals.
    if path == "/dev/console" or path.startswith(TERMINALS):
        return True
    return (os.major(device), os.minor(device)) in USUAL_DEVICES


def mounts() -> dict[str, dict[str, str]]:
    """Read what is mounted where; of several at one place the last, which hides the others."""
    found = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            mount, _, system = line.partition(" - ")
            fields, kind = mount.split(), system.split()
            if len(fields) > 5 and len(kind) > 2:
                found[_unescaped(fields[4])] = {
                    "options": fields[5],
                    "kind": kind[0],
                    "system_options": kind[-1][:1000],  # a layered one names every layer
                }
    return found


def _unescaped(path: str) -> str:
    for code, char in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        path = path.replace(f"\\{code}", char)
    return path


def process(number: str) -> dict[str, str]:
    """Read who a process is and what it may do."""
    wanted = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp")
    found = {}
    with open(f"/proc/{number}/status", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name in wanted or (name.startswith("Cap") and len(name) == 6):
                found[name] = " ".join(value.split())
    return found


def namespaces() -> dict[str, int]:
    """Read the numbers of this process's namespaces, which are the container's."""
    found = {}
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
        with suppress(OSError, ValueError):
            found[name] = int(os.readlink(f"/proc/self/ns/{name}").split("[")[1].rstrip("]"))
    return found


def read(path: str) -> str | None:
    """Return a short text of the kernel's, or nothing where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4000).strip()
    except OSError:
        return None


def limits() -> dict[str, str | None]:
    """Read the limits that are in force, of either version of control groups."""
    top = "/sys/fs/cgroup"
    if os.path.exists(f"{top}/cgroup.controllers"):
        places = {
            "pids": "pids.max",
            "memory": "memory.max",
            "swap": "memory.swap.max",
            "cpu": "cpu.max",
        }
        version = "2"
    else:
        places = {
            "pids": "pids/pids.max",
            "memory": "memory/memory.limit_in_bytes",
            "swap": "memory/memory.memsw.limit_in_bytes",
            "cpu": "cpu/cpu.cfs_quota_us",
        }
        version = "1"
    found = {name: read(f"{top}/{place}") for name, place in places.items()}
    swaps = read("/proc/swaps")
    return {
        "version": version,
        **found,
        "swap_areas": None if swaps is None else str(len(swaps.splitlines()) - 1),
    }


def become(*numbers: Callable[[], object]) -> str:
    """Try ways to become root, and return the first that was not refused, or how the last was."""
    said = "nothing"
    for way in numbers:
        said = attempt_in_child(way)
        if not refused(said) and said != "SIGSYS":
            break
    return said


def making_a_device() -> None:
    """Make the device that reads as zeros; it is removed at once."""
    path = unused_name("/tmp")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.unlink(path)


def giving_away() -> None:
    """Give a file to root."""
    file = open_nameless("/tmp")
    try:
        os.fchown(file, 0, 0)
    finally:
        os.close(file)


def running_from(folder: str) -> None:
    """Run a script from a folder: for a script, too, the kernel wants the right to run it."""
    file = open_nameless(folder)
    try:
        os.write(file, f"#!{sys.executable}\n".encode())
        name = f"/proc/self/fd/{file}"
        reading = os.open(name, os.O_RDONLY)  # nothing runs while it is open for writing
    finally:
        os.close(file)
    try:
        subprocess.run(  # noqa: S603
            [f"/proc/self/fd/{reading}"],
            pass_fds=[reading],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=20,
        )
    finally:
        os.close(reading)


def mapping_from(folder: str) -> None:
    """Load code from a file in a folder, as a shared library is loaded."""
    file = open_nameless(folder)
    try:
        os.truncate(file, mmap.PAGESIZE)
        mmap.mmap(file, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    finally:
        os.close(file)


def attempts() -> dict[str, str]:
    """Try what a process without any right must not be able to do."""
    return {
        "become user 0": become(
            lambda: os.setuid(0), lambda: os.setreuid(0, 0), lambda: os.setresuid(0, 0, 0)
        ),
        "become group 0": become(lambda: os.setgid(0), lambda: os.setresgid(0, 0, 0)),
        "join group 0": become(lambda: os.setgroups([0])),
        "give a file to root": attempt(giving_away),
        "make a device": attempt(making_a_device),
        "open a raw socket": attempt(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
        ),
        "open a packet socket": attempt(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
        ),
        "change a kernel setting": attempt(
            lambda: os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
        ),
        "run a file in /tmp": attempt(lambda: running_from("/tmp")),
        "load code from /tmp": attempt(lambda: mapping_from("/tmp")),
        "run a file in /data": attempt(lambda: running_from("/data")),
        "start a shell": attempt(
            lambda: subprocess.run("exit", shell=True, check=True, capture_output=True, timeout=20)  # noqa: S602, S607
        ),
    }


def interpreter(flags: list[str]) -> dict[str, object]:
    """Tell what the interpreter finds and where it looks, started as the service starts it."""
    told = subprocess.run(  # noqa: S603
        [sys.executable, *flags, "-c", "import json, sys; print(json.dumps(sys.path))"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=20,
    )
    folders = [os.path.abspath(each) for each in json.loads(told.stdout or b"[]")]
    return {
        "path": folders,
        "writable_path": [each for each in folders if not refused(putting(each))],
        "modules": [name for name in INSTALLERS if _is_there(name)],
        "cache_tag": sys.implementation.cache_tag,
        "magic": importlib.util.MAGIC_NUMBER.hex(),
    }


def putting(path: str) -> str:
    """Try to put something at a path where modules are looked for, there or not there yet."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    if os.path.isdir(path):
        return creating(path)
    return DONE if os.access(path, os.W_OK) else "EACCES"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def certificates() -> int:
    """Count the authorities that a TLS connection would trust."""
    try:
        return int(ssl.create_default_context().cert_store_stats()["x509_ca"])
    except (OSError, ValueError):
        return 0


def helsinki_in_july() -> int:
    """Return the seconds between a zone's summer time and UTC, or 0 without time zones."""
    try:
        offset = datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Helsinki")).utcoffset()
    except (LookupError, ValueError, OSError):
        return 0
    return int(offset.total_seconds()) if offset else 0


def group_of(path: str) -> int | None:
    """Return the number of the group that a device belongs to."""
    try:
        return os.stat(path).st_gid
    except OSError:
        return None


def mode_of(path: str) -> int | None:
    """Return the permission bits of a folder."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None


def answer(flags: list[str]) -> dict[str, object]:
    """Try and read everything.

    Args:
        flags: Of the interpreter, as the container's entry point has them.
    """
    mounted = mounts()
    machine = os.uname().machine
    return {
        "machine": machine,
        "users": list(os.getresuid()),
        "groups": list(os.getresgid()),
        "more_groups": os.getgroups(),
        "main_process": process("1"),
        "this_process": process("self"),
        "namespaces": namespaces(),
        "control_groups": (read("/proc/self/cgroup") or "").splitlines(),
        "limits": limits(),
        "mounts": mounted,
        "files": file_system(set(mounted)),
        "interpreter": interpreter(flags),
        "attempts": attempts(),
        "calls": calls(machine),
        "system": os.system("exit 0"),  # noqa: S605, S607
        "certificates": certificates(),
        "summer_time": helsinki_in_july(),
        "tpm_group": group_of("/dev/tpmrm0"),
        "data_mode": mode_of("/data"),
    }


def main(arguments: list[str]) -> None:
    """Print the answer."""
    signal.alarm(SECONDS)
    print(json.dumps(answer(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
