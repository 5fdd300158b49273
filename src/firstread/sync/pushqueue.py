# SPDX-License-Identifier: Apache-2.0
"""The images that were pushed and wait for their conversion.

Owns their order. Invariants: an image is in the queue once, however often it was pushed; nobody
converts an image that somebody else is converting; memory is bounded.
"""

from __future__ import annotations

import threading
import time
from typing import Final, NamedTuple

from firstread.errors import BusyError
from firstread.oci.reference import Reference

MAX_WAITING: Final = 10_000  # images


class Push(NamedTuple):
    """An image in the queue.

    Args:
        name: its tag.
        digest: of what was pushed; empty if it is not known.
        attempt: conversions of it that have failed.
        due: monotonic seconds before which nobody takes it.
    """

    name: Reference
    digest: str = ""
    attempt: int = 0
    due: float = 0.0


class PushQueue:
    """A queue of images. Safe for threads.

    Args:
        most: images that may wait.
    """

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._waiting: dict[Reference, Push] = {}  # the first come first
        self._running: dict[Reference, Push] = {}
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
            running = self._running.get(name)
            if running is not None and digest and digest == running.digest:
                return False
            known = name in self._waiting
            if not known and len(self._waiting) >= self._most:
                raise BusyError(f"{self._most} images wait for their conversion")
            self._waiting[name] = Push(name, digest)
            self._changed.notify()
            return not known

    def take(self) -> Push:
        """Return the image that has waited longest; wait for one. The caller calls `done`."""
        with self._changed:
            while True:
                ready = [each for each in self._waiting.values() if each.name not in self._running]
                now = time.monotonic()
                push = next((each for each in ready if each.due <= now), None)
                if push is not None:
                    self._running[push.name] = self._waiting.pop(push.name)
                    return push
                self._changed.wait(min((each.due - now for each in ready), default=None))

    def done(self, push: Push, again_s: float | None = None) -> None:
        """Note that an image that `take` gave is dealt with.

        Args:
            push: what it gave.
            again_s: seconds until another attempt, unless it was pushed again meanwhile; None for
                none.
        """
        with self._changed:
            del self._running[push.name]
            if again_s is not None:
                due = time.monotonic() + again_s
                again = push._replace(attempt=push.attempt + 1, due=due)
                self._waiting.setdefault(push.name, again)
            self._changed.notify_all()

    @property
    def running(self) -> int:
        """How many images are being converted."""
        return len(self._running)

    def __len__(self) -> int:
        return len(self._waiting)
