"""A container engine, and rendered services that are built and run on it.

Everything that is made here has a name that begins with `run_name()`, which is new for each run of the tests:
nothing of anybody else is touched, and all of it can be removed at the end.
"""

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeVar

import docker
from docker.errors import NotFound
from docker.models.containers import Container
from scaffold import HARDENED, HARDENED_TPM, PLAIN, Answers, Shared, Template, locked, require, run
from service import Client

RUN = "BARTIZAN_TEST_RUN"
OVERRIDE = "BARTIZAN_COMPOSE_OVERRIDE"

CHANGES = "docker-compose.test.yml"

SERVICE_UID = 65532
PYTHON = "/app/.venv/bin/python"

VARIANTS: Mapping[str, Answers] = {
    "plain": PLAIN,
    "default": HARDENED,
    "aes": HARDENED | {"encryption_backend": "aes256gcm"},
    "tpm": HARDENED_TPM | {"encryption_backend": "xchacha20poly1305"},
}

# Bounds a failure only: what is waited for is there within seconds.
PATIENCE = 90.0
BUILD_PATIENCE = 600.0

Seen = TypeVar("Seen")


def name_the_run() -> None:
    """Give the run its name; its parallel processes inherit it."""
    os.environ[RUN] = secrets.token_hex(4)


def run_name() -> str:
    """Return what all names of this run begin with."""
    return f"bartizan-test-{os.environ[RUN]}"


def connect() -> docker.DockerClient | None:
    """Return a client for the engine that the command line talks to; None if there is none."""
    # The command line is asked first: the package leaves a socket open where nobody answers.
    try:
        if run(Path.cwd(), "docker", "version").returncode != 0:
            return None
    except FileNotFoundError:
        return None
    shown = run(Path.cwd(), "docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    return docker.DockerClient(base_url=shown.stdout.strip() or None, timeout=120)


def require_engine() -> docker.DockerClient:
    """Return a client for the engine; skip or fail, as `require` does, where there is none, or no compose."""
    client = connect()
    require(client is not None, "a container engine")
    require(run(Path.cwd(), "docker", "compose", "version").returncode == 0, "docker compose")
    assert client is not None
    return client


def remove_what_this_run_made(client: docker.DockerClient) -> None:
    """Remove the containers, volumes, networks and images of this run, and nothing else."""
    name = run_name()
    for container in client.containers.list(all=True, filters={"name": name}):
        with contextlib.suppress(NotFound):
            container.remove(force=True, v=True)
    for volume in client.volumes.list(filters={"name": name}):
        volume.remove(force=True)
    for network in client.networks.list(filters={"name": name}):
        network.remove()
    for image in client.images.list(filters={"reference": f"{name}*"}):
        for tag in image.tags:
            if tag.startswith(name):
                # The probe's own containers, if it was ended.
                for container in client.containers.list(all=True, filters={"ancestor": tag}):
                    container.remove(force=True, v=True)
                client.images.remove(tag, force=True)


def eventually(what: str, look: Callable[[], Seen], *, patience: float = PATIENCE) -> Seen:
    """Look until what is seen is true, and return it."""
    deadline = time.monotonic() + patience
    while not (seen := look()):
        assert time.monotonic() < deadline, f"{what}: not within {patience:.0f} s"
        time.sleep(0.1)
    return seen


def takes_requests(address: str) -> bool:
    """Tell whether the service at an address answers on a new connection, or closes it."""
    connection = HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except (RemoteDisconnected, ConnectionError):
        return False
    finally:
        connection.close()


def begin_request(address: str, name: str, body: bytes) -> socket.socket:
    """Send the head of a request to store a record; return when the service waits for the body."""
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = (
        f"PUT /v1/records/{name} HTTP/1.1",
        f"Host: {address}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Expect: 100-continue",
    )
    connection.sendall("\r\n".join([*head, "", ""]).encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 100")
    return connection


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Build alone: two builds that share steps, one of them without a cache, can crash the engine."""
    with locked(Path(tempfile.gettempdir()) / f"bartizan-test-building-{os.getuid()}.lock"):
        yield


@dataclass(frozen=True)
class Variants:
    """The projects of `VARIANTS`, each rendered, locked and built once for the whole run.

    Attributes:
        shared: Where they are.
        template: What they are rendered from.
    """

    shared: Shared
    template: Template

    @staticmethod
    def image(variant: str) -> str:
        """Return the name of a variant's image; it is also the slug of its project."""
        return f"{run_name()}-{variant}"

    def rendered(self, variant: str) -> Path:
        """Return the project with its lock file, ready to be built. Read only: see `deployment`."""

        def render(place: Path) -> None:
            # The name that people read begins with what the slug is made of, so that both are new.
            answers = VARIANTS[variant] | {"project_slug": self.image(variant)}
            self.template.copy(place, answers)
            locked = run(place, "uv", "lock", "--quiet")
            assert locked.returncode == 0, locked.stderr
            if override := os.environ.get(OVERRIDE):
                shutil.copy(override, place / "docker-compose.override.yml")

        return self.shared.once(f"container-{variant}", render)

    def built(self, variant: str) -> Path:
        """Return the project whose image has been built, with the command that its documentation names."""

        def build(place: Path) -> None:
            shutil.copytree(self.rendered(variant), place)
            with building():
                done = run(place, "docker", "compose", "build", "--quiet", "service", timeout=BUILD_PATIENCE)
            assert done.returncode == 0, done.stderr

        return self.shared.once(f"container-built-{variant}", build)

    @contextlib.contextmanager
    def deployment(
        self,
        variant: str,
        folder: Path,
        override: str = "",
        *,
        engine: docker.DockerClient | None = None,
        settings: Mapping[str, str] | None = None,
        overlay: str = "",
    ) -> Iterator["Deployment"]:
        """Give a service of its own from the variant's image, not started, and remove it at the end.

        Args:
            variant: A name in `VARIANTS`.
            folder: For its copy of the project; must exist, may hold others.
            override: YAML of one more compose file, which is merged last.
            engine: Another one than this machine's; `settings` has to lead the commands there, too.
            settings: More variables of the environment.
            overlay: A compose file of the project that is merged with the first one.
        """
        name = f"{run_name()}-{secrets.token_hex(3)}"
        place = folder / name
        shutil.copytree(self.built(variant), place)
        with contextlib.ExitStack() as stack:
            client = engine or stack.enter_context(contextlib.closing(require_engine()))
            deployment = Deployment(client, place, name, variant, settings or {}, overlay)
            deployment.change(override)
            try:
                yield deployment
            finally:
                down = ("down", "--volumes", "--remove-orphans", "--timeout", "5")
                deployment.compose("--profile", "*", *down)


@dataclass(frozen=True)
class Deployment:
    """One service, with a project folder, a volume and a network of its own.

    Attributes:
        engine: The engine it runs on.
        folder: Its project: settings, secrets and compose files may be changed.
        name: Its compose project.
        variant: What its image was rendered with.
        settings: What is added to the environment of its commands.
        overlay: A compose file that is merged with the first one, if any.
    """

    engine: docker.DockerClient
    folder: Path
    name: str
    variant: str
    settings: Mapping[str, str]
    overlay: str

    @property
    def files(self) -> list[str]:
        """Its compose files, in the order of their merging."""
        names = ("docker-compose.yml", self.overlay, "docker-compose.override.yml", CHANGES)
        return [name for name in names if name and (self.folder / name).exists()]

    def change(self, override: str) -> None:
        """Have a compose file merged last, in place of the one before; an empty one changes nothing."""
        (self.folder / CHANGES).write_text(override or "services: {}\n", "utf-8")

    @property
    def volume(self) -> str:
        """The name of its data volume."""
        return f"{self.name}_data"

    @property
    def key(self) -> Path:
        """Where its key is on this machine."""
        return self.folder / "secrets" / "container.key"

    @property
    def environment(self) -> dict[str, str]:
        """What makes `docker compose`, and recipes that call it, mean this service."""
        return {
            "COMPOSE_PROJECT_NAME": self.name,
            "COMPOSE_FILE": os.pathsep.join(self.files),
            # Any free port: `client` asks the engine which one it has become.
            "SERVICE_PORT": "0",
            **self.settings,
        }

    def run(
        self, *command: str, environment: Mapping[str, str] | None = None, timeout: float = 300
    ) -> CompletedProcess[str]:
        """Run a command in its project; the caller looks at the exit code."""
        surroundings = self.environment | dict(environment or {})
        return run(self.folder, *command, environment=surroundings, timeout=timeout)

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` for it, which has to succeed, and return what it printed."""
        done = self.run("docker", "compose", *arguments)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.said()}"
        return done.stdout

    def take_own_image(self) -> None:
        """Have it run from an image of its own name, before anything builds.

        Compose writes the name of its project into what it builds, so that a build under the shared name
        would give all other tests another image.
        """
        shared = f"image: {Variants.image(self.variant)}\n"
        for path in self.folder.glob("docker-compose*.yml"):
            text = path.read_text("utf-8")
            if shared in text:
                self.engine.images.get(Variants.image(self.variant)).tag(self.name)
                path.write_text(text.replace(shared, f"image: {self.name}\n"), "utf-8")

    def make_key(self, key: bytes | None = None) -> None:
        """Put a key where the container finds it, as scripts/container_key.py leaves it."""
        self.key.parent.mkdir(mode=0o700, exist_ok=True)
        self.key.unlink(missing_ok=True)
        self.key.write_bytes(secrets.token_bytes(32) if key is None else key)
        self.key.chmod(0o444)

    def initialise(self) -> None:
        """Make the key and the envelope, without a recovery phrase, because there is no terminal."""
        self.make_key()
        self.compose("run", "--rm", "--no-TTY", "init", "init", "--no-recovery")

    def start(self) -> Client:
        """Start it, or take over what was changed, and wait until it is healthy."""
        self.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", f"{PATIENCE:.0f}", "service")
        return self.client

    def command(self, *arguments: str) -> CompletedProcess[str]:
        """Run the `init` container with a command of service_security in place of `init`."""
        return self.run("docker", "compose", "run", "--rm", "--no-TTY", "init", *arguments)

    def once(self) -> CompletedProcess[str]:
        """Run the service in the foreground, with no restart: for one that is expected to end by itself."""
        return self.run("docker", "compose", "run", "--rm", "--no-TTY", "service", timeout=PATIENCE)

    @property
    def container(self) -> Container:
        """Its running or stopped container, as it is now."""
        wanted = [f"com.docker.compose.project={self.name}", "com.docker.compose.service=service"]
        (found,) = self.engine.containers.list(all=True, filters={"label": wanted})
        return found

    @property
    def client(self) -> Client:
        """A client of the running service."""
        ((published, *_),) = (each for each in self.container.ports.values() if each)
        return Client(f"http://127.0.0.1:{published['HostPort']}")

    @property
    def health(self) -> str:
        """What the health check says now: starting, healthy or unhealthy."""
        return str(self.container.attrs["State"]["Health"]["Status"])

    def said(self) -> str:
        """Return what all its containers have written, if there are any."""
        return self.run("docker", "compose", "logs", "--no-log-prefix", "--no-color", "service").stdout

    def inside(self, code: str, *, user: str = "") -> str:
        """Run Python code in the running container, which has to succeed; return what it printed."""
        done = self.container.exec_run([PYTHON, "-I", "-B", "-c", code], user=user)
        assert isinstance(done.output, bytes)
        said = done.output.decode()
        assert done.exit_code == 0, f"{done.exit_code}: {said}"
        return said

    def in_volume(self, code: str) -> str:
        """Run Python code as root in another container with its volume; return what it printed.

        As whoever administers the machine gets at the files: none of the service's limits hold there.
        """
        said: bytes = self.engine.containers.run(
            Variants.image(self.variant),
            ["-I", "-B", "-c", code],
            entrypoint=[PYTHON],
            name=f"{self.name}-{secrets.token_hex(3)}",
            user="0",
            network_mode="none",
            cap_drop=["ALL"],
            cap_add=["CHOWN", "DAC_OVERRIDE"],
            volumes={self.volume: {"bind": "/data", "mode": "rw"}},
            remove=True,
        )
        return said.decode()


Deploy = Callable[..., Deployment]
