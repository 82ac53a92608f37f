"""What ``db info`` prints: the same facts for people and for machines. Never a key."""

import json
from typing import Final

from .info import DatabaseInfo, KeyInfo
from .schema import FORMAT

_ISO: Final = "%Y-%m-%dT%H:%M:%SZ"
_KEY_HEADINGS: Final = ("key", "state", "for", "cipher", "made", "in this state since", "records")
_KEY_LINE: Final = "  {:<5}{:<12}{:<12}{:<19}{:<22}{:<22}{}"
_UNKNOWN_KEY: Final = ", which the keyset does not have; they cannot be read"


def describe(info: DatabaseInfo, keys: list[KeyInfo] | None, about_key: str) -> str:
    """Return what is known as lines for people.

    Args:
        info: What the file shows.
        keys: What its keyset tells; None when it was not opened.
        about_key: What opened it, or why nothing did; empty where there is nothing to open.
    """
    rows = {"kind": info.kind.value}
    if info.format is not None:
        rows["format"] = str(info.format)
        if info.format != FORMAT:
            rows["format"] += f", which this version does not read; it reads format {FORMAT}"
    if info.header:
        rows["database id"] = info.header.db_id.hex()
        rows["key generation"] = str(info.header.keyset_generation)
    if info.records is not None:
        rows["records"] = str(info.records)
    elif info.header:
        rows["records"] = "cannot be counted: the file is damaged, and db verify tells how"
    rows |= {
        "size": size_of(info.size),
        "of it free": size_of(info.free),
        "log": size_of(info.log_size),
    }
    lines = [str(info.path), *(f"  {name:<16}{value}" for name, value in rows.items())]
    if about_key:
        lines += ["", about_key]
    if keys is not None:
        lines += ["", _KEY_LINE.format(*_KEY_HEADINGS)]
        lines += [_KEY_LINE.format(*_cells(key, info)) for key in keys]
        lines += ["  * new records are sealed with it"]
    for key_id in sorted(info.records_of_keys.keys() - {key.key_id for key in keys or ()}):
        count = info.records_of_keys[key_id]
        lines.append(f"{count} records are sealed with key {key_id}{_UNKNOWN_KEY if keys else ''}.")
    return "\n".join(lines)


def to_json(info: DatabaseInfo, keys: list[KeyInfo] | None, about_key: str) -> str:
    """Return the same for machines. Members that are not known are null."""
    return json.dumps(
        {
            "path": str(info.path),
            "kind": info.kind.name.lower(),
            "format": info.format,
            "database_id": info.header.db_id.hex() if info.header else None,
            "key_generation": info.header.keyset_generation if info.header else None,
            "records": info.records,
            "records_of_keys": {str(key): n for key, n in info.records_of_keys.items()},
            "size_bytes": info.size,
            "free_bytes": info.free,
            "log_bytes": info.log_size,
            "keys_hidden_because": about_key if info.header and keys is None else None,
            "keys": keys and [_members(key, info) for key in keys],
        },
        indent=2,
    )


def size_of(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count} bytes" if count < 10**6 else f"{count / 10**6:.1f} MB"


def _members(key: KeyInfo, info: DatabaseInfo) -> dict[str, object]:
    return {
        "id": key.key_id,
        "state": key.state,
        "purpose": key.purpose,
        "cipher": key.cipher,
        "primary": key.primary,
        "created": key.created.strftime(_ISO),
        "since": key.since.strftime(_ISO),
        "records": info.records_of_keys.get(key.key_id, 0),
    }


def _cells(key: KeyInfo, info: DatabaseInfo) -> tuple[str, ...]:
    return (
        f"{key.key_id}{'*' if key.primary else ''}",
        key.state,
        key.purpose,
        key.cipher or "-",
        key.created.strftime(_ISO),
        key.since.strftime(_ISO),
        str(info.records_of_keys.get(key.key_id, 0)) if key.cipher else "-",
    )
