"""`copier update` brings every project to what a fresh copy would be, plus what its owner changed.

The older version is made here from the working tree: a library file, a rendered file and a file of a piece
differ, one question is not asked yet, one file has another name, two are there that were dropped later, and
two are not there yet.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from copier.errors import UnsafeTemplateError, UserMessageError
from scaffold import (
    ANSWERS_FILE,
    HARDENED,
    HARDENED_TPM,
    PLAIN,
    VERSION,
    Answers,
    Shared,
    Template,
    commit_all,
    contents,
    git,
    run,
    update,
)

OLDER = "0.0.9"
OLDER_SENTENCE = "An older version said this.\n"
OWNERS_SENTENCE = "The owner says this.\n"
LIBRARY_FILE = "libs/security/src/service_security/errors.py"
PIECE_FILE = "docs/security/TPM.md"
RENAMED = ("scripts/marker_check.py", "scripts/merge_markers.py")
RETIRED = ("scripts/retired.py", "libs/security/src/service_security/retired.py")
ADDED = ("src/{{package_name}}/healthcheck.py", "libs/security/src/service_security/keys/sealed_box.py")
LATER_QUESTION = "python_version"

CHANGES = {
    "plain": (PLAIN, PLAIN),
    "hardened": (HARDENED, HARDENED),
    "hardened with TPM": (HARDENED_TPM, HARDENED_TPM),
    "plain to hardened": (PLAIN, HARDENED),
    "hardened to plain": (HARDENED, {"enable_security_hardening": False}),
    "hardened with TPM to plain": (HARDENED_TPM, {"enable_security_hardening": False}),
    "TPM off": (HARDENED_TPM, HARDENED_TPM | {"tpm_enabled": False}),
    "TPM on": (HARDENED, HARDENED | {"tpm_enabled": True}),
}


def insert_line(path: Path, line: str, after: int) -> None:
    """Put a line behind the first ones of a file, or at its end."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:after], line, *lines[after:]]))


def append(path: Path, line: str) -> None:
    """Put a line at the end of a file."""
    path.write_text(path.read_text() + line)


def make_older(tree: Path) -> None:
    """Turn the working tree into what an earlier version may have been."""
    shipped = tree / "template"
    insert_line(shipped / "README.md.jinja", OLDER_SENTENCE, after=1)
    insert_line(shipped / PIECE_FILE, OLDER_SENTENCE, after=1)
    insert_line(shipped / LIBRARY_FILE, f"# {OLDER_SENTENCE}", after=1)
    (shipped / RENAMED[1]).rename(shipped / RENAMED[0])
    for path in RETIRED:
        (shipped / path).write_text("RETIRED = True\n")
    for path in ADDED:
        (shipped / path).unlink()
    questions = (tree / "copier.yml").read_text()
    not_asked = re.sub(rf"^{LATER_QUESTION}:\n", r"\g<0>  when: false\n", questions, flags=re.MULTILINE)
    assert not_asked != questions
    (tree / "copier.yml").write_text(not_asked)


def edit(project: Path) -> None:
    """Change a project as its owner may: edit, add, remove, ignore."""
    append(project / "README.md", f"\n{OWNERS_SENTENCE}")
    append(project / ".gitignore", "*.secret\n")
    (project / ".pre-commit-config.yaml").unlink()
    if (project / LIBRARY_FILE).exists():
        append(project / LIBRARY_FILE, f"# {OWNERS_SENTENCE}")
    for folder in (
        ".",
        "src/my_service",
        "docs/security",
        "docs/notes",
        "libs/security",
        "libs/own",
        ".github",
    ):
        (project / folder).mkdir(parents=True, exist_ok=True)
        (project / folder / "own.txt").write_text(OWNERS_SENTENCE)
        (project / folder / "own.secret").write_text("in no commit\n")
    (project / ".env").write_text("SERVICE_PORT=9000\n")
    (project / "data").mkdir(exist_ok=True)
    (project / "data" / "records.db").write_bytes(b"\0records")


def own(name: str) -> bool:
    """Tell whether a file was added by `edit`."""
    return Path(name).name in ("own.txt", "own.secret", ".env", "records.db")


@pytest.fixture(scope="session")
def history(shared: Shared, template: Template) -> Template:
    """Return a template with two releases: an older one and the working tree."""

    def build(place: Path) -> None:
        both = Template.of_working_tree(place, template.path)
        make_older(place)
        both.release(OLDER)  # the later commit: copier goes by the tags' versions

    return Template(shared.once("history", build))


@pytest.fixture
def older_project(tmp_path: Path, history: Template) -> Callable[[Answers], Path]:
    """Make a project from the older version, committed to git."""

    def make(answers: Answers, *, skip_tasks: bool = False) -> Path:
        place = history.copy(tmp_path / "project", answers, vcs_ref=f"v{OLDER}", skip_tasks=skip_tasks)
        git(place, "init", "--quiet")
        commit_all(place, "Scaffolded")
        return place

    return make


def lost_without_a_trace(project: Path, before: dict[str, bytes]) -> list[str]:
    """Name the files that changed or vanished since, and that `git diff` does not show."""
    shown = set(git(project, "diff", "-z", "--name-only", "--no-renames", "HEAD").split("\0"))
    after = contents(project)
    return [name for name, data in before.items() if after.get(name) != data and name not in shown]


def leftovers(project: Path) -> list[str]:
    """Name the files with a merge marker or a rejected change."""
    return [
        name
        for name, data in contents(project).items()
        if name.endswith(".rej") or re.search(rb"^<<<<<<< ", data, re.MULTILINE)
    ]


# ---------------------------------------------------------------- What an update comes to


@pytest.mark.parametrize("change", CHANGES)
def test_update_equals_a_fresh_copy_plus_the_owners_edits(
    tmp_path: Path, history: Template, older_project: Callable[[Answers], Path], change: str
) -> None:
    start, target = CHANGES[change]
    project = older_project(start)
    older = contents(project)
    assert OLDER_SENTENCE in (project / "README.md").read_text()
    assert LATER_QUESTION not in (project / ANSWERS_FILE).read_text()
    edit(project)
    commit_all(project, "Edited by its owner")
    before = contents(project)

    update(project, target)

    expected = tmp_path / "expected"
    history.copy(expected, start | target)
    fresh = contents(expected)
    edit(expected)
    if LIBRARY_FILE not in older and LIBRARY_FILE in fresh:
        (expected / LIBRARY_FILE).write_bytes(fresh[LIBRARY_FILE])  # there was no such file to edit
    updated = contents(project)
    assert sorted(updated) == sorted(contents(expected))
    assert updated == contents(expected)
    assert leftovers(project) == []
    assert lost_without_a_trace(project, before) == []
    assert {name: updated[name] for name in before if own(name)} == {
        name: before[name] for name in before if own(name)
    }
    # The scenario is the one that the test promises.
    assert OWNERS_SENTENCE in updated["README.md"].decode()
    assert OLDER_SENTENCE not in updated["README.md"].decode()
    assert {RENAMED[0], RETIRED[0]} <= set(older) - set(updated)
    assert {RENAMED[1], "src/my_service/healthcheck.py"} <= set(updated) - set(older)
    assert yaml.safe_load(updated[ANSWERS_FILE])[LATER_QUESTION] == "3.13"
    assert yaml.safe_load(updated[ANSWERS_FILE])["_commit"] == f"v{VERSION}"


@pytest.mark.parametrize("change", ["hardened", "plain to hardened", "hardened to plain"])
def test_update_without_the_tasks_equals_a_fresh_copy_without_them(
    tmp_path: Path, history: Template, older_project: Callable[..., Path], change: str
) -> None:
    start, target = CHANGES[change]
    project = older_project(start, skip_tasks=True)
    edit(project)
    commit_all(project, "Edited by its owner")
    had_library = LIBRARY_FILE in contents(project)
    update(project, target, skip_tasks=True)

    expected = history.copy(tmp_path / "expected", start | target, skip_tasks=True)
    fresh = contents(expected)
    edit(expected)
    if not had_library and LIBRARY_FILE in fresh:
        (expected / LIBRARY_FILE).write_bytes(fresh[LIBRARY_FILE])
    assert contents(project) == contents(expected)
    assert (project / PIECE_FILE).exists() is (start | target)["enable_security_hardening"]


def test_superset_stays_when_a_later_update_runs_the_tasks(older_project: Callable[..., Path]) -> None:
    # To copier the unpruned files are additions of the owner, and those stay.
    project = older_project(HARDENED, skip_tasks=True)
    before = contents(project)
    assert PIECE_FILE in before
    update(project)
    assert PIECE_FILE in contents(project)
    assert lost_without_a_trace(project, before) == []


def test_edited_library_file_shows_as_a_deletion_when_the_flag_goes_off(
    older_project: Callable[[Answers], Path],
) -> None:
    project = older_project(HARDENED)
    edit(project)
    commit_all(project, "Edited by its owner")
    update(project, {"enable_security_hardening": False})
    assert f"D {LIBRARY_FILE}" in git(project, "status", "--porcelain")
    git(project, "checkout", "HEAD", "--", LIBRARY_FILE)
    assert OWNERS_SENTENCE in (project / LIBRARY_FILE).read_text(), "and git has it"


def test_piece_off_on_and_off_after_an_edit(
    rendered: Callable[[Answers], Path], project: Callable[[Answers], Path]
) -> None:
    place = project(HARDENED_TPM)
    append(place / PIECE_FILE, f"\n{OWNERS_SENTENCE}")
    commit_all(place, "Edited by its owner")

    for tpm in (False, True, False):
        before = contents(place)
        update(place, {"tpm_enabled": tpm})
        assert contents(place) == contents(rendered(HARDENED_TPM | {"tpm_enabled": tpm}))
        changed = git(place, "status", "--porcelain")
        assert (f" D {PIECE_FILE}" in changed) is not tpm
        assert lost_without_a_trace(place, before) == []
        commit_all(place, f"TPM {tpm}")
    assert OWNERS_SENTENCE in git(place, "show", f"HEAD~3:{PIECE_FILE}")


def test_owners_file_under_the_name_of_a_piece_that_is_off_survives(
    older_project: Callable[[Answers], Path],
) -> None:
    project = older_project(HARDENED)
    (project / PIECE_FILE).write_text(OWNERS_SENTENCE)
    commit_all(project, "A file of the same name")
    update(project)
    assert (project / PIECE_FILE).read_text() == OWNERS_SENTENCE
    assert leftovers(project) == []


@pytest.mark.parametrize(
    "piece_file",
    [
        PIECE_FILE,
        "docker-compose.tpm.yml",
        "libs/security/src/service_security/keys/tpm/address.py",
        "libs/security/tests/test_tpm_address.py",
    ],
)
def test_ignored_file_under_the_name_of_a_piece_that_is_off_survives(
    older_project: Callable[[Answers], Path], piece_file: str
) -> None:
    # In no commit and in no diff: once overwritten or deleted, nothing would bring it back.
    project = older_project(HARDENED)
    append(project / ".gitignore", f"/{piece_file}\n")
    (project / piece_file).parent.mkdir(exist_ok=True)
    (project / piece_file).write_text(OWNERS_SENTENCE)
    commit_all(project, "An ignored file of the same name")
    assert piece_file not in git(project, "ls-files")
    update(project)
    assert (project / piece_file).read_text() == OWNERS_SENTENCE


def test_copier_itself_overwrites_an_ignored_file_whose_name_the_template_begins_to_use(
    older_project: Callable[[Answers], Path],
) -> None:
    # Pinned because it is the one file that an update takes without a trace, and the documents say so.
    project = older_project(PLAIN)
    append(project / ".gitignore", "/docs/\n")
    (project / "docs" / "security").mkdir(parents=True)
    for name in ("ENCRYPTION.md", "own.md"):
        (project / "docs" / "security" / name).write_text(OWNERS_SENTENCE)
    commit_all(project, "Ignored documents")
    before = contents(project)
    update(project, HARDENED)
    assert lost_without_a_trace(project, before) == ["docs/security/ENCRYPTION.md"]


def test_reverting_the_commit_of_an_update_brings_everything_back(
    older_project: Callable[[Answers], Path],
) -> None:
    project = older_project(PLAIN)
    edit(project)
    commit_all(project, "Edited by its owner")
    before = contents(project)
    update(project, HARDENED)
    commit_all(project, "Updated")
    assert contents(project) != before
    git(project, "revert", "--no-edit", "HEAD")
    assert contents(project) == before
    update(project)
    assert LIBRARY_FILE not in contents(project), "the answers were reverted, too"


# ---------------------------------------------------------------- Conflicts


def test_conflict_leaves_markers_that_the_projects_own_check_finds(
    older_project: Callable[[Answers], Path],
) -> None:
    project = older_project(PLAIN)
    readme = project / "README.md"
    readme.write_text(readme.read_text().replace(OLDER_SENTENCE, f"But {OWNERS_SENTENCE}"))
    assert OWNERS_SENTENCE in readme.read_text()
    commit_all(project, "Edited where the template will change")
    check = (sys.executable, str(project / "scripts" / "merge_markers.py"))
    update(project)

    assert leftovers(project) == ["README.md"]
    assert f"But {OWNERS_SENTENCE}" in readme.read_text(), "nothing of the owner's is lost"
    found = run(project, *check)
    assert found.returncode == 1
    assert "README.md" in found.stdout
    git(project, "checkout", "--theirs", "--", "README.md")
    solved = run(project, *check)
    assert (solved.returncode, solved.stdout) == (0, "")


# ---------------------------------------------------------------- Refusals


def copier_command(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run copier's command line as a person without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "copier", *arguments],
        cwd=where,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_untrusted_copy_is_refused_with_what_to_do(tmp_path: Path, template: Template) -> None:
    with pytest.raises(UnsafeTemplateError, match="adding the `--trust` option"):
        template.copy(tmp_path / "project", PLAIN, unsafe=False)
    assert not (tmp_path / "project").exists()
    said = copier_command(tmp_path, "copy", "--defaults", str(template.path), "project")
    assert said.returncode == 4
    assert "potentially unsafe feature: tasks" in said.stderr
    assert "--trust" in said.stderr
    assert not (tmp_path / "project").exists()


def test_untrusted_copy_without_the_tasks_is_allowed(
    tmp_path: Path, shared: Shared, template: Template
) -> None:
    place = template.copy(tmp_path / "project", HARDENED, unsafe=False, skip_tasks=True)
    assert contents(place) == contents(shared.render(template, HARDENED, skip_tasks=True))
    assert (place / PIECE_FILE).exists(), "nothing was pruned"


@pytest.mark.parametrize("skip_tasks", [False, True], ids=["with tasks", "skipping tasks"])
def test_untrusted_update_is_refused_and_changes_nothing(
    older_project: Callable[[Answers], Path], skip_tasks: bool
) -> None:
    # Copier asks for trust in an update even if the tasks are skipped, because the older version had one.
    project = older_project(HARDENED)
    before = contents(project)
    with pytest.raises(UnsafeTemplateError, match="adding the `--trust` option"):
        update(project, unsafe=False, skip_tasks=skip_tasks)
    said = copier_command(project, "update", "--defaults", *(["--skip-tasks"] if skip_tasks else []))
    assert said.returncode == 4
    assert "--trust" in said.stderr
    assert contents(project) == before
    assert git(project, "status", "--porcelain", "--ignored") == ""


def test_template_on_the_trust_list_needs_no_option(
    tmp_path: Path,
    older_project: Callable[[Answers], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = older_project(HARDENED)
    settings = tmp_path / "settings.yml"
    monkeypatch.setenv("COPIER_SETTINGS_PATH", str(settings))
    prefix = str(Path(yaml.safe_load((project / ANSWERS_FILE).read_text())["_src_path"]).parent)
    settings.write_text(yaml.safe_dump({"trust": [prefix]}))
    with pytest.raises(UnsafeTemplateError):  # a prefix needs its trailing slash
        update(project, unsafe=False)
    settings.write_text(yaml.safe_dump({"trust": [f"{prefix}/"]}))
    update(project, unsafe=False)
    assert not (project / RENAMED[0]).exists()


@pytest.mark.parametrize("kind", ["edited", "untracked"])
def test_dirty_project_is_refused_and_nothing_changes(
    older_project: Callable[[Answers], Path], kind: str
) -> None:
    project = older_project(PLAIN)
    if kind == "edited":
        append(project / "README.md", OWNERS_SENTENCE)
    else:
        (project / "new.txt").write_text(OWNERS_SENTENCE)
    before = contents(project)
    with pytest.raises(UserMessageError, match="Please commit or stash your local changes and retry"):
        update(project)
    assert contents(project) == before


def test_downgrade_is_refused_and_nothing_changes(tmp_path: Path, history: Template) -> None:
    project = history.copy(tmp_path / "project", HARDENED)
    git(project, "init", "--quiet")
    commit_all(project)
    before = contents(project)
    with pytest.raises(UserMessageError, match="Downgrades are not supported"):
        update(project, vcs_ref=f"v{OLDER}")
    assert contents(project) == before


def test_project_outside_git_is_refused(tmp_path: Path, history: Template) -> None:
    project = history.copy(tmp_path / "project", PLAIN, vcs_ref=f"v{OLDER}")
    before = contents(project)
    with pytest.raises(UserMessageError, match="git-tracked"):
        update(project)
    assert contents(project) == before


# ---------------------------------------------------------------- A destination with files in it


def test_copy_over_a_users_file_stops_before_touching_it(tmp_path: Path, template: Template) -> None:
    place = tmp_path / "project"
    place.mkdir()
    (place / "README.md").write_text(OWNERS_SENTENCE)
    (place / "own.txt").write_text(OWNERS_SENTENCE)
    said = copier_command(tmp_path, "copy", "--trust", "--defaults", str(template.path), "project")
    assert said.returncode == 1
    assert re.search(r"conflict\S*\s+README\.md", said.stderr)
    assert "--overwrite" in said.stderr, "copier says what would overwrite it"
    assert (place / "README.md").read_text() == OWNERS_SENTENCE
    assert (place / "own.txt").read_text() == OWNERS_SENTENCE


def test_copy_can_skip_a_users_file(
    tmp_path: Path, template: Template, rendered: Callable[[Answers], Path]
) -> None:
    place = tmp_path / "project"
    (place / "docs" / "security").mkdir(parents=True)
    for name in ("README.md", PIECE_FILE):  # a piece that is then off: the hook meets the owner's file, too
        (place / name).write_text(OWNERS_SENTENCE)
    template.copy(place, HARDENED, skip_if_exists=["README.md", PIECE_FILE])
    assert contents(place) == contents(rendered(HARDENED)) | {
        "README.md": OWNERS_SENTENCE.encode(),
        PIECE_FILE: OWNERS_SENTENCE.encode(),
    }
