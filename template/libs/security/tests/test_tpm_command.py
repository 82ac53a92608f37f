"""The command ``tpm``, as a person runs it."""

import argparse

import pytest

from fake_tpm import FakeTpm, character_device
from service_security.cli import main
from service_security.keys.tpm import add_command, framing


def test_command_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    with character_device(FakeTpm().exchange) as path:
        assert main(["tpm", "--address", path]) == 0
    assert capsys.readouterr().out == (
        f"TPM 2.0 at {path}\n"
        "  manufacturer       ACME Part 7\n"
        "  firmware           00000007.000000fe\n"
        "  ECC P-256          present\n"
        "  SHA-256            present\n"
        "  AES-128-CFB        present\n"
        "  root key           made when needed\n"
        "  owner hierarchy    on\n"
        "  owner password     not set\n"
        "  lock-out password  not set\n"
        "  lock-out           not active\n"
        "  failed tries       1 of 32\n"
        "\n"
        "This user can use it for a key, with the key source tpm2 (docs/security/TPM.md).\n"
        "That was found out without putting anything into it.\n"
    )


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("tpm2:unix:/run/tpm", "unix:/run/tpm"),
        ("tpm2", "/dev/tpmrm0"),
        ("file:key, tpm2:/dev/tpm1 ,tpm2", "/dev/tpm1"),
        ("file:tpm2:/dev/tpm1", "/dev/tpmrm0"),
        ("", "/dev/tpmrm0"),
        (None, "/dev/tpmrm0"),
    ],
)
def test_command_takes_its_address_from_the_key_source(
    variable: str | None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option wins; an empty variable is as good as none."""
    monkeypatch.delenv("SERVICE_KEY_SOURCE", raising=False)
    if variable is not None:
        monkeypatch.setenv("SERVICE_KEY_SOURCE", variable)
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    assert parser.parse_args(["tpm"]).address == address
    assert parser.parse_args(["tpm", "--address", "/dev/tpm0"]).address == "/dev/tpm0"


def test_tpm_that_cannot_be_used_has_its_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeTpm()
    del fake.lists[framing.CURVES][3]
    with character_device(fake.exchange) as path:
        assert main(["tpm", "--address", path]) == 1
    assert "It cannot be used for a key. The TPM lacks ECC P-256" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["/dev/nothing-of-that-name", "tcp:192.0.2.1:2321"])
def test_error_is_one_line_and_has_its_exit_status(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tpm", "--address", address]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
