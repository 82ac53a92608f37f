"""Encrypted records, and the keys that open them.

Import from the piece you need: ``service_security.store``, ``service_security.keys``,
``service_security.errors``. Arrows between the pieces run one way: ``errors`` and
``secret_bytes`` know nothing of the rest, ``keys`` builds on them, ``store`` on ``keys``.
"""
