# SPDX-License-Identifier: Apache-2.0
"""Which image is right when two give one sector different sizes.

The id of a sector is a hash over its size, the size of its frames and their digests. So at most one
size is right, and a frame table whose hash is the id proves which. Owns the search for conflicts
between a new image and what is here, and the proof. Invariant: a mere statement of a new image
discards nothing and discredits no mounted image; the new image has to prove it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from firstread.cache.nodeimage import NodeImage
from firstread.errors import ImageError
from firstread.fetch.fetcher import Fetcher
from firstread.fetch.served import Served
from firstread.oci.repository import Repository
from firstread.sectors.check import is_whole
from firstread.sectors.format import FrameTable
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted

ATTEMPTS = 3  # to fetch an intact frame table: bytes can be damaged in transit


@dataclass(frozen=True)
class Conflict:
    """A sector that a new image gives another size than others do.

    Args:
        sector: as the new image has it.
        size: that the others give it, in bytes.
        rivals: mounted images that do; none if it is the file in the store.
    """

    sector: Wanted
    size: int
    rivals: frozenset[Served]


class UnprovenError(Exception):
    """A new image is in conflict with what is here, and has not proved that it is right.

    Args:
        conflicts: all of them.
    """

    def __init__(self, conflicts: list[Conflict]) -> None:
        self.conflicts = conflicts


class SizeConflicts:
    """Finds and resolves conflicts between a new image and what is here.

    Args:
        store: of the sector files.
        fetcher: knows what is mounted.
    """

    def __init__(self, store: SectorStore, fetcher: Fetcher) -> None:
        self._store, self._fetcher, self._presence = store, fetcher, fetcher.presence
        self._since_ns = time.time_ns()

    def find(self, image: NodeImage) -> Iterator[Conflict]:
        """Yield the conflicts of an image.

        Raises:
            NodeError: a file cannot be read.
        """
        for slot, entry in enumerate(image.block_image.index.sectors):
            known, held = self._presence.members.whole_size(entry.id), self._presence.size(entry.id)
            if known == entry.size or (not known and held in (0, entry.size)):
                continue
            conflict = self._conflict(image.wanted(slot), held)
            if conflict is not None:
                yield conflict

    def _conflict(self, sector: Wanted, held: int) -> Conflict | None:
        entry = sector.entry
        having = self._fetcher.providers.having(entry.id)
        others = {served: other.entry.size for served, other in having}
        rivals = frozenset(served for served, size in others.items() if size != entry.size)
        if rivals:
            return Conflict(sector, max(others[served] for served in rivals), rivals)
        if held > entry.size or (not others and held and self._is_whole(sector)):
            return Conflict(sector, held, frozenset())
        return None

    def _is_whole(self, sector: Wanted) -> bool:
        """Return whether a file is a whole sector, though it is shorter than the image says.

        Reads only a file that was written before this fetcher began: it knows about the others.
        """
        entry = sector.entry
        written_ns = self._store.written_ns(entry.id)
        if self._store.is_flushed(entry.id) or self._presence.is_checked(entry.id, written_ns):
            return True
        if written_ns >= self._since_ns:
            return False
        fd = self._store.open(entry.id)
        try:
            return is_whole(fd, entry.id, sector.geometry.frame_size)
        finally:
            os.close(fd)

    def resolve(self, image: NodeImage, proven: set[bytes]) -> None:
        """Believe an image that is about to be mounted instead of those that contradict it.

        Args:
            image: which.
            proven: sectors of which it has proved the size.

        Raises:
            UnprovenError: it contradicts others about more sectors; nothing has changed.
        """
        conflicts = list(self.find(image))
        if any(conflict.sector.entry.id not in proven for conflict in conflicts):
            raise UnprovenError(conflicts)
        for conflict in conflicts:
            for rival in conflict.rivals:
                self._fetcher.providers.refute(rival, conflict.sector.entry.id)
        wrong = [conflict.sector.entry.id for conflict in conflicts if not conflict.rivals]
        self._fetcher.cache.disposal.discard(wrong)  # these files are not the sectors


def prove(conflicts: Iterable[Conflict], repository: Repository) -> set[bytes]:
    """Prove that an image is right in all of these conflicts; return the sectors.

    One request for each mounted rival, and for each file: once an image was wrong about a sector,
    no other sector needs a proof against it.

    Raises:
        ImageError: the image is wrong.
        SourceError: there is no telling now.
    """
    proven: set[bytes] = set()
    refuted: set[Served] = set()
    for conflict in conflicts:
        if not conflict.rivals or not conflict.rivals <= refuted:
            prove_size(conflict, repository)
            refuted |= conflict.rivals
        proven.add(conflict.sector.entry.id)
    return proven


def prove_size(conflict: Conflict, repository: Repository) -> None:
    """Prove with the frame table that an image is right about the size of a sector.

    Raises:
        ImageError: it is not.
        SourceError: there is no telling now.
    """
    entry, geometry = conflict.sector.entry, conflict.sector.geometry
    length = geometry.table_size(entry.size)
    for _ in range(ATTEMPTS):
        try:
            with repository.open_blob(
                conflict.sector.blob, offset=entry.offset, length=length
            ) as stream:
                table = FrameTable.unpack(stream.readall(), geometry)
                table.check(entry, geometry)
                return
        except ImageError as exc:
            error = exc
    raise ImageError(
        f"the image says that the sector {entry.id.hex()} has {entry.size} bytes, but it has"
        f" {conflict.size}: {error.message}"
    ) from error
