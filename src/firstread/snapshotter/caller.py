# SPDX-License-Identifier: Apache-2.0
"""The client of a call: work for it ends when it goes.

Owns the path from gRPC, which notices that a client has gone, to the wait of the call's thread.
Invariant: a thread of the pool waits for a registry or a daemon no longer than its client waits for
the thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from firstread.errors import FirstreadError
from firstread.snapshotter.refusal import Refusal, RefusalError


class Caller:
    """The client of one call. Safe for threads.

    Args:
        context: W3C trace context that it works in, or empty.
    """

    def __init__(self, context: str = "") -> None:
        self.context = context
        self._gone = False
        self._stops: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def leave(self) -> None:
        """Note that the client has gone, and stop the work for it."""
        with self._lock:
            self._gone = True
            stops = list(self._stops)
        for stop in stops:
            stop()

    def check(self) -> None:
        """Raise RefusalError if the client has gone."""
        if self._gone:
            raise RefusalError(Refusal.CANCELLED, "the client has gone")

    @contextlib.contextmanager
    def waiting(self, stop: Callable[[], None]) -> Iterator[None]:
        """Wait for something in the block.

        Args:
            stop: makes the wait fail soon; called by another thread when the client goes.

        Raises:
            RefusalError: the client has gone; replaces the error that `stop` caused.
        """
        with self._lock:
            self.check()
            self._stops.append(stop)
        try:
            yield
        except FirstreadError:
            self.check()
            raise
        finally:
            with self._lock:
                self._stops.remove(stop)


_current = threading.local()


@contextlib.contextmanager
def serving(caller: Caller) -> Iterator[None]:
    """Work for `caller` in the block, in this thread."""
    _current.caller = caller
    try:
        yield
    finally:
        _current.caller = None


def current() -> Caller:
    """Return the caller that this thread works for; one that never goes if none was named."""
    return getattr(_current, "caller", None) or Caller()
