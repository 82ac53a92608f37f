"""What a person sees and types, on a real terminal; and what is refused where there is none."""

import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from service_folders import (
    ENVELOPE,
    KEY_FILE,
    PHRASE,
    SOURCE,
    contents,
    expected,
    files,
    into_empty_folder,
    make_service,
    run,
)
from service_security import terminal
from service_security.cli import main
from service_security.errors import ConfigurationError, KeyUnavailableError
from service_security.keys import open_keys
from service_security.keys.derivation import KEY_BYTES
from service_security.keys.recovery import key_of, phrase_of
from service_security.keys.reseal import change_recovery
from service_security.secret_bytes import SecretBytes
from service_security.terminal import NewPhrase, ask_passphrase, new_phrase, read_phrase

if sys.platform != "win32":
    import fcntl
    import pty
    import termios

posix = pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")

CLEAR = "\033[2J\033[H\033[?1049l"
WORD = re.compile(r"\b(\d{1,2}) ([a-z]{3,8})\b")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into_empty_folder(tmp_path, monkeypatch)


class Person:
    """Somebody at a terminal, who runs a command on it."""

    def __init__(self, screen: int, process: "subprocess.Popen[bytes]") -> None:
        self._screen = screen
        self._process = process
        self.seen = ""
        self._looked_at = 0

    def sees(self, text: str, *, deadline_s: float = 120) -> str:
        """Wait for a text behind the one of the last time, and return all up to its end."""
        start, until = self._looked_at, time.monotonic() + deadline_s
        while text not in self.seen[start:]:
            assert self._reads(until), f"there is no {text!r} in {self.seen!r}"
        self._looked_at = self.seen.index(text, start) + len(text)
        return self.seen[start : self._looked_at]

    def types(self, line: str) -> None:
        """Type a line."""
        os.write(self._screen, f"{line}\n".encode())

    def presses(self, key: bytes) -> None:
        """Press a control key."""
        os.write(self._screen, key)

    def is_waited_for(self) -> None:
        """Wait until the command reads: an interrupt just before that is handled behind it."""
        status = Path(f"/proc/{self._process.pid}/stat")
        if not status.exists():
            time.sleep(0.5)
            return
        asleep = 0
        while asleep < 3:
            time.sleep(0.02)
            asleep = asleep + 1 if status.read_text().rpartition(")")[2].split()[0] == "S" else 0

    def reads_phrase(self) -> list[str]:
        """Wait for a new phrase, say that it is written down, and return its words."""
        words = words_in(self.sees("written down: "))
        self.types("")
        self.sees("Word ")
        return words

    def is_asked_for(self, words: list[str]) -> str:
        """Return the word that is asked for."""
        return words[int(self.sees(": ").removesuffix(": ")) - 1]

    def ends(self, *, deadline_s: float = 120) -> int:
        """Wait for the end of the command, and return its status."""
        until = time.monotonic() + deadline_s
        while self._reads(until):
            pass
        return self._process.wait(timeout=deadline_s)

    def _reads(self, until: float) -> bool:
        """Read what comes next onto the screen; return False when the command has ended."""
        ready, _, _ = select.select([self._screen], [], [], max(until - time.monotonic(), 0))
        assert ready, f"nothing more comes behind {self.seen!r}"
        try:
            more = os.read(self._screen, 4096)
        except OSError:  # as Linux says it
            return False
        self.seen += more.decode()
        return bool(more)


def words_in(screen: str) -> list[str]:
    """Return the words of a phrase that is shown."""
    shown = {int(place): word for place, word in WORD.findall(screen)}
    return [shown[place] for place in range(1, 25)]


@contextmanager
def person_runs(*arguments: str, term: str = "xterm") -> Iterator[Person]:
    """Run a command on a terminal of its own."""
    screen, device = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "service_security", *arguments],
        stdin=device,
        stdout=device,
        stderr=device,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env=os.environ | {"TERM": term},
    )
    os.close(device)
    try:
        yield Person(screen, process)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def _answer(person: Person, words: list[str]) -> None:
    """Type the three words that are asked for."""
    for left in range(2, -1, -1):
        person.types(person.is_asked_for(words))
        if left:
            person.sees("Word ")


# A new phrase


@posix
def test_the_phrase_leaves_the_screen_and_then_three_words_are_asked_back() -> None:
    with person_runs("init") as person:
        words = person.reads_phrase()
        _answer(person, words)
        assert person.ends() == 0
        assert len(re.findall(r"Word \d+: ", person.seen)) == 3
        before, _, after = person.seen.partition(CLEAR)
        assert words_in(before) == words
        assert "Word " not in before
        assert "or the recovery phrase" in after
        assert not WORD.findall(after)
    PHRASE.write_text(" ".join(words))
    PHRASE.chmod(0o600)
    KEY_FILE.unlink()
    assert main(["keys", "recover", "--to", SOURCE, "--phrase-file", str(PHRASE)]) == 0


@posix
def test_the_first_four_letters_of_a_word_are_enough() -> None:
    with person_runs("init") as person:
        words = person.reads_phrase()
        _answer(person, [word[:4].upper() for word in words])
        assert person.ends() == 0
    assert ENVELOPE.exists()


@posix
def test_a_word_may_be_wrong_twice_but_not_three_times() -> None:
    with person_runs("init") as person:
        words = person.reads_phrase()
        for _ in range(2):
            person.types("misread")  # which no phrase has
            person.sees("That is not the word. Look at what you have written.")
            person.sees("Word ")
        _answer(person, words)
        assert person.ends() == 0
    assert ENVELOPE.exists()


@posix
def test_after_three_wrong_words_nothing_was_made_and_the_phrase_is_off_the_screen() -> None:
    with person_runs("init") as person:
        person.reads_phrase()
        for _ in range(3):
            person.types("misread")  # which no phrase has
        assert person.ends() == 2
        assert CLEAR in person.seen
        assert "Nothing was changed" in person.seen.partition(CLEAR)[2]
    assert files() == {}


@posix
@pytest.mark.parametrize(
    ("key", "status", "sentence"),
    [(b"\x04", 2, "The input ended. Nothing was changed"), (b"\x03", 130, "stopped")],
    ids=["end of input", "interrupt"],
)
def test_who_gives_up_finds_nothing_made_and_no_phrase_on_the_screen(
    key: bytes, status: int, sentence: str
) -> None:
    with person_runs("init") as person:
        person.reads_phrase()
        person.sees(": ")
        person.is_waited_for()
        person.presses(key)
        assert person.ends() == status
        assert sentence in person.seen.partition(CLEAR)[2]
        assert "Traceback" not in person.seen
    assert files() == {}


@posix
def test_a_terminal_that_cannot_clear_its_screen_is_sent_no_codes() -> None:
    with person_runs("init", term="dumb") as person:
        _answer(person, person.reads_phrase())
        assert person.ends() == 0
        assert "\033" not in person.seen


@posix
def test_no_two_runs_show_the_same_phrase() -> None:
    shown = set()
    for _ in range(2):
        with person_runs("init") as person:
            shown.add(tuple(person.reads_phrase()))
    assert len(shown) == 2


@posix
def test_a_new_master_key_and_a_new_phrase_are_shown_the_same_way() -> None:
    make_service()
    for command in (["recovery-phrase"], ["rotate", "--master"]):
        with person_runs("keys", *command) as person:
            words = person.reads_phrase()
            _answer(person, words)
            assert person.ends() == 0
        PHRASE.write_text(" ".join(words))
        assert main(["keys", "recover", "--to", SOURCE, "--phrase-file", str(PHRASE)]) == 0
    assert contents() == expected(30)


def test_words_of_any_place_may_be_asked_for() -> None:
    chosen = [place for _ in range(200) for place in terminal._some_places()]
    assert set(chosen) == set(range(24))
    assert len(chosen) == 600


@pytest.mark.parametrize(
    "command",
    [["init"], ["keys", "recovery-phrase"], ["keys", "rotate", "--master"]],
    ids=" ".join,
)
def test_without_a_terminal_a_phrase_needs_a_file_and_nothing_is_changed(
    command: list[str],
) -> None:
    if command != ["init"]:
        make_service()
    before = files()
    result = run(*command, stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stdout) == (2, "")
    assert "there is no terminal" in result.stderr
    assert "--phrase-file" in result.stderr
    assert files() == before
    assert run(*command, "--phrase-file", "new", stdin=subprocess.DEVNULL).returncode == 0


@posix
def test_a_phrase_is_not_shown_where_the_output_goes_to_a_file() -> None:
    screen, device = pty.openpty()
    try:
        result = run("init", stdin=device)
    finally:
        os.close(screen)
        os.close(device)
    assert result.returncode == 2
    assert "there is no terminal" in result.stderr
    assert not WORD.findall(result.stdout)


# A phrase in a file


def test_a_phrase_file_is_for_its_owner_and_never_replaces_one(tmp_path: Path) -> None:
    file = tmp_path / "phrase"
    with new_phrase(file) as key:
        assert file.read_text().split() == phrase_of(key)
        assert file.stat().st_mode & 0o777 == 0o600
        with read_phrase(file) as found:
            assert found == key
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="never replaces a file"):
        new_phrase(file)
    assert file.read_bytes() == before


def test_a_phrase_file_is_durable_before_anything_opens_with_it_and_durably_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_service()
    file, synced = Path("new phrase"), list[tuple[Path, bool]]()
    monkeypatch.setattr(
        terminal, "sync_folder", lambda folder: synced.append((folder, file.exists()))
    )
    with NewPhrase(file, ENVELOPE) as phrase, phrase.make():
        assert synced == [(file.parent, True)]
    assert synced == [(file.parent, True), (file.parent, False)]


def test_of_two_runs_with_one_phrase_file_one_has_it_and_the_other_is_refused(
    tmp_path: Path,
) -> None:
    for number in range(20):
        file, start = tmp_path / str(number), threading.Barrier(2)
        made: list[SecretBytes] = []

        def make(file: Path = file, start: threading.Barrier = start) -> None:
            start.wait()
            with suppress(ConfigurationError):
                made.append(new_phrase(file))  # noqa: B023 - of this round

        threads = [threading.Thread(target=make) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (key,) = made
        with key, read_phrase(file) as written:
            assert written == key


def test_a_phrase_file_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        new_phrase(tmp_path / "missing" / "phrase")


@posix
def test_a_phrase_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "phrase"
    new_phrase(file).close()
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="Others may read"):
        read_phrase(file)
    file.chmod(0o600)
    read_phrase(file).close()


@pytest.mark.parametrize("fails", [True, False])
def test_a_phrase_that_opens_nothing_is_taken_back(
    fails: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    make_service()
    file = Path("new phrase")
    with NewPhrase(file, ENVELOPE, Path("data/missing")) as phrase:
        assert file.exists() is False
        with phrase.make() as key, open_keys(ENVELOPE, SOURCE) as keys:
            if not fails:
                change_recovery(ENVELOPE, keys, key)
    assert file.exists() is not fails
    assert ("that phrase opens nothing" in capsys.readouterr().err) is fails


@pytest.mark.parametrize("what", ["replaced by a folder", "damaged"])
def test_a_phrase_is_kept_where_it_cannot_be_told_whether_it_opens_anything(
    tmp_path: Path, what: str
) -> None:
    """It may be the only way in."""
    make_service()
    if what == "damaged":
        ENVELOPE.write_bytes(b"{}")
    else:
        ENVELOPE.unlink()
        ENVELOPE.mkdir()
    file = tmp_path / "kept"
    with NewPhrase(file, ENVELOPE) as phrase:
        phrase.make().close()
    read_phrase(file).close()


def test_a_phrase_that_is_not_wanted_is_not_made() -> None:
    with NewPhrase(Path("new phrase"), ENVELOPE, wanted=False) as phrase:
        assert phrase() is None
    assert files() == {}


def test_a_phrase_that_was_shown_and_opens_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_show_and_ask_back", lambda _words, _places: None)
    with NewPhrase(None, ENVELOPE) as phrase:
        phrase.make().close()
    assert "that was shown opens nothing. Throw away" in capsys.readouterr().err


# A phrase that is typed


def _typed(person: Person, words: list[str], each: int) -> None:
    for place in range(0, len(words), each):
        person.sees("> ")
        person.types(" ".join(words[place : place + each]))


@posix
@pytest.mark.parametrize("each", [1, 5, 24])
def test_a_phrase_is_typed_in_lines_of_any_length_and_leaves_the_screen(each: int) -> None:
    make_service()
    words = PHRASE.read_text().split()
    with person_runs("keys", "recover", "--to", "file:secrets/new.key") as person:
        _typed(person, [word[:4] for word in words], each)
        assert person.ends() == 0
        after = person.seen.partition(CLEAR)[2]
        assert "opens with file:secrets/new.key now" in after
        assert "> " not in after
    assert contents(source="file:secrets/new.key") == expected(30)


@posix
@pytest.mark.parametrize("end", [b"\n", b"\x04"], ids=["empty line", "end of input"])
def test_a_phrase_that_ends_early_is_refused_with_the_number_of_its_words(end: bytes) -> None:
    make_service()
    before = files()
    with person_runs("keys", "recover", "--to", "file:secrets/new.key") as person:
        _typed(person, PHRASE.read_text().split()[:23], 1)
        person.sees("24> ")
        person.presses(end)
        assert person.ends() == 2
        assert "there are 23 here" in person.seen.partition(CLEAR)[2]
    assert files() == before


@posix
@pytest.mark.parametrize("each", [1, 24])
def test_a_word_that_no_phrase_has_is_named_and_typed_again(each: int) -> None:
    make_service()
    words = PHRASE.read_text().split()
    typed = [f"{place}. {word}" for place, word in enumerate(words, 1)]
    typed[4] = "5. misread"
    with person_runs("keys", "recover", "--to", "file:secrets/new.key") as person:
        for place in range(0, 24, each):
            person.sees("> ")
            person.types(" ".join(typed[place : place + each]))
            if place <= 4 < place + each:
                for answer in ("two words", words[4]):
                    person.sees("Word 5 is not in the list")
                    person.sees(" 5> ")
                    person.types(answer)
        assert person.ends() == 0
    assert contents(source="file:secrets/new.key") == expected(30)


@posix
@pytest.mark.parametrize("last", [b"misread again\n", b"\n", b"\x04"])
def test_a_word_that_stays_wrong_is_named_and_nothing_is_changed(last: bytes) -> None:
    make_service()
    before = files()
    with person_runs("keys", "recover", "--to", "file:secrets/new.key") as person:
        person.sees("> ")
        person.types(" ".join(["misread", *PHRASE.read_text().split()[1:]]))
        if last.startswith(b"misread"):
            person.sees(" 1> ")
            person.types("misread")
        person.sees(" 1> ")
        person.presses(last)
        assert person.ends() == 2
        assert "words are not in the list: number 1. Look" in person.seen.partition(CLEAR)[2]
    assert files() == before


def _that_do_not_fit(words: list[str]) -> list[str]:
    """Return the words in another order; one in 256 is a phrase as well."""
    for place in range(1, 24):
        turned = [*words[place:], *words[:place]]
        try:
            key_of(" ".join(turned)).close()
        except ConfigurationError:
            return turned
    raise AssertionError


@posix
@pytest.mark.parametrize("tries", [2, 3])
def test_words_that_do_not_fit_together_are_typed_again_twice(tries: int) -> None:
    make_service()
    before = files()
    words = PHRASE.read_text().split()
    turned = _that_do_not_fit(words)
    with person_runs("keys", "recover", "--to", "file:secrets/new.key") as person:
        for _ in range(tries):
            person.sees(" 1> ")
            person.types(" ".join(turned))
        if tries == 2:
            person.sees("do not fit together")
            person.sees("all of them again")
            person.sees(" 1> ")
            person.types(" ".join(words))
        assert person.ends() == (2 if tries == 3 else 0)
        assert ("do not fit together" in person.seen.partition(CLEAR)[2]) is (tries == 3)
    assert (files() == before) is (tries == 3)


def test_a_phrase_comes_from_standard_input_where_that_is_no_terminal() -> None:
    make_service()
    arguments = ["keys", "recover", "--to", "file:secrets/new.key"]
    assert run(*arguments, input=PHRASE.read_text()).returncode == 0
    result = run(*arguments, stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    assert "there are 0 here" in result.stderr
    result = run(*arguments, input=PHRASE.read_text().replace(" ", " misread ", 1))
    assert (result.returncode, result.stdout) == (2, ""), "and nobody is asked again"


def test_a_process_without_any_input_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(KeyUnavailableError, match="--phrase-file FILE"):
        read_phrase(None)
    with pytest.raises(KeyUnavailableError, match="passphrase:FILE"):
        ask_passphrase(new=False)
    with pytest.raises(KeyUnavailableError, match="--phrase-file"):
        new_phrase(None)


# A passphrase


PASSPHRASE = "correct horse battery staple"


@posix
def test_a_new_passphrase_is_typed_twice_and_not_shown() -> None:
    with person_runs("init", "--no-recovery", "--key-source", "passphrase") as person:
        for prompt in ("New passphrase: ", "The same again: ", "Passphrase: "):
            person.sees(prompt)
            person.types(PASSPHRASE)
        assert person.ends() == 0
        assert PASSPHRASE not in person.seen
    with person_runs("keys", "status", "--key-source", "passphrase") as person:
        person.sees("Passphrase: ")
        person.types(PASSPHRASE)
        assert person.ends() == 0
        assert "opens by         passphrase" in person.seen
        assert "New passphrase" not in person.seen


@posix
def test_two_passphrases_that_differ_make_nothing() -> None:
    with person_runs("init", "--no-recovery", "--key-source", "passphrase") as person:
        person.sees("New passphrase: ")
        person.types(PASSPHRASE)
        person.sees("The same again: ")
        person.types(PASSPHRASE + "s")
        assert person.ends() == 2
        assert "differ. Nothing was changed" in person.seen
    assert files() == {}


@posix
def test_a_passphrase_that_is_not_typed_makes_nothing() -> None:
    with person_runs("init", "--no-recovery", "--key-source", "passphrase") as person:
        person.sees("New passphrase: ")
        person.presses(b"\x04")
        assert person.ends() == 2
        assert "The input ended" in person.seen
    assert files() == {}


def test_without_a_terminal_a_passphrase_needs_a_file() -> None:
    arguments = ["init", "--no-recovery", "--key-source", "passphrase"]
    result = run(*arguments, stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    assert "passphrase:FILE" in result.stderr
    assert files() == {}


def test_a_key_is_wiped_when_the_phrase_is_not_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = SecretBytes.generate

    def generate(length: int) -> SecretBytes:
        made.append(real(length))
        return made[-1]

    monkeypatch.setattr(terminal.SecretBytes, "generate", generate)  # type: ignore[attr-defined]
    with pytest.raises(KeyUnavailableError):
        new_phrase(None)
    assert len(made) == 1
    with pytest.raises(ValueError, match="closed"):
        _ = made[0].view
    with real(KEY_BYTES) as alive:  # the control
        assert len(alive.view) == KEY_BYTES
