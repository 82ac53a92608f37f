"""What is in the service's image, and who says so: its SBOM, its archive, its signature.

Run beside the service, never in it: nothing of this package is installed into the image. The engine
and cosign are driven by their commands. ``docs/security/SUPPLY-CHAIN.md`` is the manual.
"""


class SupplyChainError(Exception):
    """Something does not hold, or a tool is missing; the message says what, and what to do."""
