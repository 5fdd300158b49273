# SPDX-License-Identifier: Apache-2.0
"""The images that were pushed and wait for their conversion.

Owns their order. Invariants: an image is in the queue once, however often it was pushed; nobody
converts an image that somebody else is converting; memory is bounded.
"""

from __future__ import annotations

import threading
from typing import Final

from firstread.errors import BusyError
from firstread.oci.reference import Reference

MAX_WAITING: Final = 10_000  # images


class PushQueue:
    """A queue of images. Safe for threads.

    Args:
        most: images that may wait.
    """

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._waiting: dict[Reference, str] = {}  # digest that was pushed, the first come first
        self._running: dict[Reference, str] = {}
        self._changed = threading.Condition()

    def put(self, name: Reference, digest: str = "") -> bool:
        """Note that an image was pushed; return False if that is known already.

        Args:
            name: its tag.
            digest: of what was pushed; empty if it is not known.

        Raises:
            BusyError: there is no room.
        """
        with self._changed:
            if digest and digest == self._running.get(name):
                return False
            known = name in self._waiting
            if not known and len(self._waiting) >= self._most:
                raise BusyError(f"{self._most} images wait for their conversion")
            self._waiting[name] = digest
            self._changed.notify()
            return not known

    def take(self) -> Reference:
        """Return the image that has waited longest; wait for one. The caller calls `done`."""
        with self._changed:
            while (name := self._next()) is None:
                self._changed.wait()
            self._running[name] = self._waiting.pop(name)
            return name

    def done(self, name: Reference) -> None:
        """Note that an image that `take` gave is dealt with."""
        with self._changed:
            del self._running[name]
            self._changed.notify()

    @property
    def running(self) -> int:
        """How many images are being converted."""
        return len(self._running)

    def __len__(self) -> int:
        return len(self._waiting)

    def _next(self) -> Reference | None:
        return next((name for name in self._waiting if name not in self._running), None)
