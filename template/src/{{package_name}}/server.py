"""The HTTP server around the application."""

import ipaddress
import signal
import socket
from types import FrameType

import structlog
import uvicorn
from starlette.types import ASGIApp

from .errors import StartError

# Container engines kill ten seconds after the request to stop; this leaves time to close the store.
_GRACE_SECONDS = 8

_log: structlog.stdlib.BoundLogger = structlog.get_logger("server")


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Raises:
        StartError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is no host name"
        reason = str(reason).partition(" (while ")[0]  # would repeat the address
        raise StartError(
            f"The service cannot listen on {host} port {port}: {reason}."
            " SERVICE_HOST and SERVICE_PORT name the address."
        ) from error


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those that are under way."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ws="none",
        )
    )

    def stop(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    # The server has handlers of its own while it runs. These catch a signal that comes earlier, and
    # the one that it raises again when it has stopped, which would end the process with an error.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)
    announce(*listener.getsockname()[:2])
    server.run(sockets=[listener])
    _log.info("stopped")


def announce(host: str, port: int) -> None:
    """Log where the service listens, and who reaches it there."""
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if ipaddress.ip_address(host).is_loopback:
        _log.info("listening", url=url, access="this machine only, because there is no log-in")
    else:
        _log.warning(
            "listening", url=url, access="everyone who reaches this address can read and write"
        )
