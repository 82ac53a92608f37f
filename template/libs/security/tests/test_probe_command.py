"""The command of the security probe, with a ``docker`` command that says what the tests want."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from probe_fake_docker import (
    NAME,
    NUMBER,
    FakeDocker,
    answer,
    make,
    order,
    stopped,
)
from probe_recorded import ANSWER, IMAGE, NETWORK, VOLUME
from probe_sample import good_container

TOP = Path(__file__).parents[1]


@pytest.fixture
def docker(tmp_path: Path) -> FakeDocker:
    """The command, which describes a service that keeps all promises."""
    return make(tmp_path / "bin")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder to run the probe in."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def run(
    project: Path, docker: FakeDocker | None, *arguments: str, path: str = ""
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-m", "security_probe", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(TOP), "PATH": path or str(docker and docker.folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


QUICK = ("--no-rebuild", "--keep-running")


def test_good_service_keeps_what_was_tried_and_a_report_is_written(
    docker: FakeDocker, project: Path
) -> None:
    done = run(project, docker, *QUICK, "--json", "probe.json")
    assert (done.returncode, "34 of 36 points tried: all hold." in done.stdout) == (0, True), done
    text = (project / "reports" / "security-probe.md").read_text()
    assert NAME in text
    assert IMAGE["Id"] in text
    assert "29.0.0" in text
    assert len(json.loads((project / "probe.json").read_text())["points"]) == 36
    assert "Reading the image" in done.stderr
    assert docker.asked_for("stop") == docker.asked_for("compose", "build") == 0


def test_service_of_the_project_is_found_through_compose(docker: FakeDocker, project: Path) -> None:
    assert run(project, docker, *QUICK).returncode == 0
    assert ["compose", "ps", "--quiet", "service"] in docker.asked()
    assert ["container", "inspect", NUMBER] in docker.asked()


def test_container_is_found_by_its_name(docker: FakeDocker, project: Path) -> None:
    assert run(project, docker, NAME, *QUICK).returncode == 0
    assert docker.asked_for("compose") == 0
    assert ["container", "inspect", NAME] in docker.asked()


def test_everything_is_tried_unless_told_otherwise(docker: FakeDocker, project: Path) -> None:
    before = [answer("container", "inspect", out=[good_container()], once=True) for _ in range(2)]
    docker.says(*before, answer("container", "inspect", out=[stopped()], once=True))
    done = run(project, docker)
    assert (done.returncode, "36 of 36 points tried: all hold." in done.stdout) == (0, True), done
    lines = docker.asked()
    assert order(lines, "compose", "build") < order(lines, "tag") < order(lines, "stop")
    assert order(lines, "stop") < order(lines, "start")
    assert f"Stopping {NAME}, and starting it again" in done.stderr


def test_container_made_to_read_files_is_removed_with_its_volumes(
    docker: FakeDocker, project: Path
) -> None:
    run(project, docker, *QUICK)
    (made,) = [line for line in docker.asked() if line[0] == "create"]
    name = made[made.index("--name") + 1]
    assert ["rm", "--force", "--volumes", name] in docker.asked()
    assert ["export", name] in docker.asked()
    assert made[made.index("--network") + 1] == "none"
    assert IMAGE["Id"] in made


def test_volume_is_found_by_its_name_and_network_by_its_number(
    docker: FakeDocker, project: Path
) -> None:
    run(project, docker, *QUICK)
    assert [line for line in docker.asked() if line[0] in ("volume", "network")] == [
        ["volume", "inspect", VOLUME["Name"]],
        ["network", "inspect", NETWORK["Id"]],
    ]


@pytest.mark.parametrize(
    ("said", "point"),
    [
        (answer("volume", "inspect", status=1, complaint="no such volume"), 25),
        (answer("volume", "inspect", out="<html>"), 25),
        (answer("network", "inspect", status=1, complaint="no such network"), 23),
        (answer("network", "inspect", out="[]"), 23),
    ],
)
def test_volume_or_network_that_the_engine_does_not_show_fails_its_point(
    docker: FakeDocker, project: Path, said: dict[str, Any], point: int
) -> None:
    docker.says(said)
    done = run(project, docker, *QUICK)
    assert (done.returncode, f"{point} fails" in done.stdout) == (1, True), done.stdout
    assert "33 hold, 1 fail." in done.stdout


def test_fault_ends_with_status_1_and_is_told(docker: FakeDocker, project: Path) -> None:
    container = good_container()
    container["HostConfig"]["Privileged"] = True
    docker.says(answer("container", "inspect", out=[container]))
    done = run(project, docker, *QUICK)
    assert done.returncode == 1
    assert "20 fails" in done.stdout
    assert "The container is privileged." in done.stdout
    assert "### 20. Not privileged" in (project / "reports" / "security-probe.md").read_text()


def test_program_inside_gets_its_flags_from_the_entry_point(
    docker: FakeDocker, project: Path
) -> None:
    run(project, docker, *QUICK)
    (line,) = [line for line in docker.asked() if line[0] == "exec"]
    python = "/app/.venv/bin/python"
    assert line == ["exec", "-i", NUMBER, python, "-I", "-B", "-", "-I", "-B", "-u"]


def test_plain_image_is_asked_by_whatever_python_it_has(docker: FakeDocker, project: Path) -> None:
    container = good_container()
    container["Config"] |= {"Entrypoint": None, "Cmd": ["python", "-m", "service"]}
    docker.says(
        answer("container", "inspect", out=[container]),
        answer("exec", "-i", NUMBER, "python3", status=127, complaint="no such file"),
    )
    done = run(project, docker, *QUICK)
    assert (done.returncode, "2 fails" in done.stdout, "31 holds" in done.stdout) == (1, True, True)
    assert [line[3] for line in docker.asked() if line[0] == "exec"] == ["python3", "python"]


def test_container_without_python_fails_and_nothing_crashes(
    docker: FakeDocker, project: Path
) -> None:
    docker.says(answer("exec", status=126, complaint="\x1b[31mexec failed: no such file\n"))
    done = run(project, docker, *QUICK)
    assert done.returncode == 1
    assert "exec failed: no such file" in done.stdout
    assert "\x1b" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "out", ["", "{}", "[]", "not json", '{"machine": 1}', "\udc80".encode("utf-8", "surrogatepass")]
)
def test_answer_that_is_none_fails_the_points_that_need_one(
    docker: FakeDocker, project: Path, out: str | bytes
) -> None:
    docker.says(answer("exec", out=out))
    done = run(project, docker, *QUICK)
    assert done.returncode == 1
    assert "no valid answer" in done.stdout
    assert "Traceback" not in done.stderr


NOT_PROBED: list[tuple[str, dict[str, Any], str]] = [
    ("no engine", answer("version", status=1, complaint="Cannot connect"), "docker version"),
    ("client alone", answer("version", out="\n"), "No container engine answers"),
    ("no project", answer("compose", status=14, complaint="no configuration file"), "name a cont"),
    ("nothing runs", answer("compose", "ps", out=""), "just up"),
    ("no container", answer("container", "inspect", status=1), "docker ps --all"),
    ("not json", answer("container", "inspect", out="<html>"), "cannot be read"),
    ("no list", answer("container", "inspect", out="{}"), "does not tell"),
    ("no image", answer("image", "inspect", status=1, complaint="No such image"), "just up"),
]


@pytest.mark.parametrize(
    ("said", "words"), [row[1:] for row in NOT_PROBED], ids=[row[0] for row in NOT_PROBED]
)
def test_what_cannot_be_probed_is_told_with_what_to_do(
    docker: FakeDocker, project: Path, said: dict[str, Any], words: str
) -> None:
    docker.says(said)
    old = project / "reports" / "security-probe.md"
    old.parent.mkdir()
    old.write_text("of yesterday")
    done = run(project, docker, *QUICK)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert old.read_text() == "of yesterday"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("status", ["exited", "created", "paused", "dead"])
def test_container_that_does_not_run_is_not_probed(
    docker: FakeDocker, project: Path, status: str
) -> None:
    docker.says(
        answer("container", "inspect", out=[good_container() | {"State": {"Status": status}}])
    )
    done = run(project, docker, *QUICK)
    assert done.returncode == 2
    assert f"does not run, it is {status}" in done.stderr
    assert f"docker logs {NAME}" in done.stderr


def test_container_that_starts_is_waited_for(docker: FakeDocker, project: Path) -> None:
    starting = good_container()
    starting["State"]["Health"]["Status"] = "starting"
    docker.says(*(answer("container", "inspect", out=[starting], once=True) for _ in range(3)))
    done = run(project, docker, *QUICK)
    assert done.returncode == 0
    assert f"Waiting for {NAME} to be healthy" in done.stderr


def test_container_that_is_unwell_is_probed_and_fails(docker: FakeDocker, project: Path) -> None:
    unwell = good_container()
    unwell["State"]["Health"]["Status"] = "unhealthy"
    docker.says(answer("container", "inspect", out=[unwell]))
    done = run(project, docker, *QUICK)
    assert (done.returncode, "26 fails" in done.stdout) == (1, True)


def test_without_a_docker_command_it_is_told_where_to_get_one(
    project: Path, tmp_path: Path
) -> None:
    done = run(project, None, path=str(tmp_path))
    assert done.returncode == 2
    assert "no docker command in the PATH" in done.stderr


def test_container_of_another_project_is_not_rebuilt(docker: FakeDocker, project: Path) -> None:
    docker.says(answer("compose", "ps", out="another\n"))
    done = run(project, docker, NAME, "--keep-running")
    assert done.returncode == 2
    assert "--no-rebuild" in done.stderr
    assert docker.asked_for("compose", "build") == docker.asked_for("create") == 0


@pytest.mark.parametrize("name", ["", "-v", "--privileged"])
def test_name_that_would_be_an_option_is_refused(
    docker: FakeDocker, project: Path, name: str
) -> None:
    done = run(project, docker, *QUICK, "--", name)
    assert done.returncode == 2
    assert "no name of a container" in done.stderr
    assert docker.asked_for("container") == 0


def test_report_that_cannot_be_written_ends_with_status_2_after_the_verdicts(
    docker: FakeDocker, project: Path
) -> None:
    (project / "reports").write_text("a file")
    done = run(project, docker, *QUICK)
    assert done.returncode == 2
    assert "all hold" in done.stdout
    assert "--report" in done.stderr


ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def interrupted(
    project: Path,
    docker: FakeDocker,
    number: int,
    during: str,
    *arguments: str,
    ignored: bool = False,
) -> tuple[int, str]:
    """Send the command a signal while it waits for an answer; return its status and what it said.

    Where it is ignored, that is so before the command begins, as nohup has it.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "security_probe", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(TOP), "PATH": str(docker.folder)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: signal.signal(number, signal.SIG_IGN)) if ignored else None,
    )
    with process:
        ends = time.monotonic() + 60
        while not docker.asked_for(*during.split()) and time.monotonic() < ends:
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("number", ENDING)
def test_signal_ends_without_a_report_and_the_container_is_started_again(
    docker: FakeDocker, project: Path, number: int
) -> None:
    docker.says(answer("stop", sleep=2))
    status, said = interrupted(project, docker, number, "stop", "--no-rebuild")
    assert (status, "Interrupted" in said, "Traceback" in said) == (2, True, False)
    assert docker.finished("stop") == 1, "the engine would stop it after the start"
    assert docker.finished("start") == 1
    assert not (project / "reports").exists()


@pytest.mark.parametrize("number", ENDING)
def test_signal_during_a_build_ends_it_and_the_name_is_given_back(
    docker: FakeDocker, project: Path, number: int
) -> None:
    name, other = good_container()["Config"]["Image"], "sha256:" + "f" * 64
    built = IMAGE | {"Id": other, "RepoTags": []}
    docker.says(
        answer("compose", "build", sleep=600),
        answer("image", "inspect", name, out=[IMAGE], once=True),
        answer("image", "inspect", name, out=[built]),
        answer("image", "inspect", other, out=[built]),
    )
    status, said = interrupted(project, docker, number, "compose build")
    assert (status, "Interrupted" in said, "Traceback" in said) == (2, True, False)
    assert docker.finished("compose", "build") == docker.asked_for("stop") == 0
    assert docker.finished("tag", IMAGE["Id"], name) == 1
    assert docker.finished("image", "rm", other) == 1
    assert not (project / "reports").exists()


@pytest.mark.parametrize("during", ["tag", "rm", "start"])
def test_signal_while_something_is_put_back_is_put_off(
    docker: FakeDocker, project: Path, during: str
) -> None:
    docker.says(answer(during, sleep=1))
    status, said = interrupted(project, docker, signal.SIGTERM, during)
    assert (status, "Interrupted" in said, "Traceback" in said) == (2, True, False)
    assert docker.finished(during) == 1
    assert docker.asked_for("stop") == (1 if during == "start" else 0), "nothing more is begun"


def test_signal_that_is_ignored_from_the_beginning_stays_ignored(
    docker: FakeDocker, project: Path
) -> None:
    docker.says(answer("exec", out=ANSWER, sleep=1))
    status, _ = interrupted(project, docker, signal.SIGHUP, "exec", *QUICK, ignored=True)
    assert (status, docker.finished("exec")) == (0, 1)


def test_report_names_the_commit_and_whether_it_is_what_lies_there(
    docker: FakeDocker, project: Path
) -> None:
    path = f"{docker.folder}:{os.environ['PATH']}"

    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = [shutil.which("git") or "git", *identity, *words]
        done = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def sources() -> str:
        run(project, docker, *QUICK, "--report", "../probe.md", path=path)
        (line,) = [
            line
            for line in (project.parent / "probe.md").read_text().splitlines()
            if line.startswith("| Sources")
        ]
        return line

    assert "not in a git repository" in sources()
    git("init", "--quiet")
    (project / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "First")
    assert f"commit {git('rev-parse', 'HEAD')}, nothing uncommitted" in sources()
    (project / "file").write_text("2")
    assert "1 uncommitted change" in sources()
