"""Answers that a release accepted are accepted for good, and mean the same project.

A validator that became stricter would not even be noticed: under `copier update --defaults` a refused answer
is replaced by the default, and a project gets another name. Each release leaves its answers here.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from scaffold import ANSWERS_FILE, HARDENED, PLAIN, VERSION, Answers, Template, commit_all, files, git, update

RELEASES = Path(__file__).parent / "releases"
KEPT = sorted(RELEASES.glob("*/*.yml"))


def name_of(path: Path) -> str:
    """Name a set of answers for a test id."""
    return f"{path.parent.name}-{path.stem}"


def read(path: Path) -> Answers:
    """Read a set of answers."""
    answers: Answers = yaml.safe_load(path.read_text(encoding="utf-8"))
    return answers


def remembered(project: Path) -> Answers:
    """Read the answers of a project, without what copier adds."""
    answers = read(project / ANSWERS_FILE)
    return {name: answer for name, answer in answers.items() if not name.startswith("_")}


@pytest.mark.parametrize("kept", KEPT, ids=name_of)
def test_answers_of_a_release_still_make_the_same_project(
    rendered: Callable[[Answers], Path], kept: Path
) -> None:
    answers = read(kept)
    project = rendered(answers)
    assert remembered(project).items() >= answers.items()
    assert (
        tomllib.loads((project / "pyproject.toml").read_text())["project"]["name"] == answers["project_slug"]
    )
    package = answers["project_slug"].replace("-", "_")
    assert f"src/{package}/__init__.py" in files(project)
    assert ("libs/security/pyproject.toml" in files(project)) is answers["enable_security_hardening"]


@pytest.mark.parametrize("kept", KEPT, ids=name_of)
def test_answers_of_a_release_survive_an_update_that_asks_nothing(
    tmp_path: Path, template: Template, kept: Path
) -> None:
    newer = Template.of_working_tree(tmp_path / "template", template.path)
    project = newer.copy(tmp_path / "project", read(kept))
    git(project, "init", "--quiet")
    commit_all(project)
    newer.release("9.0.0")
    update(project)
    assert remembered(project).items() >= read(kept).items()
    assert git(project, "diff", "--name-only").split() == [ANSWERS_FILE]


def test_this_version_keeps_its_answers_in_full(rendered: Callable[[Answers], Path]) -> None:
    # Run by `just release` like every test: no version goes out without its answers.
    kept = {path.stem: read(path) for path in KEPT if path.parent.name == VERSION}
    assert {"plain", "hardened", "extremes"} <= set(kept)
    assert set(kept["plain"]) == set(remembered(rendered(PLAIN)))
    for name in ("hardened", "extremes"):
        assert set(kept[name]) == set(remembered(rendered(HARDENED)))


def test_tightened_validator_would_be_seen(tmp_path: Path, template: Template) -> None:
    stricter = Template.of_working_tree(tmp_path / "template", template.path)
    questions = stricter.path / "copier.yml"
    text = questions.read_text()
    assert "project_name | length > 60" in text
    questions.write_text(text.replace("project_name | length > 60", "project_name | length > 5"))
    stricter.release("9.0.0")
    with pytest.raises(ValueError, match="Validation error for question 'project_name'"):
        stricter.copy(tmp_path / "project", read(RELEASES / "0.1.0" / "plain.yml"))
