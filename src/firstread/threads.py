# SPDX-License-Identifier: Apache-2.0
"""Threads of a process that may be short of them."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor


class SteadyPool(ThreadPoolExecutor):
    """A pool that does what it is given with the threads that it has, if there can be no more.

    It has one from the beginning. An ordinary pool raises RuntimeError from `submit`, though the
    work is queued then; grpcio's server and channels end with that for good.

    Args:
        most: threads.
        name: that they begin with.

    Raises:
        RuntimeError: there can be none at all.
    """

    def __init__(self, most: int, name: str) -> None:
        super().__init__(most, thread_name_prefix=name)
        super()._adjust_thread_count()

    def _adjust_thread_count(self) -> None:
        with contextlib.suppress(RuntimeError):
            super()._adjust_thread_count()
