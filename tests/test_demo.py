"""The demo, run as its reader runs it: its evidence is looked at again, and nothing of it stays running."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scaffold import VERSION, Shared, git

from scripts.demo import search
from scripts.worktree_copy import ROOT

DEMO = (sys.executable, "-m", "scripts.demo")


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of the processes that run a program out of a folder."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], check=True, capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if line.startswith(f"{folder}/")]


@dataclass(frozen=True)
class Shown:
    """A finished demo."""

    folder: Path
    output: str

    def stored(self) -> dict[str, bytes]:
        """Return the record that the demo says it stored."""
        line = re.search(r"^stored in both +(\S+) = (.+)$", self.output, re.MULTILINE)
        assert line is not None, self.output
        return {"name": line[1].encode(), "value": line[2].encode()}


def run_demo(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end; the caller looks at the exit status."""
    return subprocess.run(
        [*DEMO, str(folder)],
        cwd=ROOT,
        env=os.environ | variables,
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def shown(shared: Shared) -> Shown:
    """Return the demo that is run once for all tests and processes."""

    def build(place: Path) -> None:
        folder = place.parent / f"demo-{os.getpid()}"
        done = run_demo(folder)
        assert done.returncode == 0, done.stdout + done.stderr
        place.mkdir()
        (place / "folder").write_text(str(folder.resolve()))
        (place / "output").write_text(done.stdout)

    kept = shared.once("demo", build)
    return Shown(Path((kept / "folder").read_text()), (kept / "output").read_text())


def test_every_step_is_shown_with_its_time(shown: Shown) -> None:
    steps = re.findall(r"^(\d)/8  .+ \.+ \d+\.\d s$", shown.output, re.MULTILINE)
    assert steps == list("12345678")


def test_hardened_data_holds_neither_name_nor_value(shown: Shown) -> None:
    files = [path for path in (shown.folder / "orders" / "data").rglob("*") if path.is_file()]
    assert shown.folder / "orders" / "data" / "records.db" in files
    for needle in shown.stored().values():
        assert [path for path in files if needle in path.read_bytes()] == []


def test_same_search_finds_both_in_the_plain_data(shown: Shown) -> None:
    database = (shown.folder / "orders-plain" / "data" / "records.db").read_bytes()
    for needle in shown.stored().values():
        assert needle in database


def test_reported_search_is_the_one_that_was_made(shown: Shown) -> None:
    for project in ("orders", "orders-plain"):
        findings = search(shown.folder / project / "data", shown.stored())
        assert findings.bytes > 4096
        assert re.search(rf"^{project}/data +{re.escape(str(findings))}$", shown.output, re.MULTILINE)


def test_search_reads_every_byte_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file").write_bytes(b"\0" * 70_000 + b"needle")
    (tmp_path / "empty").touch()
    findings = search(tmp_path, {"there": b"needle", "not there": b"thread"})
    assert findings.found_in == {"there": ["deep/er/file"], "not there": []}
    assert (findings.files, findings.bytes) == (2, 70_006)


def test_projects_can_be_updated(shown: Shown) -> None:
    """They know the tagged copy by its absolute path, and are committed, `uv.lock` included."""
    template = shown.folder / "template"
    assert git(template, "tag").split() == [f"v{VERSION}"]
    for project in (shown.folder / "orders", shown.folder / "orders-plain"):
        assert f"_src_path: {template}\n" in (project / ".copier-answers.yml").read_text()
        assert f"_commit: v{VERSION}\n" in (project / ".copier-answers.yml").read_text()
        assert git(project, "status", "--porcelain") == ""
        assert "uv.lock" in git(project, "ls-files").split()
        assert not {"data", "secrets"} & {name.split("/")[0] for name in git(project, "ls-files").split()}


def test_next_steps_name_the_folder(shown: Shown) -> None:
    assert f"  cd {shown.folder / 'orders'}\n" in shown.output
    recipes = re.findall(r"^  uv run just (\w+)", shown.output, re.MULTILINE)
    listed = subprocess.run(
        ["just", "--summary"], cwd=shown.folder / "orders", check=True, capture_output=True, text=True
    )
    assert recipes
    assert set(recipes) <= set(listed.stdout.split())


def test_readme_shows_what_the_demo_prints(shown: Shown) -> None:
    """The README abridges; what stands there must still be printed, but for figures and names."""

    def masked(line: str) -> str:
        line = re.sub(r"\S+/orders\b", "FOLDER/orders", line)
        line = re.sub(r"order-[0-9a-f]{12}", "RECORD", line)
        return re.sub(r"code [0-9a-f]{12}|\d+\.\d s$|[\d,]+ bytes", "FIGURE", line)

    quoted = (ROOT / "README.md").read_text(encoding="utf-8").split("\n```\n")
    block = next(part for part in quoted if part.startswith("1/8  "))
    lines = [line for line in block.splitlines() if line and line != "…"]
    assert len(lines) > 5
    printed = {masked(line) for line in shown.output.splitlines()}
    assert [line for line in lines if masked(line) not in printed] == []


def test_finished_demo_leaves_nothing_running(shown: Shown) -> None:
    assert processes_of(shown.folder) == []


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a demo in `tmp_path / "demo"`."""
    demo = subprocess.Popen(
        [*DEMO, str(tmp_path / "demo")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield demo
    demo.kill()
    demo.communicate()


def test_interrupted_demo_leaves_nothing_running(tmp_path: Path, started: subprocess.Popen[str]) -> None:
    folder = tmp_path.resolve() / "demo"
    deadline = time.monotonic() + 120
    while not (services := [line for line in processes_of(folder) if " -m orders" in line]):
        assert started.poll() is None, started.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert services, "control: a running service is seen"
    started.send_signal(signal.SIGINT)
    output, _ = started.communicate(timeout=30)
    assert started.returncode == 130, output
    assert "Nothing is left running." in output
    assert processes_of(folder) == []


def test_failed_step_is_a_sentence_with_the_logs(tmp_path: Path) -> None:
    """Without a network and with an empty cache nothing can be installed."""
    folder = tmp_path.resolve() / "demo"
    done = run_demo(folder, UV_OFFLINE="1", UV_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "`uv sync` ended with status" in done.stderr
    assert f"What the commands printed is in {folder / 'logs'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "logs" / "install-orders.log").read_text()
    assert processes_of(folder) == []


def test_folder_with_files_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run_demo(tmp_path)
    assert done.returncode == 2
    assert "is not an empty folder. Name a new one." in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_folder_in_the_checkout_is_refused() -> None:
    done = run_demo(ROOT / "docs" / "demo")
    assert done.returncode == 2
    assert "inside the template's checkout" in done.stderr
    assert not (ROOT / "docs" / "demo").exists()
