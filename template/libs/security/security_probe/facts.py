"""Everything that is known of a container when it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .document import Document, NotShownError
from .files import Tree

SERVICE_ID: Final = 65532
"""Number of the user and of the group that a service runs as."""
DATA: Final = "/data"
SCRATCH: Final = "/tmp"  # a tmpfs of the container's own
WRITABLE: Final = frozenset({DATA, SCRATCH})
TPM: Final = "/dev/tpmrm0"


@dataclass(frozen=True)
class NotTried:
    """What was left out, and why."""

    reason: str


@dataclass(frozen=True)
class NotFound:
    """What could not be found out, and why: the points that need it do not hold."""

    reason: str


@dataclass(frozen=True)
class Rebuild:
    """What came of building the image anew from the same folder.

    Attributes:
        before: The image that the container runs.
        after: The new one.
        histories: The steps of the two.
        differing: Files that are not the same in both; empty where nobody looked.
    """

    before: Document
    after: Document
    histories: tuple[Sequence[object], Sequence[object]]
    differing: Sequence[str] = ()


@dataclass(frozen=True)
class Restart:
    """What came of asking the container to end.

    Attributes:
        seconds: Until it had ended; it may have been a little sooner.
        after: What the engine said of it then.
        well_again: Whether it was back as it had been before, after it was started.
    """

    seconds: float
    after: Document
    well_again: bool


@dataclass(frozen=True)
class Facts:
    """What was collected.

    Attributes:
        image: What the engine says of the image.
        steps: How the image was made: the commands of its history.
        tree: The files of the image.
        container: What the engine says of the container.
        volumes: What the engine says of the volumes that are mounted, by their names.
        networks: What the engine says of the networks that it is in, by their names.
        inside: What the program inside answered; ``inside.py`` says what that is.
        rebuild: What came of building the image anew.
        restart: What came of a restart.
    """

    image: Document
    steps: Sequence[str] | NotFound
    tree: Tree | NotFound
    container: Document
    volumes: Document
    networks: Document
    inside: Document | NotFound
    rebuild: Rebuild | NotFound | NotTried
    restart: Restart | NotFound | NotTried

    @property
    def uses_tpm(self) -> bool:
        """Whether the container's key is held by a TPM, which it then needs to be given."""
        source = "SERVICE_KEY_SOURCE="
        return any(
            each.startswith(f"{source}tpm2") for each in self.container.texts("Config", "Env")
        )

    def files(self) -> Tree:
        """Return the files of the image.

        Raises:
            NotShownError: They could not be read, or are not those of a service in Python.
        """
        if isinstance(self.tree, NotFound):
            raise NotShownError(self.tree.reason)
        if not self.tree.has_python:
            raise NotShownError("there is no Python among the files of the image")
        return self.tree

    def answer(self, *path: str) -> Document:
        """Return a part of what the program inside answered.

        Raises:
            NotShownError: It gave no answer, or none to this.
        """
        if isinstance(self.inside, NotFound):
            raise NotShownError(self.inside.reason)
        return self.inside.part(*path)
