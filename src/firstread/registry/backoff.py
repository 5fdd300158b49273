# SPDX-License-Identifier: Apache-2.0
"""When to send a request again, and after which wait.

Owns the waits and the budget for retries; sends nothing. Invariant: a wait ends when the repository
is closed, and when nobody waits for the answer any more.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from firstread.errors import TransportError
from firstread.registry.calls import pause
from firstread.registry.options import AccessOptions

LONGEST_S: Final = 60.0  # of one wait; we give up on a registry that asks for a longer one

T = TypeVar("T")


class Budget:
    """So many extra requests for so many ordinary ones, and no more. Safe for threads.

    Args:
        share: of an extra request that an ordinary one pays for.
        most: extra requests that can be saved up.
        start: extra requests that there are at first.
    """

    def __init__(self, share: float, most: float, start: float = 0.0) -> None:
        self._share, self._most, self._left = share, most, start
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Note an ordinary request."""
        with self._lock:
            self._left = min(self._most, self._left + self._share)

    def take(self) -> bool:
        """Return whether an extra request may be sent, and count it."""
        with self._lock:
            allowed = self._left >= 1.0 - 1e-9
            self._left -= allowed
            return allowed


class Backoff:
    """The patience of one repository with its endpoints. Safe for threads.

    Args:
        options: how often to try again, and how long to wait.
        budget: pays for retries; None for as many as `options` allow.
    """

    def __init__(self, options: AccessOptions, budget: Budget | None = None) -> None:
        self._options = options
        self._budget = budget
        self._closed = threading.Event()

    def wait(self, attempt: int, error: TransportError, *, free: bool = False) -> None:
        """Wait before the next attempt, or raise `error` if there is to be none.

        Args:
            attempt: failed ones without progress before this, from 0.
            error: why there is to be another.
            free: the budget does not pay for it.
        """
        options = self._options
        delay = pause_s(attempt, options.retry_base, LONGEST_S, error.retry_after)
        if attempt >= options.retries or delay is None:
            raise error
        if self._budget is not None and not free and not self._budget.take():
            raise error
        if pause(delay, self._closed):
            raise error

    def insist(self, exchange: Callable[[], T]) -> T:
        """Do an exchange, again after a transient failure."""
        attempt = 0
        while True:
            try:
                return exchange()
            except TransportError as exc:
                self.wait(attempt, exc)
            attempt += 1

    def earn(self) -> None:
        """Note an ordinary request, which pays for a share of a retry."""
        if self._budget is not None:
            self._budget.earn()

    def close(self) -> None:
        """End the waits, and have no more attempts."""
        self._closed.set()


def once_more(exchange: Callable[[], T]) -> T:
    """Do an exchange, and again at once if it broke, unless the other side asks for peace."""
    try:
        return exchange()
    except TransportError as exc:
        if exc.retry_after:
            raise
    return exchange()


def pause_s(attempt: int, base: float, limit: float, asked: float = 0.0) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up.

    Args:
        attempt: failed ones without progress before this, from 0.
        base: first wait, in seconds; it doubles.
        limit: longest wait, in seconds.
        asked: what the other side asked for, in seconds; nobody waits for more than `limit`.
    """
    if asked > limit:
        return None
    spread = random.uniform(0.5, 1.0)  # noqa: S311  (so that nodes do not all come back at once)
    return max(asked, min(limit, base * float(1 << min(attempt, 30))) * spread)
