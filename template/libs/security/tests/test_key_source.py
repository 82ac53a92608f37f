"""The one setting that says where the key is: its forms, its refusals, and what it never shows."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_security.errors import ConfigurationError, KeyUnavailableError
from service_security.keys import DEFAULT_SOURCE, KeySource, initialise, open_keys, source
from service_security.keys.environment import EnvironmentKey
from service_security.keys.key_file import ContainerSecret, KeyFile
from service_security.keys.passphrase import Passphrase
from service_security.keys.source import ProviderOptions, key_source
from test_format import PHRASE

KEY = bytes(range(100, 132))
LIBRARY = Path(source.__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


# Its forms


@pytest.mark.parametrize(
    ("text", "provider"),
    [
        ("file:secrets/service.key", KeyFile(Path("secrets/service.key"))),
        ("file:/srv/a b/key:1", KeyFile(Path("/srv/a b/key:1"))),
        ("secret:/run/secrets/key", ContainerSecret(Path("/run/secrets/key"), "the text")),
        ("env:SERVICE_WRAPPING_KEY", EnvironmentKey("SERVICE_WRAPPING_KEY")),
        ("env:_K9", EnvironmentKey("_K9")),
    ],
)
def test_every_form_names_its_provider(text: str, provider: object) -> None:
    parsed = KeySource.parse(text)
    if isinstance(provider, ContainerSecret):
        provider = ContainerSecret(provider.path, text)
    assert parsed.providers == (provider,)
    assert str(parsed) == str(parsed.providers[0]) == text


def test_a_credential_lies_in_the_folder_that_systemd_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/orders.service")
    (provider,) = KeySource.parse("credential:service-key").providers
    assert isinstance(provider, ContainerSecret)
    assert provider.path == Path("/run/credentials/orders.service/service-key")
    assert str(provider) == "credential:service-key"
    assert provider.slot_type == "container-secret"


@pytest.mark.parametrize("folder", [None, ""])
def test_a_credential_without_systemd_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, folder: str | None
) -> None:
    if folder is not None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", folder)
    with pytest.raises(ConfigurationError, match=r"LoadCredential=service-key:FILE"):
        KeySource.parse("credential:service-key")


def test_a_passphrase_is_in_a_file_or_asked_for() -> None:
    (from_file,) = KeySource.parse("passphrase:secrets/phrase").providers
    (asked,) = KeySource.parse(
        "passphrase", ProviderOptions(profile="rfc9106-high-memory", ask_passphrase=lambda _: "x")
    ).providers
    assert isinstance(from_file, Passphrase)
    assert isinstance(asked, Passphrase)
    assert (from_file.path, from_file.profile) == (Path("secrets/phrase"), "rfc9106-low-memory")
    assert str(from_file) == "passphrase:secrets/phrase"
    assert (asked.path, asked.profile) == (None, "rfc9106-high-memory")
    assert asked.ask(True) == "x"
    assert str(asked) == "passphrase"


def test_a_service_that_has_nobody_to_ask_says_so() -> None:
    (provider,) = KeySource.parse("passphrase").providers
    with pytest.raises(KeyUnavailableError, match=r"nobody to ask.*passphrase:FILE"):
        provider.protect()


def test_a_tpm_without_its_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_HAS_TPM", False)
    with pytest.raises(ConfigurationError, match="tpm_enabled=true"):
        KeySource.parse("tpm2")


@pytest.mark.parametrize("pieces", [True, False])
def test_the_default_is_a_key_file_and_a_tpm_where_its_pieces_are(pieces: bool) -> None:
    """A folder that pruning left, with caches only, is not the pieces."""
    program = (
        "import sys; from importlib.machinery import PathFinder; found = PathFinder.find_spec\n"
        "def find_spec(name, path=None, target=None):\n"
        "    if name == 'provider': return (object() if sys.argv[1] == 'True' else None)\n"
        "    return found(name, path, target)\n"
        "PathFinder.find_spec = find_spec\n"
        "from service_security.keys import DEFAULT_SOURCE; print(DEFAULT_SOURCE)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(pieces)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"{'tpm2,' * pieces}file:secrets/service.key"
    if (LIBRARY / "keys" / "tpm" / "provider.py").exists():
        assert DEFAULT_SOURCE == "tpm2,file:secrets/service.key"
    else:
        assert DEFAULT_SOURCE == "file:secrets/service.key"


def test_a_parsed_source_is_taken_as_it_is() -> None:
    parsed = KeySource.parse("file:key")
    assert key_source(parsed) is parsed
    assert key_source("file:key") == parsed


# Its refusals

LINES = ["\n", "\r", "\0", "\x1b[2J", "\x7f"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "file",
        "file:",
        "secret:",
        "credential:",
        "credential:../key",
        "credential:/etc/passwd",
        "env",
        "env:",
        "env:9KEY",
        "env:lower_case",
        "env:A-B",
        "env:A=B",
        "env:" + "A" * 41,
        "passphrase:",
        "passphrase:phrase",
        "passphrase:./phrase",
        "tpm2:",
        "TPM2",
        "File:key",
        "files:key",
        "secrets/service.key",
        "/run/secrets/key",
        "file:key,",
        ",file:key",
        *(f"file:a{mark}b" for mark in LINES),
        *(f"secret:a{mark}b" for mark in LINES),
    ],
)
def test_what_names_no_source_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/orders.service")
    with pytest.raises(ConfigurationError, match="SERVICE_KEY_SOURCE does not say where"):
        KeySource.parse(text)


@pytest.mark.parametrize("text", ["file:a,file:b", "secret:/a,env:KEY,secret:/b", "env:A,env:B"])
def test_two_of_one_kind_are_refused(text: str) -> None:
    """The envelope says which kind was taken; it could not say which of the two."""
    with pytest.raises(ConfigurationError, match="two sources of one kind"):
        KeySource.parse(text)


SECRETS = {
    "base64": base64.b64encode(KEY).decode(),
    "base64 for URLs": base64.urlsafe_b64encode(b"\xfb" * 32).decode(),
    "hexadecimal": KEY.hex(),
    "hexadecimal that begins with a letter": "abcdef" + KEY.hex()[6:],
    "hexadecimal in capitals": "ABCDEF" + KEY.hex()[6:].upper(),
    "base64 for URLs without its padding": base64.urlsafe_b64encode(b"\xfb" * 32).decode()[:43],
    "base64 without its padding": base64.b64encode(KEY).decode()[:43],
    "a passphrase": "correct horse battery staple",
    "a passphrase in one word": "correcthorsebatterystaple",
    "a recovery phrase": PHRASE,
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("scheme", ["", "env:", "passphrase:", "file:x,", "key="])
def test_a_secret_in_place_of_its_place_is_refused_and_nothing_of_it_is_shown(
    kind: str, scheme: str
) -> None:
    secret = SECRETS[kind]
    with pytest.raises(ConfigurationError) as refusal:
        KeySource.parse(scheme + secret)
    said = f"{refusal.value} {refusal.value.__context__}"
    assert not [secret[at : at + 6] for at in range(len(secret) - 5) if secret[at : at + 6] in said]


@pytest.mark.parametrize("scheme", ["file:", "secret:", "credential:", "tpm2:", "passphrase:"])
@pytest.mark.parametrize("kind", [kind for kind in SECRETS if "base64" in kind or "hexa" in kind])
def test_a_key_is_never_taken_for_a_path(scheme: str, kind: str) -> None:
    """Else ``init`` would write a key file of that name, for all to see."""
    with pytest.raises(ConfigurationError, match="may be the key") as refusal:
        KeySource.parse(scheme + SECRETS[kind])
    assert SECRETS[kind][:6] not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "key={}",
        "file:{}",
        "env:{}",
        "credential:{}",
        "passphrase:{}",
        "passphrase,passphrase:/{}",
    ],
)
def test_a_traceback_of_a_refused_source_has_nothing_of_it(text: str) -> None:
    """Some programs print the variables of each frame, and what an error came out of."""
    assert_refused_without_a_trace(text.format(SECRETS["base64"]), SECRETS["base64"])


def assert_refused_without_a_trace(text: str, secret: str) -> None:
    """See that a source is refused, and that no frame of the traceback has the secret in it."""
    with pytest.raises(ConfigurationError) as refusal:
        KeySource.parse(text)
    assert refusal.value.__context__ is None
    trace, variables = refusal.value.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            variables += repr(trace.tb_frame.f_locals)
        trace = trace.tb_next
    assert variables
    assert secret not in variables


@given(
    st.text()
    | st.sampled_from(["file:", "env:", "credential:", "secret:"]).flatmap(
        lambda scheme: st.text().map(lambda rest: scheme + rest)
    )
)
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    try:
        parsed = KeySource.parse(text)
    except ConfigurationError:
        return
    assert parsed.providers


# Of a list


def _init(text: str) -> tuple[str, int]:
    made = initialise(Path("data/envelope.json"), text, holds_encrypted_data=lambda: False)
    return str(made.provider), len(made.passed_over)


def test_the_first_that_can_be_had_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    assert _init("secret:/nowhere/key,env:NOT_SET,file:service.key") == ("file:service.key", 2)
    assert Path("service.key").exists()


def test_the_first_is_taken_without_a_word_and_the_others_are_left_alone() -> None:
    assert _init("file:service.key,secret:/nowhere/key") == ("file:service.key", 0)


def test_later_only_the_recorded_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that comes back is not used, and one that is gone is not made up for."""
    listed = "env:TEST_KEY,file:service.key"
    assert _init(listed) == ("file:service.key", 1)
    monkeypatch.setenv("TEST_KEY", base64.b64encode(KEY).decode())
    with open_keys(Path("data/envelope.json"), listed) as keys:
        assert str(keys.provider) == "file:service.key"
    assert _init(listed) == ("file:service.key", 0)
    Path("service.key").rename("moved")
    for _ in range(2):
        with pytest.raises(KeyUnavailableError, match=r"service\.key is missing"):
            open_keys(Path("data/envelope.json"), listed)
        with pytest.raises(KeyUnavailableError, match=r"service\.key is missing"):
            _init(listed)
    assert not Path("service.key").exists()


def test_what_is_set_up_wrongly_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody meant it to be used."""
    monkeypatch.setenv("TEST_KEY", "no key")
    with pytest.raises(ConfigurationError, match="does not hold a key"):
        _init("env:TEST_KEY,file:service.key")
    assert list(Path().iterdir()) == []


def test_a_disk_that_fails_is_passed_over_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Path) -> bool:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", failing)
        with pytest.raises(KeyUnavailableError, match="cannot be read: Input/output error"):
            KeyFile(Path("secrets/key")).probe()
    KeyFile(Path("secrets/key")).probe()  # the control


def test_if_none_can_be_had_nothing_is_made() -> None:
    with pytest.raises(KeyUnavailableError, match="/nowhere/key is missing"):
        _init("env:NOT_SET,secret:/nowhere/key")
    assert list(Path().iterdir()) == []


# What is imported

IMPORTS = """
import sys
from pathlib import Path
from service_security.keys import initialise, open_keys

if sys.argv[1:]:
    envelope = Path("data/envelope.json")
    initialise(envelope, sys.argv[1], holds_encrypted_data=lambda: False)
    open_keys(envelope, sys.argv[1]).close()
print(*sorted(sys.modules))
"""

ARGON2 = "service_security.keys.passphrase"
TPM = "service_security.keys.tpm"


def _imported(*arguments: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("arguments", [(), ("file:key",), ("env:TEST_KEY",), ("secret:delivered",)])
def test_neither_argon2_nor_a_tpm_is_imported_without_need(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    Path("delivered").write_bytes(KEY)
    Path("delivered").chmod(0o444)
    monkeypatch.setenv("TEST_KEY", base64.b64encode(KEY).decode())
    imported = _imported(*arguments)
    assert "service_security.keys.source" in imported
    assert not {name for name in imported if name.startswith((ARGON2, TPM))}
    assert not imported & {"socket", "getpass", "argparse", "apsw"}


def test_control_a_passphrase_imports_argon2() -> None:
    Path("secrets").mkdir()
    Path("secrets/phrase").write_text("correct horse battery staple")
    Path("secrets/phrase").chmod(0o600)
    assert ARGON2 in _imported("passphrase:secrets/phrase")
