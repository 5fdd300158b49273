# SPDX-License-Identifier: Apache-2.0
"""Counters of each image and of all together, and the feed of what happens.

Owns numbers only. Invariant: counters of all images never fall, whatever is unmounted. Safe to use
from several threads: one lock guards the counters of an image, for a few instructions.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from firstread.documents import Bytes, Document, Seconds
from firstread.fetch.durations import Durations
from firstread.fetch.happening import KINDS, Happening

if TYPE_CHECKING:  # commands read these figures, and load no fetcher
    from firstread.fetch.history import History
    from firstread.fetch.queue import Filling
    from firstread.sectors.source import Wanted

LATENCIES = 4096  # first reads that percentiles cover
FEED = 10_000  # events that a listener may lag behind; then it loses some


class ReadFigures(Document):
    """Reads and fetches of an image.

    events: absent sectors that a read asked for
    waited_reads: reads that came while their sector was not whole
    bytes_fetched: compressed
    requests: sent for sectors
    requests_by_cause: the same by `demand`, `hot`, `prefetch`, `completion`, `background`
    bytes_by_cause: compressed bytes, likewise
    first_read_p50_s, first_read_p99_s: how long the last 4096 reads that waited have waited
    failed_reads: that got EIO
    fetch_errors: attempts that failed at its source, and failed reads
    last_error: the last of either
    """

    events: int
    waited_reads: int
    bytes_fetched: Bytes
    requests: int
    requests_by_cause: dict[str, int]
    bytes_by_cause: dict[str, Bytes]
    first_read_p50_s: Seconds | None
    first_read_p99_s: Seconds | None
    failed_reads: int
    fetch_errors: int
    last_error: str | None


class ImageStats:
    """Counters of one image.

    Args:
        totals: counters of all images, which count the same; None for these themselves.
    """

    def __init__(self, totals: ImageStats | None = None) -> None:
        self._totals = totals
        self.first_reads = Durations()
        self.events = 0  # sectors that a read asked for
        self.waits = 0  # events of the kernel: reads that came while a sector was not whole
        self.requests: Counter[str] = Counter()
        self.received: Counter[str] = Counter()  # bytes, by cause
        self.failed_reads = 0
        self.fetch_errors = 0
        self.last_error: str | None = None
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._lock = threading.Lock()

    def add(self, *, events: int = 0, waits: int = 0, request: str = "") -> None:
        """Count."""
        with self._lock:
            self.events += events
            self.waits += waits
            if request:
                self.requests[request] += 1
        if self._totals is not None:
            self._totals.add(events=events, waits=waits, request=request)

    def add_bytes(self, count: int, cause: str) -> None:
        """Count compressed bytes that came."""
        with self._lock:
            self.received[cause] += count
        if self._totals is not None:
            self._totals.add_bytes(count, cause)

    def answered(self, seconds: float) -> None:
        """Note how long a read waited."""
        with self._lock:
            self._latencies.append(seconds)
        self.first_reads.add(seconds)
        if self._totals is not None:
            self._totals.answered(seconds)

    def error(self, message: str, *, failed_reads: int = 0, is_known: bool = False) -> None:
        """Note an error, and the reads that failed with it.

        Args:
            message: of it.
            failed_reads: reads that failed with it.
            is_known: another image, whose sector it is as well, has noted it.
        """
        with self._lock:
            self.last_error = message
            self.fetch_errors += 1
            self.failed_reads += failed_reads
        if self._totals is not None and not is_known:
            self._totals.error(message, failed_reads=failed_reads)

    def fetched(self) -> tuple[int, int]:
        """Return how many compressed bytes came, and how many requests were sent."""
        return sum(self.received.values()), sum(self.requests.values())

    def figures(self) -> ReadFigures:
        """Return all of it; sorts what it has of waits."""
        bytes_fetched, requests = self.fetched()
        return ReadFigures(
            events=self.events,
            waited_reads=self.waits,
            bytes_fetched=bytes_fetched,
            requests=requests,
            requests_by_cause=dict(self.requests),
            bytes_by_cause=dict(self.received),
            first_read_p50_s=self.percentile(0.5),
            first_read_p99_s=self.percentile(0.99),
            failed_reads=self.failed_reads,
            fetch_errors=self.fetch_errors,
            last_error=self.last_error,
        )

    def percentile(self, share: float) -> float | None:
        """Return the time in seconds below which `share` of the last first reads waited."""
        with self._lock:
            ordered = sorted(self._latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class Feed:
    """Tells listeners what happens."""

    def __init__(self) -> None:
        self._listeners: list[queue.Queue[Happening]] = []

    def listen(self) -> queue.Queue[Happening]:
        """Return a queue that gets everything from now on; `leave` gives it back."""
        listener: queue.Queue[Happening] = queue.Queue(FEED)
        self._listeners.append(listener)
        return listener

    def leave(self, listener: queue.Queue[Happening]) -> None:
        """Give a queue back."""
        self._listeners.remove(listener)

    def tell(self, kind: str, **fields: Any) -> None:
        """Tell all listeners; costs nothing if there are none.

        Args:
            kind: of `happening.KINDS`.
            fields: of that.
        """
        if not self._listeners:
            return
        happening = KINDS[kind](**fields)
        for listener in self._listeners.copy():
            with contextlib.suppress(queue.Full):
                listener.put_nowait(happening)


class Charged(Protocol):
    """An image that counts and remembers what is done for it."""

    @property
    def stats(self) -> ImageStats: ...

    @property
    def history(self) -> History: ...


class _Request(threading.local):
    """The request that a worker is at: where it is noted, and its number there."""

    noted: tuple[tuple[History, int | None], ...] = ()


class LaneCounts:
    """Counts what lanes do for the image that is charged with a sector.

    Args:
        feed: is told of requests.
        sharing: returns the images that have a sector, the charged one first; none once all are
            withdrawn.
    """

    def __init__(self, feed: Feed, sharing: Callable[[bytes], Sequence[Charged]]) -> None:
        self._feed, self._sharing = feed, sharing
        self._request = _Request()

    def demanded(self, sector: Wanted) -> None:
        """Count the first read that asks for a sector."""
        for image in self._sharing(sector.entry.id)[:1]:
            image.stats.add(events=1)

    def requested(self, filling: Filling, size: int) -> None:
        """Count a request of `size` bytes that begins with this sector.

        Until the next one, `received` is about this request in the same thread.
        """
        sector_id, cause = filling.sector.entry.id, filling.cause.name.lower()
        self._feed.tell("request", sector=sector_id.hex(), cause=cause, bytes=size)
        sharing = self._sharing(sector_id)
        for image in sharing[:1]:
            image.stats.add(request=cause)
        self._request.noted = tuple(
            (image.history, image.history.requested(filling, size)) for image in sharing
        )

    def received(self, filling: Filling, count: int) -> None:
        """Count compressed bytes that came for a sector."""
        for image in self._sharing(filling.sector.entry.id)[:1]:
            image.stats.add_bytes(count, filling.cause.name.lower())
        for history, number in self._request.noted:
            history.received(number, count)
