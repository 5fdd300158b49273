# SPDX-License-Identifier: Apache-2.0
"""Makes and ends mounts.

Owns the order of the steps, and their rollback. Its callers hold the lock of `LiveMounts`.
Invariant: a mount is made whole, with its record on disk before it, or nothing is left of it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from firstread.cache.nodeimage import NodeImage
from firstread.errors import FirstreadError, NodeError, UsageError
from firstread.fetch.fetcher import Fetcher
from firstread.fetch.served import Served
from firstread.mounts.conflicts import SizeConflicts
from firstread.mounts.counts import NodeCounts
from firstread.mounts.kernelproof import KernelProof
from firstread.mounts.live import LiveMounts
from firstread.mounts.orphans import Orphans
from firstread.mounts.serving import Serving
from firstread.mounts.starting import Starts
from firstread.mounts.table import Mount
from firstread.sectors.sectorstore import SectorStore


class Mounter:
    """Makes and ends mounts of one node.

    Args:
        live: the mounts.
        orphans: mount points that are still to be taken over.
        serving: of images.
        store: of sector files.
        fetcher: that fills them.
        proof: that this kernel fails closed.
        starts: of the mounts.
        counts: of the node.
        verify: when sectors that are present are checked, see `firstread.config`.
    """

    def __init__(
        self,
        live: LiveMounts,
        orphans: Orphans,
        serving: Serving,
        store: SectorStore,
        fetcher: Fetcher,
        proof: KernelProof,
        starts: Starts,
        counts: NodeCounts,
        *,
        verify: str,
    ) -> None:
        self._live, self._orphans, self._serving = live, orphans, serving
        self._counts = counts
        self._proof, self._starts, self._verify = proof, starts, verify
        self._cache, self._device = fetcher.cache, fetcher.presence.device
        self._conflicts = SizeConflicts(store, fetcher)

    def mount(self, image: NodeImage, record: Mount, proven: set[bytes]) -> Mount:
        """Mount an image.

        Args:
            image: which.
            record: where, and for whom.
            proven: sectors of which the image has proved the size, see `SizeConflicts.resolve`.

        Returns:
            the record; of the mount that is there if the same command has made it before.

        Raises:
            FirstreadError: it cannot be mounted; nothing is left then.
            UnprovenError: others contradict it; likewise.
        """
        mountpoint = record.mountpoint
        self._orphans.refuse(mountpoint)
        self._live.forget_if_gone(mountpoint)
        there = self._live.find(mountpoint)
        if there is not None and record.command and there.record.command == record.command:
            return there.record  # made by a fetcher that died before it could say so
        if there is not None:
            raise UsageError(f"{mountpoint} is a mount of {there.record.image}", image=record.image)
        self._cache.admission.with_room(self._proof.require)
        self._conflicts.resolve(image, proven)
        record.device = self._device.name
        self._live.save(record)
        self._make(image, record)
        return record

    def _make(self, image: NodeImage, record: Mount) -> None:
        served, began = None, time.monotonic()
        try:
            # First the image counts as mounted, so that nothing of it is removed from now on.
            served = self._serving.serve(image, record)
            missing, doubted = self._cache.mounting.prepare(served.member, self._verify)
            absent = len(served.member.absent)
            self._cache.make_files(missing)
            self._serving.prepare(served)
            self._serving.prefetch(served, record)  # while the kernel mounts
            self._attach(served, record, doubted)
        except BaseException as exc:
            self._live.drop(record, served)
            if isinstance(exc, FirstreadError):
                exc.about(image=record.image)
            raise
        served.log.begin(time.monotonic(), cold=bool(served.member.absent))
        self._live.add(record, served)
        self._counts.mounted(time.monotonic() - began, len(served.sectors) - absent, absent)

    def _attach(self, served: Served, record: Mount, doubted: list[bytes]) -> None:
        """Mount an image: all of it, or nothing."""
        image, mountpoint = served.image, Path(record.mountpoint)
        with self._cache.mounting.opening(served.member, doubted):
            self._device.attach(image.metadata, image.ids(), mountpoint)
        record.starting = bool(served.member.absent)
        try:
            self._live.note_file_system(record)
            self._starts.begin(record, served)
        except BaseException:
            self._device.detach(mountpoint, lazy=True)
            raise

    def umount(self, directory: str, *, lazy: bool) -> None:
        """Unmount.

        Args:
            directory: the mount point.
            lazy: even if it is busy. Its users can go on reading.

        Raises:
            UsageError: nothing of ours is mounted there.
            NodeError: it is busy; the message says who holds it.
        """
        mountpoint = os.path.realpath(directory)
        self._orphans.refuse(mountpoint)
        self._live.forget_if_gone(mountpoint)
        mount = self._live.at(directory)
        if mount.record.holders and not lazy:
            raise NodeError(
                f"{mountpoint} is shared by {', '.join(mount.record.holders)}",
                hint="stop these containers first",
            )
        try:
            self._device.detach(Path(mountpoint))
        except NodeError:
            if not lazy:
                raise
            self._live.save(mount.record.taken_away())  # first: the next fetcher serves it on
            self._device.detach(Path(mountpoint), lazy=True)
        self._live.forget(mount)
