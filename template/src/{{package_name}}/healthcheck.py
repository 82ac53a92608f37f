"""Health check of a container: `python -m` this module ends with 0 when the service is ready.

Standard library only, because it starts every few seconds.
"""

import http.client
import os
import sys

_TIMEOUT_SECONDS = 3.0


def main() -> int:
    """Ask `/readyz` on the address the service listens on; return the exit status."""
    host = os.environ.get("SERVICE_HOST") or "127.0.0.1"
    port = os.environ.get("SERVICE_PORT") or "8000"
    # An address that stands for all of them is reached through loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    try:
        connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_SECONDS)
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
        connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"No answer from {host}:{port}: {error}", file=sys.stderr)
        return 1
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
