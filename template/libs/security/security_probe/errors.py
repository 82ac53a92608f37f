"""Why a container could not be probed."""


class ProbeError(Exception):
    """There is no verdict: the message says what is wrong and what to do."""
