# SPDX-License-Identifier: Apache-2.0
"""Pulls of images: one for each image, for as long as somebody waits for it.

Owns the threads that ask registries for images, who waits for them, and how many may at a time.
Knows nothing of images. Invariants: a pull that nobody waits for any more is cancelled; one
registry that hangs has a part of the threads at most, and all registries together leave some to
requests that need none.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from firstread.errors import BusyError, FirstreadError
from firstread.registry.calls import Call, calling

T = TypeVar("T")

LOOK_S: Final = 0.5  # whether who waits is still there


class GoneError(FirstreadError):
    """The client has gone, and nobody reads this."""


class Waiting(Protocol):
    """A client that waits for an answer."""

    def check(self) -> None:
        """Raise GoneError if it does not wait any more."""


class Patient:
    """Somebody who waits however long it takes."""

    def check(self) -> None:
        return


PATIENT: Final = Patient()


class Seats:
    """So many may wait for registries at a time. Safe for threads.

    Args:
        most: at a time.
        most_for_one: of them, for one registry.
        what: they are, in the message to one who finds none free.
    """

    def __init__(self, most: int, most_for_one: int, what: str = "requests wait") -> None:
        self._most, self._most_for_one, self._what = most, most_for_one, what
        self._taken: Counter[str] = Counter()  # by registry
        self._lock = threading.Lock()

    def take(self, registry: str) -> None:
        """Take a seat, to be given back.

        Raises:
            BusyError: there is none.
        """
        with self._lock:
            mine, all_ = self._taken[registry], self._taken.total()
            if mine >= self._most_for_one or all_ >= self._most:
                whom = registry if mine >= self._most_for_one else "registries"
                raise BusyError(
                    f"{mine if whom == registry else all_} {self._what} for {whom} already",
                    hint="see whether the registry answers, and try again",
                )
            self._taken[registry] += 1

    def give_back(self, registry: str) -> None:
        """Give a seat back."""
        with self._lock:
            self._taken[registry] -= 1
            if not self._taken[registry]:
                del self._taken[registry]  # names come from outside

    @contextmanager
    def taken(self, registry: str) -> Iterator[None]:
        """Have a seat for the block. Raises BusyError, as `take`."""
        self.take(registry)
        try:
            yield
        finally:
            self.give_back(registry)


class _Pull(Generic[T]):
    """A pull that is under way, or has ended."""

    def __init__(self) -> None:
        self.call = Call()
        self.waiters = 0
        self.ended = threading.Event()
        self.resolved = 0.0  # monotonic seconds; when it was known what the name means
        self.outcome: list[T] = []
        self.error: BaseException | None = None


class Pulls(Generic[T]):
    """The pulls of a node.

    Args:
        waiting: seats of those who wait.
        running: seats of the pulls themselves. One that was cancelled keeps its own until it ends.
        linger_s: for which a pull goes on that nobody waits for, in seconds.
    """

    def __init__(self, waiting: Seats, running: Seats, linger_s: float = 0.0) -> None:
        self._waiting, self._running, self._linger_s = waiting, running, linger_s
        self._pulls: dict[Hashable, _Pull[T]] = {}
        self._lock = threading.Lock()

    def wait(
        self,
        key: Hashable,
        registry: str,
        work: Callable[[Callable[..., None]], T],
        waiter: Waiting = PATIENT,
    ) -> tuple[T, float]:
        """Return what a pull gives, and when it was resolved (monotonic seconds).

        Args:
            key: of the image; whoever comes with the same key meanwhile joins the pull.
            registry: that is asked.
            work: pulls, in a thread of its own, and calls what it is given when it has resolved
                the name, with further keys of the image.
            waiter: who waits for it.

        Raises:
            BusyError: too many wait for the registry, or for all.
            GoneError: `waiter` has gone.
            FirstreadError: as `work` does.
        """
        with self._waiting.taken(registry):
            pull = self._join(key, registry, work)
            try:
                while not pull.ended.wait(LOOK_S):
                    waiter.check()
            finally:
                self._leave(pull)
        if pull.error is not None:
            raise copy.copy(pull.error)  # others raise it as well, and add to it
        return pull.outcome[0], pull.resolved

    def _join(
        self, key: Hashable, registry: str, work: Callable[[Callable[..., None]], T]
    ) -> _Pull[T]:
        with self._lock:
            pull = self._pulls.get(key)
            if pull is None:
                pull = _Pull()
                self._running.take(registry)
                thread = threading.Thread(
                    target=self._run, args=(registry, pull, work), name="pull", daemon=True
                )
                try:
                    thread.start()
                except BaseException:
                    self._running.give_back(registry)
                    raise
                self._pulls[key] = pull
            pull.waiters += 1
            return pull

    def _leave(self, pull: _Pull[T]) -> None:
        with self._lock:
            pull.waiters -= 1
            if pull.waiters or pull.ended.is_set():
                return
            if self._linger_s:
                timer = threading.Timer(self._linger_s, self._end, (pull,))
                timer.daemon = True
                timer.start()
                return
        self._end(pull)

    def _end(self, pull: _Pull[T]) -> None:
        with self._lock:
            if pull.waiters:
                return  # somebody has come back
            self._drop(pull)
        pull.call.cancel()  # without effect if it has ended

    def _drop(self, pull: _Pull[T]) -> None:
        """Let who comes from now on begin anew; the lock is held."""
        self._pulls = {key: other for key, other in self._pulls.items() if other is not pull}

    def _resolve(self, pull: _Pull[T], *keys: Hashable) -> None:
        """Note that it is known now what the name means, and by what other keys to join."""
        pull.resolved = time.monotonic()
        with self._lock:
            if pull in self._pulls.values():  # else nobody waits for it any more
                self._pulls |= {key: pull for key in keys if key not in self._pulls}

    def _run(self, registry: str, pull: _Pull[T], work: Callable[[Callable[..., None]], T]) -> None:
        try:
            with calling(pull.call):
                pull.outcome.append(work(partial(self._resolve, pull)))
        except BaseException as exc:  # noqa: BLE001 - raised in the threads that wait for it
            pull.error = exc
        finally:
            self._running.give_back(registry)
            with self._lock:
                self._drop(pull)
            pull.ended.set()
