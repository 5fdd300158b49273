# SPDX-License-Identifier: Apache-2.0
"""The lock of a sector store: one daemon at a time.

The lock belongs to the open file, so a forked child holds it too, and it outlives the process that
took it for as long as another one has the descriptor.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from firstread.errors import NodeError
from firstread.readable import is_readable

PATIENCE_S = 5.0  # for the anchor of a dead daemon to let go
TICK_S = 0.01


def lock(root: Path) -> int:
    """Return a descriptor that holds the lock of the store at `root`.

    Raises:
        NodeError: another process has it; the message names it.
        OSError: the file cannot be opened or written.
    """
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _wait_for(fd)
    except BlockingIOError as exc:
        holder = _holder(fd) or "unknown"
        os.close(fd)
        raise NodeError(
            f"the sector store {root} is in use by process {holder}",
            hint="stop that daemon, or choose another --root",
        ) from exc
    return fd


def sign(fd: int) -> None:
    """Note in the lock file that this process holds it."""
    owner = b"%d\n" % os.getpid()
    os.pwrite(fd, owner, 0)  # first: a full disk need not give back what it has
    os.ftruncate(fd, len(owner))


def _wait_for(fd: int) -> None:
    """Lock the open file; wait a moment if the process that it names is dead.

    Raises:
        BlockingIOError: a process that lives has it.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _lives(_holder(fd)) or time.monotonic() > deadline:
                raise
            time.sleep(TICK_S)
        else:
            return


def _holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip()


def _lives(pid: str) -> bool:
    """Return whether a process may be alive, or its number is not known."""
    try:
        pidfd = os.pidfd_open(int(pid))
    except (ValueError, OSError) as exc:
        return not isinstance(exc, ProcessLookupError)
    try:
        return not is_readable(pidfd)
    finally:
        os.close(pidfd)
