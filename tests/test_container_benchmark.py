"""The container benchmark compares like with like. Nothing is built and nothing timed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from scaffold import HARDENED, Answers

from benchmarks.container import (
    BARS,
    READY,
    REST,
    TWIN,
    Benchmark,
    as_table,
    in_megabytes,
    main,
    twin_of,
)
from benchmarks.container import (
    HARDENED as OURS,
)

Rendered = Callable[[Answers], Path]


def stages(dockerfile: str) -> list[str]:
    return [f"FROM {stage}" for stage in dockerfile.split("\nFROM ")[1:]]


def test_the_twin_differs_in_its_base_alone(rendered: Rendered) -> None:
    ours = (rendered(HARDENED) / "Dockerfile").read_text()
    twin = twin_of(ours)
    *ours_before, ours_last = stages(ours)
    *twin_before, twin_last = stages(twin)
    assert twin_last.startswith("FROM ${PYTHON_IMAGE}\nCOPY --from=builder /app/.venv /app/.venv\n")
    assert ours_last.startswith("FROM base\nCOPY --from=builder /rt/ /\n")
    # Variables, user, port, health check and entry point are the same to the letter.
    assert twin_last[twin_last.index("ENV ") :] == ours_last[ours_last.index("ENV ") :]
    assert twin_before[:-1] == ours_before[:-1]
    collects = ours_before[-1].index("COPY docker/collect_runtime.py")
    assert twin_before[-1].startswith(ours_before[-1][:collects])
    assert "collect_runtime" not in twin_before[-1]


def test_a_dockerfile_that_it_does_not_know_is_not_measured(rendered: Rendered) -> None:
    ours = (rendered(HARDENED) / "Dockerfile").read_text()
    with pytest.raises(SystemExit, match="does not know it"):
        twin_of(ours.replace("COPY --from=builder /rt/ /", "COPY --from=builder /rt /"))


@pytest.mark.parametrize(
    ("text", "megabytes"), [("44.5MiB", 46.66), ("512KiB", 0.524), ("1.5GB", 1500), (" 900B ", 0.0009)]
)
def test_sizes_are_read_as_the_engine_writes_them(text: str, megabytes: float) -> None:
    assert in_megabytes(text) == pytest.approx(megabytes, rel=0.001)


def test_a_missed_bar_is_said_to_be_missed() -> None:
    benchmark = Benchmark([])
    for measure, seconds in ((READY, BARS[READY] + 0.01), (REST, 70.0)):
        benchmark.figures[measure][OURS] += [0.1, seconds, seconds]
        benchmark.figures[measure][TWIN] += [2 * seconds]
    ready, rest = as_table(benchmark).splitlines()[1:3]
    assert ready.endswith("<= 0.7: MISSED")
    assert "0.50" in ready
    assert rest.endswith("0.10 to 70.00")
    benchmark.figures[READY][OURS] += [0.2, 0.2]
    assert as_table(benchmark).splitlines()[1].endswith("<= 0.7: met")


def test_without_an_engine_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([]) == 1
    assert "`docker version` fails: a running engine with compose and buildx" in capsys.readouterr().err
