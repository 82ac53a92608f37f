"""The container's seccomp profile without a container: compiled by libseccomp, asked, and loaded.

As a program, ``python seccomp_filter.py PROFILE PROGRAM ...``, it loads a profile into itself and becomes
another program. An errno before the profile (``--errno 99 PROFILE ...``) is what refused calls get instead of
the profile's own, to tell them from what the kernel refuses anyway.
"""

import ctypes
import ctypes.util
import json
import os
import platform
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

ALLOW: Final = 0x7FFF0000
ERRNO: Final = 0x00050000
LAYERS: Final = {"amd64": 0xC000003E, "arm64": 0xC00000B7}
"""The kernel's numbers of the architectures, which are libseccomp's as well."""
NATIVE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "")
_ARCHITECTURES: Final = {"SCMP_ARCH_X86_64": "amd64", "SCMP_ARCH_AARCH64": "arm64"}
_COMPARISONS: Final = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
_UNKNOWN: Final = -1
_NEWER: Final = {"fchmodat2": (2, 5, 5)}
"""Names that an older libseccomp does not know; it passes them over, as the container engine does."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Return libseccomp; None where there is none."""
    name = ctypes.util.find_library("seccomp")
    if name is None:
        return None
    found = ctypes.CDLL(name, use_errno=True)
    found.seccomp_init.restype = ctypes.c_void_p
    found.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    for function, arguments in {
        "seccomp_arch_add": [ctypes.c_void_p, ctypes.c_uint32],
        "seccomp_arch_remove": [ctypes.c_void_p, ctypes.c_uint32],
        "seccomp_rule_add_array": [
            *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
            ctypes.POINTER(_Comparison),
        ],
        "seccomp_load": [ctypes.c_void_p],
        "seccomp_export_bpf": [ctypes.c_void_p, ctypes.c_int],
        "seccomp_syscall_resolve_name_arch": [ctypes.c_uint32, ctypes.c_char_p],
    }.items():
        getattr(found, function).argtypes = arguments
    return found


def _library() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise OSError("there is no libseccomp.so.2")
    return found


def number(name: str, architecture: str) -> int:
    """Return the number of a system call; negative where the architecture has none of that name."""
    return int(_library().seccomp_syscall_resolve_name_arch(LAYERS[architecture], name.encode()))


def exists(name: str, architecture: str) -> bool:
    """Tell whether an architecture has a call of that name; the newest count as there."""
    version = tuple(_library().seccomp_version().contents)
    if name in _NEWER and version < _NEWER[name]:
        return True
    return number(name, architecture) >= 0


def _checked(status: int, what: str) -> None:
    if status < 0:
        raise OSError(-status, f"{what}: {os.strerror(-status)}")


@dataclass(frozen=True)
class Profile:
    """A profile as container engines read it."""

    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Read a file."""
        return cls(json.loads(path.read_text()))

    @property
    def architectures(self) -> list[str]:
        """The architectures of the map, in our names."""
        return [_ARCHITECTURES[entry["architecture"]] for entry in self.content["archMap"]]

    def names(self, action: str) -> set[str]:
        """Return all names of rules with one action."""
        return {
            name for rule in self.content["syscalls"] if rule["action"] == action for name in rule["names"]
        }

    def _context(self, architecture: str, errno: int | None) -> int:
        if self.content["defaultAction"] != "SCMP_ACT_ERRNO":
            raise ValueError("calls without a rule are not refused")
        default = ERRNO | (self.content["defaultErrnoRet"] if errno is None else errno)
        context = _library().seccomp_init(default)
        if architecture != NATIVE:
            _checked(_library().seccomp_arch_add(context, LAYERS[architecture]), architecture)
            _checked(_library().seccomp_arch_remove(context, LAYERS[NATIVE]), NATIVE)
        for rule in self.content["syscalls"]:
            action = ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else ERRNO | rule["errnoRet"]
            arguments = [
                _Comparison(
                    entry["index"], _COMPARISONS[entry["op"]], entry["value"], entry.get("valueTwo", 0)
                )
                for entry in rule.get("args", ())
            ]
            for name in rule["names"]:
                # libseccomp translates this machine's numbers, also those that stand for none here.
                if (call := number(name, NATIVE)) != _UNKNOWN:
                    array = (_Comparison * max(1, len(arguments)))(*arguments)
                    status = _library().seccomp_rule_add_array(context, action, call, len(arguments), array)
                    _checked(status, name)
        return int(context)

    def compiled(self, architecture: str) -> list[tuple[int, int, int, int]]:
        """Return the filter as the kernel would get it."""
        with tempfile.TemporaryFile() as file:
            _checked(
                _library().seccomp_export_bpf(self._context(architecture, None), file.fileno()), "export"
            )
            file.seek(0)
            return list(struct.iter_unpack("=HBBI", file.read()))

    def load(self, errno: int | None = None) -> None:
        """Load it into this process, for good."""
        _checked(_library().seccomp_load(self._context(NATIVE, errno)), "load")


def answer(program: Sequence[tuple[int, int, int, int]], layer: int, call: int, *arguments: int) -> int:
    """Run a compiled filter on a call, as the kernel does, and return what it decides."""
    padded = [value & 0xFFFFFFFFFFFFFFFF for value in (*arguments, *[0] * 6)][:6]
    data = struct.pack("=iIQ6Q", call, layer, 0, *padded)
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, constant = program[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x05:
                at += constant
            case 0x15:
                at += if_true if accumulator == constant else if_false
            case 0x25:
                at += if_true if accumulator > constant else if_false
            case 0x35:
                at += if_true if accumulator >= constant else if_false
            case 0x45:
                at += if_true if accumulator & constant else if_false
            case 0x06:
                return constant
            case _:
                raise ValueError(f"an instruction that filters do not have: {code:#x}")


if __name__ == "__main__":
    _arguments = sys.argv[1:]
    _errno = int(_arguments[1]) if _arguments[0] == "--errno" else None
    _path, *_program = _arguments[2:] if _errno is not None else _arguments
    Profile.read(Path(_path)).load(_errno)
    os.execv(_program[0], _program)  # noqa: S606
