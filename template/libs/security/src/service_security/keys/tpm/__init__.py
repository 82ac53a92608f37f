"""A key held by a TPM 2.0, and whether this machine and this user can use one.

Each module uses those before it: errors, address, marshalling, framing, transport, areas, pcrs,
session, client, root_key, report, slot, provider, command.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_command(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command ``tpm``. A service that only opens its key does not import it."""
    from . import command

    command.add_command(subcommands)
