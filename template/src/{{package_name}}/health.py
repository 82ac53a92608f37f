"""Probes for whatever runs the service."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from .problems import problem
from .records.store import CurrentStore, StoreError

router = APIRouter(include_in_schema=False)


@router.get("/livez")
async def live() -> Response:
    """Say that the process answers; touches nothing else."""
    return JSONResponse({"status": "live"})


@router.get("/readyz")
def ready(store: CurrentStore) -> Response:
    """Say whether the records can be reached."""
    try:
        store.check()
    except StoreError:
        return problem(503, "The service is not ready.")
    return JSONResponse({"status": "ready"})
