"""Where keys come from, and how they are kept."""

from .envelope import Envelope, ServiceKeys, open_keys, open_master_key
from .initialise import initialise

__all__ = ["Envelope", "ServiceKeys", "initialise", "open_keys", "open_master_key"]
