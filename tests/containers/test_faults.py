"""What is wrong is said in the log: what it is and what to do, with no traceback and nothing secret."""

import base64
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from subprocess import CompletedProcess

import pytest

from containers.engine import Deploy, Deployment, Variants, eventually

# The service's exit status when it cannot start.
REFUSED = 2

KEY = secrets.token_bytes(32)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, variants: Variants) -> Iterator[Deployment]:
    """Give one service with the key `KEY` and a record, stopped; each test breaks and mends it."""
    with variants.deployment("default", tmp_path_factory.mktemp("broken")) as deployment:
        deployment.make_key(KEY)
        assert deployment.command("init", "--no-recovery").returncode == 0
        deployment.start().put({"greeting": "hello"})
        deployment.compose("rm", "--stop", "--force", "service")
        yield deployment


def refusal(done: CompletedProcess[str]) -> str:
    """Return what a service said that could not start: one message, nothing of the program's inside."""
    said = done.stdout + done.stderr
    assert done.returncode == REFUSED, said
    assert "Traceback" not in said
    assert not [form for form in (KEY.hex(), base64.b64encode(KEY).decode(), repr(KEY)[2:-1]) if form in said]
    return said


def other_key(deployment: Deployment) -> None:
    deployment.make_key()


def empty_key(deployment: Deployment) -> None:
    deployment.make_key(b"")


def text_key(deployment: Deployment) -> None:
    deployment.make_key(base64.b64encode(KEY) + b"\n")


def key_that_root_keeps(deployment: Deployment) -> None:
    deployment.key.chmod(0o600)


def key_that_a_group_may_write(deployment: Deployment) -> None:
    deployment.key.chmod(0o464)


KEY_FAULTS: dict[Callable[[Deployment], None], tuple[str, ...]] = {
    other_key: ("/run/secrets/service_key", "does not open /data/envelope.json"),
    empty_key: ("/run/secrets/service_key is empty", "Put the right file there"),
    text_key: ("/run/secrets/service_key holds more than 32 bytes", "Put the right file there"),
    key_that_root_keeps: (
        "The key file /run/secrets/service_key cannot be read: Permission denied",
        "The user that runs the service must be able to read it",
    ),
    key_that_a_group_may_write: ("Others may write the secret /run/secrets/service_key", "0444"),
}


@pytest.mark.parametrize("fault", KEY_FAULTS, ids=lambda fault: fault.__name__)
def test_wrong_key_is_told(broken: Deployment, fault: Callable[[Deployment], None]) -> None:
    with ExitStack() as mended:
        mended.callback(broken.make_key, KEY)
        fault(broken)
        said = refusal(broken.once())
        for part in KEY_FAULTS[fault]:
            assert part in said
        doctor = broken.command("doctor")
        assert doctor.returncode == 1
        assert KEY_FAULTS[fault][0] in doctor.stdout, "what looks for faults finds the same one"
        assert "Traceback" not in doctor.stderr
    assert broken.start().all() == {"greeting": "hello"}, "control: with the key it starts"
    broken.compose("rm", "--stop", "--force", "service")


def test_missing_key_file_is_told_before_anything_starts(broken: Deployment) -> None:
    with ExitStack() as mended:
        mended.callback(broken.make_key, KEY)
        broken.key.unlink()
        done = broken.run("docker", "compose", "up", "--detach", "--no-build", "service")
        assert done.returncode != 0
        assert "secrets/container.key" in done.stderr
        assert not broken.key.exists(), "nothing was made in its place, a folder for instance"
    broken.compose("rm", "--stop", "--force", "service")


def test_second_init_changes_nothing(broken: Deployment) -> None:
    look = "print(open('/data/envelope.json').read())"
    before = broken.in_volume(look)
    again = broken.command("init", "--no-recovery")
    assert (again.returncode, broken.in_volume(look)) == (0, before)
    assert "Made" not in again.stdout
    with ExitStack() as mended:
        mended.callback(broken.make_key, KEY)
        broken.make_key()
        other = broken.command("init", "--no-recovery")
    assert other.returncode != 0
    assert "does not open /data/envelope.json" in other.stderr
    assert broken.in_volume(look) == before


def test_data_without_an_envelope_gets_no_new_one(broken: Deployment) -> None:
    with ExitStack() as mended:
        broken.in_volume("import os; os.rename('/data/envelope.json', '/data/away')")
        mended.callback(broken.in_volume, "import os; os.rename('/data/away', '/data/envelope.json')")
        said = refusal(broken.once())
        assert "envelope" in said
        initialised = broken.command("init", "--no-recovery")
        assert initialised.returncode != 0
        assert "There is encrypted data beside /data/envelope.json, but no envelope" in initialised.stderr
        assert "envelope.json" not in broken.in_volume("import os; print(os.listdir('/data'))")


def test_new_volume_asks_for_init(deploy: Deploy) -> None:
    deployment = deploy(initialised=False)
    deployment.make_key(KEY)
    said = refusal(deployment.once())
    assert "init" in said
    assert "/data/envelope.json" in said
    assert "envelope" not in deployment.in_volume("import os; print(os.listdir('/data'))")


def test_volume_that_belongs_to_root_is_told(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start().put({"greeting": "hello"})
    deployment.compose("rm", "--stop", "--force", "service")
    deployment.in_volume("""
import os
for folder, _, files in os.walk("/data"):
    for name in ("", *files):
        os.chown(os.path.join(folder, name), 0, 0)
""")
    said = refusal(deployment.once())
    assert "The data folder /data cannot be used: Permission denied" in said


def test_records_of_a_plain_service_are_refused_and_can_be_imported(
    deploy: Deploy,
) -> None:
    plain = deploy("plain")
    plain.start().put({"greeting": "hello"})
    plain.compose("rm", "--stop", "--force", "service")
    volume = f"volumes: {{data: {{name: {plain.volume}, external: true}}}}"
    hardened = deploy(override=volume, initialised=False)
    hardened.make_key(KEY)
    said = refusal(hardened.once())
    assert "/data/records.db holds records that are not encrypted. Nothing was changed" in said
    assert " init " in said
    assert " db import " in said
    assert hardened.command("init", "--no-recovery").returncode == 0
    done = hardened.command("db", "import", "--cipher", "xchacha20poly1305")
    assert done.returncode == 0, done.stderr
    assert hardened.start().all() == {"greeting": "hello"}


def test_command_that_needs_the_volume_alone_is_refused_while_the_service_runs(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start().put({"greeting": "hello"})
    refused = deployment.command("db", "export")
    assert refused.returncode != 0
    assert "Stop the service" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert deployment.client.all() == {"greeting": "hello"}


def test_service_that_cannot_start_is_tried_again_and_heals_by_itself(deploy: Deploy) -> None:
    deployment = deploy(initialised=False)
    deployment.make_key(KEY)
    assert deployment.command("init", "--no-recovery").returncode == 0
    deployment.make_key()
    deployment.compose("up", "--detach", "--no-build", "service")
    eventually("it is tried again", lambda: deployment.container.attrs["RestartCount"] > 1)
    tried = deployment.container.attrs
    assert tried["State"]["ExitCode"] == REFUSED or tried["State"]["Running"]
    said = deployment.said().splitlines()
    assert said, "each try says why"
    assert all("does not open /data/envelope.json" in line for line in said), said
    deployment.make_key(KEY)
    eventually("it is healthy", lambda: deployment.health == "healthy")
    deployment.client.put({"greeting": "hello"})
