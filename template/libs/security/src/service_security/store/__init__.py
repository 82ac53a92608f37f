"""The encrypted store."""

from .secure_db import SecureDb

__all__ = ["SecureDb"]
