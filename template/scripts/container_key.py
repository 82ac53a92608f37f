"""Make the key of the container, unless there is one; `just up` runs this before it starts it.

The key is a file that compose mounts, with the owner and the mode that it has here, and user 65532
of the container has to read it. So everybody may read the file, and nobody but the owner of its
folder gets at it.

With `--lost` a new key is made although there are records of a lost one: for `keys recover`.
"""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

KEY = Path("secrets/container.key")
KEY_BYTES = 32

# The image's own interpreter looks, because the folder of a volume belongs to root on this machine.
_LOOK = "import os, sys; sys.exit(any(name.startswith('envelope') for name in os.listdir('/data')))"


class KeyMissingError(Exception):
    """There are records, and not the key for them."""


def make_key(*, lost: bool) -> None:
    """Make the key, whole or not at all; one that is there stays as it is.

    Args:
        lost: Make it although there are records of another key.

    Raises:
        KeyMissingError: There is an envelope in the volume, which another key has to open.
        OSError: It cannot be written.
        subprocess.CalledProcessError: docker compose does not know this project.
    """
    if os.path.lexists(KEY):
        return
    image, volume = _names()
    if not lost and _holds_envelope(image, volume):
        raise KeyMissingError(
            f"{KEY} is missing, and the volume {volume} has records of it. Put your copy of the "
            f"key back, with `install -m 0444 COPY {KEY}`. If there is none, "
            "docs/security/DEPLOYMENT.md says how the recovery phrase opens them. "
            "Nothing was changed."
        )
    KEY.parent.mkdir(exist_ok=True)
    KEY.parent.chmod(0o700)
    new = KEY.with_name(f".{KEY.name}.{os.getpid()}")
    try:
        new.touch(0o600, exist_ok=False)
        new.write_bytes(secrets.token_bytes(KEY_BYTES))
        new.chmod(0o444)
        os.link(new, KEY)  # fails if somebody else was quicker, and never replaces a key
    finally:
        new.unlink(missing_ok=True)
    print(f"Made {KEY}. Keep a copy of it elsewhere.")


def _names() -> tuple[str, str]:
    done = _docker("compose", "config", "--format", "json")
    done.check_returncode()
    project = json.loads(done.stdout)
    return project["services"]["service"]["image"], project["volumes"]["data"]["name"]


def _holds_envelope(image: str, volume: str) -> bool:
    if _docker("volume", "inspect", volume).returncode != 0:
        return False
    looked = _docker(
        *("run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges", "--volume", f"{volume}:/data:ro"),
        *("--entrypoint", "/app/.venv/bin/python", image, "-I", "-B", "-c", _LOOK),
    )
    return looked.returncode != 0  # what cannot be looked into may have one


def _docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], check=False, capture_output=True, text=True)


def main() -> int:
    """Make the key and return the exit status."""
    try:
        make_key(lost=sys.argv[1:] == ["--lost"])
    except KeyMissingError as error:
        print(error, file=sys.stderr)
    except FileNotFoundError as error:
        print(f"{error.filename} is not on this machine.", file=sys.stderr)
    except OSError as error:
        print(f"{KEY} cannot be made: {error.strerror}.", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"docker compose config failed: {error.stderr.strip()}", file=sys.stderr)
    else:
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
