"""Run inside a unit: tries what the hardened one promises to keep out, and prints what it found as JSON.

Standard library only, and no import of the tests. A bare unit, which has none of the options, answers every
question otherwise.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

# Numbers of the kernel's tables (syscall(2)); from io_uring on they are the same everywhere.
NUMBERS = {
    "x86_64": {"keyctl": 250, "kcmp": 312, "memfd_create": 319, "userfaultfd": 323, "unshare": 272},
    "aarch64": {"keyctl": 219, "kcmp": 272, "memfd_create": 279, "userfaultfd": 282, "unshare": 97},
}[os.uname().machine] | {"io_uring_setup": 425}
CLONE_NEWUTS, CLONE_NEWUSER = 0x04000000, 0x10000000
REFUSED = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT)

TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108
PSEUDO_DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}


def refused(name: str, attempt: Callable[[], object]) -> bool:
    """Return whether something is forbidden. That it fails for another reason is no answer.

    It is tried in a child, because what is allowed may change who the process is.
    """
    child = os.fork()
    if child == 0:
        status = 2
        try:
            attempt()
            status = 0
        except OSError as error:
            status = 1 if error.errno in REFUSED else 2
            if status == 2:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, 1):
        raise RuntimeError(f"{name}: neither allowed nor refused ({status})")
    return status == 1


def call(name: str, *arguments: object) -> None:
    """Make a system call that Python has no function for."""
    function = ctypes.CDLL(None, use_errno=True).syscall
    if function(NUMBERS[name], *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def writable_folders() -> list[str]:
    """Return the topmost folders that can be written to."""
    found: list[str] = []
    for folder, below, _ in os.walk("/"):
        if folder in ("/proc", "/sys"):
            below.clear()
        elif os.access(folder, os.W_OK):
            found.append(folder)
            below.clear()
    return found


def runs(command: list[str]) -> bool:
    """Return whether a program can be run."""
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.ENOENT):
            raise
        return False


def runs_what_it_writes(folder: str) -> bool:
    """Return whether a program can be put into a folder and run there."""
    program = Path(folder) / "program"
    shutil.copy(os.path.realpath(sys.executable), program)
    program.chmod(0o700)
    try:
        return runs([str(program), "--version"])
    finally:
        program.unlink()


def readable(paths: Iterable[str]) -> list[str]:
    """Return which files and folders can be read."""
    return [path for path in paths if os.access(path, os.R_OK)]


def devices() -> list[str]:
    """Return the devices below /dev that are more than a stream of zeros or chance, or a terminal."""
    nodes = [path for path in Path("/dev").iterdir() if not path.is_symlink() and not path.is_dir()]
    special = [path for path in nodes if path.is_block_device() or path.is_char_device()]
    return sorted(path.name for path in special if path.name not in PSEUDO_DEVICES)


def other_processes() -> list[str]:
    """Return the numbers of the processes that can be seen, but for this one."""
    numbers = [path.name for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [number for number in numbers if int(number) != os.getpid()]


def sends_to(address: str) -> bool:
    """Return whether a datagram leaves for an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return not refused(f"a datagram to {address}", lambda: sender.sendto(b"x", (address, 9)))


def threads_until_refused(wanted: int) -> int:
    """Start threads and return how many there can be, this one included."""
    done = threading.Event()
    started = []
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=done.wait)
            thread.start()
            started.append(thread)
    except RuntimeError:  # "can't start new thread"
        pass
    finally:
        done.set()
        for thread in started:
            thread.join()
    return len(started) + 1


def forbidden(folder: str) -> dict[str, Callable[[], object]]:
    """Return what is tried in a folder of one's own, by name."""
    own = Path(folder) / "own"
    own.touch()
    return {
        "a capability: chroot": lambda: os.chroot("/"),
        "a device node": lambda: os.mknod(Path(folder) / "node", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        "a file in memory": lambda: call("memfd_create", b"name", 0),
        "a handler of page faults": lambda: call("userfaultfd", 0),
        "a key of the kernel": lambda: call("keyctl", 0, -3, 1),
        "a namespace of host names": lambda: call("unshare", CLONE_NEWUTS),
        "a namespace of users": lambda: call("unshare", CLONE_NEWUSER),
        "a new owner": lambda: os.chown(own, os.geteuid(), os.getegid()),
        "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        "a page to write and to run": lambda: mmap.mmap(
            -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        ).close(),
        "a priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
        "a queue of system calls": lambda: call("io_uring_setup", 1, ctypes.create_string_buffer(120)),
        "a set-user-ID file": lambda: own.chmod(0o4700),
        "a socket of the kernel": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "a Unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "another process's files": lambda: call("kcmp", os.getpid(), os.getpid(), 1, 0, 0),
        "the choice of a processor": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
        "user 0": lambda: os.setuid(0),
    }


def main() -> None:
    """Try everything. Arguments: the data folder, paths to look for, and an address of this machine."""
    data, hidden, address = sys.argv[1], sys.argv[2].split(":"), sys.argv[3]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    writable = writable_folders()
    found = {
        "user ids": sorted({*os.getresuid(), *os.getresgid(), *os.getgroups()}),
        "capabilities": sorted({status[name].strip() for name in status if name.startswith("Cap")}),
        "no new privileges": status["NoNewPrivs"].strip(),
        "seccomp": status["Seccomp"].strip(),
        "writable": writable,
        "runs what it writes": [folder for folder in (*TEMPORARY, data) if runs_what_it_writes(folder)],
        "runs": [
            path
            for path in ("/bin/sh", "/usr/bin/env")
            if runs([path, "-c", "exit"] if "sh" in path else [path])
        ],
        "sees": readable(hidden),
        "other processes": other_processes()[:3],
        "devices": devices(),
        "sends to loopback": sends_to("127.0.0.1"),
        "sends to others": sends_to(address),
        "core size": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "threads": threads_until_refused(200),
        "allowed": sorted(name for name, attempt in forbidden(data).items() if not refused(name, attempt)),
    }
    for name in ("own", "node"):
        Path(data, name).unlink(missing_ok=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
