# SPDX-License-Identifier: Apache-2.0
"""What the fetcher has seen of a start: the reads of an image that had to ask for their data.

Owns the record of one image and its bounds. Maps nothing to files, and writes nothing:
`firstread.cli.trace` does, and `firstread.fetch.history` reports how long they waited. Invariant: a
record takes `MOST_READS` rows of `ROW_BYTES`, and noting a read takes no lock.

A record is coarser than what `firstread.run.tracer` sees. It lacks reads of present sectors, and
those that the supervisor answers itself since the file covers them by now (ADR 83).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from firstread.documents import Digest, Document, Seconds
from firstread.traces.sectorreads import ROW_BYTES, SectorRead, pack_read, unpack_waits

MOST_READS = 65_536
LAST = 8  # waits that a status shows
MOST_S = 600.0  # after the mount
_END = 1 << 32  # root can read a sector file anywhere; a row holds no more


class SeenReads(Document):
    """What a mount has read of data that was not on the node.

    digest: of the image's manifest
    age_s: since the record began
    quiet_s: since the last read in it
    since_mount: it began with the mount, not with a later fetcher
    cold: sectors of the image were absent at that time
    ended: it takes no more reads
    read_ahead_kib: of the mount, now; 0 if unknown
    reads: rows of five little-endian 32-bit numbers: microseconds since the record began, device
        slot, offset, bytes, microseconds that it waited; in order of their answers
    """

    digest: Digest
    age_s: Seconds
    quiet_s: Seconds
    since_mount: bool
    cold: bool
    ended: bool
    read_ahead_kib: int
    reads: bytes


class TraceLog:
    """The record of one image.

    Args:
        now: monotonic seconds.

    Attributes:
        since_mount: see `SeenReads`.
        cold: likewise.
        collected: a node that keeps traces has dealt with it.
        lost: reads that came after it had ended.
        last: seconds that the last reads waited, the newest last, whether or not it has ended.
    """

    def __init__(self, now: float) -> None:
        self._begun = self._last = now
        self._rows = bytearray()
        self.since_mount = self.cold = self.collected = False
        self.lost = 0
        self.last: deque[float] = deque(maxlen=LAST)

    def begin(self, now: float, *, cold: bool) -> None:
        """Begin anew with the first mount; later ones change nothing."""
        if not self.since_mount:
            self._begun = self._last = now
            self._rows = bytearray()
            self.since_mount, self.cold = True, cold

    def note(self, came: float, slot: int, offset: int, length: int, seconds: float = 0.0) -> None:
        """Note a read, unless the record has ended, or the read is of no sector's size.

        Args:
            came: when, in monotonic seconds.
            slot: device slot of the sector.
            offset: first byte in the sector.
            length: bytes.
            seconds: that it waited.
        """
        self.last.append(seconds)
        if self.has_ended(came):
            self.lost += 1
        elif offset + length < _END:
            self._last = max(self._last, came)
            time_us = max(0, round((came - self._begun) * 1e6))
            read = SectorRead(time_us, slot, offset, length)
            self._rows.extend(pack_read(read, round(seconds * 1e6)))  # begin() may come now

    def has_ended(self, now: float) -> bool:
        """Return whether it takes no more reads."""
        return len(self._rows) >= MOST_READS * ROW_BYTES or now - self._begun >= MOST_S

    def reads(self) -> Iterator[tuple[float, float, SectorRead]]:
        """Yield when each read came, in monotonic seconds, how long it waited, and the read."""
        for read, waited_us in unpack_waits(bytes(self._rows)):
            yield self._begun + read.time_us / 1e6, waited_us / 1e6, read

    def __len__(self) -> int:
        return len(self._rows) // ROW_BYTES

    def quiet_s(self, now: float) -> float:
        """Return the seconds since the last read, or since the beginning."""
        return now - self._last

    def document(self, digest: str, read_ahead_kib: int) -> SeenReads:
        """Return the record, as it is now."""
        now = time.monotonic()
        return SeenReads(
            digest=digest,
            age_s=now - self._begun,
            quiet_s=self.quiet_s(now),
            since_mount=self.since_mount,
            cold=self.cold,
            ended=self.has_ended(now),
            read_ahead_kib=read_ahead_kib,
            reads=bytes(self._rows),
        )
