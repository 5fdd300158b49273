# SPDX-License-Identifier: Apache-2.0
"""Keeps the sector store within its bounds, under mounts that are being read.

Owns the room in the store, in bytes and in files: who may fill how much, what is removed or emptied
for it, and the marks of sectors that are present. `firstread.node.evict` decides; this does it.
Does not fetch, and knows images only through its `Owner` and `Idle`. One lock; a mark is set and
removed under it, and nothing waits for the network or an event while it is held.

Order of what goes: images that are not mounted, the one that was used longest ago first, its
sectors and then its metadata; then, by CLOCK, sectors of mounted images, but not of pinned ones,
and of such as are all here only if nothing else is left. Emptying those gives no file back.

Invariants: bytes of sectors on this node, and those that a fill was admitted for, never exceed
``max_bytes``, from which metadata takes its part; a sector file becomes shorter only here, while
nobody fills it and no lane knows of a prefix of it; one without bytes that no mounted image has
does not stay.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from firstread.config import CacheTable
from firstread.device.fanotify import Group
from firstread.device.pages import is_quiet
from firstread.errors import FirstreadError, NodeError, from_os_error, is_disk_full
from firstread.node.evict import Clock, State, Verdict
from firstread.node.filling import Waiter
from firstread.node.opener import HeldUpError, Opener
from firstread.node.owner import Idle, NothingIdle, Owner
from firstread.node.room import Room
from firstread.sectors.format import SectorEntry
from firstread.sectors.store import SectorStore
from firstread.units import MiB, format_size

log = logging.getLogger("cache")

GRACE_S = 0.1  # for reads that were let go: the longest copies 128 KiB
ROOM_S = 30.0  # that a fill waits for room, before its reads fail
UNSEEN_S = 0.3  # grace of files that cannot be opened to see whether a read is still at them
STOCK_S = 2.0  # for the look at what is not mounted: 3 us a sector, and the index of each image
TICK_S = 0.02  # between looks, while bytes are to become free
FORCE_S = 0.5  # without a byte that became free, before a sector goes though it is in use
IDLE_S = 1.0  # else: others write to the same disk
READY_SHARE = 4  # of the limit: what drains in advance while bytes are to become free
CALM_SHARE = 16  # the same while none are
MAX_HEADROOM_BYTES = 64 * MiB  # kept free in advance, so that a fill need not wait
OTHER_ROOM = Room(16 * MiB, 16)  # made on a full disk for the metadata of an image and its records
TRIES = 4  # with four times as much room each, for something that does not fit
BATCH = 256  # sectors that are looked at without letting others have the lock

T = TypeVar("T")


class Cache:
    """The room in the store, and the marks of what is present.

    Args:
        store: of the sector files.
        group: of the marks.
        limits: of the store.
        owner: of images and lanes.
        grace_s: see `Clock`.

    Attributes:
        idle: what can go without a mount noticing.
        evictions, evicted_bytes: of sectors of mounted images.
        removals, removed_bytes: of sectors of other images.
    """

    def __init__(
        self,
        store: SectorStore,
        group: Group,
        limits: CacheTable,
        owner: Owner,
        *,
        grace_s: float = GRACE_S,
    ) -> None:
        self.grace_s = grace_s
        self.limit_bytes, self.min_free_bytes = int(limits.max_bytes), int(limits.min_free_bytes)
        self.limit_files = limits.max_files
        self.evictions = self.evicted_bytes = self.removals = self.removed_bytes = 0
        self.changed = threading.Condition()
        self.clock = Clock(grace_s)
        self.idle: Idle = NothingIdle()
        self._store, self._group, self._owner = store, group, owner
        self._parked: dict[bytes, list[Waiter]] = {}  # events that wait for an emptying
        self._opening: set[bytes] = set()  # sectors whose files EROFS opens for a mount just now
        self._aside = store.aside_sizes()  # bytes of each doubtful file that is not in its place
        self._cold: deque[bytes | str] = deque()
        self._cold_is_known = False
        self._guarded = False  # see `guard`
        self._is_tidy = False  # no file without bytes is left that no mounted image has
        self._reserved = 0  # bytes that fills were admitted for
        self._waiting = 0  # bytes that fills wait for
        self._promised = Room()  # that is to have become free in all, for those who lack room
        self._lacking = 0  # how many they are
        self._blocked = 0  # holders that wait because of it
        self._freed = Room()  # so far
        self._freed_before = 0
        self._since = time.monotonic()  # when bytes became free last, or were not wanted
        self._rounds = self._exhausted = 0  # number of the last round, of the last in vain
        self._no_files = 0  # likewise, of the last that found no file to remove
        self._unseen_since = 0  # number of the round in which files could not be opened
        self._opener, self._stock = Opener("look"), Opener("stock", STOCK_S)
        self._kicked = False
        self._sparing = True  # images that are all here
        count = -store.made
        for sector_id, size in store.sizes():
            self.clock.add(sector_id, size)
            count += 1
        self._others = count  # sector files that somebody before has made

    def start(self) -> None:
        """Enforce the limits from now on."""
        threading.Thread(target=self._run, name="cache", daemon=True).start()

    # -- marks ---------------------------------------------------------------------------------

    def has_marks(self) -> bool:
        """Return whether a fetcher before has left marks."""
        return self._group.has_marks()

    def ensure(self, ids: Iterable[bytes]) -> list[int]:
        """`SectorStore.ensure`, for an image that is mounted already as far as `Owner` knows."""
        with self.changed:
            self._cold_is_known = False
            return self._store.ensure(ids)

    def make_files(self, ids: Sequence[bytes]) -> list[int]:
        """`ensure`, with room made for files that are missing.

        Raises:
            NodeError: there is none.
        """

        def make() -> list[int]:
            over = self._over_files(self._store.missing(ids)) if self.limit_files else 0
            if over > 0:
                error = OSError(errno.EDQUOT, "the limit of files is reached")
                raise from_os_error(error, "cannot make sector files") from error
            return self.ensure(ids)

        return self.with_room(make, files=lambda: self._store.missing(ids))

    def mounts_changed(self) -> None:
        """Look anew for what is not mounted, and whether there is too much of it."""
        with self.changed:
            self._cold_is_known = False
            if self._surplus(0):
                self._kick()

    def guard(self, *, on: bool) -> None:
        """Remove nothing while `on`: mounts stand whose sectors are not known."""
        with self.changed:
            self._guarded = on
            self._is_tidy = self._cold_is_known = False
            self._kick()

    def is_needed(self, sector_id: bytes) -> bool:
        """Return whether a mount has a sector, or may have. Takes no lock."""
        return self._guarded or self._owner.is_mounted(sector_id)

    def tidy(self) -> int:
        """Remove the files without bytes that no mounted image has; return how many."""
        self._is_tidy = True
        empty = [sector_id for sector_id, size in self._store.sizes() if not size]
        before = self._store.made
        for start in range(0, len(empty), BATCH):
            with self.changed:
                for sector_id in empty[start : start + BATCH]:
                    self._remove_empty(sector_id)
        return before - self._store.made

    def _remove_empty(self, sector_id: bytes) -> None:
        """Remove a sector's file if it has no bytes, and nobody has or uses it.

        Who fills it holds it before opening it, so what no one holds no one writes to.
        """
        busy = self.clock.users(sector_id) or self.is_emptying(sector_id)
        if busy or self.is_needed(sector_id) or self._store.size(sector_id):
            return
        self._store.remove([sector_id])
        self.clock.drop(sector_id)
        self._free(Room(0, 1))

    @contextlib.contextmanager
    def opening(self, ids: Sequence[bytes]) -> Iterator[None]:
        """Keep sectors marked while EROFS opens them for a mount; `watch` them afterwards.

        One mount at a time. A file that has no mark when it is opened never raises an event, so
        what other mounts read of it meanwhile must not take its mark off.
        """
        try:
            with self.changed:
                self._opening = set(ids)
                self._group.mark_names(self._store.fileno(), self._store.names(ids))
            yield
        finally:
            with self.changed:
                self._opening = set()

    def unwatch(self, ids: Iterable[bytes]) -> None:
        """Watch those sectors no longer that no mounted image has; files without bytes go.

        15 us a file that goes. Others get the lock now and then: reads must not wait for all.
        """
        todo = list(ids)
        for start in range(0, len(todo), BATCH):
            with self.changed:
                batch = todo[start : start + BATCH]
                alone = [i for i in batch if not self.is_needed(i)]
                self._group.unmark_names(self._store.fileno(), self._store.names(alone))
                for sector_id in alone:
                    self._remove_empty(sector_id)

    def set_aside(self, ids: Iterable[bytes]) -> list[bytes]:
        """`SectorStore.set_aside`: the bytes count as before, but no longer as the sector's."""
        with self.changed:
            moved = self._store.set_aside(ids)
            for sector_id in moved:
                self._aside[sector_id] = self._store.aside_size(sector_id)
                self.clock.add(sector_id, 0)
            return moved

    def remove_aside(self, sector_id: bytes) -> int:
        """Delete the doubtful file of a sector, if there is one; return the bytes it had."""
        with self.changed:
            self._aside.pop(sector_id, None)
            return self._store.remove_aside(sector_id)

    def recall(self, sector_id: bytes) -> None:
        """Count a doubtful file no longer: it is about to be copied to its place, and to go."""
        with self.changed:
            self._aside.pop(sector_id, None)

    def discard(self, sector_id: bytes) -> None:
        """Empty a sector that no mount has read yet, unless a lane is at it."""
        with self.changed:
            if not self._is_free(sector_id):
                return
            self.clock.hold(sector_id)
        try:
            self._store.empty(sector_id)
        finally:
            self.leave(sector_id, 0)
        with self.changed:
            self._owner.emptied(sector_id)

    def watch(self, sectors: Iterable[SectorEntry], doubted: Iterable[bytes] = ()) -> None:
        """Mark the sectors that are not whole, and only those, but for what drains or is doubted.

        Args:
            sectors: of an image that is mounted.
            doubted: those of them that are to be checked when they are read.
        """
        doubts = set(doubted)
        mark: list[bytes] = []
        unmark: list[bytes] = []
        with self.changed:
            for sector in sectors:
                size, whole = self._store.size(sector.id), self._whole_size(sector)
                if self.clock.state(sector.id) is State.KEPT and not self.clock.users(sector.id):
                    self.clock.add(sector.id, size)
                if sector.id in doubts and size >= whole:
                    self.clock.doubt(sector.id)
                plain = self.clock.state(sector.id) is State.KEPT
                present = plain and size >= whole and not self.clock.is_doubted(sector.id)
                (unmark if present else mark).append(sector.id)
            self._group.mark_names(self._store.fileno(), self._store.names(mark))
            self._group.unmark_names(self._store.fileno(), self._store.names(unmark))

    def adopt(self, sectors: Iterable[SectorEntry], *, anew: bool, doubt: bool) -> None:
        """Watch the sectors of a mount that another fetcher has served before.

        Marks that are there are all that is left of its doubts, and of the sectors that it was
        about to empty: they stay.

        Args:
            sectors: of the image.
            anew: the marks are gone with the group: who read meanwhile could not be watched.
            doubt: check what is marked when it is read.
        """
        mark: list[bytes] = []
        unmark: list[bytes] = []
        with self.changed:
            for sector in sectors:
                size = self._store.size(sector.id)
                self.clock.add(sector.id, size)
                if size < self._whole_size(sector):
                    mark.append(sector.id)
                elif not doubt:
                    unmark.append(sector.id)
                elif self.clock.doubt(sector.id) and anew:
                    mark.append(sector.id)
            self._group.mark_names(self._store.fileno(), self._store.names(mark))
            self._group.unmark_names(self._store.fileno(), self._store.names(unmark))

    def _whole_size(self, sector: SectorEntry) -> int:
        """Return the bytes after which a sector needs no mark, whoever else says what of it."""
        return max(sector.size, self._owner.whole_size(sector.id))

    # -- reads ---------------------------------------------------------------------------------

    def event(self, waiter: Waiter, sector_id: bytes, whole_bytes: int) -> Verdict:
        """Take an event; on ``WAIT`` it is kept here, and given to `Owner.again` later."""
        fd = waiter[0].fd
        with self.changed:
            whole = os.fstat(fd).st_size >= whole_bytes
            verdict = self.clock.event(sector_id, whole=whole)
            if verdict is Verdict.ALLOW:
                self._unmark(sector_id, fd)
            elif verdict is Verdict.WAIT:
                self._parked.setdefault(sector_id, []).append(waiter)
            return verdict

    def touch(self, waiter: Waiter, sector_id: bytes, whole_bytes: int) -> bool:
        """Tell that a read is let go; False if it has to wait: then as `event`."""
        with self.changed:
            verdict = self.clock.touch(sector_id)
            if verdict is Verdict.WAIT:
                self._parked.setdefault(sector_id, []).append(waiter)
                return False
            if verdict is Verdict.ALLOW and os.fstat(waiter[0].fd).st_size >= whole_bytes:
                self._unmark(sector_id, waiter[0].fd)
            return True

    def is_emptying(self, sector_id: bytes) -> bool:
        """Return whether a sector is being emptied. Takes no lock."""
        return self.clock.state(sector_id) is State.EMPTIES

    # -- fills and other uses ------------------------------------------------------------------

    def admit(self, sector_id: bytes, whole_bytes: int) -> int:
        """Wait for room for the rest of a sector, and hold it; `leave` it afterwards.

        Returns:
            the room in bytes, to be given to `leave`.

        Raises:
            NodeError: there is none, and none will come.
        """
        deadline = time.monotonic() + ROOM_S
        with self.changed:
            since = self._rounds
            while True:
                need = max(0, whole_bytes - self._store.size(sector_id))
                if self._over(need) <= 0 and self.clock.hold(sector_id) is not Verdict.WAIT:
                    self._reserved += need
                    if self._over(self._headroom) > 0:
                        self._kick()
                    return need
                if self._exhausted > since or time.monotonic() > deadline:
                    raise self._full(need)
                self._waiting += need
                self._kick()
                self.changed.wait(IDLE_S)
                self._waiting -= need

    def has_spare(self, count: int) -> bool:
        """Return whether `count` bytes fit without anything being emptied. Takes no lock."""
        return self._over(self._waiting + count) <= 0

    def leave(self, sector_id: bytes, room: int) -> None:
        """End an `admit`."""
        with self.changed:
            self._reserved -= room
            size = self._store.size(sector_id)
            self.clock.release(sector_id, size)
            if not size:
                self._remove_empty(sector_id)  # its image may be gone by now
            self.changed.notify_all()

    def filled(self, sector_id: bytes, fd: int) -> None:
        """Note that a sector, which the caller holds, is whole and verified."""
        with self.changed:
            self.clock.trust(sector_id)
            self._unmark(sector_id, fd)
            self._owner.whole(sector_id)

    @contextlib.contextmanager
    def holding(self, sector_id: bytes) -> Iterator[bool]:
        """Keep a sector from being emptied; gives False if that is not possible now."""
        with self.changed:
            verdict = self.clock.hold(sector_id)
            if verdict is Verdict.ALLOW:
                self._unmark_whole(sector_id)
        if verdict is Verdict.WAIT:
            yield False
            return
        try:
            yield True
        finally:
            self.leave(sector_id, 0)

    def make_room(self, count: int, *, holding: bool = True, files: int = 0) -> bool:
        """Empty or remove something, because the disk is full; True if that much became free.

        Args:
            count: bytes.
            holding: the caller holds a sector.
            files: that are to become free as well.
        """
        deadline = time.monotonic() + ROOM_S
        with self.changed:
            since, goal = self._rounds, self._promised.or_more(self._freed) + Room(count, files)
            self._promised = goal
            self._lacking += 1
            self._blocked += holding
            self._kick()
            while time.monotonic() < deadline and not self._freed.covers(goal):
                bytes_left = self._freed.bytes < goal.bytes and self._exhausted <= since
                files_left = self._freed.files < goal.files and self._no_files <= since
                if not (bytes_left or files_left):
                    break
                self.changed.wait(IDLE_S)
            self._blocked -= holding
            self._lacking -= 1
            if not self._lacking:
                self._promised = self._freed
            return self._freed.covers(goal)

    def with_room(
        self, act: Callable[[], T], files: Callable[[], int] = lambda: OTHER_ROOM.files
    ) -> T:
        """Do what writes other files to this disk; while it is full, make room, and do it again.

        Who calls it holds no sector; what `Owner` does meanwhile must not wait for the caller.

        Args:
            act: to be done.
            files: says how many it makes.
        """
        found = True
        for attempt in range(TRIES):
            try:
                return act()
            except FirstreadError as exc:
                if not found or not is_disk_full(exc.__cause__):
                    raise
                log.info("making room: %s", exc)
            short = self._short(Room(OTHER_ROOM.bytes << (2 * attempt), files()))
            # Less room than that may do as well: then it is the last attempt.
            found = self.make_room(short.bytes, holding=False, files=short.files)
        return act()

    def _short(self, need: Room) -> Room:
        """Return of what the disk has too little; of both, if it does not say."""
        with self.changed:
            free = self._store.free_files()
            files = free is not None and free < need.files
            files = files or bool(self.limit_files and self._over_files(need.files) > 0)
            short = Room(
                need.bytes if self._store.free_bytes() < need.bytes else 0,
                need.files if files else 0,
            )
        return short or need

    def _unmark(self, sector_id: bytes, fd: int) -> None:
        """Watch a sector that is whole no longer; `fd`: its file."""
        if sector_id not in self._opening:
            self._group.unmark(fd)

    def _unmark_whole(self, sector_id: bytes) -> None:
        """Watch a sector no longer, if there is nothing to watch for.

        A mark too many costs an event, so it is no error.
        """
        whole = self._owner.whole_size(sector_id)
        if not whole or self.clock.is_doubted(sector_id) or sector_id in self._opening:
            return
        try:
            if self._store.size(sector_id) >= whole:
                self._group.unmark_names(self._store.fileno(), self._store.names([sector_id]))
        except FirstreadError as exc:
            log.warning("sector %s stays watched: %s", sector_id.hex(), exc)

    def usage(self) -> tuple[int, int]:
        """Return (sectors, bytes) that are here; what is being filled counts when it is done."""
        with self.changed:
            return self.clock.count, self._bytes

    def room_figures(self) -> dict[str, int | None]:
        """Return what else counts, as ``firstread status --json`` has it."""
        with self.changed:
            files = self._files
        return {
            "metadata_bytes": self.idle.room.bytes,
            "files": files,
            "free_files": self._store.free_files(),
        }

    # -- room ----------------------------------------------------------------------------------

    @property
    def _headroom(self) -> int:
        return min(self.limit_bytes // 16, MAX_HEADROOM_BYTES) if self.limit_bytes else MiB

    @property
    def _bytes(self) -> int:
        return self.clock.bytes + sum(self._aside.values())

    @property
    def _files(self) -> int:
        return self._others + self._store.made + len(self._aside) + self.idle.room.files

    def _surplus(self, more: int) -> Room:
        """Return what of idle sectors and images is too much, with `more` bytes to come."""
        over = self._over(more)
        if self.limit_bytes:
            over = max(over, self._over_limit(more, self.idle.room.bytes))
        return Room(max(0, over), max(0, self._over_files(0)))

    def _over_files(self, more: int) -> int:
        """Return by how many files the limit would be exceeded with `more` files."""
        return self._files + more - self.limit_files if self.limit_files else 0

    def _over_limit(self, more: int, metadata: int) -> int:
        return self._bytes + metadata + self._reserved + more - self.limit_bytes

    def _over(self, more: int) -> int:
        """Return by how many bytes a limit would be exceeded with `more` bytes of sectors.

        Metadata of mounted images cannot go. So that their reads have room, half of the limit is
        the sectors', however much of it there is.
        """
        over = 0
        if self.limit_bytes:
            over = self._over_limit(more, min(self.idle.room.bytes, self.limit_bytes // 2))
        if self.min_free_bytes:
            free = self._store.free_bytes() - self._reserved - more
            over = max(over, self.min_free_bytes - free)
        return over

    def _full(self, need: int) -> NodeError:
        held, free = format_size(self._bytes), format_size(self._store.free_bytes())
        if self.idle.room.bytes:
            held += f", beside {format_size(self.idle.room.bytes)} of metadata,"
        limit = f" of {format_size(self.limit_bytes)}" if self.limit_bytes else ""
        return NodeError(
            f"no room for {format_size(need)} in the sector store: it holds {held}{limit},"
            f" all of it pinned or in use; {free} are free on its file system",
            hint="unmount an image that is pinned (firstread cache ls shows them), raise"
            " cache.max_bytes, or free space",
        )

    def _kick(self) -> None:
        self._kicked = True
        self.changed.notify_all()

    def _run(self) -> None:
        while True:
            try:
                pause = self._round()
            except Exception:
                log.exception("cannot make room in the sector store")
                pause = IDLE_S
            if pause == TICK_S:
                time.sleep(pause)
                continue
            with self.changed:
                self.changed.wait_for(lambda: self._kicked, pause)
                self._kicked = False

    def _round(self) -> float:
        """Make room once; return how long to wait before the next look."""
        with self.changed:
            self._rounds += 1
            number = self._rounds
            ahead = self._waiting + self._headroom
            surplus = self._surplus(ahead)
            shortage = self._promised - self._freed if self._lacking else Room()
            wanted = max(self._over(ahead), shortage.bytes)
            near = self._over(ahead + self._headroom) > 0
            share = self.limit_bytes // (READY_SHARE if wanted > 0 else CALM_SHARE)
            ready = max(share, self._headroom) if near else 0
            goal = surplus.or_more(shortage)
        if not self._is_tidy:
            goal -= Room(0, self.tidy())
        freed = self._remove_cold(goal)
        wanted -= freed.bytes
        wanted -= self._remove_doubtful(wanted)
        with self.changed:
            if freed.files < goal.files and not self._stock.is_held_up:
                self._no_files = number
            now = time.monotonic()
            if wanted <= 0 or self._freed.bytes > self._freed_before:
                self._since, self._freed_before = now, self._freed.bytes
            force = now - self._since > FORCE_S
            turn = self.clock.turn(now, wanted, ready, self._stays, force=force)
            for sector_id in turn.mark:
                self._mark_draining(sector_id)
            for sector_id in turn.unmark:
                self._unmark_whole(sector_id)
        for sector_id in turn.empty:
            self._empty(sector_id)
        with self.changed:
            clock = self.clock
            hopeful = clock.draining_bytes or clock.emptying_bytes or clock.holds > self._blocked
            hopeful = hopeful or self._stock.is_held_up
            if wanted <= 0:
                self._sparing = True
            elif not turn.empty and not hopeful:
                if not self._sparing:
                    self._exhausted = number
                self._sparing = False
            self.changed.notify_all()
        return TICK_S if wanted > 0 and self._exhausted != number else IDLE_S

    def _mark_draining(self, sector_id: bytes) -> None:
        """Mark a sector that drains; what cannot be marked is kept: nobody would see its reads."""
        try:
            self._group.mark_names(self._store.fileno(), self._store.names([sector_id]))
        except FirstreadError as exc:
            log.warning("cannot watch sector %s: %s", sector_id.hex(), exc)
            self.clock.touch(sector_id)

    def _stays(self, sector_id: bytes) -> bool:
        if not self._owner.is_mounted(sector_id) or self._owner.is_exempt(sector_id):
            return True
        return self._sparing and self._owner.is_complete(sector_id)

    # -- what goes -----------------------------------------------------------------------------

    def _remove_cold(self, goal: Room) -> Room:
        """Remove images that are not mounted, and their sectors; return what became free."""
        freed = Room()
        try:
            while freed.bytes < goal.bytes or freed.files < goal.files:
                if not self._cold:
                    if self._cold_is_known:
                        break
                    self._cold_is_known = True
                    self._note_cold(self._stock.do(self.idle.cold, self._note_cold))
                    if not self._cold:
                        break
                item = self._cold.popleft()
                freed += self._remove(item) if isinstance(item, bytes) else self._remove_image(item)
        except HeldUpError:  # what comes of it comes later, by itself
            self._cold_is_known = False
        return freed

    def _remove_image(self, digest: str) -> Room:
        def note(freed: Room) -> Room:
            if freed:
                log.info("removed image %s, which is not mounted, to make room", digest)
            with self.changed:
                self._free(freed)
            return freed

        return note(self._stock.do(lambda: self.idle.remove(digest), note))

    def _note_cold(self, found: Iterable[bytes | str]) -> None:
        self._cold = deque(found)

    def _remove_doubtful(self, wanted: int) -> int:
        """Remove files that lie aside: they may be of no use. Return the bytes that became free."""
        freed = 0
        with self.changed:
            while self._aside and freed < wanted:
                size = self.remove_aside(next(iter(self._aside)))
                self._free(Room(size, 1))
                freed += size
        return freed

    def remove(self, sector_id: bytes) -> int:
        """Remove a sector unless it is mounted or in use; return the bytes that became free."""
        return self._remove(sector_id).bytes

    def _remove(self, sector_id: bytes) -> Room:
        with self.changed:
            if self.is_needed(sector_id) or not self._is_free(sector_id):
                return Room()
            files = (sector_id in self._aside) + self._store.made
            size = self.remove_aside(sector_id) + self._store.size(sector_id)
            self._store.remove([sector_id])
            freed = Room(size, files - self._store.made)
            self.clock.drop(sector_id)
            self._owner.emptied(sector_id)
            self._free(freed)
            self.removals += bool(size)
            self.removed_bytes += size
            return freed

    def _is_free(self, sector_id: bytes) -> bool:
        """Return whether nobody is at a sector's file, and no lane knows of a prefix of it now."""
        busy = self.clock.users(sector_id) or self.is_emptying(sector_id)
        return not busy and self._owner.let_go(sector_id)

    def _empty(self, sector_id: bytes) -> None:
        """Empty a sector that has drained, unless it turns out to be in use."""
        size = self.clock.size(sector_id)
        emptied = False
        try:
            if self._owner.let_go(sector_id) and self._is_quiet(sector_id):
                self._store.empty(sector_id)
                emptied = True
        except FirstreadError as exc:
            log.warning("cannot empty sector %s: %s", sector_id.hex(), exc)
        with self.changed:
            if emptied:
                self.clock.emptied(sector_id)
                self._owner.emptied(sector_id)
                self._free(Room(size))
                self.evictions += 1
                self.evicted_bytes += size
            else:
                self.clock.spared(sector_id)
                self._unmark_whole(sector_id)
            parked = self._parked.pop(sector_id, [])
        if parked:
            self._owner.again(parked)

    def condemn(self, sector_id: bytes) -> bool:
        """Empty a damaged sector that the caller holds, marked and doubted before; wait for it.

        Returns:
            False if others hold it for too long.
        """
        deadline = time.monotonic() + ROOM_S
        time.sleep(self.grace_s)
        with self.changed:
            while not self.clock.condemn(sector_id):
                if time.monotonic() > deadline:
                    return False
                self.changed.wait(IDLE_S)
            size = self.clock.size(sector_id)
        emptied = False
        try:
            self._store.empty(sector_id)
            emptied = True
        finally:
            with self.changed:
                if emptied:
                    self.clock.emptied(sector_id)
                    self._owner.emptied(sector_id)
                    self._free(Room(size))
                else:
                    self.clock.spared(sector_id)
                parked = self._parked.pop(sector_id, [])
            if parked:
                self._owner.again(parked)
        return True

    def doubt(self, sector_id: bytes) -> None:
        """Mark a sector and let every read of it wait for a check."""
        with self.changed:
            self.clock.doubt(sector_id)
            self._group.mark_names(self._store.fileno(), self._store.names([sector_id]))

    def _is_quiet(self, sector_id: bytes) -> bool:
        try:
            fd = self._opener.do(lambda: self._store.open(sector_id), os.close)
        except HeldUpError:
            if self._unseen_since != self._rounds:  # once for all of a round: they drain no longer
                time.sleep(UNSEEN_S)
                self._unseen_since = self._rounds
            return True
        try:
            return is_quiet(fd)
        finally:
            os.close(fd)

    def _free(self, freed: Room) -> None:
        self._freed += freed
        self.changed.notify_all()
