"""The PCRs that a key is bound to: registers that firmware and boot loader measure into.

::

    selection = count u32 || bank u16 || 3 u8 || bits, PCR 0 is the lowest bit of the first byte
    policy    = SHA-256(zeros32 || PolicyPCR u32 || selection || SHA-256(values in order))

(TCG TPM 2.0 Library, Part 2, 10.6.2 and 10.9.7; Part 3, 23.7.) Only the SHA-256 bank is used; no
PCRs at all are a selection of count 0.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from ...errors import ConfigurationError
from .errors import malformed
from .marshalling import Reader

LAST: Final = 23
POLICY_PCR: Final = 0x17F
DIGEST_BYTES: Final = 32
_SHA256 = 0x000B
_BYTES = 3
_UNMEASURED = (bytes(DIGEST_BYTES), b"\xff" * DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """Some PCRs of the SHA-256 bank.

    Attributes:
        numbers: 0 to 23, ascending.
    """

    numbers: tuple[int, ...] = ()

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Self:
        """Return the selection of PCRs that somebody asks for.

        Raises:
            ConfigurationError: A number is out of range, or twice there.
        """
        chosen = tuple(sorted(numbers))
        if len(set(chosen)) != len(chosen) or any(not 0 <= number <= LAST for number in chosen):
            raise ConfigurationError(
                f"PCRs are numbers from 0 to {LAST}, each once; "
                f"{','.join(map(str, numbers))} are not."
            )
        return cls(chosen)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the selection that ``str`` of it gave; None if it cannot be."""
        if text == "":
            return cls()
        if not re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2}){0,23}", text):
            return None
        numbers = tuple(map(int, text.split(",")))
        selection = cls(numbers)
        once = tuple(sorted(set(numbers))) == numbers
        return selection if once and numbers[-1] <= LAST and str(selection) == text else None

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Take the selection off a response that was asked about the SHA-256 bank.

        Raises:
            NotATpmError: It is about another bank.
        """
        banks = reader.number(4)
        if banks == 0:
            return cls()
        if banks != 1 or reader.number(2) != _SHA256 or reader.number(1) != _BYTES:
            raise malformed("it tells of other PCRs than it was asked for")
        bits = int.from_bytes(reader.take(_BYTES), "little")
        return cls(tuple(number for number in range(LAST + 1) if bits >> number & 1))

    def __str__(self) -> str:
        return ",".join(map(str, self.numbers))

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def __bytes__(self) -> bytes:
        """Return it as a TPM has it, a TPML_PCR_SELECTION."""
        if not self.numbers:
            return bytes(4)
        bits = sum(1 << number for number in self.numbers)
        head = b"\0\0\0\1" + _SHA256.to_bytes(2) + bytes([_BYTES])
        return head + bits.to_bytes(_BYTES, "little")

    def without(self, numbers: Sequence[int]) -> "PcrSelection":
        """Return the rest of it."""
        return PcrSelection(tuple(number for number in self.numbers if number not in numbers))

    def policy(self, values: Mapping[int, bytes]) -> bytes:
        """Return the digest of the policy that these PCRs have these values.

        Raises:
            ConfigurationError: One of them was never measured into: it has the value that it has
                at every start, whatever is started, so it would protect nothing.
        """
        idle = [number for number in self.numbers if values[number] in _UNMEASURED]
        if idle:
            raise ConfigurationError(
                f"This machine's firmware does not measure into PCR {','.join(map(str, idle))}: a "
                "key that is bound to it is bound to nothing. Choose others (7 is the state of "
                "Secure Boot), or none."
            )
        digest = hashlib.sha256(b"".join(values[number] for number in self.numbers)).digest()
        statement = POLICY_PCR.to_bytes(4) + bytes(self) + digest
        return hashlib.sha256(bytes(DIGEST_BYTES) + statement).digest()
