# SPDX-License-Identifier: Apache-2.0
"""Sectors on demand, without a daemon and without a kernel that asks: for a server of whole disks.

Owns what is known of the sectors of one image, one fetch for all reads that wait for a sector, and
the open files. `sectorfetch` does the work, in threads; everything here runs in the event loop.
Invariant: a read is woken as soon as the frames that it needs are in the sector's file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from firstread.errors import FirstreadError, NodeError
from firstread.export.sectorfetch import Means, fetch_sector
from firstread.oci.repository import Repository
from firstread.sectors.content import wanted_sectors
from firstread.sectors.image import BlockImage
from firstread.sectors.native import NativeSource
from firstread.sectors.sectorstore import SectorStore, lacks_prefix
from firstread.sectors.source import Wanted
from firstread.sectors.storelayout import doing

WORKERS = 4  # requests at a time, as a node makes them
OPEN_FILES = 256


class SectorFeed:
    """The sectors of one image. Made, used and closed in one event loop.

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
        self._waiting: dict[bytes, list[tuple[int, asyncio.Future[None]]]] = {}  # in flight
        self._files: OrderedDict[bytes, int] = OrderedDict()  # descriptors, to read
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="export")
        self._loop = asyncio.get_running_loop()

    def has(self, slot: int, end: int) -> bool:
        """Return whether the first `end` bytes of a sector are here."""
        return self._prefix(self._sectors[slot]) >= end

    async def cover(self, slot: int, end: int) -> None:
        """Wait until the first `end` bytes of a sector are here.

        Raises:
            FirstreadError: they cannot be had.
        """
        sector = self._sectors[slot]
        verified = self._prefix(sector)
        if verified >= end:
            return
        if sector.entry.id not in self._waiting:
            self._waiting[sector.entry.id] = []
            self._pool.submit(self._run, sector, verified)
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting[sector.entry.id].append((end, future))
        await future

    async def read(self, slot: int, start: int, view: memoryview) -> None:
        """Fill `view` with bytes of a sector that are here: from memory, else in a thread.

        Raises:
            NodeError: the file cannot be read.
        """
        done = self._read_now(slot, start, view)
        if done < len(view):
            await asyncio.to_thread(self._read, slot, start + done, view[done:])

    def _read_now(self, slot: int, start: int, view: memoryview) -> int:
        """Read what is in memory; return how many bytes that were."""
        key = self._sectors[slot].entry.id
        if key not in self._files:
            self._files[key] = self._store.open(key)
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(key)
        try:
            return os.preadv(self._files[key], [view], start, os.RWF_NOWAIT)
        except OSError:  # EAGAIN; or this file system cannot say
            return 0

    def _read(self, slot: int, start: int, view: memoryview) -> None:
        fd = self._store.open(self._sectors[slot].entry.id)  # of its own: others get closed
        try:
            with doing("cannot read a sector file"):
                while view:
                    count = os.preadv(fd, [view], start)
                    if not count:
                        raise NodeError("a sector file became shorter")
                    start, view = start + count, view[count:]
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give up what is in flight, and close the files."""
        self._means.closing.set()
        for key in list(self._waiting):
            self._end(key, NodeError("the server stops"))
        self._pool.shutdown(wait=False, cancel_futures=True)
        while self._files:
            os.close(self._files.popitem()[1])

    def _prefix(self, sector: Wanted) -> int:
        """Return the verified bytes of a sector; make its file, empty, at the first look.

        A file that a reboot left unverified is emptied, and fetched again.
        """
        key = sector.entry.id
        known = self._verified.get(key)
        if known is None:
            status = self._store.look(key)
            if status is not None and (lacks_prefix(status) or status.st_size > sector.entry.size):
                self._store.empty(key)
            known = self._verified[key] = self._store.ensure([key])[0]
        return known

    def _grow(self, key: bytes, verified: int) -> None:
        self.fetched += verified - self._verified[key]
        self._verified[key] = verified
        waiting = self._waiting.get(key, [])
        self._waiting[key] = [item for item in waiting if item[0] > verified]
        for end, future in waiting:
            if end <= verified and not future.done():
                future.set_result(None)

    def _end(self, key: bytes, error: FirstreadError | None) -> None:
        for _, future in self._waiting.pop(key, []):
            if not future.done():
                future.set_exception(error or NodeError("the sector ended early"))

    def _run(self, sector: Wanted, verified: int) -> None:
        """Fetch a sector; in a thread."""
        key, loop = sector.entry.id, self._loop

        def grow(done: int) -> None:
            loop.call_soon_threadsafe(self._grow, key, done)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            error: FirstreadError | None = NodeError("internal error: see the log")
            try:
                fetch_sector(sector, verified, self._means, grow)
                error = None
            except FirstreadError as exc:
                error = exc
            finally:
                loop.call_soon_threadsafe(self._end, key, error)
