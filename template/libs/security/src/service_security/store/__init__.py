"""The encrypted store."""

from .field import FieldSealer
from .secure_db import SecureDb

__all__ = ["FieldSealer", "SecureDb"]
