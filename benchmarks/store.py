"""What ``SecureDb`` costs beside its plain twin, and beside what a Python user would pick instead.

This is the benchmark that every hardened service has (``template/libs/security/benchmarks``, whose notes hold
here too) with the peers added, each in a process of its own: SQLCipher, SQLite3 Multiple Ciphers, SQLite with
Fernet tokens, and ``diskcache``, which does not encrypt. ``peers/`` says how each was set up.

At the end come stores of a million records: random reads beside SQLCipher, opening, and memory beside the
twin. The records are written by calls of their own, many to a transaction: each has a subkey of its own, as
if it had been written alone, so that next to no subkey is found in the cache.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from template.libs.security.benchmarks.security_benchmark import measure, options
from template.libs.security.benchmarks.store_driver import Side
from template.libs.security.benchmarks.store_measures import (
    BARS,
    BATCHES,
    GET_BATCHES,
    GET_LARGE,
    GET_SINGLES,
    INSERT,
    LARGE,
    Bars,
    Benchmark,
    Plan,
)
from template.libs.security.benchmarks.store_report import Bar

SQLCIPHER: Final = "SQLCipher"
SQLCIPHER_8K: Final = "SQLCipher, 8 KiB"
SQLITE3MC: Final = "sqlite3mc"
FERNET: Final = "SQLite + Fernet"
DISKCACHE: Final = "diskcache"

PEER_BARS: Final[Bars] = {
    (INSERT, SQLCIPHER): Bar(0.85, aim=0.75, disk=True),
    (INSERT, FERNET): Bar(0.90, aim=0.80, disk=True),
    (INSERT, SQLITE3MC): Bar(1.05, aim=0.95, disk=True),
    (BATCHES, SQLCIPHER): Bar(0.90, aim=0.65, disk=True),
    (BATCHES, SQLCIPHER_8K): Bar(0.90, aim=0.65, disk=True),
    (GET_SINGLES, SQLCIPHER): Bar(1.15, aim=0.90),
    (GET_BATCHES, SQLCIPHER): Bar(1.15, aim=0.90),
    (GET_LARGE, SQLCIPHER): Bar(0.85),
}
"""At 1 KiB and random names, as those beside the twin."""

_MULTIPLE_CIPHERS: Final = "apsw-sqlite3mc==3.54.0.0"


class Peer(NamedTuple):
    """A peer that may take part.

    Attributes:
        label: Its name in the results.
        python: Starts the interpreter of its environment.
        worker: Its module, in ``peers/``, and what is said to it.
        probe: Python that succeeds where it is installed.
        needs: How to get it, for people.
    """

    label: str
    python: Sequence[str]
    worker: Sequence[str]
    probe: str
    needs: str

    @property
    def is_installed(self) -> bool:
        """Whether it can take part."""
        try:
            probed = subprocess.run([*self.python, "-c", self.probe], capture_output=True)
        except OSError:
            return False
        return probed.returncode == 0

    @property
    def side(self) -> Side:
        """How it takes part."""
        module, *said = self.worker
        return Side(self.label, (*self.python, "-m", f"benchmarks.peers.{module}", *said))


_HERE: Final = (sys.executable, "-P")
# Installed beside apsw it would overwrite it, and with it the store's engine.
_APART: Final = (
    *("uv", "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable),
    *("--with", _MULTIPLE_CIPHERS, "python", "-P"),
)
_GROUP: Final = "uv sync --group peers"
_HAS_SQLCIPHER: Final = "import sqlcipher3.dbapi2"
PEERS: Final = (
    Peer(SQLCIPHER, _HERE, ("sqlcipher", "4096"), _HAS_SQLCIPHER, _GROUP),
    Peer(SQLCIPHER_8K, _HERE, ("sqlcipher", "8192"), _HAS_SQLCIPHER, _GROUP),
    Peer(SQLITE3MC, _APART, ("sqlite3mc",), "from apsw import mc_version", f"uv, {_MULTIPLE_CIPHERS}"),
    Peer(FERNET, _HERE, ("fernet",), "from cryptography import fernet", "uv sync"),
    Peer(DISKCACHE, _HERE, ("disk_cache",), "import diskcache", _GROUP),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure against the twin and the peers that are installed.

    With BARTIZAN_REQUIRE=all a missing one is a failure.
    """
    chosen = options((__doc__ or "").splitlines()[0], large=LARGE).parse_args(arguments)
    present = [peer for peer in PEERS if peer.is_installed]
    absent = [f"{peer.label} was not measured: {peer.needs}." for peer in PEERS if peer not in present]
    if absent and os.environ.get("BARTIZAN_REQUIRE") == "all":
        print(*absent, sep="\n", file=sys.stderr)
        return 1

    def work(plan: Plan, scratch: Path) -> Benchmark:
        benchmark = Benchmark(plan, scratch, [peer.side for peer in present], {**BARS, **PEER_BARS})
        benchmark.run()
        if chosen.large:
            compared = [peer.side for peer in present if peer.label == SQLCIPHER]
            benchmark.run_large(chosen.large, compared)
        return benchmark

    measure(chosen, work, absent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
