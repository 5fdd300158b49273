# SPDX-License-Identifier: Apache-2.0
"""When a loop device reads its file through the page cache, and when directly.

Owns the changes between the two. Does not know what is watched. Invariants: nobody who asks for a
change waits for it; the last that was asked for is the last that is made.

Direct reads do not wait for each other, but each small file costs a request. Read-ahead in the page
cache brings many small files at once, but a read that waits stops all behind it
(`firstread.device.loopdevice`). So reads go through the cache while none of them can have to wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading

from firstread.device.loopdevice import is_cached, set_cached

log = logging.getLogger("device")

CALM_S = 1.0  # that no read can have to wait before the cache is used: a change holds up all reads


class LoopCaching:
    """Whether one loop device uses the page cache of its file.

    Args:
        number: of the device.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._made = False  # what was tried last: cached, or not
        with contextlib.suppress(OSError):  # it has ended
            self._made = is_cached(number)
        self._wanted = self._made
        self._is_busy = False  # a thread follows what is wanted
        self._changed = threading.Condition()

    def want(self, *, cached: bool) -> None:
        """Have the cache used in a moment, or not from now on. Does not block."""
        with self._changed:
            self._wanted = cached
            self._changed.notify()
            if cached != self._made and not self._is_busy:
                with contextlib.suppress(RuntimeError):  # no more threads: the next change tries
                    threading.Thread(target=self._follow, name="caching", daemon=True).start()
                    self._is_busy = True

    def end(self) -> None:
        """Make no more changes: the mount has ended."""
        with self._changed:
            self._wanted = self._made
            self._changed.notify()

    def _follow(self) -> None:
        while (cached := self._next()) is not None:
            try:
                set_cached(self._number, cached=cached)
            except OSError as exc:
                minor = os.minor(self._number)
                log.warning("/dev/loop%d goes on reading as before: %s", minor, exc)

    def _next(self) -> bool | None:
        """Wait until a change is due, and note it as made; None if nothing else is wanted."""
        with self._changed:
            if self._wanted and not self._made:
                self._changed.wait_for(lambda: not self._wanted, CALM_S)
            if self._wanted == self._made:
                self._is_busy = False
                return None
            self._made = self._wanted
            return self._made
