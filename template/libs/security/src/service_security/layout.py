"""Where a service keeps what this library reads and writes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The data folder of a service.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def database(self) -> Path:
        """The records, plain or encrypted; the tables in it tell which."""
        return self.path / "records.db"

    @property
    def envelope(self) -> Path:
        """The sealed master key."""
        return self.path / "envelope.json"
