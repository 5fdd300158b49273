# SPDX-License-Identifier: Apache-2.0
"""The read-ahead of a mount.

Owns the one kernel file for it. Every EROFS superblock has a backing device information of its own
(``fs/erofs/super.c``: ``super_setup_bdi``), so a mount's read-ahead is nobody else's.
"""

from __future__ import annotations

import os
from pathlib import Path

from firstread.errors import from_os_error

BDI = Path("/sys/class/bdi")
START_KIB = 16  # from mount to ready: what a start reads, and little of its cold neighbours


def set_read_ahead(mountpoint: Path, kib: int) -> None:
    """Set how far the kernel reads ahead in the files of a mount.

    Args:
        mountpoint: of a file-backed EROFS mount.
        kib: at most; 0 for none.

    Raises:
        NodeError: the kernel does not allow it here.
    """
    try:
        _file(mountpoint).write_text(f"{kib}\n")
    except OSError as exc:
        raise from_os_error(exc, "cannot set the read-ahead") from exc


def read_ahead(mountpoint: Path) -> int:
    """Return the read-ahead of a mount in KiB.

    Raises:
        NodeError: it is not known here.
    """
    try:
        return int(_file(mountpoint).read_text())
    except OSError as exc:
        raise from_os_error(exc, "cannot read the read-ahead") from exc


def _file(mountpoint: Path) -> Path:
    number = mountpoint.stat().st_dev
    return BDI / f"{os.major(number)}:{os.minor(number)}" / "read_ahead_kb"
