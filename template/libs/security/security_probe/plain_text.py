"""Strings that others chose, made fit to print: on one line, bounded, without control characters.

An escape sequence in a file name could repaint the terminal that shows a verdict, and a newline or
a pipe could add a row to the table of a report.
"""

import re
from collections.abc import Collection, Iterable
from typing import Final

LONGEST: Final = 300
"""Characters of a string that is printed."""

_MEANS_SOMETHING: Final = re.compile(r"[\\`*_{}\[\]<>()#+!|&~$@]")


def plain(text: str, longest: int = LONGEST) -> str:
    r"""Return a string with everything that is not printable as ``\xNN``, cut where it is too long.

    What steers the direction of text or has no width counts as not printable.
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode()
        for char in text[: longest + 1]
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def markdown(text: str, longest: int = LONGEST) -> str:
    """Return a string as Markdown that shows it and does nothing else: no link, no markup, no HTML.

    Every character that could mean something is written by its number, which no dialect reads as
    markup, inside a table neither.
    """
    shown = _MEANS_SOMETHING.sub(lambda found: f"&#{ord(found[0])};", plain(text, longest))
    return shown.replace("://", "&#58;//").replace("www.", "www&#46;")


def some(names: Collection[str], most: int = 5) -> str:
    """List the first few of many names."""
    first = ", ".join(plain(name, 100) for name in sorted(names)[:most])
    return f"{first} and {len(names) - most} more" if len(names) > most else first


def counted(number: int, noun: str, several: str = "") -> str:
    """Return a number and its noun, in the plural unless there is one."""
    return f"{number:,} {noun if number == 1 else several or f'{noun}s'}"


def listed(texts: Iterable[str]) -> str:
    """Join what may be nothing."""
    return ", ".join(texts) or "none"
