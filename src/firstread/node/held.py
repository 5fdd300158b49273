# SPDX-License-Identifier: Apache-2.0
"""The events that a fetcher has not answered: how many one image may have, and their files.

Owns one descriptor for each sector file that events wait for, however many they are, and the quota
of each image. Does not answer. Safe to use from several threads.

The quota: an image may have as many reads waiting as there is room for *more*, `LEAST` in any case.
So one image whose registry hangs gets half of the room, two get a third each, and whatever they do
there is room left for the others (dynamic thresholds, as switches share their buffers). Who has
more for a moment, because many begin at once, loses nothing by it: that is `Fetcher`'s to decide.

Source: Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet switches,
1998.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from dataclasses import dataclass

from firstread.node.filling import Waiter, Wanted
from firstread.node.served import Served
from firstread.node.wire import Request

LEAST = 16  # reads that any image may have waiting


@dataclass(slots=True)
class Event:
    """An event that is not answered, and what is known of it.

    Args:
        waiter: it.
        file: device and inode of the sector file.
        served: the image, once it is known.
        sector: the sector, likewise.
        image: digest of the image in whose quota it counts.
    """

    waiter: Waiter
    file: tuple[int, int] | None = None
    served: Served | None = None
    sector: Wanted | None = None
    image: str = ""


@dataclass(slots=True)
class _File:
    fd: int
    users: int = 1


class Held:
    """The events that wait.

    Args:
        most: how many there is room for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._events: dict[int, Event] = {}  # by number
        self._files: dict[tuple[int, int], _File] = {}
        self._images: Counter[str] = Counter()  # events, by the image in whose quota they count
        self._lock = threading.Lock()
        self._turn = 0  # of the event that `some` begins with

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, number: int) -> Event:
        return self._events[number]

    def take(self, request: Request, came: float) -> Waiter:
        """Keep an event; its descriptor becomes one that all events of its file share."""
        with self._lock:
            file = None
            if request.fd >= 0:
                found = os.fstat(request.fd)
                file = found.st_dev, found.st_ino
                kept = self._files.get(file)
                if kept is None:
                    self._files[file] = _File(request.fd)
                else:
                    os.close(request.fd)
                    kept.users += 1
                    request = request._replace(fd=kept.fd)
            waiter = request, came
            self._events[request.number] = Event(waiter, file)
        return waiter

    def charge(self, number: int, image: str) -> bool:
        """Count an event in the quota of an image; False if that has more now than it may."""
        with self._lock:
            event = self._events[number]
            if event.image != image:
                self._uncharge(event)
                event.image = image
                self._images[image] += 1
            return self._excess(image) <= 0

    def _excess(self, image: str) -> int:
        """Return how many events of an image have to go: each that does makes room for another."""
        count, free = self._images[image], self._most - len(self._events)
        return min(count - LEAST, (count - free + 1) // 2)

    def excess(self, image: str) -> int:
        """Return how many events of an image are beyond its quota; 0 if none is."""
        with self._lock:
            return max(0, self._excess(image))

    def crowding(self) -> list[str]:
        """Return the images that have more events than they may."""
        with self._lock:
            return [image for image in self._images if image and self._excess(image) > 0]

    def release(self, number: int) -> Event:
        """Forget an event that is answered; close its file with the last one."""
        with self._lock:
            event = self._events.pop(number)
            self._uncharge(event)
            if event.file is not None:
                kept = self._files[event.file]
                kept.users -= 1
                if not kept.users:
                    del self._files[event.file]
                    os.close(kept.fd)
            return event

    def _uncharge(self, event: Event) -> None:
        self._images[event.image] -= 1
        if self._images[event.image] <= 0:
            del self._images[event.image]

    def waiting(self, image: str) -> int:
        """Return how many events count in the quota of an image."""
        return self._images[image]

    def waiters(self, image: str) -> list[Waiter]:
        """Return the events that count in the quota of an image, oldest first."""
        with self._lock:
            return [event.waiter for event in self._events.values() if event.image == image]

    def some(self, count: int) -> list[Waiter]:
        """Return up to `count` events, others each time until all had their turn."""
        with self._lock:
            events = list(self._events.values())
        start = self._turn if self._turn < len(events) else 0
        self._turn = start + count
        return [event.waiter for event in events[start : start + count]]

    def hand_on(self) -> list[Request]:
        """Return what waits, each event with a descriptor of its own, for another process.

        Those for which there is no descriptor left are not among them: the journal knows them.
        """
        requests = []
        with self._lock:
            for event in self._events.values():
                request = event.waiter[0]
                kept = self._files.get(event.file) if event.file else None
                if kept is None:
                    continue
                with contextlib.suppress(OSError):
                    if kept.users > 1:
                        request = request._replace(fd=os.dup(kept.fd))
                        kept.users -= 1
                    requests.append(request)
        return requests
