"""A worker with the store itself or its plain twin: ``own_stores.py STORE [SYNC_MS]``."""

import importlib.util
import sys
from types import ModuleType

from .slow_disk import SlowDisk
from .store_worker import Opener, serve

STORES = ("plain", "xchacha20poly1305", "aes256gcm")


def opener(store: str) -> Opener:
    """Return what opens one of :data:`STORES`, loading no more than it needs."""
    if store == "plain":
        _leave_encryption_out()
        from .plain_twin import PlainDb

        return lambda folder: PlainDb.open(folder / "records.db")
    from service_security.secret_bytes import SecretBytes
    from service_security.store import SecureDb

    master = SecretBytes.copy_of(bytes(range(32)))  # never a key that anyone else has seen
    return lambda folder: SecureDb.open(folder / "records.db", master, cipher=store)


def _leave_encryption_out() -> None:
    """Let the twin import what it shares with the store without loading what it does not use.

    Its package imports the store, and with it OpenSSL: megabytes that a plain store would not
    have, and that would be missing from the difference of the two.
    """
    name = "service_security.store"
    found = importlib.util.find_spec(name)
    package = ModuleType(name)
    package.__path__ = list(found.submodule_search_locations or []) if found else []
    sys.modules[name] = package


if __name__ == "__main__":
    _slow_disk = SlowDisk(float(sys.argv[2])) if len(sys.argv) > 2 else None
    serve(opener(sys.argv[1]))
