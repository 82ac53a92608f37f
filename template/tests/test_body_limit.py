"""The limit on request bodies."""

import json
from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

LIMIT = 100
JSON = {"content-type": "application/json"}


@pytest.fixture
def limited(client_for: Callable[..., TestClient], record_store: object) -> TestClient:
    return client_for(record_store, max_body_bytes=LIMIT)


def body_of(size: int) -> bytes:
    frame = len(json.dumps({"value": ""}))
    return json.dumps({"value": "x" * (size - frame)}).encode()


def in_pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 10):
        yield body[start : start + 10]


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT])
def test_body_within_the_limit_is_accepted(limited: TestClient, size: int) -> None:
    contents: list[bytes | Iterator[bytes]] = [body_of(size), in_pieces(body_of(size))]
    for number, content in enumerate(contents):
        response = limited.put(f"/v1/records/name-{number}", content=content, headers=JSON)
        assert response.status_code == 201


@pytest.mark.parametrize("size", [LIMIT + 1, 100 * LIMIT])
def test_declared_length_above_the_limit_is_refused(limited: TestClient, size: int) -> None:
    response = limited.put("/v1/records/name", content=body_of(size), headers=JSON)
    assert response.status_code == 413
    assert response.headers["content-type"] == "application/problem+json"
    assert str(LIMIT) in response.json()["detail"]


@pytest.mark.parametrize("size", [LIMIT + 1, 100 * LIMIT])
def test_body_of_undeclared_length_is_counted(limited: TestClient, size: int) -> None:
    response = limited.put("/v1/records/name", content=in_pieces(body_of(size)), headers=JSON)
    assert "content-length" not in response.request.headers
    assert response.status_code == 413
    assert response.headers["content-type"] == "application/problem+json"
    assert limited.get("/v1/records/name").status_code == 404


def test_body_larger_than_declared_is_counted(limited: TestClient) -> None:
    headers = {**JSON, "content-length": "10"}
    response = limited.put("/v1/records/name", content=body_of(LIMIT + 1), headers=headers)
    assert response.status_code == 413


def test_limit_holds_where_no_body_is_expected(limited: TestClient) -> None:
    response = limited.request("GET", "/v1/records", content=b"x" * (LIMIT + 1))
    assert response.status_code == 413
