"""Fixtures: the throw-away template, renders shared by all tests and processes, projects to change."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers.engine import connect, name_the_run, remove_what_this_run_made
from scaffold import Answers, Shared, Template, commit_all, git


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Name this run, once for all its processes: containers, volumes and images are called after it."""
    if not _is_worker(config):
        name_the_run()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the run has left on a container engine; its images are shared until the end."""
    if not _is_worker(config) and (client := connect()) is not None:
        with contextlib.closing(client):
            remove_what_this_run_made(client)


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the settings of whoever runs the tests out of them: git's identity and hooks, copier's trust list.

    Variables like GIT_DIR are set while a git hook runs and would aim every command here at that repository.
    """
    nothing = tmp_path_factory.mktemp("settings") / "settings.yml"
    nothing.write_text("{}\n")
    git_options = {"init.defaultBranch": "main", "safe.directory": "*", "core.excludesFile": os.devnull}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("GIT_", "COPIER_"))]:
            patch.delenv(name)
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Template tests")
            patch.setenv(f"GIT_{role}_EMAIL", "tests@example.com")
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("GIT_TEMPLATE_DIR", "")
        patch.setenv("GIT_CONFIG_COUNT", str(len(git_options)))
        for number, (key, value) in enumerate(git_options.items()):
            patch.setenv(f"GIT_CONFIG_KEY_{number}", key)
            patch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
        patch.setenv("COPIER_SETTINGS_PATH", str(nothing))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Folders built once for all processes of this run: under xdist their common parent holds them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return Shared(folder)


@pytest.fixture(scope="session")
def template(_environment: None, shared: Shared) -> Template:
    """Return the working tree as a tagged git repository. Read only: change a copy of it."""
    return Template(shared.once("template", Template.of_working_tree))


@pytest.fixture(scope="session")
def rendered(shared: Shared, template: Template) -> Callable[[Answers], Path]:
    """Render the working tree with some answers, once for all tests. Read only: change a `project`."""
    return lambda answers: shared.render(template, answers)


@pytest.fixture(scope="session")
def installed(shared: Shared, template: Template) -> Callable[[Answers], Path]:
    """Render with some answers and make the environment, once for all tests. Read only, too."""
    return lambda answers: shared.installed(template, answers)


@pytest.fixture
def project(tmp_path: Path, rendered: Callable[[Answers], Path]) -> Callable[[Answers], Path]:
    """Make a fresh project of one's own, committed to git as its owner would."""

    def make(answers: Answers) -> Path:
        place = tmp_path / "project"
        shutil.copytree(rendered(answers), place, symlinks=True)
        git(place, "init", "--quiet")
        commit_all(place, "Scaffolded")
        return place

    return make
