"""Which file system a folder is on. SQLite's log needs one on which processes share memory."""

import re
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")
"""Linux's list of what is mounted where (proc_pid_mountinfo(5))."""

NETWORK: Final = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "kafs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    }
)
"""Types whose files are on another machine, whose processes have other memory."""


def file_system_of(folder: Path, mounts: str) -> str:
    """Return the type of the file system that a folder is on; empty if that is not told.

    Args:
        folder: Absolute and without links. It need not be there.
        mounts: Contents of ``/proc/self/mountinfo``.
    """
    found, longest = "", -1
    for line in mounts.splitlines():
        mount, separator, source = line.partition(" - ")
        fields = mount.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        # Of two at one point the later one lies above the other.
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = source.split(" ")[0], len(point.parts)
    return found
