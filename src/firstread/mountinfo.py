# SPDX-License-Identifier: Apache-2.0
"""The kernel's list of mounts, line by line.

Owns the format of proc_pid_mountinfo(5). Invariant: whatever anybody has called a mount point on
this host, each mount is one line. The kernel escapes space, tab, newline and backslash (in a
source, ``#`` too), and nothing else that text functions take for the end of a line or of a word;
so all of it stays bytes.
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
        device: st_dev of what is mounted.
        place: mount point.
        kind: type of the file system.
        source: what was mounted, as who mounted it said.
        options: of the file system, escaped as they are in the list.
    """

    number: int
    device: int
    place: bytes
    kind: bytes
    source: bytes
    options: bytes


def read_mountinfo(process: int | str = "self") -> list[MountLine]:
    """Return the mounts that a process sees; a later one may lie on top of an earlier one.

    Raises:
        OSError: there is no such process.
    """
    return parse_mountinfo(Path(f"/proc/{process}/mountinfo").read_bytes())


def parse_mountinfo(table: bytes) -> list[MountLine]:
    """Return the mounts of a list as the kernel writes it."""
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
    """Return a name that the kernel has escaped as it was."""
    return _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), text)
