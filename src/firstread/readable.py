# SPDX-License-Identifier: Apache-2.0
"""Waits for one descriptor, whatever its number: select(2) knows none above 1023."""

from __future__ import annotations

import select
from typing import Protocol


class _File(Protocol):
    def fileno(self) -> int: ...


def is_readable(file: int | _File, timeout_s: float | None = 0.0) -> bool:
    """Return whether data, or the end, can be read within a time.

    A pidfd is readable once its process has ended, even before somebody has waited for it.

    Args:
        file: a descriptor, or an object with one.
        timeout_s: seconds; None to wait for as long as it takes.
    """
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
