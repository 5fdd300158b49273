# SPDX-License-Identifier: Apache-2.0
"""Sectors in our own format: each a frame table and its frames, side by side in one blob.

Before the frame table is here nobody knows where a frame lies. So the first range begins with the
table and goes as far as an even compression would need, and a little more; later ones are exact.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from firstread.sectors.decode import SectorDecoder
from firstread.sectors.format import Geometry, SectorEntry
from firstread.sectors.source import Frame, Incoming, Source, Span, Wanted


def bare_decoder(entry: SectorEntry, geometry: Geometry) -> SectorDecoder:
    """Return a decoder that has no memory of its own: a window lends it some."""
    return SectorDecoder(entry, geometry, memoryview(b"\0"), bytearray(1))


class NativeSource(Source[SectorDecoder]):
    """Sectors of converted images in a repository."""

    def begin(self, sector: Wanted) -> SectorDecoder:
        return bare_decoder(sector.entry, sector.geometry)

    def covering(self, sector: Wanted, start: int, stop: int) -> range:
        size = sector.geometry.frame_size
        return range(start // size, -(-stop // size))

    def plan(self, sector: Wanted, frames: Iterable[int], known: SectorDecoder) -> list[Span]:
        spans: list[Span] = []
        for start, stop in known.extents(frames):
            at = sector.entry.offset + start
            if spans and spans[-1].stop == at:
                at = spans.pop().start
            spans.append(Span(sector.blob, at, sector.entry.offset + stop))
        return spans

    def decode(self, sector: Wanted, known: SectorDecoder, incoming: Incoming) -> Iterator[Frame]:
        window, stream = incoming.window, incoming.stream
        window.fit(sector.geometry, sector.entry.size, incoming.step)
        known.go_to(incoming.position - sector.entry.offset)
        while not known.done and incoming.left:
            filled = known.resume(memoryview(window.stored), window.frame)
            until = min(known.step(incoming.step), filled + incoming.left)
            try:
                begun = time.monotonic()
                count = stream.readinto(known.buffer[filled:until])
                incoming.received(count, until - filled, time.monotonic() - begun)
            except BaseException:
                known.rest(filled)
                raise
            for data in known.advance(until):
                offset = known.verified - len(data)
                yield Frame(offset // sector.geometry.frame_size, offset, data)
            known.rest(until)
