"""The recovery phrase: the encoding of BIP 39, and what is said of a phrase that is none."""

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from independent_reader import recovery_key
from service_security.errors import ConfigurationError, SecurityError, WrongKeyError
from service_security.keys import Envelope, recovery
from service_security.keys.provider import KEY_FILE, RECOVERY, WrappingKey
from service_security.keys.recovery import RecoveryKey, key_of, phrase_of
from service_security.keys.service_keys import open_with
from service_security.secret_bytes import SecretBytes

WORDS = Path(recovery.__file__).with_name("bip39_english.txt")

# Every case of 256 bits in github.com/trezor/python-mnemonic, vectors.json, which BIP 39 names.
VECTORS = {
    "00" * 32: "abandon " * 23 + "art",
    "7f" * 32: "legal winner thank year wave sausage worth useful " * 2
    + "legal winner thank year wave sausage worth title",
    "80" * 32: "letter advice cage absurd amount doctor acoustic avoid " * 2
    + "letter advice cage absurd amount doctor acoustic bless",
    "ff" * 32: "zoo " * 23 + "vote",
    "00ac97c48106f0aeb8ba061e0250a559b3251dc35854e694780ba51d53a50120": (
        "absent gorilla van acoustic humor firm title dolphin bulk barely citizen recall crane "
        "moment aspect appear track phrase actual enforce steel spoon afraid benefit"
    ),
    "3edc83b60740d77af3afa2fcb82c2f1bc541ee4e2518ddef4996d32453f54a3c": (
        "disagree tomato unique attend aspect runway solid violin witness scrap armed daring "
        "favorite warm decade perfect target kid grant play early wide cigar night"
    ),
    "89bb4bc5555992cdaf3444c5e7ca5a6e9f27efab894f1990bae41be8b2a26ea4": (
        "meadow surge vanish primary odor grocery rubber mass shine dinner notable tag venue water "
        "purchase clarify book magic ribbon daughter menu eye ritual orchard"
    ),
    "911fec0fbd88029f6fa99164896c18d898c9232af18bdcca3e42d53b86493104": (
        "much youth advance kitchen lens exile salt cram goose enter alert raise milk muscle "
        "profit cousin system faint mouse price reveal cause series long"
    ),
}
PHRASE = list(VECTORS.values())[-1].split()


def _bytes_of(phrase: str) -> bytes:
    with key_of(phrase) as key, key.view as view:
        return bytes(view)


def _phrase_of(key: bytes) -> list[str]:
    with SecretBytes.copy_of(key) as secret:
        return phrase_of(secret)


@pytest.mark.parametrize(("key", "phrase"), VECTORS.items(), ids=range(len(VECTORS)))
def test_the_published_vectors_hold_both_ways(key: str, phrase: str) -> None:
    assert _phrase_of(bytes.fromhex(key)) == phrase.split()
    assert _bytes_of(phrase).hex() == key
    assert recovery_key(phrase, WORDS).hex() == key


def test_the_words_are_the_published_list() -> None:
    digest = hashlib.sha256(WORDS.read_bytes()).hexdigest()
    assert digest == "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"


def test_four_letters_tell_every_word_from_the_others() -> None:
    words = WORDS.read_text().split()
    assert len({word[:4] for word in words}) == len(words) == 2048


@given(st.binary(min_size=32, max_size=32))
def test_every_key_survives(key: bytes) -> None:
    words = _phrase_of(key)
    assert len(words) == 24
    assert _bytes_of(" ".join(words)) == key
    assert _bytes_of(" ".join(word[:4] for word in words)) == key


@pytest.mark.parametrize(
    "phrase",
    [
        " ".join(PHRASE).upper(),
        "\r\n".join(PHRASE),
        "".join(f"{place:2}. {word}\t" for place, word in enumerate(PHRASE, 1)),
        ", ".join(PHRASE) + ".",
        " ".join(word[:4] if place % 2 else word for place, word in enumerate(PHRASE)),
    ],
    ids=["capitals", "lines", "numbered", "commas", "some in four letters"],
)
def test_a_phrase_may_be_typed_as_it_was_written_down(phrase: str) -> None:
    assert _bytes_of(phrase) == bytes.fromhex(list(VECTORS)[-1])


def _changed(place: int, word: str) -> str:
    return " ".join([*PHRASE[:place], word, *PHRASE[place + 1 :]])


@pytest.mark.parametrize(
    ("phrase", "sentence"),
    [
        ("", "there are 0 here"),
        (" ".join(PHRASE[:-1]), "there are 23 here"),
        (" ".join([*PHRASE, "zoo"]), "there are 25 here"),
        (_changed(3, "kitchenette"), "not in the list: number 4"),
        (_changed(3, "kitc hen"), "there are 25 here"),
        (_changed(0, "muc"), "not in the list: number 1"),
        (_changed(1, "youthful"), "not in the list: number 2"),
        (_changed(23, "l\N{LATIN SMALL LETTER O WITH DIAERESIS}ng"), "there are 25 here"),
        (_changed(5, "exit"), "do not fit together"),
        (" ".join([PHRASE[1], PHRASE[0], *PHRASE[2:]]), "do not fit together"),
        ("abandon " * 24, "do not fit together"),
    ],
)
def test_what_is_no_phrase_is_refused_and_no_word_of_it_is_repeated(
    phrase: str, sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as refusal:
        key_of(phrase)
    said = str(refusal.value).lower().split()
    for word in phrase.lower().split():
        assert word == "in" or word not in said


@pytest.mark.parametrize("place", [(), (3,), (5,)], ids=["too few", "unknown", "swapped"])
def test_a_traceback_of_a_refused_phrase_has_no_word_of_it(place: tuple[int, ...]) -> None:
    """Some programs print the variables of each frame."""
    phrase = _changed(place[0], "exit" if place == (5,) else "zzzz") if place else "mutual " * 9
    with pytest.raises(ConfigurationError) as refusal:
        key_of(phrase)
    assert refusal.value.__context__ is None
    trace, variables = refusal.value.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            variables += repr(trace.tb_frame.f_locals)
        trace = trace.tb_next
    assert variables
    words = phrase.split()
    assert repr(words[0]) not in variables
    assert " ".join(words[:2]) not in variables


def test_one_wrong_word_is_found_255_times_in_256() -> None:
    chosen = random.Random(39)  # noqa: S311 - the same words in each run
    words = WORDS.read_text().split()
    missed = 0
    for _ in range(2000):
        place, word = chosen.randrange(24), chosen.choice(words)
        if word == PHRASE[place]:
            continue
        try:
            key_of(_changed(place, word)).close()
        except ConfigurationError:
            continue
        missed += 1
    assert 0 < missed < 25  # 2000 / 256 is 8: nothing more is promised


@given(st.text() | st.lists(st.sampled_from(PHRASE)).map(" ".join))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    try:
        key = key_of(text)
    except ConfigurationError:
        return
    assert phrase_of(key) == [word for word in text.split() if word]
    key.close()


def _envelope(master: SecretBytes, recovery_key: SecretBytes | None) -> Envelope:
    with SecretBytes.copy_of(bytes(32)) as wrapping:
        keys = {KEY_FILE: WrappingKey(wrapping)}
        if recovery_key:
            keys[RECOVERY] = WrappingKey(recovery_key)
        return Envelope.create(master, keys)


def test_the_phrase_opens_the_envelope_without_anything_else() -> None:
    with SecretBytes.generate() as master, key_of(" ".join(PHRASE)) as key:
        envelope = Envelope.from_json(_envelope(master, key).to_json())
        with open_with(envelope, RecoveryKey(key)) as keys:
            assert keys.master == master
            assert keys.recovery == key
            assert keys.for_backups() == {"master": master, "recovery": key}


def test_another_phrase_does_not_open_it() -> None:
    with (
        SecretBytes.generate() as master,
        SecretBytes.generate() as key,
        key_of(" ".join(PHRASE)) as other,
        pytest.raises(WrongKeyError),
    ):
        open_with(_envelope(master, key), RecoveryKey(other))


def test_an_envelope_without_a_phrase_says_so() -> None:
    with (
        SecretBytes.generate() as master,
        SecretBytes.generate() as key,
        pytest.raises(ConfigurationError, match="no slot that opens with the recovery phrase"),
    ):
        open_with(_envelope(master, None), RecoveryKey(key))


def test_the_file_shows_nothing_of_the_recovery_key() -> None:
    with SecretBytes.generate() as master, key_of(" ".join(PHRASE)) as key:
        text = _envelope(master, key).to_json()
        assert bytes(key.view) not in text
        assert bytes(key.view).hex().encode() not in text
        assert _envelope(master, key).slots[RECOVERY].fields.keys() == {"kept"}


def test_the_provider_gives_copies_and_leaves_its_own_key_alone() -> None:
    with SecretBytes.generate() as key:
        provider = RecoveryKey(key)
        provider.probe()
        for wrapping in (provider.protect(), provider.unprotect({"kept": "whatever"})):
            assert wrapping.key == key
            assert wrapping.key is not key
            wrapping.close()
        key.check()


def test_a_recovery_slot_of_another_envelope_is_refused() -> None:
    """Whoever can write the file cannot have backups open with a phrase of his own."""
    with SecretBytes.generate() as master, SecretBytes.generate() as key, SecretBytes(32) as zeros:
        ours, other = _envelope(master, None), _envelope(master, key)
        body = ours.body.decode().removesuffix("]}") + ", " + other.body.decode().split("}, ")[1]
        edited = Envelope(
            ours.envelope_id,
            ours.master_id,
            ours.generation,
            {**ours.slots, RECOVERY: other.slots[RECOVERY]},
            ours.after,
            body.encode(),
            ours.mac,
        )
        assert Envelope.from_json(edited.to_json()) == edited, "control: it is well formed"
        with pytest.raises(SecurityError, match="changed after it was written"):
            edited.open(WrappingKey(zeros), KEY_FILE)
        with pytest.raises(SecurityError):
            edited.recovery_key(master)
