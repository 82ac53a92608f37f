"""Smoke test: `python -m` this module writes, reads and deletes a record of a running service.

It reaches the service at `SERVICE_HOST` and `SERVICE_PORT`, over the network, as a client does.
"""

import http.client
import json
import os
import secrets
import sys
from contextlib import closing

_TIMEOUT_SECONDS = 10.0


class SmokeError(Exception):
    """The service answered, and not as it should."""


def exercise(host: str, port: int) -> None:
    """Take a record of a new name through its life.

    Raises:
        SmokeError: An answer is wrong.
        OSError: The service cannot be reached, or not any more.
        http.client.HTTPException: What answers does not speak HTTP.
    """
    name, value = f"smoke-{secrets.token_hex(8)}", secrets.token_hex(16)
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)

    def expect(status: int, method: str, body: str | None = None) -> bytes:
        """Send a request for the record, and return the body of an answer with that status."""
        headers = {"Content-Type": "application/json"}
        connection.request(method, f"/v1/records/{name}", body, headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != status:
            raise SmokeError(f"{method} was answered with {response.status} instead of {status}")
        return content

    with closing(connection):
        expect(201, "PUT", json.dumps({"value": value}))
        try:
            if json.loads(expect(200, "GET")) != {"name": name, "value": value}:
                raise SmokeError("GET returned something else than PUT stored")
        finally:
            expect(204, "DELETE")
        expect(404, "GET")


def main() -> int:
    """Exercise the service and return the exit status."""
    host = os.environ.get("SERVICE_HOST") or "127.0.0.1"
    port = os.environ.get("SERVICE_PORT") or "8000"
    try:
        exercise(host, int(port))
    except (OSError, ValueError, SmokeError, http.client.HTTPException) as error:
        print(f"{host}:{port}: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print(f"{host}:{port}: a record was written, read and deleted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
