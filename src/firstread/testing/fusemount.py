# SPDX-License-Identifier: Apache-2.0
"""A small mount for tests by FUSE: every sector absent and watched.

Owns a sector store and the device below a scratch directory. The device answers what is about
names and present bytes by itself; a test answers the reads that ask.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from firstread.device.base import Read
from firstread.device.descriptors import is_dead
from firstread.device.fusedevice import FuseDevice
from firstread.erofs.tree import Node
from firstread.errors import NodeError
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.devicebench import DeviceBench
from firstread.testing.lazymount import SECTOR_BYTES, write_metadata
from firstread.testing.patience import PATIENCE_S


class FuseMount(DeviceBench):
    """As `firstread.testing.lazymount.LazyMount`, but by FUSE, and on any file system.

    Args:
        scratch: an empty directory.
        sectors: how many there are.
        sector_bytes: size of each.
        root: of another tree than a file for each sector.
        data: of the sectors, if not random.
        given: descriptors of the mount that another process has made of the same, in the same
            directory; it is not adopted yet.
    """

    device: FuseDevice

    def __init__(
        self,
        scratch: Path,
        *,
        sectors: int = 4,
        sector_bytes: int = SECTOR_BYTES,
        root: Node | None = None,
        data: Sequence[bytes] | None = None,
        given: Mapping[int, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        random_bytes = random.Random(1).randbytes
        self.data = list(data or (random_bytes(sector_bytes) for _ in range(sectors)))
        self.ids = [hashlib.sha256(data).digest() for data in self.data]
        self.mountpoint, self._control = scratch / "mnt", scratch / "fusectl"
        self.metadata = scratch / "metadata"
        self.store = SectorStore(scratch / "store", filesystems=None)
        self._asked: queue.SimpleQueue[Read] = queue.SimpleQueue()
        self.kept: dict[int, tuple[int, int]] = {}
        self.dropped: list[int] = []
        if given is not None:
            for number, pair in given.items():
                self._keep(number, pair)
            self._open(given)
            return
        self.mountpoint.mkdir()
        write_metadata(self.metadata, self.ids, sector_bytes, root)
        self.store.ensure(self.ids)
        self._control.mkdir()
        subprocess.run(["mount", "-t", "fusectl", "none", self._control], check=True)
        self._attach()

    def _attach(self) -> None:
        self._open({})
        self.device.attach(self.metadata, self.ids, self.mountpoint)

    def _open(self, given: Mapping[int, tuple[int, int]]) -> None:
        self.device = self._make(given)
        self.device.ask = self._asked.put

    def _make(self, given: Mapping[int, tuple[int, int]]) -> FuseDevice:
        return FuseDevice(self.store, given, self._keep, self.dropped.append)

    def _keep(self, number: int, pair: tuple[int, int]) -> None:
        self.kept[number] = os.dup(pair[0]), os.dup(pair[1])

    def close(self) -> None:
        kept = self._abort()  # before their numbers are another's
        with contextlib.suppress(NodeError):  # a test has done it
            self.device.detach(self.mountpoint, lazy=True)
        for fd in kept:
            os.close(fd)
        subprocess.run(["umount", self._control], check=True)
        self.end_readers()
        self.store.close()

    def _abort(self) -> list[int]:
        """End all connections; return the descriptors that were kept."""
        kept = [fd for fds in self.kept.values() for fd in fds]
        for number in self._connections():
            with contextlib.suppress(OSError):
                (self._control / str(os.minor(number)) / "abort").write_text("1")
        self.kept.clear()
        return kept

    def _connections(self) -> list[int]:
        """Return the device numbers of the FUSE file systems that live."""
        return [number for number, (fd, _) in self.kept.items() if not is_dead(fd)]

    # -- what the kernel asks ------------------------------------------------------------------

    def reads(self, timeout: float = PATIENCE_S) -> list[Read]:
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._asked.get(timeout=timeout))
            while True:
                found.append(self._asked.get_nowait())
        return found

    # -- what becomes of sectors, and of those who serve ---------------------------------------

    def empty(self, slot: int) -> None:
        self.store.empty(self.ids[slot])

    def hand_over(self, read: Read) -> None:
        # A connection answers by threads of its own: another process only fills.
        self._in_child(lambda: self._write(read, read.offset + read.length))
        self._answer(read)

    def lose(self) -> None:
        for fd in self._abort():
            os.close(fd)

    def heal(self) -> None:
        self.device.detach(self.mountpoint, lazy=True)
        self._attach()
