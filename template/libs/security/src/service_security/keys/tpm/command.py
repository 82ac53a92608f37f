"""The command ``tpm``: prints what the TPM says of itself, and changes nothing in it."""

import os
from typing import TYPE_CHECKING

from .address import DEFAULT_ADDRESS
from .report import NEEDED_ALGORITHMS, TpmReport, probe

if TYPE_CHECKING:
    import argparse


def add_command(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command; its exit status is 0 when this user can use the TPM for a key."""
    parser = subcommands.add_parser(
        "tpm",
        help="tell whether this user can use a TPM 2.0 here",
        description="Tell whether this machine and this user can use a TPM 2.0 for a key. "
        "Asks the TPM what it is and changes nothing in it. "
        "Exit codes: 0 it can be used, 1 it is there and cannot be used, 2 an error.",
    )
    parser.add_argument(
        "--address",
        default=_address_of(os.environ.get("SERVICE_KEY_SOURCE", "")),
        help="a device, unix:/path or tcp:127.0.0.1:port of a software TPM "
        "(default: the one in SERVICE_KEY_SOURCE, else /dev/tpmrm0)",
    )
    parser.set_defaults(run=_run)


def _address_of(key_source: str) -> str:
    """Return the address of the first TPM among the key sources of a list."""
    for source in key_source.split(","):
        scheme, _, address = source.strip().partition(":")
        if scheme == "tpm2":
            return address or DEFAULT_ADDRESS
    return DEFAULT_ADDRESS


def _run(arguments: "argparse.Namespace") -> int:
    report = probe(arguments.address)
    print(describe(report))
    return 0 if report.obstacle is None else 1


def describe(report: TpmReport) -> str:
    """Return a report as lines for people."""
    missing = report.missing_algorithms
    rows = {
        "manufacturer": f"{report.manufacturer} {report.vendor}".rstrip(),
        "firmware": report.firmware,
        **{name: "missing" if name in missing else "present" for name in NEEDED_ALGORITHMS},
        "root key": "kept" if report.root_key else "made when needed",
        "owner hierarchy": "on" if report.owner_hierarchy else "off",
        "owner password": "set" if report.owner_password else "not set",
        "lock-out password": "set" if report.lockout_password else "not set",
        "lock-out": "active" if report.locked_out else "not active",
        "failed tries": f"{report.failed_tries} of {report.max_tries}",
    }
    verdict = f"It cannot be used for a key. {report.obstacle}"
    if report.obstacle is None:
        verdict = (
            "This user can use it for a key, with the key source tpm2 (docs/security/TPM.md).\n"
            "That was found out without putting anything into it."
        )
    return (
        f"TPM 2.0 at {report.address}\n"
        + "".join(f"  {name:<19}{value}\n" for name, value in rows.items())
        + f"\n{verdict}"
    )
