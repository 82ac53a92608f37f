"""Structured logs: JSON lines for machines, coloured lines for a terminal.

Everything goes through here, the server's own messages included. No line holds the name or the
value of a record: a request is logged by its route, never by its path.
"""

import logging
import sys
import time
from typing import Literal, TextIO

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_QUIET_ROUTES = frozenset({"/livez", "/readyz"})

_request_log: structlog.stdlib.BoundLogger = structlog.get_logger("request")


def configure_logging(
    level: str, log_format: Literal["auto", "json", "console"], stream: TextIO | None = None
) -> None:
    """Send all logs of the process to `stream` (standard output when none is given).

    Args:
        level: name of the lowest level that is written.
        log_format: `auto` means `console` on a terminal and `json` elsewhere.
        stream: where to write.
    """
    stream = sys.stdout if stream is None else stream
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    common: list[structlog.typing.Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_console(colors=stream.isatty()) if console else _json()),
            ],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The server announces each of its steps; what matters of them is logged by this service.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


# Both renderers write plain tracebacks: the fancier ones print local variables, which hold values.
def _console(*, colors: bool) -> list[structlog.typing.Processor]:
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]


def _json() -> list[structlog.typing.Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


class RequestLog:
    """ASGI middleware that logs one line for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and log what came of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        begun = time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", None)
            quiet = route in _QUIET_ROUTES and status < 500
            _request_log.log(
                logging.DEBUG if quiet else logging.INFO,
                "request",
                method=scope["method"],
                route=route,
                status=status,
                duration_ms=round((time.perf_counter() - begun) * 1000, 2),
            )
