# SPDX-License-Identifier: Apache-2.0
"""The kernel's list of mounts, line by line.

Owns the format of proc_pid_mountinfo(5). Invariant: each mount is one line, whatever the names of
mount points on this host. The kernel escapes space, tab, newline and backslash (in a source, ``#``
too), and no other byte that text functions take for the end of a line or of a word; so everything
stays bytes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")  # of a byte; the kernel writes no others


@dataclass(frozen=True, slots=True)
class MountLine:
    """One mount.

    Args:
        number: mount id.
        device: st_dev of the mounted file system.
        place: mount point.
        kind: type of the file system.
        source: of the mount, in the mounter's words.
        options: of the file system, escaped as in the list.
    """

    number: int
    device: int
    place: bytes
    kind: bytes
    source: bytes
    options: bytes


def read_mountinfo() -> list[MountLine]:
    """Return the mounts that this process sees; a later one may lie on top of an earlier one."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def parse_mountinfo(table: bytes) -> list[MountLine]:
    """Return the mounts in a list from the kernel."""
    mounts = []
    for line in table.split(b"\n")[:-1]:
        mount, _, filesystem = line.partition(b" - ")
        number, _, device, _, place, *_ = mount.split(b" ")
        kind, source, options = filesystem.split(b" ", 2)
        major, minor = device.split(b":")
        mounts.append(
            MountLine(
                int(number),
                os.makedev(int(major), int(minor)),
                unescaped(place),
                kind,
                unescaped(source),
                options,
            )
        )
    return mounts


def unescaped(text: bytes) -> bytes:
    """Undo the kernel's escapes in a name."""
    return _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), text)


def filesystem_of(path: Path) -> str:
    """Return the type of the file system that holds `path`, such as ``ext4``.

    By the mount that the kernel names for the open path: device numbers do not tell on btrfs and
    overlayfs, and the longest prefix of mountinfo can be hidden by another mount.

    Source: proc_pid_fdinfo(5), proc_pid_mountinfo(5).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    mount_id = next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
    for mount in read_mountinfo():
        if mount.number == int(mount_id):
            return mount.kind.decode()
    return "an unknown file system"
