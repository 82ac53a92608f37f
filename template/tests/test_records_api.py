"""The records over HTTP."""

from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient


def test_record_is_created_read_replaced_and_deleted(client: TestClient) -> None:
    created = client.put("/v1/records/greeting", json={"value": "hello"})
    assert (created.status_code, created.content) == (201, b"")
    read = client.get("/v1/records/greeting")
    assert (read.status_code, read.json()) == (200, {"name": "greeting", "value": "hello"})
    replaced = client.put("/v1/records/greeting", json={"value": "good morning"})
    assert (replaced.status_code, replaced.content) == (204, b"")
    assert client.get("/v1/records/greeting").json()["value"] == "good morning"
    deleted = client.delete("/v1/records/greeting")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert client.get("/v1/records/greeting").status_code == 404
    assert client.delete("/v1/records/greeting").status_code == 404


@pytest.mark.parametrize("value", ["", "nul \x00", "✨ “ü”", "\\ \" ' </script>", "a\r\nb\t\x7f"])
def test_any_text_comes_back_as_it_was(client: TestClient, value: str) -> None:
    assert client.put("/v1/records/text", json={"value": value}).status_code == 201
    assert client.get("/v1/records/text").json()["value"] == value


@pytest.mark.parametrize("name", ["a", "0", "A.b_c~d-9", "x" * 128, "a..", "con"])
def test_name_is_accepted(client: TestClient, name: str) -> None:
    assert client.put(f"/v1/records/{name}", json={"value": "x"}).status_code == 201
    assert client.get(f"/v1/records/{name}").json()["name"] == name
    assert client.get("/v1/records").json()["names"] == [name]


@pytest.mark.parametrize(
    "name", [".hidden", "-dash", "~", "a b", "é", "x" * 129, "a\n", "a\x00", "a%", "a:b", "a\\b"]
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_name_is_refused(client: TestClient, method: str, name: str) -> None:
    body = {"value": "x"} if method == "PUT" else None
    response = client.request(method, f"/v1/records/{quote(name, safe='')}", json=body)
    assert response.status_code == 422
    assert client.get("/v1/records").json()["names"] == []


def test_slash_in_a_name_leads_to_no_record(client: TestClient) -> None:
    assert client.put("/v1/records/a%2Fb", json={"value": "x"}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        rb'{"value": "\ud800"}',
        rb'{"value": "\udfff tail"}',
        b'{"value": null}',
        b'{"value": 1}',
        b'{"value": ["x"]}',
        b'{"value": NaN}',
        b'"text"',
        b"[]",
        b"{}",
        b"",
        b"{",
        b'{"value": "\xff"}',
        b"[" * 100_000,
        b"1" * 10_000,
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_body_is_refused(client: TestClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = client.put("/v1/records/name", content=body, headers=headers)
    assert response.status_code in {400, 422}
    assert response.headers["content-type"] == "application/problem+json"
    assert client.get("/v1/records/name").status_code == 404


def test_body_that_is_not_declared_as_json_is_refused(client: TestClient) -> None:
    response = client.put("/v1/records/name", content=b'{"value": "x"}')
    assert response.status_code == 422


def test_list_of_nothing_is_empty(client: TestClient) -> None:
    assert client.get("/v1/records").json() == {"names": [], "next_cursor": None}


def test_following_the_cursors_gives_every_name_once(client: TestClient) -> None:
    names = [f"name-{number}" for number in range(7)]
    for name in names:
        client.put(f"/v1/records/{name}", json={"value": "x"})
    seen: list[str] = []
    pages = 0
    cursor: str | None = None
    while pages == 0 or cursor is not None:
        query = {"limit": "3"} if cursor is None else {"limit": "3", "cursor": cursor}
        page = client.get("/v1/records", params=query).json()
        seen += page["names"]
        cursor = page["next_cursor"]
        pages += 1
    assert (sorted(seen), pages) == (names, 3)


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "many", "1.5", ""])
def test_limit_is_refused(client: TestClient, limit: str) -> None:
    assert client.get("/v1/records", params={"limit": limit}).status_code == 422


@pytest.mark.parametrize("limit", ["1", "1000"])
def test_limit_is_accepted(client: TestClient, limit: str) -> None:
    assert client.get("/v1/records", params={"limit": limit}).status_code == 200
