# SPDX-License-Identifier: Apache-2.0
"""Takes over the mounts that a fetcher before has left.

Owns what it takes to serve a mount that stands already; `firstread.mounts.orphans` owns when that
is tried. Invariant: a mount that stands, or is used, is never forgotten: its reads wait.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping
from pathlib import Path

from firstread.cache.imagestore import ImageStore
from firstread.cache.membership import Member
from firstread.errors import FirstreadError
from firstread.fetch.fetcher import Fetcher
from firstread.fetch.served import Served
from firstread.mountinfo import MountLine
from firstread.mounts.live import LiveMounts
from firstread.mounts.orphans import LeftAloneError, Orphans
from firstread.mounts.serving import Serving
from firstread.mounts.starting import Starts
from firstread.mounts.table import Mount, MountTable, device_of, file_system_of, source_of

log = logging.getLogger("node")


class Recovery:
    """Takes over mounts of one node.

    Args:
        table: their records.
        live: the mounts.
        serving: of their images.
        images: of the node.
        fetcher: that fills them.
        starts: of the mounts.
        verify: when sectors that are present are checked, see `firstread.config`.

    Attributes:
        orphans: what could not be taken over yet.
    """

    def __init__(
        self,
        table: MountTable,
        live: LiveMounts,
        serving: Serving,
        images: ImageStore,
        fetcher: Fetcher,
        starts: Starts,
        *,
        verify: str,
    ) -> None:
        self._table, self._live, self._serving = table, live, serving
        self._images, self._fetcher, self._starts = images, fetcher, starts
        self._verify = verify
        self._anew = False  # the marks were gone when this fetcher began
        self._spared: dict[str, Member] = {}  # images of mounts that are left alone, by digest
        self.orphans = Orphans(table, self._recover, live.lock, self._changed)

    def run(self) -> None:
        """Take over the mounts of the table that still stand; forget the others.

        A mount whose source is away, or whose image cannot be opened because this process is short
        of something, is not given up: its reads wait.
        """
        self._anew = not self._fetcher.presence.device.is_watching()
        self._fetcher.expect(reads=True, guarded=True)
        self.orphans.adopt_all()

    def _changed(self) -> None:
        self._spare(self.orphans.left_alone())
        self._fetcher.expect(reads=self.orphans.may_pass, guarded=self.orphans.exist)

    def _spare(self, digests: set[str]) -> None:
        """Keep the sectors of mounts that are left alone: nobody here sees their reads."""
        presence = self._fetcher.presence
        for digest in digests - self._spared.keys():
            with contextlib.suppress(FirstreadError):  # it is tried again
                member = Member(self._images.load(digest).block_image.index.sectors)
                member.mounted = member.pinned = True
                presence.serve(member)
                self._spared[digest] = member
        for digest in self._spared.keys() - digests:
            member = self._spared.pop(digest)
            presence.withdraw(member)
            self._fetcher.cache.mounting.unwatch(member.sizes)

    def _recover(self, record: Mount, seen: Mapping[str, MountLine]) -> None:
        source = str(self._images.metadata_path(record.digest))
        line = None if record.detached else seen.get(record.mountpoint)
        stands = line is not None and source_of(line) == source
        if stands or record.is_used():
            self._take_over(record, record if stands else record.taken_away(), seen)
            return
        log.info("mount %s is gone", record.mountpoint)
        self._table.remove(record)
        for served in self._serving.images():
            if served.image.digest == record.digest:
                self._live.withdraw(served)  # an attempt has failed halfway

    def _take_over(self, known: Mount, record: Mount, seen: Mapping[str, MountLine]) -> None:
        """Serve a mount.

        Args:
            known: its record in the table. It stays until the mount is served, or left alone.
            record: the one that it is to have: it may have left its place.
            seen: as of `seen_mounts`.
        """
        device = self._fetcher.presence.device
        number, kind = file_system_of(record, seen)
        maker = device_of(record, kind)
        is_ours = maker in ("", device.name)
        if maker == "fanotify" and not is_ours:
            raise LeftAloneError(
                self._renewed(known, record),
                f"it is of the device fanotify, and this daemon has {device.name}: reads of what"
                " is absent fail",
                hint=f"umount {record.mountpoint}, or stop the daemon and start it with --device"
                " fanotify",
            )
        image = self._serving.find(record.digest) or self._images.load(record.digest)
        if not is_ours or not device.adopt(image.metadata, image.ids(), number):
            self._give_up(known, record)
            return
        mounting, doubt = self._fetcher.cache.mounting, self._verify != "never"
        adopt = functools.partial(mounting.adopt, anew=self._anew, doubt=doubt)
        served = self._serving.serve(image, record, adopt)  # no read is answered without doubts
        device.go_on(number)
        if not record.detached:
            self._live.note_file_system(record)
        if record.pinned:
            self._serving.complete(served)
        # From here on nothing fails: what failed before is done again from the beginning.
        record = self._renewed(known, record)
        self._live.add(record, served)
        self._starts.begin(record, served)
        self._flush(served)
        self._serving.prepare(served)
        if not record.detached:
            self._serving.prefetch(served, record)
        log.info("took over mount %s of %s", record.mountpoint, record.image)

    def _renewed(self, known: Mount, record: Mount) -> Mount:
        """Have the table say that a mount has left its place, if it has; return its record."""
        return record if known.detached == record.detached else self._live.detach(known)

    def _give_up(self, known: Mount, record: Mount) -> None:
        """End a mount that nobody can serve any more, so that it can be made again."""
        log.error("mount %s of %s is lost: mount it again", record.mountpoint, record.image)
        if not record.detached:
            self._fetcher.presence.device.detach(Path(record.mountpoint), lazy=True)
        self._table.remove(known)

    def _flush(self, served: Served) -> None:
        """Have what is whole written to the disk: nobody else knows whether it was."""
        member = served.member
        for sector_id in member.sizes.keys() - set(member.absent):
            self._fetcher.flusher.add(sector_id, self._fetcher.presence.size(sector_id))
