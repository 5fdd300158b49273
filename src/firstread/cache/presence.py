# SPDX-License-Identifier: Apache-2.0
"""All that is known of sectors on this node, in one place and behind one lock.

`Presence` owns, of each sector: how far it is here, whether its file is watched, doubted,
draining or being emptied, who uses it, which served images have it and what they say of it (whole
size, pin, completeness), whether somebody has checked it, and whether an unverified file of it lies
aside. Everything else that speaks of a sector's state is derived: a sector file's size and mode are
what a fetcher finds when it starts, and a lane's notes of a fetch in flight are a copy that
`forget` ends. `firstread.cache.clock` has the rules of eviction, `firstread.cache.disposal` makes
files shorter, `firstread.cache.mounting` looks at files that are to be mounted.

Nothing waits for the network or an event while the lock is held.

*Prefixes.* A sector fills from its first byte on: a hole would read as zeros once
nobody holds the fanotify group (docs/adr/0126).

*Published sizes.* `sizes.publish(sector id, bytes)` says how many bytes from the front of a sector
may be read without asking here. It is called with the lock held, and neither blocks nor calls back:

* A size grows only after the bytes were written and verified.
* It becomes 0 *before* the sector is marked to drain, doubted or condemned, before its file is
  emptied, removed or set aside, and when no mount has the file open any more.
* Between a 0 and the file becoming shorter lies a whole grace, longer than a read takes once it was
  let go. It begins only when `sizes.is_settled` says that no answer under way rests on an older
  size; if that does not come true the sector is kept.
* Nothing is published of sectors that no mount has open, and of whole ones only what changes.

Invariants: a file grows only where a `commit` says so, while its sector is held; a mark is set and
removed with the lock held, but for files that are being opened, which `Device.attach` protects.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from firstread.cache.clock import Clock, State, Verdict
from firstread.cache.membership import Member, Membership
from firstread.cache.pending import PendingRead
from firstread.cache.room import Room
from firstread.device.base import Device
from firstread.device.sizes import Published, Unpublished
from firstread.errors import NodeError
from firstread.sectors.sectorstore import SectorStore

GRACE_S = 0.1  # for reads that were let go: the longest copies 128 KiB


class Presence:
    """The state of every sector.

    Args:
        store: of their files.
        device: that asks for them.
        again: takes reads that waited for an emptying, to be routed again. Called without the lock.
        forget: forgets what a fetch in flight knows of a sector's file; False if a worker or a read
            is at it. Called with the lock or without.
        grace_s: see `Clock`.

    Attributes:
        changed: the lock; notified when bytes or files become free, or a hold ends.
        clock: the states of sectors.
        members: the images that are served.
        sizes: where it is published, see above.
        guarded: mounts stand whose sectors are not known, so that any sector may be theirs.
        unverified: bytes of each file that lies aside.
        freed: room that has become free so far.
    """

    def __init__(
        self,
        store: SectorStore,
        device: Device,
        again: Callable[[Sequence[PendingRead]], None] = lambda _: None,
        forget: Callable[[bytes], bool] = lambda _: True,
        *,
        grace_s: float = GRACE_S,
    ) -> None:
        self.grace_s = grace_s
        self.changed = threading.Condition()
        self.clock = Clock(grace_s)
        self.members = Membership()
        self.device = device
        self.again, self.forget = again, forget
        self.sizes: Published = Unpublished()
        self.guarded = False
        self.unverified = store.unverified.sizes()
        self.freed = Room()
        self._store = store
        self._parked: dict[bytes, list[PendingRead]] = {}  # reads that wait for an emptying
        self._checked: dict[bytes, int] = {}  # when what we verified was written last, in ns
        self._filled: dict[bytes, int] = {}  # bytes of those that are held, and the clock's not yet
        count = -store.made
        for sector_id, size in store.sizes():
            self.clock.add(sector_id, size)
            count += 1
        self._others = count  # sector files that were there before

    # -- what is known; takes no lock ----------------------------------------------------------

    def size(self, sector_id: bytes) -> int:
        """Return how many verified bytes of a sector are here; those of one that empties count."""
        return self._filled.get(sector_id) or self.clock.size(sector_id)

    def prefix(self, sector_id: bytes) -> int:
        """Return how far a sector can be read; 0 while it is being emptied."""
        return 0 if self.is_emptying(sector_id) else self.size(sector_id)

    def is_emptying(self, sector_id: bytes) -> bool:
        return self.clock.state(sector_id) is State.EMPTIES

    def is_doubted(self, sector_id: bytes) -> bool:
        """Return whether a present sector is to be checked before it is read."""
        return self.clock.is_doubted(sector_id)

    def is_checked(self, sector_id: bytes, written_ns: int) -> bool:
        """Return whether we verified what was written to a sector's file last, at that time."""
        return self._checked.get(sector_id) == written_ns

    def is_whole(self, sector_id: bytes) -> bool:
        """Return whether a sector that is served has all bytes."""
        whole = self.members.whole_size(sector_id)
        return bool(whole) and self.size(sector_id) >= whole

    def is_mounted(self, sector_id: bytes) -> bool:
        """Return whether an image that is served has a sector."""
        return bool(self.members.having(sector_id))

    def is_needed(self, sector_id: bytes) -> bool:
        """Return whether a mount has a sector, or may have."""
        return self.guarded or self.is_mounted(sector_id)

    @property
    def total_bytes(self) -> int:
        """Bytes of all sectors; what is being filled counts when it is done."""
        return self.clock.bytes + sum(self.unverified.values())

    @property
    def file_count(self) -> int:
        """Files of all sectors."""
        return self._others + self._store.made + len(self.unverified)

    # -- images --------------------------------------------------------------------------------

    def serve(self, member: Member) -> None:
        """Count an image in: nothing of it is removed from now on."""
        with self.changed:
            self.members.add(member)
            whole = member.sizes.items()
            member.absent = {sector_id for sector_id, size in whole if self.size(sector_id) < size}

    def withdraw(self, member: Member) -> None:
        """Count an image out that nobody uses any more."""
        with self.changed:
            self.members.remove(member)
            for sector_id in member.sizes:
                self.publish(sector_id)

    def pin(self, member: Member, *, on: bool) -> None:
        """Exempt the sectors of an image from eviction, or not any more."""
        with self.changed:
            member.pinned = on

    def refute(self, member: Member, sector_id: bytes) -> None:
        """Do not believe an image about the size of a sector any more."""
        with self.changed:
            member.void.add(sector_id)

    # -- reads ---------------------------------------------------------------------------------

    def event(self, read: PendingRead, sector_id: bytes) -> Verdict:
        """Take an event; on ``WAIT`` it is kept here, and goes to `again` later."""
        with self.changed:
            drained = self.clock.state(sector_id) is State.DRAINS
            verdict = self.clock.event(sector_id, whole=self.is_whole(sector_id))
            if verdict is Verdict.ALLOW and not self._unwatch_file(sector_id, read.fd):
                verdict = Verdict.FETCH
            elif verdict is Verdict.WAIT:
                self._parked.setdefault(sector_id, []).append(read)
            if drained:
                self.publish(sector_id)
            return verdict

    def touch(self, read: PendingRead, sector_id: bytes) -> bool:
        """Tell that a read is let go; False if it has to wait: then as `event`."""
        with self.changed:
            verdict = self.clock.touch(sector_id)
            if verdict is Verdict.WAIT:
                self._parked.setdefault(sector_id, []).append(read)
                return False
            if verdict is Verdict.ALLOW:  # it drained
                if self.is_whole(sector_id):
                    self._unwatch_file(sector_id, read.fd)
                self.publish(sector_id)
            return True

    def _unwatch_file(self, sector_id: bytes, fd: int) -> bool:
        """Watch a sector that is whole no longer; False if somebody has made its file shorter."""
        size = os.fstat(fd).st_size
        if size >= self.size(sector_id):
            self.device.unwatch_file(sector_id, fd)
            return True
        self.gone(sector_id)
        self.clock.add(sector_id, size)
        return False

    def publish(self, sector_id: bytes) -> None:
        """Say how much of a sector may be read without asking, as it is now. With the lock."""
        clock = self.clock
        kept = clock.state(sector_id) is State.KEPT and not clock.is_doubted(sector_id)
        readable = kept and self.members.may_be_read(sector_id)
        self.sizes.publish(sector_id, self.size(sector_id) if readable else 0)

    # -- uses ----------------------------------------------------------------------------------

    def hold(self, sector_id: bytes) -> bool:
        """Keep a sector from being emptied; False if that is not possible now."""
        with self.changed:
            verdict = self.clock.hold(sector_id)
            if verdict is Verdict.ALLOW:
                self.unwatch_whole(sector_id)
                self.publish(sector_id)
            return verdict is not Verdict.WAIT

    def release(self, sector_id: bytes) -> None:
        """End a `hold`."""
        with self.changed:
            size = self.size(sector_id)
            self.clock.release(sector_id, size)
            if not self.clock.users(sector_id):
                self._filled.pop(sector_id, None)
            if not size:
                self.remove_empty(sector_id)  # its image may be gone by now
            self.changed.notify_all()

    @contextlib.contextmanager
    def holding(self, sector_id: bytes) -> Iterator[bool]:
        """`hold` a sector for the block; gives False if that is not possible now."""
        held = self.hold(sector_id)
        try:
            yield held
        finally:
            if held:
                self.release(sector_id)

    def reach(self, sector_id: bytes, start: int) -> None:
        """Check that verified frames of a held sector may be written from `start` on.

        Raises:
            NodeError: they would leave a hole.
        """
        if start > (size := self.size(sector_id)):
            raise NodeError(
                f"a write to sector {sector_id.hex()} at {start} would leave a hole behind {size}"
            )

    def commit(self, sector_id: bytes, end: int) -> None:
        """Note that verified frames of a held sector were written, up to `end`."""
        with self.changed:
            self._filled[sector_id] = max(self.size(sector_id), end)
            self.publish(sector_id)

    def present(self, sector_id: bytes, fd: int) -> None:
        """Note that a held sector is whole and verified; `fd`: its file."""
        with self.changed:
            self._checked[sector_id] = os.fstat(fd).st_mtime_ns
            self.clock.trust(sector_id)
            self.device.unwatch_file(sector_id, fd)
            self.members.note_whole(sector_id)
            self.remove_unverified(sector_id)
            self.publish(sector_id)

    def doubt(self, sector_id: bytes) -> None:
        """Let every read of a sector that has bytes wait for a check."""
        with self.changed:
            if self.clock.doubt(sector_id):
                self.publish(sector_id)
            self.device.watch([sector_id])

    def drain(self, sector_id: bytes) -> None:
        """Watch a sector that drains now.

        Raises:
            NodeError: it cannot be watched, so nobody would see its reads.
        """
        self.publish(sector_id)
        self.device.watch([sector_id])

    def keep(self, sector_id: bytes) -> None:
        """Watch a sector, which is kept after all, no longer if it needs no watching."""
        self.unwatch_whole(sector_id)
        self.publish(sector_id)

    def unwatch_whole(self, sector_id: bytes) -> None:
        """Watch a sector no longer, if there is nothing to watch for."""
        if self.is_whole(sector_id) and not self.clock.is_doubted(sector_id):
            self.device.unwatch([sector_id])

    def found(self, sector_id: bytes, size: int) -> None:
        """Note the size of a file that nobody uses: somebody else may have changed it."""
        with self.changed:
            kept = self.clock.state(sector_id) is State.KEPT and not self.clock.users(sector_id)
            if kept and size != self.clock.size(sector_id):
                self.gone(sector_id)
                self.clock.add(sector_id, size)

    # -- what goes -----------------------------------------------------------------------------

    def is_free(self, sector_id: bytes) -> bool:
        """Return whether nobody is at a sector's file, and no fetch in flight knows of it now."""
        busy = self.clock.users(sector_id) or self.is_emptying(sector_id)
        return not busy and self.forget(sector_id)

    def gone(self, sector_id: bytes) -> None:
        """Note that a sector has no bytes any more; its state is the caller's business."""
        self._checked.pop(sector_id, None)
        self._filled.pop(sector_id, None)
        self.members.note_absent(sector_id)

    def free(self, room: Room) -> None:
        """Note that room has become free."""
        self.freed += room
        self.changed.notify_all()

    def unpark(self, sector_id: bytes) -> list[PendingRead]:
        """Return the reads that waited for a sector to be emptied, to be given to `again`."""
        return self._parked.pop(sector_id, [])

    def remove_empty(self, sector_id: bytes) -> None:
        """Remove a sector's file if it has no bytes, and nobody has or uses it. With the lock.

        A fill holds its sector before opening the file, so nobody writes to this one.
        """
        busy = self.clock.users(sector_id) or self.is_emptying(sector_id)
        if busy or self.is_needed(sector_id) or self.size(sector_id):
            return
        before = self._store.made
        self._store.remove([sector_id])
        self.clock.drop(sector_id)
        self.free(Room(0, before - self._store.made))

    def set_aside(self, sector_id: bytes) -> bool:
        """Move a sector's file away if it is unverified; return whether it was.

        Its bytes count as before, but no longer as the sector's.
        """
        with self.changed:
            self.sizes.publish(sector_id, 0)
            size = self.clock.size(sector_id)
            if not self._store.set_aside([sector_id]):
                return False
            self.unverified[sector_id] = size
            self.clock.add(sector_id, 0)
            self.gone(sector_id)
            return True

    def recall(self, sector_id: bytes) -> None:
        """Count an unverified file no longer: it is about to be copied to its place, and to go."""
        with self.changed:
            self.unverified.pop(sector_id, None)

    def remove_unverified(self, sector_id: bytes) -> int:
        """Delete the file of a sector that lies aside, if there is one; return its bytes."""
        if sector_id not in self.unverified:
            return 0
        del self.unverified[sector_id]
        return self._store.unverified.remove(sector_id)
