# SPDX-License-Identifier: Apache-2.0
"""Handlers of signals for as long as something runs; those before come back after it."""

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
    """Handle signals; in another thread than the main one Python has no handlers: do nothing."""
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
    """Let SIGTERM and SIGHUP raise SystemExit, so that what was made so far is undone.

    Only in the main thread. One that was ignored, as nohup(1) has it, stays so. What comes at once
    after another does not interrupt the undoing; SIGINT neither, which raises KeyboardInterrupt as
    ever. Whoever sends one later means that it takes too long.
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
