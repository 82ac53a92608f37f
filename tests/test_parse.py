"""Everything rendered is well-formed and reads as if written by hand."""

import ast
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePath

import pytest
import yaml
from scaffold import ANSWERS_FILE, COMBINATIONS, Answers, contents, label

PARSERS: dict[str, Callable[[str], object]] = {
    ".toml": tomllib.loads,
    ".yml": yaml.safe_load,
    ".yaml": yaml.safe_load,
    ".json": json.loads,
    ".py": ast.parse,
}
# GitHub's own expressions look like Jinja's; so do the arguments of a recipe in a justfile.
GITHUB_EXPRESSION = re.compile(r"\$\{\{[^{}]*\}\}")
RECIPE_ARGUMENTS = re.compile(r"\{\{ ?[a-z_]+ ?\}\}")
# Databases and keys of earlier formats, kept to the byte.
BINARY = "libs/security/tests/samples/"
# A project tells its owner where it comes from only where that is of use.
MAY_NAME_THE_TEMPLATE = {
    ANSWERS_FILE,
    "README.md",
    "justfile",
    "pyproject.toml",
    "docs/security/ADVISORIES.md",
    "scripts/merge_markers.py",
    ".github/workflows/template-update.yml",
}


@pytest.fixture(scope="session")
def texts(rendered: Callable[[Answers], Path]) -> Callable[[], Iterator[tuple[str, str]]]:
    """Give each rendered text of every combination, one that is the same in several of them once."""

    @cache
    def unique() -> dict[tuple[str, str], None]:
        return {
            (name, data.decode()): None
            for answers in COMBINATIONS
            for name, data in contents(rendered(answers)).items()
            if not name.startswith(BINARY)
        }

    return lambda: iter(unique())


@pytest.mark.parametrize("answers", COMBINATIONS, ids=label)
def test_every_file_of_a_known_kind_parses(rendered: Callable[[Answers], Path], answers: Answers) -> None:
    parsed = set()
    for name, data in contents(rendered(answers)).items():
        kind = PurePath(name).suffix
        if kind in PARSERS:
            assert PARSERS[kind](data.decode()) is not None, f"{name} is empty"
            parsed.add(kind)
    assert {".toml", ".yml", ".yaml", ".py"} <= parsed, "something of each kind was parsed"
    assert (".json" in parsed) is answers["enable_security_hardening"], "the only JSON is the container's"


Texts = Callable[[], Iterator[tuple[str, str]]]


def test_no_jinja_is_left(texts: Texts) -> None:
    left = []
    for name, text in texts():
        if name.startswith(".github/"):
            text = GITHUB_EXPRESSION.sub("", text)
        if name == "justfile":
            text = RECIPE_ARGUMENTS.sub("", text)
        if re.search(r"\{\{|\}\}|\{%|%\}|\{#|#\}", text) and not name.endswith((".py", ".json")):
            left.append(name)
        if re.search(r"\{%|%\}|\{\{ ", text) and name.endswith(".py"):
            left.append(name)
        if name.endswith(".jinja"):
            left.append(name)
    assert left == []


def test_only_the_places_that_need_it_name_the_template(texts: Texts) -> None:
    named = {name for name, text in texts() if re.search(r"copier|bartizan|jinja", text, re.IGNORECASE)}
    assert named <= MAY_NAME_THE_TEMPLATE
    assert ANSWERS_FILE in named, "control"


def test_every_file_ends_with_one_newline(texts: Texts) -> None:
    wrong = {
        name
        for name, text in texts()
        if text and (not text.endswith("\n") or text.endswith("\n\n") or text.startswith("\n"))
    }
    assert wrong == set()


def test_no_line_ends_with_a_space(texts: Texts) -> None:
    assert {name for name, text in texts() if re.search(r"[ \t]$", text, re.MULTILINE)} == set()


def test_no_tab_or_carriage_return(texts: Texts) -> None:
    assert {name for name, text in texts() if re.search(r"\r|\t", text)} == set()


def test_no_double_blank_lines_where_a_condition_was(texts: Texts) -> None:
    # In Python two blank lines are the rule; its formatter looks after them in the projects' own check.
    looked_at = {name for name, _ in texts() if not name.endswith(".py")}
    assert {"pyproject.toml", "docker-compose.yml", "Dockerfile", "README.md", "justfile"} <= looked_at
    doubled = {name for name, text in texts() if "\n\n\n" in text and name in looked_at}
    assert doubled <= {"LICENSE"}, "the Apache licence is typeset with empty lines"
