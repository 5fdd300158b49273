# SPDX-License-Identifier: Apache-2.0
"""How fast a stream takes what comes.

Owns the pauses between its frames: for reads on demand of something else, and for a limit in bytes
per second. A pause stops the reading, so TCP stops the sender, and the link is the reads'. Hot
sectors pause and go on with the same answer; what is fetched in the background ends, because the
reader may stay for long.

Invariant: a stream that a read waits for does not pause.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from firstread.fetch.backlog import Backlog
from firstread.fetch.queue import Cause, Filling
from firstread.fetch.rate import Meter, Rate
from firstread.fetch.sides import Space
from firstread.fetch.streaming import Stream

PAUSE_S = 1.0  # for one frame after another: a connection without traffic would be cut


class Pace:
    """The pace of one stream.

    Args:
        stream: which.
        backlog: of its lane.
        space: in the store.
        link: to be measured.
        calm: notified when reads come or have their bytes; its lock is the lane's.
        is_closed: whether nobody wants anything of the lane any more.
        most_per_s: bytes; 0 for no limit.
    """

    def __init__(
        self,
        stream: Stream,
        backlog: Backlog,
        space: Space,
        link: Rate,
        calm: threading.Condition,
        is_closed: Callable[[], bool],
        *,
        most_per_s: int = 0,
    ) -> None:
        self._stream, self._backlog, self._space = stream, backlog, space
        self._calm, self._is_closed = calm, is_closed
        self._most_per_s = most_per_s
        self._meter = Meter(link)
        self._begun, self._bytes = time.monotonic(), 0

    def note(self, count: int, seconds: float) -> None:
        """Note that `count` bytes have come; a `firstread.sectors.source.Measure`."""
        self._bytes += count
        self._meter.note(count, seconds)

    def next(self) -> Filling | None:
        """Return the sector that the stream has got to; None if it should end."""
        with self._calm:
            if not self._space.has_spare(1, self._stream.filling.sector):
                return None
            return self._backlog.streaming.claim(self._stream)

    def go_on(self) -> bool:
        """Wait until the next frame may come; False if none should."""
        with self._calm:
            until = self._due()
            while not self._is_closed() and (left := until - time.monotonic()) > 0:
                if not self._must_wait():
                    break
                self._meter.paused()
                self._calm.wait(left)
            background = self._stream.cause is Cause.BACKGROUND
            ends = background and self._backlog.leaves_link(self._stream)
            return not (ends or self._is_closed())

    def _due(self) -> float:
        """Return until when the next frame should wait at most."""
        if self._stream.cause is not Cause.BACKGROUND:
            return time.monotonic() + PAUSE_S
        return self._begun + self._bytes / self._most_per_s if self._most_per_s else 0.0

    def _must_wait(self) -> bool:
        leaves = self._backlog.leaves_link(self._stream)
        if self._stream.cause is not Cause.BACKGROUND:
            return leaves
        return not leaves and not self._stream.is_awaited()
