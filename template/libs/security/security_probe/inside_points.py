"""Points 27 to 36: what a process inside can do, tried there."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Final

from .document import Document, NotShownError
from .facts import SCRATCH, SERVICE_ID, TPM, WRITABLE, Facts, NotFound, NotTried
from .finding import Finding, Point, failed, finding, not_tried
from .inside import CALLS, DONE, SHELLS
from .plain_text import counted, plain, some

REFUSED: Final = frozenset({"EPERM", "EACCES", "EROFS", "ENOSYS", "SIGSYS"})
"""What a kernel says when it does not let one."""
CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NEEDS_CAPABILITY: Final = (
    "give a file to root",
    "make a device",
    "open a raw socket",
    "open a packet socket",
)
BECOMES_ROOT: Final = ("become user 0", "become group 0", "join group 0")
PATIENCE: Final = 3.0
"""Seconds from SIGTERM to the end."""
_WITHOUT_FILE: Final = frozenset({"FileNotFoundError", "ENOENT", "EPERM", "EACCES", "ENOSYS"})


def runs_as_one_user(facts: Facts) -> Finding:
    """Judge point 27: of the probe's process, and of the service's."""
    wanted = {SERVICE_ID}
    extra = {_tpm_group(facts)} if facts.uses_tpm else set()
    problems = []
    for what in ("users", "groups"):
        found = facts.answer(what)
        numbers = [each.number() for each in found.entries()]
        if len(numbers) != 3 or set(numbers) != wanted:
            problems.append(f"Real, effective and saved {what}: {_said(numbers)}.")
    more = {each.number() for each in facts.answer("more_groups").entries()}
    for status in (facts.answer("main_process"), facts.answer("this_process")):
        for kind in ("Uid", "Gid"):
            if status.text(kind).split() != [str(SERVICE_ID)] * 4:
                problems.append(f"{_process(status)} has {kind} {plain(status.text(kind), 60)}.")
        joined = _numbers(status.text("Groups"))
        if not extra <= joined <= wanted | extra:
            problems.append(f"{_process(status)} is in the groups {_said(joined) or 'none'}.")
    if not extra <= more <= wanted | extra:
        problems.append(f"More groups: {_said(more) or 'none'}.")
    evidence = f", and the group {_said(extra)} of {TPM}" if extra else ", no other group"
    return finding(problems, f"user and group {SERVICE_ID}{evidence}")


def _tpm_group(facts: Facts) -> int:
    group = facts.answer("tpm_group")
    if group.value is None:
        raise NotShownError(f"the group of {TPM}")
    if group.number() == 0:
        raise NotShownError(f"that {TPM} has a group of its own: it belongs to root's")
    return group.number()


def _numbers(text: str) -> set[int]:
    if not re.fullmatch(r"(?:[0-9]{1,10} ?)*", text):
        raise NotShownError("the groups of a process")
    return {int(word) for word in text.split()}


def _said(numbers: Collection[int]) -> str:
    return " ".join(str(each) for each in sorted(numbers)[:20])


def _process(status: Document) -> str:
    return "Process 1" if status.name.endswith("main_process") else "A new process"


def has_no_capability(facts: Facts) -> Finding:
    """Judge point 28: the five sets, and what could be done with four of them."""
    problems = []
    for status in (facts.answer("main_process"), facts.answer("this_process")):
        for name in CAPABILITIES:
            if not re.fullmatch(r"0{16}", status.text(name)):
                problems.append(f"{_process(status)} has {name} {plain(status.text(name), 40)}.")
    problems += _not_refused(facts, NEEDS_CAPABILITY)
    return finding(problems, "five empty sets; chown, mknod, raw and packet sockets refused")


def _not_refused(facts: Facts, names: Sequence[str]) -> Iterator[str]:
    attempts = facts.answer("attempts")
    for name in names:
        if (said := attempts.text(name)) == DONE:
            yield f"It could {name}."
        elif said not in REFUSED:
            yield f"To {name} was not refused, it ended with {plain(said, 40)}."


def can_gain_nothing(facts: Facts) -> Finding:
    """Judge point 29."""
    return _both(facts, "NoNewPrivs", "1")


def is_filtered(facts: Facts) -> Finding:
    """Judge point 30: the kernel's word for it, and dangerous calls made."""
    states = _both(facts, "Seccomp", "2")
    tried = facts.answer("calls").table()
    missing = {*CALLS, "unshare"} - tried.keys()
    if missing:
        machine = plain(facts.answer("machine").text(), 40)
        raise NotShownError(f"the calls {some(missing)}, which were not made on {machine}")
    allowed = {
        f"{name} ({plain(said.text(), 20)})"
        for name, said in tried.items()
        if said.text() not in ("EPERM", "ENOSYS", "SIGSYS")
    }
    problems = [*states.problems]
    if allowed:
        problems.append(f"Let through: {some(allowed, 30)}.")
    return finding(problems, f"filter in force; {len(tried)} dangerous calls made and refused")


def _both(facts: Facts, name: str, wanted: str) -> Finding:
    found = {
        _process(status): status.text(name)
        for status in (facts.answer("main_process"), facts.answer("this_process"))
    }
    problems = [
        f"{who} has {name} {plain(value, 20)}." for who, value in found.items() if value != wanted
    ]
    return finding(problems, f"{name} {wanted}")


def writes_only_where_it_may(facts: Facts) -> Finding:
    """Judge point 31."""
    files = facts.answer("files")
    writable = set(files.texts("writable"))
    hidden = files.texts("hidden")
    folders = files.number("folders")
    if folders < len(WRITABLE):
        raise NotShownError("that folders were tried")
    problems = []
    if others := writable - WRITABLE:
        problems.append(f"Can be written to: {some(others, 20)}.")
    if missing := WRITABLE - writable:
        problems.append(f"Cannot be written to: {some(missing)}.")
    if hidden:
        problems.append(f"Could not be looked into: {some(hidden)}.")
    return finding(problems, f"{counted(folders, 'folder')} tried: only {some(WRITABLE)}")


def imports_nothing_planted(facts: Facts) -> Finding:
    """Judge point 32."""
    interpreter = facts.answer("interpreter")
    path, writable = interpreter.texts("path"), interpreter.texts("writable_path")
    if not path:
        raise NotShownError("where the interpreter looks for modules")
    problems = [f"Modules could be planted in {some(writable)}."] if writable else []
    return finding(problems, f"{len(path)} places for modules, none can be written to")


def has_no_shell(facts: Facts) -> Finding:
    """Judge point 33: none among the files, and none that starts."""
    shells = {
        f"/{path}" for path, _ in facts.files().programs() if PurePosixPath(path).name in SHELLS
    } | set(facts.answer("files").texts("shells"))
    problems = [f"Shells: {some(shells)}."] if shells else []
    if facts.answer("system").number() == 0:
        problems.append("os.system runs a command.")
    said = facts.answer("attempts").text("start a shell")
    if said not in _WITHOUT_FILE:
        problems.append(f"Starting a shell ended with {plain(said, 40)}.")
    return finding(problems, "none among the files, os.system fails")


def cannot_become_root(facts: Facts) -> Finding:
    """Judge point 34."""
    return finding(
        [*_not_refused(facts, BECOMES_ROOT)], "setuid, setgid and setgroups to 0 refused"
    )


def mounts_are_closed(facts: Facts) -> Finding:
    """Judge point 35: as they are mounted, and as tried."""
    mounts = facts.answer("mounts")
    problems = []
    for place, wanted in (("/", "ro"), (SCRATCH, "noexec"), ("/proc/sys", "ro")):
        if place not in mounts.table():
            problems.append(f"{place} is not mounted on its own.")
        elif wanted not in mounts.text(place, "options").split(","):
            problems.append(f"{place} is mounted without {wanted}.")
    names = ("run a file in /tmp", "load code from /tmp", "change a kernel setting")
    problems += _not_refused(facts, names)
    return finding(problems, "/ and /proc/sys read-only, nothing runs from /tmp")


def ends_when_asked(facts: Facts) -> Finding:
    """Judge point 36."""
    done = facts.restart
    if isinstance(done, NotTried):
        return not_tried(done)
    if isinstance(done, NotFound):
        return failed([f"Not shown: {done.reason}."])
    signal = "SIGTERM"
    if facts.container.has("Config", "StopSignal"):
        signal = facts.container.text("Config", "StopSignal") or signal
    state = done.after.part("State")
    status = state.number("ExitCode")
    problems = []
    if signal.removeprefix("SIG") not in ("TERM", "15"):
        problems.append(f"It is stopped by {plain(signal, 20)}, not by SIGTERM.")
    if state.flag("Running") or state.text("Status") != "exited":
        problems.append("It did not end.")
    if status != 0:
        problems.append(f"It ended with status {status}.")
    if state.flag("OOMKilled"):
        problems.append("The kernel ended it for lack of memory.")
    if not 0 <= done.seconds <= PATIENCE:
        problems.append(f"It took {done.seconds:.1f} s to end.")
    if not done.well_again:
        problems.append("After it was started again it was not as well as before.")
    return finding(problems, f"status 0 after {done.seconds:.1f} s, well again after a start")


POINTS: Final[Sequence[Point]] = (
    Point(
        27,
        "User and group 65532 throughout, and no other group",
        "A group opens what the user may not. A service whose key is in a TPM has that device's.",
        runs_as_one_user,
    ),
    Point(
        28,
        "Five empty sets of capabilities",
        "With a set that is not empty a process could get back what it does not use now.",
        has_no_capability,
    ),
    Point(
        29,
        "NoNewPrivs is set",
        "The kernel's own word that point 18 is in force.",
        can_gain_nothing,
    ),
    Point(
        30,
        "The filter for system calls is in force",
        "A profile that was not loaded refuses nothing, so the calls are made.",
        is_filtered,
    ),
    Point(
        31,
        "Only /tmp and /data can be written to",
        "Every other place is one where an intruder could leave something.",
        writes_only_where_it_may,
    ),
    Point(
        32,
        "No place for modules can be written to",
        "A module planted there runs as the service at its next start.",
        imports_nothing_planted,
    ),
    Point(
        33,
        "No shell, and os.system fails",
        "Injected commands and most ready-made exploits need one.",
        has_no_shell,
    ),
    Point(34, "To become root is refused", "Tried, whatever the settings say.", cannot_become_root),
    Point(
        35,
        "/ and /proc/sys are read-only, and nothing runs from /tmp",
        "What was written or downloaded cannot be run, and the kernel's settings stay.",
        mounts_are_closed,
    ),
    Point(
        36,
        "SIGTERM ends it with status 0 within 3 seconds",
        "What is killed instead loses requests, and an update takes the whole grace period.",
        ends_when_asked,
    ),
)
