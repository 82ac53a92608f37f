"""A key held by a TPM 2.0, and whether this machine and this user can use one.

Each module uses those before it: errors, address, marshalling, framing, transport, areas, pcrs,
session, client, root_key, report, slot, provider, command.
"""

from .command import add_command
from .errors import TpmError
from .report import TpmReport, probe

__all__ = ["TpmError", "TpmReport", "add_command", "probe"]
