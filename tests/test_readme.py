"""The documents: their commands are commands, their recipes exist, and their links lead somewhere."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from scaffold import HARDENED, HARDENED_TPM, PLAIN, Answers

from scripts.worktree_copy import ROOT, listed_files

# Documents of a generated service are looked at where they are read: in a render.
DOCUMENTS = [path for path in listed_files(ROOT) if path.suffix == ".md" and path.parts[0] != "template"]
SERVICES = {"plain": PLAIN, "hardened": HARDENED, "tpm": HARDENED_TPM}
FIRST = "python3 -m pip install -q --target .tools uv && .tools/bin/uv run just demo"
SECOND = "python3 -m pip install -q --target .tools uv && .tools/bin/uv run just test"


def tokens(path: Path) -> Iterator[Token]:
    """Walk through all tokens of a document."""
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return [token.content for token in tokens(path) if token.type == "fence" and token.info == language]


def code(path: Path) -> str:
    """Return everything that is set as code, a line each."""
    return "\n".join(token.content for token in tokens(path) if token.type in ("fence", "code_inline"))


def links(path: Path) -> list[str]:
    """Return the relative links, to files and folders."""
    found = [
        str(token.attrGet("href") or token.attrGet("src"))
        for token in tokens(path)
        if token.type in ("link_open", "image")
    ]
    return [link.split("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)]


def commands(path: Path) -> list[list[str]]:
    """Return the words of each command in the shell blocks; a placeholder in angle brackets is one word."""
    text = "".join(re.sub(r"<[^<>\n]+>", "PLACEHOLDER", block) for block in blocks(path, "sh"))
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines for part in line.split("&&") if (words := part.split("#")[0].split())]


def recipes_of(folder: Path) -> set[str]:
    """Ask `just` itself what a justfile knows."""
    listed = subprocess.run(["just", "--summary"], cwd=folder, check=True, capture_output=True, text=True)
    return set(listed.stdout.split())


def named_recipes(text: str) -> set[str]:
    """Return the recipes that `just …` is followed by; options and folders are not recipes."""
    return set(re.findall(r"\bjust ([a-z][a-z-]*)\b(?!\.)", text))


def test_readme_opens_with_one_sentence_and_the_two_commands() -> None:
    top = list(MarkdownIt().parse((ROOT / "README.md").read_text(encoding="utf-8")))
    kinds = [token.type for token in top if not token.type.endswith("_close")]
    assert kinds[:6] == ["heading_open", "inline", "paragraph_open", "inline", "fence", "fence"]
    sentence = next(token.content for token in top[3:] if token.type == "inline")
    assert len(re.findall(r"[.!?](\s|$)", sentence)) == 1
    assert [token.content.strip() for token in top if token.type == "fence"][:2] == [FIRST, SECOND]


def test_commands_of_the_readme_are_recipes_of_the_root() -> None:
    known = recipes_of(ROOT)
    assert {FIRST.split()[-1], SECOND.split()[-1]} <= known
    assert {"demo", "test", "check", "benchmark", "release"} <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_recipes_that_a_document_names_exist(rendered: Callable[[Answers], Path], document: Path) -> None:
    known = recipes_of(ROOT) | recipes_of(rendered(HARDENED))
    assert named_recipes(code(ROOT / document)) <= known


def test_search_for_recipes_finds_them() -> None:
    assert named_recipes("uv run just check test; just no-such x; justfile") == {"check", "no-such"}
    assert {"demo", "test", "update"} <= named_recipes(code(ROOT / "README.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    here = (ROOT / document).parent
    assert [link for link in links(ROOT / document) if not (here / link).exists()] == []


@pytest.mark.parametrize("answers", SERVICES.values(), ids=SERVICES.keys())
def test_links_of_a_generated_service_lead_somewhere(
    rendered: Callable[[Answers], Path], answers: Answers
) -> None:
    project = rendered(answers)
    documents = sorted(project.rglob("*.md"))
    assert project / "README.md" in documents
    dead = [
        f"{path.relative_to(project)}: {link}"
        for path in documents
        for link in links(path)
        if not (path.parent / link).exists()
    ]
    assert dead == []


def test_search_for_links_finds_them() -> None:
    assert "LICENSE" in links(ROOT / "README.md")
    assert len({link for document in DOCUMENTS for link in links(ROOT / document)}) > 20


def test_files_that_comments_name_exist() -> None:
    """`copier.yml`, scripts and tests send their reader to documents."""
    named: dict[str, Path] = {}
    for path in listed_files(ROOT):
        if path.parts[0] != "template" and path.suffix in (".py", ".yml", ".toml", ".json", ""):
            text = (ROOT / path).read_text(encoding="utf-8")
            named |= dict.fromkeys(re.findall(r"\bdocs/[\w./-]+\.md\b", text), path)
    assert "docs/decisions/0003-the-hook-needs-trust.md" in named, "control"
    there = {path.as_posix().removeprefix("template/").removesuffix(".jinja") for path in listed_files(ROOT)}
    assert {name: path for name, path in named.items() if name not in there} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_shell_blocks_parse(document: Path) -> None:
    for block in blocks(ROOT / document, "sh"):
        text = re.sub(r"<[^<>\n]+>", "PLACEHOLDER", block)
        checked = subprocess.run(["sh", "-n"], input=text, check=False, capture_output=True, text=True)
        assert checked.returncode == 0, f"{block}\n{checked.stderr}"


def test_options_of_copier_are_known_to_it() -> None:
    found = 0
    for words in (
        words for document in DOCUMENTS for words in commands(ROOT / document) if "copier" in words
    ):
        subcommand = words[words.index("copier") + 1]
        shown = subprocess.run(
            [sys.executable, "-m", "copier", subcommand, "--help"], check=True, capture_output=True, text=True
        )
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            found += 1
            assert re.search(rf"(?<!\S){option}\b", shown.stdout), words
    assert found > 5


def test_options_of_the_library_are_known_to_it() -> None:
    package = ROOT / "template/libs/security/src/service_security"
    parts = ("cli.py", "command_options.py", "key_command.py", "store/command.py")
    source = "".join((package / part).read_text(encoding="utf-8") for part in parts)
    known = r"--[a-z-]+|db|init|info|verify|backup|restore|import|export|keys|status|rotate|doctor"
    found = 0
    for words in (words for document in DOCUMENTS for words in commands(ROOT / document)):
        if "service_security" in words:
            found += 1
            after = words[words.index("service_security") + 1 :]
            expected = [word for word in after if re.fullmatch(known, word)]
            assert [word for word in expected if f'"{word}"' not in source] == []
    assert found >= 1


def test_manifests_of_the_guide_on_keys_deliver_what_its_source_names() -> None:
    guide = ROOT / "template/docs/security/KEYS.md"
    pod, secret = (yaml.safe_load(block) for block in blocks(guide, "yaml"))
    (item,) = secret["spec"]["data"]
    assert item["remoteRef"]["decodingStrategy"] == "Base64"
    (volume,) = pod["spec"]["volumes"]
    assert volume["secret"]["secretName"] == secret["spec"]["target"]["name"]
    (container,) = pod["spec"]["containers"]
    (mount,), (setting,) = container["volumeMounts"], container["env"]
    assert setting["name"] == "SERVICE_KEY_SOURCE"
    assert setting["value"] == f"secret:{mount['mountPath']}/{item['secretKey']}"
    assert volume["secret"]["defaultMode"] & 0o222 == 0


@pytest.mark.parametrize("document", ["README.md", "docs/integration.md"])
def test_trust_lists_are_copiers_settings(document: str) -> None:
    settings = [yaml.safe_load(block) for block in blocks(ROOT / document, "yaml")]
    assert settings
    assert all(set(one) == {"trust"} and one["trust"][0].endswith("/") for one in settings)


def test_least_version_of_copier_is_the_one_that_is_enforced() -> None:
    least = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))["_min_copier_version"]
    assert f"copier {least} or later" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_tool_of_the_root_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    requirements = [name for group in project["dependency-groups"].values() for name in group]
    pinned = {re.split(r"\[|==", requirement)[0] for requirement in requirements}
    text = (ROOT / "docs/decisions/0007-tools-of-the-root.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| ([a-z][a-z0-9-]*) \|", text, re.MULTILINE)) - {"tool"}
    assert explained == pinned


@pytest.mark.parametrize(
    "decision", sorted(path for path in DOCUMENTS if path.parts[:2] == ("docs", "decisions")), ids=str
)
def test_decisions_fit_on_one_screen(decision: Path) -> None:
    text = (ROOT / decision).read_text(encoding="utf-8")
    assert text.count("\n") <= 50
    for part in ("**Context.**", "**Decision.**", "**Consequences.**"):
        assert text.count(part) == 1, part
