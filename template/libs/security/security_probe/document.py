"""JSON from elsewhere: what is asked of it is there and of its kind, or it is not shown."""

import json
from dataclasses import dataclass
from typing import Final, TypeVar

_Kind = TypeVar("_Kind")

LARGEST: Final = 4 << 20
"""Bytes of a document that is read."""


class NotShownError(Exception):
    """A fact is missing or is not what it should be: the point that needs it does not hold."""


def parse(text: str | bytes) -> object:
    """Read JSON strictly: no name twice, no NaN, and not more than a few megabytes.

    Raises:
        NotShownError: It is something else.
    """
    if len(text) > LARGEST:
        raise NotShownError(f"it has more than {LARGEST >> 20} MiB")
    try:
        found: object = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8, bad JSON, huge numbers
        raise NotShownError("it is not JSON") from error
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _refuse(constant: str) -> object:
    raise ValueError(constant)


@dataclass(frozen=True)
class Document:
    """A part of a JSON document, which knows what to call itself.

    Lists and tables may be ``null``: that is how the engine writes empty ones. They may not be
    missing.
    """

    name: str
    value: object

    def part(self, *path: str) -> "Document":
        """Return what lies at a path.

        Raises:
            NotShownError: Nothing does.
        """
        place, value = self.name, self.value
        for step in path:
            place = f"{place}.{step}"
            if not isinstance(value, dict) or step not in value:
                raise NotShownError(f"{place} is not shown")
            value = value[step]
        return Document(place, value)

    def has(self, *path: str) -> bool:
        """Tell whether something lies at a path, which ``null`` is not."""
        try:
            return self.part(*path).value is not None
        except NotShownError:
            return False

    def text(self, *path: str) -> str:
        """Return a string."""
        return self._of_kind(str, "text", path)

    def flag(self, *path: str) -> bool:
        """Return a truth value."""
        return self._of_kind(bool, "true or false", path)

    def number(self, *path: str) -> int:
        """Return a whole number."""
        found = self._of_kind(int, "a whole number", path)
        if isinstance(found, bool):
            raise NotShownError(f"{self.part(*path).name} is not a whole number")
        return found

    def entries(self, *path: str) -> list["Document"]:
        """Return the parts of a list."""
        part = self.part(*path)
        if part.value is None:
            return []
        found: list[object] = part._of_kind(list, "a list", ())
        return [Document(f"{part.name}[{place}]", value) for place, value in enumerate(found)]

    def texts(self, *path: str) -> list[str]:
        """Return a list of strings."""
        return [entry.text() for entry in self.entries(*path)]

    def table(self, *path: str) -> dict[str, "Document"]:
        """Return the parts of an object by their names."""
        part = self.part(*path)
        if part.value is None:
            return {}
        found: dict[object, object] = part._of_kind(dict, "a table", ())
        if not all(isinstance(name, str) for name in found):
            raise NotShownError(f"{part.name} has a name that is not text")
        return {str(name): Document(f"{part.name}.{name}", each) for name, each in found.items()}

    def _of_kind(self, kind: type[_Kind], called: str, path: tuple[str, ...]) -> _Kind:
        part = self.part(*path)
        if not isinstance(part.value, kind):
            raise NotShownError(f"{part.name} is not {called}")
        return part.value
