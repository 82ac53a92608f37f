"""What the Dockerfile's collector takes along and leaves behind, and when it stops the build.

On small trees here; tests/containers looks at the image that comes out of it. What asks dpkg needs a Debian.
"""

import base64
import hashlib
import importlib.util
import marshal
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
from scaffold import ROOT, require
from test_suites import OPTIONAL_PYTHONS, interpreter

COLLECTOR = ROOT / "template" / "docker" / "collect_runtime.py"
DPKG = Path("/usr/bin/dpkg-query")
A_LIBRARY = b"libc.so.6"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it collects for Linux")


@pytest.fixture
def collector() -> ModuleType:
    """Return a copy of the module, for a test to set its constants."""
    spec = importlib.util.spec_from_file_location("collect_runtime", COLLECTOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the folder that is collected into."""
    return tmp_path / "root"


@pytest.fixture
def prefix(collector: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place of an interpreter that is laid out as in the official images."""
    prefix = tmp_path / "local"
    write(prefix / "bin", f"{collector.PYTHON}", "pip3", "idle3")
    write(prefix / "lib", "libpython3.so", "libpython3.99.so.1.0", "pkgconfig/python3.pc")
    (prefix / "lib" / "libpython3.99.so").symlink_to("libpython3.99.so.1.0")
    monkeypatch.setattr(collector, "PREFIX", prefix)
    return prefix


def write(folder: Path, *names: str) -> None:
    """Make files that say their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def elf(path: Path, *changes: tuple[bytes, bytes]) -> Path:
    """Copy a program of this machine, with some of its bytes changed."""
    program = Path("/usr/bin/env" if Path("/usr/bin/env").exists() else sys.executable).read_bytes()
    for old, new in changes:
        assert program.count(old) >= 1
        assert len(old) == len(new)
        program = program.replace(old, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(program)
    return path


def base_image(folder: Path, **versions: str) -> Path:
    """Make the status.d of a base image."""
    for package, version in versions.items():
        (folder / package).parent.mkdir(parents=True, exist_ok=True)
        (folder / package).write_text(f"Package: {package}\nStatus: install ok\nVersion: {version}\n")
        (folder / f"{package}.md5sums").write_text("0123  usr/lib/nothing\n")
    return folder


def dpkg(*arguments: str) -> str:
    require(DPKG.exists(), "dpkg-query")
    return subprocess.run([DPKG, *arguments], check=True, capture_output=True, text=True).stdout


def version_here(package: str) -> str:
    return dpkg("--show", "--showformat", "${Version}", package)


def test_parts_of_cpython_that_no_service_can_use_stay_behind(
    collector: ModuleType, prefix: Path, root: Path
) -> None:
    taken = ["os.py", "dbm/dumb.py", "json/tool.py", "asyncio/events.py", "xmlrpc/client.py", "LICENSE.txt"]
    left = [
        "turtle.py",
        "idlelib/idle.py",
        "ensurepip/__init__.py",
        "test/test_os.py",
        "json/tests/test_json.py",
    ]
    left += ["dbm/gnu.py", "asyncio/windows_utils.py", "xmlrpc/server.py", "config-3.99-x86_64/Makefile"]
    left += ["site-packages/pip/__init__.py", "os/__pycache__/os.pyc"]
    extensions = {
        "_ssl.so": True,
        "math.so": True,
        "_tkinter.so": False,
        "_testcapi.so": False,
        "nis.so": False,
    }
    write(prefix / "lib" / collector.PYTHON, *taken, *left, *(f"lib-dynload/{name}" for name in extensions))

    collector.copy_interpreter(root)

    here = collector.below(root, prefix)
    taken += [f"lib-dynload/{name}" for name, wanted in extensions.items() if wanted]
    assert names_below(here / "lib" / collector.PYTHON) == set(taken)
    assert names_below(here / "bin") == {collector.PYTHON, "python3", "python"}
    assert (here / "bin" / "python").resolve() == here / "bin" / collector.PYTHON
    libraries = {path.name for path in (here / "lib").iterdir() if path.is_symlink() or path.is_file()}
    assert libraries == {"libpython3.so", "libpython3.99.so", "libpython3.99.so.1.0"}
    assert (here / "lib" / "libpython3.99.so").is_symlink()


IMPORT_ALL = """
import importlib, io, os, pkgutil, sys, warnings
warnings.simplefilter("ignore")
say, sys.stdout = sys.stdout, io.StringIO()
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(name, repr(error), file=say)
"""
COLLECT = """
import runpy, sys
from pathlib import Path
collector = runpy.run_path(sys.argv[1])
for name in sys.argv[3:]:
    collector["copy_interpreter"].__globals__["LEFT_BEHIND"] -= {name}
collector["copy_interpreter"](Path(sys.argv[2]))
print(collector["below"](Path(sys.argv[2]), collector["PREFIX"]), collector["PYTHON"])
"""
# They start something when they are imported.
EFFECTS = {"antigravity", "this"}


def unimportable(python: Path | str, names: Iterable[str], folder: Path) -> set[str]:
    command = [str(python), "-I", "-S", "-B", "-c", IMPORT_ALL, *sorted(names)]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return {line.partition(" ")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", *OPTIONAL_PYTHONS])
def test_every_module_that_is_taken_can_be_imported_without_those_that_are_not(
    tmp_path: Path, root: Path, version: str
) -> None:
    python = interpreter(version)

    def missed(root: Path, *kept: str) -> set[str]:
        done = subprocess.run(
            [python, "-I", "-c", COLLECT, COLLECTOR, root, *kept], check=True, capture_output=True, text=True
        )
        here, _, name = done.stdout.strip().rpartition(" ")
        library = Path(here, "lib", name)
        modules = {path.relative_to(library).with_suffix("") for path in library.rglob("*.py")}
        modules |= {Path(path.name.partition(".")[0]) for path in library.glob("lib-dynload/*.so")}
        imported = {".".join(path.parts) for path in modules if path.name != "__main__"}
        imported = {name.removesuffix(".__init__") for name in imported} - EFFECTS
        assert len(imported) > 400
        # What the interpreter itself was built without is no fault of the collector.
        missing = unimportable(Path(here, "bin", name), imported, tmp_path)
        return missing - unimportable(python, imported, tmp_path)

    assert missed(root) == set()
    # The control: it needs pydoc, which stays behind.
    assert missed(tmp_path / "control", "xmlrpc/server.py") == {"xmlrpc.server"}


def environment(collector: ModuleType, prefix: Path, root: Path, venv: Path) -> Path:
    """Make a virtual environment with one package, on an interpreter that was collected."""
    (prefix / "lib" / collector.PYTHON).mkdir(parents=True)
    collector.copy_interpreter(root)
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(prefix / "bin" / "python3")
    packages = venv / "lib" / collector.PYTHON / "site-packages"
    write(venv, "pyvenv.cfg", ".lock", "bin/activate", "bin/tool", "CACHEDIR.TAG")
    write(packages, "pack/__init__.py", "pack/core.abi3.so", "pack/py.typed", "pack/tests/test_core.py")
    write(packages, "pack/core.pyi", "pack/_rust/inner.pyi", "pack/lazy.py", "pack/lazy.pyi")
    write(packages, "apsw/sqlite_extra_binaries/sqlite3_shell", "apsw/__init__.py", "_virtualenv.pth")
    write(packages, "pack-1.dist-info/METADATA", "pack-1.dist-info/uv_cache.json")
    write(packages, "pack-1.dist-info/licenses/LICENSE", "pack/a,b.txt")
    rows = [
        f"{name},sha256={digest(packages / name)},{(packages / name).stat().st_size}\n"
        for name in sorted(names_below(packages))
        if "," not in name
    ]
    rows += ['"pack/a,b.txt",,\n', "../../../bin/tool,,\n", "pack-1.dist-info/RECORD,,\n"]
    (packages / "pack-1.dist-info" / "RECORD").write_text("".join(rows))
    return Path(collector.below(root, packages))


def digest(path: Path) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()


def test_of_an_environment_only_what_a_service_reads_is_taken(
    collector: ModuleType, prefix: Path, root: Path, tmp_path: Path
) -> None:
    packages = environment(collector, prefix, root, tmp_path / "venv")
    collector.copy_environment(root, tmp_path / "venv")
    assert names_below(packages) == {
        "pack/__init__.py",
        "pack/core.abi3.so",
        "pack/py.typed",
        "pack/lazy.py",
        "pack/lazy.pyi",  # a stub beside its source: some packages read it to load their parts late
        "pack/a,b.txt",
        "apsw/__init__.py",
        "pack-1.dist-info/METADATA",
        "pack-1.dist-info/RECORD",
        "pack-1.dist-info/licenses/LICENSE",
    }
    venv = collector.below(root, tmp_path / "venv")
    assert {path.name for path in venv.iterdir()} == {"bin", "lib", "pyvenv.cfg"}
    assert {path.name for path in (venv / "bin").iterdir()} == {"python"}


def test_a_record_names_each_file_that_was_taken_and_no_other(
    collector: ModuleType, prefix: Path, root: Path, tmp_path: Path
) -> None:
    packages = environment(collector, prefix, root, tmp_path / "venv")
    collector.copy_environment(root, tmp_path / "venv")
    with (packages / "pack-1.dist-info" / "RECORD").open(newline="") as file:
        rows = {row[0]: row for row in collector.csv.reader(file)}
    assert set(rows) == names_below(packages)
    assert rows["pack/__init__.py"][1] == f"sha256={digest(packages / 'pack/__init__.py')}"


@pytest.mark.parametrize("link", ["/opt/python/bin/python3", "../../python3"])
def test_an_environment_of_another_interpreter_is_refused(
    collector: ModuleType, root: Path, tmp_path: Path, link: str
) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").symlink_to(link)
    with pytest.raises(collector.CollectError, match=f"runs {link}, which is not the interpreter"):
        collector.copy_environment(root, tmp_path / "venv")


def test_a_library_that_the_builder_lacks_stops_the_build(collector: ModuleType, root: Path) -> None:
    whole, broken = elf(root / "whole"), elf(root / "lib/broken", (A_LIBRARY, b"libz.so.6"))
    assert any(path.name.startswith(A_LIBRARY.decode()) for path in collector.shared_libraries([whole]))
    with pytest.raises(collector.CollectError, match=r"broken needs libz\.so\.6, which this image does not"):
        collector.shared_libraries([whole, broken])


def test_a_library_that_no_package_owns_stops_the_build(
    collector: ModuleType, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = elf(root / "app/program", (A_LIBRARY, b"libq.so.6"))
    (libc,) = (path for path in collector.shared_libraries([elf(tmp_path / "e")]) if path.name == "libc.so.6")
    (tmp_path / "unowned").mkdir()
    (tmp_path / "unowned/libq.so.6").write_bytes(libc.read_bytes())
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "unowned"))
    assert tmp_path / "unowned/libq.so.6" in collector.shared_libraries([program])
    base = base_image(tmp_path / "base", libc6=version_here("libc6"))
    with pytest.raises(collector.CollectError, match=r"no Debian package owns .*unowned/libq\.so\.6"):
        collector.copy_libraries(root, base)


def test_programs_without_needs_and_for_other_processors_are_left_alone(
    collector: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = elf(root / "ours")
    foreign = root / "foreign"
    foreign.write_bytes(ours.read_bytes()[:18] + b"\xf3\x00" + ours.read_bytes()[20:])  # RISC-V
    static = root / "static"
    static.write_bytes(ours.read_bytes()[:64])  # a head without a table of what it needs
    write(root, "text")
    (root / "link").symlink_to("ours")
    assert list(collector.elf_files(root)) == [ours, static]
    assert capsys.readouterr().out == "for another processor: foreign\n"
    assert collector.shared_libraries([static]) == set()


def test_a_base_without_debians_records_is_refused(collector: ModuleType, tmp_path: Path) -> None:
    assert collector.packages_of(base_image(tmp_path / "debian", libc6="2.41-12")) == {"libc6": "2.41-12"}
    for name, packages in {"empty": {}, "other": {"musl": "1.2.5-r10"}}.items():
        base = tmp_path / name
        base.mkdir()
        with pytest.raises(
            collector.CollectError, match="does not list libc6: is the base image still Debian's"
        ):
            collector.packages_of(base_image(base, **packages))


def test_a_base_of_another_release_is_refused(collector: ModuleType, root: Path, tmp_path: Path) -> None:
    here = version_here("libc6")
    same = base_image(tmp_path / "same", libc6=f"{here.partition('-')[0]}-99+deb99u9")
    root.mkdir()
    assert collector.copy_libraries(root, same) == []
    other = base_image(tmp_path / "other", libc6="9.99-1")
    with pytest.raises(
        collector.CollectError, match=r"has libc6 .*, the base image 9\.99-1: take both of one"
    ):
        collector.copy_libraries(root, other)


@pytest.fixture
def added(collector: ModuleType, root: Path) -> str:
    """Put a program into the tree that needs a library which only libc6 comes without; return its package."""
    require(DPKG.exists(), "dpkg-query")
    program = elf(root / "app/program")
    program.write_bytes(DPKG.read_bytes())
    (other,) = {collector.owner(path) for path in collector.shared_libraries([program])} - {"libc6"}
    return str(other)


def test_an_added_library_comes_with_its_records_and_its_licence(
    collector: ModuleType, root: Path, tmp_path: Path, added: str
) -> None:
    base = base_image(tmp_path / "base", libc6=version_here("libc6"))
    assert collector.copy_libraries(root, base) == [added]
    records = root / "var/lib/dpkg/status.d"
    assert names_below(records) == {added, f"{added}.md5sums"}
    assert f"Version: {version_here(added)}\n" in (records / added).read_text()
    lines = (records / f"{added}.md5sums").read_text().splitlines()
    sums = {name: md5 for md5, name in (line.split("  ") for line in lines)}
    files = {name for name in names_below(root) if not name.startswith(("app/", "var/"))}
    assert {name for name in files if not (root / name).is_symlink()} == set(sums)
    assert f"usr/share/doc/{added}/copyright" in files
    for name, md5 in sums.items():
        assert hashlib.md5((root / name).read_bytes(), usedforsecurity=False).hexdigest() == md5
    links = {name for name in files if (root / name).is_symlink()}
    assert links
    assert all((root / name).resolve().relative_to(root).as_posix() in sums for name in links)


def test_what_the_base_has_is_not_added(
    collector: ModuleType, root: Path, tmp_path: Path, added: str
) -> None:
    base = base_image(tmp_path / "base", libc6=version_here("libc6"), **{added: "1"})
    assert collector.copy_libraries(root, base) == []
    assert names_below(root) == {"app/program"}


def test_a_library_that_was_changed_after_its_installation_stops_the_build(
    collector: ModuleType, root: Path, tmp_path: Path, added: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = collector.run

    def other_sums(*command: str) -> str:
        answer: str = asked(*command)
        if command[-1] != "md5sums":
            return answer
        return "".join(f"{'0' * 32}  {line.partition('  ')[2]}\n" for line in answer.splitlines())

    monkeypatch.setattr(collector, "run", other_sums)
    base = base_image(tmp_path / "base", libc6=version_here("libc6"))
    with pytest.raises(collector.CollectError, match=f"is not as {added} installed it"):
        collector.copy_libraries(root, base)


def test_modules_are_compiled_for_good_and_name_their_sources_in_the_image(
    collector: ModuleType, root: Path
) -> None:
    source = root / "app/lib/module.py"
    write(source.parent, source.name)
    source.write_text("value = 1\n")
    (source.parent / "deep").mkdir()
    (source.parent / "deep" / "other.py").write_text("value = 2\n")
    collector.compile_modules(root, Path("/app/lib"))
    compiled = importlib.util.cache_from_source(str(source))
    data = Path(compiled).read_bytes()
    assert int.from_bytes(data[4:8], "little") == 0b01  # its hash is in it, and is not compared
    assert marshal.loads(data[16:]).co_filename == "/app/lib/module.py"  # noqa: S302
    assert Path(importlib.util.cache_from_source(str(source.parent / "deep" / "other.py"))).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="it gives files away, as it may while an image is built")
def test_every_file_has_one_owner_and_time_and_nobody_may_write(collector: ModuleType, root: Path) -> None:
    write(root, "usr/plain", "usr/program")
    (root / "usr/program").chmod(0o4775)
    (root / "usr/plain").chmod(0o666)
    os.chown(root / "usr/plain", 1000, 1000)
    (root / "usr/link").symlink_to("nowhere")
    collector.settle(root, 1234)
    modes = {
        path.relative_to(root).as_posix(): oct(path.lstat().st_mode & 0o7777) for path in root.rglob("*")
    }
    assert modes["usr/plain"] == oct(0o444)
    assert modes["usr/program"] == oct(0o555)
    assert modes["usr"] == oct(0o555)
    assert modes["data"] == oct(0o750)
    assert {path.lstat().st_mtime for path in [root, *root.rglob("*")]} == {1234.0}
    owners = {path.relative_to(root).as_posix(): path.lstat().st_uid for path in root.rglob("*")}
    assert owners.pop("data") == collector.SERVICE_UID
    assert set(owners.values()) == {0}


def test_a_fault_ends_the_build_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").symlink_to("/opt/python3")
    folders = {"--venv": "venv", "--base": "base", "--output": "root"}
    options = [text for name, folder in folders.items() for text in (name, str(tmp_path / folder))]
    command = [sys.executable, "-I", str(COLLECTOR), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("collect_runtime.py: ")
    assert line.endswith("/venv runs /opt/python3, which is not the interpreter of this image")
