# SPDX-License-Identifier: Apache-2.0
"""The one place where pending reads are answered.

Owns the answer to the device and the word about it to the supervisor. Decides nothing.

Invariant: a read is answered once. It is answered while the table has it, under one lock, and
leaves the table with its answer; a second answer would go to another read, because the kernel uses
the number again. Once frozen, nothing is answered: another process will.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from firstread.cache.pending import PendingRead
from firstread.device.base import Read
from firstread.fetch.reads import Reads

log = logging.getLogger("answers")

MOST_TOLD = 4096  # numbers in one message


class Asker(Protocol):
    """What asks, and takes the answer: a device, as far as it is needed here."""

    def answer(self, number: int, *, allow: bool = True) -> bool: ...


class Answers:
    """Answers pending reads.

    Args:
        reads: the table of them.
        device: that the events come from.
        tell: takes the numbers of answered reads, at most `MOST_TOLD`; raises OSError if it cannot.
    """

    def __init__(self, reads: Reads, device: Asker, tell: Callable[[Sequence[int]], None]) -> None:
        self._reads, self._device, self._tell = reads, device, tell
        self._untold: list[int] = []  # answered, and the supervisor does not know
        self._frozen = False
        self._lock = threading.Lock()

    def give(self, reads: Iterable[PendingRead], *, allow: bool) -> None:
        """Let reads go on, or fail with EIO."""
        now = time.monotonic()
        with self._lock:
            if self._frozen:
                return
            for read in reads:
                self._answer(read, now, allow=allow)
            # A supervisor that is too busy to read is told with the next answer. One that is gone
            # need not know.
            with contextlib.suppress(OSError):
                while self._untold:
                    self._tell(self._untold[:MOST_TOLD])
                    del self._untold[:MOST_TOLD]

    def _answer(self, read: PendingRead, now: float, *, allow: bool) -> None:
        if read not in self._reads:
            log.error("read %d is answered already", read.number)
            return
        if allow and read.note_wait is not None:
            read.note_wait(now - read.came)  # first: a reader that goes on finds itself counted
        self._device.answer(read.number, allow=allow)
        self._reads.release(read)
        self._untold.append(read.number)

    def freeze(self) -> list[Read]:
        """Answer nothing any more, and return what waits: another process will."""
        with self._lock:
            self._frozen = True
            return self._reads.hand_on()
