"""Points 16 to 26: how the container was started."""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Final

from .document import Document, NotShownError
from .facts import DATA, SCRATCH, TPM, Facts
from .finding import Finding, Point, finding
from .plain_text import counted, listed, plain, some
from .seccomp import problems_of

MOST_PROCESSES: Final = 4096
ENGINE_SOCKETS: Final = re.compile(
    r"(?:docker|podman|containerd|crio|cri-dockerd|buildkitd|balena-engine)[^/]*\.sock$"
)
MANAGED_TPMS: Final = re.compile(r"/dev/tpmrm[0-9]+")
"""Behind the kernel's resource manager: who has the bare ``/dev/tpm0`` shuts out everyone else."""
MODES: Final = ("", "nat", "isolated")
"""Of a bridge's gateway: in any other a container is reached without a published port."""
BRIDGES: Final = ("", "docker0")
"""Names that an engine gives to bridges of its own."""
MACHINES_OWN: Final = {
    "cgroup": 0xEFFFFFFB,
    "ipc": 0xEFFFFFFF,
    "pid": 0xEFFFFFFC,
    "uts": 0xEFFFFFFE,
}
"""Numbers of the namespaces that the kernel starts with."""


def has_read_only_root(facts: Facts) -> Finding:
    """Judge point 16."""
    read_only = facts.container.flag("HostConfig", "ReadonlyRootfs")
    return finding([] if read_only else ["The root file system can be written to."], "read-only")


def drops_capabilities(facts: Facts) -> Finding:
    """Judge point 17."""
    dropped = facts.container.texts("HostConfig", "CapDrop")
    added = facts.container.texts("HostConfig", "CapAdd")
    problems = []
    if [each.upper().removeprefix("CAP_") for each in dropped] != ["ALL"]:
        problems.append(f"Dropped are {some(dropped) or 'none'}, not ALL.")
    if added:
        problems.append(f"Added are {some(added)}.")
    return finding(problems, "ALL dropped, none added")


def gains_no_privileges(facts: Facts) -> Finding:
    """Judge point 18."""
    options = [
        each
        for each in facts.container.texts("HostConfig", "SecurityOpt")
        if each.startswith("no-new-privileges")
    ]
    accepted = {"no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"}
    problems = []
    if not options:
        problems.append("The option no-new-privileges is not set.")
    elif odd := set(options) - accepted:
        problems.append(f"The option is {some(odd)}.")
    return finding(problems, "no-new-privileges")


def filters_calls(facts: Facts) -> Finding:
    """Judge point 19."""
    options = facts.container.texts("HostConfig", "SecurityOpt")
    return finding(
        [*problems_of(options)], "what no rule names is refused; no rule names what is dangerous"
    )


def is_not_privileged(facts: Facts) -> Finding:
    """Judge point 20."""
    privileged = facts.container.flag("HostConfig", "Privileged")
    return finding(["The container is privileged."] if privileged else [], "not privileged")


def is_limited(facts: Facts) -> Finding:
    """Judge point 21: what was asked for, and what the kernel enforces."""
    host = facts.container.part("HostConfig")
    processes = host.number("PidsLimit") if host.has("PidsLimit") else 0
    memory, swap, nano = (host.number(each) for each in ("Memory", "MemorySwap", "NanoCpus"))
    quota = host.number("CpuQuota") if host.has("CpuQuota") else 0
    problems = []
    if not 0 < processes <= MOST_PROCESSES:
        problems.append(f"Processes are limited to {processes}, not to 1 to {MOST_PROCESSES}.")
    if memory <= 0:
        problems.append("Memory is not limited.")
    if swap != memory:
        problems.append(
            f"Memory is {memory} and memory with swap {swap}: what is in memory may be swapped."
        )
    if nano <= 0 and quota <= 0:
        problems.append("CPU time is not limited.")
    problems += _not_in_force(facts.answer("limits"), processes, memory)
    cpus = nano / 1e9 if nano > 0 else quota / 1e5
    return finding(
        problems, f"{processes} processes, {memory >> 20} MiB without swap, {cpus:g} CPUs, in force"
    )


def _not_in_force(limits: Document, processes: int, memory: int) -> Iterator[str]:
    second = limits.text("version") == "2"
    if _number(limits, "pids") != processes:
        yield f"In force for processes: {_shown(limits, 'pids')}."
    if _number(limits, "memory") != memory:
        yield f"In force for memory: {_shown(limits, 'memory')}."
    if limits.has("swap"):
        if _number(limits, "swap") != (0 if second else memory):
            yield f"In force for swap: {_shown(limits, 'swap')}."
    elif limits.text("swap_areas") != "0":
        yield "The kernel does not limit swap, and the machine has some."
    if _number(limits, "cpu") is None or (_number(limits, "cpu") or 0) <= 0:
        yield f"In force for CPU time: {_shown(limits, 'cpu')}."


def _number(limits: Document, name: str) -> int | None:
    word = _shown(limits, name).split(" ")[0]
    return int(word) if re.fullmatch(r"-?[0-9]{1,20}", word) else None


def _shown(limits: Document, name: str) -> str:
    return plain(limits.text(name), 40) if limits.has(name) else "nothing"


def shares_no_namespace(facts: Facts) -> Finding:
    """Judge point 22: what was asked for, and the namespaces that it is in."""
    host = facts.container.part("HostConfig")
    allowed = {
        "PidMode": ("", "private"),
        "IpcMode": ("private", "none"),
        "UTSMode": ("", "private"),
        "CgroupnsMode": ("private",),
    }
    problems = [
        f"{name} is {plain(host.text(name), 60) or 'not set'}."
        for name, values in allowed.items()
        if host.text(name) not in values
    ]
    if host.text("UsernsMode") == "host":
        problems.append("UsernsMode is host.")
    network = host.text("NetworkMode")
    if network in ("", "host") or network.startswith(("container:", "ns:")):
        problems.append(f"NetworkMode is {plain(network, 60) or 'not set'}.")
    namespaces = facts.answer("namespaces")
    problems += [
        f"Inside, the {name} namespace is the machine's own."
        for name, number in MACHINES_OWN.items()
        if namespaces.number(name) == number
    ]
    groups = facts.answer("control_groups").texts()
    if not groups or any(line.split(":", 2)[-1] != "/" for line in groups):
        problems.append("Inside, the control groups of the machine are seen.")
    return finding(problems, f"own pid, ipc, uts, cgroup namespaces; network {plain(network, 60)}")


def listens_to_this_machine(facts: Facts) -> Finding:
    """Judge point 23: as asked for, and as it came to be."""
    if facts.container.flag("HostConfig", "PublishAllPorts"):
        return finding(["All ports are published, on every address."], "")
    problems = set()
    places = set()
    for path in (("HostConfig", "PortBindings"), ("NetworkSettings", "Ports")):
        for port, bindings in facts.container.table(*path).items():
            for binding in bindings.entries():
                address = binding.text("HostIp")
                places.add(f"{plain(address, 60)}:{plain(binding.text('HostPort'), 20)}")
                if not _is_loopback(address):
                    problems.add(
                        f"Port {plain(port, 40)} is published on "
                        f"{plain(address, 60) or 'every address'}."
                    )
    names, open_networks = _networks(facts)
    return finding(
        sorted(problems) + open_networks,
        f"published: {listed(sorted(places))}; networks: {some(names)}",
    )


def _networks(facts: Facts) -> tuple[Sequence[str], list[str]]:
    names = [*facts.container.table("NetworkSettings", "Networks")]
    problems = [] if names else ["The container is in no network that the engine names."]
    for name in sorted(names):
        network = facts.networks.part(name)
        if reason := _why_open(network):
            problems.append(
                f"Network {plain(name, 80)} {reason}: others may reach every port of the container "
                "there, published or not."
            )
    return names, problems


def _why_open(network: Document) -> str:
    driver = network.text("Driver")
    if driver == "null":
        return ""
    if driver != "bridge":
        return f"is of the driver {plain(driver, 40) or 'of nobody'}"
    options = network.table("Options")
    for family in ("ipv4", "ipv6"):
        mode = _option(options, f"gateway_mode_{family}")
        if mode not in MODES:
            return f"has a gateway that is {plain(mode, 40)}"
    if (name := _option(options, "name")) not in BRIDGES:
        return f"is the bridge {plain(name, 40)}, which may have a card of the machine in it"
    return ""


def _option(options: dict[str, Document], name: str) -> str:
    value = options.get(f"com.docker.network.bridge.{name}")
    return "" if value is None else value.text()


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def has_safe_scratch(facts: Facts) -> Finding:
    """Judge point 24: as asked for, and as it is mounted."""
    host = facts.container.part("HostConfig")
    tables = host.table("Tmpfs") if host.has("Tmpfs") else {}
    asked = {path: each.text().split(",") for path, each in tables.items()}
    more = {
        each.text("Target")
        for each in (host.entries("Mounts") if host.has("Mounts") else [])
        if each.text("Type") == "tmpfs"
    }
    mounts = facts.answer("mounts").table()
    problems = []
    if SCRATCH not in asked.keys() | more:
        problems.append(f"{SCRATCH} is no file system in memory.")
    for path in sorted(asked.keys() | more):
        mounted = mounts.get(path)
        if mounted is None or mounted.text("kind") != "tmpfs":
            problems.append(f"Nothing in memory is mounted at {plain(path, 80)}.")
            continue
        options = mounted.text("options").split(",") + mounted.text("system_options").split(",")
        wanted = ("noexec", "nosuid", "nodev")
        if missing := [
            each
            for each in wanted
            if each not in options or (path in asked and each not in asked[path])
        ]:
            problems.append(f"{plain(path, 80)} is mounted without {', '.join(missing)}.")
        if not any(re.fullmatch(r"size=[1-9][0-9]*[kmg]?", each) for each in options) or not (
            path in more or any(each.startswith("size=") for each in asked[path])
        ):
            problems.append(f"{plain(path, 80)} has no size of its own.")
    return finding(problems, f"noexec, nosuid, nodev and a size on {some(asked.keys() | more)}")


def reaches_no_device_or_engine(facts: Facts) -> Finding:
    """Judge point 25: what was asked for, and what is seen inside."""
    host = facts.container.part("HostConfig")
    problems = [*_devices(facts, host)]
    for name in ("DeviceRequests", "DeviceCgroupRules"):
        if host.entries(name):
            problems.append(f"{name} are set.")
    binds = 0
    data = f"no volume at {DATA}"
    for mount in facts.container.entries("Mounts"):
        kind, inside = mount.text("Type"), mount.text("Destination")
        source = mount.text("Source") if mount.has("Source") else ""
        if any(ENGINE_SOCKETS.search(path) for path in (source, inside)):
            problems.append(f"An engine's socket is mounted at {plain(inside, 80)}.")
        if kind == "volume" and inside == DATA:
            data = f"{plain(mount.text('Name'), 80)}, of the engine's own, at {DATA}"
            problems += _not_the_engines_own(facts, mount.text("Name"))
            continue
        if kind == "bind":
            binds += 1
        if mount.flag("RW") and kind != "tmpfs":
            problems.append(
                f"A {plain(kind, 20)} that can be written to is mounted at {plain(inside, 80)}."
            )
    if sockets := facts.answer("files").texts("sockets"):
        problems.append(f"Sockets inside: {some(sockets)}.")
    given = TPM if facts.uses_tpm else "no device"
    return finding(
        problems,
        f"{given}, no socket of an engine, {counted(binds, 'bind')}, read-only; {data}",
    )


def _not_the_engines_own(facts: Facts, name: str) -> Iterator[str]:
    volume = facts.volumes.part(name)
    driver, options = volume.text("Driver"), volume.table("Options")
    if driver != "local":
        odd = f"is of the driver {plain(driver, 40)}"
    elif options:
        odd = f"has the options {some(options)}"
    else:
        return
    yield (
        f"The volume {plain(name, 80)} at {DATA} {odd}: it may be a folder of the machine or of a "
        "network."
    )


def _devices(facts: Facts, host: Document) -> Iterator[str]:
    wanted = [TPM] if facts.uses_tpm else []
    given = [each.text("PathInContainer") for each in host.entries("Devices")]
    if given != wanted:
        yield f"Given devices: {some(given) or 'none'}, not {some(wanted) or 'none'}."
    for device in host.entries("Devices") if given == wanted else ():
        if not MANAGED_TPMS.fullmatch(device.text("PathOnHost")):
            yield f"{TPM} inside is {plain(device.text('PathOnHost'), 80)} of the machine."
    if (seen := facts.answer("files").texts("devices")) != wanted:
        yield f"Devices inside: {some(seen) or 'none'}, not {some(wanted) or 'none'}."


def is_healthy(facts: Facts) -> Finding:
    """Judge point 26."""
    if not facts.container.has("State", "Health"):
        raise NotShownError("the container has no health check")
    status = facts.container.text("State", "Health", "Status")
    running = facts.container.text("State", "Status")
    problem = f"The container is {plain(running, 40)} and {plain(status, 40)}."
    return finding([] if (running, status) == ("running", "healthy") else [problem], "healthy")


POINTS: Final[Sequence[Point]] = (
    Point(
        16,
        "The root file system is read-only",
        "Nothing can be planted that would still be there after the next request.",
        has_read_only_root,
    ),
    Point(
        17,
        "All capabilities are dropped and none is added",
        "They are root's power in pieces, and an engine hands out fourteen by default.",
        drops_capabilities,
    ),
    Point(
        18,
        "No new privileges",
        "No setuid file can give back what was taken away.",
        gains_no_privileges,
    ),
    Point(
        19,
        "The seccomp profile refuses what it does not name",
        "Most ways out of a container lead through a system call that no service needs.",
        filters_calls,
    ),
    Point(
        20, "Not privileged", "A privileged container is root on the machine.", is_not_privileged
    ),
    Point(
        21,
        "Processes, memory and CPU time are limited, and there is no swap",
        "One service cannot starve its neighbours, and no key reaches a disk.",
        is_limited,
    ),
    Point(
        22,
        "No namespace of the machine",
        "In a shared one the service sees and disturbs processes, networks or limits of others.",
        shares_no_namespace,
    ),
    Point(
        23,
        "Ports are published on loopback only",
        "Nobody has to log in yet, and engines open ports past the machine's firewall.",
        listens_to_this_machine,
    ),
    Point(
        24,
        "File systems in memory are noexec, nosuid, nodev and have a size",
        "The place for scratch files must not be one to run them from, or fill the memory.",
        has_safe_scratch,
    ),
    Point(
        25,
        "No device, no engine socket, no writable bind",
        "Each of them reaches the machine. A service whose key is in a TPM has that one device.",
        reaches_no_device_or_engine,
    ),
    Point(26, "Healthy", "What was probed is a service that works like this.", is_healthy),
)
