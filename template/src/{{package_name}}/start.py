"""Puts the parts together and runs the service until it is told to stop."""

import sys
from contextlib import closing

from .app import create_app
from .data_folder import hold_data_folder
from .errors import StartError
from .log import configure_logging
from .server import bind, serve
from .settings import SettingsError, load_settings
from .storage import open_record_store


def start() -> int:
    """Return the exit status: 0 after SIGTERM or SIGINT, 2 when the service could not start."""
    try:
        settings = load_settings()
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    configure_logging(settings.log_level, settings.log_format)
    try:
        with (
            hold_data_folder(settings.data_dir),
            closing(open_record_store(settings)) as store,
            bind(settings.host, settings.port) as listener,
        ):
            serve(create_app(settings, store), listener)
    except StartError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
