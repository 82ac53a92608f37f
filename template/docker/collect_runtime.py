"""Gather what the distroless image runs: CPython, the virtual environment and their libraries.

Runs in the builder stage of the Dockerfile, on an official python:*-slim image, and writes a tree
that is laid over the base image. Nothing is installed there, files are only copied:

- shared libraries come with their dpkg records and licence: scanners and lawyers look for those;
- modules are compiled for good: a read-only root can cache no bytecode;
- tests, installers and programs stay behind: nothing in the image may run them;
- binaries stay as they were published, debugging symbols too: what a wheel brought can be compared
  with its RECORD, and so with the hash in uv.lock;
- owners, modes and times are the same in every build.
"""

import argparse
import compileall
import csv
import hashlib
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

# Parts of the standard library that need a terminal, a display, a compiler, pip or another system,
# and what cannot be imported without them. What is not here can be imported, every module of it.
LEFT_BEHIND = frozenset(
    {
        "__phello__",
        "_android_support.py",
        "_distutils_system_mod.py",
        "_ios_support.py",
        "asyncio/__main__.py",
        "asyncio/windows_events.py",
        "asyncio/windows_utils.py",
        "cgitb.py",
        "crypt.py",
        "curses",
        "dbm/gnu.py",
        "dbm/ndbm.py",
        "dist-packages",
        "distutils/msvc9compiler.py",
        "encodings/mbcs.py",
        "encodings/oem.py",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "msilib",
        "multiprocessing/popen_spawn_win32.py",
        "pydoc.py",
        "pydoc_data",
        "site-packages",
        "tkinter",
        "turtle.py",
        "turtledemo",
        "venv",
        "xmlrpc/server.py",
    }
    | (set() if sys.version_info >= (3, 14) else {"_pyrepl"})  # pdb of 3.14 imports it
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
    "ossaudiodev",
    "readline",
    "spwd",
    "xx",
)
# Programs and loadable extensions of SQLite, which apsw brings for work by hand.
PACKAGES_LEFT_BEHIND = frozenset({"apsw/sqlite_extra_binaries"})
# A dependency that imports its own such folder when it runs (Django does) needs a name taken out.
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
    place = Path(folder).relative_to(PREFIX / "lib" / PYTHON)
    ignored |= {name for name in names if (place / name).as_posix() in LEFT_BEHIND}
    match place.parts:
        case ():
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


def ignored_in_environment(venv: Path, folder: Path, names: list[str]) -> set[str]:
    """Name the entries of one folder of the virtual environment that stay behind."""
    ignored = set(names) & (ANYWHERE_LEFT_BEHIND | {"_virtualenv.pth", "_virtualenv.py"})
    if folder == venv:
        ignored |= set(names) & {".gitignore", ".lock", "CACHEDIR.TAG"}
    if folder == venv / "bin":  # activate and console scripts, which only a shell starts
        ignored |= {name for name in names if not (folder / name).is_symlink()}
    for name in names:
        if f"{folder.name}/{name}" in PACKAGES_LEFT_BEHIND:
            ignored.add(name)
        if name.endswith(".pyi") and name[:-1] not in names:
            ignored.add(name)  # types of a binary module: a stub beside its source may be read
    return ignored


def copy_environment(root: Path, venv: Path) -> None:
    """Copy the virtual environment: its packages and its link to the interpreter."""
    interpreter = (venv / "bin" / "python").readlink()
    if not interpreter.is_absolute() or not below(root, interpreter).exists():
        raise CollectError(f"{venv} runs {interpreter}, which is not the interpreter of this image")
    shutil.copytree(
        venv,
        below(root, venv),
        symlinks=True,
        ignore=lambda folder, names: ignored_in_environment(venv, Path(folder), names),
    )
    for note in below(root, venv).rglob("*.dist-info/uv_cache.json"):  # holds the time of the build
        note.unlink()
    for record in below(root, venv).rglob("*.dist-info/RECORD"):
        shorten(record)


def shorten(record: Path) -> None:
    """Have the RECORD of a distribution name only the files that are still there."""
    packages = record.parent.parent
    with record.open(encoding="utf-8", newline="") as file:
        kept = [row for row in csv.reader(file) if row and (packages / row[0]).exists()]
    with record.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(kept)


def elf_files(root: Path) -> Iterator[Path]:
    """Find the programs and shared libraries in the new root that its processor can run."""
    machine = machine_of(Path(sys.executable).resolve())
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and (found := machine_of(path)):
            if found == machine:
                yield path
            else:
                print("for another processor:", path.relative_to(root))


def machine_of(path: Path) -> bytes:
    """Return the class and the machine that an ELF file is for; nothing if it is no ELF file."""
    with path.open("rb") as file:
        head = file.read(20)
    return head[4:6] + head[18:20] if head.startswith(b"\x7fELF") else b""


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
        if found := re.search(rf"(?m)^([^\s:,]+)[^/]*: {re.escape(name)}$", answer.stdout):
            return found[1]
    raise CollectError(f"no Debian package owns {library}, so nobody would hear of a fault in it")


def packages_of(base: Path) -> dict[str, str]:
    """Read from status.d of the base image which packages it has already, and their versions."""
    found: dict[str, str] = {}
    for status in base.iterdir():
        if not status.name.endswith(".md5sums"):
            text = status.read_text("utf-8")
            found |= re.findall(r"(?ms)^Package: (\S+)$.*?^Version: (\S+)$", text)
    if "libc6" not in found:
        raise CollectError(f"{base} does not list libc6: is the base image still Debian's?")
    return found


def check_release(present: dict[str, str]) -> None:
    """Make sure that what is copied was linked with the C library that it will meet."""
    here = run("/usr/bin/dpkg-query", "--show", "--showformat", "${Version}", "libc6")
    there = present["libc6"]
    if here.partition("-")[0] != there.partition("-")[0]:
        raise CollectError(
            f"this image has libc6 {here}, the base image {there}: take both of one Debian release"
        )


def copy_libraries(root: Path, base: Path) -> list[str]:
    """Copy the system libraries that the base lacks, with their records; return their packages."""
    present = packages_of(base)
    check_release(present)
    copied: dict[str, list[Path]] = {}
    for library in sorted(shared_libraries(elf_files(root))):
        if below(root, library).exists() or library.is_relative_to(root):
            continue  # of CPython itself, or inside a wheel
        package = owner(library)
        if package in present:
            continue
        real = library.resolve()
        copied.setdefault(package, []).append(real)
        target = below(root, real)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(real, target)
        if not target.with_name(library.name).exists():
            target.with_name(library.name).symlink_to(real.name)
    for package, libraries in sorted(copied.items()):
        write_record(root, package, libraries)
    return sorted(copied)


def write_record(root: Path, package: str, libraries: list[Path]) -> None:
    """Copy a package's licence, and write down the package with the checksums of what it gave."""
    records = root / "var/lib/dpkg/status.d"
    records.mkdir(parents=True, exist_ok=True)
    (records / package).write_text(run("/usr/bin/dpkg-query", "--status", package), "utf-8")
    licence = Path("/usr/share/doc", package, "copyright")
    if licence.exists():
        below(root, licence).parent.mkdir(parents=True)
        shutil.copy2(licence, below(root, licence))
    sums = run("/usr/bin/dpkg-query", "--control-show", package, "md5sums").splitlines()
    kept = [line for line in sums if (root / line.partition("  ")[2]).is_file()]
    for library in libraries:
        digest = hashlib.md5(library.read_bytes(), usedforsecurity=False).hexdigest()
        if f"{digest}  {library.relative_to('/')}" not in kept:
            raise CollectError(f"{library} is not as {package} installed it")
    (records / f"{package}.md5sums").write_text("".join(f"{line}\n" for line in kept), "utf-8")


def compile_modules(root: Path, *folders: Path) -> None:
    """Compile every module, unchecked: in the image no source can change under its bytecode."""
    for folder in folders:
        compileall.compile_dir(
            below(root, folder),
            maxlevels=40,
            quiet=1,
            stripdir=str(root),
            prependdir="/",
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
    except subprocess.CalledProcessError as error:
        sys.exit(f"collect_runtime.py: {' '.join(error.cmd)} failed: {error.stderr.strip()}")
    print("added to the base:", " ".join(packages) or "nothing")


if __name__ == "__main__":
    main()
