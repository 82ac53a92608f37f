"""Reads the seccomp profile that a container was given: what it lets through."""

from collections.abc import Iterator, Sequence
from typing import Final

from .document import Document, NotShownError, parse

DENYING: Final = frozenset(
    {"SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD"}
)
NAMESPACES: Final = 0x7E020000
"""The bits of ``clone`` that ask for a new namespace."""

_DANGEROUS: Final = (
    "_sysctl acct add_key bpf chroot clock_settime clone3 create_module delete_module "
    "finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module io_uring_enter "
    "io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl "
    "lookup_dcookie mknod mknodat mount mount_setattr move_mount move_pages name_to_handle_at "
    "nfsservctl open_by_handle_at open_tree perf_event_open pivot_root process_vm_readv "
    "process_vm_writev ptrace query_module quotactl reboot request_key setdomainname "
    "sethostname setns settimeofday swapoff swapon syslog umount umount2 unshare uselib "
    "userfaultfd ustat vhangup vm86 vm86old"
)
DANGEROUS: Final = frozenset(_DANGEROUS.split())
"""Calls that open a way to the kernel or to other processes, and that no service makes."""


def problems_of(options: Sequence[str]) -> Iterator[str]:
    """Tell what is wrong with the profile among a container's security options.

    Raises:
        NotShownError: There is no profile among them that could be read.
    """
    given = [each for each in options if each.startswith("seccomp")]
    if not given:
        raise NotShownError("the container has no seccomp profile of its own")
    if len(given) > 1:
        raise NotShownError("the container has several seccomp profiles")
    text = given[0].removeprefix("seccomp").lstrip("=:")
    if text in ("unconfined", "builtin", ""):
        raise NotShownError(f"the seccomp profile is {text or 'empty'!r}")
    try:
        profile = Document("the seccomp profile", parse(text))
    except NotShownError as error:
        raise NotShownError(f"the seccomp profile cannot be read: {error}") from error
    default = profile.text("defaultAction")
    if default not in DENYING:
        yield f"What no rule names is not refused: the default action is {default[:40]}."
    allowed: set[str] = set()
    for rule in profile.entries("syscalls"):
        if rule.text("action") in DENYING or _needs_capability(rule):
            continue
        names = set(rule.texts("names"))
        if "clone" in names and not _forbids_namespaces(rule):
            allowed.add("clone with new namespaces")
        allowed |= names & DANGEROUS
    if allowed:
        yield f"The seccomp profile lets through: {', '.join(sorted(allowed))}."


def _needs_capability(rule: Document) -> bool:
    """Tell whether a rule is left out for a container without capabilities."""
    return rule.has("includes", "caps") and bool(rule.texts("includes", "caps"))


def _forbids_namespaces(rule: Document) -> bool:
    if not rule.has("args"):
        return False
    return any(
        arg.text("op") == "SCMP_CMP_MASKED_EQ"
        and arg.number("index") == 0
        and arg.number("value") & NAMESPACES == NAMESPACES
        and (not arg.has("valueTwo") or arg.number("valueTwo") & NAMESPACES == 0)
        for arg in rule.entries("args")
    )
