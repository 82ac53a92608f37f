"""The source ``tpm2``: its forms, its refusals, and what it never shows."""

import subprocess
import sys

import pytest

from service_security.errors import ConfigurationError
from service_security.keys import KeySource
from service_security.keys.source import ProviderOptions
from test_key_source import SECRETS, TPM, assert_refused_without_a_trace


@pytest.mark.parametrize("text", ["tpm2", "tpm2:/dev/tpm0", "tpm2:unix:/run/swtpm/socket"])
def test_a_tpm_is_named_and_not_touched(text: str) -> None:
    (provider,) = KeySource.parse(text, ProviderOptions(pcrs=(7,))).providers
    assert provider.slot_type == "tpm2"
    assert str(provider).startswith("tpm2")


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    ("start", "said"),
    [
        *((start, "SERVICE_KEY_SOURCE does not say where") for start in ("", "x/", "unix:")),
        ("tcp:", "not the address of a TPM"),
        ("tcp:127.0.0.1:", "not the address of a TPM"),
    ],
)
def test_a_secret_in_place_of_a_tpm_is_not_shown(kind: str, start: str, said: str) -> None:
    secret = SECRETS[kind]
    with pytest.raises(ConfigurationError, match=said) as refusal:
        KeySource.parse(f"tpm2:{start}{secret}")
    shown = str(refusal.value)
    assert not [
        secret[at : at + 6] for at in range(len(secret) - 5) if secret[at : at + 6] in shown
    ]


@pytest.mark.parametrize("text", ["tpm2:{}", "tpm2:tcp:{}:1"])
def test_a_traceback_of_a_refused_tpm_has_nothing_of_it(text: str) -> None:
    assert_refused_without_a_trace(text.format(SECRETS["base64"]), SECRETS["base64"])


def test_a_key_in_a_tpm_is_opened_without_the_command_and_the_report() -> None:
    program = "import sys, service_security.keys.tpm.provider; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert f"{TPM}.client" in imported
    assert not {f"{TPM}.command", f"{TPM}.report", "argparse"} & set(imported)
