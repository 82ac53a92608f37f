"""Gather what the distroless image runs: CPython, the virtual environment and their libraries.

Runs in the builder stage of the Dockerfile, on an official python:*-slim image, and writes a tree
that is laid over the base image. Nothing is installed there, files are only copied:

- shared libraries come with their dpkg record and licence: scanners and lawyers look for those;
- modules are compiled for good: a read-only root can cache no bytecode;
- tests, installers and console scripts stay behind: nothing in the image may run them;
- owners, modes and times are the same in every build.
"""

import argparse
import compileall
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

SERVICE_UID = 65532

PREFIX = Path(sys.base_prefix)
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

# Parts of the standard library that need a terminal, a display, a compiler or pip.
LEFT_BEHIND = frozenset(
    {
        "__phello__",
        "_pyrepl",
        "curses",
        "dbm",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc.py",
        "pydoc_data",
        "site-packages",
        "tkinter",
        "turtle.py",
        "turtledemo",
        "venv",
    }
)
EXTENSIONS_LEFT_BEHIND = (
    "_crypt",
    "_ctypes_test",
    "_curses",
    "_dbm",
    "_gdbm",
    "_test",
    "_tkinter",
    "_xxtest",
    "nis",
    "readline",
    "xx",
)
ANYWHERE_LEFT_BEHIND = frozenset({"__pycache__", "test", "tests"})


class CollectError(Exception):
    """The runtime cannot be put together; the build stops with this message."""


def run(*command: str) -> str:
    """Return the output of a command that must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


def below(root: Path, path: Path) -> Path:
    """Return where an absolute path of the builder lies below the new root."""
    return root / path.relative_to("/")


def ignored_in_stdlib(folder: str, names: list[str]) -> set[str]:
    """Name the entries of one folder of the standard library that stay behind."""
    ignored = set(names) & ANYWHERE_LEFT_BEHIND
    match Path(folder).relative_to(PREFIX / "lib" / PYTHON).parts:
        case ():
            ignored |= set(names) & LEFT_BEHIND
            ignored |= {name for name in names if name.startswith("config-")}
        case ("lib-dynload",):
            ignored |= {name for name in names if name.startswith(EXTENSIONS_LEFT_BEHIND)}
    return ignored


def copy_interpreter(root: Path) -> None:
    """Copy CPython without the parts that a service cannot use."""
    binary = below(root, PREFIX / "bin")
    binary.mkdir(parents=True)
    shutil.copy2(PREFIX / "bin" / PYTHON, binary)
    for alias in ("python3", "python"):
        (binary / alias).symlink_to(PYTHON)
    library = PREFIX / "lib"
    shutil.copytree(
        library / PYTHON, below(root, library / PYTHON), symlinks=True, ignore=ignored_in_stdlib
    )
    for shared in library.glob("libpython*.so*"):
        shutil.copy2(shared, below(root, library), follow_symlinks=False)


def copy_environment(root: Path, venv: Path) -> None:
    """Copy the virtual environment: its packages and its link to the interpreter."""
    interpreter = (venv / "bin" / "python").readlink()
    if not below(root, interpreter).exists():
        raise CollectError(f"{venv} runs {interpreter}, which is not the interpreter of this image")

    def ignored(folder: str, names: list[str]) -> set[str]:
        left = set(names) & (ANYWHERE_LEFT_BEHIND | {"_virtualenv.pth", "_virtualenv.py"})
        if Path(folder) == venv:
            left |= set(names) & {".gitignore", ".lock", "CACHEDIR.TAG"}
        if Path(folder) == venv / "bin":  # activate and console scripts, which only a shell starts
            left |= {name for name in names if not (venv / "bin" / name).is_symlink()}
        return left

    shutil.copytree(venv, below(root, venv), symlinks=True, ignore=ignored)
    for note in below(root, venv).rglob("*.dist-info/uv_cache.json"):  # holds the time of the build
        note.unlink()
        record = note.with_name("RECORD")
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if "/uv_cache.json," not in line]
        record.write_text("".join(kept), encoding="utf-8")


def elf_files(root: Path) -> Iterator[Path]:
    """Find the programs and shared libraries in the new root."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def shared_libraries(files: Iterable[Path]) -> set[Path]:
    """Name the system libraries that the loader would open for these files."""
    found: set[Path] = set()
    for file in files:
        # ldd of a static file fails; it has no needs either.
        output = subprocess.run(  # noqa: S603
            ["/usr/bin/ldd", str(file)], check=False, capture_output=True, text=True
        ).stdout
        if missing := re.findall(r"(?m)^\s*(\S+) => not found", output):
            raise CollectError(f"{file} needs {', '.join(missing)}, which this image does not have")
        found |= {Path(name) for name in re.findall(r"=> (/\S+)", output)}
    return found


def owner(library: Path) -> str:
    """Return the Debian package of a library, whichever of its names dpkg knows."""
    names = {str(library), f"/usr{library}", str(library.resolve())}
    for name in sorted(names):
        answer = subprocess.run(  # noqa: S603
            ["/usr/bin/dpkg-query", "--search", name], check=False, capture_output=True, text=True
        )
        if answer.returncode == 0:
            return answer.stdout.partition(":")[0]
    raise CollectError(f"no Debian package owns {library}")


def packages_of(base: Path) -> set[str]:
    """Read which packages the base image has already, from its status.d."""
    names: set[str] = set()
    for status in base.iterdir():
        if not status.name.endswith(".md5sums"):
            names |= set(re.findall(r"(?m)^Package: (\S+)$", status.read_text("utf-8")))
    if "libc6" not in names:
        raise CollectError(f"{base} does not list libc6: is the base image still Debian's?")
    return names


def copy_libraries(root: Path, base: Path) -> list[str]:
    """Copy the system libraries that the base lacks, with their records; return their packages."""
    present = packages_of(base)
    copied: set[str] = set()
    for library in sorted(shared_libraries(elf_files(root))):
        if below(root, library).exists() or library.is_relative_to(root):
            continue  # of CPython itself, or inside a wheel
        package = owner(library)
        if package in present:
            continue
        copied.add(package)
        real = library.resolve()
        target = below(root, real)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(real, target)
        if library.name != real.name:
            target.with_name(library.name).symlink_to(real.name)
    records = root / "var/lib/dpkg/status.d"
    records.mkdir(parents=True)
    for package in sorted(copied):
        (records / package).write_text(run("/usr/bin/dpkg-query", "--status", package), "utf-8")
        licence = Path("/usr/share/doc", package, "copyright")
        if licence.exists():
            below(root, licence).parent.mkdir(parents=True)
            shutil.copy2(licence, below(root, licence))
    return sorted(copied)


def compile_modules(root: Path, *folders: Path) -> None:
    """Compile every module, unchecked: in the image no source can change under its bytecode."""
    for folder in folders:
        compileall.compile_dir(
            below(root, folder),
            maxlevels=40,
            quiet=1,
            stripdir=str(root),
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )


def settle(root: Path, epoch: int) -> None:
    """Give the service its data folder, and every file one owner, mode and time."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in (*files, *folders):
            path = Path(folder, name)
            os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    data = root / "data"
    data.mkdir(mode=0o750)
    os.chown(data, SERVICE_UID, SERVICE_UID)
    for path in (data, root):
        os.utime(path, (epoch, epoch))


def main() -> None:
    """Read the command line and build the tree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--venv", type=Path, required=True, help="environment of the service")
    parser.add_argument("--base", type=Path, required=True, help="status.d of the base image")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    options = parser.parse_args()
    root: Path = options.output
    try:
        copy_interpreter(root)
        copy_environment(root, options.venv)
        packages = copy_libraries(root, options.base)
        compile_modules(root, PREFIX / "lib" / PYTHON, options.venv / "lib")
        settle(root, int(os.environ.get("SOURCE_DATE_EPOCH") or 0))
    except CollectError as error:
        sys.exit(f"collect_runtime.py: {error}")
    print("added to the base:", " ".join(packages) or "nothing")


if __name__ == "__main__":
    main()
