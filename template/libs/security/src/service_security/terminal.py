"""What a person reads and types: recovery phrases and passphrases, on a terminal or in files."""

import getpass
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ._files import create_whole, exists
from .errors import ConfigurationError, KeyUnavailableError
from .keys.derivation import KEY_BYTES
from .keys.key_file import read_secret
from .keys.provider import KEY_FILE
from .keys.recovery import WORDS, key_of, phrase_of
from .secret_bytes import SecretBytes

_ASKED_BACK: Final = 3
_TRIES: Final = 3
_MAX_PHRASE: Final = 1024


def new_phrase(file: Path | None, *, choose: Callable[[], list[int]] | None = None) -> SecretBytes:
    """Make a recovery phrase and see that somebody has it; return its key, to be closed.

    On a terminal it is shown once, and three of its words are asked back.

    Args:
        file: Write it to this new file, mode 0600, instead. Whoever runs the command takes it away
            from there.
        choose: Returns the places, from 0, of the words to ask for.

    Raises:
        KeyUnavailableError: There is neither a terminal nor a file.
        ConfigurationError: The words that were typed are not those that were shown, or the file
            is there or cannot be made.
    """
    key = SecretBytes.generate(KEY_BYTES)
    try:
        words = phrase_of(key)
        if file:
            _write_phrase(file, words)
        else:
            _show_and_ask_back(words, (choose or _some_places)())
    except BaseException:
        key.close()
        raise
    return key


def read_phrase(file: Path | None) -> SecretBytes:
    """Return the key of a recovery phrase that is in a file or typed; to be closed.

    Args:
        file: The file; None asks on the terminal, or reads standard input where that is none.

    Raises:
        ConfigurationError: It is not a phrase, or others may read the file.
        KeyUnavailableError: The file is missing or cannot be read.
    """
    if file:
        with read_secret(file, KEY_FILE, _MAX_PHRASE) as contents, contents.view as view:
            return key_of(str(view, "ascii", "replace"))
    if not sys.stdin.isatty():
        return key_of(sys.stdin.read(_MAX_PHRASE))
    print(f"The {WORDS} words of the recovery phrase; the first four letters of each will do.")
    print("They show while you type. An empty line ends them.")
    typed: list[str] = []
    while line := input(f"{sum(len(part.split()) for part in typed) + 1:2}> ").strip():
        typed.append(line)
        if sum(len(part.split()) for part in typed) >= WORDS:
            break
    return key_of(" ".join(typed))


def ask_passphrase(new: bool) -> str:
    """Return a passphrase that a person types, a new one twice.

    Raises:
        KeyUnavailableError: There is no terminal.
        ConfigurationError: The two differ.
    """
    if not sys.stdin.isatty():
        raise KeyUnavailableError(
            "The passphrase has to be typed, and there is no terminal. Name a file with it: "
            "passphrase:FILE."
        )
    passphrase = getpass.getpass("Passphrase: ")
    if new and getpass.getpass("The same again: ") != passphrase:
        raise ConfigurationError("The two passphrases differ. Nothing was changed.")
    return passphrase


def _write_phrase(file: Path, words: list[str]) -> None:
    if exists(file) or not create_whole(file, (" ".join(words) + "\n").encode()):
        raise ConfigurationError(f"{file} is there, and a phrase never replaces a file.")
    print(f"Wrote the recovery phrase to {file}. Move it to a safe place, away from this machine.")


def _show_and_ask_back(words: list[str], places: list[int]) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise KeyUnavailableError(
            "The recovery phrase has to be shown to somebody, and there is no terminal. Run the "
            "command on one, name a new file for the phrase with --phrase-file, or go without "
            "one with --no-recovery: whoever loses the key then has lost the records."
        )
    print("This is the recovery phrase. It opens the records and every backup if the key is lost,")
    print("for you and for whoever finds it. Write it on paper; it is not shown again.\n")
    for row in range(0, WORDS, 4):
        print("   ".join(f"{place + 1:2} {words[place]:<8}" for place in range(row, row + 4)))
    print()
    for place in places:
        for left in range(_TRIES - 1, -1, -1):
            if input(f"Word {place + 1}: ").strip().lower() == words[place]:
                break
            if not left:
                raise ConfigurationError(
                    "That is not the word. Nothing was changed; run the command again and write "
                    "down the new phrase that it shows."
                )
            print("That is not the word. Look at what you have written.")
    if os.environ.get("TERM"):
        print("\033[2J\033[3J\033[H", end="")  # off the screen, and out of what scrolls back


def _some_places() -> list[int]:
    return sorted(secrets.SystemRandom().sample(range(WORDS), _ASKED_BACK))
