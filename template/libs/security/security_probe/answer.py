"""Runs ``inside.py`` in a container, and checks that the answer has the form it should have.

The form is written out below; whatever deviates, by a name more, a name less or a value of another
kind, is no answer.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Final

from . import inside
from .document import Document, NotShownError, parse
from .engine import Engine
from .facts import NotFound
from .plain_text import plain

MOST: Final = 4000
"""Entries of a list or table, and characters of a text."""

_TEXTS: Final = [str]
_PROCESS: Final = dict.fromkeys(
    (
        *("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp"),
        *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    ),
    str,
)
_LIMIT: Final = (str, NoneType)
_NUMBER: Final = (int, NoneType)


class Named:
    """A table whose names are not known, with values of one form."""

    def __init__(self, form: object) -> None:
        self.form = form


FORM: Final[dict[str, object]] = {
    "machine": str,
    "users": [int],
    "groups": [int],
    "more_groups": [int],
    "main_process": _PROCESS,
    "this_process": _PROCESS,
    "namespaces": Named(int),
    "control_groups": _TEXTS,
    "limits": dict.fromkeys(("version", "pids", "memory", "swap", "cpu", "swap_areas"), _LIMIT),
    "mounts": Named(dict.fromkeys(("options", "kind", "system_options"), str)),
    "files": {
        "folders": int,
        **dict.fromkeys(
            ("writable", "hidden", "setuid", "capable", "shells", "devices", "sockets"), _TEXTS
        ),
    },
    "interpreter": {
        "path": _TEXTS,
        "writable_path": _TEXTS,
        "modules": _TEXTS,
        "cache_tag": str,
        "magic": str,
    },
    "attempts": Named(str),
    "calls": Named(str),
    "system": int,
    "certificates": int,
    "summer_time": int,
    "tpm_group": _NUMBER,
    "data_mode": _NUMBER,
}

_FLAG: Final = re.compile(r"-[A-Za-z]+")


def interpreter_of(entry_point: Sequence[str]) -> tuple[str | None, list[str]]:
    """Find the Python in the command of a container, and the flags that it is started with."""
    for place, word in enumerate(entry_point):
        if word.startswith("/") and re.fullmatch(r"python[0-9.]*", PurePosixPath(word).name):
            flags = []
            for flag in entry_point[place + 1 :]:
                if not _FLAG.fullmatch(flag) or flag in ("-m", "-c"):
                    break
                flags.append(flag)
            return word, flags
    return None, []


def ask(engine: Engine, container: str, entry_point: Sequence[str]) -> Document | NotFound:
    """Run the program inside and return its answer.

    Args:
        engine: The engine.
        container: Number of the container.
        entry_point: The container's command: its interpreter runs the program.
    """
    found, flags = interpreter_of(entry_point)
    program = Path(inside.__file__).read_bytes()
    said = "there is no Python in it that could be asked"
    for interpreter in [found] if found else ["python3", "python"]:
        answer = engine.run(
            *("exec", "-i", container, interpreter, "-I", "-B", "-", *flags),
            given=program,
            seconds=inside.SECONDS + 30,
            most=4 << 20,
        )
        if answer.status == 0:
            return _checked(answer.text)
        said = f"the program inside was not run by {plain(interpreter, 80)}: {answer.complaint}"
    return NotFound(said)


def _checked(text: bytes) -> Document | NotFound:
    try:
        found = parse(text)
        check(found, FORM, "answer")
    except NotShownError as error:
        return NotFound(f"the program inside gave no valid answer: {error}")
    return Document("inside", found)


def check(value: object, form: object, name: str) -> None:
    """See that a value has a form.

    Args:
        value: From JSON.
        form: A type, a tuple of types, a list with the form of each entry, a dictionary with the
            form behind each name, or ``Named``.
        name: What to call the value.

    Raises:
        NotShownError: It has another.
    """
    if isinstance(form, Named):
        for key, part in _table(value, name).items():
            check(key, str, f"a name in {name}")
            check(part, form.form, f"{name}.{plain(str(key), 80)}")
    elif isinstance(form, dict):
        table = _table(value, name)
        if odd := sorted(str(each) for each in table.keys() ^ form.keys()):
            raise NotShownError(f"{name} has {plain(odd[0], 80)}, or has it not, wrongly")
        for key, part in table.items():
            check(part, form[key], f"{name}.{key}")
    elif isinstance(form, list):
        if not isinstance(value, list) or len(value) > MOST:
            raise NotShownError(f"{name} is not a list of at most {MOST:,} entries")
        for part in value:
            check(part, form[0], f"an entry of {name}")
    elif isinstance(value, bool) or not isinstance(value, form):  # type: ignore[arg-type]
        raise NotShownError(f"{name} is of another kind")
    elif isinstance(value, str) and len(value) > MOST:
        raise NotShownError(f"{name} has more than {MOST:,} characters")


def _table(value: object, name: str) -> dict[object, object]:
    if not isinstance(value, dict) or len(value) > MOST:
        raise NotShownError(f"{name} is not a table of at most {MOST:,} entries")
    return value
