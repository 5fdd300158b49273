# SPDX-License-Identifier: Apache-2.0
"""The bytes of a blob, from as many endpoints and connections as it takes.

Owns where the next byte is. Invariant: whatever breaks, the next byte given out is the next byte of
the blob.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import methodcaller

from firstread.errors import DigestError, SourceError, TransportError
from firstread.oci.blobstream import BlobStream
from firstread.oci.model import Descriptor
from firstread.oci.reference import Reference
from firstread.registry.api import RangeAnswer
from firstread.registry.attempts import Attempts, Question
from firstread.registry.candidate import Candidate


class ResumingReader:
    """Reads a range of a blob. A `firstread.oci.blobstream.Reader`.

    Args:
        attempts: finds who answers.
        candidates: who may be asked.
        blob: which.
        start: first byte.
        stop: the byte after the last.

    Attributes:
        candidate: who answered last.
    """

    def __init__(
        self,
        attempts: Attempts,
        candidates: Sequence[Candidate],
        blob: Descriptor,
        start: int,
        stop: int,
    ) -> None:
        self.candidate: Candidate | None = None
        self._attempts = attempts
        self._candidates = candidates
        self._blob = blob
        self._position = start
        self._stop = stop
        self._skip = (start, stop) == (0, blob.size)
        self._progress = False  # since something failed
        self._answer: RangeAnswer | None = None

    def open(self) -> RangeAnswer:
        """Ask for what is left. Few frames lead from here to the socket: see `Attempts.ask`."""
        ask = methodcaller("open_range", self._blob, self._position, self._stop, skip=self._skip)
        question: Question[RangeAnswer] = Question(
            self._blob.digest, ask, methodcaller("close"), hedge=True
        )
        self.candidate, answer = self._attempts.ask(question, self._candidates)
        self._answer = answer
        return answer

    def readinto(self, buffer: memoryview, /) -> int:
        attempt = breaks = 0  # rounds, and answers that broke off, without progress
        while self._position < self._stop:
            answer = self._answer or self.open()
            try:
                count = answer.readinto(buffer[: self._stop - self._position])
            except SourceError as exc:
                self.close()
                breaks += isinstance(exc, TransportError)
                if not self._can_go_on(exc) or breaks == len(self._attempts.candidates):
                    if not isinstance(exc, TransportError):
                        raise
                    breaks = 0
                    self._attempts.backoff.wait(attempt, exc, free=self._progress)
                    attempt += 1
                self._progress = False
            else:
                if not count:  # the answer was a part of the range
                    self.close()
                    continue
                self._position += count
                self._progress = True
                return count
        return 0

    def _can_go_on(self, error: SourceError) -> bool:
        """Note that an answer broke off; return whether another endpoint can go on at once."""
        if self.candidate is not None:
            self._attempts.failed(self.candidate, self._blob.digest, error)
        return any(other.health.rests_until() == 0.0 for other in self._others())

    def distrust(self) -> bool:
        """Note that the last bytes were wrong; return whether another endpoint can be asked."""
        if self.candidate is None:
            return False
        if not self.candidate.avoided(self._blob.digest):
            error = DigestError("it gave bytes that are not those of the digest")
            self._attempts.failed(self.candidate, self._blob.digest, error)
        return bool(self._others())

    def _others(self) -> list[Candidate]:
        return [other for other in self._candidates if not other.avoided(self._blob.digest)]

    def close(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()


class RemoteStream(BlobStream):
    """The bytes of a blob, from whatever endpoint gives them."""

    def __init__(
        self, blob: Descriptor, reader: ResumingReader, length: int, reference: Reference
    ) -> None:
        verify = length == blob.size
        super().__init__(blob, reader, length=length, verify=verify, image=str(reference))
        self._endpoints = reader

    @property
    def source(self) -> str:
        candidate = self._endpoints.candidate
        return candidate.endpoint.name if candidate is not None else ""

    def distrust(self) -> bool:
        return self._endpoints.distrust()

    def _verify(self) -> None:
        try:
            super()._verify()
        except DigestError:
            self.distrust()
            raise
