# SPDX-License-Identifier: Apache-2.0
"""The health of an endpoint: whether it works, how soon it answers, what it was asked.

Owns the rules of failover as values: `Breaker` (when to leave an endpoint alone) and `Latency`
(when it is late). Pure but for the locks of `EndpointHealth`; sends nothing. Invariant: memory is
bounded, and keeps of an error only the message, which has no secrets (see
`firstread.registry.faults`).

An endpoint is *healthy* until a request fails. Then it *rests*, each time in a row twice as long.
After the rest one request finds out (*probing*); the others do not wait for its outcome. What the
endpoint itself asks for (``Retry-After``) holds in any case.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from firstread.errors import FirstreadError, TransportError
from firstread.registry.hosts import Endpoint

REST_S: Final = 1.0  # after a first failure; it doubles with each further one
LONGEST_REST_S: Final = 30.0
LONGEST_ASKED_S: Final = 3600.0  # of a Retry-After; more is taken for a mistake
MAX_KNOWN: Final = 256  # endpoints; names of images come from outside
MAX_DECLINED: Final = 1024  # endpoints and repositories that are remembered so
SAMPLES: Final = 128  # first bytes that a percentile is taken of
FEWEST_SAMPLES: Final = 20  # before there is one

Clock = Callable[[], float]
Listener = Callable[[str, Endpoint, str], None]
"""Told what becomes of an endpoint: ``"rests"`` or ``"healthy"``, and why."""


class Breaker:
    """When an endpoint may be asked. Not safe for threads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self.failures = 0  # in a row
        self.rests_until = 0.0
        self._barred_until = 0.0  # as it asked itself
        self._probing = False

    @property
    def state(self) -> str:
        """``healthy``, ``resting`` or ``probing``."""
        if not self.failures and not self.barred_s():
            return "healthy"
        return "probing" if self._probing else "resting"

    def barred_s(self) -> float:
        """Return for how many seconds it has asked to be left alone."""
        return max(0.0, self._barred_until - self._clock())

    def ask(self) -> bool:
        """Return whether to send a request now; the first after a rest is the probe."""
        if self.state == "healthy":
            return True
        if self._probing or self.barred_s() or self._clock() < self.rests_until:
            return False
        self._probing = True
        return True

    def works(self) -> bool:
        """Note an answer; return whether that is news."""
        news = self.failures > 0
        self.failures = 0
        self.rests_until = 0.0
        self._probing = False
        return news

    def fails(self, asked_s: float = 0.0) -> bool:
        """Note a failure, and for how long it asks to be left alone; return whether that is news.

        Of requests that were in flight together only one counts: they failed for one cause.
        """
        now, news = self._clock(), self.failures == 0
        if now >= self.rests_until:
            rest = min(LONGEST_REST_S, REST_S * float(1 << min(self.failures, 10)))
            self.failures += 1
            self.rests_until = now + rest
        self._barred_until = max(self._barred_until, now + min(asked_s, LONGEST_ASKED_S))
        self._probing = False
        return news

    def leaves(self) -> None:
        """Note that a request ended without an outcome."""
        self._probing = False


class Latency:
    """A running percentile of the time to the first byte. Not safe for threads."""

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._ordered: list[float] = []

    def note(self, seconds: float) -> None:
        """Note how long an answer took to begin."""
        if len(self._last) == SAMPLES:
            del self._ordered[bisect_left(self._ordered, self._last.popleft())]
        self._last.append(seconds)
        insort(self._ordered, seconds)

    def percentile(self, share: float) -> float | None:
        """Return the time within which `share` of the last answers began; None: too few yet."""
        count = len(self._ordered)
        return None if count < FEWEST_SAMPLES else self._ordered[min(count - 1, int(share * count))]


class EndpointHealth:
    """How one endpoint fares, shared by all who use it. Safe for threads.

    Args:
        endpoint: which.
        clock: monotonic seconds.
        listener: told what becomes of it.
    """

    def __init__(
        self, endpoint: Endpoint, clock: Clock = time.monotonic, listener: Listener | None = None
    ) -> None:
        self.endpoint = endpoint
        self._breaker = Breaker(clock)
        self._latency = Latency()
        self._listener = listener
        self._lock = threading.Lock()
        self._requests = self._failures = self._hedges = 0
        self._last_error: str | None = None

    def ask(self, *, hedge: bool = False, force: bool = False) -> bool:
        """Return whether a request may be sent now, and count it.

        Args:
            hedge: it doubles one that another endpoint has.
            force: nobody else is left to ask, so only its own wish to be left alone counts.
        """
        with self._lock:
            allowed = (force and not self._breaker.barred_s()) or self._breaker.ask()
            self._requests += allowed
            self._hedges += allowed and hedge
            return allowed

    def answered(self, seconds: float) -> None:
        """Note an answer, and the seconds to its first byte."""
        with self._lock:
            self._latency.note(seconds)
            news = self._breaker.works()
        if news:
            self._tell("healthy", "")

    def failed(self, error: FirstreadError) -> None:
        """Note a failure. An error that is an answer (404, 401) does not make it rest."""
        with self._lock:
            self._failures += 1
            self._last_error = error.message
            if isinstance(error, TransportError):
                state, news = "rests", self._breaker.fails(error.retry_after)
            else:
                state, news = "healthy", self._breaker.works()
        if news:
            self._tell(state, error.message)

    def left(self) -> None:
        """Note that the caller gave a request up before it had an outcome."""
        with self._lock:
            self._breaker.leaves()

    def barred_s(self) -> float:
        """Return for how many seconds it has asked to be left alone."""
        with self._lock:
            return self._breaker.barred_s()

    def rests_until(self) -> float:
        """Return when its rest ends; 0 if it does not rest."""
        with self._lock:
            return self._breaker.rests_until

    def percentile(self, share: float) -> float | None:
        """Return a percentile of the seconds to the first byte, if enough is known."""
        with self._lock:
            return self._latency.percentile(share)

    def document(self) -> dict[str, Any]:
        """Return it as ``firstread status --json`` prints it."""
        with self._lock:
            return {
                "endpoint": self.endpoint.name,
                "registry": self.endpoint.namespace or self.endpoint.host,
                "state": self._breaker.state,
                "requests": self._requests,
                "failures": self._failures,
                "hedges": self._hedges,
                "first_byte_p95_s": self._latency.percentile(0.95),
                "last_error": self._last_error,
            }

    def _tell(self, state: str, why: str) -> None:
        if self._listener is not None:
            self._listener(state, self.endpoint, why)


class Declined:
    """Optional questions that nobody asks again for a while. Safe for threads.

    Their outcome says nothing about how an endpoint fares otherwise.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, whom: str, seconds: float, why: str = "") -> None:
        """Leave `whom` alone for so many seconds.

        Args:
            whom: name of who is asked.
            seconds: from now.
            why: there was no answer; ``""`` if "there is no such thing" was the answer.
        """
        with self._lock:
            self._until[whom] = (self._clock() + seconds, why)
            while len(self._until) > MAX_DECLINED:
                self._until.popitem(last=False)

    def reason(self, whom: str) -> str | None:
        """Return why to leave `whom` alone now, as noted; None if it may be asked."""
        with self._lock:
            until, why = self._until.get(whom, (0.0, ""))
        return why if self._clock() < until else None


class KnownEndpoints:
    """The endpoints that a process has met.

    Args:
        listener: told what becomes of them.
        clock: monotonic seconds.

    Attributes:
        declined: optional questions that they are not asked now.
    """

    def __init__(self, listener: Listener | None = None, clock: Clock = time.monotonic) -> None:
        self.declined = Declined(clock)
        self._listener, self._clock = listener, clock
        self._known: OrderedDict[tuple[str, str, str], EndpointHealth] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, endpoint: Endpoint) -> EndpointHealth:
        """Return what is known of an endpoint: the same for all who ask."""
        key = (endpoint.base, endpoint.path, endpoint.namespace)
        with self._lock:
            if key not in self._known:
                self._known[key] = EndpointHealth(endpoint, self._clock, self._listener)
                if len(self._known) > MAX_KNOWN:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]

    def documents(self) -> list[dict[str, Any]]:
        """Return all, as ``firstread status --json`` prints them."""
        with self._lock:
            known = list(self._known.values())
        return [health.document() for health in known]
