"""No nonce seals two plaintexts: not after kills, in a second process, a fork, a clone or a restored copy.

The writers are in ``nonce_harness.py``, with the scheme of the Rust original, which repeats in each of these.
"""

import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from nonce_harness import BATCH

PROGRAM = Path(__file__).with_name("nonce_harness.py")
CIPHERS = ("xchacha20poly1305", "aes256gcm")
NONCE, DIGEST = 24, 32
EVERY_CALL = ["insert", "insert_many", "get", "page", "items", "count", "check", "flush", "remove"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is neither kill -9 nor fork")


@dataclass(frozen=True)
class Reading:
    """What a database holds."""

    records: dict[str, tuple[int, str]]
    nonces: set[bytes]


@dataclass(frozen=True)
class Harness:
    """Starts writers on databases of one folder, and reads what they logged there."""

    folder: Path
    scheme: str = "store"
    cipher: str = CIPHERS[0]

    def start(
        self, tag: str, part: str = "write", name: str = "records.db", *more: str
    ) -> "subprocess.Popen[str]":
        """Start a process and wait until it is about to open its database."""
        command = [sys.executable, "-W", "ignore", str(PROGRAM), part, str(self.folder / name), *more]
        command += ["--tag", tag, "--scheme", self.scheme, "--cipher", self.cipher]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if process.stdout.readline() != "opening\n":
            process.communicate()
            pytest.fail("a writer did not start")
        return process

    def play(self, part: str, *more: str) -> str:
        """Run a part that ends by itself, and return what it said."""
        with self.start(part, part, "records.db", *more) as process:
            try:
                said, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 0
        return said

    def kill_writers(self, kills: int, *names: str, prefix: str = "k", early: bool = True) -> None:
        """Run one writer for each database name, all at once, and kill them at different moments; and again.

        Args:
            kills: How many times.
            names: The databases.
            prefix: What the writers' tags begin with.
            early: Every third time, do not wait for a first record of each: the kill may come while a file is
                created, opened or leased from.
        """
        names = names or ("records.db",)
        for turn in range(kills):
            writers = [self.start(f"{prefix}{turn}.{n}", "write", name) for n, name in enumerate(names)]
            try:
                for writer in () if early and turn % 3 == 0 else writers:
                    assert writer.stdout is not None
                    assert writer.stdout.readline() == "stored\n"
                time.sleep(0.0015 * (turn % 8))
            finally:
                for writer in writers:
                    writer.kill()
                for writer in writers:
                    writer.communicate()
            assert {writer.returncode for writer in writers} == {-signal.SIGKILL}

    def seals(self, tags: str = "*") -> list[tuple[bytes, bytes]]:
        """Return every nonce with the digest of what it sealed; what a kill cut short was not used yet."""
        size = NONCE + DIGEST
        found = []
        for log in self.folder.glob(f"{tags}.sealed"):
            content = log.read_bytes()
            for start in range(0, len(content) - size + 1, size):
                found.append((content[start : start + NONCE], content[start + NONCE : start + size]))
        return found

    def repeats(self) -> int:
        """Count the plaintexts that were sealed under a nonce that another plaintext had before."""
        plaintexts: dict[bytes, set[bytes]] = defaultdict(set)
        for nonce, digest in self.seals():
            plaintexts[nonce].add(digest)
        return sum(len(digests) - 1 for digests in plaintexts.values())

    def counters(self, tags: str) -> set[bytes]:
        """Return the counters that were used."""
        return {nonce[:8] for nonce, _ in self.seals(tags)}

    def acknowledged(self, tags: str = "*") -> dict[str, int]:
        """Return the last acknowledged version of every name."""
        found: dict[str, int] = {}
        for log in self.folder.glob(f"{tags}.acknowledged"):
            for line in log.read_text().split("\n")[:-1]:
                name, number = line.split(" ")
                found[name] = max(found.get(name, 0), int(number))
        return found

    def interrupted(self) -> int:
        """Count the processes that had sealed what was never acknowledged."""
        return sum(
            log.stat().st_size // (NONCE + DIGEST)
            > log.with_suffix(".acknowledged").read_bytes().count(b"\n")
            for log in self.folder.glob("*.sealed")
        )

    def read(self, name: str = "records.db") -> Reading:
        """Open a database anew; every record in it has to be whole."""
        command = [sys.executable, str(PROGRAM), "read", str(self.folder / name), "--cipher", self.cipher]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        answer = json.loads(said)
        return Reading(
            {record: (number, digest) for record, (number, digest) in answer["records"].items()},
            {bytes.fromhex(nonce) for nonce in answer["nonces"]},
        )

    def assert_nothing_lost(self, name: str = "records.db", tags: str = "*") -> None:
        """Every acknowledged record is there, every other absent or whole, and all of them were observed."""
        found = self.read(name)
        for record, number in self.acknowledged(tags).items():
            assert record in found.records, record
            assert found.records[record][0] >= number, record
        batches: dict[str, list[int]] = defaultdict(list)
        for record, (number, _) in found.records.items():
            if record.count("/") == 3:
                batches[record.rpartition("/")[0]].append(number)
        assert all(len(numbers) == BATCH and len(set(numbers)) == 1 for numbers in batches.values())
        seals = self.seals()
        assert {digest for _, digest in found.records.values()} <= {digest.hex() for _, digest in seals}
        assert found.nonces <= {nonce for nonce, _ in seals}
        assert found.nonces


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """Return a harness of the library's store."""
    return Harness(tmp_path)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_200_kills_repeat_no_nonce_and_lose_nothing(tmp_path: Path, cipher: str) -> None:
    """A hundred for each cipher, of processes with four writes in flight."""
    harness = Harness(tmp_path, cipher=cipher)
    harness.kill_writers(100)
    assert harness.repeats() == 0
    assert harness.interrupted() > 10
    assert len(harness.acknowledged()) > 60
    harness.assert_nothing_lost()


def test_kills_of_two_processes_at_once_repeat_no_nonce_and_lose_nothing(harness: Harness) -> None:
    harness.kill_writers(25, "records.db", "records.db")
    assert harness.repeats() == 0
    assert harness.interrupted() > 5
    harness.assert_nothing_lost()


@pytest.mark.parametrize("scheme", ["lease-alone", "uuid-alone"])
def test_each_defence_alone_repeats_no_nonce_after_kills(tmp_path: Path, scheme: str) -> None:
    harness = Harness(tmp_path, scheme)
    harness.kill_writers(12, "records.db", "records.db")
    assert harness.repeats() == 0
    nonces = [nonce for nonce, _ in harness.seals()]
    counters, uuids = {nonce[:8] for nonce in nonces}, {nonce[8:] for nonce in nonces}
    if scheme == "lease-alone":
        assert len(uuids) == 1
    else:
        assert len(counters) < len(nonces)  # every process began at zero
    harness.assert_nothing_lost()


@pytest.mark.parametrize("scheme", ["original", "neither"])
def test_control_kills_repeat_nonces_without_the_defences(tmp_path: Path, scheme: str) -> None:
    harness = Harness(tmp_path, scheme)
    harness.kill_writers(6)
    assert harness.repeats() > 0


def test_control_two_processes_at_once_repeat_nonces_of_the_original(tmp_path: Path) -> None:
    harness = Harness(tmp_path, "original")
    harness.kill_writers(2, "records.db", "records.db")
    assert harness.repeats() > 0


def test_forks_repeat_no_nonce_and_lose_nothing(harness: Harness) -> None:
    """The children find the inherited store refused, open their own, and are killed; the parent writes on."""
    harness.play("fork")
    assert len(list(harness.folder.glob("fork.*.acknowledged"))) >= 10
    assert harness.repeats() == 0
    harness.assert_nothing_lost()


def test_control_forks_repeat_nonces_of_the_original(tmp_path: Path) -> None:
    harness = Harness(tmp_path, "original")
    harness.play("fork")
    assert harness.repeats() > 0


clone_system_call = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the number of the system call is known for Linux on two machines",
)


@pytest.mark.parametrize("guards", ["pid+page", "pid", "page"])
@pytest.mark.parametrize("how", ["libc", pytest.param("system-call", marks=clone_system_call)])
def test_a_fork_behind_pythons_back_finds_the_store_refused(harness: Harness, how: str, guards: str) -> None:
    """By the process id, by the page that the kernel wipes, and by either alone; even within a call."""
    if guards == "page" and sys.platform != "linux":
        pytest.skip("only Linux wipes a page on fork")
    assert json.loads(harness.play("raw-fork", "--how", how, "--guards", guards)) == []
    assert harness.seals("raw-fork.child") == []
    assert len(harness.seals("raw-fork")) == 2


@pytest.mark.parametrize("how", ["libc", pytest.param("system-call", marks=clone_system_call)])
def test_control_without_its_guards_a_fork_behind_pythons_back_gets_through(
    harness: Harness, how: str
) -> None:
    assert json.loads(harness.play("raw-fork", "--how", how, "--guards", "none")) == EVERY_CALL
    assert len(harness.seals("raw-fork.child")) == 3


def assert_cloned_exactly(harness: Harness) -> None:
    """Both clones went on from one lease position, and used the same counters throughout."""
    first, second = harness.counters("clone.0"), harness.counters("clone.1")
    assert first == second
    assert len(first) == 100 + 10 * BATCH


@pytest.mark.parametrize("cipher", CIPHERS)
def test_two_exact_clones_of_a_process_repeat_no_nonce(tmp_path: Path, cipher: str) -> None:
    """They share the lease, the process id and the keys; only the uuids differ."""
    harness = Harness(tmp_path, cipher=cipher)
    harness.play("clone")
    assert_cloned_exactly(harness)
    assert harness.repeats() == 0
    for number in range(2):
        harness.assert_nothing_lost(f"clone{number}.db", f"clone.{number}")


@pytest.mark.parametrize("scheme", ["original", "uuid-per-open"])
def test_control_exact_clones_repeat_every_nonce_without_fresh_uuids(tmp_path: Path, scheme: str) -> None:
    harness = Harness(tmp_path, scheme)
    harness.play("clone")
    assert_cloned_exactly(harness)
    assert harness.repeats() == 100 + 10 * BATCH


def restore_beside(harness: Harness, rounds: int) -> None:
    """Write, copy the files as they lie on disk, and write to both at once, with kills."""
    harness.kill_writers(2, prefix="before", early=False)
    for suffix in ("", "-wal"):
        shutil.copy(harness.folder / f"records.db{suffix}", harness.folder / f"copy.db{suffix}")
    harness.kill_writers(rounds, "records.db", "copy.db", prefix="after", early=False)


def test_a_restored_copy_written_beside_the_original_repeats_no_nonce(harness: Harness) -> None:
    restore_beside(harness, 8)
    assert len(harness.counters("after*.0") & harness.counters("after*.1")) >= 8
    assert harness.repeats() == 0
    for number, name in enumerate(("records.db", "copy.db")):
        harness.assert_nothing_lost(name, "before*")
        harness.assert_nothing_lost(name, f"after*.{number}")


def test_control_a_restored_copy_repeats_nonces_of_the_original(tmp_path: Path) -> None:
    harness = Harness(tmp_path, "original")
    restore_beside(harness, 2)
    assert harness.repeats() > 0


def test_control_a_lost_record_is_noticed(harness: Harness) -> None:
    """An acknowledgement for what was never written fails the check that finds nothing lost."""
    harness.kill_writers(2)
    harness.assert_nothing_lost()
    with (harness.folder / "k1.0.acknowledged").open("a") as log:
        log.write("k1.0/s9/1 1\n")
    with pytest.raises(AssertionError, match=r"k1[.]0/s9"):
        harness.assert_nothing_lost()
