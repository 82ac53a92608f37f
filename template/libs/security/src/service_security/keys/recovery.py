"""The recovery phrase: 24 words that open the envelope, and every backup, without anything else.

The wrapping key of the slot ``recovery`` is 32 random bytes. Written down they are words by the
encoding of BIP 39: eleven bits each, with a checksum of eight bits behind the 256. Words that are
misheard, left out or swapped are found by it. The key is random, so nothing has to be stretched,
and the words are the key: there is no passphrase on top of them.

The list is the English one of BIP 39 (``bip39_english.txt``, MIT licence). No two of its words
share their first four letters, which are enough to type.

A phrase is a ``str``, which Python cannot wipe; it lives while a person reads or types it.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from ..errors import ConfigurationError, SecurityError, WrongKeyError
from ..secret_bytes import SecretBytes
from .derivation import KEY_BYTES
from .provider import RECOVERY, WrappingKey
from .service_keys import envelope_is_there, open_with, read_envelope

WORDS: Final = 24
_PREFIX: Final = 4
_BITS: Final = 11


@dataclass(frozen=True, slots=True)
class RecoveryKey:
    """The provider of a phrase that was typed, or made just now.

    Attributes:
        key: Its 32 bytes; whoever made them closes them, and each call returns a copy.
    """

    key: SecretBytes
    slot_type = RECOVERY

    def __str__(self) -> str:
        return "the recovery phrase"

    def probe(self) -> None:
        """Do nothing: what it takes is there."""

    def protect(self, known: Mapping[str, str] | None = None) -> WrappingKey:
        """Return a copy of the key."""
        del known
        with self.key.view as view:
            return WrappingKey(SecretBytes.copy_of(view))

    def unprotect(self, fields: Mapping[str, str]) -> WrappingKey:
        """Return a copy of the key."""
        del fields
        return self.protect()


def phrase_of(key: SecretBytes) -> list[str]:
    """Return the 24 words of a recovery key."""
    words = _words()
    with key.view as view:
        number = int.from_bytes(view) << 8 | hashlib.sha256(view).digest()[0]
    shifts = range((WORDS - 1) * _BITS, -1, -_BITS)
    return [words[number >> shift & 0x7FF] for shift in shifts]


def key_of(phrase: str) -> SecretBytes:
    """Return the recovery key of a phrase.

    Args:
        phrase: The words, or the first four letters of each, in any case, with anything between
            them that is no letter: numbers, full stops, line ends.

    Raises:
        ConfigurationError: It is not 24 words of the list, or their checksum is wrong. The message
            repeats none of them.
    """
    found = _decoded(phrase)
    if isinstance(found, str):
        del phrase  # no frame of a traceback has a word among its variables
        raise ConfigurationError(found)
    return found


def words_in(text: str) -> list[str]:
    """Return the words of a text that may be one, with anything between them that is no letter."""
    return re.findall(r"[a-z]+", text.lower())


def is_in_the_list(word: str) -> bool:
    """Tell whether a phrase can have that word; its first four letters are enough."""
    return word in _numbers()


def may_open(envelope: Path, key: SecretBytes) -> bool:
    """Tell whether a recovery key opens an envelope, or whether that cannot be told now."""
    try:
        if not envelope_is_there(envelope):
            return False
        open_with(read_envelope(envelope), RecoveryKey(key)).close()
    except (WrongKeyError, ConfigurationError):  # of another phrase, or of none
        return False
    except SecurityError:
        return True
    return True


def _decoded(phrase: str) -> SecretBytes | str:
    """Return the key of a phrase, or a sentence on what is wrong with it."""
    typed = words_in(phrase)
    if len(typed) != WORDS:
        return (
            f"A recovery phrase has {WORDS} words; there are {len(typed)} here. Type them in their "
            "order, with spaces between them."
        )
    numbers = _numbers()
    unknown = [place for place, word in enumerate(typed, 1) if word not in numbers]
    if unknown:
        return (
            f"Of the recovery phrase, these words are not in the list: "
            f"{', '.join(f'number {place}' for place in unknown)}. Look at how they are written."
        )
    number = 0
    for word in typed:
        number = number << _BITS | numbers[word]
    key = SecretBytes(KEY_BYTES)
    with key.view as view:
        for place in range(KEY_BYTES):  # in pieces, so that no copy of the whole is left behind
            view[place] = number >> 8 * (KEY_BYTES - place) & 0xFF
        fits = hmac.compare_digest(hashlib.sha256(view).digest()[:1], bytes([number & 0xFF]))
    if not fits:
        key.close()
        return (
            "A word of the recovery phrase is wrong or in the wrong place: the words do not fit "
            "together. Compare each with what was written down."
        )
    return key


@cache
def _words() -> tuple[str, ...]:
    text = Path(__file__).with_name("bip39_english.txt").read_text(encoding="ascii")
    return tuple(text.split())


@cache
def _numbers() -> dict[str, int]:
    """Return the place of each word in the list, by the word and by its first letters."""
    return {form: number for number, word in enumerate(_words()) for form in (word, word[:_PREFIX])}
