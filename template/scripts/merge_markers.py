"""Find what a conflicting `copier update` left behind: merge markers and `*.rej` files.

Looks at tracked and at new files, not at ignored ones, because an update ends with status 0 even
when parts of it could not be merged.
"""

import subprocess
import sys
from pathlib import Path

# Put together here, so that this file is not a finding.
_MARKERS = tuple(sign * 7 + b" " for sign in (b"<", b">", b"|"))


def findings(root: Path) -> list[str]:
    """Return what was found below a folder, as `path:line: what`."""
    found = []
    for name in _files(root):
        path = root / name
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix == ".rej":
            found.append(f"{name}: a change that could not be applied")
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if line.startswith(_MARKERS):
                found.append(f"{name}:{number}: a merge marker")
    return found


def _files(root: Path) -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    return sorted({name.decode(errors="surrogateescape") for name in listing.split(b"\0") if name})


def main() -> int:
    """Print the findings; return the exit status."""
    try:
        found = findings(Path.cwd())
    except (FileNotFoundError, subprocess.CalledProcessError):
        print("Merge markers can only be looked for in a git repository: run `git init` first.")
        return 1
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
