"""A service whose key is in a TPM, in a container that has this one device and its one group."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from containers import tpm
from containers.engine import Deployment, Variants
from containers.probing import POINTS, QUICKLY, REBUILD, probe


@dataclass(frozen=True)
class Machine:
    """A machine with a TPM, and a service on it.

    Attributes:
        device: Its /dev/tpmrm0.
        first: The TPM that is behind it at first.
        other: Another one.
        service: The service, with docker-compose.tpm.yml.
    """

    device: tpm.Device
    first: Path
    other: Path
    service: Deployment

    def request(self, method: str, name: str, value: str | None = None) -> str | None:
        """Send a request from inside the container, because the engine's network is its own."""
        body = None if value is None else json.dumps({"value": value}).encode()
        said = self.service.inside(f"""
import json, urllib.request
request = urllib.request.Request("http://127.0.0.1:8000/v1/records/{name}", {body!r},
    {{"Content-Type": "application/json"}}, method="{method}")
print(urllib.request.urlopen(request).read().decode())
""")
        return None if value is not None else json.loads(said)["value"]

    def start(self) -> None:
        """Start the service, or take over what was changed, and wait until it is healthy."""
        self.service.compose("up", "--detach", "--no-build", "--wait", "service")

    def envelope(self) -> str:
        """Return the envelope."""
        return self.service.in_volume("print(open('/data/envelope.json').read())")


@pytest.fixture(scope="module")
def machine(
    engine: docker.DockerClient, variants: Variants, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Give a machine with a TPM and an engine, and a service on it whose key the TPM holds."""
    tpm.require_tpm()
    variants.built("tpm")
    folder = tmp_path_factory.mktemp("tpm")
    with ExitStack() as stack:
        stack.enter_context(tpm.alone_with_the_device())
        device = stack.enter_context(tpm.plugged_in())
        first, other = (stack.enter_context(tpm.software_tpm(folder / name)) for name in ("one", "two"))
        second = stack.enter_context(tpm.second_engine(folder))
        image = engine.images.get(variants.image("tpm"))
        second.images.load(b"".join(image.save(named=True)))
        assert second.images.get(variants.image("tpm")).id == image.id
        service = stack.enter_context(
            variants.deployment(
                "tpm",
                folder,
                engine=second,
                settings={"DOCKER_HOST": f"unix://{folder}/s", "TPM_GID": str(tpm.GROUP)},
                overlay="docker-compose.tpm.yml",
            )
        )
        device.tpm = first
        service.make_key(b"")
        made = service.command("init", "--no-recovery")
        assert made.returncode == 0, made.stderr
        assert "tpm2" in made.stdout
        found = Machine(device, first, other, service)
        found.start()
        found.request("PUT", "greeting", "hello")
        yield found


def slots(service: Deployment) -> list[str]:
    """Return what opens the envelope."""
    status = service.command("keys", "status", "--json")
    assert status.returncode == 0, status.stderr
    found: list[str] = json.loads(status.stdout)["envelope"]["slots"]
    return found


def test_record_survives_a_restart_and_a_recreated_container_with_the_key_in_the_tpm(
    machine: Machine,
) -> None:
    assert slots(machine.service) == ["tpm2"]
    assert machine.service.key.read_bytes() == b"", "the file is there and holds no key"
    machine.service.compose("restart", "service")
    machine.start()
    assert machine.request("GET", "greeting") == "hello"
    before = machine.service.container.id
    machine.service.compose("down")
    machine.start()
    assert machine.service.container.id != before
    assert machine.request("GET", "greeting") == "hello"


def test_key_moves_from_its_file_into_the_tpm(machine: Machine, variants: Variants, tmp_path: Path) -> None:
    delivered = "secret:/run/secrets/service_key"
    second = machine.service
    with variants.deployment(
        "tpm", tmp_path, engine=second.engine, settings=second.settings, overlay=second.overlay
    ) as service:
        service.make_key()
        made = service.command("init", "--no-recovery", "--key-source", delivered)
        assert made.returncode == 0, made.stderr
        assert slots(service) == ["container-secret"]
        moved = service.command("keys", "reseal", "--key-source", delivered, "--to", "tpm2")
        assert moved.returncode == 0, moved.stderr
        assert slots(service) == ["tpm2"]
        service.make_key(b"")
        service.compose("up", "--detach", "--no-build", "--wait", "service")


def test_all_points_hold_with_one_device_and_its_group(machine: Machine) -> None:
    library = machine.service.folder / "libs" / "security"
    machine.start()
    found = probe(machine.service, library, "--no-rebuild")
    assert (found.fails, found.holds) == ({}, POINTS - {REBUILD})
    assert "/dev/tpmrm0" in found.report
    with ExitStack() as mended:
        mended.callback(machine.start)
        mended.callback(machine.service.change, "")
        for option, broken in (("devices: ['/dev/zero:/dev/zero']", {25}), ("group_add: ['0']", {27})):
            machine.service.change(f"services: {{service: {{{option}}}}}")
            machine.start()
            assert set(probe(machine.service, library, *QUICKLY).fails) == broken


def test_tpm_that_is_gone_or_silent_is_told(machine: Machine) -> None:
    machine.service.compose("stop", "service")
    with machine.device.unplugged():
        missing = machine.service.run("docker", "compose", "up", "--detach", "--no-build", "service")
        assert missing.returncode != 0
        assert "/dev/tpmrm0" in missing.stderr
    with ExitStack() as mended:
        mended.callback(setattr, machine.device, "tpm", machine.first)
        machine.device.tpm = None
        silent = machine.service.once()
        assert silent.returncode == 2
        assert "/dev/tpmrm0 did not answer as a whole in time" in silent.stderr
        assert "Traceback" not in silent.stderr
    machine.start()
    assert machine.request("GET", "greeting") == "hello"


def test_other_tpm_is_refused(machine: Machine) -> None:
    before = machine.envelope()
    machine.service.compose("stop", "service")
    with ExitStack() as mended:
        mended.callback(setattr, machine.device, "tpm", machine.first)
        machine.device.tpm = machine.other
        refused = machine.service.once()
        assert refused.returncode == 2
        assert "The key was sealed by another TPM" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert machine.service.command("init", "--no-recovery").returncode != 0
    assert machine.envelope() == before
    machine.start()
    assert machine.request("GET", "greeting") == "hello"


def test_user_without_the_group_is_refused_and_told_its_number(machine: Machine) -> None:
    machine.service.compose("stop", "service")
    with ExitStack() as mended:
        mended.callback(machine.service.change, "")
        machine.service.change("services: {service: {group_add: !override ['1']}}")
        refused = machine.service.once()
        assert refused.returncode == 2
        assert str(tpm.GROUP) in refused.stderr
        assert "group_add" in refused.stderr
    machine.start()
    assert machine.request("GET", "greeting") == "hello"
