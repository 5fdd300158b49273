# SPDX-License-Identifier: Apache-2.0
"""The client of a call: what the snapshotter does for it ends when it has gone.

Owns the way from gRPC, which notices that a client has left, to what the thread of its call waits
for. Invariant: a thread of the pool waits for a registry or a daemon no longer than its client
waits for the thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from firstread.errors import FirstreadError
from firstread.snapshotter.refusal import Kind, RefusalError


class Caller:
    """The client of one call. Safe for threads."""

    def __init__(self) -> None:
        self._gone = False
        self._stops: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def leave(self) -> None:
        """Note that it has gone: stop what is done for it."""
        with self._lock:
            self._gone = True
            stops = list(self._stops)
        for stop in stops:
            stop()

    def check(self) -> None:
        """Raise RefusalError if it has gone."""
        if self._gone:
            raise RefusalError(Kind.CANCELLED, "the client has gone")

    @contextlib.contextmanager
    def waiting(self, stop: Callable[[], None]) -> Iterator[None]:
        """Wait for something in the block.

        Args:
            stop: makes the wait fail soon; called by another thread when the client goes.

        Raises:
            RefusalError: it has gone, in place of what the wait fails with then.
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
    """Make what this thread does in the block something that is done for `caller`."""
    _current.caller = caller
    try:
        yield
    finally:
        _current.caller = None


def current() -> Caller:
    """Return for whom this thread works; somebody who never goes if nobody was named."""
    return getattr(_current, "caller", None) or Caller()
