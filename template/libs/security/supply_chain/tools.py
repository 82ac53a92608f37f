"""The commands that this package drives: the engine's and cosign's. No shell in between."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import SupplyChainError

_ADVICE = {
    "cosign": "Debian 13 has it: apt-get install cosign",
    "docker": "It is the command line of the container engine",
}


def run(command: Sequence[str], failed: str, *, asks: bool = False) -> str:
    """Run a command, with this process's terminal as its input, and return what it printed.

    Args:
        command: The program and its arguments. Arguments are seen by every process of the machine,
            so a password is never among them.
        failed: What could not be done, for the message if it fails.
        asks: It may ask for a password, so what it writes to its error output is shown at once.

    Raises:
        SupplyChainError: The program is not there, or said no; with the last lines it wrote.
    """
    program = shutil.which(command[0])
    if program is None:
        raise SupplyChainError(f"{failed}: {command[0]} is not installed. {_ADVICE[command[0]]}.")
    done = subprocess.run(  # noqa: S603
        [program, *command[1:]],
        check=False,
        stdout=subprocess.PIPE,
        stderr=None if asks else subprocess.PIPE,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise SupplyChainError(f"{failed}: " + ("; ".join(said[-2:]) or "its reason stands above"))
    return done.stdout.decode(errors="replace")


def save(image: str, archive: Path) -> None:
    """Write an image of the engine into an archive, in the format that ``docker load`` reads."""
    run(
        ["docker", "image", "save", "--output", str(archive), image],
        f"The engine did not save the image {image}",
    )


def load(archive: Path) -> None:
    """Have the engine take over an archive."""
    run(["docker", "image", "load", "--quiet", "--input", str(archive)], f"Cannot load {archive}")
