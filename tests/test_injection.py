"""Text that a question accepts arrives as that text everywhere; any other is refused with a reason."""

import ast
import json
import keyword
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from scaffold import ANSWERS_FILE, HARDENED, PLAIN, ROOT, VERSION, Answers, Template, commit_all, git, update
from service import running

# Each of these is legal somewhere and poison somewhere else.
NASTY: Answers = {
    "project_name": "Ünïcode & Sons' (Ørders, 1 + 1) 🚀 - v2.0",
    "project_slug": "my-service",
    "description": (
        "Quotes \" ' ''' \"\"\" and `ticks`; back\\slash \\n \\u0041 \\; $HOME $(id) ${{ github.token }}"
        " {{ 7 * 7 }} {% raw %} {# no #} [tool.evil] [a](b) ![c](d) <b>x</b> &amp; *a* _b_ # | > %(x)s : - 😀"
    ),
    "author_name": "O'Brien & Söhne (日本) - A. + B.",
    "author_email": "first.last+tag@sub.example.com",
}
LONGEST: Answers = {
    "project_name": "N" * 60,
    "project_slug": "my-service",
    "description": ("d'\"" * 100)[:300],
    "author_name": "A" * 80,
    "author_email": f"{'e' * 64}@{'x' * 60}.example.com",
}
ACCEPTED = {"nasty": NASTY, "longest": LONGEST}

NAME_STARTS = "begins with a letter or a digit and has no space at either end"
NAME_HOLDS = "may hold letters, digits, spaces"
ONE_LINE = "one line"
SLUG_IS = "has 2 to 40 lower-case letters, digits and single hyphens"
INVISIBLE = {
    "newline": "a\nb",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "null": "a\0b",
    "escape": "a\x1b[31mb",
    "delete": "a\x7fb",
    "next line": "a\x85b",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "right-to-left override": "a\u202eb",
    "isolate": "a\u2066b",
    "right-to-left mark": "a\u200fb",
    "zero width space": "a\u200bb",
    "soft hyphen": "a\u00adb",
    "byte order mark": "a\ufeffb",
}
PUNCTUATION = '"`\\<>{}[]$#*|~^;:@%=!?/_'

REFUSED: list[tuple[str, str, str]] = [
    ("project_name", "", NAME_STARTS),
    ("project_name", " padded", NAME_STARTS),
    ("project_name", "padded ", NAME_STARTS),
    ("project_name", "-rf", NAME_STARTS),
    ("project_name", "🚀 first", NAME_STARTS),
    ("project_name", "x" * 61, "at most 60 characters; this one has 61"),
    *(("project_name", f"a{sign}b", NAME_HOLDS) for sign in PUNCTUATION),
    *(("project_name", text, NAME_HOLDS) for text in INVISIBLE.values()),
    ("author_name", "", NAME_STARTS),
    ("author_name", "x" * 81, "at most 80 characters; this one has 81"),
    *(("author_name", f"a{sign}b", NAME_HOLDS) for sign in PUNCTUATION + ","),
    *(("author_name", text, NAME_HOLDS) for text in INVISIBLE.values()),
    ("description", "", ONE_LINE),
    ("description", " ", ONE_LINE),
    ("description", "padded ", ONE_LINE),
    ("description", "x" * 301, "at most 300 characters; this one has 301"),
    *(("description", text, ONE_LINE) for text in INVISIBLE.values()),
    *(
        ("project_slug", text, SLUG_IS)
        for text in (
            "",
            "a",
            "Upper",
            "under_score",
            "two--hyphens",
            "-a",
            "a-",
            "1abc",
            "x" * 41,
            "über",
            "a b",
        )
    ),
    *(("project_slug", f"ab{end}", SLUG_IS) for end in ("\n", "\u2028", "/..", '"', "\0", "{{ 1 }}")),
    ("project_slug", "class", "is a Python keyword"),
    ("project_slug", "con", "is a reserved file name on Windows"),
    ("project_slug", "json", "would hide the Python module or dependency"),
    ("project_slug", "service-security", "would hide the Python module or dependency"),
    *(
        ("author_email", text, "looks like team@example.com; leave it empty to publish none")
        for text in (
            "nobody",
            "a@b",
            "a b@example.com",
            '"a"@example.com',
            "a@example.com\n",
            "a@example..com",
            "a@-example.com",
            "a@example.com, b@example.com",
            "a@exämple.com",
            f"{'e' * 65}@example.com",
            f"a@{'x.' * 130}com",
        )
    ),
]

QUESTIONS: dict[str, Any] = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
JINJA = jinja2.Environment(  # noqa: S701
    extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"], undefined=jinja2.StrictUndefined
)
JINJA.filters["to_json"] = lambda value, **options: json.dumps(value, **options)


def complaint(question: str, answer: str) -> str:
    """Return what the validator of a question says about an answer, as copier evaluates it."""
    return JINJA.from_string(QUESTIONS[question]["validator"]).render({question: answer}).strip()


# ---------------------------------------------------------------- What is refused


@pytest.mark.parametrize(("question", "answer", "sentence"), REFUSED)
def test_answer_is_refused_with_what_would_be_accepted(question: str, answer: str, sentence: str) -> None:
    said = complaint(question, answer)
    assert sentence in said
    assert said.endswith(".")


@pytest.mark.parametrize("answers", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted_answers_draw_no_complaint(answers: Answers) -> None:
    assert {name: complaint(name, answer) for name, answer in answers.items()} == dict.fromkeys(answers, "")


@pytest.mark.parametrize(
    ("question", "answer"),
    {
        question: (question, answer)
        for question, answer, _ in reversed(REFUSED)
        if not question.startswith("author") or answer
    }.values(),
)
def test_copier_itself_stops_at_a_refused_answer(
    tmp_path: Path, template: Template, question: str, answer: str
) -> None:
    with pytest.raises(ValueError, match=f"Validation error for question '{question}'") as refusal:
        template.copy(tmp_path / "project", {question: answer})
    assert complaint(question, answer) in str(refusal.value)
    assert not (tmp_path / "project").exists()


def test_names_that_python_has_are_refused_as_slugs() -> None:
    refused = {name for name in sys.stdlib_module_names if complaint("project_slug", name.replace("_", "-"))}
    assert sys.stdlib_module_names - refused == set()
    assert [word for word in keyword.kwlist if not complaint("project_slug", word)] == []


@pytest.mark.parametrize("name", ["con", "prn", "aux", "nul", "com1", "com9", "lpt1", "lpt9"])
def test_names_that_windows_reserves_are_refused_as_slugs(name: str) -> None:
    assert "Windows" in complaint("project_slug", name)
    assert complaint("project_slug", f"{name}-service") == ""


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Order Service", "order-service"),
        ("3D Druck", "d-druck"),
        ("Ünïcode 🚀", "n-code"),
        ("日本", "my-service"),
    ],
)
def test_every_accepted_name_yields_an_acceptable_slug(name: str, slug: str) -> None:
    derived = JINJA.from_string(QUESTIONS["project_slug"]["default"]).render(project_name=name)
    assert derived == slug
    assert complaint("project_slug", derived) == ""


# ---------------------------------------------------------------- What is accepted


def text_of(tokens: list[Token]) -> str:
    """Return what a reader of rendered Markdown sees."""
    seen = ""
    for token in tokens:
        assert token.type not in ("html_inline", "html_block", "image", "link_open"), token.content
        seen += text_of(token.children or []) if token.children else token.content
    return seen


@pytest.mark.parametrize("hardened", [False, True], ids=["plain", "hardened"])
@pytest.mark.parametrize("answers", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted_text_arrives_unchanged_in_every_file(
    rendered: Callable[[Answers], Path], answers: Answers, hardened: bool
) -> None:
    project = rendered(answers | {"enable_security_hardening": hardened})

    table = tomllib.loads((project / "pyproject.toml").read_text())
    assert table["project"]["name"] == answers["project_slug"]
    assert table["project"]["description"] == answers["description"]
    assert table["project"]["authors"] == [{"name": answers["author_name"], "email": answers["author_email"]}]
    assert set(table["tool"]) == {"uv", "ruff", "mypy", "pytest"} - (set() if hardened else {"uv"})

    remembered = yaml.safe_load((project / ANSWERS_FILE).read_text())
    assert {name: remembered[name] for name in answers} == answers

    markdown = MarkdownIt().parse((project / "README.md").read_text())
    inline = [token for token in markdown if token.type == "inline"]
    assert text_of([inline[0]]) == answers["project_name"]
    assert text_of([inline[1]]) == answers["description"]

    tree = ast.parse((project / "src" / "my_service" / "__init__.py").read_text())
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert constants["TITLE"] == answers["project_name"]
    assert f"Copyright (c) {answers['author_name']}" in (project / "LICENSE").read_text().splitlines()


@pytest.mark.parametrize("license_", ["MIT", "Apache-2.0", "proprietary"])
def test_licence_names_its_owner(rendered: Callable[[Answers], Path], license_: str) -> None:
    text = (rendered(NASTY | {"license": license_}) / "LICENSE").read_text()
    if license_ == "Apache-2.0":
        assert text.lstrip().startswith("Apache License\n")
    else:
        assert NASTY["author_name"] in text


def test_running_service_describes_itself_with_the_same_text(installed: Callable[[Answers], Path]) -> None:
    with running(installed(NASTY)) as client:
        info = client.request("GET", "/openapi.json")["info"]
    assert info["title"] == NASTY["project_name"]
    assert info["description"] == NASTY["description"]


def test_accepted_text_survives_an_update(tmp_path: Path, template: Template) -> None:
    newer = Template.of_working_tree(tmp_path / "template", template.path)
    project = newer.copy(tmp_path / "project", HARDENED | NASTY)
    git(project, "init", "--quiet")
    commit_all(project)
    newer.release("9.0.0")
    update(project)
    assert git(project, "diff", "--name-only").split() == [ANSWERS_FILE]
    changed = [
        line for line in git(project, "diff", "-U0").splitlines() if line.startswith(("+ ", "+_", "+c"))
    ]
    assert changed == ["+_commit: v9.0.0"], f"the version, v{VERSION} before, is all that changed"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
def test_any_description_that_is_accepted_is_the_same_in_toml(description: str) -> None:
    assume(complaint("description", description) == "")
    source = (ROOT / "template" / "pyproject.toml.jinja").read_text()
    answers = {
        **{name: question.get("default") for name, question in QUESTIONS.items() if not name.startswith("_")},
        **NASTY,
        **PLAIN,
        "package_name": "my_service",
        "description": description,
    }
    assert tomllib.loads(JINJA.from_string(source).render(answers))["project"]["description"] == description
