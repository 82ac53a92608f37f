"""Assembles the application."""

from importlib.metadata import metadata

from fastapi import FastAPI
from starlette.middleware import Middleware

from . import TITLE, health
from .body_limit import BodyLimit
from .log import RequestLog
from .problems import install_problem_handlers
from .records import router as records
from .records.store import RecordStore
from .settings import Settings


def create_app(settings: Settings, store: RecordStore) -> FastAPI:
    """Build the application on a store that is open; closing it is the caller's part."""
    about = metadata(__package__)
    app = FastAPI(
        title=TITLE,
        description=about["Summary"],
        version=about["Version"],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Traces and exported logs carry the path of a request, and with it the name of a record.
        telemetry={"tracing": False, "logs": False},
        middleware=[
            Middleware(RequestLog),
            Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
        ],
    )
    app.state.store = store
    install_problem_handlers(app)
    app.include_router(health.router)
    app.include_router(records.router)
    return app
