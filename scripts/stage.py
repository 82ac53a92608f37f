"""A folder to work in, the steps that are shown, and the processes that must not outlive them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

_COMMAND_SECONDS = 600
_STOP_SECONDS = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StepError(Exception):
    """A step did not do what it should; the text is a sentence for people."""


class Stage:
    """Runs steps in a folder. When it is left, for whatever reason, nothing that it started is running."""

    def __init__(self, folder: Path, steps: int) -> None:
        """Work in an existing folder; `steps` is the total to show."""
        self.folder = folder
        self.logs = folder / "logs"
        self._steps = steps
        self._step = 0
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Make the folder for the logs, and have every request to end reach the code as Ctrl-C does."""
        self.logs.mkdir()
        for number in _SIGNALS:
            signal.signal(number, _interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop what is still running, and let no second Ctrl-C get in between."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for process in self._running:
            _signal_group(process, signal.SIGTERM)
        for process in self._running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            # Also when the leader has ended: what it started may not have.
            _signal_group(process, signal.SIGKILL)
            process.wait()

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show a step while it runs, and how long it took."""
        self._step += 1
        print(f"{self._step}/{self._steps}  {text} ".ljust(64, "."), end=" ", flush=True)
        begun = time.monotonic()
        try:
            yield
        except BaseException:
            print("stopped", flush=True)
            raise
        print(f"{time.monotonic() - begun:.1f} s", flush=True)

    def start(self, log: str, command: Sequence[str], cwd: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own: Ctrl-C reaches this program only, which then stops it."""
        with (self.logs / f"{log}.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=_environment() | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def run(self, log: str, command: Sequence[str], cwd: Path) -> None:
        """Run a command to its end."""
        process = self.start(log, command, cwd)
        words = " ".join(command)
        try:
            status = process.wait(_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise StepError(f"`{words}` had not ended after {_COMMAND_SECONDS} seconds.") from None
        self._running.remove(process)
        if status != 0:
            raise StepError(f"`{words}` ended with status {status}.")

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Ask a service to stop, as a container engine would, and insist on a clean end."""
        process.terminate()
        try:
            status = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise StepError(f"The service did not stop within {_STOP_SECONDS} seconds of SIGTERM.") from None
        self._running.remove(process)
        if status != 0:
            raise StepError(f"The service ended with status {status} after SIGTERM instead of 0.")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _environment() -> dict[str, str]:
    """Return the environment of a person's shell: nothing in it of the `uv run` around this program."""
    ours = ("VIRTUAL_ENV", "UV_PROJECT", "UV_RUN_", "SERVICE_", "PYTHON", "GIT_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # `uv` may be no more than a package of this environment.
    return kept | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])}
