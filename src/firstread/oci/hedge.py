# SPDX-License-Identifier: Apache-2.0
"""Asks one place, and a second one if the first is late: the first answer counts.

Owns the threads of a race and what becomes of the loser; whom to ask, and whether there is budget
for a second request, is the caller's business. Invariant: of two answers one is given out and the
other is dropped; who has not answered is cancelled.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from firstread.errors import ImageError, SourceError
from firstread.oci.calls import Call, calling, current

Place = TypeVar("Place")
T = TypeVar("T")


class _Came(NamedTuple, Generic[Place, T]):
    """How one request ended: with an answer, in a list of its own, or with an error."""

    place: Place
    answer: list[T]
    error: BaseException | None


class Race(Generic[Place, T]):
    """One race.

    Args:
        ask: asks a place; the call lets it be cancelled.
        drop: gives an answer back that is not needed.

    Attributes:
        failed: who has failed, and how.
    """

    def __init__(self, ask: Callable[[Place, Call], T], drop: Callable[[T], None]) -> None:
        self.failed: list[tuple[Place, SourceError | ImageError]] = []
        self._ask = ask
        self._drop = drop
        self._came: queue.SimpleQueue[_Came[Place, T]] = queue.SimpleQueue()
        self._calls: list[Call] = []
        self._over = False
        self._lock = threading.Lock()

    def run(
        self, first: Place, late_s: float, second: Callable[[], Place | None]
    ) -> tuple[Place, T] | None:
        """Return the first answer, and who gave it; None if all that were asked have failed.

        Args:
            first: is asked at once.
            late_s: seconds after which another one is asked as well.
            second: gives it, or None if there is none.
        """
        self._start(first)
        try:
            came = self._came.get(timeout=late_s)
        except queue.Empty:
            other = second()
            if other is not None:
                self._start(other)
            came = self._came.get()
        try:
            while came.error is not None:
                if not isinstance(came.error, SourceError | ImageError):
                    raise came.error
                self.failed.append((came.place, came.error))
                if len(self.failed) == len(self._calls):
                    return None
                came = self._came.get()
            return came.place, came.answer[0]
        finally:
            self._end()

    def _start(self, place: Place) -> None:
        call = Call(parent=current())
        self._calls.append(call)
        threading.Thread(target=self._work, args=(place, call), name="race", daemon=True).start()

    def _work(self, place: Place, call: Call) -> None:
        answer: list[T] = []
        error = None
        try:
            with calling(call):
                answer.append(self._ask(place, call))
        except BaseException as exc:  # noqa: BLE001  (raised in the thread that waits for it)
            error = exc
        with self._lock:
            if not self._over:
                self._came.put(_Came(place, answer, error))
                return
        for unneeded in answer:
            self._drop(unneeded)

    def _end(self) -> None:
        """Cancel who has not answered, and drop what came at the last moment."""
        with self._lock:
            self._over = True
        for call in self._calls:
            call.cancel()
        while not self._came.empty():
            for unneeded in self._came.get().answer:
                self._drop(unneeded)
