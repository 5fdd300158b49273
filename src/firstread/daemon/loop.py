# SPDX-License-Identifier: Apache-2.0
"""The loop of a supervisor: descriptors that it listens to, and the signals that end a wait.

Owns the selector and the signal handlers, not what comes in. Invariant: a signal that arrived while
nobody listened is not lost, and no child blocks signals.
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable

from firstread.daemon.handover import SIGNALS

_QUICK_S = 0.05  # between two looks at everything, however many events come meanwhile


class Loop:
    """The loop.

    Attributes:
        stopping: SIGTERM or SIGINT has come, or a part of the supervisor wants the end.
        hangup: SIGHUP has come.
    """

    def __init__(self) -> None:
        self.stopping = self.hangup = False
        self._selector = selectors.DefaultSelector()
        self._is_woken = False
        self._is_stale = False  # the rest of a batch may concern files that were forgotten

    def take_signals(self) -> None:
        """Take signals from now on, including pending ones."""
        waker, wakee = self._wakers = socket.socketpair()
        waker.setblocking(False)
        wakee.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.watch(wakee, lambda _: self.wake(wakee.recv(64)))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _hang_up(self, *_: object) -> None:
        self.hangup = True

    def watch(
        self, file: int | socket.socket, handle: Callable[[int], object], *, writes: bool = False
    ) -> None:
        """Call `handle` with the mask of selectors whenever there is something to read.

        Args:
            file: which is watched in this way only, from now on.
            handle: must not block.
            writes: also when there is room to write.
        """
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if writes else 0)
        try:
            self._selector.modify(file, mask, handle)
        except KeyError:
            self._selector.register(file, mask, handle)

    def forget(self, file: int | socket.socket) -> None:
        """Watch a file no longer, also if there is something to read by now."""
        self._selector.unregister(file)
        self._is_stale = True

    def wake(self, *_: object) -> None:
        """Have `wait` return, because more is due than to handle what comes in."""
        self._is_woken = True

    def wait(self, patience_s: float) -> float:
        """Handle what comes in; return how many seconds too late that was.

        Returns after a `wake`, after `patience_s` seconds, and now and then while much comes in. It
        is late if this process did not run: suspended, frozen or starved.
        """
        begun = time.monotonic()
        until, quick = begun + patience_s, begun + min(patience_s, _QUICK_S)
        while not (self._is_woken or self.stopping):
            is_quiet = not self._handle(until)
            if time.monotonic() >= (until if is_quiet else quick):
                break
        self._is_woken = False
        return max(0.0, time.monotonic() - until)

    def handle_until(self, deadline: float) -> bool:
        """Handle what comes in next; return whether a deadline (monotonic) has not passed."""
        self._handle(deadline)
        return time.monotonic() < deadline

    def _handle(self, deadline: float) -> bool:
        """Handle what comes in first; return False if nothing has come by a deadline."""
        found = self._selector.select(max(0.0, deadline - time.monotonic()))
        self._is_stale = False
        for key, mask in found:
            key.data(mask)
            if self._is_stale:
                break  # the rest is found again
        return bool(found)
