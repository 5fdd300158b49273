# SPDX-License-Identifier: Apache-2.0
"""One ranged request becomes verified frames in sector files.

Owns the source of a lane, opened when the first sector is wanted, and measures it. Knows neither
 what is fetched next nor what follows a failure: `firstread.fetch.lane` does. Reads are let
go as soon as the verified prefix of their sector covers them.

Invariant: a sector file grows only from where it ends. Its size is looked at anew whenever a
request begins, through the descriptor that is written to, so what happened to the file meanwhile
can cost a fetch, but never leaves a hole.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from io import FileIO
from typing import Any

from firstread.errors import FirstreadError, ImageError
from firstread.fetch.backlog import Backlog
from firstread.fetch.pace import Pace
from firstread.fetch.queue import Cause, Filling, request_end, slice_seconds
from firstread.fetch.rate import Rate
from firstread.fetch.sides import Counts, Files, Outcome
from firstread.fetch.streaming import Stream
from firstread.fetch.target import Target
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository
from firstread.sectors.native import NativeSource
from firstread.sectors.source import Decoding, Incoming, Measure, Source, Span, Wanted, Window
from firstread.units import MiB

log = logging.getLogger("lane")

STEP_BYTES = 1 * MiB  # of frames that are taken at once ahead of a sequential reader
STEP_S = 0.005  # in which the link has to bring them: a read may wait for the first


class Filler:
    """Fills sector files from one image repository.

    Args:
        name: of the repository, for people.
        open_repository: opens it, when the first sector is wanted.
        files: where the content goes.
        outcome: of fetches.
        counts: of what happens.
        backlog: of the lane.
        rate: of the answers, to be measured.
        changed: the lane's lock.
        calm: of the same lock; notified when a read has its bytes.

    Attributes:
        answered: who answered last, if the repository knows several.
    """

    def __init__(
        self,
        name: str,
        open_repository: Callable[[], Repository],
        files: Files,
        outcome: Outcome,
        counts: Counts,
        backlog: Backlog,
        rate: Rate,
        changed: threading.Condition,
        calm: threading.Condition,
    ) -> None:
        self.answered = self._name = name
        self._rate = rate
        self._open_repository = open_repository
        self._source: Source[Any] | None = None
        self._opening = threading.Lock()
        self._files, self._outcome, self._counts = files, outcome, counts
        self._backlog, self._changed, self._calm = backlog, changed, calm

    def prepare(self, blobs: Iterable[Descriptor]) -> None:
        """Open all by its name now that fetching from these blobs will need.

        Later the read that waits may be one of a process that lets no file be opened meanwhile.
        """
        try:
            self._opened().prepare(blobs)
        except FirstreadError as exc:
            log.info("%s is not here now: %s", self._name, exc)  # its reads will wait for it

    def close(self) -> None:
        """Close the repository, if it was opened."""
        with self._opening:
            if self._source is not None:
                self._source.close()

    def _opened(self) -> Source[Any]:
        with self._opening:
            if self._source is None:
                self._source = NativeSource(self._open_repository())
            return self._source

    def fetch(self, batch: list[Filling], window: Window) -> None:
        """Fetch of `batch`, whose sectors lie behind each other, what one request should cover.

        Args:
            batch: at least one sector, taken from the backlog.
            window: memory of this thread.

        Raises:
            FirstreadError: the source or this machine fails; what has come so far is kept.
        """
        first, source = batch[0], self._opened()
        target = self._begin(source, first)
        with target:
            with self._changed:
                span = self._span(source, batch, target.decoder)
                step = self._step(first)
            self._counts.requested(first, span.length)
            with self._open(source, span, window, self._rate.note) as incoming:
                incoming.step = step
                try:
                    self._fill(source, first, target, incoming)
                    for filling in batch[1:]:
                        if incoming.left:
                            target = self._begin(source, filling)
                            self._fill(source, filling, target, incoming)
                except ImageError:
                    incoming.stream.distrust()  # the next attempt should go elsewhere
                    raise

    def stream(self, stream: Stream, window: Window, pace: Pace) -> bool:
        """Fetch sectors that lie behind each other with one long request; return if all has come.

        Args:
            stream: taken from the backlog; the sectors that it gets to are added.
            window: memory of this thread.
            pace: at which it takes what comes.

        Raises:
            FirstreadError: as `fetch`; of the sector that the stream is at.
        """
        source = self._opened()
        target = self._begin(source, stream.filling)
        with target:
            with self._changed:
                rest = self._rest_of(source, stream.filling.sector, target.decoder)
                span = self._backlog.begin_stream(stream, rest)
                self._changed.notify_all()  # it may have left reads to others
            self._counts.requested(stream.filling, span.length)
            with self._open(source, span, window, pace.note) as incoming:
                try:
                    while self._fill(source, stream.filling, target, incoming, pace.go_on):
                        following = pace.next() if incoming.left else None
                        if following is None:
                            break
                        target = self._begin(source, following)
                    return not incoming.left
                except ImageError:
                    incoming.stream.distrust()
                    raise

    def _open(self, source: Source[Any], span: Span, window: Window, measure: Measure) -> Incoming:
        begun = time.monotonic()
        incoming = source.open(span, window, measure)
        if not incoming.stream.at_hand:
            self._rate.note_latency(time.monotonic() - begun)
        return incoming

    def _span(self, source: Source[Any], batch: list[Filling], known: Decoding) -> Span:
        """Return what one request should ask for; with the lock held."""
        first, sector = batch[0], batch[0].sector
        wanted = source.covering(sector, known.verified, first.wanted_end)
        rest = self._rest_of(source, sector, known)
        needed = source.plan(sector, wanted, known)[0].stop if wanted else rest.start
        budget = self._rate.bytes_per_s * slice_seconds(batch)
        return rest._replace(stop=request_end(batch, rest, min(needed, rest.stop), budget))

    def _step(self, first: Filling) -> int:
        """Return how many bytes of frames to take at once; see `Incoming.step`."""
        is_ahead = first.cause is Cause.PREFETCH or first.in_order
        return STEP_BYTES if is_ahead and self._rate.bytes_per_s * STEP_S >= STEP_BYTES else 0

    def _rest_of(self, source: Source[Any], sector: Wanted, known: Decoding) -> Span:
        """Return the range that gives what is missing of a sector, or as much as lies in one."""
        left = source.covering(sector, known.verified, sector.entry.size)
        nothing = sector.span._replace(start=sector.span.stop)
        return next(iter(source.plan(sector, left, known)), nothing)

    def _begin(self, source: Source[Any], filling: Filling) -> Target:
        """Open the file of a sector, and see to it that its decoder goes on where the file ends."""
        sector = filling.sector
        room = self._files.admit(sector)
        try:
            with self._changed:
                beside = filling.reads[0].fd if filling.reads else None
                fd = self._files.open(sector, beside) if beside is not None else -1
            file = FileIO(fd if fd >= 0 else self._files.open(sector, None), "r+")
            with self._changed:
                filling.filled = os.fstat(file.fileno()).st_size
                decoder = filling.decoder
                if decoder is None or decoder.verified > filling.filled:
                    decoder = filling.decoder = source.begin(sector)
        except BaseException:
            self._files.leave(sector, room)
            raise
        return Target(file, decoder, lambda: self._files.leave(sector, room))

    def _fill(
        self,
        source: Source[Any],
        filling: Filling,
        target: Target,
        incoming: Incoming,
        go_on: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Write one sector into its file, as far as the request goes; return whether it is whole.

        Args:
            source: of the bytes.
            filling: which.
            target: its file.
            incoming: the bytes.
            go_on: asked before each further frame; on False the sector rests.
        """
        file, decoder = target.file, target.decoder
        filling.asks += 1
        before = incoming.left
        with target:
            try:
                for frame in source.decode(filling.sector, decoder, incoming):
                    if decoder.verified > filling.filled:
                        self._files.write(filling.sector, file.fileno(), frame.offset, frame.data)
                    self._progress(filling, decoder.verified)
                    if not (decoder.done or go_on()):
                        break
            except ImageError as exc:
                self._outcome.corrupt(filling, *decoder.suspect, exc, self._name)
                raise
            finally:
                filling.source = self.answered = incoming.source or self._name
                self._counts.received(filling, before - incoming.left)
            if decoder.done:
                self._finish(filling, file.fileno())
        return decoder.done

    def _progress(self, filling: Filling, verified: int) -> None:
        """Let go the reads that the sector's first `verified` bytes cover."""
        with self._changed:
            done = self._backlog.progress(filling, verified, time.monotonic())
            if done:
                self._calm.notify_all()
        if done:
            self._outcome.allow(done)

    def _finish(self, filling: Filling, fd: int) -> None:
        self._files.commit(filling.sector, fd)
        self._outcome.completed(filling)
        with self._changed:
            filling.active = False
            done = self._backlog.drop(filling)
        self._outcome.allow(done)
