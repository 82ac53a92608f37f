"""Why the service does not start."""


class StartError(Exception):
    """What stands in the way, as one sentence for the person who started the service."""
