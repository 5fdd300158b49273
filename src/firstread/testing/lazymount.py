# SPDX-License-Identifier: Apache-2.0
"""A small lazy mount for tests: one file per sector, every sector absent and marked.

Owns a sector store, a fanotify group and an EROFS mount below a scratch directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import time
from collections.abc import Sequence
from pathlib import Path

from firstread.device.base import Read, sector_of
from firstread.device.fanotify import Event, Group
from firstread.device.fanotifydevice import FanotifyDevice
from firstread.erofs.tree import Device, Node, chunk_address, directory
from firstread.erofs.writer import write_erofs
from firstread.errors import NodeError
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.devicebench import DeviceBench, output, summary
from firstread.testing.patience import PATIENCE_S
from firstread.units import MiB

__all__ = ["SECTOR_BYTES", "LazyMount", "output", "summary", "write_metadata"]

SECTOR_BYTES = 1 * MiB
_GRACE_S = 0.5  # for reads that have passed a mark before it was there


class LazyMount(DeviceBench):
    """An image of files ``0``, ``1`` … of one sector each, or another one.

    Args:
        scratch: an empty directory on ext4, xfs or btrfs.
        sectors: how many.
        sector_bytes: size of each.
        root: of another image, whose file data is in `data`.
        data: the sectors of that.
        whole: events are to say no range, as on Linux 6.12.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        sectors: int = 4,
        sector_bytes: int = SECTOR_BYTES,
        root: Node | None = None,
        data: Sequence[bytes] | None = None,
        whole: bool | None = None,
    ) -> None:
        super().__init__()
        self._whole = whole
        random_bytes = random.Random(1).randbytes
        self.data = list(data or (random_bytes(sector_bytes) for _ in range(sectors)))
        self.ids = [hashlib.sha256(data).digest() for data in self.data]
        self.mountpoint = scratch / "mnt"
        self.mountpoint.mkdir()
        self.metadata = scratch / "metadata"
        write_metadata(self.metadata, self.ids, sector_bytes, root)
        self.store = SectorStore(scratch / "store")
        self.store.ensure(self.ids)
        self.group = Group.open(whole=whole)
        self.device.attach(self.metadata, self.ids, self.mountpoint)
        self._buffer = memoryview(bytearray(4096))

    def close(self) -> None:
        self.group.close()
        self.end_readers()
        with contextlib.suppress(NodeError):  # a test has done it
            self.device.detach(self.mountpoint, lazy=True)
        self.store.close()

    @property
    def group(self) -> Group:
        """The group that the events go to; a test may put another one in its place."""
        return self._group

    @group.setter
    def group(self, group: Group) -> None:
        self._group = group
        self.device = FanotifyDevice(self.store, group)

    def path(self, slot: int) -> Path:
        """Return the sector file of a slot."""
        return self.store.path(self.ids[slot])

    # -- what the kernel asks ------------------------------------------------------------------

    def events(self, timeout: float = PATIENCE_S) -> list[Event]:
        """Return the events that come within `timeout` seconds, at the first that does."""
        select.select([self.group], [], [], timeout)
        return self.group.read(self._buffer)

    def reads(self, timeout: float = PATIENCE_S) -> list[Read]:
        found = []
        for event in self.events(timeout):
            sector_id = sector_of(os.readlink(b"/proc/self/fd/%d" % event.fd))
            read = Read(event.fd, event.pid, event.offset, event.count, event.fd, sector_id)
            found.append(read)
        return found

    # -- what becomes of sectors, and of those who serve ---------------------------------------

    def empty(self, slot: int) -> None:
        time.sleep(_GRACE_S)
        os.close(os.open(self.path(slot), os.O_WRONLY | os.O_TRUNC))

    def hand_over(self, read: Read) -> None:
        self._in_child(lambda: self.fill(read))
        os.close(read.fd)

    def lose(self) -> None:
        self.group.close()

    def heal(self) -> None:
        self.group = Group.open(whole=self._whole)
        absent = [i for i, data in zip(self.ids, self.data, strict=True) if self._lacks(i, data)]
        self.device.watch(absent)

    def _lacks(self, sector_id: bytes, data: bytes) -> bool:
        return self.store.size(sector_id) < len(data)


def write_metadata(
    path: Path, ids: Sequence[bytes], sector_bytes: int, root: Node | None = None
) -> None:
    """Write metadata with a file ``0``, ``1`` … that is exactly the sector of that slot.

    Args:
        path: of the metadata.
        ids: of the sectors.
        sector_bytes: size of each.
        root: of another tree, instead.
    """
    if root is None:
        root = directory()
        for slot in range(len(ids)):
            assert root.children is not None
            root.children[str(slot).encode()] = Node(
                0o100755,
                size=sector_bytes,
                chunk_size=sector_bytes,
                chunks=[chunk_address(slot, 0)],
            )
    with path.open("wb") as out:
        write_erofs(out, root, [Device(tag, sector_bytes // 4096) for tag in ids])
