# SPDX-License-Identifier: Apache-2.0
"""Descriptors of another process, as ours.

Owns pidfd_getfd(2), which needs the right to trace that process. The system call filter of a
service may refuse it (it is in systemd's @debug). Invariant: what cannot be had is left out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from firstread.device import syscalls


def copies(pid: int, numbers: Iterable[int]) -> dict[int, int]:
    """Return duplicates of descriptors of a process, by their numbers there.

    Args:
        pid: of the process.
        numbers: of its descriptors.
    """
    found: dict[int, int] = {}
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            for number in numbers:
                with contextlib.suppress(OSError):
                    found[number] = syscalls.pidfd_getfd(pidfd, number)
        finally:
            os.close(pidfd)
    return found
