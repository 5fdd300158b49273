# SPDX-License-Identifier: Apache-2.0
"""A node: the parts that hold its images and mounts, and what can be asked of them.

Owns the composition, and the way of one mount from its name to its mount point. What each part
does stands in its module; `firstread.mounts.live` has the rules of their lock.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec import structs

from firstread.cache.imagestore import ImageStore
from firstread.cache.inventory import IdleImages
from firstread.cache.nodeimage import NodeImage
from firstread.config import PolicyTable
from firstread.device.base import no_ranges
from firstread.errors import NodeError, UsageError
from firstread.fetch.fetcher import Fetcher
from firstread.fetch.policy import AS_CONFIGURED, Asked
from firstread.fetch.served import Served
from firstread.fetch.startplan import Mode
from firstread.fetch.tracelog import SeenReads
from firstread.mounts.conflicts import Conflict, UnprovenError, prove
from firstread.mounts.counts import NodeCounts
from firstread.mounts.kernelproof import KernelProof
from firstread.mounts.live import LiveMount, LiveMounts
from firstread.mounts.mounter import Mounter
from firstread.mounts.network import Network
from firstread.mounts.nodestatus import (
    Mounted,
    MountHistory,
    MountStatus,
    NodeStatus,
    Planned,
    Policies,
    Steps,
)
from firstread.mounts.online import OnlineMaintenance
from firstread.mounts.puller import Puller
from firstread.mounts.pulls import PATIENT, Waiting
from firstread.mounts.recovery import Recovery
from firstread.mounts.serving import Serving
from firstread.mounts.sharing import Sharing
from firstread.mounts.starting import Starts
from firstread.mounts.startspans import StartFacts
from firstread.mounts.table import Mount, MountTable
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.repository import Repository
from firstread.registry.access import Access
from firstread.sectors.sectorstore import SectorStore

ATTEMPTS = 5  # to mount an image that somebody prunes, or mounts another that contradicts it


@dataclass(frozen=True)
class _Order:
    """A mount that somebody has asked for; see `Node.mount`."""

    name: str
    reference: Reference
    target: str | None
    access: Access
    holder: str
    asked: Asked
    command: str
    waiter: Waiting


class Node:
    """Images and mounts of one root.

    Args:
        root: of store, images and mount table.
        run_dir: where shared mounts are made.
        store: of the sector files.
        fetcher: that fills them.
        policy: of mounts that were asked for without one.
        network: how registries are reached.
        verify: when sectors that are present are checked, see `firstread.config`.
        prefetch: what is fetched though nobody reads it, of a mount and an image that say nothing.
        proof: that the device works; by default of fanotify.

    Attributes:
        network: as given.
        on_start: takes the facts of each start that is over, as a function that gathers them; must
            neither block nor raise.
        maintenance: of what is on the node.
    """

    def __init__(
        self,
        root: Path,
        run_dir: Path,
        store: SectorStore,
        fetcher: Fetcher,
        policy: PolicyTable,
        network: Network,
        *,
        verify: str,
        prefetch: Mode = "hot",
        proof: KernelProof | None = None,
    ) -> None:
        self.network = network
        self.on_start: Callable[[Callable[[], StartFacts]], None] = lambda _: None
        self._fetcher, self._counts = fetcher, NodeCounts()
        cache, table, shared = fetcher.cache, MountTable(root), run_dir / "images"
        self._images = images = ImageStore(root, is_used=self._is_used)
        cache.use(IdleImages(images, store, fetcher.presence.is_needed))
        self._serving = serving = Serving(fetcher, network, policy, prefetch)
        self._live = live = LiveMounts(table, serving, images, cache, shared)
        device = fetcher.presence.device
        self._starts = starts = Starts(device, self._waited, live.note_started, self._started)
        self._recovery = Recovery(table, live, serving, images, fetcher, starts, verify=verify)
        orphans = self._recovery.orphans
        proof = proof or KernelProof(root)
        self._mounter = Mounter(
            live, orphans, serving, store, fetcher, proof, starts, self._counts, verify=verify
        )
        self._sharing = Sharing(live, orphans, self._mounter, shared)
        self._puller = Puller(images, network, serving, cache, self._counts, verify=verify)
        self.maintenance = OnlineMaintenance(images, store, fetcher, live.lock, live.uses)

    def _is_used(self, digest: str) -> bool:
        """Return whether an image is mounted, or used on, or may be. Takes no lock."""
        return self._serving.find(digest) is not None or self._recovery.orphans.claims(digest)

    def _waited(self, served: Served) -> int:
        """Return how many reads of an image have waited so far."""
        self._fetcher.count_answered()
        return served.stats.waits

    def _started(self, record: Mount, served: Served) -> None:
        """Count and tell the start of an image, once it is over."""
        history = served.history
        if history.began_with_mount() and not history.is_told:
            history.is_told = True
            self._counts.started(history.start_s())
            self.on_start(partial(self._facts, record, served))

    def _facts(self, record: Mount, served: Served) -> StartFacts:
        return StartFacts(
            image=record.image,
            digest=record.digest,
            device=record.device,
            context=served.history.context,
            pull=self._puller.take_lately(record.digest),
            history=served.history.document(()),
            offset_s=time.time() - time.monotonic(),
            figures=served.stats.figures(),
        )

    def recover(self) -> None:
        """Take over the mounts that a fetcher before has left. As `Recovery.run`."""
        self._recovery.run()

    def pull(
        self,
        reference: Reference,
        access: Access,
        policy: str = "missing",
        waiter: Waiting = PATIENT,
        context: str = "",
    ) -> NodeImage:
        """Return an image; its metadata is fetched if it is not here. As `Puller.pull`."""
        with self._counts.failures(policy):
            return self._puller.pull(reference, access, policy, waiter=waiter, context=context)

    # -- mount, umount -------------------------------------------------------------------------

    def mount(
        self,
        name: str,
        directory: str | None,
        access: Access,
        *,
        policy: str = "missing",
        holder: str = "",
        asked: Asked = AS_CONFIGURED,
        command: str = "",
        waiter: Waiting = PATIENT,
        context: str = "",
    ) -> Mounted:
        """Mount an image.

        Args:
            name: of the image.
            directory: where; None for the mount point that all share who use the image.
            access: to its registry.
            policy: when to ask the registry, see `Puller.pull`.
            holder: who shares the mount; it stays until every holder has released it.
            asked: policies for reads through it.
            command: names this request, in case that it comes again because a fetcher has died.
            waiter: who waits for it.
            context: W3C trace context of who asks, or empty.

        Raises:
            FirstreadError: it cannot be mounted; nothing is left then.
        """
        times = [begun := time.monotonic()]

        def note_resolved(at: float) -> None:
            times[1:] = [max(begun, at)]  # it may have joined a pull; again, if it was pruned

        reference = parse_reference(name)
        with self._counts.failures(policy), contextlib.ExitStack() as kept:
            for _ in range(ATTEMPTS):
                image = self._puller.pull_sound(
                    reference, access, policy, note_resolved, waiter, asked.prefetch
                )
                times.append(time.monotonic())
                waiter.check()
                target = None if directory is None else _target(directory, name)
                order = _Order(name, reference, target, access, holder, asked, command, waiter)
                before = self._serving.fetched(image.digest)
                record = self._mount(image, order)
                if record is not None:
                    break
                kept.enter_context(self._images.keeping(image.digest))  # so not a second time
            else:
                raise NodeError("its name means another image each time", image=name)
        times.append(time.monotonic())
        steps = Steps(*(end - begin for begin, end in itertools.pairwise(times)))
        live = self._live.find(record.mountpoint)
        if live is not None:
            live.served.history.mounted(begun, structs.asdict(steps), context)
        return Mounted(
            mountpoint=record.mountpoint,
            digest=image.digest,
            config=image.config,
            device=self._fetcher.presence.device.name,
            device_number=record.file_system.device if record.file_system else None,
            timeline=steps,
            prefetch=self._planned(record),
            before=before[live.served if live else None],
        )

    def _planned(self, record: Mount) -> Planned | None:
        """Return what is fetched for a mount; None if it is gone by now."""
        mount = self._live.find(record.mountpoint)
        plan = mount.served.plan if mount is not None else None
        return Planned.of(plan) if plan is not None else None

    def _mount(self, image: NodeImage, order: _Order) -> Mount | None:
        """Mount an image that is here; return None if it was pruned meanwhile.

        Nobody waits for a registry under the lock: where others contradict the image, it has to
        prove without the lock that it is right.
        """
        proven: set[bytes] = set()
        for _ in range(ATTEMPTS):
            try:
                with self._live.lock, self._images.keeping(image.digest) as kept:
                    return self._mount_now(image, order, proven) if kept else None
            except UnprovenError as exc:
                conflicts = exc.conflicts
            proven |= self._proofs(image, order, conflicts)
        raise NodeError(
            "images that disagree with it about sectors are mounted meanwhile",
            hint="try again",
            image=order.name,
        )

    def _proofs(self, image: NodeImage, order: _Order, conflicts: list[Conflict]) -> set[bytes]:
        """Have an image prove that it is right; return the sectors of which it has."""

        def work(repository: Repository, _: Callable[[], None]) -> set[bytes]:
            return prove(conflicts, repository)

        what = "prove", image.digest
        return self.network.ask(what, order.reference, order.access, work, order.waiter)[0]

    def _mount_now(self, image: NodeImage, order: _Order, proven: set[bytes]) -> Mount:
        name, access, asked = order.name, order.access, order.asked
        if order.target is None:
            return self._sharing.share(image, name, access, order.holder, asked, proven)
        record = Mount(
            order.target, name, image.digest, access, policies={"": asked}, command=order.command
        )
        return self._mounter.mount(image, record, proven)

    def umount(self, directory: str, *, lazy: bool = False) -> None:
        """Unmount. As `Mounter.umount`."""
        with self._live.lock:
            self._mounter.umount(directory, lazy=lazy)

    def holds(self, holder: str) -> bool:
        """Return whether `holder` shares a mount."""
        return self._sharing.holds(holder)

    def release(self, holder: str) -> None:
        """Give back the mounts that `holder` shares; a mount goes with its last holder."""
        with self._live.lock:
            self._sharing.release(holder)

    def pin(self, directory: str) -> None:
        """Fetch all of a mounted image, and have it fetched again if it is not whole.

        Raises:
            UsageError: nothing of ours is mounted there.
            NodeError: that cannot be noted.
        """
        with self._live.lock:
            mount = self._live.at(directory)
            self._live.pin(mount)
            self._serving.complete(mount.served)

    def seen(self, directory: str) -> SeenReads:
        """Return what a mount has read of data that was not on the node.

        Raises:
            UsageError: nothing of ours is mounted there.
            NodeError: nobody knows which bytes were read.
        """
        with self._live.lock:
            mount = self._live.at(directory)
        if self._fetcher.presence.device.capabilities.asks_for_sectors:
            raise no_ranges()
        kib = 0
        if mount.record.file_system is not None:
            with contextlib.suppress(NodeError):
                kib = self._fetcher.presence.device.read_ahead(mount.record.file_system)
        return mount.served.log.document(mount.record.digest, kib)

    # -- status --------------------------------------------------------------------------------

    def status(self) -> NodeStatus:
        """Return the mounts, the store and the endpoints."""
        self._fetcher.count_answered()
        wanted = self._fetcher.wanted()
        return NodeStatus(
            mounts=[self._mount_status(mount, wanted) for mount in self._live],
            endpoints=self.network.endpoints(),
            store=self.maintenance.figures(),
            totals=self._counts.document(self._fetcher.totals),
        )

    def history(self, directory: str) -> MountHistory:
        """Return what happened to the image that is mounted at a path.

        Raises:
            UsageError: nothing of ours is mounted there.
        """
        mount = self._live.at(directory)
        record, served = mount.record, mount.served
        size = self._fetcher.presence.size
        sectors = served.image.block_image.index.sectors
        history = served.history.document([size(sector.id) for sector in sectors])
        return MountHistory(
            mountpoint=record.mountpoint,
            image=record.image,
            digest=record.digest,
            repository=served.lane.name,
            **structs.asdict(history),
        )

    def _mount_status(self, mount: LiveMount, wanted: set[bytes]) -> MountStatus:
        record, served = mount.record, mount.served
        sectors = served.image.block_image.index.sectors
        present = sum(self._fetcher.presence.size(s.id) >= s.size for s in sectors)
        return MountStatus(
            mountpoint=record.mountpoint,
            image=record.image,
            digest=record.digest,
            device=self._fetcher.presence.device.name,
            repository=served.lane.name,
            source=served.lane.source,
            sectors=len(sectors),
            present=present,
            self_sufficient=present == len(sectors),
            pinned=record.pinned,
            holders=record.holders,
            policies=Policies.of(self._serving.policy_of(record)),
            prefetch=served.plan.mode if served.plan else "none",
            hot=len(served.member.hot),
            hot_present=len(served.member.hot - served.member.absent),
            wanted=len(wanted.intersection(served.sectors)),
            read_ahead_kib=self._starts.read_ahead_kib(record),
            came_by_cause=served.history.came(),
            last_waits_s=list(served.log.last),
            **structs.asdict(served.stats.figures()),
        )


def _target(directory: str, image: str) -> str:
    """Return the real path of a directory. Raises UsageError if it is none."""
    target = os.path.realpath(directory)
    if not os.path.isdir(target):
        raise UsageError(
            f"{directory} is not a directory", image=image, hint="make the directory first"
        )
    return target
