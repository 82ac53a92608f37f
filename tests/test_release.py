"""Releases, made in a copy of the working tree: what is refused, what is tagged, what the channel holds."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import copier
import pytest
import yaml
from scaffold import commit_all, contents, git

from scripts.task_free import ExportError, cut_out, without_tasks
from scripts.worktree_copy import copy_template

VERSION, OLDER = "9.9.9", "9.9.8"
SECTION = f"""## {VERSION} - 2026-01-31

### Security

**Affected:** none. **Not affected:** everything. **Do:** nothing. **Files:** none.

### Changed

- A line.
"""


def substitute(path: Path, pattern: str, replacement: str) -> None:
    """Change one place of a file."""
    text, count = re.subn(pattern, lambda _: replacement, path.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout that is ready to be released as `VERSION`, with an older tag."""
    root = copy_template(tmp_path / "checkout", f"v{OLDER}")
    substitute(root / "pyproject.toml", '^version = ".*"$', f'version = "{VERSION}"')
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n{SECTION}\n## {OLDER} - 2026-01-01\n")
    advisories = root / "template" / "docs" / "security" / "ADVISORIES.md"
    advisories.write_text(f"{advisories.read_text()}\n{VERSION}: none\n")
    kept = root / "tests" / "releases" / VERSION
    kept.mkdir(parents=True)
    (kept / "plain.yml").write_text("project_name: Kept\n")
    commit_all(root, "Ready")
    return root


def release(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`just release` without `just`; the module is the checkout's own."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.release", *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | variables,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def tags(repository: Path) -> list[str]:
    """Return its tags."""
    return git(repository, "tag", "--list").split()


def test_ready_checkout_is_tagged_with_the_name_of_who_releases(checkout: Path) -> None:
    done = release(checkout, VERSION, "--skip-tests", GIT_COMMITTER_NAME="Somebody")
    assert done.returncode == 0, done.stderr
    assert tags(checkout) == [f"v{OLDER}", f"v{VERSION}"]
    assert git(checkout, "cat-file", "-t", f"v{VERSION}").strip() == "tag"
    assert "tagger Somebody <" in git(checkout, "cat-file", "-p", f"v{VERSION}")
    assert git(checkout, "rev-parse", f"v{VERSION}^{{commit}}") == git(checkout, "rev-parse", "HEAD")


def on_a_branch(root: Path) -> None:
    """Leave main."""
    git(root, "switch", "--quiet", "--create", "other")


def with_an_untracked_file(root: Path) -> None:
    """Leave something uncommitted."""
    (root / "scripts" / "new.py").touch()


def edited(name: str, pattern: str, replacement: str) -> Callable[[Path], None]:
    """Commit a change."""

    def change(root: Path) -> None:
        substitute(root / name, pattern, replacement)
        commit_all(root)

    return change


def without_kept_answers(root: Path) -> None:
    """Commit their removal."""
    shutil.rmtree(root / "tests" / "releases" / VERSION)
    commit_all(root)


def with_a_greater_tag(root: Path) -> None:
    """Tag 9.10.0, which is greater as a version and smaller as text."""
    git(root, "tag", "v9.10.0")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "branch": (on_a_branch, "Releases are made on the branch main."),
    "untracked": (with_an_untracked_file, "1 files are not committed, scripts/new.py among them."),
    "project version": (
        edited("pyproject.toml", '^version = ".*"$', 'version = "1.0.0"'),
        f"pyproject.toml names version 1.0.0. Set it to {VERSION}",
    ),
    "greater tag": (with_a_greater_tag, f"{VERSION} is not greater than the newest tag, v9.10.0."),
    "no date": (edited("CHANGELOG.md", " - 2026-01-31$", " - unreleased"), "has no dated section"),
    "no such date": (edited("CHANGELOG.md", "2026-01-31$", "2026-02-31"), "has no dated section"),
    "other section": (edited("CHANGELOG.md", f"^## {VERSION}", "## 9.9.90"), "has no dated section"),
    "security not first": (
        edited("CHANGELOG.md", "^### Security", "### Added"),
        "must begin with `### Security`",
    ),
    "security incomplete": (edited("CHANGELOG.md", r"\*\*Do:\*\*", "Do:"), "lacks **Do:**"),
    "advisories": (
        edited("template/docs/security/ADVISORIES.md", f"^{VERSION}: none$", f"1{VERSION}: none"),
        f"does not mention {VERSION}",
    ),
    "answers": (without_kept_answers, f"tests/releases/{VERSION}/ holds no answers"),
}


@pytest.mark.parametrize(("spoil", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_unready_checkout_is_refused_and_left_alone(
    checkout: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(checkout)
    before = (tags(checkout), git(checkout, "status", "--porcelain"), git(checkout, "rev-parse", "HEAD"))
    done = release(checkout, VERSION, "--skip-tests", "--export", str(tmp_path / "channel"))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (
        tags(checkout),
        git(checkout, "status", "--porcelain"),
        git(checkout, "rev-parse", "HEAD"),
    ) == before
    assert not (tmp_path / "channel").exists()


@pytest.mark.parametrize("version", ["v9.9.9", "9.9", "9.9.9rc1", "9.9.09", "9.9.9\n", "", OLDER, "9.9.7"])
def test_version_that_is_none_or_old_is_refused(checkout: Path, version: str) -> None:
    done = release(checkout, "--skip-tests", "--", version)
    assert done.returncode == 1
    assert "is not a version" in done.stderr or "is not greater than the newest tag" in done.stderr
    assert tags(checkout) == [f"v{OLDER}"]


def test_unknown_identity_is_refused_before_the_tests(checkout: Path) -> None:
    nobody = {f"GIT_{role}_{part}": "" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    done = release(checkout, VERSION, **nobody)
    assert done.returncode == 1
    assert done.stderr == "Git does not know who you are. Set user.name and user.email.\n"
    assert "just check" not in done.stdout


@pytest.mark.parametrize(
    ("recipes", "sentence"),
    [
        ("check:\n    @touch ../checked\ntest:\n    @touch ../tested\n", None),
        ("check:\n    @touch ../checked\ntest:\n    @touch ../tested; exit 1\n", "`just test` failed."),
        ("check:\n    @touch ../checked; exit 1\ntest:\n    @touch ../tested\n", "`just check` failed."),
        ("check:\n    @touch ../checked\ntest:\n    @touch left\n", "1 files are not committed, left among"),
    ],
    ids=["both pass", "test fails", "check fails", "test leaves a file"],
)
def test_tag_waits_for_check_and_test(checkout: Path, recipes: str, sentence: str | None) -> None:
    (checkout / "justfile").write_text(recipes)
    commit_all(checkout)
    done = release(checkout, VERSION, UV_NO_SYNC="1", UV_PROJECT_ENVIRONMENT=sys.prefix)
    assert (checkout.parent / "checked").exists()
    if sentence is None:
        assert done.returncode == 0, done.stderr
        assert (checkout.parent / "tested").exists()
        assert f"v{VERSION}" in tags(checkout)
    else:
        assert done.returncode == 1
        assert sentence in done.stderr
        assert tags(checkout) == [f"v{OLDER}"]


def test_channel_differs_from_the_release_in_the_tasks_alone(checkout: Path, tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    done = release(checkout, VERSION, "--skip-tests", "--export", str(channel))
    assert done.returncode == 0, done.stderr
    ours, theirs = contents(checkout), contents(channel)
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == ["copier.yml"]
    questions = yaml.safe_load(ours["copier.yml"])
    assert questions.pop("_tasks"), "control"
    assert questions.pop("_skip_if_exists"), "control"
    assert yaml.safe_load(theirs["copier.yml"]) == questions
    assert tags(channel) == [f"v{VERSION}"]
    assert git(channel, "status", "--porcelain") == ""


def test_channel_renders_without_trust(checkout: Path, tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    assert release(checkout, VERSION, "--skip-tests", "--export", str(channel)).returncode == 0
    with pytest.raises(copier.errors.UnsafeTemplateError):
        copier.run_copy(str(checkout), tmp_path / "control", defaults=True, quiet=True)
    copier.run_copy(str(channel), tmp_path / "project", defaults=True, quiet=True)
    answers = yaml.safe_load((tmp_path / "project" / ".copier-answers.yml").read_text())
    assert answers["_commit"] == f"v{VERSION}"


def test_next_release_is_appended_to_the_channel(checkout: Path, tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    assert release(checkout, VERSION, "--skip-tests", "--export", str(channel)).returncode == 0
    for name in ("pyproject.toml", "CHANGELOG.md"):
        substitute(checkout / name, re.escape(VERSION), "10.0.0")
    advisories = checkout / "template" / "docs" / "security" / "ADVISORIES.md"
    advisories.write_text(f"{advisories.read_text()}\n10.0.0: none\n")
    git(checkout, "mv", f"tests/releases/{VERSION}", "tests/releases/10.0.0")
    git(checkout, "rm", "--quiet", "SECURITY.md")
    commit_all(checkout)
    done = release(checkout, "10.0.0", "--skip-tests", "--export", str(channel))
    assert done.returncode == 0, done.stderr
    assert sorted(tags(channel)) == ["v10.0.0", f"v{VERSION}"]
    assert git(channel, "rev-list", "--count", "main").strip() == "2"
    assert git(channel, "status", "--porcelain") == ""
    assert not (channel / "SECURITY.md").exists()
    assert set(contents(channel)) == set(contents(checkout))


def test_folder_that_is_not_the_channel_is_refused_untouched(checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    done = release(checkout, VERSION, "--skip-tests", "--export", str(other))
    assert done.returncode == 1
    assert "not the task-free channel" in done.stderr
    git(other, "init", "--quiet")
    commit_all(other, "Mine")
    assert release(checkout, VERSION, "--skip-tests", "--export", str(other)).returncode == 1
    assert contents(other) == {"mine.txt": b"mine"}
    assert git(other, "log", "--format=%s").split() == ["Mine"]
    assert tags(checkout) == [f"v{OLDER}"]


def test_changed_or_tagged_channel_is_refused(checkout: Path, tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    assert release(checkout, VERSION, "--skip-tests", "--export", str(channel)).returncode == 0
    git(checkout, "tag", "--delete", f"v{VERSION}")
    done = release(checkout, VERSION, "--skip-tests", "--export", str(channel))
    assert (done.returncode, f"has a tag v{VERSION} already" in done.stderr) == (1, True)
    (channel / "README.md").write_text("edited")
    done = release(checkout, VERSION, "--skip-tests", "--export", str(channel))
    assert (done.returncode, "has uncommitted changes" in done.stderr) == (1, True)
    assert (channel / "README.md").read_text() == "edited"
    assert tags(checkout) == [f"v{OLDER}"]


def test_failed_export_takes_the_tag_back(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = release(checkout, VERSION, "--skip-tests", "--export", str(tmp_path / "file" / "channel"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert tags(checkout) == [f"v{OLDER}"]


@pytest.mark.parametrize(
    "before",
    [
        "_a: 1\n\n# About a.\n\n# Why.\n# More.\n_tasks:\n  - x\n\n# About b.\n_b: 2\n",
        "_a: 1\n\n# About a.\n\n_tasks:\n- x\n- y\n\n# About b.\n_b: 2\n",
        "_a: 1\n\n# About a.\n\n_tasks: [x]\n\n# About b.\n_b: 2\n",
    ],
    ids=["indented", "not indented", "flow"],
)
def test_tasks_are_cut_out_with_their_comment_only(before: str) -> None:
    after = cut_out(before, "_tasks", "Without tasks.")
    assert after == "_a: 1\n\n# About a.\n\n# Without tasks.\n\n# About b.\n_b: 2\n"


def test_tasks_at_the_end_are_cut_out() -> None:
    assert yaml.safe_load(without_tasks("_a: 1\n_skip_if_exists: [y]\n_tasks:\n  - x\n")) == {"_a": 1}


@pytest.mark.parametrize(
    "text",
    [
        "_a: 1\n",
        "_tasks: [x]\n",
        "_skip_if_exists: [z]\n_tasks: [x]\n_migrations: [y]\n",
        "_skip_if_exists: [z]\n_tasks: [x]\n_jinja_extensions: [y]\n",
    ],
)
def test_questions_without_a_task_free_form_are_refused(text: str) -> None:
    with pytest.raises(ExportError):
        without_tasks(text)
