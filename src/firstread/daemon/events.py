# SPDX-License-Identifier: Apache-2.0
"""The reads that wait: taken from the kernel, and kept until a fetcher has answered them.

Owns the descriptor of each event, under the number that the kernel knows, its record in the
journal, and the queue of those that the fetcher has not been sent yet. Answers at once what the
table of readable sizes covers, and what our own processes do. Invariants: at most one event was
read and is neither recorded nor answered; an event without room stays in the kernel, where it takes
no descriptor.
"""

from __future__ import annotations

import itertools
import logging
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Protocol

from firstread.daemon.journal import SPARE_FDS, Journal
from firstread.daemon.protocol import BUFFER_FD, GROUP_FD, MOST_REQUESTS
from firstread.device.base import Read, sector_of
from firstread.device.fanotify import NO_FD, Event, Group
from firstread.device.sizes import Looks
from firstread.errors import NodeError

log = logging.getLogger("supervisor")

SHORT_S = 1.0  # before another look whether there is a descriptor
CROWDED_S = 10.0  # between lines in the log that there is no room for events
SCANNED = 256  # processes that are looked at, at a time
BURST = 32  # events that are read before the rest is looked at again


class Fetcher(Protocol):
    """A fetcher, as far as reads are concerned."""

    @property
    def looks(self) -> Looks | None:
        """Its table of readable sizes; None if we have none."""

    def send(self, reads: Sequence[Read]) -> bool:
        """Give it at most `MOST_REQUESTS` reads; False if it has no room for them now."""


class Events:
    """The reads that wait.

    Args:
        held: left by the previous supervisor.
        unsent: numbers of the `held` reads that its fetcher has not been sent.
        most: how many there is room for.
    """

    def __init__(self, held: list[Read], unsent: Container[int], most: int) -> None:
        self._most = most
        self._short_until = 0.0  # that there is no descriptor for another event, whatever `most` is
        self._crowded = 0.0  # when it was said last that there is no room for events
        self._group = Group(GROUP_FD)
        self._journal = Journal(BUFFER_FD)
        self._journal.keep(held)
        self._waiting = {read.number: read for read in held}
        self._unsent = deque(read for read in held if read.number in unsent)
        self._links = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self) -> bool:
        """Return whether another event can be read."""
        now = time.monotonic()
        if len(self._waiting) < self._most and now >= self._short_until:
            return True
        if now > self._crowded + CROWDED_S:
            log.warning("%d reads wait: no more are taken until some go on", len(self._waiting))
            self._crowded = now
        return False

    def waiting(self) -> list[Read]:
        """Return the reads that wait."""
        return list(self._waiting.values())

    def unsent(self) -> list[int]:
        """Return the numbers of the reads that the fetcher has not been sent."""
        return [read.number for read in self._unsent]

    # -- from the kernel -----------------------------------------------------------------------

    def read(self, own: Container[int], fetcher: Fetcher | None) -> None:
        """Take events from the kernel, as many as there is room for.

        Args:
            own: our processes, whose events are allowed at once.
            fetcher: gets the reads that cannot be answered here.
        """
        looks = fetcher.looks if fetcher is not None else None
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        is_short = 0 <= limit < len(self._waiting) + SPARE_FDS + BURST
        try:
            for _ in range(min(BURST, self._most - len(self._waiting))):
                if is_short and not self._has_descriptor():
                    return
                if looks is not None:
                    looks.begin()
                try:
                    # One at a time: what is read and not yet recorded is lost if we are killed now.
                    events = self._group.read_one(self._journal.buffer)
                except NodeError as exc:
                    log.critical("a read fails: %s", exc)  # the kernel has answered it already
                    return
                if not events:
                    return
                for event in events:
                    self._take(event, own, looks)
                self._journal.clear_buffer()
        finally:
            if looks is not None:
                looks.end()
            if fetcher is not None:
                self.send(fetcher)

    def _has_descriptor(self) -> bool:
        """Return whether there is a descriptor for an event: the kernel denies one without."""
        try:
            os.close(os.dup(GROUP_FD))
        except OSError as exc:
            self._short_until = time.monotonic() + SHORT_S
            log.warning("no events are taken: %s", exc)
            return False
        return True

    def _take(self, event: Event, own: Container[int], looks: Looks | None) -> None:
        fd = event.fd
        if fd == NO_FD:
            log.error("the queue of fanotify events overflowed")
            return
        if event.pid in own or event.count == 0:
            self._group.finish([fd])
            return
        try:
            path = os.readlink(b"%d" % fd, dir_fd=self._links)
        except OSError:
            path = b""
        sector_id = sector_of(path)
        if looks is not None and looks.covers(sector_id, event.offset + event.count):
            self._group.finish([fd])
            return
        read = Read(fd, event.pid, event.offset, event.count, fd, sector_id)
        self._waiting[fd] = read
        self._journal.add(read, path)
        self._unsent.append(read)

    # -- to and from the fetcher ---------------------------------------------------------------

    def send(self, fetcher: Fetcher) -> None:
        """Send queued reads, as far as the fetcher has room."""
        while self._unsent:
            some = list(itertools.islice(self._unsent, MOST_REQUESTS))
            if not fetcher.send(some):
                return
            for _ in some:
                self._unsent.popleft()

    def send_all(self, fetcher: Fetcher | None) -> None:
        """Send every read that waits to a fetcher that begins."""
        self._unsent = deque(self._waiting.values())
        if fetcher is not None:
            self.send(fetcher)

    def has_unsent(self) -> bool:
        """Return whether reads are queued."""
        return bool(self._unsent)

    def answered(self, numbers: Iterable[int]) -> None:
        """Forget reads that a fetcher has answered; queue those of ``~number`` again."""
        for number in numbers:
            if number < 0 and ~number in self._waiting:
                self._unsent.append(self._waiting[~number])
            read = self._waiting.pop(number, None)
            if read is not None:
                self._journal.remove(number)
                os.close(read.fd)

    # -- failing -------------------------------------------------------------------------------

    def deny(self) -> None:
        """Fail all reads that wait."""
        for number, read in self._waiting.items():
            self._group.answer(number, allow=False)
            os.close(read.fd)
        self._waiting.clear()

    def deny_of(self, is_meant: Callable[[int], bool]) -> int:
        """Fail the reads of some processes; return how many.

        Their descriptors stay until a fetcher has answered, too: it may know them already.

        Args:
            is_meant: picks processes by number.
        """
        pids = {read.pid for read in self._waiting.values()} - {0}
        meant = {pid for pid in sorted(pids)[:SCANNED] if is_meant(pid)}
        numbers = [number for number, read in self._waiting.items() if read.pid in meant]
        return sum(self._group.answer(number, allow=False) for number in numbers)
