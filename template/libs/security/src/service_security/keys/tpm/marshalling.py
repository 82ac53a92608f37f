"""Numbers and sized fields of a TPM's messages. Nothing that a device says is trusted.

Everything is big-endian, and a sized field is ``size u16 || bytes``, which the specification calls
TPM2B (TCG TPM 2.0 Library, Part 1, 5.2.3 and Part 2, 10.4).
"""

from .errors import malformed


def sized(data: bytes) -> bytes:
    """Return ``data`` with its size before it; at most 65,535 bytes."""
    return len(data).to_bytes(2) + data


class Reader:
    """Takes numbers and bytes off a message, never past its end."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes.

        Raises:
            NotATpmError: There are fewer.
        """
        if size > len(self._rest):
            raise malformed("a response ends early")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def number(self, size: int) -> int:
        """Return the number in the next ``size`` bytes.

        Raises:
            NotATpmError: There are fewer.
        """
        return int.from_bytes(self.take(size))

    def sized(self) -> bytes:
        """Return the contents of a sized field.

        Raises:
            NotATpmError: It goes past the end.
        """
        return self.take(self.number(2))

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._rest))

    def end(self) -> None:
        """See that nothing is left.

        Raises:
            NotATpmError: Something is.
        """
        if self._rest:
            raise malformed("a response goes on after its end")
