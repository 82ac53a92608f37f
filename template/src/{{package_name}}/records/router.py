"""The records over HTTP."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Response
from pydantic import AfterValidator, BaseModel

from ..problems import PROBLEM_RESPONSES
from .cursor import decode_cursor, encode_cursor
from .store import CurrentStore

router = APIRouter(prefix="/v1/records", tags=["records"], responses=PROBLEM_RESPONSES)

Name = Annotated[
    str,
    Path(
        pattern="^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$",
        description="Up to 128 letters, digits and . _ ~ -, beginning with a letter or a digit",
    ),
]


def _encodable(value: str) -> str:
    # JSON can spell half of a surrogate pair, which is no text and has no bytes.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("a surrogate without its pair is not text") from None
    return value


class NewValue(BaseModel):
    """What to keep."""

    value: Annotated[str, AfterValidator(_encodable)]


class Record(BaseModel):
    """A name and the value kept under it."""

    name: str
    value: str


class RecordList(BaseModel):
    """Some names; `next_cursor` leads to the next ones."""

    names: list[str]
    next_cursor: str | None


# Plain functions, because the store waits for the disk: they run in threads of their own.
@router.get("")
def list_records(
    store: CurrentStore,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many names at most")] = 100,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the list before")] = None,
) -> RecordList:
    """List the names, in an order that says nothing and does not change."""
    page = store.page(0 if cursor is None else decode_cursor(cursor), limit)
    next_cursor = None if page.next_after is None else encode_cursor(page.next_after)
    return RecordList(names=page.names, next_cursor=next_cursor)


@router.get("/{name}")
def get_record(name: Name, store: CurrentStore) -> Record:
    """Read a record."""
    value = store.get(name)
    if value is None:
        raise _no_such_record()
    return Record(name=name, value=value)


@router.put(
    "/{name}",
    status_code=201,
    response_class=Response,
    responses={201: {"description": "Created"}, 204: {"description": "Replaced"}},
)
def put_record(name: Name, new: NewValue, store: CurrentStore) -> Response:
    """Create a record or replace its value; it is on disk when the answer comes."""
    created = store.put(name, new.value)
    return Response(status_code=201 if created else 204)


@router.delete("/{name}", status_code=204)
def delete_record(name: Name, store: CurrentStore) -> None:
    """Remove a record."""
    if not store.delete(name):
        raise _no_such_record()


def _no_such_record() -> HTTPException:
    return HTTPException(404, "There is no record of that name.")
