"""`python -m` this package runs the service."""

import signal
import sys


def main() -> int:
    """Return the exit status of the process."""
    # The first process of a container ignores SIGTERM until it asks for it, and importing the
    # service takes a moment.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(0))
    from .start import start

    return start()


if __name__ == "__main__":
    sys.exit(main())
