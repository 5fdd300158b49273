# SPDX-License-Identifier: Apache-2.0
"""The events of the kernel that wait for an answer: read here, kept until a fetcher has answered.

Owns the descriptor of each, under the number that the kernel knows, and its record in the journal.
Does not know who answers them. Invariants: of what was read at most one event is not recorded, and
no event is read for which there is no room: it waits in the kernel, where it takes no descriptor.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Container, Iterable

from firstread.device.fanotify import NO_FD, Group
from firstread.errors import NodeError
from firstread.node.journal import Journal
from firstread.node.wire import BUFFER_FD, GROUP_FD, Request

log = logging.getLogger("supervisor")

SHORT_S = 1.0  # before another look whether there is a descriptor
LOOKS = 256  # processes that are looked at, at a time
BURST = 32  # events that are read before the rest is looked at again


class Events:
    """The events that wait.

    Args:
        held: those that the supervisor before has left.
        most: how many there is room for.
    """

    def __init__(self, held: list[Request], most: int) -> None:
        self._most = most
        self._short_until = 0.0  # that there is no descriptor for another event, whatever `most` is
        self._group = Group(GROUP_FD)
        self._journal = Journal(BUFFER_FD)
        self._journal.keep(held)
        self._waiting = {request.number: request for request in held}

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self) -> bool:
        """Return whether another event can be read."""
        return len(self._waiting) < self._most and time.monotonic() >= self._short_until

    def waiting(self) -> list[Request]:
        """Return those that wait."""
        return list(self._waiting.values())

    def read(self, own: Container[int], on_request: Callable[[Request], None]) -> None:
        """Read what the kernel has and there is room for.

        Args:
            own: process numbers whose events are let through.
            on_request: gets each of the others.
        """
        for _ in range(min(BURST, self._most - len(self._waiting))):
            try:
                os.close(os.dup(GROUP_FD))  # the kernel denies an event that has no room
            except OSError as exc:
                self._short_until = time.monotonic() + SHORT_S
                log.warning("no events are taken: %s", exc)
                return
            try:
                # One at a time: what is read and not yet recorded is lost if we are killed now.
                events = self._group.read_one(self._journal.buffer)
            except NodeError as exc:
                log.critical("a read fails: %s", exc)  # the kernel has answered it already
                return
            if not events:
                return
            for event in events:
                if event.fd == NO_FD:
                    log.error("the queue of fanotify events overflowed")
                elif event.pid in own or event.count == 0:
                    self._group.finish([event.fd])
                else:
                    request = Request(event.fd, event.pid, event.offset, event.count, event.fd)
                    self._waiting[event.fd] = request
                    self._journal.add(request)
                    on_request(request)
            self._journal.clear_buffer()

    def answered(self, numbers: Iterable[int]) -> None:
        """Note that a fetcher has answered these."""
        for number in numbers:
            request = self._waiting.pop(number, None)
            if request is not None:
                self._journal.remove(number)
                os.close(request.fd)

    def deny(self) -> None:
        """Let all that wait fail, and close their files."""
        for number, request in self._waiting.items():
            self._group.answer(number, allow=False)
            os.close(request.fd)
        self._waiting.clear()

    def deny_of(self, is_meant: Callable[[int], bool]) -> int:
        """Let fail what some processes wait for; return how many reads that are.

        Their numbers stay taken until a fetcher has answered: it may know them already.

        Args:
            is_meant: tells by the number of a process.
        """
        pids = {request.pid for request in self._waiting.values()} - {0}
        meant = {pid for pid in sorted(pids)[:LOOKS] if is_meant(pid)}
        numbers = [number for number, request in self._waiting.items() if request.pid in meant]
        return sum(self._group.answer(number, allow=False) for number in numbers)
