# SPDX-License-Identifier: Apache-2.0
"""Converts images as registries tell of their pushes.

Owns the way from a notification to a log line: which images are wanted, the threads that convert
them, the counts. Invariant: the registry is the one of the sources, whatever a notification says,
so whoever may notify cannot choose whom we talk to.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from firstread.errors import BusyError, FirstreadError, NotFoundError, UsageError, from_shortage
from firstread.oci.reference import Reference
from firstread.registry.options import AccessOptions
from firstread.sync.notifications import parse_notification
from firstread.sync.pushqueue import Push, PushQueue
from firstread.sync.sources import Wanted, find_names
from firstread.sync.synced import FAILED, SyncedImage
from firstread.sync.syncing import GRACE_S, Sync

log = logging.getLogger("sync")

AGAIN_S: Final = (0.2, 1.0, 5.0, 30.0, 120.0)  # until an image is tried again
ROOM_S: Final = 1.0  # until a full queue is tried again
_BUCKETS: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def _again_s(rows: Sequence[SyncedImage], push: Push) -> float | None:
    """Return after how many seconds an image is worth another attempt; None if it is not.

    docker-registry tells of a push before it writes the tag. So a tag can be missing for a moment,
    or stand for what it stood for before.
    """
    passing = any(
        row.error is not None and (row.error.retryable or row.error.error == NotFoundError.__name__)
        for row in rows
    )
    worth = passing or _is_other(rows, push)
    return AGAIN_S[push.attempt] if worth and push.attempt < len(AGAIN_S) else None


def _is_other(rows: Sequence[SyncedImage], push: Push) -> bool:
    """Return whether the tag stood for something else than what was pushed."""
    seen = {row.source_digest for row in rows} - {None}
    return bool(push.digest and seen) and push.digest not in seen


class PushService:
    """Converts what is pushed. `take` and `metrics` may be called by several threads.

    Args:
        sync: converts.
        wanted: patterns of one registry; other images are ignored.
        access: to that registry.
        at_once: images converted at a time.

    Raises:
        UsageError: the patterns are of several registries.
    """

    def __init__(self, sync: Sync, wanted: Wanted, access: AccessOptions, at_once: int) -> None:
        hosts = sorted({source.host for source in wanted.sources})
        if len(hosts) != 1:
            raise UsageError(
                f"the SOURCEs name {len(hosts)} registries, and have to name one",
                hint="a notification does not say which: run one 'sync serve' for each registry",
            )
        self._host = hosts[0]
        self._sync, self._wanted, self._access = sync, wanted, access
        self._queue = PushQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"pushes-{number}", daemon=True)
            for number in range(at_once)
        ]
        self._registry = CollectorRegistry()
        self._count(self._registry)

    def _count(self, registry: CollectorRegistry) -> None:
        self._notifications = Counter(
            "firstread_sync_notifications", "Notifications that were taken", registry=registry
        )
        self._results = Counter(
            "firstread_sync_images",
            "Images and platforms that were dealt with, by result",
            ["result"],
            registry=registry,
        )
        self._seconds = Histogram(
            "firstread_sync_seconds",
            "Seconds from the turn of an image to its end",
            registry=registry,
            buckets=_BUCKETS,
        )
        waiting = Gauge("firstread_sync_waiting", "Images that wait", registry=registry)
        waiting.set_function(lambda: len(self._queue))

    def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def take(self, notification: bytes) -> int:
        """Take the body of a notification; return how many images it adds to the queue.

        Raises:
            ImageError: it is no notification.
            BusyError: the queue is full.
        """
        pushed = parse_notification(notification, self._host)
        self._notifications.inc()
        added = 0
        for name, digest in pushed:
            if self._wanted.has(name):
                added += self._queue.put(name, digest)
        return added

    def start(self, watch_s: float | None) -> None:
        """Begin to convert.

        Args:
            watch_s: seconds between looks at the whole registry, for what no notification told of;
                None for no look.
        """
        for thread in self._threads:
            thread.start()
        if watch_s is not None:
            threading.Thread(target=self._watch, args=(watch_s,), name="watch", daemon=True).start()

    def stop(self) -> None:
        """Stop conversions; wait a moment for them to cancel their uploads."""
        self._sync.stop()
        until = time.monotonic() + GRACE_S
        while self._queue.running and time.monotonic() < until:
            time.sleep(0.02)

    def _work(self) -> None:
        while not self._sync.stopped:
            push, again_s = self._queue.take(), None
            try:
                again_s = self._convert(push)
            except Exception as exc:  # whatever it is, this thread has others to convert
                log.exception("%s is not converted", push.name)
                if from_shortage(exc) is not None and push.attempt < len(AGAIN_S):
                    again_s = AGAIN_S[push.attempt]
            finally:
                self._queue.done(push, again_s)

    def _convert(self, push: Push) -> float | None:
        """Convert an image; return after how many seconds that is worth another attempt."""
        with self._seconds.time():
            rows = self._sync.run([push.name])
        again_s = _again_s(rows, push)
        for row in rows:
            self._tell(row, again=again_s is not None)
        if again_s is not None and _is_other(rows, push):
            log.info("%s is not what was pushed, yet", push.name)
        return again_s

    def _tell(self, row: SyncedImage, *, again: bool) -> None:
        self._results.labels(row.result).inc()
        fields = {
            "image": row.image,
            "platform": row.platform,
            "result": row.result,
            "digest": row.digest,
            "seconds": round(row.seconds, 3),
            "packed_bytes": row.packed_bytes,
        }
        if row.result == FAILED and row.error is not None:
            level, words = (logging.INFO, "yet") if again else (logging.ERROR, "")
            text = " ".join(filter(None, ("an image is not converted", words)))
            log.log(level, "%s: %s", text, row.error.message, extra={"fields": fields})
        else:
            log.info("%s", row.reason or row.result, extra={"fields": fields})

    def _watch(self, watch_s: float) -> None:
        while True:
            try:
                names = find_names(self._wanted, self._access)
            except FirstreadError as exc:
                log.error("the registry is not looked at: %s", exc)  # noqa: TRY400 - no traceback
            except RuntimeError:  # no more threads
                log.exception("the registry is not looked at")
            else:
                for source, error in names.faults:
                    log.error("%s: %s", source, error)
                for name in names.found:
                    self._put(name)
            time.sleep(watch_s)

    def _put(self, name: Reference) -> None:
        while True:
            with contextlib.suppress(BusyError):
                self._queue.put(name)
                return
            time.sleep(ROOM_S)
