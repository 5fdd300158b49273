# SPDX-License-Identifier: Apache-2.0
"""Temporary signal handlers, after which the earlier ones return; waits that no signal misses.

Facts about signals in Python:

* The kernel wakes the main thread for a signal of the process. Before that thread runs, another one
  can take the signal: one that starts a thread does (``copy_process`` in kernel/fork.c looks for
  signals), and on a busy machine there is time. The main thread then sleeps again.
* Python notes a signal in the thread that takes it, and calls the handler in the main thread,
  between two steps of that. So a signal that another thread takes, or that comes just before a
  wait, ends no wait for a lock. `signal.set_wakeup_fd` is what makes a wait see each.
* A handler that sets a `threading.Event` may run inside `Event.wait`, which holds the event's lock
  for a moment: it then waits for ever.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

TWICE_S = 0.5
"""Signals this close together are one: timeout(1) and others send theirs to a process and once more
to its group."""

_NUDGE = signal.SIGURG  # nobody else uses it, and by default it does nothing

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
def woken() -> Iterator[int]:
    """Give a descriptor of which each signal that has a handler makes one byte readable.

    It is that signal's number. In other threads than the main one nothing comes.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        if threading.current_thread() is not threading.main_thread():
            yield read_end  # this thread has no handlers
            return
        os.set_blocking(write_end, False)
        before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        try:
            yield read_end
        finally:
            signal.set_wakeup_fd(before)
    finally:
        os.close(read_end)
        os.close(write_end)


@contextlib.contextmanager
def ending_on_signals() -> Iterator[Callable[[], None]]:
    """Have SIGINT, SIGTERM and SIGHUP end a service in order; give what waits for one of them.

    In the block they interrupt nothing, and none is missed, whenever it comes. An ignored one stays
    ignored. In other threads than the main one nothing ends the wait.
    """
    heard = _not_ignored()
    with woken() as wakes, handling(dict.fromkeys(heard, lambda *_: None)):

        def wait() -> None:
            while os.read(wakes, 1)[0] not in heard:
                pass

        yield wait


@contextlib.contextmanager
def unwinding_on_signals(*, threads: bool = False) -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise SystemExit, so that the block can clean up.

    Only in the main thread. An ignored signal, as under nohup(1), stays ignored. A signal right
    after another does not interrupt the cleanup; nor does SIGINT, which raises KeyboardInterrupt as
    usual. A later signal means that the cleanup takes too long, and interrupts it.

    Args:
        threads: the main thread waits for others, which may take the signal: have one more thread
            interrupt that wait. A process with threads can join no user namespace.
    """
    last = -math.inf

    def unwind(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= TWICE_S:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    with (
        _interrupting_waits() if threads else contextlib.nullcontext(),
        handling(dict.fromkeys(_not_ignored(), unwind)),
    ):
        yield


@contextlib.contextmanager
def _interrupting_waits() -> Iterator[None]:
    """Interrupt whatever the main thread waits for when any thread has taken a signal."""
    main = threading.get_ident()
    if main != threading.main_thread().ident:
        yield
        return
    is_over = False

    def relay() -> None:
        while not is_over:
            if os.read(wakes, 1)[0] != _NUDGE:
                signal.pthread_kill(main, _NUDGE)

    with woken() as wakes, handling({_NUDGE: lambda *_: None}):
        thread = threading.Thread(target=relay, name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over = True
            signal.raise_signal(_NUDGE)
            thread.join()


def _not_ignored() -> list[int]:
    """Return the signals by which users and managers of services end a command."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]
