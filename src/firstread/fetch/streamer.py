# SPDX-License-Identifier: Apache-2.0
"""Runs the stream of a lane: sectors that come before anybody reads them.

Owns when it begins (there is room) and with which I/O priority. A stream never makes room: what it
would evict may be worth more.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from firstread.device.syscalls import set_io_priority
from firstread.fetch.backlog import Backlog
from firstread.fetch.filler import Filler
from firstread.fetch.pace import Pace
from firstread.fetch.queue import Cause
from firstread.fetch.rate import Rate
from firstread.fetch.sides import Space
from firstread.fetch.streaming import Stream
from firstread.sectors.source import Window

log = logging.getLogger("lane")


class Streamer:
    """Runs streams, one at a time.

    Args:
        filler: of the lane.
        backlog: likewise.
        space: in the store.
        link: to be measured.
        calm: see `Pace`.
        is_closed: likewise.
        most_per_s: bytes of what is fetched in the background; 0 for no limit.
    """

    def __init__(
        self,
        filler: Filler,
        backlog: Backlog,
        space: Space,
        link: Rate,
        calm: threading.Condition,
        is_closed: Callable[[], bool],
        *,
        most_per_s: int,
    ) -> None:
        self._filler, self._backlog, self._space = filler, backlog, space
        self._link, self._calm, self._is_closed = link, calm, is_closed
        self._most_per_s = most_per_s

    def run(self, stream: Stream, window: Window) -> None:
        """Run a stream that was taken from the backlog, until it has to end.

        Args:
            stream: which.
            window: memory of this thread.

        Raises:
            FirstreadError: as `Filler.stream`.
        """
        whole, failed = False, True
        try:
            if self._has_room(stream):
                with _io_priority(stream.cause):
                    whole = self._filler.stream(stream, window, self._pace(stream))
            failed = False
        finally:
            with self._calm:
                self._backlog.end_stream(stream, whole=whole, failed=failed)

    def _has_room(self, stream: Stream) -> bool:
        with self._calm:
            if stream.filling.reads or self._space.has_spare(1, stream.filling.sector):
                return True
            self._backlog.forgo(stream)
        log.info("no room in the sector store for what nobody reads yet: it comes when it is read")
        return False

    def _pace(self, stream: Stream) -> Pace:
        return Pace(
            stream,
            self._backlog,
            self._space,
            self._link,
            self._calm,
            self._is_closed,
            most_per_s=self._most_per_s,
        )


@contextlib.contextmanager
def _io_priority(cause: Cause) -> Iterator[None]:
    """Have this thread write what is fetched in the background when the disk is idle."""
    if cause is not Cause.BACKGROUND:
        yield
        return
    set_io_priority(idle=True)
    try:
        yield
    finally:
        set_io_priority(idle=False)
