"""Every error of the library: one root, and a line each on what the caller should do.

Messages are sentences for people: what is wrong, then what to do. They carry paths and
identifiers, never keys, plaintext, record names or the rejected bytes.
"""


class SecurityError(Exception):
    """Root of the library's errors; never raised itself."""


class ConfigurationError(SecurityError):
    """Something was set up wrongly. Refuse to start and show the message."""


class UnsupportedFormatError(ConfigurationError):
    """The file was written by another version of the library. Use the version it names."""


class KeyUnavailableError(SecurityError):
    """The key cannot be had now. Retry, or call someone; never make a new key instead."""


class WrongKeyError(SecurityError):
    """The key does not open this file. Find the key that does; the file is unchanged."""


class IntegrityError(SecurityError):
    """Stored bytes are not what was written. Restore them; why they failed is never said."""


class StoreUnavailableError(SecurityError):
    """The store cannot be read or written now: busy, full, read-only, closed or forked."""
