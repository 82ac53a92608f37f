"""What it costs to have a key out of a TPM 2.0, beside tpm2-tools and tpm2-pytss.

All of them unseal the same 32 bytes from one software TPM, in turn, each over a connection of its own, as a
service does when it starts. Ours and tpm2-pytss use a salted session that encrypts the answer; the tools are
two processes (``tpm2_load``, ``tpm2_unseal``) and have it said in the clear. A chip is slower than a software
TPM by orders of magnitude, and equally so for all of them: what is compared is the way to it.
"""

import argparse
import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from service_security.keys.tpm.errors import PROVISION
from service_security.keys.tpm.provider import TpmProvider

from template.libs.security.tests.software_tpm import SoftwareTpm, software_tpms

UNSEAL_BAR_MS: Final = 5.0
OURS: Final = "TpmProvider, root key kept"
OURS_MADE: Final = "TpmProvider, root key made"
TOOLS: Final = "tpm2_load, tpm2_unseal"
PYTSS: Final = "tpm2-pytss"

_IMPORT: Final = """
import time
import service_security.keys.service_keys
begun = time.perf_counter()
import service_security.keys.tpm.provider
print(time.perf_counter() - begun)
"""


def timed(work: Callable[[], object]) -> float:
    """Return how many milliseconds something takes."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3


class Contest:
    """One sealed key, and several ways to unseal it.

    Args:
        kept: A TPM that keeps its root key.
        made: One that makes it each time.
        pytss: An interpreter that has tpm2-pytss; None leaves it out.
    """

    def __init__(self, kept: SoftwareTpm, made: SoftwareTpm, pytss: Path | None) -> None:
        kept.shell(PROVISION.replace("-P file:OWNER-PASSWORD", ""))
        self._tpm = kept
        self._environment = os.environ | {
            "TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={kept.port}",
            "TSS2_LOG": "all+NONE",
        }
        self._providers = {OURS: kept.provider(), OURS_MADE: made.provider()}
        self._fields = {}
        for name, provider in self._providers.items():
            with provider.protect() as key:
                self._fields[name] = key.fields
        with self._providers[OURS].unprotect(self._fields[OURS]) as key:
            self._key = bytes(key.key.view)
        for member, file in (("public", "k.pub"), ("private", "k.priv")):
            (kept.folder / file).write_bytes(base64.b64decode(self._fields[OURS][member]))
        self.ways: dict[str, Callable[[], float]] = {
            OURS: lambda: self._ours(OURS),
            OURS_MADE: lambda: self._ours(OURS_MADE),
        }
        if shutil.which("tpm2_unseal"):
            self.ways[TOOLS] = self._tools
        if pytss:
            self._peer = subprocess.Popen(
                [pytss, "-m", "benchmarks.peers.pytss", str(kept.port), str(kept.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.ways[PYTSS] = self._pytss

    def _ours(self, name: str) -> float:
        provider: TpmProvider = self._providers[name]
        return timed(lambda: provider.unprotect(self._fields[name]).close())

    def _tools(self) -> float:
        def run(*command: str) -> bytes:
            return subprocess.run(
                command, cwd=self._tpm.folder, env=self._environment, check=True, stdout=subprocess.PIPE
            ).stdout

        load = ("tpm2_load", "-Q", "-C", "0x81000001", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx")
        took = timed(lambda: run(*load))
        run("tpm2_flushcontext", "-t")  # there is no resource manager here that would do it
        begun = time.perf_counter()
        key = run("tpm2_unseal", "-c", "k.ctx")
        took += (time.perf_counter() - begun) * 1e3
        if key != self._key:
            raise SystemExit("tpm2_unseal gave another key")
        run("tpm2_flushcontext", "-t")
        return took

    def _pytss(self) -> float:
        if self._peer.stdin is None or self._peer.stdout is None:
            raise SystemExit("tpm2-pytss has no pipes")
        self._peer.stdin.write("\n")
        self._peer.stdin.flush()
        took, key = self._peer.stdout.readline().split()
        if bytes.fromhex(key) != self._key:
            raise SystemExit("tpm2-pytss gave another key")
        return float(took)

    def close(self) -> None:
        """End the peer."""
        if PYTSS in self.ways:
            self._peer.communicate()


def import_ms() -> float:
    """Return the milliseconds that the provider adds to the import of what opens an envelope."""
    command = [sys.executable, "-c", _IMPORT]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; a missed bar is printed and is no failure, because machines differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="unseals of each kind (%(default)s)")
    parser.add_argument("--pytss", type=Path, metavar="PYTHON", help="an interpreter that has tpm2-pytss")
    parser.add_argument("--json", action="store_true", help="print the figures for machines")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, software_tpms(Path(folder)) as make:
        contest = Contest(make(), make(), options.pytss)
        times: dict[str, list[float]] = {name: [] for name in contest.ways}
        try:
            for _ in range(options.rounds):
                for name, way in contest.ways.items():
                    times[name].append(way())
        finally:
            contest.close()
    imports = [import_ms() for _ in range(max(5, options.rounds // 10))]
    figures = {
        name: {"median_ms": statistics.median(taken), "p95_ms": statistics.quantiles(taken, n=20)[-1]}
        for name, taken in {**times, "import of the provider": imports}.items()
    }
    met = max(figures[name]["median_ms"] for name in (OURS, OURS_MADE)) <= UNSEAL_BAR_MS
    if options.json:
        print(json.dumps({"figures": figures, "bar_ms": UNSEAL_BAR_MS, "met": met}, indent=2))
    else:
        for name, figure in figures.items():
            print(f"{name:<28} median {figure['median_ms']:7.2f} ms   p95 {figure['p95_ms']:7.2f} ms")
        print(f"An unseal within {UNSEAL_BAR_MS} ms: {'yes' if met else 'NO'}")
        for absent in {TOOLS, PYTSS} - times.keys():
            print(f"{absent} was not measured: it is not installed, or not named (--pytss).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
