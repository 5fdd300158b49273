# SPDX-License-Identifier: Apache-2.0
"""Admission of fills to the store, and the queue of those that wait for room.

Owns the room that fills were admitted for, and the calls for room that somebody waits for; the
evictor answers them, round by round. A fill asks before it writes; whatever else writes to the same
disk asks when the disk is full.

Invariant: bytes of sectors on this node, and those that a fill was admitted for, never exceed
``max_bytes``, of which metadata takes its part.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from firstread.cache.limits import Holdings, Limits
from firstread.cache.presence import Presence
from firstread.cache.room import Room
from firstread.errors import FirstreadError, NodeError, from_os_error, is_disk_full
from firstread.sectors.sectorstore import SectorStore
from firstread.units import MiB, format_size

log = logging.getLogger("cache")

ROOM_S = 30.0  # that a fill waits for room, before its reads fail
LOOK_S = 1.0  # others write to the same disk
OTHER_ROOM = Room(16 * MiB, 16)  # made on a full disk for the metadata of an image and its records
TRIES = 4  # with four times as much room each, for something that does not fit

T = TypeVar("T")


class Idle(Protocol):
    """What no mount needs, and can go. Called without the lock, but for `room`."""

    @property
    def room(self) -> Room:
        """What all images take beside their sectors. Waits for nobody."""

    def cold(self) -> list[bytes | str]:
        """Return sectors (their ids) and images (their digests) in the order to go."""

    def remove(self, digest: str) -> Room:
        """Remove an image unless it is used; return the room that became free."""


class NothingIdle:
    """A node without images."""

    room = Room()

    def cold(self) -> list[bytes | str]:
        return []

    def remove(self, digest: str) -> Room:
        return Room()


class Call(NamedTuple):
    """What a round of the evictor is to achieve.

    Args:
        number: of the round.
        bytes: of sectors that are to go, mounted ones too.
        room: that idle sectors and images are to give back.
        ready: bytes that should be draining in advance.
    """

    number: int
    bytes: int
    room: Room
    ready: int


class Admission:
    """The room in a store.

    Args:
        presence: what is known of sectors; its lock is that of all here.
        store: of their files.
        limits: of the store.

    Attributes:
        idle: what can go without a mount noticing.
        waiting: bytes that fills wait for.
        blocked: holders of sectors that wait for room: no hope that they end their use.
    """

    def __init__(self, presence: Presence, store: SectorStore, limits: Limits) -> None:
        self.limits = limits
        self.idle: Idle = NothingIdle()
        self.waiting = self.blocked = 0
        self._presence, self._store = presence, store
        self._reserved = 0
        self._promised = Room()  # that is to have become free in all, for those who lack room
        self._lacking = 0  # how many they are
        self._kicked = False
        self._rounds = self._exhausted = 0  # number of the last round, of the last in vain
        self._no_files = 0  # likewise, of the last that found no file to remove

    def holdings(self) -> Holdings:
        """Return what the store holds now. Takes no lock."""
        idle = self.idle.room
        return Holdings(
            bytes=self._presence.total_bytes,
            metadata_bytes=idle.bytes,
            reserved_bytes=self._reserved,
            files=self._presence.file_count + idle.files,
            free_bytes=self._store.free_bytes() if self.limits.min_free_bytes else 0,
        )

    def _over(self, more: int) -> int:
        return self.limits.over(self.holdings(), more)

    def _over_files(self, more: int) -> int:
        return self.limits.over_files(self.holdings(), more)

    # -- fills ---------------------------------------------------------------------------------

    def admit(self, sector_id: bytes, whole_bytes: int) -> int:
        """Wait for room for the rest of a sector, and hold it; `leave` it afterwards.

        Returns:
            the room in bytes, to be given to `leave`.

        Raises:
            NodeError: there is none, and none will come.
        """
        presence = self._presence
        deadline = time.monotonic() + ROOM_S
        with presence.changed:
            since = self._rounds
            while True:
                need = max(0, whole_bytes - presence.size(sector_id))
                if self._over(need) <= 0 and presence.hold(sector_id):
                    self._reserved += need
                    if self._over(self.limits.headroom) > 0:
                        self.kick()
                    return need
                if self._exhausted > since or time.monotonic() > deadline:
                    raise self._full(need)
                self.waiting += need
                self.kick()
                presence.changed.wait(LOOK_S)
                self.waiting -= need

    def leave(self, sector_id: bytes, room: int) -> None:
        """End an `admit`."""
        with self._presence.changed:
            self._reserved -= room
            self._presence.release(sector_id)

    def has_spare(self, count: int) -> bool:
        """Return whether `count` bytes fit without anything being emptied. Takes no lock."""
        is_free = self._store.free_bytes() >= count + OTHER_ROOM.bytes
        return is_free and self._over(self.waiting + count) <= 0

    def write(self, sector_id: bytes, fd: int, start: int, frame: memoryview) -> None:
        """Write a verified frame into the file of a sector that was admitted.

        Args:
            sector_id: of the sector.
            fd: its file.
            start: where in it.
            frame: what is written.

        Raises:
            NodeError: it cannot be written, or would leave a hole where there may be none.
        """
        self._presence.reach(sector_id, start)
        position, end = start, start + len(frame)
        while position < end:
            try:
                position += os.pwrite(fd, frame[position - start :], position)
            except OSError as exc:
                if is_disk_full(exc) and self.make_room(end - position):
                    continue
                raise NodeError(
                    f"cannot write the sector file: {exc.strerror}",
                    hint="free some space on the file system of --root, or unmount pinned images",
                ) from exc
        self._presence.commit(sector_id, end)

    def _full(self, need: int) -> NodeError:
        held = self.holdings()
        text, free = format_size(held.bytes), format_size(self._store.free_bytes())
        if held.metadata_bytes:
            text += f", beside {format_size(held.metadata_bytes)} of metadata,"
        limit = f" of {format_size(self.limits.max_bytes)}" if self.limits.max_bytes else ""
        return NodeError(
            f"no room for {format_size(need)} in the sector store: it holds {text}{limit},"
            f" all of it pinned or in use; {free} are free on its file system",
            hint="unmount an image that is pinned (firstread cache ls shows them), raise"
            " cache.max_bytes, or free space",
        )

    # -- a full disk ---------------------------------------------------------------------------

    def make_room(self, count: int, *, holding: bool = True, files: int = 0) -> bool:
        """Wait for something to be emptied or removed; True if that much became free.

        Args:
            count: bytes.
            holding: the caller holds a sector.
            files: that are to become free as well.
        """
        presence = self._presence
        deadline = time.monotonic() + ROOM_S
        with presence.changed:
            since = self._rounds
            self._promised = goal = self._promised.or_more(presence.freed) + Room(count, files)
            self._lacking += 1
            self.blocked += holding
            self.kick()
            while time.monotonic() < deadline and not presence.freed.covers(goal):
                bytes_left = presence.freed.bytes < goal.bytes and self._exhausted <= since
                files_left = presence.freed.files < goal.files and self._no_files <= since
                if not (bytes_left or files_left):
                    break
                presence.changed.wait(LOOK_S)
            self.blocked -= holding
            self._lacking -= 1
            if not self._lacking:
                self._promised = presence.freed
            return presence.freed.covers(goal)

    def with_room(
        self, act: Callable[[], T], files: Callable[[], int] = lambda: OTHER_ROOM.files
    ) -> T:
        """Do what writes other files to this disk; while it is full, make room, and do it again.

        The caller holds no sector; taking reads again must not wait for it.

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

    def make_files(self, ids: Sequence[bytes], make: Callable[[Sequence[bytes]], None]) -> None:
        """Make the files of sectors, with room made for those that are missing.

        Raises:
            NodeError: there is none.
        """

        def act() -> None:
            if self.limits.max_files and self._over_files(self._store.missing(ids)) > 0:
                error = OSError(errno.EDQUOT, "the limit of files is reached")
                raise from_os_error(error, "cannot make sector files") from error
            make(ids)

        self.with_room(act, files=lambda: self._store.missing(ids))

    def _short(self, need: Room) -> Room:
        """Return what the disk has too little of; both, if it does not say."""
        free = self._store.free_files()
        files = free is not None and free < need.files
        files = files or self._over_files(need.files) > 0
        short = Room(
            need.bytes if self._store.free_bytes() < need.bytes else 0,
            need.files if files else 0,
        )
        return short or need

    # -- what the evictor asks, with the lock held ---------------------------------------------

    def kick(self) -> None:
        """Have the evictor look now."""
        self._kicked = True
        self._presence.changed.notify_all()

    def await_kick(self, timeout_s: float) -> None:
        """Wait for a `kick`."""
        self._presence.changed.wait_for(lambda: self._kicked, timeout_s)
        self._kicked = False

    def call(self) -> Call:
        """Begin a round: return what it is to achieve."""
        self._rounds += 1
        held, limits = self.holdings(), self.limits
        ahead = self.waiting + limits.headroom
        shortage = self._promised - self._presence.freed if self._lacking else Room()
        wanted = max(limits.over(held, ahead), shortage.bytes)
        return Call(
            self._rounds,
            wanted,
            limits.surplus(held, ahead).or_more(shortage),
            limits.ready(held, ahead, hurry=wanted > 0),
        )

    def give_up_bytes(self, call: Call) -> None:
        """Note that a round found no bytes that can go."""
        self._exhausted = call.number

    def give_up_files(self, call: Call) -> None:
        """Note that a round found no files that can go."""
        self._no_files = call.number

    def has_given_up(self, call: Call) -> bool:
        """Return whether a round found no bytes that can go."""
        return self._exhausted == call.number

    def look_again(self) -> None:
        """Have the evictor look if idle sectors and images are too much now."""
        if self.limits.surplus(self.holdings(), 0):
            self.kick()
