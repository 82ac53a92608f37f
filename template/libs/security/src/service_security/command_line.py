"""What a person types to run a command of this package, for the messages that name one."""

import os


def command_line(words: str) -> str:
    """Return the whole line for a command such as ``keys status``.

    It begins with ``SERVICE_COMMAND``, which a container image or a systemd unit sets, and with the
    recipes of the project's justfile otherwise.
    """
    return f"{os.environ.get('SERVICE_COMMAND') or 'uv run just'} {words}"
