"""The examples of the page on encryption do what it says."""

import re
from pathlib import Path

import pytest

from service_security.cli import main

PAGE = Path(__file__).parents[3] / "docs/security/ENCRYPTION.md"

if not PAGE.exists():
    pytest.skip("docs/security/ENCRYPTION.md is not there", allow_module_level=True)

EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "assert" in example
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SERVICE_DATA_DIR", raising=False)
    assert main(["init", "--no-recovery", "--key-source", "file:secrets/service.key"]) == 0
    exec(example, {})  # noqa: S102 - our own document
