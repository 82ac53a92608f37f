"""Start the service and run it until it is told to stop.

Exit status: 0 after SIGTERM or SIGINT, 2 when it could not start.
"""

import sys
from contextlib import closing

from .app import create_app
from .data_folder import DataFolder
from .errors import StartError
from .log import configure_logging
from .server import bind, serve
from .settings import SettingsError, load_settings
from .storage import open_record_store


def main() -> int:
    """Return the exit status of the process."""
    try:
        settings = load_settings()
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    configure_logging(settings.log_level, settings.log_format)
    try:
        with (
            DataFolder(settings.data_dir),
            closing(open_record_store(settings)) as store,
            bind(settings.host, settings.port) as listener,
        ):
            serve(create_app(settings, store), listener)
    except StartError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
