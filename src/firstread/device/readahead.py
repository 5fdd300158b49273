# SPDX-License-Identifier: Apache-2.0
"""How far the kernel reads ahead in the files of a mount.

Owns the one kernel file for it, and how far it is to be. Does not decide when:
`firstread.mounts.starting` does.

Facts about read-ahead (Linux 6.18; tests/privileged/test_device_readahead.py shows them):

* Every file-backed EROFS superblock has a backing device information of its own, so the read-ahead
  of a mount is nobody else's. Its name, ``erofs-N``, has a number that counts all such file systems
  since boot (fs/super.c: super_setup_bdi). EROFS gives its directory below /sys/fs the same name
  (fs/erofs/super.c: erofs_set_sysfs_name, since 6.12), and `FileSystem` knows that one.
* EROFS on a block device has that of the disk, called as its number; so is that of FUSE.
* A new one has 128 KiB.
* An open file keeps the read-ahead that it was opened with; so does what is mapped from it. An
  overlayfs on top opens the files of EROFS when they are opened, so it obeys, too.
* It bounds a page fault and the window of a sequential reader. A single read(2) of more gets up to
  128 KiB at once whatever it says (mm/readahead.c: ractl_max_pages).
* Writing it needs root's user id, a writable /sys, and no capability.
"""

from __future__ import annotations

import os
from pathlib import Path

from firstread.device.superblock import FileSystem
from firstread.errors import NodeError, from_os_error

BDI = Path("/sys/class/bdi")
START_KIB = 16  # from mount to ready: what a start reads, and little of its cold neighbours
KNOWN_START_KIB = 4  # the same if the image says what a start reads: a page, and none beside it
STEADY_KIB = 1024  # afterwards


def set_read_ahead(mountpoint: Path, kib: int) -> None:
    """Set how far the kernel reads ahead in the files of a mount.

    Args:
        mountpoint: of a file-backed EROFS mount.
        kib: at most; 0 for none.

    Raises:
        NodeError: the kernel does not allow it here.
    """
    set_read_ahead_of(FileSystem.at(mountpoint), kib)


def set_read_ahead_of(file_system: FileSystem, kib: int) -> None:
    """`set_read_ahead` for a file system that need not be at its mount point any more."""
    try:
        _file(file_system).write_text(f"{kib}\n")
    except OSError as exc:
        raise from_os_error(exc, "cannot set the read-ahead") from exc


def read_ahead(mountpoint: Path) -> int:
    """Return the read-ahead of a mount in KiB.

    Raises:
        NodeError: it is not known here.
    """
    return read_ahead_of(FileSystem.at(mountpoint))


def read_ahead_of(file_system: FileSystem) -> int:
    """`read_ahead` of a file system that need not be at its mount point any more."""
    try:
        return int(_file(file_system).read_text())
    except OSError as exc:
        raise from_os_error(exc, "cannot read the read-ahead") from exc


def _file(file_system: FileSystem) -> Path:
    device = file_system.device
    is_on_disk = file_system.kind == "erofs" and os.major(device)
    if is_on_disk or file_system.kind == "fuse":
        return BDI / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"
    kind, _, name = file_system.name.partition("/")
    if kind != "erofs" or not name or "/" in name:
        raise NodeError("the kernel does not tell whose read-ahead is whose")
    return BDI / name / "read_ahead_kb"
