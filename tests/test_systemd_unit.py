"""The unit as a file: what systemd's own checkers say of it, and that it allows what the container does.

Whether it runs, and keeps its promises, is tried in tests/containers/test_systemd.py.
"""

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from scaffold import HARDENED, HARDENED_TPM, Answers, require

UNIT = "deploy/my-service.service"
OVERLAY = "deploy/tpm.conf"
LONGEST = HARDENED | {"project_name": "A" * 40}

# Tenths: what remains is the network, which a service needs (docs/security/DEPLOYMENT.md).
EXPOSURE = 9


def settings(path: Path) -> dict[str, list[str]]:
    """Return what a unit sets: all values of each name, in their order, whatever the section."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in path.read_text("utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def analyze(command: str, unit: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze on a file; the caller looks at the exit code."""
    require(shutil.which("systemd-analyze") is not None, "systemd-analyze")
    words = ["systemd-analyze", command, *options, str(unit)]
    return subprocess.run(words, check=False, capture_output=True, text=True)


def is_within(unit: Path, tenths: int) -> bool:
    """Tell whether the exposure of a unit is at most that many tenths."""
    done = analyze("security", unit, "--offline=true", f"--threshold={tenths}", "--no-pager")
    shown = re.search(r"exposure level for \S+: (\d+)\.(\d)", done.stdout)
    assert shown is not None, done.stdout + done.stderr
    return done.returncode == 0


def test_exposure_is_the_least_that_a_network_service_can_have(
    rendered: Callable[[Answers], Path], tmp_path: Path
) -> None:
    unit = rendered(HARDENED) / UNIT
    assert is_within(unit, EXPOSURE)
    assert not is_within(unit, EXPOSURE - 1), "control: it is counted"
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n", "utf-8")
    assert not is_within(bare, 90), "control: a unit with no option is far from it"


@pytest.mark.parametrize(
    "name",
    ["CapabilityBoundingSet", "IPAddressDeny", "PrivateUsers", "RestrictNamespaces", "SystemCallFilter"],
)
def test_figure_rises_without_an_option(
    rendered: Callable[[Answers], Path], tmp_path: Path, name: str
) -> None:
    """The control for the figure: an option that systemd no longer understands would not lower it."""
    lines = (rendered(HARDENED) / UNIT).read_text("utf-8").splitlines(keepends=True)
    unit = tmp_path / "my-service.service"
    unit.write_text("".join(line for line in lines if not line.startswith(f"{name}=")), "utf-8")
    assert not is_within(unit, EXPOSURE)


@pytest.mark.parametrize("answers", [HARDENED, HARDENED_TPM], ids=["unit", "with the overlay"])
def test_systemd_finds_nothing_wrong(
    rendered: Callable[[Answers], Path], tmp_path: Path, answers: Answers
) -> None:
    unit = tmp_path / "my-service.service"
    text = (rendered(answers) / UNIT).read_text("utf-8")
    # Where it is not installed, the program is missing. Nothing else may be said.
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE), "utf-8")
    if answers is HARDENED_TPM:
        overlay = tmp_path / "my-service.service.d"
        overlay.mkdir()
        shutil.copy(rendered(answers) / OVERLAY, overlay)
    done = analyze("verify", unit)
    assert (done.returncode, done.stderr) == (0, "")

    unit.write_text(unit.read_text("utf-8") + "NoSuchOption=yes\n", "utf-8")
    assert "NoSuchOption" in analyze("verify", unit).stderr, "control"


def test_limits_are_those_of_the_container(rendered: Callable[[Answers], Path]) -> None:
    unit = settings(rendered(HARDENED) / UNIT)
    compose = (rendered(HARDENED) / "docker-compose.yml").read_text("utf-8")
    service: dict[str, Any] = yaml.safe_load(compose)["services"]["service"]
    assert unit["MemoryMax"] == [str(service["mem_limit"]).upper()]
    assert service["memswap_limit"] == service["mem_limit"]
    assert unit["MemorySwapMax"] == ["0"]
    assert unit["TasksMax"] == [str(service["pids_limit"])]
    assert unit["CPUQuota"] == [f"{float(service['cpus']):.0%}"]
    assert unit["LimitCORE"] == [str(service["ulimits"]["core"])]
    assert unit["LimitNOFILE"] == [str(service["ulimits"]["nofile"]["hard"])]
    assert unit["TimeoutStopSec"] == [service["stop_grace_period"].removesuffix("s")]
    assert "SERVICE_CORE_DUMPS=forbid" in unit["Environment"]
    assert service["environment"]["SERVICE_CORE_DUMPS"] == "forbid"


def test_longest_slug_gives_a_name_that_a_user_may_have(rendered: Callable[[Answers], Path]) -> None:
    (path,) = (rendered(LONGEST) / "deploy").glob("*.service")
    unit = settings(path)
    assert path.stem == "a" * 40
    assert unit["User"] == [f"_{'a' * 30}"]
    assert unit["StateDirectory"] == ["a" * 40]


def test_paths_agree_with_each_other(rendered: Callable[[Answers], Path]) -> None:
    unit = settings(rendered(HARDENED) / UNIT)
    environment = dict(each.split("=", 1) for each in unit["Environment"])
    assert environment["SERVICE_DATA_DIR"] == f"/var/lib/{unit['StateDirectory'][0]}"
    name, _, file = unit["LoadCredential"][0].partition(":")
    assert environment["SERVICE_KEY_SOURCE"] == f"credential:{name}"
    assert unit["AssertFileNotEmpty"] == [file]
    prefix = unit["ExecStart"][0].partition("/bin/")[0]
    assert prefix in " ".join(unit["BindReadOnlyPaths"]).split()
    assert f"+{prefix}" in unit["ExecPaths"][0].split()
    assert f"+{environment['SERVICE_DATA_DIR']}" in unit["NoExecPaths"][0].split()


def test_overlay_is_there_with_the_tpm_only(rendered: Callable[[Answers], Path]) -> None:
    assert (rendered(HARDENED_TPM) / OVERLAY).exists()
    assert not (rendered(HARDENED) / OVERLAY).exists()
