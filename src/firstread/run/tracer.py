# SPDX-License-Identifier: Apache-2.0
"""Sees every first read of a start, on a mount of its own that the page cache does not know yet.

Owns a fanotify group, a private EROFS mount of an image, and the thread that notes each read and
lets it go on at once. Knows no daemon: a daemon that has a sector marked is asked by the kernel,
too, and both answer. Invariant: whatever fails, nobody waits for this process any more, and `close`
leaves neither mount nor mark.

Facts about marks of mounts (Linux 6.18; tests/privileged/test_run_tracer.py shows them):

* A mark of a mount sees the files that were opened through this very mount. EROFS opens the sector
  files through a detached mount of their directory that nobody else has, so reads of other mounts
  of the same sectors, and the daemon's own, are not seen.
* The descriptor of a detached mount leads to its files by way of /proc/self/fd. When it is closed,
  the open files keep the mount, and its mark goes on.
* Each mount of the same metadata has its own page cache, so the first read of each page raises an
  event, whatever other mounts have read.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from firstread.device.base import no_ranges, sector_of
from firstread.device.erofsmount import mount_erofs, unmount
from firstread.device.fanotify import NO_FD, Event, Group
from firstread.device.readahead import START_KIB, set_read_ahead
from firstread.errors import NodeError
from firstread.sectors.storelayout import file_name
from firstread.traces.sectorreads import SectorRead
from firstread.traces.tracefile import MAX_READS

_BUFFER_BYTES = 8192  # 128 events: each of them is an open file until it is answered


class Tracer:
    """A traced mount; a context manager.

    Args:
        metadata: of an image whose sectors are present.
        sectors: directory of the sector files.
        ids: of the image's sectors, by device slot.
        mountpoint: an existing directory.
        read_ahead_kib: of the mount.

    Attributes:
        missed: reads beyond `MAX_READS`, which are not noted.

    Raises:
        NodeError: nothing is mounted then.
    """

    def __init__(
        self,
        metadata: Path,
        sectors: Path,
        ids: Sequence[bytes],
        mountpoint: Path,
        *,
        read_ahead_kib: int = START_KIB,
    ) -> None:
        self.mountpoint = mountpoint
        self.read_ahead_kib = read_ahead_kib
        self.missed = 0
        self._slots: dict[bytes, int] = {}
        for slot, sector_id in enumerate(ids):
            self._slots.setdefault(sector_id, slot)
        self._reads: list[SectorRead] = []
        self._failure: Exception | None = None
        self._begun_ns = time.monotonic_ns()
        self._group = Group.open()
        if self._group.asks_for_sectors:
            self._group.close()
            raise no_ranges()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="tracer", daemon=True)
        try:
            self._mount(metadata, sectors, ids)
        except BaseException:
            self._group.close()
            os.close(self._wake_fd)
            raise
        self._thread.start()

    def _mount(self, metadata: Path, sectors: Path, ids: Sequence[bytes]) -> None:
        tree = self._group.mark_mount(sectors)
        try:
            private = Path(f"/proc/self/fd/{tree}")
            mount_erofs(metadata, [private / file_name(i) for i in ids], self.mountpoint)
        finally:
            os.close(tree)
        try:
            set_read_ahead(self.mountpoint, self.read_ahead_kib)
        except BaseException:
            unmount(self.mountpoint, lazy=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Count the time from now on."""
        self._begun_ns = time.monotonic_ns()

    def since_us(self, moment_ns: int) -> int:
        """Return the microseconds from `begin` to a moment of `time.monotonic_ns`."""
        return max(0, moment_ns - self._begun_ns) // 1000

    def close(self) -> None:
        """Unmount, and see nothing any more. May be called again."""
        if self._wake_fd < 0:
            return
        with contextlib.suppress(NodeError):  # whoever cleaned up the container has done it
            unmount(self.mountpoint, lazy=True)
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        os.close(self._wake_fd)
        self._wake_fd = -1

    def reads(self, until_us: int | None = None) -> list[SectorRead]:
        """Return the reads so far, in order.

        Args:
            until_us: leave later ones out.

        Raises:
            NodeError: the tracer failed, and has not seen all of them.
        """
        if self._failure is not None:
            raise NodeError(f"the reads cannot be traced: {self._failure}") from self._failure
        return [r for r in list(self._reads) if until_us is None or r.time_us <= until_us]

    # -- the thread ----------------------------------------------------------------------------

    def _serve(self) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        waiting = select.poll()
        for fd in (self._group.fileno(), self._wake_fd):
            waiting.register(fd, select.POLLIN)
        try:
            while self._wake_fd not in dict(waiting.poll()):
                for event in self._group.read(buffer):
                    try:
                        self._note(event)
                    finally:
                        if event.fd != NO_FD:
                            self._group.finish([event.fd])
        except Exception as exc:  # noqa: BLE001 - `reads` raises it
            self._failure = exc
        finally:
            self._group.close()  # lets go whoever waits

    def _note(self, event: Event) -> None:
        if event.fd == NO_FD or not event.count:
            return
        slot = self._slots.get(sector_of(os.readlink(b"/proc/self/fd/%d" % event.fd)))
        if slot is None:
            return
        if len(self._reads) >= MAX_READS:
            self.missed += 1
            return
        time_us = self.since_us(time.monotonic_ns())
        self._reads.append(SectorRead(time_us, slot, event.offset, event.count))
