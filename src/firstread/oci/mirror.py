# SPDX-License-Identifier: Apache-2.0
"""An image repository that several endpoints serve: the registry itself and its mirrors.

Owns which endpoint a request goes to, and where it goes next when that one fails, also in the
middle of a blob. What an endpoint says is `registry`'s business, how it fares in general
`standing`'s; here is added what holds for this repository alone (`_Place`).

The order is that of ``hosts.toml``. An endpoint that rests is left out; one that lacks a blob,
refuses us or has given wrong bytes is *avoided* for a while. Only when all others have failed the
resting ones are asked nevertheless, and only when all are avoided none is: so one endpoint alone
behaves as if this module were not there.

Invariants: whatever breaks, the next byte given out is the next byte of the blob; an endpoint that
asked for peace (``Retry-After``) is not asked; only the registry itself may be written to, and not
through here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from firstread.errors import (
    AuthError,
    DigestError,
    FirstreadError,
    ImageError,
    NotFoundError,
    SourceError,
    TransportError,
    UsageError,
)
from firstread.oci.calls import Call, current, pause, within
from firstread.oci.faults import backoff
from firstread.oci.hedge import Race
from firstread.oci.hosts import PULL, REFERRERS, RESOLVE, Endpoint
from firstread.oci.model import Descriptor
from firstread.oci.options import AccessOptions
from firstread.oci.reference import DEFAULT_TAG, Reference, is_digest
from firstread.oci.registry import BlobReader, RegistryRepository
from firstread.oci.repository import BlobStream, ReadOnly, clamp, naming
from firstread.oci.standing import Budget, Standing, Standings

log = logging.getLogger("oci.mirror")

WRONG_S: Final = 600.0  # an endpoint that gave wrong bytes of a blob is avoided for it
LACKS_S: Final = 60.0  # one that does not have it
REFUSED_S: Final = 60.0  # one that refuses us, or that we refuse, for the whole repository
MAX_AVOIDED: Final = 1024  # blobs that are remembered of one endpoint
LATE: Final = 0.95  # percentile of first bytes after which a second endpoint may be asked
REFERRERS_S: Final = 9.0  # for all endpoints together
RETRY_SHARE: Final = 0.1  # retries that an ordinary request pays for
RETRY_MOST: Final = 10.0
HEDGE_MOST: Final = 10.0

T = TypeVar("T")


class _Place:
    """One endpoint, as this repository knows it."""

    def __init__(self, repository: RegistryRepository, standing: Standing) -> None:
        self.repository = repository
        self.standing = standing
        self.endpoint = standing.endpoint
        self._avoided: OrderedDict[str, float] = OrderedDict()  # what -> until; "": everything

    def avoid(self, what: str, seconds: float) -> None:
        """Do not ask it for `what` (a digest or a tag; ``""``: anything) if others can be asked."""
        self._avoided[what] = time.monotonic() + seconds
        while len(self._avoided) > MAX_AVOIDED:
            self._avoided.popitem(last=False)

    def avoided(self, what: str) -> bool:
        """Return whether it should not be asked for `what`."""
        now = time.monotonic()
        return any(self._avoided.get(key, 0.0) > now for key in (what, ""))

    def learn(self, what: str, error: FirstreadError) -> None:
        """Take note of a failure that is about this repository, not about the endpoint."""
        if isinstance(error, ImageError):
            self.avoid(what, WRONG_S)
        elif isinstance(error, NotFoundError):
            self.avoid(what, LACKS_S)
        elif not isinstance(error, TransportError):
            self.avoid("", REFUSED_S)


@dataclass(frozen=True)
class _Question(Generic[T]):
    """What is asked of the places.

    Args:
        what: digest or tag.
        ask: asks one of them.
        drop: gives an answer back that is not needed.
        hedge: asking two at a time is worth it.
    """

    what: str
    ask: Callable[[RegistryRepository], T]
    drop: Callable[[T], None] = lambda _: None
    hedge: bool = False


class MirroredRepository(ReadOnly):
    """One repository of a registry, read from any of its endpoints.

    Args:
        reference: host, repository and image.
        endpoints: in the order of asking; the last is the registry itself.
        options: how to reach them.
        standings: what is known of endpoints.

    Raises:
        UsageError: none may be asked; certificates cannot be read.
    """

    def __init__(
        self,
        reference: Reference,
        endpoints: Sequence[Endpoint],
        options: AccessOptions,
        standings: Standings,
    ) -> None:
        super().__init__(reference)
        once = replace(options, retries=0)  # the next attempt may better go to another endpoint
        self._options = options
        self._all = [
            _Place(
                RegistryRepository(reference, once, endpoint, declined=standings.declined),
                standings.of(endpoint),
            )
            for endpoint in endpoints
            if endpoint.capabilities & {PULL, RESOLVE, REFERRERS}
        ]
        self._server = endpoints[-1] if endpoints else None
        self._places = self._needed(PULL, "images")
        self._hedges = Budget(options.hedge_share, HEDGE_MOST)
        self._retries = Budget(RETRY_SHARE, RETRY_MOST, start=RETRY_MOST)
        self._closed = threading.Event()

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        wanted = reference or self.reference.digest or self.reference.tag or DEFAULT_TAG
        places = self._places if is_digest(wanted) else self._needed(RESOLVE, "tags")
        question = _Question(wanted, lambda repository: repository.get_manifest(wanted))
        with naming(self.reference):
            return self._ask(question, places)[1]

    def referrers(self, subject: str, artifact_type: str) -> list[Descriptor]:
        """As `Repository.referrers`; the first endpoint that has any is believed, as for a tag.

        That there are none is the word of the registry itself. All are asked within `REFERRERS_S`,
        and how they answer is not held against them.
        """
        places = self._able(REFERRERS) or self._able(RESOLVE)
        errors: list[tuple[_Place, FirstreadError]] = []
        with naming(self.reference), within(REFERRERS_S):
            for place in sorted(places, key=lambda place: place.standing.rests_until() > 0.0):
                if place.standing.barred_s():
                    errors.append((place, _barred(place)))
                    continue
                try:  # a mirror may know neither the API nor the tag
                    if found := place.repository.referrers(subject, artifact_type):
                        return found
                except (SourceError, ImageError) as exc:
                    errors.append((place, exc))
            failed = {place.endpoint for place, _ in errors}
            if len(errors) == len(places) > 0 or self._server in failed:
                raise self._worst(errors)
        return []  # also if the configuration says that nobody may be asked

    def has_blob(self, blob: Descriptor) -> bool:
        def ask(repository: RegistryRepository) -> bool:
            if not repository.has_blob(blob):
                raise NotFoundError(f"there is no blob {blob.digest}")
            return True

        with naming(self.reference):
            try:
                return self._ask(_Question(blob.digest, ask), self._places)[1]
            except NotFoundError:
                return False

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        with naming(self.reference):
            count = clamp(blob, offset, length)
            return MirrorStream(self, blob, offset, count)

    def read_blob(self, blob: Descriptor, limit: int) -> bytes:
        for _ in self._places[1:]:
            try:
                return super().read_blob(blob, limit)
            except DigestError:
                if not self._others(blob.digest):
                    raise
        return super().read_blob(blob, limit)

    def endpoints(self) -> list[tuple[Endpoint, RegistryRepository]]:
        """Return each endpoint that may be asked, in order, and this repository there."""
        return [(place.endpoint, place.repository) for place in self._all]

    def close(self) -> None:
        self._closed.set()
        for place in self._all:
            place.repository.close()

    # -- what a stream needs -------------------------------------------------------------------

    def open_reader(
        self, blob: Descriptor, start: int, stop: int, *, skip: bool
    ) -> tuple[_Place, BlobReader]:
        """Ask for a range of a blob; return who answers, and the answer. As `open_range`."""

        def ask(repository: RegistryRepository) -> BlobReader:
            return repository.reader(blob, start, stop, skip=skip)

        question = _Question(blob.digest, ask, lambda reader: reader.close(), hedge=True)
        return self._ask(question, self._places)

    def broke(self, place: _Place, blob: Descriptor, error: SourceError) -> bool:
        """Note that an answer broke off; return whether another endpoint can go on at once."""
        self._failed(place, blob.digest, error)
        return any(other.standing.rests_until() == 0.0 for other in self._others(blob.digest))

    def distrust(self, place: _Place, blob: Descriptor) -> bool:
        """Note that an endpoint gave wrong bytes; return whether another one can be asked."""
        error = DigestError("it gave bytes that are not those of the digest")
        if not place.avoided(blob.digest):
            self._failed(place, blob.digest, error)
        return bool(self._others(blob.digest))

    def wait(self, attempt: int, error: TransportError, *, free: bool = False) -> None:
        """Wait before the next attempt, or raise `error`; see `Transport.wait`.

        Args:
            attempt: failed ones without progress before this, from 0.
            error: why there is to be another.
            free: it takes nothing of the budget for retries.
        """
        options = self._options
        delay = backoff(attempt, options.retry_base, options.retry_limit, error.retry_after)
        if attempt >= options.retries or delay is None or not (free or self._retries.take()):
            raise error
        if pause(delay, self._closed):
            raise error

    def _others(self, what: str) -> list[_Place]:
        return [place for place in self._places if not place.avoided(what)]

    # -- asking --------------------------------------------------------------------------------

    def _able(self, capability: str) -> list[_Place]:
        return [place for place in self._all if capability in place.endpoint.capabilities]

    def _needed(self, capability: str, what: str) -> list[_Place]:
        """Return who may be asked for `what`. Raises UsageError if nobody may."""
        places = self._able(capability)
        if not places:
            raise UsageError(
                f"no endpoint of {self.reference.host} may be asked for {what}",
                hint=f'"{capability}" is missing in the capabilities of its hosts.toml',
            )
        return places

    def _ask(self, question: _Question[T], places: Sequence[_Place]) -> tuple[_Place, T]:
        """Ask until somebody answers; return who, and the answer."""
        attempt = 0
        self._retries.earn()
        self._hedges.earn()
        while True:
            try:
                return self._round(question, places)
            except TransportError as exc:
                self.wait(attempt, exc)
            attempt += 1

    def _round(self, question: _Question[T], places: Sequence[_Place]) -> tuple[_Place, T]:
        """Ask each place once, those that work before those that rest."""
        what = question.what
        errors: list[tuple[_Place, FirstreadError]] = []
        wanted = [place for place in places if not place.avoided(what)] or list(places)
        resting: list[_Place] = []
        for at, place in enumerate(wanted):
            if any(place is failed for failed, _ in errors):
                continue  # it was asked as the second of two
            if not place.standing.ask():
                resting.append(place)
                continue
            others = wanted[at + 1 :] if question.hedge and not errors else []
            answer = self._first(question, place, others, errors)
            if answer is not None:
                return answer
        for place in sorted(resting, key=lambda place: place.standing.rests_until()):
            if not place.standing.ask(force=True):
                errors.append((place, _barred(place)))
            elif (answer := self._first(question, place, [], errors)) is not None:
                return answer
        raise self._worst(errors)

    def _first(
        self,
        question: _Question[T],
        place: _Place,
        others: Sequence[_Place],
        errors: list[tuple[_Place, FirstreadError]],
    ) -> tuple[_Place, T] | None:
        """Ask one place, or one more if it is late; return who answers, and the answer.

        Args:
            question: is asked.
            place: is asked first, whatever becomes of it.
            others: may be asked as well.
            errors: gets those who failed.
        """
        late_s = place.standing.percentile(LATE) if others else None
        if late_s is None:
            try:
                return place, self._try(place, question)
            except (SourceError, ImageError) as exc:
                errors.append((place, exc))
                return None

        def second() -> _Place | None:
            able = [other for other in others if other.standing.rests_until() == 0.0]
            if able and self._hedges.take() and able[0].standing.ask(hedge=True):
                log.info("%s is late: asking %s", place.endpoint.name, able[0].endpoint.name)
                return able[0]
            return None

        race: Race[_Place, T] = Race(lambda at, call: self._try(at, question, call), question.drop)
        answer = race.run(place, late_s, second)
        errors += race.failed
        return answer

    def _try(self, place: _Place, question: _Question[T], call: Call | None = None) -> T:
        """Ask one place, and note how it fares."""
        begun = time.monotonic()
        try:
            answer = question.ask(place.repository)
        except (SourceError, ImageError) as exc:
            call = call or current()
            if call is not None and (call.cancelled or call.is_late):
                place.standing.left()
            else:
                self._failed(place, question.what, exc)
            raise
        except BaseException:
            place.standing.left()
            raise
        place.standing.answered(time.monotonic() - begun)
        return answer

    def _failed(self, place: _Place, what: str, error: FirstreadError) -> None:
        place.learn(what, error)
        place.standing.failed(error)
        if len(self._all) > 1:
            level = logging.INFO if isinstance(error, NotFoundError) else logging.WARNING
            fields = {"image": str(self.reference), "endpoint": place.endpoint.name}
            log.log(level, "an endpoint failed: %s", error.message, extra={"fields": fields})

    def _worst(self, errors: Sequence[tuple[_Place, FirstreadError]]) -> FirstreadError:
        """Return the error that says most about what to do."""
        found = [(place.endpoint, error) for place, error in errors]
        for endpoint, error in found:
            if endpoint == self._server and isinstance(error, NotFoundError):
                return error  # it must know
        passing = [error for _, error in found if isinstance(error, TransportError)]
        if passing:
            return min(passing, key=lambda error: error.retry_after)
        for _, error in found:
            if isinstance(error, AuthError):
                return error
        return next((e for endpoint, e in found if endpoint == self._server), found[-1][1])


def _barred(place: _Place) -> TransportError:
    error = TransportError(f"registry {place.endpoint.name} asks to be left alone for a while")
    error.retry_after = place.standing.barred_s()
    return error


class _MirrorReader:
    """Reads a range of a blob, from as many endpoints as it takes."""

    def __init__(self, owner: MirroredRepository, blob: Descriptor, start: int, stop: int) -> None:
        self._owner = owner
        self._blob = blob
        self._position = start
        self._stop = stop
        self._skip = (start, stop) == (0, blob.size)
        self._progress = False  # since something failed
        self._answer: BlobReader | None = None
        self.place: _Place | None = None
        if start < stop:
            self._open()

    def readinto(self, buffer: memoryview, /) -> int:
        attempt = breaks = 0  # rounds, and answers that broke off, without progress
        while self._position < self._stop:
            try:
                reader = self._answer or self._open()
                count = reader.readinto(buffer[: self._stop - self._position])
            except SourceError as exc:
                if self._answer is None or self.place is None:
                    raise  # nobody was found who answers
                self.close()
                can_go_on = self._owner.broke(self.place, self._blob, exc)
                breaks += isinstance(exc, TransportError)
                if not can_go_on or breaks == len(self._owner.endpoints()):
                    if not isinstance(exc, TransportError):
                        raise
                    breaks = 0
                    self._owner.wait(attempt, exc, free=self._progress)
                    attempt += 1
                self._progress = False
            else:
                self._position += count
                self._progress = True
                return count
        return 0

    def close(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def _open(self) -> BlobReader:
        self.place, self._answer = self._owner.open_reader(
            self._blob, self._position, self._stop, skip=self._skip
        )
        return self._answer


class MirrorStream(BlobStream):
    """The bytes of a blob, from whatever endpoint gives them."""

    def __init__(
        self, owner: MirroredRepository, blob: Descriptor, offset: int, length: int
    ) -> None:
        self._owner = owner
        self._from = _MirrorReader(owner, blob, offset, offset + length)
        super().__init__(
            blob,
            self._from,
            length=length,
            verify=length == blob.size,
            image=str(owner.reference),
        )

    @property
    def source(self) -> str:
        return self._from.place.endpoint.name if self._from.place is not None else ""

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        try:
            return super().readinto(buffer)
        except DigestError:
            self.distrust()
            raise

    def distrust(self) -> bool:
        place = self._from.place
        return place is not None and self._owner.distrust(place, self.blob)
