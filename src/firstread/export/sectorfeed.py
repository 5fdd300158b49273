# SPDX-License-Identifier: Apache-2.0
"""Sectors on demand, without a daemon and without a kernel that asks: for a server of whole disks.

Owns what is known of the sectors of one image, and one fetch for all reads that wait for a sector;
`sectorfetch` does the work. Safe to use from several threads. Invariant: a read is told as soon as
the frames that it needs are in the sector's file.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from firstread.errors import FirstreadError, NodeError
from firstread.export.sectorfetch import Means, fetch_sector
from firstread.oci.repository import Repository
from firstread.sectors.check import is_sector, is_whole
from firstread.sectors.content import wanted_sectors
from firstread.sectors.image import BlockImage
from firstread.sectors.native import NativeSource
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted

log = logging.getLogger("export")

WORKERS = 4  # requests at a time, as a node makes them

Told = Callable[[FirstreadError | None], None]
"""Called once: with None when the bytes are here, or with the reason why they do not come."""


class SectorFeed:
    """The sectors of one image.

    Args:
        repository: has the sectors.
        image: the converted image.
        store: claimed.
        stall_s: how long a read waits for a failing source.

    Attributes:
        fetched: bytes that came since the start.
    """

    def __init__(
        self, repository: Repository, image: BlockImage, store: SectorStore, stall_s: float
    ) -> None:
        self.fetched = 0
        self._means = Means(NativeSource(repository), store, stall_s, threading.Event())
        self._sectors, self._store = wanted_sectors(image), store
        self._verified: dict[bytes, int] = {}  # sector id -> bytes, of sectors that were looked at
        self._waiting: dict[bytes, list[tuple[int, Told]]] = {}  # in flight
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="export")

    def has(self, slot: int, end: int) -> bool:
        """Return whether the first `end` bytes of a sector are here."""
        return self._verified.get(self._sectors[slot].entry.id, 0) >= end

    def ask(self, slot: int, end: int, told: Told) -> None:
        """Have the first `end` bytes of a sector fetched, if they are not here.

        Args:
            slot: of the sector.
            end: how many bytes.
            told: called at once, or later in another thread, where it must not block.

        Raises:
            NodeError: the sector's file cannot be made, or the server stops.
        """
        sector = self._sectors[slot]
        key = sector.entry.id
        with self._lock:
            verified = self._look(sector)
            if verified < end:
                if self._means.closing.is_set():
                    raise NodeError("the server stops")
                if key not in self._waiting:
                    self._pool.submit(self._run, sector, verified, time.monotonic())
                self._waiting.setdefault(key, []).append((end, told))
                return
        told(None)

    def open(self, slot: int) -> int:
        """Return a descriptor of a sector's file, to read; the caller's.

        Raises:
            NodeError: it cannot be opened.
        """
        return self._store.open(self._sectors[slot].entry.id)

    def close(self) -> None:
        """Give up what is in flight."""
        with self._lock:
            self._means.closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for key in list(self._waiting):
            self._end(key, NodeError("the server stops"))

    def _look(self, sector: Wanted) -> int:
        """Return the verified bytes of a sector; make its file, empty, at the first look.

        A file that another process has left counts if it is the whole sector, else it is emptied.
        """
        key = sector.entry.id
        known = self._verified.get(key)
        if known is None:
            if self._store.look(key) is not None and not self._is_whole(sector):
                self._store.empty(key)
            known = self._verified[key] = self._store.ensure([key])[0]
        return known

    def _is_whole(self, sector: Wanted) -> bool:
        key, frame_size = sector.entry.id, sector.geometry.frame_size
        fd = self._store.open(key)
        try:
            if is_sector(fd, key, sector.entry.size, frame_size):
                return True
            if is_whole(fd, key, frame_size):
                raise NodeError(f"the image is wrong about the size of sector {key.hex()}")
        finally:
            os.close(fd)
        return False

    # -- in a thread of the pool ---------------------------------------------------------------

    def _run(self, sector: Wanted, verified: int, asked: float) -> None:
        key = sector.entry.id
        error: FirstreadError | None = NodeError("internal error: see the log")
        try:
            fetch_sector(sector, verified, self._means, asked, lambda done: self._grow(key, done))
            error = None
        except FirstreadError as exc:
            error = exc
        except Exception:
            log.exception("cannot read sector %s", key.hex())
        finally:
            self._end(key, error)

    def _grow(self, key: bytes, verified: int) -> None:
        with self._lock:
            self.fetched += verified - self._verified[key]
            self._verified[key] = verified
            waiting = self._waiting.get(key, [])
            waiting[:], ready = (
                [item for item in waiting if item[0] > verified],
                [told for end, told in waiting if end <= verified],
            )
        for told in ready:
            told(None)

    def _end(self, key: bytes, error: FirstreadError | None) -> None:
        with self._lock:
            waiting = self._waiting.pop(key, [])
        for _, told in waiting:
            told(error or NodeError("the sector ended early"))
