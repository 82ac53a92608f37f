"""The description that the service gives of itself."""

import tomllib
from pathlib import Path

from fastapi.testclient import TestClient

PROJECT = tomllib.loads(
    Path(__file__).parent.with_name("pyproject.toml").read_text(encoding="utf-8")
)["project"]


def test_description_and_version_are_those_of_the_project(client: TestClient) -> None:
    info = client.get("/openapi.json").json()["info"]
    assert info["description"] == PROJECT["description"]
    assert info["version"] == PROJECT["version"]


def test_errors_are_described_as_problem_documents(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    assert len(operations) == 4
    for operation in operations:
        assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]
        assert "422" not in operation["responses"]


def test_there_are_no_pages_for_people(client: TestClient) -> None:
    assert client.get("/docs").status_code == 404
    assert client.get("/redoc").status_code == 404
