"""Errors over HTTP are problem documents (RFC 9457).

A document says what went wrong and never repeats what was sent: names and values are private.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from .records.cursor import CursorError
from .records.store import DamagedRecordError, StoreUnavailableError

_MEDIA_TYPE = "application/problem+json"

_log: structlog.stdlib.BoundLogger = structlog.get_logger("problem")

# Pydantic's own words for these do not say what to do.
_MESSAGES = {
    "model_attributes_type": "This must be a JSON object, sent with content-type: application/json",
}

# Starlette's own words for these say less than the title does.
_DETAILS = {
    404: "Nothing is served at this path.",
    405: "The path exists, but not for this method.",
}


class Problem(BaseModel):
    """The members of a problem document."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem document (RFC 9457)",
        "content": {_MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    }
}


def problem(
    status: int,
    detail: str,
    *,
    errors: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Build the response for a problem; `errors` names the parts of the request at fault."""
    title = HTTPStatus(status).phrase
    document = Problem(title=title, status=status, detail=detail, errors=errors)
    return JSONResponse(
        document.model_dump(exclude_none=True),
        status_code=status,
        headers=headers,
        media_type=_MEDIA_TYPE,
    )


async def _http(_: Request, error: HTTPException) -> JSONResponse:
    said = error.detail != HTTPStatus(error.status_code).phrase
    detail = error.detail if said else _DETAILS.get(error.status_code, error.detail)
    return problem(error.status_code, detail, headers=error.headers)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    errors = [
        {
            "where": "/".join(str(part) for part in item["loc"]),
            "message": _MESSAGES.get(item["type"], item["msg"]),
        }
        for item in error.errors()
    ]
    return problem(422, "The request is not valid.", errors=errors)


async def _bad_cursor(_: Request, __: CursorError) -> JSONResponse:
    return problem(400, "The cursor is not one that this service gave out.")


async def _damaged(_: Request, error: DamagedRecordError) -> JSONResponse:
    _log.error("damaged record", reason=str(error))
    return problem(500, "The request could not be answered.")


async def _unavailable(_: Request, error: StoreUnavailableError) -> JSONResponse:
    _log.error("store unavailable", reason=str(error))
    return problem(503, "The records cannot be reached at the moment.")


async def _unexpected(_: Request, __: Exception) -> JSONResponse:
    # The server logs the traceback.
    return problem(500, "The request could not be answered.")


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` answer with a problem document."""
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(CursorError)(_bad_cursor)
    app.exception_handler(DamagedRecordError)(_damaged)
    app.exception_handler(StoreUnavailableError)(_unavailable)
    app.exception_handler(Exception)(_unexpected)
