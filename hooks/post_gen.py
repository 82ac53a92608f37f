"""Prune the pieces of the hardening that the answers leave unused; pieces.json says which files they own.

Copier runs this after rendering, with the project as working directory, and three times in an update: over a
fresh render of the old version, over the project itself, over a fresh render of the new version. In the
second one the user's edits are not there yet, and copier brings them back only if this program exits with 0.
So whatever it finds on disk, it says so and goes on.

A file is deleted only if it is byte for byte the one that this version of the template ships: anything else
may be somebody's work, and a git-ignored file would not even show in the diff. No link is followed, because
the folder behind one is not ours. Standard library only, Python 3.10 and later: it runs on copier's Python.
"""

import json
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

_HERE = Path(__file__).resolve().parent
_SHIPPED = _HERE.parent / "template"


class Piece(TypedDict):
    """One entry of pieces.json: paths are those of template/, with forward slashes."""

    answer: str
    requires: list[str]
    files: list[str]
    folders: list[str]


def dropped(pieces: Mapping[str, Piece], answers: Mapping[str, str]) -> list[str]:
    """Name the pieces to prune: those answered with no, and every piece that requires one of them.

    An answer that was not passed drops nothing.
    """
    gone = [name for name, piece in pieces.items() if answers.get(piece["answer"]) == "False"]
    for name in gone:  # grows while it is walked
        gone += [other for other in pieces if name in pieces[other]["requires"] and other not in gone]
    return gone


def prune_file(path: str) -> str | None:
    """Delete the file if it is the template's own; otherwise return why it was kept."""
    target, shipped = Path(path), _SHIPPED / path
    try:
        if not os.path.lexists(target):
            return None
        if not _within_reach(target):
            return "it lies behind a link"
        info = target.lstat()
        if not stat.S_ISREG(info.st_mode):
            return "it is not an ordinary file"
        if not shipped.is_file():
            return "this version of the template ships no such file"
        if info.st_size != shipped.stat().st_size or target.read_bytes() != shipped.read_bytes():
            return "it differs from the template's"
        target.unlink()
    except OSError as error:
        return f"it cannot be read or deleted ({error.strerror})"
    return None


def prune_folder(path: str) -> str | None:
    """Remove the folder if it is the template's and empty by now; otherwise return why it was kept."""
    target = Path(path)
    try:
        if not os.path.lexists(target):
            return None
        if not _within_reach(target):
            return "it lies behind a link"
        if not stat.S_ISDIR(target.lstat().st_mode):
            return "it is not a folder"
        if not (_SHIPPED / path).is_dir():
            return "this version of the template ships no such folder"
        if any(target.iterdir()):
            return "there are other files in it"
        target.rmdir()
    except OSError as error:
        return f"it cannot be read or removed ({error.strerror})"
    return None


def _within_reach(target: Path) -> bool:
    """Tell whether the folder around it is the project's own, with no link or Windows junction on the way."""
    return (
        not target.is_absolute()
        and Path(os.path.realpath(target.parent)) == Path(os.path.realpath(".")) / target.parent
    )


def _say(line: str) -> None:
    # Not print(): a closed pipe would turn into an exit code, and that would cost the user's edits.
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


def main(arguments: list[str]) -> None:
    """Prune what the answers, given as --name=value, leave unused."""
    answers = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
    if answers.get("enable-security-hardening") != "True":
        return  # then copier rendered none of the pieces, and whatever has their names is the user's
    pieces: dict[str, Piece] = json.loads((_HERE / "pieces.json").read_text(encoding="utf-8"))
    for name in dropped(pieces, answers):
        for path in pieces[name]["files"]:
            if (reason := prune_file(path)) is not None:
                _say(f"kept {path}: {reason}")
        for path in sorted(pieces[name]["folders"], reverse=True):  # the inner ones first
            if (reason := prune_folder(path)) is not None:
                _say(f"kept {path}/: {reason}")


if __name__ == "__main__":
    main(sys.argv[1:])
