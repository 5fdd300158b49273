# SPDX-License-Identifier: Apache-2.0
"""The order in which endpoints are asked, and the pauses: the only layer that tries again.

Owns the order of endpoints, failover, hedging and the rounds of retries; `resume` goes on in the
middle of a blob with it, and `backoff` has the waits. Below here everything is one attempt
(`api`, `transport`); above here only a lane tries a whole sector again, for as long as reads wait
for it.

The order is that of ``hosts.toml``. An endpoint that rests is left out; one that lacks a blob,
refuses us or has given wrong bytes is *avoided* for a while. When all others have failed, the
resting ones are asked nevertheless; only when all are avoided, nobody is avoided. So one endpoint
alone is asked whatever it did before.

Invariant: an endpoint that asked for peace (``Retry-After``) is not asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from firstread.errors import (
    AuthError,
    FirstreadError,
    ImageError,
    NotFoundError,
    SourceError,
    TransportError,
    UsageError,
)
from firstread.oci.reference import Reference
from firstread.registry.api import RepositoryApi
from firstread.registry.backoff import Backoff, Budget
from firstread.registry.calls import Call, current
from firstread.registry.candidate import Candidate
from firstread.registry.hedge import Race
from firstread.registry.hosts import Endpoint

log = logging.getLogger("oci.mirror")

LATE: Final = 0.95  # percentile of first bytes after which a second endpoint may be asked

T = TypeVar("T")
Failures = list[tuple[Candidate, FirstreadError]]


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A question to endpoints.

    Args:
        what: digest or tag.
        ask: asks one endpoint, once.
        drop: gives an answer back that is not needed.
        hedge: two endpoints may be asked at a time.
    """

    what: str
    ask: Callable[[RepositoryApi], T]
    drop: Callable[[T], None] = lambda _: None
    hedge: bool = False


class Attempts:
    """Asks the endpoints of one repository until one answers. Safe for threads.

    Args:
        reference: the repository, for messages.
        candidates: in the order of asking.
        server: the registry itself, which must know what there is not.
        backoff: when to try again.
        hedges: pays for second requests.
    """

    def __init__(
        self,
        reference: Reference,
        candidates: Sequence[Candidate],
        server: Endpoint,
        backoff: Backoff,
        hedges: Budget,
    ) -> None:
        self.candidates = candidates
        self.server = server
        self.backoff = backoff
        self._reference = reference
        self._hedges = hedges

    def able(self, capability: str, what: str = "") -> list[Candidate]:
        """Return who may be asked.

        Args:
            capability: of ``hosts.toml``.
            what: is asked for; ``""`` if nobody need have it.

        Raises:
            UsageError: nobody may be asked for `what`.
        """
        able = [c for c in self.candidates if capability in c.endpoint.capabilities]
        if not able and what:
            raise UsageError(
                f"no endpoint of {self._reference.host} may be asked for {what}",
                hint=f'"{capability}" is missing in the capabilities of its hosts.toml',
            )
        return able

    def ask(self, question: Question[T], candidates: Sequence[Candidate]) -> tuple[Candidate, T]:
        """Ask until somebody answers; return who, and the answer."""
        attempt = 0
        self.backoff.earn()
        self._hedges.earn()
        while True:
            failures: Failures = []
            for candidate, others in _turns(question, candidates, failures):
                late_s = candidate.health.percentile(LATE) if others else None
                if late_s is not None:
                    answer = self._race(question, candidate, others, late_s, failures)
                    if answer is not None:
                        return answer
                    continue
                try:
                    with self._noting(candidate, question.what, current()):
                        return candidate, question.ask(candidate.api)
                except (SourceError, ImageError) as exc:
                    failures.append((candidate, exc))
            error = self.worst(failures)
            if not isinstance(error, TransportError):
                raise error
            self.backoff.wait(attempt, error)
            attempt += 1

    def _race(
        self,
        question: Question[T],
        first: Candidate,
        others: Sequence[Candidate],
        late_s: float,
        failures: Failures,
    ) -> tuple[Candidate, T] | None:
        """Ask one endpoint, and one more if it is late; return the first answer.

        Args:
            question: is asked.
            first: is asked at once.
            others: may be asked as well.
            late_s: seconds after which the first is late.
            failures: gets those who failed.
        """

        def ask(candidate: Candidate, call: Call) -> T:
            with self._noting(candidate, question.what, call):
                return question.ask(candidate.api)

        def second() -> Candidate | None:
            able = [other for other in others if other.health.rests_until() == 0.0]
            if able and self._hedges.take() and able[0].health.ask(hedge=True):
                log.info("%s is late: asking %s", first.endpoint.name, able[0].endpoint.name)
                return able[0]
            return None

        race: Race[Candidate, T] = Race(ask, question.drop)
        answer = race.run(first, late_s, second)
        failures += race.failed
        return answer

    @contextmanager
    def _noting(self, candidate: Candidate, what: str, call: Call | None) -> Iterator[None]:
        """Note how an endpoint fares with the request of the block."""
        begun = time.monotonic()
        try:
            yield
        except (SourceError, ImageError) as exc:
            if call is not None and (call.cancelled or call.is_late):
                candidate.health.left()
            else:
                self.failed(candidate, what, exc)
            raise
        except BaseException:
            candidate.health.left()
            raise
        candidate.health.answered(time.monotonic() - begun)

    def failed(self, candidate: Candidate, what: str, error: FirstreadError) -> None:
        """Note that an endpoint has failed."""
        candidate.failed(what, error)
        if len(self.candidates) > 1:
            level = logging.INFO if isinstance(error, NotFoundError) else logging.WARNING
            fields = {"image": str(self._reference), "endpoint": candidate.endpoint.name}
            log.log(level, "an endpoint failed: %s", error.message, extra={"fields": fields})

    def worst(self, failures: Failures) -> FirstreadError:
        """Return the error that says most about what to do."""
        found = [(candidate.endpoint, error) for candidate, error in failures]
        for endpoint, error in found:
            if endpoint == self.server and isinstance(error, NotFoundError):
                return error  # it must know
        passing = [error for _, error in found if isinstance(error, TransportError)]
        if passing:
            return min(passing, key=lambda error: error.retry_after)
        for _, error in found:
            if isinstance(error, AuthError):
                return error
        return next((e for endpoint, e in found if endpoint == self.server), found[-1][1])

    def close(self) -> None:
        """End the waits, and close the connections."""
        self.backoff.close()
        for candidate in self.candidates:
            candidate.api.close()


def _turns(
    question: Question[T], candidates: Sequence[Candidate], failures: Failures
) -> Iterator[tuple[Candidate, Sequence[Candidate]]]:
    """Yield each endpoint once, those that work first, and who may be asked beside it.

    Args:
        question: is asked.
        candidates: who may be asked, in order.
        failures: who has failed so far; gets those that must not be asked.
    """
    what = question.what
    wanted = [c for c in candidates if not c.avoided(what)] or list(candidates)
    resting: list[Candidate] = []
    for at, candidate in enumerate(wanted):
        if any(candidate is failed for failed, _ in failures):
            continue  # it was asked as the second of two
        if candidate.health.ask():
            yield candidate, wanted[at + 1 :] if question.hedge and not failures else []
        else:
            resting.append(candidate)
    for candidate in sorted(resting, key=lambda c: c.health.rests_until()):
        if candidate.health.ask(force=True):
            yield candidate, []
        else:
            failures.append((candidate, candidate.barred()))
