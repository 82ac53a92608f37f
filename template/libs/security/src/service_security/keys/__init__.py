"""Where keys come from, and how they are kept."""

from .envelope import Envelope, open_master_key
from .initialise import initialise

__all__ = ["Envelope", "initialise", "open_master_key"]
