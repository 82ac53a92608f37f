"""Facts about a service that keeps all promises, and ways to break one of them."""

import base64
import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from probe_recorded import ANSWER, CONTAINER, HISTORY, IMAGE, NETWORK, VOLUME
from security_probe.document import Document
from security_probe.facts import Facts, NotFound, Rebuild, Restart
from security_probe.files import CA_BUNDLE, STATUS, USERS, Entry, Tree
from security_probe.finding import Verdict
from security_probe.image import commands
from security_probe.points import judge

PROFILE: Final[dict[str, Any]] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [
        {"names": ["read", "write", "openat", "execve", "setuid"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
        },
        {"names": ["clone3", "io_uring_setup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ],
}
MAGIC: Final = bytes.fromhex(ANSWER["interpreter"]["magic"])
BY_DIGEST: Final = MAGIC + (1).to_bytes(4, "little") + bytes(8)
MODULES: Final = "usr/local/lib/python3.13"
PACKAGES: Final = "app/.venv/lib/python3.13/site-packages"
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
MD5: Final = hashlib.md5(b"a library", usedforsecurity=False).hexdigest()

Change = Callable[[Facts], Facts]


def certificate(number: int) -> str:
    """Return something of a certificate's form."""
    body = number.to_bytes(4, "big") * 100
    der = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


def bundle(number: int) -> bytes:
    """Return a bundle of so many certificates."""
    return "".join(map(certificate, range(number))).encode()


def _folder(mode: int = 0o755, owner: int = 0) -> Entry:
    return Entry("folder", mode, owner, owner)


def _link(target: str) -> Entry:
    return Entry("link", 0o777, target=target)


def good_tree() -> Tree:
    """Return the files of an image, a few of each kind."""
    program = Entry("file", 0o555, md5=MD5)
    zone = Entry("file", 0o444, start=b"TZif2" + bytes(11))
    entries = {
        "app": _folder(),
        "app/.venv": _folder(),
        "app/.venv/bin": _folder(),
        "app/.venv/bin/python": _link("/usr/local/bin/python3.13"),
        "app/.venv/bin/python3": _link("python"),
        "app/.venv/pyvenv.cfg": Entry("file", 0o444),
        "app/.venv/lib": _folder(),
        f"{PACKAGES}/probe_dev": _folder(),
        f"{PACKAGES}/probe_dev/__init__.py": Entry("file", 0o444),
        f"{PACKAGES}/probe_dev/__pycache__/__init__.cpython-313.pyc": Entry(
            "file", 0o444, start=BY_DIGEST
        ),
        f"{PACKAGES}/uvloop": _folder(),
        f"{PACKAGES}/uvloop/loop.cpython-313-x86_64-linux-gnu.so": Entry("file", 0o555),
        "bin": _link("usr/bin"),
        "data": _folder(0o750, 65532),
        "dev": _folder(),
        "dev/console": Entry("file", 0o755),
        "etc": _folder(),
        USERS: Entry("file"),
        "etc/localtime": _link("/usr/share/zoneinfo/UTC"),
        "etc/ssl/certs": _folder(),
        CA_BUNDLE: Entry("file"),
        "home/nonroot": _folder(0o700, 65532),
        "tmp": _folder(0o1777),
        "usr": _folder(),
        "usr/bin": _folder(),
        "usr/local": _folder(),
        "usr/local/bin": _folder(),
        "usr/local/bin/python3.13": program,
        "usr/local/bin/python3": _link("python3.13"),
        "usr/local/lib": _folder(),
        "usr/local/lib/libpython3.13.so.1.0": program,
        MODULES: _folder(),
        f"{MODULES}/os.py": Entry("file", 0o444, size=40_000, changed=1000),
        f"{MODULES}/__pycache__/os.cpython-313.pyc": Entry("file", 0o444, start=BY_DIGEST),
        f"{MODULES}/lib-dynload/_ssl.cpython-313-x86_64-linux-gnu.so": program,
        f"{LIBRARIES}/libc.so.6": program,
        f"{LIBRARIES}/libsqlite3.so.0": _link("libsqlite3.so.0.8.6"),
        f"{LIBRARIES}/libsqlite3.so.0.8.6": Entry("file", 0o444, md5=MD5),
        "usr/share": _folder(),
        "usr/share/zoneinfo": _folder(),
        "usr/share/zoneinfo/Etc": _folder(),
        "usr/share/zoneinfo/Etc/UTC": zone,
        "usr/share/zoneinfo/UTC": _link("Etc/UTC"),
        "usr/share/zoneinfo/Europe": _folder(),
        "usr/share/zoneinfo/Europe/Helsinki": zone,
        "usr/share/zoneinfo/America": _folder(),
        "usr/share/zoneinfo/America/New_York": zone,
        "var": _folder(),
        "var/tmp": _folder(0o1777),
    }
    contents = {
        USERS: b"root:x:0:0:root:/root:/sbin/nologin\n"
        b"nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
        CA_BUNDLE: bundle(60),
        f"{STATUS}libc6": b"Package: libc6\nVersion: 2.41-12\nArchitecture: amd64\n",
        f"{STATUS}libc6.md5sums": f"{MD5}  lib/x86_64-linux-gnu/libc.so.6\n".encode(),
        f"{STATUS}libsqlite3-0": b"Package: libsqlite3-0\nVersion: 3.46.1-7\n",
        f"{STATUS}libsqlite3-0.md5sums": f"{MD5}  {LIBRARIES}/libsqlite3.so.0.8.6\n".encode(),
    }
    entries |= {path: Entry("file") for path in contents if path.startswith(STATUS)}
    return Tree(entries, contents)


def good_container() -> dict[str, Any]:
    """Return what the engine says of the container."""
    found = copy.deepcopy(CONTAINER)
    found["HostConfig"]["SecurityOpt"] = [
        "no-new-privileges:true",
        f"seccomp={json.dumps(PROFILE)}",
    ]
    return found


def good() -> Facts:
    """Return the facts about a service that keeps all promises."""
    image = Document("image", copy.deepcopy(IMAGE))
    history = commands(copy.deepcopy(HISTORY))
    ended = {"Status": "exited", "Running": False, "OOMKilled": False, "ExitCode": 0}
    return Facts(
        image=image,
        steps=history,
        tree=good_tree(),
        container=Document("container", good_container()),
        volumes=Document("volumes", {VOLUME["Name"]: copy.deepcopy(VOLUME)}),
        networks=Document("networks", {NETWORK["Name"]: copy.deepcopy(NETWORK)}),
        inside=Document("inside", copy.deepcopy(ANSWER)),
        rebuild=Rebuild(image, Document("image", copy.deepcopy(IMAGE)), (HISTORY, HISTORY)),
        restart=Restart(0.8, Document("container", {"State": ended}), well_again=True),
    )


def put(document: str, *path: str, to: object) -> Change:
    """Return a change of one place in a document, such as ``container``."""

    def change(facts: Facts) -> Facts:
        return _replaced(facts, document, path, lambda parent, name: parent.update({name: to}))

    return change


def drop(document: str, *path: str) -> Change:
    """Return a change that takes something out of a document."""

    def change(facts: Facts) -> Facts:
        return _replaced(facts, document, path, lambda parent, name: parent.pop(name))

    return change


def _replaced(
    facts: Facts,
    document: str,
    path: tuple[str, ...],
    change: Callable[[dict[str, Any], str], object],
) -> Facts:
    old: Document = getattr(facts, document)
    value: Any = copy.deepcopy(old.value)
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    change(parent, path[-1])
    changed: dict[str, Any] = {document: Document(old.name, value)}
    return replace(facts, **changed)


def variable(document: str, text: str) -> Change:
    """Return a change that adds a variable to the environment."""

    def change(facts: Facts) -> Facts:
        old = getattr(facts, document).texts("Config", "Env")
        return put(document, "Config", "Env", to=[*old, text])(facts)

    return change


def files(entries: Mapping[str, Entry | None]) -> Change:
    """Return a change that puts files into the image, or takes them out."""

    def change(facts: Facts) -> Facts:
        tree = facts.files()
        found = {**tree.entries, **entries}
        kept = {path: entry for path, entry in found.items() if entry is not None}
        return replace(facts, tree=replace(tree, entries=kept))

    return change


def content(path: str, text: bytes | None) -> Change:
    """Return a change of what is in a file of the image."""

    def change(facts: Facts) -> Facts:
        tree = facts.files()
        found = {name: each for name, each in tree.contents.items() if name != path}
        if text is not None:
            found[path] = text
        return replace(facts, tree=replace(tree, contents=found))

    return change


def all_of(*changes: Change) -> Change:
    """Return several changes as one."""

    def change(facts: Facts) -> Facts:
        for each in changes:
            facts = each(facts)
        return facts

    return change


def no_answer(facts: Facts) -> Facts:
    """Have the program inside give no answer."""
    return replace(facts, inside=NotFound("the program inside gave no valid answer"))


def failures(facts: Facts) -> dict[int, str]:
    """Judge, and return the problems of each point that fails."""
    return {
        point.number: "\n".join(found.problems)
        for point, found in judge(facts)
        if found.verdict is Verdict.FAILS
    }
