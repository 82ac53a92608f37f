"""Can this machine and this user use a TPM 2.0? A probe that changes nothing in it.

Each module uses those before it: errors, address, framing, transport, report, command.
"""

from .command import add_command
from .errors import TpmError
from .report import TpmReport, probe

__all__ = ["TpmError", "TpmReport", "add_command", "probe"]
