"""The 36 points: they hold on every hardened variant, and each is seen to fail where something is taken away.

The probe is the product's own. That it would notice is shown by the plain container and by hardened ones with
one thing changed, each with exactly the points that it breaks; and a few facts are looked at without it.
"""

import secrets
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

from containers.engine import PYTHON, SERVICE_UID, Deploy, Deployment, Variants, building, eventually
from containers.probing import POINTS, QUICKLY, REBUILD, REPORT, RESTART, VERDICTS, Verdicts, probe

# ------------------------------------------------------------------ without the probe

FACTS = """
import errno, os

def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

status = dict(line.split(":", 1) for line in open("/proc/1/status"))
print(os.getresuid(), os.getresgid(), os.getgroups())
print(*(status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")))
print(status["NoNewPrivs"].strip(), status["Seccomp"].strip())
print(refused(open, "/usr/planted", "w"), refused(open, "/app/planted", "w"))
print(refused(os.execv, "/bin/sh", ["sh"]), refused(os.setuid, 0), refused(os.chroot, "/"))
"""


def test_some_facts_are_as_promised_without_asking_the_probe(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start()
    ids = (SERVICE_UID,) * 3
    assert deployment.inside(FACTS).splitlines() == [
        f"{ids} {ids} [{SERVICE_UID}]",
        " ".join(["0" * 16] * 5),
        "1 2",
        "EROFS EROFS",
        "ENOENT EPERM EPERM",
    ]
    assert deployment.container.exec_run(["sh", "-c", "exit"]).exit_code != 0
    write = [PYTHON, "-I", "-c", "open('/usr/planted', 'w')"]
    as_root = deployment.container.exec_run(write, user="0", privileged=True)
    assert isinstance(as_root.output, bytes)
    assert b"Read-only file system" in as_root.output, "even root of the container cannot"


# ------------------------------------------------------------------ every variant


@pytest.fixture(scope="module")
def library(variants: Variants) -> Path:
    """Return the folder that has the probe."""
    return variants.built("default") / "libs" / "security"


def start_with_an_image_of_its_own(deployment: Deployment) -> None:
    """Build under a name of its own, so that what the probe builds anew takes no other test's image away."""
    deployment.change(f"services: {{service: {{image: '{deployment.name}:probed'}}}}")
    with building():
        deployment.compose("build", "--quiet", "service")
    deployment.start()


def test_all_points_hold_for_the_default_answers_by_the_recipe(deploy: Deploy) -> None:
    deployment = deploy()
    start_with_an_image_of_its_own(deployment)
    with building():
        done = deployment.run("just", "security-probe", "--json", VERDICTS, "--report", REPORT, timeout=600)
    found = Verdicts.read(deployment.folder, done.returncode)
    assert (found.fails, found.holds, found.status) == ({}, POINTS, 0)
    assert deployment.container.attrs["Image"] in found.report, "the report says what was probed"


# The one with the TPM's pieces has its key in a file here; test_tpm.py gives it a device.
@pytest.mark.parametrize("variant", ["aes", "tpm"])
def test_all_points_hold_for_other_answers(deploy: Deploy, library: Path, variant: str) -> None:
    deployment = deploy(variant)
    start_with_an_image_of_its_own(deployment)
    with building():
        found = probe(deployment, library)
    assert (found.fails, found.holds, found.status) == ({}, POINTS, 0)


# ------------------------------------------------------------------ the plain container, as control

# What an ordinary container does not promise. It has a user, a volume and a health check like the other.
PLAIN_FAILS = frozenset(
    {2, 5, 7, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 21, 24, 28, 29, 30, 31, 33, 35},
)
# Shared with the machine by default where the machine has the first version of control groups.
CGROUP_NAMESPACE = 22


def test_plain_container_shows_what_it_is(deploy: Deploy, library: Path) -> None:
    deployment = deploy("plain")
    start_with_an_image_of_its_own(deployment)
    with building():
        found = probe(deployment, library)
    old = deployment.engine.info()["CgroupVersion"] == "1"
    expected = PLAIN_FAILS | ({CGROUP_NAMESPACE} if old else set())
    assert set(found.fails) == expected, found.fails
    assert (found.holds, found.status) == (POINTS - expected, 1)
    assert "pip" in found.fails[10]
    assert "/usr/bin/dash" in found.fails[33]


# ------------------------------------------------------------------ hardened, but for one thing

SCRATCH = [
    "/tmp:rw,noexec,nosuid,nodev,size=16m,mode=1777",  # noqa: S108
    "/dev/shm:ro,noexec,nosuid,nodev,size=4k",  # noqa: S108
    "/dev/mqueue:ro,noexec,nosuid,nodev,size=4k",
]


def scratch(*mounts: str) -> str:
    """Return an option that mounts these in memory, and nothing else."""
    return f"tmpfs: !override [{', '.join(repr(mount) for mount in mounts)}]"


GATEWAY = "com.docker.network.bridge.gateway_mode_ipv4"

# An option of the service, and the points that it breaks.
OPTIONS: dict[str, Set[int]] = {
    "privileged: true": {20, 25, 28, 30, 31, 35},
    "cap_add: [NET_RAW]": {17, 28},
    "cap_drop: !reset []": {17, 28},
    "security_opt: !override ['no-new-privileges:true']": {19, 30},
    "security_opt: !override ['no-new-privileges:true', 'seccomp:unconfined']": {19, 30},
    # With the project's own profile and without no-new-privileges no container starts at all.
    "security_opt: !override ['seccomp:unconfined']": {18, 19, 29, 30},
    "read_only: false": {16, 31, 35},
    # Root without any capability reads neither the volume nor what else is not its own. The profile refuses
    # root, too, the calls that change the user.
    "user: '0:0'\n    cap_add: [DAC_OVERRIDE]": {17, 27, 28, 31},
    "user: '0:0'\n    cap_add: [DAC_OVERRIDE]\n    read_only: false": {16, 17, 27, 28, 31, 32, 35},
    "user: '0:0'\n    cap_add: [DAC_OVERRIDE]\n    security_opt: !override ['no-new-privileges:true']": {
        *(17, 19, 27, 28, 30, 31, 34)
    },
    "group_add: ['0']": {27},
    scratch("/tmp:rw,exec,nosuid,nodev,size=16m,mode=1777", *SCRATCH[1:]): {24, 35},  # noqa: S108
    scratch("/tmp:rw,noexec,nosuid,nodev,mode=1777", *SCRATCH[1:]): {24},  # noqa: S108
    scratch(SCRATCH[0]): {31},
    "devices: ['/dev/zero:/dev/extra']": {25},
    "volumes: ['./open:/open']": {25, 31},
    "volumes: ['./engine.sock:/run/docker.sock:ro']": {25},
    "volumes: ['other:/data']\nvolumes: {other: {driver_opts: {type: none, o: bind, device: ./data}}}": {25},
    "ports: !override ['8000']": {23},
    f"networks: [open]\nnetworks: {{open: {{driver_opts: {{{GATEWAY}: routed}}}}}}": {23},
    "pid: host": {22, 27, 28, 29, 30},
    "ipc: host": {22},
    "cgroup: host": {22},
    "uts: host": {22},
    "mem_limit: !reset null\n    memswap_limit: !reset null": {21},
    "memswap_limit: 512m": {21},
    "pids_limit: -1": {21},
    "cpus: !reset null": {21},
    "environment: {API_TOKEN: 6b86b273ff34fce19d6b804eff5a3f57}": {3},
    "healthcheck: {disable: true}": {2, 26},
    f"healthcheck: {{test: [CMD, {PYTHON}, -I, -c, pass]}}": {2},
    f"healthcheck: {{test: [CMD, {PYTHON}, -I, -m, this, --token=6b86b273]}}": {2, 3},
}

# A step that is added to the image, and the points that it breaks.
STEPS: dict[str, Set[int]] = {
    "USER 0": {1},
    "ENV API_TOKEN=6b86b273ff34fce19d6b804eff5a3f57": {3},
    "ENV HTTPS_PROXY=http://proxy.example:3128": {3},
    "EXPOSE 80": {4},
    "VOLUME /srv": {4, 25},
    f'HEALTHCHECK CMD ["{PYTHON}", "-I", "-c", "pass"]': {2},
    "os.chmod('/usr/local/bin/python3.13', 0o4555)": {5},
    "os.setxattr('/etc/group', 'security.capability', bytes.fromhex('0100000200200000' + '00' * 12))": {6},
    "os.makedirs('/opt', exist_ok=True); os.chmod('/opt', 0o777)": {7},
    "os.chown('/usr/share', 65532, 0)": {8},
    "shutil.copy('/usr/local/bin/python3.13', '/usr/bin/tool')": {9},
    "os.makedirs('/usr/local/lib/python3.13/site-packages/pip')": {10},
    "open('/app/.env', 'w').close()": {11},
    "print('-----BEGIN ' + 'PRIVATE KEY-----', 'A' * 64, sep=chr(10), file=open('/etc/a', 'w'))": {11},
    "any(shutil.rmtree(each) for each in glob.glob('/usr/local/lib/**/__pycache__', recursive=True))": {12},
    "shutil.rmtree('/var/lib/dpkg/status.d')": {13},
    "os.unlink('/etc/ssl/certs/ca-certificates.crt')": {13},
    "os.chmod('/data', 0o755)": {14},
}


@pytest.fixture(scope="module")
def changeable(tmp_path_factory: pytest.TempPathFactory, variants: Variants) -> Iterator[Deployment]:
    """Give a service whose container is made anew, with something changed, by each test."""
    with variants.deployment("default", tmp_path_factory.mktemp("changeable")) as deployment:
        deployment.initialise()
        deployment.start()  # now the database belongs to its user, and not to root of a test
        (deployment.folder / "open").mkdir()
        (deployment.folder / "open").chmod(0o777)  # umask
        yield deployment


def broken_points(deployment: Deployment, library: Path, override: str) -> dict[int, str]:
    """Start a service anew with something changed; return the points that fail."""
    deployment.change(override)
    deployment.compose("up", "--detach", "--no-build", "service")
    eventually(
        "its health is known",
        lambda: deployment.container.attrs["State"].get("Health", {}).get("Status") != "starting",
    )
    return probe(deployment, library, *QUICKLY).fails


def test_unchanged_container_is_the_control_of_the_changed_ones(
    changeable: Deployment, library: Path
) -> None:
    changeable.change("")
    changeable.start()
    found = probe(changeable, library, *QUICKLY)
    assert (found.fails, found.holds) == ({}, POINTS - {REBUILD, RESTART})


@pytest.mark.parametrize("option", OPTIONS)
def test_option_breaks_exactly_its_points(changeable: Deployment, library: Path, option: str) -> None:
    lines = option
    if (socket := "./engine.sock") in option:
        lines = option.replace(socket, socket_of(changeable))
    if (folder := "./data") in option:
        lines = option.replace(folder, folder_of_the_data(changeable))
    found = broken_points(changeable, library, f"services:\n  service:\n    {lines}\n")
    assert set(found) == OPTIONS[option], found


@pytest.mark.parametrize("step", STEPS)
def test_step_of_the_image_breaks_exactly_its_points(
    changeable: Deployment, library: Path, step: str, tmp_path: Path
) -> None:
    tag = f"{changeable.name}:{secrets.token_hex(4)}"
    if step[0].islower():
        step_of_file = f'USER 0\nRUN ["python", "-c", "import glob, os, shutil; {step}"]\nUSER 65532:65532'
    else:
        step_of_file = step
    image = Variants.image("default")
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\n{step_of_file}\n", "utf-8")
    with building():
        built = changeable.run("docker", "build", "--quiet", "--tag", tag, str(tmp_path))
    assert built.returncode == 0, built.stderr
    found = broken_points(changeable, library, f"services: {{service: {{image: '{tag}'}}}}")
    assert set(found) == STEPS[step], found


def socket_of(deployment: Deployment) -> str:
    """Return the path of the engine's socket; skip where it is reached in another way."""
    shown = deployment.run("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    kind, _, path = shown.stdout.strip().partition("://")
    if kind != "unix":
        pytest.skip("the engine has no socket on this machine")
    return path


def folder_of_the_data(deployment: Deployment) -> str:
    """Return the folder of the engine's machine that has the records."""
    return str(deployment.engine.volumes.get(deployment.volume).attrs["Mountpoint"])


def test_container_that_is_killed_breaks_the_last_point(changeable: Deployment, library: Path) -> None:
    changeable.change("services: {service: {stop_signal: SIGKILL}}")
    changeable.start()
    assert set(probe(changeable, library, "--no-rebuild").fails) == {RESTART}


def test_every_point_is_seen_to_fail_somewhere() -> None:
    assert {RESTART}.union(PLAIN_FAILS, *OPTIONS.values(), *STEPS.values()) == POINTS
