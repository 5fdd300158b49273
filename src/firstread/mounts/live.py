# SPDX-License-Identifier: Apache-2.0
"""The mounts of now: the record and the served image of each mount point.

Owns the mounts in memory, what becomes of their records on disk, and the mounts that outlive their
mount points. Does not mount or unmount.

Rules of `LiveMounts.lock`, the one lock of this room:

* A thread that makes, changes or ends a mount holds it, and so does a prune of the store.
* Nobody handles an event or waits for a registry under it.
* The locks of the cache and of the image store are taken inside it, never around it.
* Readers that only look (`find`, iteration) need not hold it: they see one moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from firstread.cache.imagestore import ImageStore
from firstread.cache.inventory import Use
from firstread.cache.nodecache import Cache
from firstread.device.superblock import FileSystem
from firstread.errors import NodeError, UsageError
from firstread.fetch.policy import Asked
from firstread.fetch.served import Served
from firstread.mounts.detached import DetachedMounts
from firstread.mounts.serving import Serving
from firstread.mounts.table import Mount, MountTable, mounted_erofs

log = logging.getLogger("node")


@dataclass(frozen=True, eq=False, slots=True)
class LiveMount:
    """A mount at its mount point.

    Args:
        record: of the table.
        served: its image.
    """

    record: Mount
    served: Served


class LiveMounts:
    """The mounts of a node.

    Args:
        table: their records.
        serving: of their images.
        images: of the node.
        cache: makes room on the disk for records.
        shared: directory of the mount points that containers share.
    """

    def __init__(
        self, table: MountTable, serving: Serving, images: ImageStore, cache: Cache, shared: Path
    ) -> None:
        self.lock = threading.RLock()
        self._table, self._serving, self._images = table, serving, images
        self._cache, self._shared = cache, shared
        self._live: dict[str, LiveMount] = {}  # by mount point
        self._detached = DetachedMounts(self.lock, self._end)

    def __iter__(self) -> Iterator[LiveMount]:
        return iter(list(self._live.values()))

    def find(self, mountpoint: str) -> LiveMount | None:
        """Return what is mounted at a real path."""
        return self._live.get(mountpoint)

    def at(self, directory: str) -> LiveMount:
        """Return what is mounted at a path.

        Raises:
            UsageError: nothing of ours is.
        """
        mount = self.find(os.path.realpath(directory))
        if mount is None:
            raise UsageError(f"{directory} is not a mount of firstread")
        return mount

    def uses(self) -> dict[str, Use]:
        """Return how images are used, by digest; what outlives its mount point counts."""
        with self.lock:
            mounts = Counter(mount.record.digest for mount in self)
            mounts.update(record.digest for record, _ in self._detached)
            pinned = {mount.record.digest for mount in self if mount.record.pinned}
        return {digest: Use(count, digest in pinned) for digest, count in mounts.items()}

    # -- changes; with the lock held -----------------------------------------------------------

    def add(self, record: Mount, served: Served) -> None:
        """Note a mount that was made or taken over."""
        if record.detached:
            self._detached.add(record, served)
        else:
            self._live[record.mountpoint] = LiveMount(record, served)
            if record.pinned:
                self._cache.presence.pin(served.member, on=True)
        self._images.touch(served.image.digest)

    def save(self, record: Mount) -> None:
        """Write a record, with room made for it.

        Raises:
            NodeError: that is not possible.
        """
        self._cache.admission.with_room(lambda: self._table.save(record))

    def drop(self, record: Mount, served: Served | None) -> None:
        """Undo what was done for a mount that could not be made."""
        self._remove(record)
        if served is not None:
            self._serving.drop_policies(record.mountpoint, served)
            self.withdraw(served)

    def note_file_system(self, record: Mount) -> None:
        """Note which file system stands at the mount point.

        The next fetcher serves it as long as it is used, even if somebody else has unmounted it.
        """
        found = FileSystem.at(Path(record.mountpoint))
        if found != record.file_system:
            record.file_system = found
            self._try_save(record)

    def note_started(self, record: Mount) -> None:
        """Note that what runs in a mount has started."""
        with self.lock:
            mount = self.find(record.mountpoint)
            record.starting = False
            if mount is not None and mount.record is record:  # else another may have its place
                self._try_save(record)

    def _try_save(self, record: Mount) -> bool:
        """Write a record that is of no use after a reboot; return whether that worked."""
        try:
            self._table.save(record, sync=False)
        except NodeError as exc:
            log.warning("mount %s: %s", record.mountpoint, exc)
            return False
        return True

    def _remove(self, record: Mount) -> None:
        """Remove a record; one that stays is found to be stale later."""
        try:
            self._table.remove(record)
        except NodeError as exc:
            log.warning("mount %s: %s", record.mountpoint, exc)

    def detach(self, record: Mount) -> Mount:
        """Note in the table that a mount has outlived its mount point; return its new record."""
        detached = record.taken_away()
        if self._try_save(detached) and not record.detached:
            self._remove(record)
        return detached

    def change_holders(
        self, mount: LiveMount, holders: list[str], policies: dict[str, Asked]
    ) -> None:
        """Change who shares a mount: on the disk first, for that can fail."""
        record = mount.record
        self.save(msgspec.structs.replace(record, holders=holders, policies=policies))
        record.holders, record.policies = holders, policies
        self._serving.apply_policies(record, mount.served)
        self._serving.prefetch(mount.served, record)

    def pin(self, mount: LiveMount) -> None:
        """Have the image of a mount stay in the cache."""
        if not mount.record.pinned:
            self.save(msgspec.structs.replace(mount.record, pinned=True))
            mount.record.pinned = True
        self._cache.presence.pin(mount.served.member, on=True)

    def forget_if_gone(self, mountpoint: str) -> None:
        """Forget a mount that somebody else has unmounted."""
        mount = self.find(mountpoint)
        if mount is not None:
            source = str(mount.served.image.metadata)
            if mounted_erofs().get(mountpoint) != source:
                log.warning("mount %s was unmounted by somebody else", mountpoint)
                self.forget(mount)

    def forget(self, mount: LiveMount) -> None:
        """Note that a mount has left its mount point. The daemon still serves its users."""
        record, served = mount.record, mount.served
        del self._live[record.mountpoint]
        if record.taken_away().is_used():  # by an overlayfs, or in another mount namespace
            self._detached.add(self.detach(record), served)
        else:
            self._remove(record)
            self._remove(record.taken_away())  # a lazy unmount may have written it
        self._serving.drop_policies(record.mountpoint, served)
        self.withdraw(served)
        if record.pinned and not any(m.record.pinned for m in self if m.served is served):
            self._cache.presence.pin(served.member, on=False)
        mountpoint = Path(record.mountpoint)
        if mountpoint.parent == self._shared:
            with contextlib.suppress(OSError):
                mountpoint.rmdir()

    def withdraw(self, served: Served) -> None:
        """Stop serving an image if nobody uses it any more."""
        used = [*(mount.served for mount in self), *(other for _, other in self._detached)]
        if any(served is other for other in used):
            return
        self._images.touch(served.image.digest)
        self._serving.withdraw(served)

    def _end(self, record: Mount, served: Served) -> None:
        log.info("nobody uses what was mounted at %s any more", record.mountpoint)
        self._remove(record)
        self.withdraw(served)
