"""Where keys come from, and how they are kept."""

from .envelope import Envelope
from .initialise import initialise
from .service_keys import ServiceKeys, open_keys, open_master_key
from .source import DEFAULT_SOURCE, KeySource

__all__ = [
    "DEFAULT_SOURCE",
    "Envelope",
    "KeySource",
    "ServiceKeys",
    "initialise",
    "open_keys",
    "open_master_key",
]
