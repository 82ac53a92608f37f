"""The command ``doctor``: looks at files, key, envelope, rotation, memory and file system.

Each finding is a sentence about what is wrong, and what to do about it. The checks of memory and of
the key are about the user, the limits and the machine that the command runs on: run it where the
service runs.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict

from .command_options import service_source
from .errors import ConfigurationError
from .findings import (
    Finding,
    file_system,
    files,
    key_places,
    keys_and_database,
    leftovers,
    memory,
)
from .layout import DataFolder


def run(options: argparse.Namespace) -> int:
    """Run the command; the status is 1 when something was found."""
    try:
        findings = list(examine(options))
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be looked at: {error.strerror}. Run doctor as the user that "
            "runs the service."
        ) from error
    if options.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    elif findings:
        for finding in findings:
            print(f"{finding.problem}\n    {finding.action}")
        print(f"{len(findings)} finding{'s' if len(findings) > 1 else ''}.")
    else:
        print("Nothing is wrong with the files, the key, the envelope, the database, the rotation")
        print("of its keys, the memory of processes here, and the file system.")
    return 1 if findings else 0


def examine(options: argparse.Namespace) -> Iterator[Finding]:
    """Yield what every check finds.

    Args:
        options: Of the command: ``data_dir``, ``key_source`` and ``interval``.
    """
    folder = DataFolder(options.data_dir)
    yield from memory(development=os.environ.get("SERVICE_CORE_DUMPS", "").lower() == "allow")
    if not folder.path.is_dir():
        yield Finding(
            "files",
            f"There is no data folder {folder.path}.",
            "Name it with --data-dir or SERVICE_DATA_DIR; a new service makes it with init.",
        )
        return
    yield from file_system(folder)
    if os.name != "nt":  # access there is governed by ACLs
        yield from files(folder)
    yield from leftovers(folder)
    try:
        source = service_source(options)
    except ConfigurationError as error:
        yield Finding.of("key", str(error))
        return
    yield from key_places(folder, source)
    yield from keys_and_database(folder, source, options.interval)
