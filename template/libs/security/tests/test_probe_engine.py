"""The ``docker`` command as the probe uses it: bounded in time and size, and always cleaned up."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from probe_fake_docker import (
    NAME,
    NUMBER,
    FakeDocker,
    answer,
    archive,
    environment,
    make,
    order,
    stopped,
)
from probe_recorded import HISTORY, IMAGE
from probe_sample import failures, good, good_container, good_tree
from security_probe import restart as restarting
from security_probe.container import Container
from security_probe.document import Document
from security_probe.engine import Engine
from security_probe.errors import ProbeError
from security_probe.facts import NotFound, NotTried, Rebuild, Restart
from security_probe.files import Entry, Tree
from security_probe.image import files_of
from security_probe.rebuild import rebuild
from security_probe.restart import restart

WHOLE = archive(good_tree())
CUT = [b"", b"no archive", WHOLE[: len(WHOLE) // 2], WHOLE[:5120], WHOLE.rstrip(b"\0"), WHOLE[:512]]
OTHER = "sha256:" + "e" * 64


@pytest.fixture
def docker(tmp_path: Path) -> FakeDocker:
    """The command, which describes a service that keeps all promises."""
    return make(tmp_path / "bin")


@pytest.fixture
def engine(docker: FakeDocker) -> Engine:
    """An engine behind that command."""
    return Engine(docker.program)


def _quiet(sentence: str) -> None:
    del sentence


def test_command_that_does_not_end_is_ended(docker: FakeDocker, engine: Engine) -> None:
    docker.says(answer("ps", sleep=600))
    begun = time.monotonic()
    with pytest.raises(ProbeError, match="no answer within 1 seconds"):
        engine.run("ps", seconds=1)
    assert time.monotonic() - begun < 20


def test_command_whose_child_holds_the_output_is_ended(docker: FakeDocker, engine: Engine) -> None:
    docker.says(answer("ps", child=True))
    begun = time.monotonic()
    with pytest.raises(ProbeError, match="no answer within"):
        engine.run("ps", seconds=3)
    assert time.monotonic() - begun < 30


def test_command_that_prints_without_end_is_ended(docker: FakeDocker, engine: Engine) -> None:
    docker.says(answer("exec", out="x" * 65_536, endless=True))
    with pytest.raises(ProbeError, match="no answer within"):
        engine.run("exec", seconds=2, most=1 << 20)


def test_command_that_prints_too_much_is_refused(docker: FakeDocker, engine: Engine) -> None:
    docker.says(answer("exec", out="x" * (3 << 20)))
    with pytest.raises(ProbeError, match="more than 1 MiB"):
        engine.run("exec", most=1 << 20)
    assert len(engine.run("exec").text) == 3 << 20, "control: with more room it is read"


def test_stream_that_stops_is_ended(docker: FakeDocker, engine: Engine) -> None:
    docker.says(answer("export", sleep=600))
    with (
        pytest.raises(ProbeError, match="no answer within"),
        engine.stream("export", seconds=1) as stream,
    ):
        stream.read()


def test_stream_of_a_command_that_fails_is_not_taken_for_whole(
    docker: FakeDocker, engine: Engine
) -> None:
    docker.says(answer("export", out=archive(good_tree()), status=1, complaint="disk is gone"))
    assert files_of(engine, "image") == NotFound("`docker export` failed: disk is gone.")
    assert docker.asked_for("rm") == 1


def test_given_bytes_reach_a_command_that_reads_and_stop_at_one_that_does_not(
    docker: FakeDocker, engine: Engine
) -> None:
    docker.says(answer("exec", out="done", reads=False))
    assert engine.run("exec", given=b"x" * (1 << 20)).text == b"done"


def test_commands_leave_no_thread_behind(docker: FakeDocker, engine: Engine) -> None:
    docker.says(answer("ps", out="x" * 100_000))
    before = threading.active_count()
    for _ in range(3):
        engine.run("ps")
    assert threading.active_count() == before


def test_program_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot be started"):
        Engine(str(tmp_path / "docker")).run("ps")


def test_command_is_found_in_the_path(docker: FakeDocker) -> None:
    with environment(PATH=str(docker.folder)):
        assert Engine.found().program == docker.program


def test_files_of_an_image_are_those_that_were_exported(engine: Engine) -> None:
    tree = files_of(engine, "image")
    assert isinstance(tree, Tree)
    assert failures(replace(good(), tree=tree)) == {}


@pytest.mark.parametrize("out", CUT)
def test_files_cut_short_are_none(docker: FakeDocker, engine: Engine, out: bytes) -> None:
    docker.says(answer("export", out=out))
    assert isinstance(files_of(engine, "image"), NotFound)
    assert docker.asked_for("rm") == 1


# Building anew


def _container() -> Document:
    return Document("container", good_container())


def _image() -> Document:
    return Document("image", IMAGE)


def test_image_is_built_without_cache_or_attestations_and_the_name_given_back(
    docker: FakeDocker, engine: Engine
) -> None:
    name = good_container()["Config"]["Image"]
    after = IMAGE | {"Id": OTHER, "RepoTags": []}
    docker.says(
        answer("image", "inspect", name, out=[IMAGE], once=True),
        answer("image", "inspect", name, out=[after]),
        answer("image", "inspect", OTHER, out=[after]),
    )
    built = rebuild(engine, _container(), _image(), good_tree(), _quiet)
    assert isinstance(built, Rebuild)
    assert built.after.text("Id") == OTHER
    assert set(failures(replace(good(), rebuild=built))) == {15}
    lines = docker.asked()
    assert ["compose", "build", "--no-cache", "--quiet", "service"] in lines
    assert ["tag", IMAGE["Id"], name] in lines
    assert ["image", "rm", OTHER] in lines
    assert order(lines, "tag") < order(lines, "image", "rm")


def test_new_image_that_has_another_name_stays(docker: FakeDocker, engine: Engine) -> None:
    name = good_container()["Config"]["Image"]
    after = IMAGE | {"Id": OTHER, "RepoTags": ["kept:1"]}
    docker.says(
        answer("image", "inspect", name, out=[IMAGE], once=True),
        answer("image", "inspect", name, out=[after]),
        answer("image", "inspect", OTHER, out=[after]),
    )
    rebuild(engine, _container(), _image(), good_tree(), _quiet)
    assert docker.asked_for("image", "rm") == 0


def test_same_image_is_not_removed(docker: FakeDocker, engine: Engine) -> None:
    built = rebuild(engine, _container(), _image(), good_tree(), _quiet)
    assert isinstance(built, Rebuild)
    assert failures(replace(good(), rebuild=built)) == {}
    assert docker.asked_for("image", "rm") == 0
    assert docker.asked_for("tag") == 1


def test_name_that_pointed_elsewhere_points_there_again(docker: FakeDocker, engine: Engine) -> None:
    name = good_container()["Config"]["Image"]
    docker.says(
        answer("image", "inspect", name, out=[IMAGE | {"Id": "sha256:before"}], once=True),
        answer("image", "inspect", name, out=[IMAGE]),
    )
    rebuild(engine, _container(), _image(), good_tree(), _quiet)
    assert ["tag", "sha256:before", name] in docker.asked()


def test_build_that_fails_fails_the_point_and_gives_the_name_back(
    docker: FakeDocker, engine: Engine
) -> None:
    docker.says(answer("compose", "build", status=1, complaint="a line\nno network\n"))
    built = rebuild(engine, _container(), _image(), good_tree(), _quiet)
    assert built == NotFound("the image could not be built anew: no network")
    assert docker.asked_for("tag") == 1
    assert set(failures(replace(good(), rebuild=built))) == {15}


def test_files_that_differ_are_named(docker: FakeDocker, engine: Engine) -> None:
    name = good_container()["Config"]["Image"]
    after = IMAGE | {"Id": OTHER, "RootFS": {"Type": "layers", "Layers": ["a", "b", "c"]}}
    tree = files_of(engine, "image")
    assert isinstance(tree, Tree)
    other = Tree(dict(tree.entries) | {"app/stamp": Entry("file")}, tree.contents)
    docker.says(
        answer("image", "inspect", name, out=[IMAGE], once=True),
        answer("image", "inspect", name, out=[after]),
        answer("image", "inspect", OTHER, out=[after]),
        answer("export", out=archive(other)),
    )
    built = rebuild(engine, _container(), _image(), tree, _quiet)
    problems = failures(replace(good(), rebuild=built))[15]
    assert "Not the same in both: 1 file: app/stamp." in problems
    assert "Layers 1, 2, 3 of 3" in problems


def test_histories_are_compared(docker: FakeDocker, engine: Engine) -> None:
    name = good_container()["Config"]["Image"]
    with_store = IMAGE | {"Descriptor": {}}
    lines = "\n".join(f'{{"CreatedBy": "{step}"}}' for step in range(len(HISTORY)))
    docker.says(
        answer("image", "inspect", name, out=[with_store], once=True),
        answer("image", "inspect", name, out=[with_store | {"Id": OTHER, "RepoTags": ["x"]}]),
        answer("image", "inspect", IMAGE["Id"], out=[with_store]),
        answer("image", "inspect", OTHER, out=[with_store | {"Id": OTHER, "RepoTags": ["x"]}]),
        answer("history", "--no-trunc", "--format", "{{json .}}", OTHER, out=lines),
    )
    built = rebuild(engine, _container(), _image(), good_tree(), _quiet)
    assert "The histories differ." in failures(replace(good(), rebuild=built))[15]


# Stopping and starting


def _restart(engine: Engine, container: dict[str, object]) -> object:
    return restart(Container(engine, NUMBER), Document("container", container), _quiet)


def test_time_to_the_end_is_told_by_the_engines_clock(docker: FakeDocker, engine: Engine) -> None:
    docker.says(answer("container", "inspect", out=[stopped()], once=True), answer("stop", sleep=2))
    done = _restart(engine, good_container())
    assert isinstance(done, Restart)
    assert done.seconds == pytest.approx(0.7), "what the engine does after that does not count"
    assert done.well_again
    assert failures(replace(good(), restart=done)) == {}


def test_time_is_this_machines_where_the_clock_of_the_engine_makes_no_sense(
    docker: FakeDocker, engine: Engine
) -> None:
    docker.says(
        answer("container", "inspect", out=[stopped()], once=True),
        answer("info", out="2030-01-01T00:00:00Z\n"),
        answer("stop", sleep=1),
    )
    done = _restart(engine, good_container())
    assert isinstance(done, Restart)
    assert done.seconds >= 1


def test_container_that_would_be_removed_is_not_stopped(docker: FakeDocker, engine: Engine) -> None:
    container = good_container()
    container["HostConfig"]["AutoRemove"] = True
    done = _restart(engine, container)
    assert isinstance(done, NotTried)
    assert "--rm" in done.reason
    assert docker.asked() == []


@pytest.mark.parametrize(
    "said",
    [
        answer("stop", status=1, complaint="permission denied"),
        answer("container", "inspect", status=1, once=True),
    ],
)
def test_container_is_started_again_whatever_happens(
    docker: FakeDocker, engine: Engine, said: dict[str, object]
) -> None:
    docker.says(said)
    done = _restart(engine, good_container())
    assert isinstance(done, NotFound)
    assert docker.asked_for("start") == 1
    assert set(failures(replace(good(), restart=done))) == {36}


def test_container_that_does_not_start_again_is_told_at_once(
    docker: FakeDocker, engine: Engine
) -> None:
    docker.says(answer("start", status=1, complaint="port is taken"))
    with pytest.raises(ProbeError, match=f"port is taken.*docker start {NAME}"):
        _restart(engine, good_container())


def test_container_that_is_unwell_after_the_start_fails_the_point(
    docker: FakeDocker, engine: Engine
) -> None:
    unwell = good_container()
    unwell["State"]["Health"]["Status"] = "unhealthy"
    docker.says(
        answer("container", "inspect", out=[stopped()], once=True),
        answer("container", "inspect", out=[unwell]),
    )
    done = _restart(engine, good_container())
    assert isinstance(done, Restart)
    assert not done.well_again


def test_times_of_engines_are_read() -> None:
    read = restarting._time
    assert read("2026-11-22T13:26:34.662683153Z") is not None
    assert read("2026-11-22T13:26:34+01:00") is not None
    for text in ("", "0001", "yesterday", "2026-11-22T13:26:34", "9" * 1000):
        assert read(text) is None
