# SPDX-License-Identifier: Apache-2.0
"""Mounts that containers share: one for each image, for as long as somebody holds it.

Owns who holds what. Its callers hold the lock of `LiveMounts`, but for `holds`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from firstread.cache.nodeimage import NodeImage
from firstread.errors import from_os_error
from firstread.fetch.policy import Asked
from firstread.mounts.live import LiveMounts
from firstread.mounts.mounter import Mounter
from firstread.mounts.orphans import Orphans
from firstread.mounts.table import Mount
from firstread.registry.access import Access


class Sharing:
    """The shared mounts of one node.

    Args:
        live: the mounts.
        orphans: mount points that are still to be taken over.
        mounter: makes and ends them.
        directory: of the mount points.
    """

    def __init__(
        self, live: LiveMounts, orphans: Orphans, mounter: Mounter, directory: Path
    ) -> None:
        self._live, self._orphans, self._mounter = live, orphans, mounter
        self._directory = directory

    def share(
        self,
        image: NodeImage,
        name: str,
        access: Access,
        holder: str,
        asked: Asked,
        proven: set[bytes],
    ) -> Mount:
        """Return the shared mount of an image, made if it is not there; `holder` holds it now.

        Args:
            image: which.
            name: of it.
            access: to its registry.
            holder: a name.
            asked: policies for reads through it.
            proven: see `Mounter.mount`.

        Raises:
            FirstreadError, UnprovenError: as `Mounter.mount`.
        """
        mountpoint = self._directory / image.digest.partition(":")[2]
        self._live.forget_if_gone(str(mountpoint))
        mount = self._live.find(str(mountpoint))
        if mount is None:
            policies = {holder: asked}
            record = Mount(
                str(mountpoint), name, image.digest, access, holders=[holder], policies=policies
            )
            return self._make(image, record, proven)
        if holder not in mount.record.holders:
            holders = [*mount.record.holders, holder]
            policies = {**mount.record.policies, holder: asked}
            self._live.change_holders(mount, holders, policies)
        return mount.record

    def _make(self, image: NodeImage, record: Mount, proven: set[bytes]) -> Mount:
        mountpoint = Path(record.mountpoint)
        try:
            mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise from_os_error(exc, "cannot make the mount point") from exc
        try:
            return self._mounter.mount(image, record, proven)
        except BaseException:
            with contextlib.suppress(OSError):
                mountpoint.rmdir()
            raise

    def holds(self, holder: str) -> bool:
        """Return whether `holder` holds a mount."""
        return any(holder in mount.record.holders for mount in self._live)

    def release(self, holder: str) -> None:
        """Give back what `holder` holds; a mount goes with its last holder."""
        for orphan in self._orphans:
            if holder in orphan.holders:
                self._orphans.refuse(orphan.mountpoint)
        for mount in self._live:
            if holder not in mount.record.holders:
                continue
            self._live.forget_if_gone(mount.record.mountpoint)
            if self._live.find(mount.record.mountpoint) is not mount:
                continue
            holders = [other for other in mount.record.holders if other != holder]
            if holders:
                policies = {h: p for h, p in mount.record.policies.items() if h != holder}
                self._live.change_holders(mount, holders, policies)
            else:
                self._mounter.umount(mount.record.mountpoint, lazy=True)
