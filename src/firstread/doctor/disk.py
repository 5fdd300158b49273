# SPDX-License-Identifier: Apache-2.0
"""The directories of a daemon: whose they are, and how much room the store has."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from firstread.doctor.finding import Finding, failed, passed, warned
from firstread.errors import NodeError
from firstread.private import check_way
from firstread.units import GiB, MiB, format_size

SCARCE_BYTES = 1 * GiB
LEAST_BYTES = 64 * MiB


def check_private(name: str, path: Path) -> Finding:
    """Say what `firstread.private.private_directory` will say of a directory."""
    try:
        check_way(path)
    except NodeError as exc:
        return failed(name, exc.message, exc.hint or "choose another place")
    if _existing(path) != path:
        return passed(name, f"{path} is made when it is needed")
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return failed(name, f"{path} is no directory", "choose another, or remove it")
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        owner = f"{path} belongs to user {status.st_uid}"
        return failed(name, owner, "choose another, or remove it")
    said = f"{path} has mode {mode:04o}: others can"
    if mode & 0o022:
        fix = f"look at what is in it, then: chmod 700 {path}"
        return failed(name, f"{said} write to it", fix)
    if mode & 0o077:
        return warned(name, f"{said} read it", f"chmod 700 {path}")
    return passed(name, f"{path}, of this user alone")


def check_space(root: Path) -> Finding:
    """Say how much room there is for sectors below a root."""
    name, found = "space for sectors", os.statvfs(_existing(root))
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    detail = f"{format_size(free)} of {format_size(total)} are free"
    fix = "free some space, unmount images, or set max_bytes of the cache (docs/node.md)"
    if free < LEAST_BYTES:
        return failed(name, detail, fix)
    if free < SCARCE_BYTES:
        return warned(name, detail, fix)
    if found.f_files and not found.f_favail:
        fix = "remove files, or make a file system with more inodes"
        return failed(name, "no inodes are free", fix)
    return passed(name, detail)


def _existing(path: Path) -> Path:
    """Return the lowest of `path` and its parents that is there, as far as we may look."""
    return next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
