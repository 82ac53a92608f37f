"""Each limit of a container is reached here, not only set, and the service is there afterwards."""

import json
from typing import Any
from urllib.error import HTTPError

import pytest
from service import Client

from containers.engine import PYTHON, Deploy, Deployment, eventually

RECORDS = {"before": "kept"}

KILLED = 137  # 128 and SIGKILL

ALLOCATE = "held = b'x' * (400 << 20)"  # beyond the limit of 256 MiB

THREADS = """
import threading
over, started = threading.Event(), []
try:
    for _ in range(300):
        thread = threading.Thread(target=over.wait)
        thread.start()
        started.append(thread)
except RuntimeError as error:
    print(error)
finally:
    over.set()
print(len(started))
"""

FILL_TMP = """
import errno, os
size = 0
try:
    with open("/tmp/filler", "wb", buffering=0) as file:
        while size < 64 << 20:
            size += file.write(bytes(1 << 16))
except OSError as error:
    print(errno.errorcode[error.errno])
finally:
    os.unlink("/tmp/filler")
print(size)
"""

OPEN_FILES = """
import errno
held = []
try:
    while len(held) < 9000:
        held.append(open("/dev/null"))
except OSError as error:
    name, count = errno.errorcode[error.errno], len(held)
else:
    name, count = "none", len(held)
del held
print(name)
print(count)
"""


def unlimited(*options: str) -> str:
    """Return a compose file that takes options of the service away."""
    return "services:\n  service:\n" + "".join(f"    {option}: !reset null\n" for option in options)


@pytest.fixture
def limited(deploy: Deploy) -> Deployment:
    """Start a service with a record in it."""
    deployment = deploy()
    deployment.start().put(RECORDS)
    return deployment


def still_serves(deployment: Deployment) -> None:
    """Require that the service reads what was there and takes more."""
    client = deployment.start()
    client.put({"after": "taken"})
    assert client.all() == RECORDS | {"after": "taken"}


def test_memory_beyond_the_limit_kills_who_takes_it_and_the_records_stay(
    limited: Deployment, deploy: Deploy
) -> None:
    command = [PYTHON, "-I", "-B", "-c", ALLOCATE]
    assert limited.container.exec_run(command).exit_code == KILLED
    still_serves(limited)

    other = deploy(override=unlimited("mem_limit", "memswap_limit"))
    other.start()
    assert other.container.exec_run(command).exit_code == 0, "control: without the limit there is room"


def test_threads_beyond_the_limit_are_refused(limited: Deployment, deploy: Deploy) -> None:
    reason, started = limited.inside(THREADS).splitlines()
    assert reason.startswith("can't start new thread")
    assert 0 < int(started) < 128
    still_serves(limited)

    other = deploy(override=unlimited("pids_limit"))
    other.start()
    assert other.inside(THREADS) == "300\n", "control"


def test_temporary_files_end_at_their_limit(limited: Deployment) -> None:
    reason, written = limited.inside(FILL_TMP).splitlines()
    assert reason == "ENOSPC"
    assert int(written) == 16 << 20
    still_serves(limited)


def test_files_are_refused_beyond_the_limit(limited: Deployment, deploy: Deploy) -> None:
    reason, opened = limited.inside(OPEN_FILES).splitlines()
    assert reason == "EMFILE"
    assert 4000 < int(opened) < 4096
    still_serves(limited)

    other = deploy(override="services: {service: {ulimits: {nofile: {soft: 10000, hard: 10000}}}}")
    other.start()
    assert other.inside(OPEN_FILES) == "none\n9000\n", "control"


# ------------------------------------------------------------------ a full volume

SMALL_VOLUME = """
volumes:
  data:
    driver: local
    driver_opts: {type: tmpfs, device: tmpfs, o: "size=8m,mode=0750,uid=65532,gid=65532"}
"""

# Whatever is in a tmpfs is gone when nobody has it mounted any more.
HOLD = """
import signal
signal.signal(signal.SIGTERM, lambda *_: exit(0))
signal.pause()
"""
FILL = """
with open("/data/filler", "ab", buffering=0) as file:
    try:
        while True:
            file.write(bytes(1 << 12))
    except OSError as error:
        print(error.strerror)
"""


def put(client: Client, name: str, value: str) -> dict[str, Any] | None:
    """Store a record; return the problem document of a refusal, None if it was acknowledged."""
    try:
        client.put({name: value})
    except HTTPError as error:
        refused = error
    else:
        return None
    with refused:
        assert refused.headers["Content-Type"] == "application/problem+json"
        problem: dict[str, Any] = json.load(refused)
    return problem


def test_full_volume_refuses_records_and_loses_none(deploy: Deploy) -> None:
    deployment = deploy(override=SMALL_VOLUME, initialised=False)
    deployment.make_key()
    deployment.compose("up", "--no-start", "--no-build", "service")
    image, mounted = deployment.container.attrs["Image"], {deployment.volume: {"bind": "/data", "mode": "rw"}}
    holder = deployment.engine.containers.run(
        image,
        ["-I", "-B", "-c", HOLD],
        entrypoint=[PYTHON],
        name=f"{deployment.name}-holder",
        user="0",
        detach=True,
        volumes=mounted,
    )

    def administrator(code: str) -> str:
        done = holder.exec_run([PYTHON, "-I", "-B", "-c", code])
        assert done.exit_code == 0
        assert isinstance(done.output, bytes)
        return done.output.decode()

    try:
        assert deployment.command("init", "--no-recovery").returncode == 0
        client = deployment.start()
        acknowledged = {f"small-{number}": f"{number}" * 100 for number in range(5)}
        client.put(acknowledged)

        assert administrator(FILL) == "No space left on device\n"
        refused = {f"large-{number}": "x" * 200_000 for number in range(5)}
        for name, value in refused.items():
            problem = put(client, name, value)
            assert problem is not None, name
            assert problem["status"] == 503
        eventually("the log says why", lambda: "is full" in deployment.said())
        assert client.all() == acknowledged

        administrator("import os; os.unlink('/data/filler')")
        for name, value in refused.items():
            assert put(client, name, value) is None
        assert client.all() == acknowledged | refused
        deployment.compose("restart", "service")
        assert deployment.start().all() == acknowledged | refused
        assert "Traceback" not in deployment.said()
    finally:
        holder.remove(force=True)
