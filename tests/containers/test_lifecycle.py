"""A container from its first start to its end: `just up`, health, the smoke test, SIGTERM."""

import json
from urllib.error import URLError

import pytest
from docker.errors import APIError

from containers.engine import (
    SERVICE_UID,
    Deploy,
    Deployment,
    begin_request,
    building,
    eventually,
    takes_requests,
)

# The health check of the image, only more often.
OFTEN = "services: {service: {healthcheck: {interval: 1s, start_interval: 1s}}}"


def test_first_start_is_one_command(deploy: Deploy) -> None:
    deployment = deploy(initialised=False)
    deployment.take_own_image()
    keys = set()
    for _ in range(2):  # the second run finds everything there, and changes nothing
        with building():
            done = deployment.run("just", "up", "--no-recovery")
        assert done.returncode == 0, done.stderr
        assert deployment.health == "healthy"
        keys.add(deployment.key.read_bytes())
    (key,) = keys
    assert len(key) == 32
    deployment.client.put({"greeting": "hello"})
    assert deployment.client.all() == {"greeting": "hello"}


def test_what_init_shows_is_in_no_log(deploy: Deploy) -> None:
    deployment = deploy(initialised=False)
    deployment.make_key()
    name = f"{deployment.name}-shown"
    said = deployment.compose("run", "--no-TTY", "--name", name, "init", "init", "--no-recovery")
    assert "There is no recovery phrase" in said
    with pytest.raises(APIError, match="does not support reading"):
        deployment.engine.containers.get(name).logs()
    deployment.start()
    assert b"listening" in deployment.container.logs(), "control: what the service writes is kept"


# ------------------------------------------------------------------ health


def test_health_follows_the_database(deploy: Deploy) -> None:
    deployment = deploy(override=OFTEN)
    client = deployment.start()
    client.put({"greeting": "hello"})
    deployment.in_volume("import os; os.rename('/data/records.db', '/data/away')")
    eventually("it is unhealthy without its database", lambda: deployment.health == "unhealthy")
    with pytest.raises(URLError, match="503"):
        client.request("GET", "/readyz")
    assert "not ready" in deployment.said()
    deployment.in_volume("import os; os.rename('/data/away', '/data/records.db')")
    eventually("it is healthy again", lambda: deployment.health == "healthy")
    assert "ready again" in deployment.said()
    assert client.all() == {"greeting": "hello"}


def test_smoke_test_passes_on_a_healthy_service_and_leaves_nothing(deploy: Deploy) -> None:
    deployment = deploy()
    said = deployment.compose("run", "--rm", "--no-TTY", "smoke")
    assert "a record was written, read and deleted" in said
    assert deployment.client.all() == {}


def test_smoke_test_fails_on_a_service_that_is_not_healthy(deploy: Deploy) -> None:
    deployment = deploy(override=OFTEN)
    deployment.start()
    deployment.in_volume("import os; os.rename('/data/records.db', '/data/away')")
    eventually("it is unhealthy", lambda: deployment.health == "unhealthy")
    smoke = ("docker", "compose", "run", "--rm", "--no-TTY")
    waiting = deployment.run(*smoke, "smoke")
    assert waiting.returncode != 0
    assert "is unhealthy" in waiting.stderr
    deployment.compose("stop", "service")
    asking = deployment.run(*smoke, "--no-deps", "smoke")
    assert asking.returncode == 1
    assert asking.stderr.startswith("service:8000: ")
    assert "Traceback" not in asking.stderr
    assert asking.stdout + waiting.stdout == ""


# ------------------------------------------------------------------ the end


def stopped(deployment: Deployment, *, seconds: int) -> int:
    """Stop the container by SIGTERM, and by SIGKILL after some seconds; return its exit status."""
    container = deployment.container
    container.stop(timeout=seconds)
    container.reload()
    assert container.attrs["State"]["Status"] == "exited"
    return int(container.attrs["State"]["ExitCode"])


@pytest.mark.parametrize("variant", ["default", "plain"])
def test_sigterm_ends_it_with_status_0_within_3_seconds(deploy: Deploy, variant: str) -> None:
    deployment = deploy(variant)
    deployment.start()
    assert stopped(deployment, seconds=3) == 0
    assert '"event": "stopped"' in deployment.said()


def test_process_that_ends_is_started_again(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start().put({"greeting": "hello"})
    deployment.inside("import os, signal; os.kill(1, signal.SIGTERM)")
    eventually("it was started again", lambda: deployment.container.attrs["RestartCount"] == 1)
    assert deployment.start().all() == {"greeting": "hello"}


def test_request_under_way_is_answered_before_the_end(deploy: Deploy) -> None:
    deployment = deploy()
    address = deployment.start().url.removeprefix("http://")
    body = json.dumps({"value": "in time"}).encode()
    container = deployment.container
    with begin_request(address, "late", body) as connection:
        container.kill("SIGTERM")
        eventually("it takes no more requests", lambda: not takes_requests(address))
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 201")
    assert container.wait(timeout=30)["StatusCode"] == 0
    assert deployment.start().all() == {"late": "in time"}


def test_request_that_never_ends_does_not_stop_the_end(deploy: Deploy) -> None:
    deployment = deploy()
    address = deployment.start().url.removeprefix("http://")
    with begin_request(address, "late", b"{}"):
        done = deployment.run("docker", "compose", "stop", "service")  # with the grace that the file gives
    assert done.returncode == 0
    state = deployment.container.attrs["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)


# ------------------------------------------------------------------ the plain container


def test_plain_container_stays_ordinary(deploy: Deploy) -> None:
    deployment = deploy("plain")
    deployment.take_own_image()
    with building():
        assert deployment.run("just", "up").returncode == 0
    container = deployment.container
    assert container.exec_run(["sh", "-c", "id -u"]).output == f"{SERVICE_UID}\n".encode()
    assert container.exec_run(["mktemp"]).exit_code == 0
    deployment.client.put({"greeting": "hello"})
    deployment.compose("restart", "service")
    assert deployment.start().all() == {"greeting": "hello"}
