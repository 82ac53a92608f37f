"""What the container benchmark runs in its containers, with the interpreter that is there; there is no shell.

It is handed over as text, on the command line, and uses the standard library alone.
"""

import json
import os
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

_PORT = 8000
_PATIENCE = 60


def ready_after(command: list[str]) -> None:
    """Become the service, while a child asks until it is ready and says how many seconds that took.

    The clocks start where the service's own process does: at the `execv`. One of them goes only while that
    process is on a processor.
    """
    used = _processor_seconds()
    begun = time.monotonic()
    if os.fork():
        os.execv(command[0], command)  # noqa: S606
    while time.monotonic() < begun + _PATIENCE:
        connection = HTTPConnection("127.0.0.1", _PORT, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                found = {"ready": time.monotonic() - begun, "processor": _processor_seconds() - used}
                print(json.dumps(found), flush=True)
                break
        except OSError:
            time.sleep(0.002)
        finally:
            connection.close()
    os._exit(0)


def _processor_seconds() -> float:
    """Return how long the container's first process has been on a processor."""
    fields = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory() -> None:
    """Print what the service's process has in memory, in bytes."""
    lines = Path("/proc/1/status").read_text().splitlines()
    status = {name: value for name, _, value in (line.partition(":") for line in lines)}
    kept = {"resident": "VmRSS", "own": "RssAnon"}
    print(json.dumps({name: int(status[field].split()[0]) * 1024 for name, field in kept.items()}))


def requests(count: int) -> None:
    """Write and read small records, one after the other on one connection."""
    connection = HTTPConnection("127.0.0.1", _PORT, timeout=30)
    for number in range(count):
        method, body = ("PUT", json.dumps({"value": "v" * 200})) if number % 2 else ("GET", None)
        connection.request(method, "/v1/records/benchmark", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status not in {200, 201, 204} and number:
            raise SystemExit(f"{method} was answered by {answer.status}")


def sizes() -> None:
    """Print how many bytes each part of the image has."""
    packages = Path(sys.prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    library = Path(os.__file__).parent
    parts: dict[str, int] = {}

    def add(part: str, path: Path) -> None:
        parts[part] = parts.get(part, 0) + path.lstat().st_size

    for path in packages.rglob("*"):
        if path.is_file():
            top = path.relative_to(packages).parts[0]
            owner = owners(packages).get(top.removesuffix(".py"), "single modules, bytecode")
            add(f"package {owner}", path)
    for path in library.rglob("*"):
        if path.is_file() and packages not in path.parents:
            kind = {".py": "sources", ".pyc": "bytecode", ".so": "extensions"}.get(path.suffix, "other files")
            add(f"standard library, {kind}", path)
    for path in (*Path(sys.base_prefix, "bin").iterdir(), *Path(sys.base_prefix, "lib").glob("lib*")):
        add("interpreter", path)
    print(json.dumps(parts))


_OWNERS: dict[str, str] = {}


def owners(packages: Path) -> dict[str, str]:
    """Return which distribution each entry of the packages belongs to, by their records."""
    if not _OWNERS:
        for record in packages.glob("*.dist-info/RECORD"):
            name = record.parent.name.partition("-")[0]
            for line in record.read_text().splitlines():
                _OWNERS.setdefault(line.partition("/")[0].partition(",")[0].removesuffix(".py"), name)
    return _OWNERS


if __name__ == "__main__":
    _, _what, *_rest = sys.argv
    if _what == "ready":
        ready_after(_rest)
    elif _what == "memory":
        memory()
    elif _what == "requests":
        requests(int(_rest[0]))
    else:
        sizes()
