"""The command ``tpm``: prints what the TPM says of itself, and changes nothing in it."""

import argparse
import os

from .address import DEFAULT_ADDRESS
from .report import NEEDED_ALGORITHMS, TpmReport, probe


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
        default=os.environ.get("SERVICE_TPM") or DEFAULT_ADDRESS,
        help="a device, unix:/path or tcp:127.0.0.1:port of a software TPM "
        "(default: SERVICE_TPM, else /dev/tpmrm0)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    report = probe(arguments.address)
    print(describe(report))
    return 0 if report.usable else 1


def describe(report: TpmReport) -> str:
    """Return a report as lines for people."""
    missing = report.missing_algorithms
    rows = {
        "manufacturer": f"{report.manufacturer} {report.vendor}".rstrip(),
        "firmware": report.firmware,
        **{name: "missing" if name in missing else "present" for name in NEEDED_ALGORITHMS},
        "owner password": "set" if report.owner_password else "not set",
        "lock-out password": "set" if report.lockout_password else "not set",
        "lock-out": "active" if report.locked_out else "not active",
        "failed tries": f"{report.failed_tries} of {report.max_tries}",
    }
    if missing:
        verdict = f"It cannot be used for a key: it lacks {' and '.join(missing)}."
    elif report.locked_out:
        verdict = (
            "It cannot be used for a key now: it is locked out after too many wrong passwords. "
            f"It forgives one every {report.lockout_interval} s."
        )
    else:
        verdict = "This user can use it for a key."
    return (
        f"TPM 2.0 at {report.address}\n"
        + "".join(f"  {name:<19}{value}\n" for name, value in rows.items())
        + f"\n{verdict}\nNothing is kept in it: "
        "the key of this version is in the key file or container secret."
    )
