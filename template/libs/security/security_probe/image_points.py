"""Points 1 to 15: what the image is, and what is in it."""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Final

from .document import Document, NotShownError
from .facts import DATA, SERVICE_ID, Facts, NotFound, NotTried
from .files import CA_BUNDLE, USERS, Entry, Tree, is_python
from .finding import Finding, Point, failed, finding, not_tried
from .inside import SHELLS
from .libraries import libraries_of
from .plain_text import counted, plain, some
from .secret_texts import looks_like_a_secret, named_like_a_secret

_DOWNLOADERS: Final = "aria2c curl ftp nc ncat netcat rsync scp socat telnet wget"
DOWNLOADERS: Final = frozenset(_DOWNLOADERS.split())
WORLD_WRITABLE: Final = frozenset({"tmp", "var/tmp", "var/lock", "run/lock"})
"""``run/lock`` is where ``var/lock`` leads."""
LEAST_COMPILED: Final = 0.97
LEAST_CERTIFICATES: Final = 50
TIME_ZONES: Final = ("UTC", "Europe/Helsinki", "America/New_York")
BINARIES: Final = frozenset({"bin", "sbin", "libexec", "games"})

_INSTALLERS: Final = (
    "pip ensurepip setuptools pkg_resources wheel _distutils_hack uv venv virtualenv tkinter "
    "idlelib lib2to3 turtledemo poetry pipx"
)
INSTALLERS: Final = frozenset(_INSTALLERS.split())
_FLAG_ALONE: Final = re.compile(r"-[bBdEIOPqRsSuv]+")
"""Flags after which an interpreter still runs what is named, and tells by its status what came."""
_MODULE_FOLDER: Final = re.compile(r"(?:site|dist)-packages|python[0-9.]+")
_LEFT_BEHIND: Final = re.compile(
    r"""(?xi)
    \.(git|hg|svn|ssh|aws|gnupg|kube|docker|env|env\..*|netrc|pypirc|npmrc|git-credentials)
    | id_(rsa|dsa|ecdsa|ed25519)(_sk)? | .*\.(key|p12|pfx|jks|keystore|kdbx)
    | conftest\.py
    | (uv|poetry|pdm|pixi|pipfile|package-lock|yarn)\.(lock|json) | pyproject\.toml
    | dockerfile.* | (docker-)?compose.*\.ya?ml | \.dockerignore | \.gitignore
    """
)


def runs_as_nobody_special(facts: Facts) -> Finding:
    """Judge point 1."""
    user = facts.image.text("Config", "User")
    wanted = f"{SERVICE_ID}:{SERVICE_ID}"
    problem = f"The image's user is {plain(user) or 'root'!r}, not {wanted!r}."
    return finding([problem] if user != wanted else [], f"user {user}")


def starts_without_shell(facts: Facts) -> Finding:
    """Judge point 2: of the image, and of the container, which may have others."""
    problems = []
    tree = facts.files()
    interpreter = None
    checks: list[list[str]] = []
    for what in (facts.image, facts.container):
        entry = what.texts("Config", "Entrypoint")
        default = what.texts("Config", "Cmd") if what.has("Config", "Cmd") else []
        check = (
            what.texts("Config", "Healthcheck", "Test") if what.has("Config", "Healthcheck") else []
        )
        if not entry:
            problems.append(f"The {what.name} has no entry point: any command can take its place.")
        if check[:1] != ["CMD"] or len(check) < 2:
            problems.append(f"The {what.name} has no health check in the exec form.")
        elif not _runs_a_module(check[2:]):
            problems.append(
                f"The health check of the {what.name} does not run a module by -m: it may check "
                "nothing."
            )
        checks.append(check)
        for use, command in (("entry point", entry + default), ("health check", check[1:])):
            if command and not _is_interpreter(tree, command[0]):
                problems.append(
                    f"The {use} of the {what.name} starts {plain(command[0], 80)!r}, which is no "
                    "absolute path of a Python in the image."
                )
            words = {PurePosixPath(word).name for part in command for word in part.split()}
            if found := words & (SHELLS | DOWNLOADERS):
                problems.append(f"The {use} of the {what.name} uses {some(found)}.")
        interpreter = interpreter or (entry[0] if entry else None)
    if checks[0] != checks[1]:
        problems.append("The health check of the container is not the image's.")
    return finding(problems, f"both run {plain(interpreter or '', 80)} directly")


def _runs_a_module(words: Sequence[str]) -> bool:
    if "-m" not in words[:-1]:
        return False
    return all(_FLAG_ALONE.fullmatch(word) for word in words[: words.index("-m")])


def _is_interpreter(tree: Tree, word: str) -> bool:
    entry = tree.at(word)
    return (
        word.startswith("/")
        and is_python(tree.resolve(word) or "")
        and entry is not None
        and entry.executable
    )


def tells_no_secret(facts: Facts) -> Finding:
    """Judge point 3: names and values of variables, labels, commands and the history."""
    problems = []
    variables = 0
    for what in (facts.image, facts.container):
        for variable in what.texts("Config", "Env"):
            variables += 1
            name, _, value = variable.partition("=")
            if kind := named_like_a_secret(name):
                problems.append(f"Variable {plain(name, 80)} of the {what.name}: {kind}.")
            elif kind := looks_like_a_secret(value):
                problems.append(f"Variable {plain(name, 80)} of the {what.name} holds {kind}.")
        for path in (("Entrypoint",), ("Cmd",), ("Healthcheck", "Test")):
            words = what.texts("Config", *path) if what.has("Config", *path) else []
            if kind := looks_like_a_secret(" ".join(words)):
                problems.append(f"{'.'.join(path)} of the {what.name} holds {kind}.")
        labels = what.table("Config", "Labels") if what.has("Config", "Labels") else {}
        for name, label in labels.items():  # compose and builders put digests there
            if kind := looks_like_a_secret(label.text(), if_random=False):
                problems.append(f"The label {plain(name, 80)} of the {what.name} holds {kind}.")
    if isinstance(facts.steps, NotFound):
        raise NotShownError(facts.steps.reason)
    if not facts.steps:
        raise NotShownError("the history of the image")
    for number, step in enumerate(reversed(facts.steps), start=1):
        named = {
            kind
            for name in re.findall(r"([A-Za-z_][A-Za-z0-9_]*)=", step)
            if (kind := named_like_a_secret(name))
        }
        if kind := looks_like_a_secret(step) or next(iter(named), None):
            problems.append(f"Step {number} of the image's history has {kind}.")
    return finding(
        problems,
        f"{counted(variables, 'variable')} and {counted(len(facts.steps), 'step')} looked through",
    )


def listens_high_and_keeps_data_apart(facts: Facts) -> Finding:
    """Judge point 4."""
    problems = []
    ports = facts.image.table("Config", "ExposedPorts")
    for port in ports:
        found = re.fullmatch(r"([0-9]{1,5})/(?:tcp|udp|sctp)", port)
        if not found or not 1024 < int(found[1]) < 65536:
            problems.append(f"Port {plain(port, 40)} is not one above 1024.")
    volumes = set(facts.image.table("Config", "Volumes"))
    if volumes != {DATA}:
        problems.append(f"The volumes are {some(volumes) or 'none'}, not {DATA} alone.")
    return finding(problems, f"ports {some(set(ports)) or 'none'}; volume {DATA}")


def has_no_setuid(facts: Facts) -> Finding:
    """Judge point 5: by the exported files, and once more by what is seen inside."""
    tree = facts.files()
    found = {f"/{path}" for path, entry in tree.files() if entry.mode & 0o6000}
    seen = set(facts.answer("files").texts("setuid"))
    return _none_of(found | seen, "setuid or setgid", tree)


def has_no_capabilities(facts: Facts) -> Finding:
    """Judge point 6."""
    tree = facts.files()
    found = {f"/{path}" for path, entry in tree.entries.items() if entry.capabilities}
    seen = set(facts.answer("files").texts("capable"))
    return _none_of(found | seen, "with capabilities of their own", tree)


def _none_of(found: set[str], kind: str, tree: Tree) -> Finding:
    files = len([*tree.files()])
    problems = [f"{counted(len(found), 'file')} {kind}: {some(found)}."] if found else []
    return finding(problems, f"none among {counted(files, 'file')}")


def lets_nobody_else_write(facts: Facts) -> Finding:
    """Judge point 7."""
    tree = facts.files()
    open_to_all = {
        path: entry
        for path, entry in tree.entries.items()
        if entry.mode & 0o002
        and entry.kind != "link"
        and not (entry.kind == "device" and path.startswith("dev/"))  # the engine makes its own
    }
    wrong = {
        path
        for path, entry in open_to_all.items()
        if path not in WORLD_WRITABLE or entry.kind != "folder" or not entry.mode & 0o1000
    }
    return finding(
        [f"Writable for everybody: {some(wrong)}."] if wrong else [],
        f"only {some(set(open_to_all)) or 'nothing'}, with the sticky bit",
    )


def owns_only_its_data(facts: Facts) -> Finding:
    """Judge point 8."""
    tree = facts.files()
    owned = {path for path, entry in tree.entries.items() if SERVICE_ID in (entry.uid, entry.gid)}
    places = ("data", "home/nonroot")
    wrong = {
        path
        for path in owned
        if not any(path == each or path.startswith(f"{each}/") for each in places)
    }
    problems = [f"Belongs to {SERVICE_ID}: {some(wrong)}."] if wrong else []
    return finding(problems, f"{SERVICE_ID} owns {some(owned) or 'nothing'}")


def has_one_program(facts: Facts) -> Finding:
    """Judge point 9."""
    problems = []
    programs: dict[str, list[str]] = {}
    for path, real in facts.files().programs():
        if PurePosixPath(path).parent.name in BINARIES:
            programs.setdefault(real, []).append(path)
    others = {path for path in programs if not is_python(path)}
    if others:
        problems.append(f"{counted(len(others), 'other program')}: {some(others)}.")
    pythons = set(programs) - others
    if len(pythons) != 1:
        problems.append(f"There should be one interpreter, not {len(pythons)}: {some(pythons)}.")
    return finding(
        problems, f"only {some(pythons)}, under {counted(sum(map(len, programs.values())), 'name')}"
    )


def has_no_installer(facts: Facts) -> Finding:
    """Judge point 10: no such module or package among the files, and none that can be imported."""
    tree = facts.files()
    found = {path for path in tree.entries if _is_installer(PurePosixPath(path))}
    importable = set(facts.answer("interpreter").texts("modules"))
    problems = [f"In the image: {some(found)}."] if found else []
    if importable:
        problems.append(f"Can be imported: {some(importable)}.")
    return finding(problems, f"none of {some(INSTALLERS, 4)} in it or importable")


def _is_installer(path: PurePosixPath) -> bool:
    name = path.name
    if _MODULE_FOLDER.fullmatch(path.parent.name):
        module = re.sub(r"(?:-[^/]*)?\.(?:dist-info|egg-info|pth)$|\.py$", "", name)
        return module.lower() in INSTALLERS
    if path.parent.name in BINARIES:
        return bool(
            re.fullmatch(r"(?:pip|easy_install|uvx?|idle|pipx|poetry|virtualenv)[0-9.-]*", name)
        )
    return name.endswith((".whl", ".egg")) or bool(re.fullmatch(r"_tkinter\..*\.so", name))


def leaves_nothing_lying_about(facts: Facts) -> Finding:
    """Judge point 11: by name, and for private keys by content, whatever the file is called."""
    tree = facts.files()
    files = len([*tree.files()])
    found = {
        path
        for path, entry in tree.entries.items()
        if _LEFT_BEHIND.fullmatch(PurePosixPath(path).name)
        or (entry.kind == "folder" and PurePosixPath(path).name in ("test", "tests"))
    }
    keys = {path for path, entry in tree.files() if entry.private_key}
    pems = {path for path, entry in tree.files() if path.endswith(".pem")} - keys
    problems = [f"Not for an image: {some(found)}."] if found else []
    if keys:
        problems.append(f"A private key is in {some(keys)}.")
    if pems:
        problems.append(f"May be keys: {some(pems)}.")
    return finding(
        problems, f"nothing of the kind among {counted(files, 'file')}, no private key in any"
    )


def is_compiled(facts: Facts) -> Finding:
    """Judge point 12: for this interpreter, and so that it will take it."""
    tree = facts.files()
    tag = facts.answer("interpreter").text("cache_tag")
    magic = facts.answer("interpreter").text("magic")
    modules = {
        PurePosixPath(path): entry
        for path, entry in tree.files()
        if path.endswith(".py") and PurePosixPath(path).parent.name not in BINARIES
    }
    if not modules or not tag or not magic:
        raise NotShownError("any module in the image, or the interpreter's kind of bytecode")
    missing = {
        str(path)
        for path, entry in modules.items()
        if not _is_fresh(
            tree.entries.get(f"{path.parent}/__pycache__/{path.stem}.{tag}.pyc"), entry, magic
        )
    }
    share = 1 - len(missing) / len(modules)
    evidence = f"{len(modules) - len(missing):,} of {len(modules):,} modules are compiled"
    wrong = f"Only {evidence}, which are {share * 100:.1f} %; the others: {some(missing)}."
    return finding([wrong] if share < LEAST_COMPILED else [], evidence)


def _is_fresh(compiled: Entry | None, source: Entry, magic: str) -> bool:
    if compiled is None or len(compiled.start) < 16 or compiled.start[:4].hex() != magic:
        return False
    flags, changed, size = (
        int.from_bytes(compiled.start[place : place + 4], "little") for place in (4, 8, 12)
    )
    # By digest (PEP 552), or by the time and the size of the source, which then have to be these.
    by_digest = bool(flags & 1)
    return by_digest or (changed == source.changed % 2**32 and size == source.size % 2**32)


def tells_what_is_in_it(facts: Facts) -> Finding:
    """Judge point 13."""
    tree = facts.files()
    interpreter = facts.image.texts("Config", "Entrypoint")[:1]
    libraries = libraries_of(tree, interpreter[0] if interpreter else "")
    problems = []
    if libraries.unowned:
        number = counted(len(libraries.unowned), "library", "libraries")
        problems.append(f"{number} of no package in status.d: {some(libraries.unowned)}.")
    if not libraries.owned:
        problems.append("No library belongs to a package in var/lib/dpkg/status.d.")
    certificates = _certificates(tree.contents.get(CA_BUNDLE, b""))
    trusted = facts.answer("certificates").number()
    if min(certificates, trusted) <= LEAST_CERTIFICATES:
        problems.append(
            f"{CA_BUNDLE} has {counted(certificates, 'certificate')}, and {trusted} are trusted "
            f"inside; there should be more than {LEAST_CERTIFICATES}."
        )
    if not all(_is_time_zone(tree, f"usr/share/zoneinfo/{name}") for name in TIME_ZONES):
        problems.append("The time zones are not in usr/share/zoneinfo.")
    if facts.answer("summer_time").number() != 3 * 3600:
        problems.append("The interpreter inside does not know the time in Helsinki.")
    problems += _users(tree)
    return finding(
        problems,
        f"{counted(len(libraries.owned), 'library', 'libraries')} of known packages; "
        f"{certificates} certificates; time zones; nonroot",
    )


def _is_time_zone(tree: Tree, path: str) -> bool:
    entry = tree.at(path)
    return entry is not None and entry.start[:4] == b"TZif"


def _certificates(bundle: bytes) -> int:
    """Count what has the form of certificates: PEM (RFC 7468) around one DER sequence."""
    found = 0
    for text in re.findall(
        rb"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----", bundle
    ):
        try:
            der = base64.b64decode(b"".join(text.split()), validate=True)
        except (ValueError, binascii.Error):
            continue
        if der[:2] == b"\x30\x82" and int.from_bytes(der[2:4], "big") == len(der) - 4:
            found += 1
    return found


def _users(tree: Tree) -> Iterator[str]:
    rows = [
        line.split(":")
        for line in tree.contents.get(USERS, b"").decode("utf-8", "replace").splitlines()
    ]
    number = str(SERVICE_ID)
    if not any(row[:1] == ["nonroot"] and row[2:4] == [number, number] for row in rows):
        yield f"{USERS} has no nonroot with user and group {number}."
    if any(len(row) > 1 and row[1] == "" for row in rows):
        yield f"{USERS} has a user without a password."
    if odd := {
        row[0] for row in rows if len(row) > 2 and row[2].strip("0") == "" and row[0] != "root"
    }:
        yield f"{USERS} has other users with root's number: {some(odd)}."


def closes_its_data(facts: Facts) -> Finding:
    """Judge point 14: in the image, and nobody else may enter what is mounted there."""
    folder = facts.files().entries.get(DATA.strip("/"))
    problems = []
    if folder is None or folder.kind != "folder":
        problems.append(f"The image has no folder {DATA}.")
    elif (folder.mode, folder.uid, folder.gid) != (0o750, SERVICE_ID, SERVICE_ID):
        problems.append(f"{DATA} is {folder.uid}:{folder.gid} {folder.mode:04o} in the image.")
    mode = facts.answer("data_mode").number()
    if mode & 0o027:
        problems.append(f"What is mounted at {DATA} has mode {mode:04o}.")
    return finding(problems, f"{SERVICE_ID}:{SERVICE_ID} 0750; mounted: {mode:04o}")


def can_be_built_again(facts: Facts) -> Finding:
    """Judge point 15."""
    built = facts.rebuild
    if isinstance(built, NotTried):
        return not_tried(built)
    if isinstance(built, NotFound):
        return failed([f"Not shown: {built.reason}."])
    before, after = built.before.text("Id"), built.after.text("Id")
    running = facts.container.text("Image")
    if not before or running != before:
        raise NotShownError("that the container runs the image that was compared")
    if before == after:
        return finding([], f"built anew without a cache: {before[:19]}")
    if (
        _same_but_for_attestations(built.before, built.after)
        and built.histories[0] == built.histories[1]
    ):
        return finding(
            [], "the same layers, configuration and history; the engine's store adds to the id"
        )
    problems = [f"A new build is {plain(after[:19])}, the container runs {plain(before[:19])}."]
    problems += _differences(built.before, built.after)
    if built.histories[0] != built.histories[1]:
        problems.append("The histories differ.")
    if built.differing:
        number = counted(len(built.differing), "file")
        problems.append(f"Not the same in both: {number}: {some(built.differing)}.")
    return failed(problems)


_OF_THE_IMAGE: Final = ("Architecture", "Os", "Created", "Config", "RootFS")


def _same_but_for_attestations(before: Document, after: Document) -> bool:
    # Only engines that keep images with containerd name a descriptor; to others the id is the
    # digest of configuration and layers, and cannot differ where these are the same.
    return (
        before.has("Descriptor") and after.has("Descriptor") and not [*_differences(before, after)]
    )


def _differences(before: Document, after: Document) -> Iterator[str]:
    for name in _OF_THE_IMAGE:
        old, new = before.part(name), after.part(name)
        if old.value == new.value:
            continue
        if name == "RootFS":
            layers = old.texts("Layers"), new.texts("Layers")
            numbers = [
                str(number)
                for number, pair in enumerate(zip(*layers, strict=False), start=1)
                if pair[0] != pair[1]
            ]
            yield (
                f"Layers {some(numbers)} of {len(layers[0])} differ."
                if len(layers[0]) == len(layers[1])
                else f"{len(layers[0])} layers have become {len(layers[1])}."
            )
        elif name == "Config":
            parts = {
                part
                for part in old.table().keys() | new.table().keys()
                if old.table().get(part, Document("", None)).value
                != new.table().get(part, Document("", None)).value
            }
            yield f"The configuration differs: {some(parts)}."
        else:
            yield f"{name} differs."


POINTS: Final[Sequence[Point]] = (
    Point(
        1,
        "The user is 65532:65532, by number",
        "A name could be given another number by a changed /etc/passwd, and only numbers let an "
        "engine see that it is not root.",
        runs_as_nobody_special,
    ),
    Point(
        2,
        "Entry point and health check start the interpreter itself, no shell or downloader",
        "A shell between engine and service swallows signals and turns text into commands.",
        starts_without_shell,
    ),
    Point(
        3,
        "No secret, proxy or setting of the build in variables or history",
        "Whoever can pull the image or inspect the container reads them.",
        tells_no_secret,
    ),
    Point(
        4,
        "Ports above 1024, and /data the only volume",
        "A low port needs a right; a forgotten volume is a place to write that nobody looks at.",
        listens_high_and_keeps_data_apart,
    ),
    Point(
        5,
        "No setuid or setgid file",
        "It lends the rights of its owner to whoever runs it.",
        has_no_setuid,
    ),
    Point(
        6,
        "No file with capabilities",
        "It is the same as setuid, in pieces.",
        has_no_capabilities,
    ),
    Point(
        7,
        "Writable for everybody: only the folders for temporary files",
        "What everybody may change, an intruder changes for others to run.",
        lets_nobody_else_write,
    ),
    Point(
        8,
        "The service owns only /data and its home",
        "An owner can give itself the right to write, whatever the mode is.",
        owns_only_its_data,
    ),
    Point(
        9,
        "The interpreter is the only program in any folder of programs",
        "Every other program is a tool for an intruder and a finding for a scanner.",
        has_one_program,
    ),
    Point(
        10,
        "No pip, ensurepip, venv, uv or tkinter",
        "They bring in code, or have no use in a service.",
        has_no_installer,
    ),
    Point(
        11,
        "No repository, settings, keys, tests or lock files",
        "They tell how the service is made and how it can be got into.",
        leaves_nothing_lying_about,
    ),
    Point(
        12,
        "At least 97 % of the modules are compiled",
        "A read-only root can keep no bytecode: every start would compile again.",
        is_compiled,
    ),
    Point(
        13,
        "Package records, certificates, time zones and the user's entry are there",
        "Without records a scanner finds nothing and says that all is well.",
        tells_what_is_in_it,
    ),
    Point(
        14,
        "/data belongs to the service and is closed to others",
        "A new volume takes owner and mode from it.",
        closes_its_data,
    ),
    Point(
        15,
        "The same inputs give the same image",
        "Only then can anyone check that an image was made from the sources it is said to be from.",
        can_be_built_again,
    ),
)
