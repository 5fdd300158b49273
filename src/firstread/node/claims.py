# SPDX-License-Identifier: Apache-2.0
"""Who is right when two images give one sector different sizes.

The id of a sector is a hash over its size, the size of its frames and their digests. So at most one
of them is right, and a frame table whose hash is the id proves which. Owns the question which
claims of a new image contradict what is here, and the proof. Invariant: nothing is discarded, and
no mounted image is believed less, because a newcomer says so: it has to show it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from firstread.errors import ImageError, NodeError
from firstread.node.fetcher import Fetcher
from firstread.node.filling import Wanted
from firstread.node.images import NodeImage
from firstread.node.served import Served
from firstread.oci.repository import Repository
from firstread.sectors.check import is_whole
from firstread.sectors.format import FrameTable
from firstread.sectors.store import SectorStore

ATTEMPTS = 3  # to fetch a frame table that is right: what comes can be damaged on its way


@dataclass(frozen=True)
class Dispute:
    """A sector of which a new image says another size than others.

    Args:
        sector: as the new image has it.
        size: that the others say, in bytes.
        rivals: mounted images that do; none if it is the file in the store.
    """

    sector: Wanted
    size: int
    rivals: frozenset[Served]


class Claims:
    """What images say of sectors.

    Args:
        store: of the sector files.
        fetcher: knows what is mounted.
    """

    def __init__(self, store: SectorStore, fetcher: Fetcher) -> None:
        self._store, self._fetcher = store, fetcher
        self._since_ns = time.time_ns()

    def disputes(self, image: NodeImage) -> Iterator[Dispute]:
        """Yield the sectors about which an image and what is here disagree.

        Raises:
            NodeError: a file cannot be read.
        """
        for slot, entry in enumerate(image.block_image.index.sectors):
            known = self._fetcher.whole_size(entry.id)
            if known == entry.size:
                continue
            held = self._store.size(entry.id)
            if not known and held in (0, entry.size):
                continue
            sector = image.wanted(slot)
            others = list(self._fetcher.having(entry.id))
            sizes = {served: other.entry.size for served, other in others}
            rivals = frozenset(served for served, size in sizes.items() if size != entry.size)
            if rivals:
                yield Dispute(sector, max(sizes[served] for served in rivals), rivals)
            elif held > entry.size or (not others and held and self._is_whole(sector)):
                yield Dispute(sector, held, frozenset())

    def _is_whole(self, sector: Wanted) -> bool:
        """Return whether the file of a sector is whole, though it is shorter than is said.

        Reads it only if it was written before this fetcher began, which else knows what is whole.
        """
        entry = sector.entry
        if self._store.is_settled(entry.id) or self._fetcher.checks.is_trusted(entry.id):
            return True
        if self._store.written_ns(entry.id) >= self._since_ns:
            return False
        fd = self._store.open(entry.id)
        try:
            return is_whole(fd, entry.id, sector.geometry.frame_size)
        finally:
            os.close(fd)

    def prove(self, image: NodeImage, repository: Repository) -> set[bytes]:
        """Have an image show that it is right where others disagree; return those sectors.

        One request for each mounted image that disagrees, and for each file: an image that was
        wrong once is not believed any more where it contradicts one that was right.

        Raises:
            ImageError: it is not right.
            SourceError: that cannot be told now.
        """
        proven: set[bytes] = set()
        beaten: set[Served] = set()
        for dispute in self.disputes(image):
            if not dispute.rivals or not dispute.rivals <= beaten:
                _prove(dispute, repository)
                beaten |= dispute.rivals
            proven.add(dispute.sector.entry.id)
        return proven

    def settle(self, image: NodeImage, proven: set[bytes]) -> None:
        """Believe an image that is about to be mounted where it is `proven`, and others no more.

        Raises:
            NodeError: others disagree that were not there when it was proven.
        """
        disputes = list(self.disputes(image))
        if any(dispute.sector.entry.id not in proven for dispute in disputes):
            raise NodeError(
                "an image that disagrees with it about a sector was mounted meanwhile",
                hint="try again",
            )
        for dispute in disputes:
            for rival in dispute.rivals:
                self._fetcher.refute(rival, dispute.sector.entry.id)
            if not dispute.rivals:
                self._fetcher.cache.discard(dispute.sector.entry.id)  # it is no sector


def _prove(dispute: Dispute, repository: Repository) -> None:
    entry, geometry = dispute.sector.entry, dispute.sector.geometry
    length = geometry.table_size(entry.size)
    for _ in range(ATTEMPTS):
        try:
            with repository.open_blob(
                dispute.sector.blob, offset=entry.offset, length=length
            ) as stream:
                table = FrameTable.unpack(stream.readall(), geometry)
                table.check(entry, geometry)
                return
        except ImageError as exc:
            error = exc
    raise ImageError(
        f"the image says that the sector {entry.id.hex()} has {entry.size} bytes, but it has"
        f" {dispute.size}: {error.message}"
    ) from error
