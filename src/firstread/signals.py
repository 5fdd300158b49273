# SPDX-License-Identifier: Apache-2.0
"""Temporary signal handlers; afterwards the earlier ones return."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

TWICE_S = 0.5
"""Signals this close together are one: timeout(1) and others send theirs to a process and once more
to its group."""

Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def handling(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Handle signals; do nothing outside the main thread, where Python has no handlers."""
    before = {}
    try:
        with contextlib.suppress(ValueError):
            for number, handler in handlers.items():
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)


@contextlib.contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise SystemExit, so that the block can clean up.

    Only in the main thread. An ignored signal, as under nohup(1), stays ignored. A signal right
    after another does not interrupt the cleanup; nor does SIGINT, which raises KeyboardInterrupt as
    usual. A later signal means that the cleanup takes too long, and interrupts it.
    """
    last = -math.inf

    def unwind(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= TWICE_S:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    heard = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    with handling(dict.fromkeys(heard, unwind)):
        yield
