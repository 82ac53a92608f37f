"""The guide to deployment keeps its word: its commands are run, on the engine and on a machine of systemd's.

The part on systemd is run in test_systemd.py. A block that neither runs is a failure here.
"""

import contextlib
import inspect
import json
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from scaffold import HARDENED, HARDENED_TPM, Answers

from containers import test_systemd
from containers.engine import PYTHON, Deploy, Deployment, Variants, building, eventually
from containers.systemd import GUIDE, blocks

CONTAINER = (
    "Container",
    "Looking inside",
    "When it does not start",
    "The key is lost, or has leaked",
    "Records of a plain service",
    "Backup, update, rollback, new keys",
)
RECORDS = {"greeting": "hello"}

# Installed in the projects of this test is only what their recipes ask for; `just` comes from here.
UV = """#!/bin/sh
if [ "$1 $2" = "run just" ]; then shift 2; exec just "$@"; fi
exec {uv} "$@"
"""

# Everything that docker-compose.yml asks of the engine, given up at once.
GIVEN_UP = """
services:
  service:
    user: "0"
    cgroup: host
    read_only: false
    cap_drop: !reset null
    security_opt: !override [seccomp=unconfined]
    tmpfs: !override ["/tmp:rw,exec", "/dev/shm:rw,exec"]
    mem_limit: !reset null
    memswap_limit: !reset null
    cpus: !reset null
    pids_limit: !reset null
    ports: !override ["{address}::8000"]
"""


def guide_of(deployment: Deployment) -> str:
    """Return the guide of a project."""
    return (deployment.folder / GUIDE).read_text("utf-8")


def command(deployment: Deployment, block: str) -> str:
    """Run a block of the guide in the project of a deployment; return what it printed."""
    slug = Variants.image(deployment.variant)
    # Tests share an image and not a volume, and it has just been built; nobody is there to read a phrase.
    script = block.replace(f"{slug}_data", deployment.volume)
    script = script.replace("just up", "just up --no-recovery").replace(
        "security-probe", "security-probe --no-rebuild"
    )
    shims = deployment.folder / ".shims"
    shims.mkdir(exist_ok=True)
    uv = shutil.which("uv")
    assert uv is not None
    (shims / "uv").write_text(UV.format(uv=shlex.quote(uv)), "utf-8")
    (shims / "uv").chmod(0o755)
    words = ["bash", "-euo", "pipefail", "-c", f'PATH="{shims}:$PATH"\n{script}']
    builds = "just up" in block or "compose build" in block
    if builds:
        deployment.take_own_image()
    with building() if builds else contextlib.nullcontext():
        done = deployment.run(*words, timeout=600)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}\n{deployment.said()}"
    return done.stdout


def test_every_block_of_the_guide_is_run_somewhere(rendered: Callable[[Answers], Path]) -> None:
    guide = (rendered(HARDENED) / GUIDE).read_text("utf-8")
    there = {token.content for token in MarkdownIt("commonmark").parse(guide) if token.type == "fence"}
    named = {*CONTAINER, *re.findall(r'blocks\([\w.]+, "([^"]+)"\)', inspect.getsource(test_systemd))}
    assert {"Install", "Start"} < named, "control"
    assert {block for heading in named for block in blocks(guide, heading)} == there


def test_commands_to_start_try_and_probe_it_succeed(deploy: Deploy) -> None:
    deployment = deploy(initialised=False)
    (start,) = blocks(guide_of(deployment), "Container")
    said = command(deployment, start)
    assert "a record was written, read and deleted" in said
    assert (deployment.folder / "reports" / "security-probe.md").is_file()


def test_commands_to_look_inside_show_something(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.command("keys", "recovery-phrase", "--phrase-file", "/data/phrase")
    deployment.start().put(RECORDS)
    inside, beside = blocks(guide_of(deployment), "Looking inside")
    said = command(deployment, inside)
    assert "listening" in said
    assert "'records.db'" in said
    assert "Nothing is wrong" in said
    assert f"{PYTHON} -I -B -u -m" in said, "the list of processes"
    assert re.search(r"^Uid:\t65532\t", command(deployment, beside), re.MULTILINE)


def beside(
    deployment: Deployment, words: list[str], cap_add: Sequence[str] = (), volumes_from: Sequence[str] = ()
) -> int:
    """Run a second container in the service's process namespace, as root; return its exit status."""
    container = deployment.engine.containers.run(
        Variants.image(deployment.variant),
        words,
        entrypoint=[PYTHON, "-I", "-c"],
        name=f"{deployment.name}-beside",
        user="0",
        pid_mode=f"container:{deployment.container.id}",
        cap_add=list(cap_add),
        volumes_from=list(volumes_from),
        detach=True,
    )
    try:
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


def test_second_container_sees_no_memory_unless_it_may_trace(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start()
    for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/root/data/envelope.json"):
        look = [f"open({path!r}, 'rb').close()"]
        assert beside(deployment, look) == 1
        assert beside(deployment, look, cap_add=["SYS_PTRACE"]) == 0, "it may"
    assert beside(deployment, ["open('/proc/1/status').close()"]) == 0


def test_copies_go_out_of_the_volume_and_into_nothing_else(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start()
    assert "`docker compose cp service:/data/FILE .`" in guide_of(deployment)
    deployment.compose("cp", "service:/data/envelope.json", ".")
    into_root = deployment.run("docker", "compose", "cp", "envelope.json", "service:/app/envelope.json")
    assert into_root.returncode != 0
    assert "read-only" in into_root.stderr
    deployment.compose("cp", "envelope.json", "service:/data/copied")
    assert deployment.in_volume("import os; print(os.stat('/data/copied').st_uid)") == "0\n"


def test_volumes_of_a_service_bring_its_key_along(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start()
    code = ["import os; assert os.path.getsize('/run/secrets/service_key') == 32"]
    assert beside(deployment, code, volumes_from=[str(deployment.container.id)]) == 0
    assert beside(deployment, code) == 1, "control"


def test_volume_of_roots_is_handed_over_by_the_command(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start().put(RECORDS)
    deployment.compose("rm", "--stop", "--force", "service")
    theirs = (
        "import os\nfor f, _, n in os.walk('/data'):\n for x in ('', *n): os.chown(os.path.join(f, x), 0, 0)"
    )
    deployment.in_volume(theirs)
    refused = deployment.once()
    (message,) = messages(guide_of(deployment), "belongs to another user")
    assert message in refused.stdout + refused.stderr
    (hand_over,) = blocks(guide_of(deployment), "When it does not start")
    command(deployment, hand_over)
    assert deployment.start().all() == RECORDS


def test_two_containers_of_a_machine_share_the_volume(deploy: Deploy) -> None:
    deployment = deploy()
    client = deployment.start()
    other = deployment.compose("run", "--detach", "service").strip()
    ask = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/{}').read().decode())"

    def asked(path: str) -> str:
        return deployment.run("docker", "exec", other, PYTHON, "-I", "-c", ask.format(path)).stdout

    try:
        eventually("the other is ready", lambda: asked("readyz"))
        client.put(RECORDS)
        assert json.loads(asked("v1/records/greeting"))["value"] == "hello"
    finally:
        deployment.run("docker", "rm", "--force", other)


def messages(guide: str, cause: str) -> list[str]:
    """Return what the log says, by the guide, for a cause."""
    rows = re.findall(r"^\| `([^`]+)`[^|]*\| ([^|]*) \|", guide, re.MULTILINE)
    return [message for message, because in rows if cause in because]


def without_envelope(deployment: Deployment) -> None:
    deployment.make_key()


def with_another_key(deployment: Deployment) -> None:
    deployment.initialise()
    deployment.make_key()


def with_a_key_of_roots(deployment: Deployment) -> None:
    deployment.initialise()
    deployment.key.chmod(stat.S_IRUSR)


def with_a_short_key(deployment: Deployment) -> None:
    deployment.initialise()
    deployment.key.chmod(stat.S_IRUSR | stat.S_IWUSR)
    deployment.key.write_bytes(b"short")
    deployment.key.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)


def without_key(deployment: Deployment) -> None:
    del deployment


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (without_envelope, "nobody ran `init`"),
        (with_another_key, "the key of another service"),
        (with_a_key_of_roots, "user 65532 may not read it"),
        (with_a_short_key, "the file is cut off"),
        (without_key, "`secrets/container.key` is not there"),
    ],
)
def test_log_says_what_the_guide_says(
    deploy: Deploy, fault: Callable[[Deployment], None], cause: str
) -> None:
    deployment = deploy(initialised=False)
    fault(deployment)
    (message,) = messages(guide_of(deployment), cause)
    done = deployment.once()
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_key_that_is_missing_beside_records_is_not_made_anew(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start().put(RECORDS)
    copy = deployment.folder / "copy"
    deployment.key.rename(copy)
    (message,) = messages(guide_of(deployment), "there are records, and not their key")
    deployment.take_own_image()
    with building():
        done = deployment.run("just", "up", "--no-recovery")
    assert done.returncode != 0
    assert message in done.stderr
    assert not deployment.key.exists()
    deployment.run("install", "-m", "0444", str(copy), str(deployment.key))
    with building():
        assert deployment.run("just", "up", "--no-recovery").returncode == 0
    assert deployment.client.all() == RECORDS


def test_lost_key_and_then_a_leaked_one_are_replaced(deploy: Deploy) -> None:
    deployment = deploy(initialised=False)
    lost, leaked = blocks(guide_of(deployment), "The key is lost, or has leaked")
    deployment.make_key()
    deployment.compose("run", "--rm", "init", "init", "--phrase-file", "/data/phrase")
    deployment.start().put(RECORDS)
    first = deployment.key.read_bytes()
    deployment.key.unlink()
    # What a person types is in a file here.
    command(deployment, lost.replace("keys recover ", "keys recover --phrase-file /data/phrase "))
    second = deployment.key.read_bytes()
    assert second != first
    assert deployment.client.all() == RECORDS
    command(deployment, leaked.replace("--master ", "--master --no-recovery "))
    assert deployment.client.all() == RECORDS
    assert deployment.key.read_bytes() not in (first, second)
    assert (deployment.folder / "secrets" / "leaked.key").read_bytes() == second
    assert "secret" in deployment.command("keys", "status").stdout


def test_records_of_a_plain_service_are_moved_in(deploy: Deploy) -> None:
    plain = deploy("plain")
    plain.start().put(RECORDS)
    plain.compose("rm", "--stop", "--force", "service")
    volume = f"volumes: {{data: {{name: {plain.volume}, external: true}}}}"
    deployment = deploy(override=volume, initialised=False)
    (moving,) = blocks(guide_of(deployment), "Records of a plain service")
    command(deployment, moving.replace("run --rm init\n", "run --rm init init --no-recovery\n"))
    assert deployment.client.all() == RECORDS


def test_backup_update_and_rollback_keep_the_records(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start().put(RECORDS)
    image = Variants.image(deployment.variant)
    backup, update, back = blocks(guide_of(deployment), "Backup, update, rollback, new keys")
    assert "holds 1 record" in command(deployment, backup)
    assert (deployment.folder / "before.backup").stat().st_size > 0
    # Other tests run from the image of that name: here the names are this test's own.
    own = f"{image}-{deployment.name[-6:]}"
    deployment.engine.images.get(image).tag(own)
    for path in deployment.folder.glob("docker-compose*.yml"):
        path.write_text(path.read_text("utf-8").replace(f"image: {image}\n", f"image: {own}\n"), "utf-8")
    tags = re.compile(rf"\b{re.escape(image)}\b")
    command(deployment, tags.sub(own, update))
    assert deployment.client.all() == RECORDS
    previous = deployment.engine.images.get(f"{own}:previous")
    command(deployment, tags.sub(own, back))
    assert deployment.client.all() == RECORDS
    assert deployment.container.attrs["Image"] == previous.id


def test_what_remains_by_the_guide_remains(deploy: Deploy) -> None:
    """Who finds these closed one day may strike them out there."""
    deployment = deploy()
    deployment.start()
    run = (
        "import os, shutil, subprocess, sys; shutil.copy(os.path.realpath(sys.executable), '/data/program');"
    )
    run += "print(subprocess.run(['/data/program', '--version'], capture_output=True).returncode)"
    assert deployment.inside(run) == "0\n"
    (addresses,) = deployment.engine.networks.get("bridge").attrs["IPAM"]["Config"]
    send = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); "
    assert deployment.inside(f"{send}print(s.sendto(b'x', ({addresses['Gateway']!r}, 9)))") == "1\n"


def test_points_of_the_table_fail_when_the_options_are_given_up(deploy: Deploy) -> None:
    """The table says which point of the probe shows an option: without all of them, all those points fail."""
    rows = re.findall(r"^\| (.*?) \|.*\| ([\d, ]+) \|$", guide_of(first := deploy()), re.MULTILINE)
    told = {
        int(point) for option, points in rows if option != "distroless image" for point in points.split(", ")
    }
    assert len(rows) > 10
    assert failing(first) == set(), "control: with all of them, none fails"
    # An address of this machine's that is not loopback, and that no other machine reaches.
    (addresses,) = first.engine.networks.get("bridge").attrs["IPAM"]["Config"]
    bare = deploy(override=GIVEN_UP.format(address=addresses["Gateway"]))
    # That the image has a user, and no key in its environment, are things of the image.
    assert told - {1, 3} <= failing(bare)


def failing(deployment: Deployment) -> set[int]:
    """Return the points that fail in a container that is started for it."""
    deployment.start()
    options = ["--no-rebuild", "--keep-running", "--json", "probe.json", deployment.container.name or ""]
    done = deployment.run("just", "security-probe", *options)
    assert done.returncode in (0, 1), done.stderr
    points = json.loads((deployment.folder / "probe.json").read_text("utf-8"))["points"]
    assert len(points) == 36
    return {point["number"] for point in points if point["verdict"] == "fails"}


def test_guide_names_the_tpm_only_where_its_pieces_are(rendered: Callable[[Answers], Path]) -> None:
    assert "TPM.md" in (rendered(HARDENED_TPM) / GUIDE).read_text("utf-8")
    assert "TPM.md" not in (rendered(HARDENED) / GUIDE).read_text("utf-8")
