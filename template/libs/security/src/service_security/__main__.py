"""``python -m service_security``."""

import io
import os
import sys
from contextlib import suppress

from .cli import main
from .errors import ConfigurationError
from .process import harden_process

if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
with suppress(ConfigurationError):  # a system that has no such settings: the service refuses there
    harden_process(development=os.environ.get("SERVICE_CORE_DUMPS", "").lower() == "allow")
raise SystemExit(main())
