"""`just release VERSION`: check that everything is ready, then tag; on request write the task-free channel.

Every check comes before the first change. A refusal is a sentence that says what to do.

Exit status: 0, 1 for a refusal.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import yaml

from scripts.task_free import ExportError, check_destination, export, without_tasks
from scripts.worktree_copy import ROOT, git

_VERSION = re.compile(r"\A(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)\Z")
_ADVISORIES = Path("template/docs/security/ADVISORIES.md")
_SECURITY_PARTS = ("Affected", "Not affected", "Do", "Files")


class ReleaseError(Exception):
    """Not ready; nothing was changed."""


def parse_version(text: str) -> tuple[int, int, int]:
    """Return the numbers of a final version, X.Y.Z."""
    match = _VERSION.match(text)
    if match is None:
        raise ReleaseError(f"{text!r} is not a version. Give three numbers like 1.2.3, without a v.")
    return int(match[1]), int(match[2]), int(match[3])


def check_version(root: Path, version: str) -> None:
    """Refuse a version that is not newer than every tag, or not the project's."""
    wanted = parse_version(version)
    tags = [tag for tag in git(root, "tag", "--list", "v*").split() if _VERSION.match(tag[1:])]
    newest = max(tags, key=lambda tag: parse_version(tag[1:]), default=None)
    if newest is not None and wanted <= parse_version(newest[1:]):
        raise ReleaseError(f"{version} is not greater than the newest tag, {newest}. Choose a greater one.")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if project["version"] != version:
        raise ReleaseError(
            f"pyproject.toml names version {project['version']}. Set it to {version} and commit."
        )


def check_tree(root: Path) -> None:
    """Refuse what a tag would not hold, and what is not the main line."""
    if git(root, "branch", "--show-current").strip() != "main":
        raise ReleaseError("Releases are made on the branch main. Switch to it.")
    changed = git(root, "status", "--porcelain", "--untracked-files=all").splitlines()
    if changed:
        raise ReleaseError(
            f"{len(changed)} files are not committed, {changed[0][3:]} among them. Commit them."
        )


def check_changelog(text: str, version: str) -> None:
    """Refuse a changelog without a dated section of this version that begins with its security part."""
    found = re.search(rf"^## {re.escape(version)} - (\d{{4}}-\d{{2}}-\d{{2}})$", text, re.MULTILINE)
    if found is None or not _is_date(found[1]):
        raise ReleaseError(
            f"CHANGELOG.md has no dated section of this version. Head it `## {version} - YYYY-MM-DD`."
        )
    section = re.split(r"^## ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    parts = re.split(r"^### (.+)$", section, flags=re.MULTILINE)
    if len(parts) < 3 or parts[1].strip() != "Security":
        raise ReleaseError(f"The section {version} of CHANGELOG.md must begin with `### Security`.")
    missing = [part for part in _SECURITY_PARTS if f"**{part}:**" not in parts[2]]
    if missing and parts[2].strip() != "None.":
        raise ReleaseError(
            f"The security part of {version} in CHANGELOG.md lacks **{missing[0]}:** and is not `None.`"
            " The form is in docs/advisories.md."
        )


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def check_advisories(root: Path, version: str) -> None:
    """Refuse a release of which the generated services' own page says nothing."""
    text = (root / _ADVISORIES).read_text(encoding="utf-8")
    if re.search(rf"(?<![\d.]){re.escape(version)}(?!\.?\d)", text) is None:
        raise ReleaseError(f"{_ADVISORIES} does not mention {version}. Add its line, even if it says `none`.")


def check_kept_answers(root: Path, version: str) -> None:
    """Refuse a release whose answers later versions could not be tested with."""
    folder = root / "tests" / "releases" / version
    answers = [*folder.glob("*.yml"), *folder.glob("*.yaml"), *folder.glob("*.json")]
    if not answers or not all(yaml.safe_load(path.read_text(encoding="utf-8")) for path in answers):
        raise ReleaseError(f"tests/releases/{version}/ holds no answers. Keep those of this release there.")


def check_identity(root: Path) -> None:
    """Refuse before the tests what git would refuse after them."""
    if not git(root, "var", "GIT_COMMITTER_IDENT", check=False, as_user=True):
        raise ReleaseError("Git does not know who you are. Set user.name and user.email.")


def check_everything(root: Path, version: str, channel: Path | None) -> None:
    """Raise the first reason not to release."""
    check_version(root, version)
    check_tree(root)
    check_identity(root)
    check_changelog((root / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    check_advisories(root, version)
    check_kept_answers(root, version)
    if channel is not None:
        without_tasks((root / "copier.yml").read_text(encoding="utf-8"))
        check_destination(channel, f"v{version}")


def run_recipes(root: Path) -> None:
    """Run `just check` and `just test`, and refuse if they fail or leave something behind."""
    commit = git(root, "rev-parse", "HEAD")
    for recipe in ("check", "test"):
        print(f"just {recipe}", flush=True)
        if subprocess.run(["uv", "run", "just", recipe], cwd=root, check=False).returncode != 0:
            raise ReleaseError(f"`just {recipe}` failed. Mend that first.")
    check_tree(root)
    if git(root, "rev-parse", "HEAD") != commit:
        raise ReleaseError("The branch has moved while the tests ran. Start again.")


def release(root: Path, version: str, channel: Path | None, *, skip_tests: bool) -> None:
    """Check, tag, export."""
    check_everything(root, version, channel)
    if skip_tests:
        print("`just check` and `just test` are skipped", flush=True)
    else:
        run_recipes(root)
    tag = f"v{version}"
    git(root, "tag", "--annotate", tag, "--message", f"Bartizan {version}", as_user=True)
    if channel is not None:
        try:
            export(root, channel, tag)
        except BaseException:
            git(root, "tag", "--delete", tag)
            raise
        print(f"Wrote {tag} without tasks to {channel.resolve()}")
    print(f"Tagged {tag}. Publish it with: git push origin main {tag}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Release the checkout that this file is part of."""
    parser = argparse.ArgumentParser(prog="just release", description="Check everything, then tag.")
    parser.add_argument("version", metavar="VERSION", help="three numbers, like 1.2.3")
    parser.add_argument("--export", metavar="DIR", type=Path, help="also write the task-free channel there")
    parser.add_argument("--skip-tests", action="store_true", help="leave out `just check` and `just test`")
    options = parser.parse_args(arguments)
    try:
        release(ROOT, options.version, options.export, skip_tests=options.skip_tests)
    except (ReleaseError, ExportError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"`{' '.join(error.cmd)}` failed: {str(error.stderr).strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
