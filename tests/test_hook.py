"""The hook deletes what the template shipped and the answers leave unused, and nothing else.

Most tests run the real program on a small template of their own. Where the promise is that a file survives,
the same test also runs a copy of the program with the guard taken out, and must then see the file destroyed.
"""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from scaffold import (
    HARDENED,
    PLAIN,
    ROOT,
    VERSION,
    Shared,
    Template,
    commit_all,
    contents,
    git,
    update,
)

HOOK = ROOT / "hooks" / "post_gen.py"
PIECES: dict[str, Any] = {
    "gadget": {
        "answer": "gadget-enabled",
        "requires": [],
        "files": ["gadget.yml", "lib/gadget/code.py", "lib/gadget/deep/more.py"],
        "folders": ["lib/gadget", "lib/gadget/deep"],
    },
    "dial": {"answer": "dial-enabled", "requires": ["gadget"], "files": ["dial.py"], "folders": []},
    "needle": {"answer": "needle-enabled", "requires": ["dial"], "files": ["needle.py"], "folders": []},
}
SHIPPED = {path: f"shipped {path}\n" for piece in PIECES.values() for path in piece["files"]}
ON = {"enable-security-hardening": True, "gadget-enabled": True, "dial-enabled": True, "needle-enabled": True}
OFF = ON | {"gadget-enabled": False}

# What each guard of the hook is, and what the program looks like without it.
GUARDS = {
    "comparison": (
        "        if info.st_size != shipped.stat().st_size or target.read_bytes() != shipped.read_bytes():\n"
        '            return "it differs from the template\'s"\n',
        "",
    ),
    "link check": (
        "    return (\n        not target.is_absolute()\n",
        "    return True\n    return (\n        not target.is_absolute()\n",
    ),
    "ordinary files": ("if not stat.S_ISREG(info.st_mode):", "if False:"),
    "empty folders": (
        "        if any(target.iterdir()):\n"
        '            return "there are other files in it"\n'
        "        target.rmdir()\n",
        "        __import__('shutil').rmtree(target)\n",
    ),
    "shipped folders": ("if not (_SHIPPED / path).is_dir():", "if False:"),
    "the flag": ('if answers.get("enable-security-hardening") != "True":', "if False:"),
}


class Hook:
    """The program beside a small template, and a project that this template was rendered into."""

    def __init__(self, place: Path, pieces: dict[str, Any] | None = None) -> None:
        self.program = place / "template" / "hooks" / "post_gen.py"
        self.shipped = place / "template" / "template"
        self.project = place / "project"
        self.program.parent.mkdir(parents=True)
        self.program.write_text(HOOK.read_text())
        (self.program.parent / "pieces.json").write_text(json.dumps(pieces or PIECES))
        for folder in (self.shipped, self.project):
            for path, text in SHIPPED.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text)

    def without(self, guard: str) -> None:
        """Take one guard out of the program."""
        present, absent = GUARDS[guard]
        source = self.program.read_text()
        assert source.count(present) == 1, f"the hook no longer contains the guard «{guard}»"
        self.program.write_text(source.replace(present, absent))

    def run(self, answers: dict[str, Any] = OFF, *, launcher: str = "") -> list[str]:
        """Run it as copier does and return the lines it said; it has to succeed."""
        command = [sys.executable, "-I", str(self.program), "--operation=update"]
        command += [f"--{name}={value}" for name, value in answers.items()]
        if launcher:
            command = [sys.executable, "-c", launcher, *command]
        done = subprocess.run(command, cwd=self.project, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        return done.stderr.splitlines()

    def exists(self, path: str) -> bool:
        """Tell whether something of that name, a dangling link included, is in the project."""
        return os.path.lexists(self.project / path)


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    """Make the program with its small template, rendered in full."""
    return Hook(tmp_path)


def guarded(guard: str) -> pytest.MarkDecorator:
    """Run a test with the guard and without it; without it the test has to see the damage."""
    return pytest.mark.parametrize(
        ("missing", "safe"), [("", True), (guard, False)], ids=["as shipped", f"without {guard}"]
    )


def arm(hook: Hook, missing: str) -> None:
    """Take out the guard that a test of `guarded` names."""
    if missing:
        hook.without(missing)


# ---------------------------------------------------------------- What goes


def test_pristine_piece_is_pruned_with_its_empty_folders_and_without_a_word(hook: Hook) -> None:
    (hook.project / "lib" / "own.py").write_text("mine")
    assert hook.run() == []
    assert sorted(contents(hook.project)) == ["lib/own.py"]
    assert not hook.exists("lib/gadget")


def test_piece_that_the_answers_keep_is_left_alone(hook: Hook) -> None:
    assert hook.run(ON) == []
    assert sorted(contents(hook.project)) == sorted(SHIPPED)


def test_second_run_has_nothing_to_do_and_nothing_to_say(hook: Hook) -> None:
    hook.run()
    before = contents(hook.project)
    assert hook.run() == []
    assert contents(hook.project) == before


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        ("gadget-enabled", []),
        ("dial-enabled", PIECES["gadget"]["files"]),
        ("needle-enabled", [*PIECES["gadget"]["files"], "dial.py"]),
    ],
)
def test_dropping_a_piece_drops_what_requires_it(hook: Hook, refused: str, left: list[str]) -> None:
    assert hook.run(ON | {refused: False}) == []
    assert sorted(contents(hook.project)) == sorted(left)


def test_answer_that_is_not_passed_drops_nothing(hook: Hook) -> None:
    assert hook.run({"enable-security-hardening": True}) == []
    assert sorted(contents(hook.project)) == sorted(SHIPPED)


def test_read_only_file_of_ours_goes(hook: Hook) -> None:
    (hook.project / "gadget.yml").chmod(0o400)
    assert hook.run() == []
    assert not hook.exists("gadget.yml")


# ---------------------------------------------------------------- What stays


@guarded("comparison")
def test_edited_file_is_kept_and_named(hook: Hook, missing: str, safe: bool) -> None:
    arm(hook, missing)
    (hook.project / "lib/gadget/code.py").write_text("shipped, then edited by its owner\n")
    said = hook.run()
    assert hook.exists("lib/gadget/code.py") is safe
    if safe:
        assert said == [
            "kept lib/gadget/code.py: it differs from the template's",
            "kept lib/gadget/: there are other files in it",
        ]
        assert not hook.exists("lib/gadget/deep"), "the rest of the piece goes"
        assert hook.run() == said, "a second run says the same and changes nothing"


@guarded("comparison")
def test_edit_that_keeps_the_length_is_seen(hook: Hook, missing: str, safe: bool) -> None:
    arm(hook, missing)
    edited = SHIPPED["gadget.yml"].replace("shipped", "SHIPPED")
    (hook.project / "gadget.yml").write_text(edited)
    hook.run()
    assert hook.exists("gadget.yml") is safe


@guarded("comparison")
def test_read_only_file_of_the_owner_is_kept(hook: Hook, missing: str, safe: bool) -> None:
    arm(hook, missing)
    (hook.project / "gadget.yml").write_text("mine\n")
    (hook.project / "gadget.yml").chmod(0o400)
    hook.run()
    assert hook.exists("gadget.yml") is safe


@guarded("comparison")
def test_git_ignored_file_under_a_name_of_ours_is_kept(hook: Hook, missing: str, safe: bool) -> None:
    arm(hook, missing)
    git(hook.project, "init", "--quiet")
    (hook.project / ".gitignore").write_text("gadget.yml\n")
    (hook.project / "gadget.yml").write_text("a secret that no diff would bring back\n")
    commit_all(hook.project)
    hook.run()
    assert hook.exists("gadget.yml") is safe


@guarded("empty folders")
@pytest.mark.parametrize("ignored", [False, True], ids=["tracked", "ignored"])
def test_users_file_in_a_pruned_folder_is_kept(hook: Hook, missing: str, safe: bool, ignored: bool) -> None:
    arm(hook, missing)
    git(hook.project, "init", "--quiet")
    (hook.project / ".gitignore").write_text("notes.txt\n" if ignored else "")
    (hook.project / "lib/gadget/deep/notes.txt").write_text("mine\n")
    commit_all(hook.project)
    assert ("notes" not in git(hook.project, "ls-files")) is ignored
    said = hook.run()
    assert hook.exists("lib/gadget/deep/notes.txt") is safe
    if safe:
        assert said == [
            "kept lib/gadget/deep/: there are other files in it",
            "kept lib/gadget/: there are other files in it",
        ]
        assert sorted(contents(hook.project / "lib")) == ["gadget/deep/notes.txt"]


@guarded("the flag")
def test_without_the_flag_nothing_is_ours(hook: Hook, missing: str, safe: bool) -> None:
    arm(hook, missing)
    before = contents(hook.project)
    assert hook.run(OFF | {"enable-security-hardening": False}) == []
    assert (contents(hook.project) == before) is safe


@guarded("shipped folders")
def test_folder_that_was_never_ours_is_kept(hook: Hook, missing: str, safe: bool) -> None:
    (hook.shipped / "lib/gadget/deep/more.py").unlink()
    (hook.shipped / "lib/gadget/deep").rmdir()
    (hook.project / "lib/gadget/deep/more.py").unlink()  # now empty: only its name looks like ours
    arm(hook, missing)
    said = hook.run()
    assert hook.exists("lib/gadget/deep") is safe
    if safe:
        assert "kept lib/gadget/deep/: this version of the template ships no such folder" in said


def test_file_that_this_version_does_not_ship_is_kept(hook: Hook) -> None:
    (hook.shipped / "gadget.yml").unlink()
    assert hook.run() == ["kept gadget.yml: this version of the template ships no such file"]
    assert hook.exists("gadget.yml")


@guarded("link check")
def test_linked_folder_is_not_followed_out_of_the_project(hook: Hook, missing: str, safe: bool) -> None:
    arm(hook, missing)
    outside = hook.project.parent / "outside"
    (hook.project / "lib").rename(outside)
    (hook.project / "lib").symlink_to(outside, target_is_directory=True)
    said = hook.run()
    assert (outside / "gadget/code.py").exists() is safe
    if safe:
        assert said[0] == "kept lib/gadget/code.py: it lies behind a link"
        assert (hook.project / "lib").is_symlink()


@guarded("link check")
@pytest.mark.parametrize("absolute", [False, True], ids=["dots", "absolute"])
def test_path_out_of_the_project_is_refused(tmp_path: Path, missing: str, safe: bool, absolute: bool) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("same\n")
    path = str(outside) if absolute else "../outside.txt"
    piece = {"answer": "gadget-enabled", "requires": [], "files": [path], "folders": []}
    hook = Hook(tmp_path, {"gadget": piece})
    (hook.shipped / "../outside.txt").write_text("same\n")
    arm(hook, missing)
    hook.run()
    assert outside.exists() is safe


@guarded("ordinary files")
def test_linked_file_is_kept_even_if_its_target_is_identical(hook: Hook, missing: str, safe: bool) -> None:
    arm(hook, missing)
    outside, link = hook.project.parent / "target", hook.project / "gadget.yml"
    text = "x" * len("../target")  # so that the link's own length is the file's, and no other check stops it
    for path in (outside, hook.shipped / "gadget.yml"):
        path.write_text(text)
    link.unlink()
    link.symlink_to("../target")
    said = hook.run()
    assert outside.read_text() == text
    assert hook.exists("gadget.yml") is safe
    if safe:
        assert said == ["kept gadget.yml: it is not an ordinary file"]


def test_link_that_leads_nowhere_or_to_itself_is_kept(hook: Hook) -> None:
    (hook.project / "gadget.yml").unlink()
    (hook.project / "gadget.yml").symlink_to("nowhere")
    (hook.project / "dial.py").unlink()
    (hook.project / "dial.py").symlink_to("dial.py")
    said = hook.run()
    assert [line for line in said if "ordinary" in line] == [
        "kept gadget.yml: it is not an ordinary file",
        "kept dial.py: it is not an ordinary file",
    ]
    assert hook.exists("gadget.yml")
    assert hook.exists("dial.py")


# ---------------------------------------------------------------- What nobody expects


def test_file_where_a_folder_is_expected(hook: Hook) -> None:
    (hook.project / "lib/gadget/code.py").unlink()
    (hook.project / "lib/gadget/deep/more.py").unlink()
    (hook.project / "lib/gadget/deep").rmdir()
    (hook.project / "lib/gadget/deep").write_text("a file now\n")
    said = hook.run()
    assert said == [
        "kept lib/gadget/deep/: it is not a folder",
        "kept lib/gadget/: there are other files in it",
    ]
    assert (hook.project / "lib/gadget/deep").read_text() == "a file now\n"


def test_folder_where_a_file_is_expected(hook: Hook) -> None:
    (hook.project / "gadget.yml").unlink()
    (hook.project / "gadget.yml").mkdir()
    assert hook.run() == ["kept gadget.yml: it is not an ordinary file"]
    assert hook.exists("gadget.yml")


def test_pipe_under_a_name_of_ours_does_not_stop_it(hook: Hook) -> None:
    (hook.project / "gadget.yml").unlink()
    os.mkfifo(hook.project / "gadget.yml")
    assert hook.run() == ["kept gadget.yml: it is not an ordinary file"]


def test_names_that_are_not_utf8(hook: Hook) -> None:
    odd = os.fsencode(hook.project / "lib/gadget") + b"/caf\xe9.txt"
    Path(os.fsdecode(odd)).write_text("mine\n")
    hook.project = hook.project.rename(os.fsdecode(os.fsencode(hook.project) + b"-\xff"))
    assert hook.run() == ["kept lib/gadget/: there are other files in it"]
    assert [os.fsencode(path.name) for path in (hook.project / "lib/gadget").iterdir()] == [b"caf\xe9.txt"]
    assert not hook.exists("gadget.yml")


# Root may write into read-only folders; giving up that right first makes it an ordinary user here.
AS_ORDINARY_USER = """
import ctypes, os, sys
if os.geteuid() == 0:
    for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; 24 is PR_CAPBSET_DROP
        ctypes.CDLL(None).prctl(24, right, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_read_only_folder_is_reported_and_not_forced(hook: Hook) -> None:
    folder = hook.project / "lib/gadget"
    (folder / "code.py").chmod(0o600)
    folder.chmod(0o500)
    said = hook.run(launcher=AS_ORDINARY_USER)
    assert said[0] == "kept lib/gadget/code.py: it cannot be read or deleted (Permission denied)"
    assert hook.exists("lib/gadget/code.py")
    assert not hook.exists("gadget.yml"), "what can be pruned is"
    folder.chmod(0o700)
    assert hook.run(launcher=AS_ORDINARY_USER) == []
    assert not hook.exists("lib/gadget")


def test_unreadable_file_is_kept(hook: Hook) -> None:
    (hook.project / "gadget.yml").chmod(0)
    assert hook.run(launcher=AS_ORDINARY_USER) == [
        "kept gadget.yml: it cannot be read or deleted (Permission denied)"
    ]
    assert hook.exists("gadget.yml")


def test_nobody_listening_does_not_turn_into_a_failure(hook: Hook) -> None:
    # `copier update 2>&1 | head -1`: a failing hook would leave the user's edits reverted.
    (hook.project / "gadget.yml").write_text("mine\n")
    command = [sys.executable, "-I", str(hook.program), *(f"--{name}={value}" for name, value in OFF.items())]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=hook.project, check=False, stderr=writer)
    os.close(writer)
    assert done.returncode == 0
    assert hook.exists("gadget.yml")
    assert not hook.exists("lib/gadget")


# ---------------------------------------------------------------- The real list, in real updates


def real_pieces() -> dict[str, Any]:
    """Read the list as it ships."""
    pieces: dict[str, Any] = json.loads((ROOT / "hooks" / "pieces.json").read_text())
    return pieces


def faults(pieces: dict[str, Any], template: Template) -> set[str]:
    """Say what is wrong with a list of pieces: nothing in it may contradict the template or itself."""
    found = set()
    shipped = template.path / "template"
    task = (template.path / "copier.yml").read_text()
    listed = [path for piece in pieces.values() for path in piece["files"]]
    found |= {f"{path} belongs to two pieces" for path in listed if listed.count(path) > 1}
    for name, piece in pieces.items():
        answer = piece["answer"]
        if f'"--{answer}={{{{ {answer.replace("-", "_")} }}}}"' not in task:
            found.add(f"{name} hangs on {answer}, which copier does not pass")
        found |= {f"{name} requires the unknown {other}" for other in set(piece["requires"]) - set(pieces)}
        if not piece["files"]:
            found.add(f"{name} owns no file")
        for path in piece["files"]:
            if not (shipped / path).is_file():
                found.add(f"{path} is not shipped")
            elif any(mark in path + (shipped / path).read_text() for mark in ("{{", "{%", "{#")):
                found.add(f"{path} holds Jinja")
            if (shipped / f"{path}.jinja").exists():
                found.add(f"{path} is rendered")
        for folder in piece["folders"]:
            inside = {f"{folder}/{path}" for path in contents(shipped / folder)}
            if not inside or inside - set(piece["files"]):
                found.add(f"{folder} does not hold files of {name} only")
    return found


def test_the_list_of_pieces_is_sound(template: Template) -> None:
    assert real_pieces()
    assert faults(real_pieces(), template) == set()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"files": []}, "tpm owns no file"),
        ({"files": ["no/such.file"]}, "no/such.file is not shipped"),
        ({"files": ["justfile.jinja"]}, "justfile.jinja holds Jinja"),
        ({"files": ["justfile"]}, "justfile is rendered"),
        ({"files": ["docker-compose.tpm.yml"] * 2}, "docker-compose.tpm.yml belongs to two pieces"),
        ({"folders": ["docs/security"]}, "docs/security does not hold files of tpm only"),
        ({"folders": ["no/such"]}, "no/such does not hold files of tpm only"),
        ({"requires": ["vault"]}, "tpm requires the unknown vault"),
        ({"answer": "tpm"}, "tpm hangs on tpm, which copier does not pass"),
    ],
)
def test_an_unsound_list_of_pieces_is_seen(template: Template, change: dict[str, Any], fault: str) -> None:
    assert fault in faults({"tpm": real_pieces()["tpm"] | change}, template)


@pytest.mark.parametrize("ci", ["github", "none"])
@pytest.mark.parametrize("hardened", [True, False], ids=["hardened", "plain"])
def test_pieces_are_gated_by_the_flag_and_by_nothing_else(
    shared: Shared, template: Template, hardened: bool, ci: str
) -> None:
    # Without the hook: what copier itself renders. A second gate on a piece's file could contradict the hook.
    answers = {"enable_security_hardening": hardened, "ci_provider": ci}
    superset = contents(shared.render(template, answers, skip_tasks=True))
    for piece in real_pieces().values():
        for path in piece["files"]:
            assert (path in superset) is hardened, path
            if hardened:
                assert superset[path] == (template.path / "template" / path).read_bytes(), path


def test_hook_runs_on_the_oldest_python_that_copier_runs_on() -> None:
    tree = ast.parse(HOOK.read_text(), feature_version=(3, 10))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported <= sys.stdlib_module_names - {"tomllib"}


WATCHER = """
import json, os, sys
def _watch(when):
    state = {"when": when, "cwd": os.getcwd(), "arguments": sys.argv[1:], "piece": os.path.lexists(%(piece)r),
             "edits": os.path.exists("README.md") and "A line of the owner" in open("README.md").read()}
    open(%(log)r, "a").write(json.dumps(state) + "\\n")
import atexit
_watch("before")
atexit.register(_watch, "after")
"""


def test_each_of_the_three_passes_of_an_update_prunes_and_edits_come_back(
    tmp_path: Path, template: Template
) -> None:
    piece = "libs/security/tests/test_tpm_report.py"
    log = tmp_path / "log.jsonl"
    watched = Template.of_working_tree(tmp_path / "template", template.path)
    program = watched.path / "hooks" / "post_gen.py"
    docstring, marker, code = program.read_text().partition("import json\n")
    watch = textwrap.dedent(WATCHER) % {"piece": piece, "log": str(log)}
    program.write_text(docstring + watch + marker + code)
    watched.release("9.0.0")
    watched.release("9.1.0")

    project = watched.copy(tmp_path / "project", HARDENED, vcs_ref="v9.0.0")
    git(project, "init", "--quiet")
    with (project / "README.md").open("a") as readme:
        readme.write("\nA line of the owner.\n")
    commit_all(project)
    log.unlink()
    update(project)

    passes = [json.loads(line) for line in log.read_text().splitlines()]
    assert [state["when"] for state in passes] == ["before", "after"] * 3
    assert all("--operation=update" in state["arguments"] for state in passes)
    assert [state["piece"] for state in passes] == [True, False] * 3, "rendered, then pruned, three times"
    places = [Path(state["cwd"]) for state in passes[::2]]
    assert places[1] == project
    assert len(set(places)) == 3
    assert not any(state["edits"] for state in passes), "copier puts the edits back only after the hook"
    assert "A line of the owner" in (project / "README.md").read_text()
    assert f"v{VERSION}" not in (project / ".copier-answers.yml").read_text()


def test_hook_says_nothing_in_an_ordinary_copy(
    tmp_path: Path, template: Template, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, answers in {"plain": PLAIN, "hardened": HARDENED}.items():
        template.copy(tmp_path / name, answers)
    assert capfd.readouterr() == ("", "")
