"""How far long work has come: what the work calls, and the line that shows it."""

import sys
import time
from collections.abc import Callable
from typing import Final, Self

Progress = Callable[[int, int], None]
"""Called with the number of records done and the number of all."""

_REDRAW_S: Final = 0.1
_ESTIMATE_AFTER_S: Final = 1.0


class ProgressLine:
    """A line on standard error: rewritten on a terminal, one for every tenth elsewhere.

    On a terminal it tells how long the rest will take, once a second has shown the pace. Use it in
    a ``with`` block, so that what is printed next begins on a line of its own.

    Args:
        verb: What happens to the records, as in "500 of 1200 records encrypted".
        shown: Whether to print anything.
        clock: Gives seconds.
    """

    def __init__(
        self, verb: str, *, shown: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._verb = verb
        self._shown = shown
        self._clock = clock
        self._terminal = sys.stderr.isatty()
        self._start = clock()
        self._redraw = self._start
        self._tenth = 0
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` records are done."""
        if not self._shown:
            return
        line = f"{done} of {total} records {self._verb}"
        if self._terminal:
            now = self._clock()
            if now >= self._redraw or done >= total:
                self._redraw = now + _REDRAW_S
                line += _time_left(now - self._start, done, total)
                print(f"\r{line.ljust(self._width)}", end="", file=sys.stderr, flush=True)
                self._width = len(line)
        elif (tenth := done * 10 // max(total, 1)) > self._tenth:
            self._tenth = tenth
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            print(file=sys.stderr, flush=True)


def _time_left(elapsed: float, done: int, total: int) -> str:
    if not 0 < done < total or elapsed < _ESTIMATE_AFTER_S:
        return ""
    seconds = round(elapsed * (total - done) / done)
    return f", {seconds // 60}:{seconds % 60:02} left"
