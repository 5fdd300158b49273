# SPDX-License-Identifier: Apache-2.0
"""Other processes that decide about opening files: virus scanners and the like, by fanotify.

Owns the reading of /proc. Invariant: a process that ends while it is looked at is none.

Facts about scanners: they mark file systems, mounts or directories; a mark of one file that asks
for its reads alone is firstread's own (Linux 6.12, see `firstread.device.fanotify`). While a group
with permission events has not answered, whoever opens a file that it marks waits. If its process
reads a file of a lazy mount meanwhile, it waits for us.

Source: proc_pid_fdinfo(5), fanotify_init(2), include/uapi/linux/fanotify.h.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from firstread.device.fanotify import FAN_ACCESS_PERM

# FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM.
_PERMISSION = 0x00010000 | FAN_ACCESS_PERM | 0x00040000
_MARK = re.compile(rb"^fanotify (ino:)?[^\n]{0,200}? mask:([0-9a-f]{1,8}) ", re.MULTILINE)
_INFO_BYTES = 64 * 1024  # of the marks of a group; one that scans has few


def is_scanner(pid: int) -> bool:
    """Return whether a process lets others wait until it allows them to open or read a file."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    return any(_permits(pid, name) for name in names)


def _permits(pid: int, name: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/fd/{name}") != "anon_inode:[fanotify]":
            return False
        with open(f"/proc/{pid}/fdinfo/{name}", "rb") as file:
            info = file.read(_INFO_BYTES)
    except OSError:
        return False
    return decides(info)


def decides(info: bytes) -> bool:
    """Return whether a group with these marks lets others wait; `info`: of its descriptor."""
    return any(
        int(mask, 16) & (_PERMISSION & ~FAN_ACCESS_PERM if file else _PERMISSION)
        for file, mask in _MARK.findall(info)
    )


def scanners() -> list[tuple[int, str]]:
    """Return the number and the name of each process that `is_scanner`, lowest first."""
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    return [(pid, _name(pid)) for pid in pids if is_scanner(pid)]


def _name(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
    return "".join(char if char.isprintable() else "?" for char in name)
