# SPDX-License-Identifier: Apache-2.0
"""The table of pending reads: all that this fetcher has taken and not answered.

Owns one descriptor for each sector file that reads wait for, however many they are, and the quota
of each image. Does not answer. Safe to use from several threads.

The quota: an image may have as many reads waiting as there is room for *more*, `LEAST` in any case.
So one image whose registry hangs gets half of the room, two get a third each, and whatever they do
there is room left for the others (dynamic thresholds, as switches share their buffers). An image
that has more for a moment, because many reads begin at once, loses nothing by it:
`firstread.fetch.fairness` decides that.

Invariant: a read is in the table from `take` to the one `release` that returns True.

Source: Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet switches,
1998.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from firstread.cache.pending import Awaits, PendingRead
from firstread.device.base import Read

LEAST = 16  # reads that any image may have waiting


@dataclass(slots=True)
class _File:
    fd: int
    users: int = 1


class Reads:
    """The pending reads.

    Args:
        most: how many there is room for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._reads: dict[int, PendingRead] = {}  # by number, oldest first
        self._files: dict[tuple[int, int], _File] = {}
        self._charged: Counter[str] = Counter()  # reads, by the image in whose quota they count
        self._lock = threading.Lock()
        self._turn = 0  # of the read that `some` begins with

    def __len__(self) -> int:
        return len(self._reads)

    def __contains__(self, read: PendingRead) -> bool:
        return self._reads.get(read.number) is read

    # -- from event to answer ------------------------------------------------------------------

    def take(self, event: Read, came: float) -> PendingRead:
        """Return the pending read of an event; all reads of its file share one descriptor."""
        number, fd = event.number, event.fd
        with self._lock:
            file = None
            if fd >= 0:
                found = os.fstat(fd)
                file = found.st_dev, found.st_ino
                kept = self._files.get(file)
                if kept is None:
                    self._files[file] = _File(fd)
                else:
                    os.close(fd)
                    kept.users += 1
                    fd = kept.fd
            read = self._reads[number] = PendingRead(
                number, event.pid, event.offset, event.length, fd, came, event.sector_id, file
            )
        return read

    def release(self, read: PendingRead) -> bool:
        """Forget a read that is answered, and close its file with the last one.

        Returns:
            False if it was released before.
        """
        with self._lock:
            if self._reads.get(read.number) is not read:
                return False
            del self._reads[read.number]
            self._uncharge(read)
            if read.file is not None:
                kept = self._files[read.file]
                kept.users -= 1
                if not kept.users:
                    del self._files[read.file]
                    os.close(kept.fd)
            return True

    def hand_on(self) -> list[Read]:
        """Return what waits, each event with a descriptor of its own, for another process.

        Those for which there is no descriptor left are not among them: the journal knows them.
        """
        events = []
        with self._lock:
            for read in self._reads.values():
                kept = self._files.get(read.file) if read.file else None
                if kept is None:
                    continue
                with contextlib.suppress(OSError):
                    fd = os.dup(kept.fd) if kept.users > 1 else kept.fd
                    kept.users -= 1
                    events.append(Read(read.number, read.pid, read.offset, read.length, fd))
        return events

    # -- reads that wait here ------------------------------------------------------------------

    def park(self, read: PendingRead, awaits: Awaits) -> None:
        """Let a read wait until somebody recalls it."""
        read.awaits = awaits

    def recall(
        self, *awaited: Awaits, which: Callable[[PendingRead], bool] = lambda _: True
    ) -> list[PendingRead]:
        """Take reads back that were parked, each of them once; oldest first."""
        with self._lock:
            found = [r for r in self._reads.values() if r.awaits in awaited and which(r)]
            for read in found:
                read.awaits = Awaits.ROUTE
        return found

    # -- who waits -----------------------------------------------------------------------------

    def some(self, count: int) -> list[PendingRead]:
        """Return up to `count` reads, others each time until all had their turn."""
        with self._lock:
            reads = list(self._reads.values())
        start = self._turn if self._turn < len(reads) else 0
        self._turn = start + count
        return reads[start : start + count]

    def of(self, image: str) -> list[PendingRead]:
        """Return the reads that count in the quota of an image, oldest first."""
        with self._lock:
            return [read for read in self._reads.values() if read.charged == image]

    def waiting(self, image: str) -> int:
        """Return how many reads count in the quota of an image."""
        return self._charged[image]

    # -- quotas --------------------------------------------------------------------------------

    def charge(self, read: PendingRead, image: str) -> bool:
        """Count a read in the quota of an image; False if that has more now than it may."""
        with self._lock:
            if read.charged != image:
                self._uncharge(read)
                read.charged = image
                self._charged[image] += 1
            return self._excess(image) <= 0

    def excess(self, image: str) -> int:
        """Return how many reads of an image are beyond its quota; 0 if none is."""
        with self._lock:
            return max(0, self._excess(image))

    def crowding(self) -> list[str]:
        """Return the images that have more reads than they may."""
        with self._lock:
            return [image for image in self._charged if self._excess(image) > 0]

    def _excess(self, image: str) -> int:
        """Return how many reads of an image have to go: each that does makes room for another."""
        count, free = self._charged[image], self._most - len(self._reads)
        return min(count - LEAST, (count - free + 1) // 2)

    def _uncharge(self, read: PendingRead) -> None:
        if not read.charged:
            return
        self._charged[read.charged] -= 1
        if self._charged[read.charged] <= 0:
            del self._charged[read.charged]
