# SPDX-License-Identifier: Apache-2.0
"""The events of the kernel that wait for an answer: read here, kept until a fetcher has answered.

Owns the descriptor of each, under the number that the kernel knows, and its record in the journal.
Does not know who answers them. Invariant: of what was read at most one event is not recorded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterable

from firstread.device.fanotify import NO_FD, Group
from firstread.errors import NodeError
from firstread.node.journal import Journal
from firstread.node.wire import BUFFER_FD, GROUP_FD, Request

log = logging.getLogger("supervisor")

BURST = 32  # events that are read before the rest is looked at again


class Events:
    """The events that wait.

    Args:
        held: those that the supervisor before has left.
    """

    def __init__(self, held: list[Request]) -> None:
        self._group = Group(GROUP_FD)
        self._journal = Journal(BUFFER_FD)
        self._journal.keep(held)
        self._waiting = {request.number: request for request in held}

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> list[Request]:
        """Return those that wait."""
        return list(self._waiting.values())

    def read(self, own: Container[int], on_request: Callable[[Request], None]) -> None:
        """Read what the kernel has.

        Args:
            own: process numbers whose events are let through.
            on_request: gets each of the others.
        """
        for _ in range(BURST):
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
        """Let all that wait fail."""
        for number in self._waiting:
            self._group.answer(number, allow=False)
