"""Addresses of a TPM: each form is understood, everything else refused before it is used."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_tpm import fuzz
from service_security.errors import ConfigurationError
from service_security.keys.tpm.address import Address, parse_address
from service_security.keys.tpm.report import probe


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/dev/tpmrm0", Address("device", "/dev/tpmrm0")),
        ("unix:/run/swtpm/socket", Address("unix", "/run/swtpm/socket")),
        ("tcp:127.0.0.1:2321", Address("tcp", "127.0.0.1", 2321)),
        ("tcp:127.8.9.10:65535", Address("tcp", "127.8.9.10", 65535)),
        ("tcp:[::1]:1", Address("tcp", "::1", 1)),
    ],
)
def test_address_reads_and_writes_back(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "tpmrm0", "dev/tpmrm0", "unix:", "unix:socket", "tcp:", "tcp:127.0.0.1"),
        *("tcp:127.0.0.1:", "tcp:127.0.0.1:0", "tcp:127.0.0.1:65536", "tcp:127.0.0.1:-1"),
        *("tcp:127.0.0.1:٣", "udp:127.0.0.1:1", "/dev/tpm\n0", "/dev/tpm\x1b[2J", "/dev/\udcff"),
        "unix:/" + "a" * 107,  # one byte more than a socket's address holds
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not the address of a TPM") as refused:
        probe(text)
    assert str(refused.value).isascii()
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("start", ["", "unix:", "tcp:", "tcp:127.0.0.1:"])
def test_nothing_of_what_is_no_address_is_shown(start: str) -> None:
    """It may be a key that was put in the wrong place."""
    for text in (f"{start}hunter2hunter2", f"tcp:hunter2hunter2:{start}1"):
        with pytest.raises(ConfigurationError) as refused:
            parse_address(text)
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "host",
    [
        *("192.0.2.1", "0.0.0.0", "[::]", "[2001:db8::1]", "localhost", "tpm.example.com"),  # noqa: S104 - refused here
        *("127.0.0.1.example.com", "127.1", "", "[fe80::1%lo]"),
    ],
)
def test_tpm_beyond_loopback_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket is opened, and no name looked up, for a TPM elsewhere."""
    monkeypatch.delattr(socket, "socket")
    with pytest.raises(ConfigurationError, match="not spoken to over a network"):
        probe(f"tcp:{host}:2321")


@fuzz
@given(
    st.sampled_from(["", "/", "unix:", "unix:/", "tcp:", "tcp:127.0.0.1:", "tcp:[::1]:"]),
    st.text(alphabet="/:[]unixtcp0123456789.-%\0\n\x1b é٣\udcff", max_size=30),
)
def test_any_text_is_an_address_or_refused(start: str, rest: str) -> None:
    try:
        address = parse_address(start + rest)
    except ConfigurationError:
        return
    assert parse_address(str(address)) == address
