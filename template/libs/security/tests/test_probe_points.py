"""Every point of the security probe: it holds for a good service, and fails for each of its faults.

A row is one fault: what is changed in the recorded facts, exactly which points fail then, and a
part of what they say.
"""

import json
from dataclasses import replace
from typing import Any

import pytest

from probe_recorded import ANSWER, CONTAINER, HISTORY, IMAGE
from probe_sample import (
    BY_DIGEST,
    LIBRARIES,
    MAGIC,
    MD5,
    MODULES,
    PACKAGES,
    PROFILE,
    Change,
    all_of,
    bundle,
    content,
    drop,
    failures,
    files,
    good,
    no_answer,
    put,
    variable,
)
from security_probe.document import Document
from security_probe.facts import Facts, NotFound, NotTried, Rebuild, Restart
from security_probe.files import CA_BUNDLE, STATUS, USERS, Entry
from security_probe.finding import Verdict
from security_probe.points import POINTS, judge

HOST = ("container", "HostConfig")
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what must not be
KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PROGRAM = Entry("file", 0o755)
# Base64 of a DER sequence that says that it is longer than what follows.
CUT_BUNDLE = b"-----BEGIN CERTIFICATE-----\nMIIB9DA=\n-----END CERTIFICATE-----\n" * 60


def _entry_point(*words: str) -> Change:
    return all_of(
        put("image", "Config", "Entrypoint", to=list(words)),
        put("container", "Config", "Entrypoint", to=list(words)),
    )


def _step(text: str) -> Change:
    """Add a step to the history, as the last that was made: the engine tells that first."""

    def change(facts: Facts) -> Facts:
        assert not isinstance(facts.steps, NotFound)
        return replace(facts, steps=[text, *facts.steps])

    return change


def _rebuilt(**changes: object) -> Change:
    """Have the new image differ from the old one."""

    def change(facts: Facts) -> Facts:
        after = Document("image", IMAGE | {"Id": "sha256:" + "f" * 64} | changes)
        rebuild = Rebuild(facts.image, after, (HISTORY, HISTORY))
        return replace(facts, rebuild=rebuild)

    return change


def _restarted(seconds: float = 0.8, *, well_again: bool = True, **state: object) -> Change:
    ended = {"Status": "exited", "Running": False, "OOMKilled": False, "ExitCode": 0} | state

    def change(facts: Facts) -> Facts:
        after = Document("container", {"State": ended})
        return replace(facts, restart=Restart(seconds, after, well_again))

    return change


def _profile(**changes: object) -> Change:
    text = json.dumps(PROFILE | changes)
    return put(*HOST, "SecurityOpt", to=["no-new-privileges:true", f"seccomp={text}"])


def _rule(**rule: object) -> Change:
    return _profile(syscalls=[*PROFILE["syscalls"], {"action": "SCMP_ACT_ALLOW"} | rule])


def _modules(compiled: int) -> Change:
    """Have 100 modules in the image, and so many of them compiled."""
    entries: dict[str, Entry | None] = {
        f"{MODULES}/os.py": None,
        f"{PACKAGES}/probe_dev/__init__.py": None,
    }
    for number in range(100):
        entries[f"{MODULES}/m{number}.py"] = Entry("file")
        if number < compiled:
            entries[f"{MODULES}/__pycache__/m{number}.cpython-313.pyc"] = Entry(
                "file", start=BY_DIGEST
            )
    return files(entries)


def _processes(number: int) -> Change:
    return all_of(
        put(*HOST, "PidsLimit", to=number), put("inside", "limits", "pids", to=str(number))
    )


def _mount(**changes: object) -> Change:
    mount = {"Type": "bind", "Source": "/srv", "Destination": "/mnt", "RW": False} | changes
    return put("container", "Mounts", to=[*CONTAINER["Mounts"], mount])


VOLUME = ("volumes", "probe-dev_data")
NETWORK = ("networks", "probe-dev_default")
BRIDGE = "com.docker.network.bridge"


def _data_without_a_name(facts: Facts) -> Facts:
    mounts = [
        {name: value for name, value in mount.items() if name != "Name"}
        for mount in CONTAINER["Mounts"]
    ]
    return put("container", "Mounts", to=mounts)(facts)


def _in_another_network(driver: str) -> Change:
    """Have the container in a second network."""
    network = {"NetworkID": "1", "DriverOpts": None}
    return all_of(
        put("container", "NetworkSettings", "Networks", "lan", to=network),
        put("networks", "lan", to={"Driver": driver, "Options": {}}),
    )


def _health_check(*words: str, of: str = "") -> Change:
    """Have another health check in the image and the container, or in one of the two."""
    documents = [of] if of else ["image", "container"]
    test = ["CMD", "/app/.venv/bin/python", *words]
    return all_of(
        *(put(each, "Config", "Healthcheck", "Test", to=test) for each in documents),
    )


def _published(address: str) -> list[Any]:
    return [{"HostIp": address, "HostPort": "8000"}]


ROWS: list[tuple[str, set[int], Change, str]] = [
    # 1
    ("root", {1}, put("image", "Config", "User", to=""), "'root'"),
    ("user by name", {1}, put("image", "Config", "User", to="nonroot"), "'nonroot'"),
    ("user without group", {1}, put("image", "Config", "User", to="65532"), "not '65532:65532'"),
    ("no user told", {1}, drop("image", "Config", "User"), "Config.User is not shown"),
    # 2
    ("no entry point", {2, 13}, put("image", "Config", "Entrypoint", to=None), "no entry point"),
    ("a shell", {2}, put("container", "Config", "Entrypoint", to=["/bin/sh", "-c", "x"]), "sh"),
    (
        "a shell within a word",
        {2},
        put("container", "Config", "Cmd", to=["--run=x", "exec /bin/bash -c y"]),
        "bash",
    ),
    (
        "a program by name",
        {2},
        put("container", "Config", "Entrypoint", to=["python", "-m", "x"]),
        "absolute path",
    ),
    (
        "a program that is not there",
        {2},
        put("container", "Config", "Entrypoint", to=["/opt/python3", "-m", "x"]),
        "absolute path",
    ),
    (
        "health check through a shell",
        {2},
        put("image", "Config", "Healthcheck", "Test", to=["CMD-SHELL", "true"]),
        "exec form",
    ),
    (
        "health check with a downloader",
        {2},
        put("container", "Config", "Healthcheck", "Test", to=["CMD", "/usr/bin/curl", "-f", "x"]),
        "curl",
    ),
    ("no health check", {2}, drop("image", "Config", "Healthcheck"), "no health check"),
    (
        "health check off",
        {2},
        put("container", "Config", "Healthcheck", "Test", to=["NONE"]),
        "exec",
    ),
    *(
        (f"health check that checks nothing: {words}", {2}, _health_check(*words), "module by -m")
        for words in (
            *(("-I", "-c", "pass"), ("-Ic", "pass"), ("-c", "pass", "-m", "probe_dev.healthcheck")),
            *(("-V", "-m", "probe_dev.healthcheck"), ("-i", "-m", "probe_dev.healthcheck")),
            *(("/app/check.py",), ("-m",), ("-I",), ()),
        )
    ),
    (
        "health check that is not the image's",
        {2},
        _health_check("-m", "this", of="container"),
        "not the image's",
    ),
    ("empty health check", {2}, put("image", "Config", "Healthcheck", "Test", to=["CMD"]), "exec"),
    # 3
    ("a secret by its name", {3}, variable("container", "API_TOKEN=x"), "API_TOKEN"),
    ("a key by its name", {3}, variable("image", "SERVICE_KEY=x"), "SERVICE_KEY"),
    ("a proxy", {3}, variable("image", "https_proxy=http://proxy"), "a proxy"),
    ("a setting of pip", {3}, variable("image", "PIP_INDEX_URL=https://x"), "PIP_INDEX_URL"),
    ("a setting of uv", {3}, variable("container", "UV_DEFAULT_INDEX=https://x"), "UV_DEFAULT"),
    ("a wrapping key", {3}, variable("container", f"WRAPPED={KEY}"), "wrapping key"),
    ("a private key", {3}, variable("container", "X=-----BEGIN PRIVATE KEY-----"), "private key"),
    ("an AWS key", {3}, variable("image", "X=AKIA" + "IOSFODNN7EXAMPLE"), "AWS"),
    ("a password in a URL", {3}, variable("image", "X=https://u:" + "pw@host/simple"), "URL"),
    ("a user in a URL", {3}, variable("image", "X=https://longusername@host/"), "URL"),
    ("something random", {3}, variable("image", "X=q8Zr2LwP0vXk7TnB4mYc9HsD"), "random"),
    ("a secret argument", {3}, put("image", "Config", "Cmd", to=["--password=hunter2"]), "Cmd"),
    (
        "a secret in the health check",
        {3},
        _health_check("-m", "probe_dev.healthcheck", "--password=hunter2"),
        "Healthcheck.Test of the container",
    ),
    (
        "a secret in the health check of the image",
        {2, 3},
        _health_check("-m", "probe_dev.healthcheck", KEY, of="image"),
        "Healthcheck.Test of the image holds a wrapping key",
    ),
    (
        "a secret in the health check of the container",
        {2, 3},
        _health_check("-m", "probe_dev.healthcheck", KEY, of="container"),
        "Healthcheck.Test of the container holds a wrapping key",
    ),
    ("a secret in a label", {3}, put("image", "Config", "Labels", to={"x": f"{KEY}"}), "label x"),
    ("a secret in the history", {3}, _step("RUN pip --index https://u:" + "pw@host"), "Step 11"),
    ("a variable in the history", {3}, _step("RUN |1 API_KEY=abc /bin/sh"), "Step 11"),
    ("a proxy in the history", {3}, _step("RUN |1 HTTP_PROXY=http://x make"), "a proxy"),
    ("no variables told", {3}, drop("image", "Config", "Env"), "Config.Env"),
    ("no history", {3}, lambda facts: replace(facts, steps=NotFound("the history")), "the history"),
    ("an empty history", {3}, lambda facts: replace(facts, steps=[]), "the history"),
    # 4
    ("a low port", {4}, put("image", "Config", "ExposedPorts", to={"80/tcp": {}}), "80/tcp"),
    ("port 1024", {4}, put("image", "Config", "ExposedPorts", to={"1024/tcp": {}}), "1024/tcp"),
    ("no port", {4}, put("image", "Config", "ExposedPorts", to={"http": {}}), "http"),
    ("no volume", {4}, put("image", "Config", "Volumes", to=None), "none"),
    ("two volumes", {4}, put("image", "Config", "Volumes", to={"/data": {}, "/x": {}}), "/x"),
    ("no ports told", {4}, drop("image", "Config", "ExposedPorts"), "ExposedPorts"),
    ("port 65536", {4}, put("image", "Config", "ExposedPorts", to={"65536/tcp": {}}), "65536"),
    # 5
    ("setuid", {5}, files({"usr/lib/su": Entry("file", 0o4755)}), "/usr/lib/su"),
    ("setgid", {5}, files({"usr/lib/write": Entry("file", 0o2755)}), "/usr/lib/write"),
    ("setuid seen inside", {5}, put("inside", "files", "setuid", to=["/x/y"]), "/x/y"),
    # 6
    ("capabilities", {6}, files({"usr/lib/ping": Entry("file", capabilities=True)}), "ping"),
    ("capabilities seen inside", {6}, put("inside", "files", "capable", to=["/x/y"]), "/x/y"),
    # 7
    ("open folder", {7}, files({"srv": Entry("folder", 0o1777)}), "srv"),
    ("open file", {7}, files({"etc/x": Entry("file", 0o666)}), "etc/x"),
    ("open without sticky bit", {7}, files({"tmp": Entry("folder", 0o777)}), "tmp"),
    ("open file of that name", {7}, files({"var/lock": Entry("file", 0o1777)}), "var/lock"),
    ("open device elsewhere", {7}, files({"srv/null": Entry("device", 0o666)}), "srv/null"),
    ("open file among devices", {7}, files({"dev/x": Entry("file", 0o666)}), "dev/x"),
    # 8
    ("its own code", {8}, files({"app": Entry("folder", 0o755, 65532)}), "app"),
    ("its group's", {8}, files({"etc/x": Entry("file", gid=65532)}), "etc/x"),
    ("a name alike", {8}, files({"data2": Entry("folder", 0o755, 65532)}), "data2"),
    # 9
    ("another program", {9}, files({"usr/bin/openssl": PROGRAM}), "usr/bin/openssl"),
    ("another in sbin", {9}, files({"opt/x/sbin/y": PROGRAM}), "opt/x/sbin/y"),
    (
        "a link to another program",
        {9},
        files({"usr/lib/tool": PROGRAM, "usr/bin/tool": Entry("link", target="../lib/tool")}),
        "usr/lib/tool",
    ),
    ("two interpreters", {9}, files({"usr/bin/python3.11": PROGRAM}), "not 2"),
    # 10
    ("pip", {10}, files({f"{PACKAGES}/pip": Entry("folder")}), "pip"),
    ("pip's record", {10}, files({f"{PACKAGES}/pip-25.0.dist-info": Entry("folder")}), "pip-25.0"),
    ("ensurepip", {10}, files({f"{MODULES}/ensurepip": Entry("folder")}), "ensurepip"),
    ("venv", {10}, files({f"{MODULES}/venv": Entry("folder")}), "venv"),
    (
        "tkinter's library",
        {10},
        files({f"{MODULES}/x/_tkinter.cpython-313.so": Entry("file")}),
        "_tk",
    ),
    ("uv", {10}, files({"usr/bin/uv": Entry("file", 0o644)}), "usr/bin/uv"),
    ("a wheel", {10}, files({"opt/x.whl": Entry("file")}), "x.whl"),
    ("an importable one", {10}, put("inside", "interpreter", "modules", to=["uv"]), "imported: uv"),
    # 11
    *(
        (f"left: {path}", {11}, files({path: Entry(kind)}), path)  # type: ignore[arg-type]
        for path, kind in (
            ("app/.git", "folder"),
            ("app/.env", "file"),
            ("app/.env.production", "file"),
            ("root/.ssh", "folder"),
            ("root/.netrc", "file"),
            ("home/nonroot/.aws", "folder"),
            ("app/id_ed25519", "file"),
            ("app/server.key", "file"),
            ("app/cert.pem", "file"),
            ("app/tests", "folder"),
            ("app/test", "folder"),
            ("app/uv.lock", "file"),
            ("app/pyproject.toml", "file"),
            ("Dockerfile", "file"),
            ("app/docker-compose.override.yml", "file"),
            ("app/compose.yaml", "file"),
        )
    ),
    ("left: a test", {11, 12}, files({"app/conftest.py": Entry("file")}), "app/conftest.py"),
    (
        "a key by content",
        {11},
        files({"app/x": Entry("file", private_key=True)}),
        "private key is in",
    ),
    # 12
    ("no bytecode", {12}, files({f"{MODULES}/__pycache__/os.cpython-313.pyc": None}), "os.py"),
    ("another magic", {12}, put("inside", "interpreter", "magic", to="00000000"), "0 of 2"),
    ("another interpreter's", {12}, put("inside", "interpreter", "cache_tag", to="x-1"), "0 of 2"),
    (
        "bytecode by a time that is not the source's",
        {12},
        files(
            {
                f"{MODULES}/__pycache__/os.cpython-313.pyc": Entry(
                    "file", start=MAGIC + bytes(4) + (1001).to_bytes(4, "little") + bytes(4)
                )
            }
        ),
        "os.py",
    ),
    (
        "bytecode cut short",
        {12},
        files({f"{MODULES}/__pycache__/os.cpython-313.pyc": Entry("file", start=BY_DIGEST[:15])}),
        "os.py",
    ),
    ("interpreter unknown", {12}, put("inside", "interpreter", "cache_tag", to=""), "Not shown"),
    ("bytecode unknown", {12}, put("inside", "interpreter", "magic", to=""), "Not shown"),
    ("96 of 100 modules", {12}, _modules(96), "96.0 %"),
    (
        "bytecode of a source of another size",
        {12},
        files(
            {
                f"{MODULES}/__pycache__/os.cpython-313.pyc": Entry(
                    "file", start=MAGIC + bytes(4) + (1000).to_bytes(4, "little") + bytes(4)
                )
            }
        ),
        "os.py",
    ),
    # 13
    ("a library of nobody", {13}, files({f"{LIBRARIES}/libx.so.1": Entry("file")}), "libx.so.1"),
    (
        "a library that was changed",
        {13},
        files({f"{LIBRARIES}/libc.so.6": Entry("file", md5="0" * 32)}),
        "libc.so.6",
    ),
    ("no record", {13}, content(f"{STATUS}libc6", None), "libc.so.6"),
    ("no version", {13}, content(f"{STATUS}libc6", b"Package: libc6\n"), "libc.so.6"),
    ("no digests", {13}, content(f"{STATUS}libc6.md5sums", None), "libc.so.6"),
    (
        "a library elsewhere",
        {13},
        files({"opt/x/liby.so": Entry("file", md5=MD5)}),
        "opt/x/liby.so",
    ),
    (
        "no library at all",
        {13},
        files({f"{LIBRARIES}/libc.so.6": None, f"{LIBRARIES}/libsqlite3.so.0.8.6": None}),
        "No library",
    ),
    ("few certificates", {13}, content(CA_BUNDLE, bundle(50)), "50 certificates"),
    ("no certificates", {13}, content(CA_BUNDLE, None), "0 certificates"),
    (
        "no real ones",
        {13},
        content(CA_BUNDLE, b"-----BEGIN CERTIFICATE-----\nAA==\n" * 60),
        "0 cert",
    ),
    ("none trusted inside", {13}, put("inside", "certificates", to=0), "0 are trusted"),
    ("no time zones", {13}, files({"usr/share/zoneinfo/Europe/Helsinki": None}), "zoneinfo"),
    ("no real zone", {13}, files({"usr/share/zoneinfo/Etc/UTC": Entry("file")}), "zoneinfo"),
    ("no zones inside", {13}, put("inside", "summer_time", to=0), "Helsinki"),
    ("no users", {13}, content(USERS, None), "no nonroot"),
    ("another number", {13}, content(USERS, b"nonroot:x:1000:1000::/:/x\n"), "no nonroot"),
    ("a user without password", {13}, content(USERS, b"nonroot::65532:65532::/:/x\n"), "password"),
    (
        "a second root",
        {13},
        content(USERS, b"nonroot:x:65532:65532::/:/x\ntoor:x:00:0::/:/x\n"),
        "toor",
    ),
    ("cut certificates", {13}, content(CA_BUNDLE, CUT_BUNDLE), "0 certificates"),
    ("one zone missing", {13}, files({"usr/share/zoneinfo/America/New_York": None}), "zoneinfo"),
    # 14
    ("no data folder", {14}, files({"data": None}), "no folder"),
    ("open data folder", {14}, files({"data": Entry("folder", 0o755, 65532, 65532)}), "0755"),
    ("root's data folder", {14}, files({"data": Entry("folder", 0o750, 0, 65532)}), "0:65532"),
    ("a data file", {14}, files({"data": Entry("file", 0o750, 65532, 65532)}), "no folder"),
    ("open mount", {14}, put("inside", "data_mode", to=0o755), "0755"),
    ("nothing mounted", {14}, put("inside", "data_mode", to=None), "data_mode"),
    # 15
    (
        "another layer",
        {15},
        _rebuilt(RootFS={"Type": "layers", "Layers": ["a", "b", "c"]}),
        "Layers 1, 2, 3 of 3",
    ),
    ("fewer layers", {15}, _rebuilt(RootFS={"Type": "layers", "Layers": ["a"]}), "3 layers have"),
    ("another time", {15}, _rebuilt(Created="2026-01-01T00:00:00Z"), "Created differs"),
    ("another user", {15}, _rebuilt(Config={}), "configuration differs"),
    ("another id alone", {15}, _rebuilt(), "A new build is"),
    (
        "attestations, and another layer",
        {15},
        all_of(
            put("image", "Descriptor", to={}), _rebuilt(Descriptor={}, RootFS={"Layers": ["a"]})
        ),
        "layers have become",
    ),
    ("another image runs", {15}, put("container", "Image", to="sha256:0"), "that was compared"),
    (
        "a build that fails",
        {15},
        lambda f: replace(f, rebuild=NotFound("no network")),
        "no network",
    ),
    # 16
    ("writable root", {16}, put(*HOST, "ReadonlyRootfs", to=False), "written to"),
    ("root not told", {16}, drop(*HOST, "ReadonlyRootfs"), "is not shown"),
    ("root oddly told", {16}, put(*HOST, "ReadonlyRootfs", to="true"), "not true or false"),
    # 17
    ("nothing dropped", {17}, put(*HOST, "CapDrop", to=None), "none"),
    ("some dropped", {17}, put(*HOST, "CapDrop", to=["NET_RAW"]), "NET_RAW"),
    ("one added", {17}, put(*HOST, "CapAdd", to=["NET_RAW"]), "NET_RAW"),
    ("added not told", {17}, drop(*HOST, "CapAdd"), "CapAdd"),
    # 18
    (
        "new privileges",
        {18},
        put(*HOST, "SecurityOpt", to=[f"seccomp={json.dumps(PROFILE)}"]),
        "set",
    ),
    (
        "new privileges after all",
        {18},
        put(
            *HOST,
            "SecurityOpt",
            to=[
                "no-new-privileges:true",
                "no-new-privileges:false",
                f"seccomp={json.dumps(PROFILE)}",
            ],
        ),
        "false",
    ),
    # 19
    ("engine's profile", {19}, put(*HOST, "SecurityOpt", to=["no-new-privileges"]), "of its own"),
    (
        "no profile",
        {19},
        put(*HOST, "SecurityOpt", to=["no-new-privileges", "seccomp=unconfined"]),
        "unconfined",
    ),
    (
        "two profiles",
        {19},
        put(*HOST, "SecurityOpt", to=["no-new-privileges", "seccomp={}", "seccomp={}"]),
        "several",
    ),
    (
        "a profile by its path",
        {19},
        put(*HOST, "SecurityOpt", to=["no-new-privileges", "seccomp=/etc/x.json"]),
        "cannot be read",
    ),
    ("allowed by default", {19}, _profile(defaultAction="SCMP_ACT_ALLOW"), "SCMP_ACT_ALLOW"),
    ("logged by default", {19}, _profile(defaultAction="SCMP_ACT_LOG"), "SCMP_ACT_LOG"),
    *(
        (f"{call} allowed", {19}, _rule(names=["read", call]), call)
        for call in (
            *("mount", "ptrace", "bpf", "keyctl", "unshare", "setns", "kexec_load", "init_module"),
            *("open_by_handle_at", "userfaultfd", "perf_event_open", "io_uring_setup", "clone3"),
        )
    ),
    ("a call traced", {19}, _rule(names=["bpf"], action="SCMP_ACT_TRACE"), "bpf"),
    ("a call on a condition", {19}, _rule(names=["bpf"], args=[]), "bpf"),
    ("clone without condition", {19}, _rule(names=["clone"]), "new namespaces"),
    (
        "clone with a weaker mask",
        {19},
        _rule(
            names=["clone"],
            args=[{"index": 0, "value": 0x10000000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
        ),
        "new namespaces",
    ),
    ("a rule without names", {19}, _rule(), "names"),
    (
        "no rules told",
        {19},
        put(
            *HOST,
            "SecurityOpt",
            to=["no-new-privileges", 'seccomp={"defaultAction":"SCMP_ACT_ERRNO"}'],
        ),
        "syscalls",
    ),
    # 20
    ("privileged", {20}, put(*HOST, "Privileged", to=True), "privileged"),
    ("privileged not told", {20}, drop(*HOST, "Privileged"), "is not shown"),
    # 21
    ("any number of processes", {21}, put(*HOST, "PidsLimit", to=None), "limited to 0"),
    ("endless processes", {21}, put(*HOST, "PidsLimit", to=-1), "limited to -1"),
    ("too many processes", {21}, put(*HOST, "PidsLimit", to=100_000), "100000"),
    ("any memory", {21}, put(*HOST, "Memory", to=0), "Memory is not limited"),
    ("swap", {21}, put(*HOST, "MemorySwap", to=-1), "swapped"),
    ("any CPU time", {21}, put(*HOST, "NanoCpus", to=0), "CPU time is not limited"),
    ("memory not told", {21}, drop(*HOST, "Memory"), "Memory is not shown"),
    ("processes not in force", {21}, put("inside", "limits", "pids", to="max"), "max"),
    ("memory not in force", {21}, put("inside", "limits", "memory", to="1" * 19), "memory: 1"),
    ("swap in force", {21}, put("inside", "limits", "swap", to="536870912"), "swap: 536870912"),
    ("CPU time not in force", {21}, put("inside", "limits", "cpu", to="-1"), "CPU time: -1"),
    ("no control groups", {21}, put("inside", "limits", "pids", to=None), "processes: nothing"),
    (
        "swap that is not counted",
        {21},
        all_of(
            put("inside", "limits", "swap", to=None), put("inside", "limits", "swap_areas", to="1")
        ),
        "machine has some",
    ),
    (
        "swap in force, version 2",
        {21},
        all_of(
            put("inside", "limits", "version", to="2"), put("inside", "limits", "swap", to="max")
        ),
        "swap: max",
    ),
    ("4097 processes", {21}, _processes(4097), "4097"),
    # 22
    *(
        (f"{name} {value!r}", {22}, put(*HOST, name, to=value), name)
        for name, value in (
            *(("PidMode", "host"), ("PidMode", "container:x"), ("IpcMode", "host")),
            *(("IpcMode", "shareable"), ("UTSMode", "host"), ("CgroupnsMode", "host")),
            *(("CgroupnsMode", ""), ("UsernsMode", "host"), ("NetworkMode", "host")),
            *(("NetworkMode", "container:x"), ("NetworkMode", "")),
        )
    ),
    ("namespaces not told", {22}, drop(*HOST, "PidMode"), "PidMode is not shown"),
    *(
        (f"the machine's {name}", {22}, put("inside", "namespaces", name, to=number), f"the {name}")
        for name, number in (
            *(("pid", 4026531836), ("ipc", 4026531839), ("uts", 4026531838)),
            *(("cgroup", 4026531835),),
        )
    ),
    ("groups of the machine", {22}, put("inside", "control_groups", to=["0::/docker/x"]), "seen"),
    ("no groups", {22}, put("inside", "control_groups", to=[]), "seen"),
    # 23
    ("all ports", {23}, put(*HOST, "PublishAllPorts", to=True), "All ports"),
    (
        "every address",
        {23},
        put(*HOST, "PortBindings", to={"1/tcp": _published(EVERYWHERE)}),
        EVERYWHERE,
    ),
    ("no address", {23}, put(*HOST, "PortBindings", to={"1/tcp": _published("")}), "every address"),
    (
        "another address",
        {23},
        put("container", "NetworkSettings", "Ports", to={"1/tcp": _published("10.0.0.1")}),
        "10.0.0.1",
    ),
    (
        "IPv6 too",
        {23},
        put("container", "NetworkSettings", "Ports", to={"1/tcp": _published("::")}),
        "::",
    ),
    ("ports not told", {23}, drop(*HOST, "PortBindings"), "PortBindings"),
    *(
        (f"network of {driver}", {23}, put(*NETWORK, "Driver", to=driver), f"driver {driver}")
        for driver in ("macvlan", "ipvlan", "overlay", "host", "l2bridge", "Bridge", "of nobody")
    ),
    ("network of an unnamed driver", {23}, put(*NETWORK, "Driver", to=""), "driver of nobody"),
    ("one network more", {23}, _in_another_network("macvlan"), "Network lan is of the driver mac"),
    *(
        (
            f"bridge with {family} {mode}",
            {23},
            put(*NETWORK, "Options", to={f"{BRIDGE}.gateway_mode_{family}": mode}),
            f"a gateway that is {mode}",
        )
        for family in ("ipv4", "ipv6")
        for mode in ("routed", "nat-unprotected", "new")
    ),
    (
        "a bridge of the machine's",
        {23},
        put(*NETWORK, "Options", to={f"{BRIDGE}.name": "br0"}),
        "the bridge br0",
    ),
    ("no network named", {23}, put("container", "NetworkSettings", "Networks", to=None), "engine"),
    ("networks not told", {23}, drop("container", "NetworkSettings", "Networks"), "not shown"),
    ("network not known", {23}, drop(*NETWORK), "probe-dev_default is not shown"),
    ("driver of the network not told", {23}, drop(*NETWORK, "Driver"), "Driver is not shown"),
    ("options of the network not told", {23}, drop(*NETWORK, "Options"), "Options is not shown"),
    ("address not told", {23}, put(*HOST, "PortBindings", to={"1/tcp": [{}]}), "HostIp"),
    # 24
    ("no tmpfs", {24}, put(*HOST, "Tmpfs", to={}), "no file system in memory"),
    ("tmpfs not told", {24}, drop(*HOST, "Tmpfs"), "no file system in memory"),
    *(
        (
            f"asked without {option}",
            {24},
            put(
                *HOST,
                "Tmpfs",
                "/tmp",
                to=",".join({"noexec", "nosuid", "nodev"} - {option}) + ",size=1m",
            ),
            option,
        )
        for option in ("noexec", "nosuid", "nodev")
    ),
    ("asked without size", {24}, put(*HOST, "Tmpfs", "/tmp", to="noexec,nosuid,nodev"), "size"),
    ("another place", {24}, put(*HOST, "Tmpfs", "/run", to="rw"), "mounted at /run"),
    (
        "mounted nosuid only",
        {24},
        put("inside", "mounts", "/dev/shm", "options", to="ro,nosuid"),
        "/dev/shm",
    ),
    (
        "mounted without size",
        {24},
        put("inside", "mounts", "/tmp", "system_options", to="rw"),
        "size",
    ),
    (
        "not from memory",
        {24},
        put("inside", "mounts", "/tmp", "kind", to="ext4"),
        "in memory is mounted at /tmp",
    ),
    (
        "a mount of that kind with exec",
        {24},
        all_of(
            put(*HOST, "Mounts", to=[{"Type": "tmpfs", "Target": "/x"}]),
            put(
                "inside",
                "mounts",
                "/x",
                to={"options": "rw", "kind": "tmpfs", "system_options": "size=1m"},
            ),
        ),
        "/x is mounted without",
    ),
    # 25
    (
        "a device",
        {25},
        put(*HOST, "Devices", to=[{"PathInContainer": "/dev/kvm", "PathOnHost": "/dev/kvm"}]),
        "/dev/kvm",
    ),
    (
        "a TPM that nobody asked for",
        {25},
        put("inside", "files", "devices", to=["/dev/tpmrm0"]),
        "tpm",
    ),
    ("devices not told", {25}, drop(*HOST, "Devices"), "Devices is not shown"),
    ("graphics", {25}, put(*HOST, "DeviceRequests", to=[{}]), "DeviceRequests"),
    ("rules for devices", {25}, put(*HOST, "DeviceCgroupRules", to=["a *:* rwm"]), "CgroupRules"),
    ("engine's socket", {25}, _mount(Source="/var/run/docker.sock"), "engine's socket"),
    ("engine's socket inside", {25}, _mount(Destination="/run/podman/podman.sock"), "socket"),
    ("a socket", {25}, put("inside", "files", "sockets", to=["/run/x"]), "/run/x"),
    ("writable bind", {25}, _mount(RW=True), "/mnt"),
    ("writable bind of data", {25}, _mount(RW=True, Destination="/data"), "/data"),
    *(
        (f"data elsewhere: {options}", {25}, put(*VOLUME, "Options", to=options), "device, o, type")
        for options in (
            {"type": "none", "o": "bind", "device": "/srv/data"},
            {"type": "nfs", "o": "addr=10.0.0.1,rw", "device": ":/data"},
            {"type": "tmpfs", "o": "size=1m", "device": "tmpfs"},
        )
    ),
    ("data of another driver", {25}, put(*VOLUME, "Driver", to="vieux/sshfs"), "vieux/sshfs"),
    ("volume not known", {25}, drop(*VOLUME), "probe-dev_data is not shown"),
    ("driver of the volume not told", {25}, drop(*VOLUME, "Driver"), "Driver is not shown"),
    ("options of the volume not told", {25}, drop(*VOLUME, "Options"), "Options is not shown"),
    ("name of the volume not told", {25}, _data_without_a_name, "Name is not shown"),
    ("another volume", {25}, _mount(RW=True, Type="volume"), "A volume"),
    ("rights not told", {25}, _mount(RW=None), "true or false"),
    # 26
    ("unwell", {26}, put("container", "State", "Health", "Status", to="unhealthy"), "unhealthy"),
    ("paused", {26}, put("container", "State", "Status", to="paused"), "paused"),
    ("no health", {26}, drop("container", "State", "Health"), "no health check"),
    # 27
    ("root inside", {27}, put("inside", "users", to=[0, 0, 0]), "users: 0 0 0"),
    ("saved root", {27}, put("inside", "users", to=[65532, 65532, 0]), "users: 0 65532"),
    ("effective group", {27}, put("inside", "groups", to=[65532, 0, 65532]), "groups: 0"),
    ("one number", {27}, put("inside", "users", to=[65532]), "users"),
    ("root's process 1", {27}, put("inside", "main_process", "Uid", to="0 0 0 0"), "Process 1"),
    (
        "process 1 was root",
        {27},
        put("inside", "main_process", "Gid", to="65532 65532 0 65532"),
        "Gid",
    ),
    ("another group", {27}, put("inside", "more_groups", to=[65532, 44]), "44"),
    ("process 1 in a group", {27}, put("inside", "main_process", "Groups", to="0"), "groups 0"),
    ("odd groups", {27}, put("inside", "this_process", "Groups", to="x"), "groups of a process"),
    # 28
    *(
        (name, {28}, put("inside", "main_process", name, to="0000000000000001"), name)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    ),
    ("odd set", {28}, put("inside", "this_process", "CapEff", to=""), "CapEff"),
    *(
        (f"could {name}", {28}, put("inside", "attempts", name, to="done"), f"could {name}")
        for name in (
            *("give a file to root", "make a device", "open a raw socket", "open a packet socket"),
        )
    ),
    (
        "no folder to try in",
        {28},
        put("inside", "attempts", "make a device", to="ENOENT"),
        "ENOENT",
    ),
    ("not tried", {28}, drop("inside", "attempts", "make a device"), "make a device"),
    # 29, 30
    (
        "new privileges inside",
        {29},
        put("inside", "main_process", "NoNewPrivs", to="0"),
        "Process 1",
    ),
    ("in new processes", {29}, put("inside", "this_process", "NoNewPrivs", to="0"), "A new"),
    ("no filter", {30}, put("inside", "main_process", "Seccomp", to="0"), "Process 1"),
    ("strict mode", {30}, put("inside", "this_process", "Seccomp", to="1"), "A new"),
    *(
        (f"{call} let through", {30}, put("inside", "calls", call, to="EFAULT"), call)
        for call in ANSWER["calls"]
    ),
    ("unshare done", {30}, put("inside", "calls", "unshare", to="done"), "unshare (done)"),
    ("calls not made", {30}, put("inside", "calls", to={}), "were not made"),
    ("a call not made", {30}, drop("inside", "calls", "bpf"), "bpf"),
    # 31
    ("writable folder", {31}, put("inside", "files", "writable", to=["/data", "/tmp", "/x"]), "/x"),
    ("read-only data", {31}, put("inside", "files", "writable", to=["/tmp"]), "Cannot be written"),
    ("hidden folder", {31}, put("inside", "files", "hidden", to=["/x"]), "/x"),
    ("nothing tried", {31}, put("inside", "files", "folders", to=0), "folders"),
    # 32
    ("planted", {32}, put("inside", "interpreter", "writable_path", to=["/x"]), "/x"),
    ("no path", {32}, put("inside", "interpreter", "path", to=[]), "looks for modules"),
    # 33
    ("a shell", {33}, files({"opt/sh": PROGRAM}), "/opt/sh"),
    (
        "a shell by a link",
        {33},
        files({"opt/x": PROGRAM, "opt/bash": Entry("link", target="x")}),
        "/opt/bash",
    ),
    ("a shell seen inside", {33}, put("inside", "files", "shells", to=["/x/sh"]), "/x/sh"),
    ("os.system", {33}, put("inside", "system", to=0), "os.system runs"),
    ("a shell that starts", {33}, put("inside", "attempts", "start a shell", to="done"), "done"),
    # 34
    *(
        (f"could {name}", {34}, put("inside", "attempts", name, to="done"), f"could {name}")
        for name in ("become user 0", "become group 0", "join group 0")
    ),
    # 35
    ("root mounted rw", {35}, put("inside", "mounts", "/", "options", to="rw"), "/ is mounted"),
    ("settings mounted rw", {35}, put("inside", "mounts", "/proc/sys", "options", to="rw"), "sys"),
    ("settings not mounted", {35}, drop("inside", "mounts", "/proc/sys"), "on its own"),
    *(
        (f"could {name}", {35}, put("inside", "attempts", name, to="done"), f"could {name}")
        for name in ("run a file in /tmp", "load code from /tmp", "change a kernel setting")
    ),
    # 36
    ("another status", {36}, _restarted(ExitCode=1), "status 1"),
    ("killed", {36}, _restarted(10.2, ExitCode=137), "10.2 s"),
    ("slow", {36}, _restarted(3.1), "3.1 s"),
    ("out of memory", {36}, _restarted(OOMKilled=True), "memory"),
    ("still running", {36}, _restarted(Running=True, Status="running"), "did not end"),
    ("said to run", {36}, _restarted(Running=True), "did not end"),
    ("not said to have ended", {36}, _restarted(Status="dead"), "did not end"),
    ("not well again", {36}, _restarted(well_again=False), "as well as before"),
    ("another signal", {36}, put("container", "Config", "StopSignal", to="SIGKILL"), "SIGKILL"),
    ("time turned back", {36}, _restarted(-1), "-1.0 s"),
    ("status not told", {36}, _restarted(ExitCode=None), "ExitCode"),
    ("not stopped", {36}, lambda f: replace(f, restart=NotFound("no engine")), "no engine"),
]


def test_good_service_keeps_all_36() -> None:
    assert [point.number for point in POINTS] == list(range(1, 37))
    assert failures(good()) == {}
    assert {found.verdict for _, found in judge(good())} == {Verdict.HOLDS}
    assert all(found.evidence and "\n" not in found.evidence for _, found in judge(good()))


@pytest.mark.parametrize(
    ("points", "change", "words"),
    [row[1:] for row in ROWS],
    ids=[f"{sorted(row[1])} {row[0]}" for row in ROWS],
)
def test_fault_fails_its_points_and_no_other(points: set[int], change: Change, words: str) -> None:
    found = failures(change(good()))
    assert set(found) == points
    assert words in "\n".join(found.values())


def test_every_point_has_a_fault_of_its_own() -> None:
    assert {number for _, points, _, _ in ROWS for number in points if len(points) == 1} == {
        point.number for point in POINTS
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("container", "Config", "StopSignal", to="15"), "SIGTERM by number"),
        (drop("container", "Config", "StopSignal"), "SIGTERM unless told otherwise"),
        (put(*HOST, "CapDrop", to=["CAP_ALL"]), "long names"),
        (put(*HOST, "PortBindings", to={"1/tcp": _published("::1")}), "IPv6 loopback"),
        (put(*HOST, "PortBindings", to={"1/tcp": _published("127.8.0.1")}), "any loopback"),
        (put(*HOST, "PortBindings", to=None), "nothing published"),
        (
            all_of(put(*HOST, "NanoCpus", to=0), put(*HOST, "CpuQuota", to=50_000)),
            "CPU time by a quota",
        ),
        (
            put(
                "inside",
                "limits",
                to={
                    "version": "2",
                    "pids": "128",
                    "memory": "268435456",
                    "swap": "0",
                    "cpu": "100000 100000",
                    "swap_areas": "1",
                },
            ),
            "control groups of version 2",
        ),
        (put("inside", "limits", "swap", to=None), "no swap anywhere"),
        (put("inside", "control_groups", to=["0::/"]), "version 2 alone"),
        (_modules(97), "97 of 100 modules compiled"),
        (files({"dev/null": Entry("device", 0o666)}), "a device that the engine makes anew"),
        (_processes(4096), "4096 processes"),
        (_restarted(3.0), "an end after exactly 3 seconds"),
        (_profile(defaultAction="SCMP_ACT_KILL_PROCESS"), "a stricter default"),
        (_rule(names=["bpf"], includes={"caps": ["CAP_BPF"]}), "a rule for who has a right"),
        (put("inside", "calls", "bpf", to="SIGSYS"), "killed for the call"),
        (
            files(
                {
                    f"{MODULES}/__pycache__/os.cpython-313.pyc": Entry(
                        "file",
                        start=MAGIC
                        + bytes(4)
                        + (1000).to_bytes(4, "little")
                        + (40_000).to_bytes(4, "little"),
                    )
                }
            ),
            "bytecode by the source's time",
        ),
        (
            all_of(
                put("image", "Descriptor", to={"digest": "a"}),
                _rebuilt(Descriptor={"digest": "b"}),
            ),
            "attestations alone",
        ),
        (put(*HOST, "NetworkMode", to="none"), "no network"),
        (put(*NETWORK, "Driver", to="null"), "a network that leads nowhere"),
        (put(*NETWORK, "Options", to=None), "a bridge without options"),
        (put(*NETWORK, "Options", to={f"{BRIDGE}.gateway_mode_ipv4": "nat"}), "as by default"),
        (put(*NETWORK, "Options", to={f"{BRIDGE}.gateway_mode_ipv6": "isolated"}), "isolated"),
        (put(*NETWORK, "Options", to={f"{BRIDGE}.name": "docker0"}), "the engine's own bridge"),
        (_in_another_network("bridge"), "two bridges"),
        (put(*VOLUME, "Options", to={}), "a volume without options"),
        (_health_check("-IB", "-u", "-m", "probe_dev.healthcheck"), "flags of another kind"),
        (
            _mount(Type="tmpfs", Destination="/x", RW=True),
            "a tmpfs among the mounts is judged by point 24",
        ),
        (_step("COPY --chmod=0444 x@sha256:" + "a1b2c3d4" * 8), "a digest in the history"),
        (_step("ENV PYTHON_SHA256=" + "a1b2c3d4" * 8), "a checksum in the history"),
        (variable("container", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"), "a path"),
        (variable("container", "SERVICE_TOKEN_FILE=/run/secrets/token"), "where a secret is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_as_good_holds(change: Change, words: str) -> None:
    assert failures(change(good())) == {}, words


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (15, lambda facts: replace(facts, rebuild=NotTried("left out"))),
        (36, lambda facts: replace(facts, restart=NotTried("left out"))),
    ],
)
def test_what_is_left_out_neither_holds_nor_fails(number: int, change: Change) -> None:
    verdicts = {point.number: found.verdict for point, found in judge(change(good()))}
    assert {each for each, verdict in verdicts.items() if verdict is not Verdict.HOLDS} == {number}
    assert verdicts[number] is Verdict.NOT_TRIED


def test_without_an_answer_from_inside_nothing_that_needs_it_holds() -> None:
    assert set(failures(no_answer(good()))) == {
        *(5, 6, 10, 12, 13, 14, 21, 22, 24, 25),
        *range(27, 36),
    }


def test_without_the_files_nothing_that_needs_them_holds() -> None:
    unread = replace(good(), tree=NotFound("the files could not be read"))
    assert set(failures(unread)) == {2, *range(5, 15), 33}
    empty = replace(good(), tree=replace(good().files(), entries={}, contents={}))
    assert set(failures(empty)) == {2, *range(5, 15), 33}


def _tpm(**changes: object) -> Change:
    """Have the key in a TPM: its device and its group are there."""
    device = {"PathOnHost": "/dev/tpmrm0", "PathInContainer": "/dev/tpmrm0"}
    return all_of(
        put("container", "Config", "Env", to=["PATH=/usr/bin", "SERVICE_KEY_SOURCE=tpm2"]),
        put(*HOST, "Devices", to=[device]),
        put("inside", "files", "devices", to=["/dev/tpmrm0"]),
        put("inside", "tpm_group", to=104),
        put("inside", "more_groups", to=[65532, 104]),
        put("inside", "main_process", "Groups", to="104 65532"),
        put("inside", "this_process", "Groups", to="104 65532"),
        *(put("inside", name, to=value) for name, value in changes.items()),
    )


def test_key_in_a_tpm_brings_exactly_its_device_and_its_group() -> None:
    assert failures(_tpm()(good())) == {}
    evidence = {point.number: found.evidence for point, found in judge(_tpm()(good()))}
    assert "/dev/tpmrm0" in evidence[25]
    assert "group 104" in evidence[27]


@pytest.mark.parametrize(
    ("points", "change"),
    [
        ({25}, put(*HOST, "Devices", to=[])),
        ({25}, put("inside", "files", "devices", to=[])),
        ({25}, put("inside", "files", "devices", to=["/dev/tpm0", "/dev/tpmrm0"])),
        (
            {25},
            put(
                *HOST,
                "Devices",
                to=[{"PathOnHost": "/dev/tpm0", "PathInContainer": "/dev/tpmrm0"}],
            ),
        ),
        ({27}, put("inside", "more_groups", to=[65532])),
        ({27}, put("inside", "more_groups", to=[65532, 104, 44])),
        ({27}, put("inside", "main_process", "Groups", to="104 65532 44")),
        ({27}, put("inside", "main_process", "Groups", to="65532")),
        ({27}, put("inside", "tpm_group", to=105)),
        ({27}, put("inside", "tpm_group", to=None)),
        ({27}, put("inside", "tpm_group", to=0)),
    ],
)
def test_key_in_a_tpm_brings_nothing_less_and_nothing_more(
    points: set[int], change: Change
) -> None:
    assert set(failures(all_of(_tpm(), change)(good()))) == points


def test_device_and_group_of_a_tpm_fail_where_the_key_is_elsewhere() -> None:
    elsewhere = put("container", "Config", "Env", to=["SERVICE_KEY_SOURCE=secret:/run/secrets/k"])
    assert set(failures(all_of(_tpm(), elsewhere)(good()))) == {25, 27}


def test_secrets_are_named_and_never_repeated() -> None:
    secret = "-".join(("hunter2", "Zr8Lw2Pv", "0Xk7TnB4"))
    changed = all_of(
        variable("container", f"API_TOKEN={secret}"),
        variable("image", f"INDEX=https://user:{secret}@host/"),
        _step(f"RUN login --password={secret}"),
        put("container", "Config", "Cmd", to=[f"--token={secret}"]),
    )(good())
    problems = failures(changed)[3]
    assert "API_TOKEN" in problems
    assert "Step 11" in problems
    assert secret not in repr(judge(changed))
