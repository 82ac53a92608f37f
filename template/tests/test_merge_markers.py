"""The check for what a conflicting update leaves behind."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "merge_markers.py"
CONFLICT = "\n".join(["one", "<" * 7 + " before updating", "two", "=" * 7, ">" * 7 + " after", ""])


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def test_clean_files_pass(repository: Path) -> None:
    (repository / "heading.rst").write_text("Title\n=======\n\n>> not >>>>>>>\n")
    (repository / "picture").write_bytes(bytes(range(256)))
    result = run(repository)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("tracked", [True, False])
def test_conflict_is_found(repository: Path, tracked: bool) -> None:
    (repository / "settings é.py").write_text(CONFLICT)
    if tracked:
        subprocess.run(["git", "add", "."], cwd=repository, check=True)
    result = run(repository)
    assert result.returncode == 1
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        "settings é.py:2",
        "settings é.py:5",
    ]


def test_rejected_change_is_found(repository: Path) -> None:
    (repository / "justfile.rej").write_text("@@ -1 +1 @@\n")
    result = run(repository)
    assert result.returncode == 1
    assert result.stdout.startswith("justfile.rej: ")


def test_ignored_deleted_and_linked_files_are_passed_over(repository: Path) -> None:
    (repository / ".gitignore").write_text("ignored\n")
    (repository / "ignored").write_text(CONFLICT)
    (repository / "deleted").write_text(CONFLICT)
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    (repository / "deleted").unlink()
    (repository / "link").symlink_to("ignored")
    assert run(repository).returncode == 0


def test_script_and_its_tests_are_no_findings(repository: Path) -> None:
    for file in (SCRIPT, Path(__file__)):
        (repository / file.name).write_bytes(file.read_bytes())
    assert run(repository).returncode == 0


def test_without_a_repository_it_says_what_to_do(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.returncode == 1
    assert "git init" in result.stdout
