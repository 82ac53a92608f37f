"""What the hardened image costs and saves, beside the same hardened service on ``python:3.x-slim-trixie``.

The twin differs in its base alone: the environment, the user, the compose file with its limits and its
seccomp profile are the same. Both are built from one rendered project and take turns in every measure, on the
engine that ``docker`` talks to:

- the size of the image, and of its parts;
- from the start of the process to the moment when ``/readyz`` says yes, asked inside the container, without
  the engine's share; and the same for a person who types ``docker compose run``;
- memory of the process and of the container, at rest and after a thousand requests;
- a build from nothing but the base images, and one after a source was changed.

It needs the compose and buildx plugins, and reaches the package index while it builds.
"""

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import copier

from benchmarks import container_inside
from scripts.worktree_copy import copy_template, version_of

HARDENED: Final = "hardened"
TWIN: Final = "slim twin"

SIZE: Final = "image, MB"
READY: Final = "process start to ready, s"
PROCESSOR: Final = "of which on a processor, s"
COMPOSE: Final = "docker compose run to ready, s"
REST: Final = "process at rest, MB"
OWN: Final = "of which its own, MB"
CONTAINER_REST: Final = "container at rest, MB"
LOADED: Final = "process after 1,000 requests, MB"
CONTAINER_LOADED: Final = "container after 1,000 requests, MB"
COLD: Final = "build from nothing, s"
WARM: Final = "build after a change, s"

BARS: Final[Mapping[str, float]] = {SIZE: 120, READY: 0.7, COLD: 120}
"""What the hardened side must not pass."""

REQUESTS: Final = 1000
_PYTHON: Final = "/app/.venv/bin/python"
_INSIDE: Final = Path(container_inside.__file__)
_BUILDER: Final = "FROM ${PYTHON_IMAGE} AS builder\n"
_CACHE: Final = "--mount=type=cache,target=/root/.cache/uv"
_UNITS: Final = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def docker(*arguments: str, where: Path | None = None) -> str:
    """Run the command line of the engine, and return what it printed."""
    done = subprocess.run(["docker", *arguments], cwd=where, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"docker {' '.join(arguments[:3])} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def twin_of(dockerfile: str) -> str:
    """Return the Dockerfile of the twin: the last stage stands on the builder's base."""
    collected = r"(?ms)^COPY docker/collect_runtime\.py .*?^FROM base\nCOPY --from=builder /rt/ /\n"
    on_slim = (
        "RUN python -m compileall -q /app/.venv/lib\n"
        "\n"
        "FROM ${PYTHON_IMAGE}\n"
        "COPY --from=builder /app/.venv /app/.venv\n"
        "RUN install -d -m 0750 -o 65532 -g 65532 /data\n"
    )
    twin, found = re.subn(collected, lambda _: on_slim, dockerfile)
    if found != 1:
        raise SystemExit("The template's Dockerfile has changed: benchmarks/container.py does not know it.")
    return twin


def in_megabytes(text: str) -> float:
    """Read a size as the engine writes it."""
    found = re.fullmatch(r"([\d.]+)([A-Za-z]+)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise SystemExit(f"The engine wrote a size that is not understood: {text!r}")
    return float(found[1]) * _UNITS[found[2]] / 1e6


@dataclass(frozen=True)
class Side:
    """One of the two images and what runs of it.

    Attributes:
        name: In the results.
        project: The rendered project, of this side alone.
        image: The name of its image, which is also that of its compose project.
        network: Of the builds.
    """

    name: str
    project: Path
    image: str
    network: str

    def compose(self, *arguments: str) -> list[str]:
        """Return a command of compose, for this side's project."""
        files = ("--file", "docker-compose.yml", "--file", "side.yml")
        return ["docker", "compose", "--project-name", self.image, *files, *arguments]

    def prepare(self) -> None:
        """Build the image, and make the key and its envelope."""
        self.build("Dockerfile")
        (self.project / "side.yml").write_text(
            f"services: {{service: {{image: {self.image}}}, init: {{image: {self.image}}}}}\n"
        )
        (self.project / "secrets").mkdir(mode=0o700)
        key = self.project / "secrets" / "container.key"
        key.write_bytes(secrets.token_bytes(32))
        key.chmod(0o444)
        begin = self.compose("run", "--rm", "-T", "init", "init", "--no-recovery")
        subprocess.run(begin, cwd=self.project, check=True, capture_output=True)

    def build(self, dockerfile: str, *options: str) -> float:
        """Build the image; return the seconds that it took."""
        begun = time.perf_counter()
        arguments = (
            "--quiet",
            "--network",
            self.network,
            "--tag",
            self.image,
            "--file",
            dockerfile,
            *options,
        )
        docker("build", *arguments, ".", where=self.project)
        return time.perf_counter() - begun

    def build_cold(self) -> float:
        """Build it with nothing of earlier builds, and leave no cache behind."""
        text = (self.project / "Dockerfile").read_text()
        if _CACHE not in text or _BUILDER not in text:
            raise SystemExit(
                "The template's Dockerfile has changed: benchmarks/container.py does not know it."
            )
        # Not by --no-cache, which has brought engines down where somebody else builds the same at the time.
        text = text.replace(_BUILDER, f"{_BUILDER}ENV COLD={secrets.token_hex(8)}\n")
        text = text.replace(_CACHE, "--mount=type=tmpfs,target=/root/.cache/uv")
        (self.project / "Dockerfile.cold").write_text(text)
        return self.build("Dockerfile.cold")

    def build_warm(self) -> float:
        """Build it after a source was changed."""
        (source,) = (self.project / "src").glob("*/app.py")
        source.write_text(source.read_text() + f"# {secrets.token_hex(8)}\n")
        return self.build("Dockerfile")

    def megabytes(self) -> float:
        """Return the size of the image."""
        return int(docker("image", "inspect", "--format", "{{.Size}}", self.image)) / 1e6

    def parts(self) -> dict[str, float]:
        """Return the sizes of the parts of the image, in MB."""
        code = _INSIDE.read_text()
        command = ("run", "--rm", "--entrypoint", _PYTHON, self.image, "-I", "-B", "-c", code, "sizes")
        parts = {name: size / 1e6 for name, size in json.loads(docker(*command)).items()}
        base = int(docker("image", "inspect", "--format", "{{.Size}}", self._base())) / 1e6
        if self.name == TWIN:  # CPython is in the base
            parts = {name: size for name, size in parts.items() if name.startswith("package ")}
        return {
            "base image": base,
            **parts,
            "system libraries, records": self.megabytes() - base - sum(parts.values()),
        }

    def _base(self) -> str:
        argument = "PYTHON_IMAGE" if self.name == TWIN else "BASE_IMAGE"
        text = (self.project / "Dockerfile").read_text()
        return str(re.findall(rf"^ARG {argument}=(\S+)$", text, re.M)[0])

    @contextlib.contextmanager
    def running(self) -> Iterator[dict[str, float]]:
        """Run the service; give the seconds until it was ready, by each measure."""
        config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", self.image))
        service = (*("-I", "-B", "-c", _INSIDE.read_text(), "ready"), *config["Entrypoint"])
        options = ("--rm", "-T", "--name", self.image, "--entrypoint", _PYTHON)
        begun = time.perf_counter()
        process = subprocess.Popen(
            self.compose("run", *options, "service", *service),
            cwd=self.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            found = self._wait(process)
            whole = time.perf_counter() - begun
            yield {READY: found["ready"], PROCESSOR: found["processor"], COMPOSE: whole}
        finally:
            subprocess.run(["docker", "stop", self.image], check=False, capture_output=True)
            process.communicate()

    def _wait(self, process: "subprocess.Popen[str]") -> dict[str, float]:
        said = []
        for line in process.stdout or ():
            if line.startswith('{"ready"'):
                return dict(json.loads(line))
            said.append(line)
        raise SystemExit(f"{self.name} did not become ready:\n{''.join(said)}")

    def inside(self, *arguments: str) -> str:
        """Run a part of the inner program beside the service."""
        return docker("exec", self.image, _PYTHON, "-I", "-B", "-c", _INSIDE.read_text(), *arguments)

    def container_megabytes(self) -> float:
        """Return what the engine counts as the container's memory, files that it may drop left out."""
        used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", self.image)
        return in_megabytes(used.partition("/")[0])

    def remove(self) -> None:
        """Remove what this side has made on the engine."""
        subprocess.run(["docker", "rm", "--force", self.image], check=False, capture_output=True)
        if (self.project / "side.yml").exists():
            down = self.compose("--profile", "init", "down", "--volumes", "--timeout", "1")
            subprocess.run(down, cwd=self.project, check=False, capture_output=True)
        subprocess.run(["docker", "rmi", "--force", self.image], check=False, capture_output=True)


@dataclass
class Benchmark:
    """Both sides, and what was measured of them.

    Attributes:
        sides: They take turns.
        figures: Of each measure and side, one each round.
        parts: Of each image, in MB.
    """

    sides: Sequence[Side]
    figures: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    parts: dict[str, dict[str, float]] = field(default_factory=dict)

    def run(self, rounds: int, builds: int) -> None:
        """Measure everything."""
        for side in self.sides:
            side.prepare()
            self._note(SIZE, side, side.megabytes())
            self.parts[side.name] = side.parts()
        for number in range(rounds + 1):
            for side in self.sides:
                self._start(side, counted=number > 0)
            print(".", end="", file=sys.stderr, flush=True)
        for _ in range(builds):
            for side in self.sides:
                self._note(COLD, side, side.build_cold())
        for number in range(builds + 1):
            for side in self.sides:
                took = side.build_warm()
                if number:  # the first one comes after builds without a cache
                    self._note(WARM, side, took)
            print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    def _start(self, side: Side, *, counted: bool) -> None:
        with side.running() as seconds:
            if not counted:  # it wrote the database, and read the image from the disk
                return
            for measure, figure in seconds.items():
                self._note(measure, side, figure)
            self._note_memory(side, REST, OWN, CONTAINER_REST)
            side.inside("requests", str(REQUESTS))
            self._note_memory(side, LOADED, None, CONTAINER_LOADED)

    def _note_memory(self, side: Side, process: str, own: str | None, container: str) -> None:
        found = json.loads(side.inside("memory"))
        self._note(process, side, found["resident"] / 1e6)
        if own:
            self._note(own, side, found["own"] / 1e6)
        self._note(container, side, side.container_megabytes())

    def _note(self, measure: str, side: Side, figure: float) -> None:
        self.figures[measure][side.name].append(figure)

    def medians(self) -> dict[str, dict[str, float]]:
        """Return the median of each measure and side."""
        return {
            measure: {side: statistics.median(figures) for side, figures in sides.items()}
            for measure, sides in self.figures.items()
        }


def verdict(measure: str, figure: float) -> str:
    """Say whether a bar is met."""
    if measure not in BARS:
        return ""
    return f"<= {BARS[measure]:g}: {'met' if figure <= BARS[measure] else 'MISSED'}"


def as_table(benchmark: Benchmark) -> str:
    """Lay the result out for people."""
    lines = [f"{'':<38}{HARDENED:>10}{TWIN:>11}{'ratio':>8}  {'lowest to highest':<19}bar"]
    for measure, sides in benchmark.medians().items():
        ours, theirs = sides[HARDENED], sides[TWIN]
        each = benchmark.figures[measure][HARDENED]
        spread = f"{min(each):.2f} to {max(each):.2f}" if len(each) > 1 else ""
        cells = f"{measure:<38}{ours:>10.2f}{theirs:>11.2f}{ours / theirs:>8.2f}  {spread:<19}"
        lines.append((cells + verdict(measure, ours)).rstrip())
    for name, parts in benchmark.parts.items():
        lines += ["", f"{name}: parts of the image, MB"]
        ordered = sorted(parts.items(), key=lambda part: -part[1])
        lines += [f"  {part:<42}{size:>8.2f}" for part, size in ordered if size >= 0.05]
        lines.append(f"  {'the rest':<42}{sum(size for _, size in ordered if size < 0.05):>8.2f}")
    return "\n".join(lines)


def as_json(benchmark: Benchmark) -> str:
    """Lay the result out for programs."""
    return json.dumps(
        {
            "figures": benchmark.figures,
            "parts_mb": benchmark.parts,
            "bars": {
                measure: {"limit": limit, "met": benchmark.medians()[measure][HARDENED] <= limit}
                for measure, limit in BARS.items()
                if measure in benchmark.figures
            },
            "processors": os.cpu_count(),
            "engine": docker("version", "--format", "{{.Server.Version}}").strip(),
        },
        indent=2,
    )


def make_sides(scratch: Path, network: str) -> list[Side]:
    """Render one project, lock it, and give each side a copy."""
    run = f"bartizan-benchmark-{secrets.token_hex(4)}"
    template = copy_template(scratch / "template", f"v{version_of()}")
    answers = {"project_name": "Orders", "enable_security_hardening": True}
    project = scratch / "project"
    copier.run_copy(str(template), project, data=answers, defaults=True, unsafe=True, quiet=True)
    subprocess.run(["uv", "lock", "--quiet"], cwd=project, check=True)
    sides = []
    for name, suffix in ((HARDENED, "hardened"), (TWIN, "twin")):
        copy = scratch / suffix
        shutil.copytree(project, copy, symlinks=True)
        sides.append(Side(name, copy, f"{run}-{suffix}", network))
    dockerfile = sides[1].project / "Dockerfile"
    dockerfile.write_text(twin_of(dockerfile.read_text()))
    return sides


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; a missed bar is printed and is no failure, because machines differ."""
    parser = argparse.ArgumentParser(
        prog="just container-benchmark", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=9, help="starts of each side (%(default)s)")
    parser.add_argument(
        "--builds", type=int, default=3, help="builds of each kind and side, 0 for none (%(default)s)"
    )
    parser.add_argument("--network", default="default", help="network of the builds, like host (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file as well")
    options = parser.parse_args(arguments)
    for needed in (["docker", "version"], ["docker", "compose", "version"], ["docker", "buildx", "version"]):
        try:
            found = subprocess.run(needed, check=False, capture_output=True).returncode == 0
        except FileNotFoundError:
            found = False
        if not found:
            print(
                f"`{' '.join(needed)}` fails: a running engine with compose and buildx is needed.",
                file=sys.stderr,
            )
            return 1
    with tempfile.TemporaryDirectory(prefix="bartizan-benchmark-") as scratch:
        benchmark = Benchmark(make_sides(Path(scratch).resolve(), options.network))
        try:
            benchmark.run(options.rounds, options.builds)
        finally:
            for side in benchmark.sides:
                side.remove()
    print(as_table(benchmark))
    if options.json:
        options.json.write_text(as_json(benchmark) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
