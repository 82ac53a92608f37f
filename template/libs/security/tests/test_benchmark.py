"""The benchmark measures what it says, of stores that do what they are asked. Nothing is timed."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import security_benchmark, store_driver
from benchmarks.rotation import SITUATIONS
from benchmarks.security_benchmark import main
from benchmarks.start import BARE
from benchmarks.store_driver import TOP, Contest, Side, WorkerError, WorkerProcess, own_side
from benchmarks.store_measures import (
    BARS,
    INSERT,
    MEMORY,
    MEMORY_LARGE,
    OPEN,
    TWIN,
    Benchmark,
    Plan,
)
from benchmarks.store_report import Bar, Place, Result, as_json, as_table
from benchmarks.store_worker import NAME_BYTES, Names, Worker

DISK = Place(Path("/somewhere"), "ext4")


def result(figure: float, bar: Bar | None) -> Result:
    rounds = [figure + 0.5, figure, figure - 0.1]
    return Result(
        INSERT, 1024, "random", "aes256gcm", TWIN, "µs", [20.0] * 3, [10.0] * 3, rounds, bar
    )


def cells(table: str) -> list[dict[str, str]]:
    """Read the lines of a table by the columns of its ruler."""
    heading, ruler, *lines = table.splitlines()
    starts = [0, *(at + 2 for at in range(len(ruler)) if ruler.startswith("  ", at))]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    names = [heading[start:end].strip() for start, end in spans]
    return [
        dict(zip(names, (line[start:end].strip() for start, end in spans), strict=True))
        for line in lines[: lines.index("")]
    ]


# A whole run


def test_a_run_tells_the_same_to_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a bar that nothing can reach is reported as missed, without failing the run."""
    bars = {**BARS, (OPEN, TWIN): Bar(1e-6, strict=True), (INSERT, TWIN): Bar(1e9)}
    monkeypatch.setattr(security_benchmark, "Benchmark", partial(Benchmark, bars=bars))
    folder, found = tmp_path / "disk", tmp_path / "found.json"
    folder.mkdir()
    small = ["--quick", "--rounds", "1", "--large", "150"]
    assert main([*small, "--dir", str(folder), "--json", str(found)]) == 0
    assert list(folder.iterdir()) == []
    printed = capsys.readouterr().out
    rows = cells(printed)
    results: list[dict[str, Any]] = json.loads(found.read_text())["results"]
    assert len(rows) == len(results) > 40
    for row, entry in zip(rows, results, strict=True):
        for column in ("measure", "names", "cipher", "against", "verdict"):
            assert row[column] == entry[column]
        assert float(row["figure"].split()[0]) == pytest.approx(entry["figure"], abs=0.001)
        assert (row["bar"] == "") == (entry["bar"] is None)
    opened = [entry["verdict"] for entry in results if entry["measure"] == OPEN]
    assert len(opened) == 2
    assert all(verdict.startswith("missed by ") for verdict in opened)
    assert "Readable in the files: plain twin (names, values)." in printed
    judged = {(entry["measure"], entry["against"]) for entry in results if entry["bar"] is not None}
    without = set() if Path("/proc/self/status").exists() else {MEMORY, MEMORY_LARGE}
    rotations = {(f"rotation, {situation}", TWIN) for situation in SITUATIONS[1:]}
    starts = {(f"process start to open store, {at}", BARE) for at in ("file", "secret", "env")}
    assert judged == {key[:2] for key in BARS if key[0] not in without} | rotations | starts


# Bars and the report


@pytest.mark.parametrize(
    ("bar", "figure", "verdict"),
    [
        (Bar(1.05), 1.05, "met"),
        (Bar(1.05), 1.0612, "missed by 0.011 (1%)"),
        (Bar(2.0, higher=True), 2.0, "met"),
        (Bar(2.0, higher=True), 1.5, "missed by 0.500 (25%)"),
        (Bar(10.0, strict=True), 9.99, "met"),
        (Bar(10.0, strict=True), 10.0, "missed by < 0.001 (0%)"),
        (Bar(1.05), 1.0501, "missed by < 0.001 (0%)"),
    ],
)
def test_a_bar_says_by_how_much_it_was_missed(bar: Bar, figure: float, verdict: str) -> None:
    assert bar.verdict(figure, on_disk=True) == verdict


def test_what_a_disk_costs_is_not_judged_in_memory() -> None:
    assert Bar(1.0, disk=True).verdict(9.0, on_disk=False) == "not judged: no disk"
    assert Bar(1.0).verdict(9.0, on_disk=False).startswith("missed")


def test_missed_bars_are_counted() -> None:
    results = [result(1.3, Bar(1.15)), result(1.1, Bar(1.15)), result(9.9, None)]
    table = as_table(results, DISK, ["A note."])
    assert [row["verdict"] for row in cells(table)] == ["missed by 0.150 (13%)", "met", ""]
    assert "1 of 2 bars met, 1 missed." in table
    assert table.endswith("A note.")


def test_a_figure_is_the_median_of_its_rounds() -> None:
    entry: Any = as_json([result(1.3, Bar(1.15, aim=1.1))], DISK, [])
    assert entry["results"][0]["figure"] == 1.3
    assert entry["results"][0]["figures"] == [1.8, 1.3, 1.2]
    assert (entry["results"][0]["bar"], entry["results"][0]["aim"]) == (1.15, 1.1)


def test_the_bars_hold_for_random_names_of_one_size_only(tmp_path: Path) -> None:
    benchmark = Benchmark(Plan(), tmp_path)
    for size, names in ((1024, "random"), (1024, "ordered"), (64, "random")):
        benchmark._add(INSERT, size, names, "aes256gcm", TWIN, "µs", [1.0], [1.0], [1.0])
    assert [entry.bar for entry in benchmark.results] == [
        BARS[INSERT, TWIN, "aes256gcm"],
        None,
        None,
    ]
    assert BARS[INSERT, TWIN, "aes256gcm"] != BARS[INSERT, TWIN]


def test_the_file_system_is_looked_up() -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("the kernel tells file systems in /proc/self/mountinfo, which is not here")
    assert Place.of(Path("/proc/self")).file_system == "proc"
    assert Place(Path("/x"), "tmpfs").on_disk is False
    assert "costs nothing" in str(Place(Path("/x"), "tmpfs"))
    assert DISK.on_disk is True


# Turns


class Turns:
    """Stands for worker processes and notes who was asked."""

    def __init__(self, side: Side) -> None:
        self.side = side

    def ask(self, do: str, **arguments: object) -> float:
        """Take as long as the label says."""
        asked.append(self.side.label)
        assert (do, arguments) == ("insert", {"count": 100})
        return float(self.side.label) / 1e6 * 100

    def close(self) -> None:
        """Nothing runs."""


asked: list[str] = []


def test_workers_take_turns_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_driver, "WorkerProcess", Turns)
    asked.clear()
    sides = [Side(label, ()) for label in ("3", "5", "7")]
    with Contest(sides) as contest:
        found = contest.rounds(4, 3, "insert", count=100)
    assert {label: len(rounds) for label, rounds in found.items()} == {"3": 4, "5": 4, "7": 4}
    assert all(each == pytest.approx(float(label)) for label in found for each in found[label])
    turns = [tuple(asked[at : at + 3]) for at in range(0, len(asked), 3)]
    assert len(turns) == 1 + 4 * 3
    assert all(sorted(turn) == ["3", "5", "7"] for turn in turns)
    for place in range(3):  # nobody is always first, or always behind the same one
        assert {turn[place] for turn in turns} == {"3", "5", "7"}
    assert len(set(turns)) > 3


# Workers


def test_all_workers_write_the_same_names() -> None:
    random, ordered = Names("random").of(range(2_000)), Names("ordered").of(range(2_000))
    assert random == Names("random").of(range(2_000))
    assert len(set(random)) == 2_000
    assert {len(name) for name in random} == {NAME_BYTES}
    assert random != sorted(random)
    assert ordered == sorted(ordered)


class Forgetful(dict[bytes, bytes]):
    """A store that forgets names that end in a low byte."""

    def insert(self, name: bytes, value: bytes) -> None:
        """Store, or forget."""
        if name[-1] >= 8:
            self[name] = value

    def insert_many(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Store, or forget."""
        for name, value in pairs:
            self.insert(name, value)

    def transaction(self) -> Any:
        """Return nothing of use."""

    def flush(self) -> None:
        """Nothing is in a log."""

    def close(self) -> None:
        """Nothing is open."""


class Sound(Forgetful):
    """The control: it keeps everything."""

    def insert(self, name: bytes, value: bytes) -> None:
        """Store."""
        self[name] = value


@pytest.mark.parametrize("do", [{"count": 400}, {"count": 50, "size": 10}, {"by": "batch"}])
def test_a_store_that_loses_records_is_not_measured(do: dict[str, Any], tmp_path: Path) -> None:
    def work(store: Any, rounds: int) -> None:
        worker = Worker(lambda _: store, tmp_path, "random", 10, 0)
        for _ in range(rounds):
            if "by" in do:
                worker.fill(100, **do)
            elif "size" in do:
                worker.batch(**do)
            else:
                worker.insert(**do)

    work(Sound(), 3)
    with pytest.raises(RuntimeError, match="lost a record"):
        work(Forgetful(), 40)


def test_a_worker_that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    worker = WorkerProcess(own_side("the twin", "plain"))
    with pytest.raises(WorkerError, match="the twin stopped at 'start'"):
        worker.ask("start", folder="/dev/null/none", order="random", size=1, filled=0)
    worker.close()
    assert "NotADirectoryError" in capfd.readouterr().err


def test_what_threads_write_is_all_there(tmp_path: Path) -> None:
    with Contest([own_side(TWIN, "plain"), own_side("sealed", "aes256gcm")]) as contest:
        contest.start(tmp_path, order="random", size=10)
        contest.each("threads", count=80, writers=8)
        contest.each("get", count=500)
        contest.each("open", count=2)
        assert contest.each("readable") == {TWIN: ["names", "values"], "sealed": []}
        contest.finish()


def run(code: str) -> str:
    """Run a few lines in a process of their own, which finds the benchmarks."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(("store", "loaded"), [("plain", "False"), ("aes256gcm", "True")])
def test_the_twin_does_not_load_what_encrypts(store: str, loaded: str, tmp_path: Path) -> None:
    """Or the memory that encryption takes would not show in the difference."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.own_stores import opener;"
        f"store = opener({store!r})(Path({str(tmp_path)!r})); store.insert(b'a', b'b');"
        "print(any(name.startswith('cryptography') or name == '_hashlib' for name in sys.modules))"
    )
    assert run(code) == loaded


@pytest.mark.parametrize("store", ["plain", "xchacha20poly1305"])
def test_a_slow_disk_delays_each_durable_write(store: str, tmp_path: Path) -> None:
    """A lower bound, so that no machine is too slow for this test."""
    code = (
        "import time; from pathlib import Path; from benchmarks.own_stores import opener;"
        "from benchmarks.slow_disk import SlowDisk;"
        "disk = SlowDisk(60);"
        f"store = opener({store!r})(Path({str(tmp_path)!r}));"
        "store.insert(b'first', b'takes a lease');"
        "begun = time.perf_counter(); store.insert(b'a', b'b'); store.insert(b'c', b'd');"
        "print(time.perf_counter() - begun)"
    )
    assert float(run(code)) >= 0.120
