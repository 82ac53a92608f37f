"""The ``docker`` command, which knows of contexts, of rootless engines and of remote ones.

Never through a shell; every call ends within its time; of what it prints no more is kept than was
asked for. ``podman``'s command of the same name works as far as its documents look like Docker's.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Final

from .document import Document, NotShownError, parse
from .errors import ProbeError
from .plain_text import plain

SOON: Final = 60.0
"""Seconds for a question that the engine answers from memory."""

ENDING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""The signals that ask a program to end."""

_PIECE: Final = 1 << 16
_MOST: Final = 16 << 20


@dataclass(frozen=True)
class Output:
    """What a command left.

    Attributes:
        status: 0 where it did what it was asked.
        text: What it wrote to its output.
        complaint: The last line of what it wrote to its standard error, fit to print.
        complaints: All of that.
    """

    status: int
    text: bytes
    complaints: str = ""

    @property
    def complaint(self) -> str:
        """The last thing it said about what is wrong."""
        lines = [line for line in self.complaints.splitlines() if line.strip()]
        return plain(lines[-1].strip()) if lines else f"status {self.status}"


@dataclass
class _Reader:
    """Reads a stream to its end and keeps the beginning."""

    stream: IO[bytes]
    most: int
    kept: bytearray = field(default_factory=bytearray)
    overflowed: bool = False

    def __call__(self) -> None:
        with suppress(OSError, ValueError):  # closed under it when the time is up
            while piece := os.read(self.stream.fileno(), _PIECE):
                room = self.most - len(self.kept)
                self.kept += piece[:room]
                self.overflowed |= len(piece) > room


@dataclass(frozen=True)
class Engine:
    """A container engine, through its command.

    Attributes:
        program: The command, absolute.
    """

    program: str

    @classmethod
    def found(cls) -> "Engine":
        """Find the command and see that an engine answers.

        Raises:
            ProbeError: There is none.
        """
        program = shutil.which("docker")
        if program is None:
            raise ProbeError(
                "There is no docker command in the PATH. Install Docker's command line (or Podman "
                "with podman-docker), or run the probe where the container runs."
            )
        engine = cls(program)
        answer = engine.run("version", "--format", "{{.Server.Version}}")
        if answer.status != 0 or not answer.text.strip():
            raise ProbeError(
                f"No container engine answers: {answer.complaint}. Start it, or choose another "
                "with DOCKER_HOST or `docker context use`, and see that you may use it: "
                "`docker version` has to show a server."
            )
        return engine

    def run(
        self,
        *arguments: str,
        given: bytes = b"",
        seconds: float = SOON,
        most: int = _MOST,
        environment: Mapping[str, str] | None = None,
    ) -> Output:
        """Run a command to its end.

        Args:
            arguments: Of the command.
            given: What it reads from its standard input.
            seconds: After which it is ended.
            most: Bytes of its output.
            environment: What is added to this process's.

        Raises:
            ProbeError: It took longer, or wrote more, or could not be started.
        """
        with self._started(arguments, environment) as process:
            given_to, told, complained = _pipes(process)
            output, complaints = _Reader(told, most), _Reader(complained, _PIECE)
            helpers = [threading.Thread(target=each, daemon=True) for each in (output, complaints)]
            helpers.append(threading.Thread(target=_write, args=(given_to, given), daemon=True))
            ends = time.monotonic() + seconds
            for helper in helpers:
                helper.start()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise _too_slow(arguments, seconds) from None
            for helper in helpers:  # a child of the command may hold the pipes
                helper.join(max(ends - time.monotonic(), 0.1))
                if helper.is_alive():
                    raise _too_slow(arguments, seconds)
        if output.overflowed:
            raise ProbeError(
                f"`docker {plain(arguments[0])}` printed more than {most >> 20} MiB, which nothing "
                "that belongs to a container should."
            )
        return Output(
            process.returncode, bytes(output.kept), complaints.kept.decode("utf-8", "replace")
        )

    def documents(self, *arguments: str) -> list[object] | None:
        """Return the JSON list that a command prints, or nothing where it fails.

        Raises:
            ProbeError: It prints something else.
        """
        answer = self.run(*arguments)
        if answer.status != 0:
            return None
        try:
            found = parse(answer.text)
        except NotShownError as error:
            raise ProbeError(
                f"The answer to `docker {plain(' '.join(arguments[:2]))}` cannot be read: {error}. "
                "Is `docker` the command line of a container engine?"
            ) from error
        return found if isinstance(found, list) else [found]

    def inspect(self, kind: str, name: str) -> Document | None:
        """Return what the engine knows of a container or image, or nothing where it has none."""
        found = self.documents(kind, "inspect", name)
        return Document(kind, found[0]) if found else None

    @contextmanager
    def stream(self, *arguments: str, seconds: float) -> Iterator[IO[bytes]]:
        """Run a command and read its output as it comes; it is ended when its time is up.

        Raises:
            ProbeError: It fails, or takes longer.
        """
        with self._started(arguments, None) as process:
            given_to, told, complained = _pipes(process)
            given_to.close()
            complaints = _Reader(complained, _PIECE)
            helper = threading.Thread(target=complaints, daemon=True)
            helper.start()
            late = threading.Event()

            def end() -> None:
                late.set()
                _end(process)

            timer = threading.Timer(seconds, end)
            timer.daemon = True
            timer.start()
            try:
                yield told
                process.wait()
            except Exception:
                if late.is_set():
                    raise _too_slow(arguments, seconds) from None
                raise
            finally:
                timer.cancel()
            if late.is_set():
                raise _too_slow(arguments, seconds)
            helper.join(1)
            if process.returncode != 0:
                said = Output(process.returncode, b"", complaints.kept.decode("utf-8", "replace"))
                raise ProbeError(f"`docker {plain(arguments[0])}` failed: {said.complaint}.")

    @contextmanager
    def _started(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None
    ) -> "Iterator[subprocess.Popen[bytes]]":
        try:
            process = subprocess.Popen(  # noqa: S603 - a list, and no shell
                [self.program, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | dict(environment or {}),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ProbeError(f"{self.program} cannot be started: {error}.") from error
        try:
            yield process
        finally:
            _end(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off what asks the program to end until what is done here is done.

    For what would leave something behind if it were done by half.

    Raises:
        KeyboardInterrupt: At the end, if it was asked to meanwhile.
    """
    came: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: came.append(number))
        for each in ENDING
        if signal.getsignal(each) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
    if came:
        raise KeyboardInterrupt


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise ProbeError("the command was started without pipes")  # which were asked for
    return process.stdin, process.stdout, process.stderr


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a command and whatever it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _write(stream: IO[bytes], given: bytes) -> None:
    with suppress(OSError, ValueError):  # who does not read it all shows it by the status
        stream.write(given)
        stream.close()


def _too_slow(arguments: Sequence[str], seconds: float) -> ProbeError:
    return ProbeError(
        f"`docker {plain(arguments[0])}` gave no answer within {seconds:.0f} seconds. See whether "
        "the engine is well: `docker version`, `docker ps`."
    )
