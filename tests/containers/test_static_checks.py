"""Checkers of files, each by itself, over what is rendered; and each finds the fault that is made for it.

They need no engine. What they cannot see is tested on one: an ordinary slim image passes most of them, too.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from scaffold import HARDENED, HARDENED_TPM, PLAIN, Answers, label, require, run

from scripts.worktree_copy import ROOT

# Its dependencies would not fit beside copier's, so it has an environment of its own.
CHECKOV = ("uv", "tool", "run", "--quiet", "--from", "checkov==3.3.30", "checkov")
FRAMEWORKS = ("dockerfile", "github_actions", "json", "secrets", "yaml")

PROJECTS = (PLAIN, HARDENED, HARDENED_TPM)

Rendered = Callable[[Answers], Path]

projects = pytest.mark.parametrize("answers", PROJECTS, ids=label)


def tool(name: str) -> str:
    """Return a program of this environment."""
    return str(Path(sys.executable).with_name(name))


def found(done: CompletedProcess[str]) -> str:
    """Return what a checker has found; empty if nothing."""
    return "" if done.returncode == 0 else f"exit {done.returncode}\n{done.stdout}{done.stderr}"


# ---------------------------------------------------------------- Dockerfiles


@projects
def test_hadolint_finds_nothing_in_the_dockerfile(rendered: Rendered, answers: Answers) -> None:
    assert found(run(rendered(answers), tool("hadolint"), "Dockerfile")) == ""


def test_hadolint_finds_what_it_is_there_for(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo ls\nCMD ls\n", "utf-8")
    said = found(run(tmp_path, tool("hadolint"), "Dockerfile"))
    assert all(rule in said for rule in ("DL3006", "DL3004", "DL3025")), said


def checkov(folder: Path) -> tuple[set[str], set[str]]:
    """Run checkov over a folder; return what passed and what failed: framework, rule and file."""
    chosen = [option for name in FRAMEWORKS for option in ("--framework", name)]
    done = run(
        folder,
        *(*CHECKOV, "--skip-download", "--enable-secret-scan-all-files", "--compact"),
        *("--output", "json", "--directory", ".", *chosen),
        environment={"LOG_LEVEL": "ERROR"},
    )
    assert done.stdout.startswith(("{", "[")), done.stdout + done.stderr
    passed, failed = (
        {
            f"{report['check_type']} {one['check_id']} {one['file_path']}"
            for report in json.loads(done.stdout)
            for one in report["results"][f"{result}_checks"]
        }
        for result in ("passed", "failed")
    )
    return passed, failed


def test_checkov_finds_nothing_but_the_faults_that_were_put_beside_the_projects(
    tmp_path: Path, rendered: Rendered
) -> None:
    available = run(tmp_path, *CHECKOV, "--version")
    require(available.returncode == 0, f"checkov, which uv would fetch ({available.stderr[-200:]}),")
    workflows = set()
    for answers in PROJECTS:
        copy = tmp_path / label(answers)
        shutil.copytree(rendered(answers), copy)
        for path in copy.glob(".github/workflows/*.yml"):
            # Its own schema takes no expression there, and it then passes over the file without a word.
            text, _ = re.subn(r"(cancel-in-progress: )\$.*", r"\1true", path.read_text("utf-8"))
            path.write_text(text, "utf-8")
            workflows.add(f"/{path.relative_to(tmp_path)}")
    fault = tmp_path / "fault"
    (fault / ".github" / "workflows").mkdir(parents=True)
    (fault / "Dockerfile").write_text("FROM debian:13\nEXPOSE 22\nUSER root\n", "utf-8")
    (fault / ".github" / "workflows" / "fault.yml").write_text(
        "on: push\njobs:\n  one:\n    runs-on: ubuntu-latest\n    steps:\n"
        "      - run: echo ${{ github.event.issue.title }}\n",
        "utf-8",
    )
    (fault / "settings.py").write_text('AWS_KEY = "AKIA' + 'QYLPMN5HHHFPZAM2"\n', "utf-8")
    passed, failed = checkov(tmp_path)
    control = {one for one in failed if " /fault/" in one}
    assert {one.split()[0] for one in control} == {"dockerfile", "github_actions", "secrets"}
    assert failed - control == set()
    looked_at = {one.split()[2] for one in passed}
    assert workflows | {f"/{label(answers)}/Dockerfile" for answers in PROJECTS} <= looked_at


# ---------------------------------------------------------------- Compose

COMPOSE = {
    "plain": (PLAIN, ["docker-compose.yml"]),
    "hardened": (HARDENED, ["docker-compose.yml"]),
    "hardened with a TPM": (HARDENED_TPM, ["docker-compose.yml", "docker-compose.tpm.yml"]),
    "hardened with a TPM that is not used": (HARDENED_TPM, ["docker-compose.yml"]),
}


def compose(folder: Path, *arguments: str) -> CompletedProcess[str]:
    """Run `docker compose` with the settings that a TPM needs."""
    return run(folder, "docker", "compose", *arguments, environment={"TPM_GID": "107"})


@pytest.mark.parametrize("profiles", [(), ("init",), ("smoke",), ("init", "smoke")], ids="+".join)
@pytest.mark.parametrize("case", COMPOSE)
def test_compose_reads_every_combination_of_files_and_profiles(
    rendered: Rendered, tmp_path: Path, case: str, profiles: tuple[str, ...]
) -> None:
    require(compose(tmp_path, "version").returncode == 0, "docker compose")
    answers, names = COMPOSE[case]
    files = [word for name in names for word in ("--file", name)]
    chosen = [word for name in profiles for word in ("--profile", name)]
    assert found(compose(rendered(answers), *files, *chosen, "config", "--quiet")) == ""
    services = compose(rendered(answers), *files, *chosen, "config", "--services").stdout.split()
    assert set(services) == {"service", *(profiles if answers != PLAIN else ())}


def test_compose_refuses_a_key_that_it_does_not_know(tmp_path: Path) -> None:
    require(compose(tmp_path, "version").returncode == 0, "docker compose")
    (tmp_path / "docker-compose.yml").write_text("services: {one: {image: x, read_onyl: true}}\n", "utf-8")
    assert "read_onyl" in found(compose(tmp_path, "config", "--quiet"))


# ---------------------------------------------------------------- Schemas

SCHEMAS = {
    "vendor.compose-spec": ("docker-compose*.yml", "services: {one: {imagee: x}}\n"),
    "vendor.dependabot": (".github/dependabot.yml", "version: 2\nupdates: [{package-ecosystem: none}]\n"),
    "vendor.github-workflows": (".github/workflows/*.yml", "on: push\njobs: {one: {steps: []}}\n"),
    "custom.github-workflows-require-timeout": (
        ".github/workflows/*.yml",
        "on: push\njobs: {one: {runs-on: x, steps: []}}\n",
    ),
    "vendor.renovate": ("renovate.json", '{"pinDigests": "sometimes"}\n'),
}


def validate(folder: Path, schema: str, *files: str) -> str:
    """Validate files against a schema that check-jsonschema brings along; return what is wrong."""
    return found(run(folder, tool("check-jsonschema"), "--builtin-schema", schema, *files))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_of_rendered_projects_fit_their_schemas(rendered: Rendered, schema: str) -> None:
    pattern, _ = SCHEMAS[schema]
    seen = 0
    for answers in PROJECTS:
        names = sorted(str(path.relative_to(rendered(answers))) for path in rendered(answers).glob(pattern))
        assert names or (schema == "vendor.renovate" and answers == PLAIN), (
            f"{pattern} is in {label(answers)}"
        )
        if names:
            assert validate(rendered(answers), schema, *names) == ""
            seen += 1
    assert seen >= 2


@pytest.mark.parametrize("schema", SCHEMAS)
def test_file_that_does_not_fit_its_schema_is_found(tmp_path: Path, schema: str) -> None:
    pattern, fault = SCHEMAS[schema]
    name = "fault" + Path(pattern).suffix
    (tmp_path / name).write_text(fault, "utf-8")
    assert f"{name}::" in validate(tmp_path, schema, name)


def test_workflows_of_the_template_itself_fit_their_schema() -> None:
    names = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(".github/workflows/*.yml"))
    assert names
    for schema in ("vendor.github-workflows", "custom.github-workflows-require-timeout"):
        assert validate(ROOT, schema, *names) == ""


# ---------------------------------------------------------------- Workflows


def zizmor(*paths: Path) -> str:
    """Run zizmor, offline and with all that its pedantic persona asks for; return what it found."""
    return found(
        run(ROOT, tool("zizmor"), "--offline", "--no-progress", "--persona", "pedantic", *map(str, paths))
    )


@projects
def test_zizmor_finds_nothing_in_the_workflows_of_a_project(rendered: Rendered, answers: Answers) -> None:
    assert zizmor(rendered(answers) / ".github") == ""


def test_zizmor_finds_nothing_in_the_workflows_of_the_template_itself() -> None:
    assert zizmor(ROOT / ".github") == ""


def test_zizmor_finds_what_it_is_there_for(tmp_path: Path) -> None:
    workflows = tmp_path / ".github" / "workflows"
    workflows.mkdir(parents=True)
    (workflows / "fault.yml").write_text(
        "on: pull_request_target\njobs:\n  one:\n    runs-on: ubuntu-latest\n    steps:\n"
        "      - uses: actions/checkout@v4\n      - run: echo ${{ github.event.pull_request.title }}\n",
        "utf-8",
    )
    said = zizmor(tmp_path / ".github")
    rules = (
        "dangerous-triggers",
        "unpinned-uses",
        "template-injection",
        "artipacked",
        "excessive-permissions",
    )
    assert [rule for rule in rules if rule not in said] == []
