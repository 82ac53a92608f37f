"""The driver: starts one worker a store and lets them take turns.

A round gives every store the same work, cut into short turns, and adds up the turns of each.
Whatever slows the machine for a while then slows all of them, which is what makes a ratio of two
stores in one round worth more than two figures from two runs. The order of the turns is random,
because a store pays for what the one before has left the disk to do.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

TOP: Final = Path(__file__).resolve().parents[__name__.count(".")]
"""Where this package is imported from, by whatever name; the workers import it from there too."""


@dataclass(frozen=True)
class Side:
    """A store that takes part.

    Attributes:
        label: Its name in the results.
        command: Starts its worker. Modules are found in :data:`TOP`.
    """

    label: str
    command: Sequence[str]


def own_side(label: str, store: str, *, sync_ms: float = 0.0) -> Side:
    """Return the store itself or its twin, on a disk whose syncs take at least ``sync_ms``."""
    delay = [str(sync_ms)] if sync_ms else []
    return Side(label, (sys.executable, "-P", "-m", f"{__package__}.own_stores", store, *delay))


class WorkerError(RuntimeError):
    """A worker stopped; what it said is on standard error."""


class WorkerProcess:
    """A running worker."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._process = subprocess.Popen(  # noqa: S603 - commands of our own
            side.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(TOP)},
        )

    def ask(self, do: str, **arguments: object) -> Any:
        """Have a command carried out and return its answer: seconds, where it is timed.

        Raises:
            WorkerError: The worker stopped.
        """
        commands, answers = self._process.stdin, self._process.stdout
        if commands is None or answers is None:
            raise WorkerError(f"{self.side.label}: no pipe")
        try:
            commands.write(json.dumps({"do": do, **arguments}) + "\n")
            commands.flush()
            line = answers.readline()
        except OSError:
            line = ""
        if not line:
            raise WorkerError(f"{self.side.label} stopped at {do!r} {arguments}")
        return json.loads(line)["answer"]

    def close(self) -> None:
        """Let the worker close its store and end."""
        self._process.communicate()


@dataclass
class Contest:
    """Several workers that do the same in turns.

    Attributes:
        sides: Who takes part.
    """

    sides: Sequence[Side]
    _workers: list[WorkerProcess] = field(default_factory=list)
    _chance: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - turns

    def __enter__(self) -> Self:
        for side in self.sides:
            self._workers.append(WorkerProcess(side))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.close()

    def start(self, folder: Path, *, order: str, size: int, filled: int = 0) -> None:
        """Open a store for every worker.

        Args:
            folder: Has a folder for each store, or will have.
            order: Of the names: ``random`` or ``ordered``.
            size: Bytes of a value.
            filled: How many records the stores have already; none for new ones.
        """
        for worker in self._workers:
            own = str(folder / worker.side.label)
            worker.ask("start", folder=own, order=order, size=size, filled=filled)

    def finish(self) -> None:
        """Close the stores; the workers stay."""
        self.each("finish")

    def each(self, do: str, **arguments: object) -> dict[str, Any]:
        """Have one command carried out by each worker and return the answers by label."""
        turns = self._chance.sample(self._workers, len(self._workers))
        return {worker.side.label: worker.ask(do, **arguments) for worker in turns}

    def rounds(
        self, rounds: int, turns: int, do: str, *, count: int, **arguments: object
    ) -> dict[str, list[float]]:
        """Time rounds of one kind of operation, after one turn of each that is not counted.

        Args:
            rounds: How many.
            turns: Turns of each worker in a round.
            do: The command.
            count: Operations in a turn.
            arguments: Others of the command.

        Returns:
            By label, for each round the mean time of an operation in microseconds.
        """
        self.each(do, count=count, **arguments)
        results: dict[str, list[float]] = {side.label: [] for side in self.sides}
        for _ in range(rounds):
            sums = dict.fromkeys(results, 0.0)
            for _ in range(turns):
                for label, seconds in self.each(do, count=count, **arguments).items():
                    sums[label] += seconds
            for label, seconds in sums.items():
                results[label].append(seconds / turns / count * 1e6)
        return results


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]
