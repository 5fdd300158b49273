# SPDX-License-Identifier: Apache-2.0
"""What the fetcher counts for each image, and the feed of what happens.

Owns numbers only. Safe to use from several threads: counters are changed under one lock, which is
held for a few instructions.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from typing import Any

LATENCIES = 4096  # of the last first reads that percentiles are taken of
FEED = 10_000  # events that a slow listener may lag behind; then it loses some


class ImageStats:
    """Counters of one image."""

    def __init__(self) -> None:
        self.events = 0  # sectors that a read asked for
        self.waits = 0  # events of the kernel: reads that came while a sector was not whole
        self.received_bytes = 0
        self.requests: Counter[str] = Counter()
        self.failed_reads = 0
        self.fetch_errors = 0
        self.last_error: str | None = None
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._lock = threading.Lock()

    def add(
        self, *, events: int = 0, waits: int = 0, received_bytes: int = 0, request: str = ""
    ) -> None:
        """Count."""
        with self._lock:
            self.events += events
            self.waits += waits
            self.received_bytes += received_bytes
            if request:
                self.requests[request] += 1

    def answered(self, seconds: float) -> None:
        """Note how long a read waited."""
        with self._lock:
            self._latencies.append(seconds)

    def error(self, message: str, *, failed_reads: int = 0) -> None:
        """Note an error, and the reads that failed with it."""
        with self._lock:
            self.last_error = message
            self.fetch_errors += 1
            self.failed_reads += failed_reads

    def document(self) -> dict[str, Any]:
        """Return all of it, as ``firstread status --json`` prints it."""
        return {
            "events": self.events,
            "waited_reads": self.waits,
            "bytes_fetched": self.received_bytes,
            "requests": sum(self.requests.values()),
            "requests_by_cause": dict(self.requests),
            "first_read_p50_s": self.percentile(0.5),
            "first_read_p99_s": self.percentile(0.99),
            "failed_reads": self.failed_reads,
            "fetch_errors": self.fetch_errors,
            "last_error": self.last_error,
        }

    def percentile(self, share: float) -> float | None:
        """Return the time in seconds below which `share` of the last first reads waited."""
        with self._lock:
            ordered = sorted(self._latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class Feed:
    """Hands out what happens to those who listen."""

    def __init__(self) -> None:
        self._listeners: list[queue.Queue[dict[str, Any]]] = []

    def listen(self) -> queue.Queue[dict[str, Any]]:
        """Return a queue that gets everything from now on; give it back with `leave`."""
        listener: queue.Queue[dict[str, Any]] = queue.Queue(FEED)
        self._listeners = [*self._listeners, listener]
        return listener

    def leave(self, listener: queue.Queue[dict[str, Any]]) -> None:
        self._listeners = [other for other in self._listeners if other is not listener]

    def tell(self, kind: str, **fields: Any) -> None:
        """Tell all listeners; costs nothing when there are none."""
        for listener in self._listeners:
            try:
                listener.put_nowait({"time": time.time(), "event": kind, **fields})
            except queue.Full:
                continue
