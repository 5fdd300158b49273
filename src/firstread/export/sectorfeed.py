# SPDX-License-Identifier: Apache-2.0
"""Sectors on demand, without a daemon and without a kernel that asks: for a server of whole disks.

Owns what is known of the sectors of one image, the threads that fetch, and one fetch for all reads
that wait for a sector; `sectorfetch` does the work. Safe to use from several threads. Invariants: a
read is told as soon as the frames that it needs are in the sector's file; nothing is begun, or
tried again, that nobody waits for.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from firstread.errors import FirstreadError, NodeError, from_shortage
from firstread.export.fairturns import FairTurns
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


class _Waiter(NamedTuple):
    """Waits for the first `end` bytes of a sector."""

    client: Hashable
    end: int
    told: Told
    since: float


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
        self._by_id = {sector.entry.id: sector for sector in self._sectors}
        self._verified: dict[bytes, int] = {}  # sector id -> bytes, of sectors that were looked at
        self._waiting: dict[bytes, list[_Waiter]] = {}
        self._turns = FairTurns()
        self._in_flight: set[bytes] = set()
        self._workers = self._idle = 0
        self._changed = threading.Condition()  # the lock of all these

    def has(self, slot: int, end: int) -> bool:
        """Return whether the first `end` bytes of a sector are here."""
        return self._verified.get(self._sectors[slot].entry.id, 0) >= end

    def ask(self, client: Hashable, slot: int, end: int, told: Told) -> None:
        """Have the first `end` bytes of a sector fetched, if they are not here.

        Args:
            client: whose turn it takes.
            slot: of the sector.
            end: how many bytes.
            told: called at once, or later in another thread, where it must not block; perhaps
                never if the client is forgotten before.

        Raises:
            NodeError: the sector's file cannot be made, or the server stops.
        """
        sector = self._sectors[slot]
        key = sector.entry.id
        with self._changed:
            if self._look(sector) < end:
                if self._means.closing.is_set():
                    raise NodeError("the server stops")
                self._have_a_worker()
                waiter = _Waiter(client, end, told, time.monotonic())
                self._waiting.setdefault(key, []).append(waiter)
                self._turns.add(client, key)
                return
        told(None)

    def forget(self, client: Hashable) -> None:
        """Fetch nothing more for a client, which is gone; what is in flight may come whole."""
        with self._changed:
            self._turns.drop(client)
            for key, waiters in list(self._waiting.items()):
                waiters[:] = [waiter for waiter in waiters if waiter.client != client]
                if not waiters:
                    del self._waiting[key]

    def open(self, slot: int) -> int:
        """Return a descriptor of a sector's file, to read; the caller's.

        Raises:
            NodeError: it cannot be opened.
        """
        return self._store.open(self._sectors[slot].entry.id)

    def close(self) -> None:
        """Give up what is in flight. Threads that hang in a source end with the process."""
        with self._changed:
            self._means.closing.set()
            self._changed.notify_all()
            waiters = [waiter for waiters in self._waiting.values() for waiter in waiters]
            self._waiting.clear()
        for waiter in waiters:
            waiter.told(NodeError("the server stops"))

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

    # -- threads that fetch --------------------------------------------------------------------

    def _have_a_worker(self) -> None:
        """Wake a thread for what comes, or make one. With the lock held.

        Raises:
            NodeError: there is none, and none can be made.
        """
        self._changed.notify()
        if self._idle or self._workers >= WORKERS:
            return
        try:
            threading.Thread(target=self._work, name="export", daemon=True).start()
            self._workers += 1
        except RuntimeError as exc:
            if self._workers:
                return
            if (shortage := from_shortage(exc)) is None:
                raise
            raise shortage from exc

    def _work(self) -> None:
        while (sector := self._next()) is not None:
            self._run(sector)

    def _next(self) -> Wanted | None:
        """Wait for the next sector that somebody waits for; None at the end."""
        with self._changed:
            while not self._means.closing.is_set():
                key = self._turns.take()
                if key is None:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                elif key in self._waiting and key not in self._in_flight:
                    self._in_flight.add(key)
                    if self._turns:
                        self._have_a_worker()  # who is awake by now takes but one
                    return self._by_id[key]
        return None

    def _run(self, sector: Wanted) -> None:
        key = sector.entry.id
        error: FirstreadError | None = NodeError("internal error: see the log")
        try:
            fetch_sector(
                sector,
                self._verified[key],
                self._means,
                lambda: self._since(key),
                lambda done: self._grow(key, done),
            )
            error = None
        except FirstreadError as exc:
            error = exc
        except Exception:
            log.exception("cannot read sector %s", key.hex())
        finally:
            self._end(key, error)

    def _since(self, key: bytes) -> float | None:
        """Return since when somebody waits for a sector; None if nobody does."""
        with self._changed:
            return min((waiter.since for waiter in self._waiting.get(key, ())), default=None)

    def _grow(self, key: bytes, verified: int) -> None:
        with self._changed:
            self.fetched += verified - self._verified[key]
            self._verified[key] = verified
            waiters = self._waiting.get(key, [])
            ready = [waiter for waiter in waiters if waiter.end <= verified]
            waiters[:] = [waiter for waiter in waiters if waiter.end > verified]
        for waiter in ready:
            waiter.told(None)

    def _end(self, key: bytes, error: FirstreadError | None) -> None:
        """Note the end of a fetch: all are told, but who came when it was given up asks anew."""
        with self._changed:
            self._in_flight.discard(key)
            waiters = self._waiting.pop(key, [])
            if waiters and error is None and self._verified[key] < self._by_id[key].entry.size:
                self._waiting[key] = waiters
                for waiter in waiters:
                    self._turns.add(waiter.client, key)
                waiters = []
        for waiter in waiters:
            waiter.told(error or NodeError("the sector ended early"))
