# SPDX-License-Identifier: Apache-2.0
"""Asks one endpoint, and a second one if the first is late: the first answer counts.

Owns the threads of a race and what becomes of the loser; the caller knows whom to ask, and whether
there is budget for a second request. Invariant: a race gives out one of two answers and drops the
other; it cancels a request that has not been answered.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from firstread.errors import ImageError, SourceError
from firstread.registry.calls import Call, calling, current

Asked = TypeVar("Asked")
T = TypeVar("T")


class _Came(NamedTuple, Generic[Asked, T]):
    """How one request ended: with an answer, in a list of its own, or with an error."""

    asked: Asked
    answer: list[T]
    error: BaseException | None


class Race(Generic[Asked, T]):
    """One race.

    Args:
        ask: asks one; the call lets the race cancel it.
        drop: gives back an answer that nobody needs.

    Attributes:
        failed: who has failed, and how.
    """

    def __init__(self, ask: Callable[[Asked, Call], T], drop: Callable[[T], None]) -> None:
        self.failed: list[tuple[Asked, SourceError | ImageError]] = []
        self._ask = ask
        self._drop = drop
        self._came: queue.SimpleQueue[_Came[Asked, T]] = queue.SimpleQueue()
        self._calls: list[Call] = []
        self._over = False
        self._lock = threading.Lock()

    def run(
        self, first: Asked, late_s: float, second: Callable[[], Asked | None]
    ) -> tuple[Asked, T] | None:
        """Return the first answer, and who gave it; None if all have failed.

        Args:
            first: to ask at once.
            late_s: seconds after which to ask another one as well.
            second: gives the other one; None if there is none.
        """
        try:
            self._start(first)
            try:
                came = self._came.get(timeout=late_s)
            except queue.Empty:
                other = second()
                if other is not None:
                    self._start(other)
                came = self._came.get()
            while came.error is not None:
                if not isinstance(came.error, SourceError | ImageError):
                    raise came.error
                self.failed.append((came.asked, came.error))
                if len(self.failed) == len(self._calls):
                    return None
                came = self._came.get()
            return came.asked, came.answer[0]
        finally:
            self._end()

    def _start(self, asked: Asked) -> None:
        call = Call(parent=current())
        self._calls.append(call)
        thread = threading.Thread(target=self._work, args=(asked, call), name="race", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads: so this one asks
            self._work(asked, call)

    def _work(self, asked: Asked, call: Call) -> None:
        answer: list[T] = []
        error = None
        try:
            with calling(call):
                answer.append(self._ask(asked, call))
        except BaseException as exc:  # noqa: BLE001  (raised in the thread that waits for it)
            error = exc
        with self._lock:
            if not self._over:
                self._came.put(_Came(asked, answer, error))
                return
        for unneeded in answer:
            self._drop(unneeded)

    def _end(self) -> None:
        """Cancel what has not been answered, and drop what came at the last moment."""
        with self._lock:
            self._over = True
        for call in self._calls:
            call.cancel()
        while not self._came.empty():
            for unneeded in self._came.get().answer:
                self._drop(unneeded)
