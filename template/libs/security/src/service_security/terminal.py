"""What a person reads and types: recovery phrases and passphrases, on a terminal or in files."""

import getpass
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self, TextIO

from ._files import sync_folder, write_new
from .errors import ConfigurationError, KeyUnavailableError
from .keys.derivation import KEY_BYTES
from .keys.key_file import read_secret
from .keys.provider import KEY_FILE
from .keys.recovery import WORDS, is_in_the_list, key_of, may_open, phrase_of, words_in
from .secret_bytes import SecretBytes

_ASKED_BACK: Final = 3
_TRIES: Final = 3
_MAX_PHRASE: Final = 1024
_FIRST_LETTERS: Final = 4
_ENTER: Final = "\033[?1049h\033[H"
_LEAVE: Final = "\033[2J\033[H\033[?1049l"


class NewPhrase:
    """A new recovery phrase, for work in a ``with`` block that may fail after somebody has it.

    A phrase that opens none of the envelopes at the end of the block is of no use: that is said
    then, and its file is removed.

    Args:
        file: Where the phrase is written; None shows it.
        envelopes: The files that it is meant for.
        wanted: Whether there is to be one.
    """

    def __init__(self, file: Path | None, *envelopes: Path, wanted: bool = True) -> None:
        self._file = file
        self._envelopes = envelopes
        self._wanted = wanted
        self._key: SecretBytes | None = None

    def __call__(self) -> SecretBytes | None:
        """Make it if it is wanted; return its key, to be closed."""
        return self.make() if self._wanted else None

    def make(self) -> SecretBytes:
        """Make it as ``new_phrase`` does; return its key, to be closed."""
        self._key = new_phrase(self._file)
        with self._key.view as view:
            return SecretBytes.copy_of(view)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._key is None:
            return
        with self._key as key:
            if any(may_open(path, key) for path in self._envelopes):
                return
        if self._file:
            said = f"{self._file} is removed again: that phrase opens nothing."
            try:
                self._file.unlink(missing_ok=True)
                sync_folder(self._file.parent)
            except OSError:
                said = f"The recovery phrase in {self._file} opens nothing. Remove that file."
            print(said, file=sys.stderr)
        else:
            print(
                "The recovery phrase that was shown opens nothing. Throw away what you have "
                "written.",
                file=sys.stderr,
            )


def new_phrase(file: Path | None) -> SecretBytes:
    """Make a recovery phrase and see that somebody has it; return its key, to be closed.

    On a terminal it is shown once, and three of its words are asked back.

    Args:
        file: Write it to this new file, mode 0600, instead. Whoever runs the command takes it away
            from there.

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
            _show_and_ask_back(words, _some_places())
    except BaseException:
        key.close()
        raise
    return key


def read_phrase(file: Path | None) -> SecretBytes:
    """Return the key of a recovery phrase that is in a file or typed; to be closed.

    On a terminal, a word that no phrase has is asked for again at once, and all of them if they do
    not fit together.

    Args:
        file: The file; None asks on the terminal, or reads standard input where that is none.

    Raises:
        ConfigurationError: It is not a phrase, or others may read the file.
        KeyUnavailableError: The file is missing or cannot be read, or there is no input.
    """
    if file:
        with read_secret(file, KEY_FILE, _MAX_PHRASE) as contents, contents.view as view:
            return key_of(str(view, "ascii", "replace"))
    if not _is_terminal(sys.stdin):
        if sys.stdin is None:
            raise KeyUnavailableError(
                "There is nothing to read the recovery phrase from. Name a file with it: "
                "--phrase-file FILE."
            )
        return key_of(sys.stdin.read(_MAX_PHRASE))
    with _screen_of_its_own():
        print(f"The {WORDS} words of the recovery phrase; the first four letters of each will do.")
        print("They show while you type. An empty line ends them.")
        return _typed_phrase()


def ask_passphrase(new: bool) -> str:
    """Return a passphrase that a person types, a new one twice.

    Raises:
        KeyUnavailableError: There is no terminal.
        ConfigurationError: The two differ.
    """
    if not _is_terminal(sys.stdin):
        raise KeyUnavailableError(
            "The passphrase has to be typed, and there is no terminal. Name a file with it: "
            "passphrase:FILE."
        )
    passphrase = _input("New passphrase: " if new else "Passphrase: ", ask=getpass.getpass)
    if new and _input("The same again: ", ask=getpass.getpass) != passphrase:
        raise ConfigurationError("The two passphrases differ. Nothing was changed.")
    return passphrase


def _write_phrase(file: Path, words: list[str]) -> None:
    # Under its own name at once: nobody holds the folder, and two commands with one name for their
    # drafts could publish each other's phrase.
    try:
        write_new(file, (" ".join(words) + "\n").encode())
        sync_folder(file.parent)
    except FileExistsError:
        raise ConfigurationError(
            f"{file} is there, and a phrase never replaces a file. Name another one, or remove "
            "this one if it is of no use."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be written: {error.strerror}. Check the folder's owner and mode, and "
            "remove the file if it is there: nothing opens with it."
        ) from error
    print(f"Wrote the recovery phrase to {file}. Move it to a safe place, away from this machine.")


def _show_and_ask_back(words: list[str], places: list[int]) -> None:
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise KeyUnavailableError(
            "The recovery phrase has to be shown to somebody, and there is no terminal. Run the "
            "command on one, or name a new file for the phrase with --phrase-file; init and keys "
            "rotate --master go without one with --no-recovery: whoever loses the key then has "
            "lost the records."
        )
    with _screen_of_its_own():
        print("This is the recovery phrase. It opens the records and every backup if the key is")
        print("lost, for you and for whoever finds it. Write it on paper; it is not shown again.\n")
        for row in range(0, WORDS, 4):
            print("   ".join(f"{place + 1:2} {words[place]:<8}" for place in range(row, row + 4)))
        _input("\nPress Enter when all of it is written down: ")
    print("Three of the words, from the paper:")
    for place in places:
        _ask_back(place, words[place])


def _ask_back(place: int, word: str) -> None:
    for left in range(_TRIES - 1, -1, -1):
        typed = _input(f"Word {place + 1}: ").strip().lower()
        if typed in (word, word[:_FIRST_LETTERS]):
            return
        if left:
            print("That is not the word. Look at what you have written.")
    raise ConfigurationError(
        "That is not the word. Nothing was changed; run the command again and write down the new "
        "phrase that it shows."
    )


def _typed_phrase() -> SecretBytes:
    for left in range(_TRIES - 1, -1, -1):
        typed = _typed_words()
        asks_again = left > 0 and len(typed) >= WORDS and all(map(is_in_the_list, typed))
        phrase = " ".join(typed)
        del typed  # no frame of a traceback has a word among its variables
        try:
            return key_of(phrase)
        except ConfigurationError as error:
            if not asks_again:
                raise
            print(f"{error} Then type all of them again.")
        finally:
            del phrase
    raise AssertionError


def _typed_words() -> list[str]:
    typed: list[str] = []
    while len(typed) < WORDS:
        words = _words_of_a_line(len(typed))
        if not words:
            break
        for word in words:
            typed.append(_corrected(len(typed), word))
    return typed


def _corrected(place: int, word: str) -> str:
    """Return a word, or what is typed in its place if it is not in the list."""
    for _ in range(_TRIES - 1):
        if is_in_the_list(word):
            break
        print(f"Word {place + 1} is not in the list. Look at how it is written, type it again.")
        again = _words_of_a_line(place)
        if not again:
            break
        word = again[0] if len(again) == 1 else word
    return word


def _words_of_a_line(place: int) -> list[str]:
    try:
        return words_in(input(f"{place + 1:2}> "))
    except EOFError:
        return []


@contextmanager
def _screen_of_its_own() -> Iterator[None]:
    """Show what is printed in the block on a screen that is gone behind it, where there is one.

    The alternate screen of xterm, which every common terminal has, does not scroll back.
    """
    can = _is_terminal(sys.stdout) and os.environ.get("TERM", "dumb") != "dumb"
    if can:
        print(_ENTER, end="", flush=True)
    try:
        yield
    finally:
        if can:
            print(_LEAVE, end="", flush=True)


def _input(prompt: str, *, ask: Callable[[str], str] = input) -> str:
    try:
        return ask(prompt)
    except EOFError:
        raise ConfigurationError(
            "The input ended. Nothing was changed; run the command again."
        ) from None


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # a process may be started without any


def _some_places() -> list[int]:
    return sorted(secrets.SystemRandom().sample(range(WORDS), _ASKED_BACK))
