# SPDX-License-Identifier: Apache-2.0
"""A node: its images, its mounts, and what can be asked of it.

Owns mounting and unmounting, recovery of the mounts that a daemon before has left, and the answers
to `firstread.node.control`. One lock serialises changes of the mount table; no event is handled
under it, and nobody waits for a registry under it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from firstread.config import PolicyTable
from firstread.device.erofsmount import mount_erofs, unmount
from firstread.device.superblock import FileSystem
from firstread.errors import (
    FirstreadError,
    ImageError,
    NodeError,
    NotFoundError,
    SourceError,
    UsageError,
    from_os_error,
)
from firstread.node.attended import Attended
from firstread.node.claims import Claims
from firstread.node.detached import DetachedMounts
from firstread.node.fetcher import Fetcher
from firstread.node.images import ImageStore, NodeImage
from firstread.node.kernelproof import KernelProof
from firstread.node.mounts import Access, Mount, MountTable, mounted_erofs
from firstread.node.network import Network
from firstread.node.orphans import Orphans
from firstread.node.policy import AS_CONFIGURED, Asked, most_patient
from firstread.node.pulls import PATIENT, Pulls, Seats, Waiting
from firstread.node.served import Served
from firstread.node.stock import IdleStock, Use
from firstread.oci.logins import Credentials
from firstread.oci.reference import Reference, parse_reference
from firstread.sectors.store import SectorStore

log = logging.getLogger("node")

DEVICE = "fanotify"

# At a time, of all registries and of one. Who waits has a thread of the control server, which has
# more: what needs no registry is answered however many registries hang.
WAITING = (384, 192)
PULLS = (192, 64)
ATTEMPTS = 5  # to mount an image before somebody prunes it


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
    ) -> None:
        self.network = network
        self.images = ImageStore(root, is_used=self._is_used)
        self._table = MountTable(root)
        self._proof = KernelProof(root)
        self._shared = run_dir / "images"
        self._store = store
        self._fetcher = fetcher
        self._policy = policy
        self._verify = verify
        fetcher.cache.idle = IdleStock(self.images, store, fetcher.cache.is_needed)
        self._mounts: dict[str, Mount] = {}  # by mount point
        self._served: dict[str, Served] = {}  # by mount point
        self.lock = threading.RLock()  # of the mount table, and of what nobody uses
        self._detached = DetachedMounts(self.lock, self._end)
        self._anew = False  # the marks were gone when this fetcher began
        self._orphans = Orphans(self._table, self._recover, self.lock, self._orphans_changed)
        self._claims = Claims(store, fetcher)
        self.cache = Attended(self.images, store, fetcher, self.lock, self.uses)
        seats = Seats(*WAITING), Seats(*PULLS, "pulls wait")
        self._pulls: Pulls[NodeImage] = Pulls(*seats)
        self._proofs: Pulls[set[bytes]] = Pulls(*seats)
        self._logins: Pulls[None] = Pulls(*seats)

    # -- recovery ------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take over the mounts of the table that still stand; forget the others.

        A mount whose source is not there now is taken over as well: its reads wait for it. So do
        those of one whose image cannot be opened now, because this process is short of something.
        """
        self._anew = not self._fetcher.cache.has_marks()
        self._orphans.adopt_all()

    def _recover(self, mount: Mount, standing: Mapping[str, str]) -> None:
        source = str(self.images.metadata_path(mount.digest))
        stands = not mount.detached and standing.get(mount.mountpoint) == source
        if stands or mount.is_used():
            self._take_over(mount if stands else self._detach(mount))
            return
        log.info("mount %s is gone", mount.mountpoint)
        self._table.remove(mount)
        for served in self._fetcher.served():
            if served.image.digest == mount.digest:
                self._withdraw(served)  # of an attempt that has failed halfway

    def _take_over(self, mount: Mount) -> None:
        image = self._served_image(mount.digest) or self.images.load(mount.digest)
        served = self._serve(image, mount)
        self._store.empty_doubtful(image.ids())  # only if the record of the boot is lost
        sizes = self._fetcher.cache.ensure(image.ids())
        sectors = image.block_image.index.sectors
        self._fetcher.cache.adopt(sectors, anew=self._anew, doubt=self._verify != "never")
        if not mount.detached:
            self._identify(mount)
        if mount.pinned:
            self._complete(served)
        # From here on nothing fails: what failed before is done once more, from the beginning.
        if mount.detached:
            self._detached.add(mount, served)
        else:
            self._mounts[mount.mountpoint], self._served[mount.mountpoint] = mount, served
        self._pins_changed()
        self.images.touch(image.digest)
        for size, sector in zip(sizes, sectors, strict=True):
            if size >= sector.size:
                self._fetcher.settler.add(sector.id, size)  # nobody else knows whether it was
        self._fetcher.note_present(served)
        self._ready(image, served, sizes)
        log.info("took over mount %s of %s", mount.mountpoint, mount.image)

    def _orphans_changed(self) -> None:
        self._fetcher.expect(reads=self._orphans.may_pass, guarded=self._orphans.exist)

    def _is_used(self, digest: str) -> bool:
        """Return whether an image is mounted, or used on, or may be. Takes no lock."""
        return self._served_image(digest) is not None or self._orphans.claims(digest)

    def _served_image(self, digest: str) -> NodeImage | None:
        """Return an image that is served, as it was opened for that."""
        images = (served.image for served in self._fetcher.served())
        return next((image for image in images if image.digest == digest), None)

    def _identify(self, mount: Mount) -> None:
        """Note which file system stands at its place."""
        found = FileSystem.at(Path(mount.mountpoint))
        if found != mount.file_system:
            mount.file_system = found
            self._record(mount)

    # -- mount, umount -------------------------------------------------------------------------

    def pull(
        self,
        reference: Reference,
        access: Access,
        policy: str = "missing",
        on_resolved: Callable[[float], None] = lambda _: None,
        waiter: Waiting = PATIENT,
    ) -> NodeImage:
        """Return an image, its metadata fetched if it is not on the node.

        Who asks for an image that is being pulled joins that pull, as with other container engines.

        Args:
            reference: its name.
            access: to its registry.
            policy: ``missing``: ask a registry only for a name that is not known here, and a
                place on a disk, which costs nothing, for what it has under that name now;
                ``always``: ask what the name means now; ``never``: do not ask.
            on_resolved: called with the time at which it was known which image the name means, in
                monotonic seconds.
            waiter: who waits for it.

        Raises:
            FirstreadError: it cannot be had; names the image.
            BusyError: too many wait for registries already.
            GoneError: `waiter` has gone.
        """
        digest = None if policy == "always" else self.images.known(reference)
        if digest is not None and policy == "missing" and reference.path:
            digest = self._found_again(reference, access, waiter) or digest
        if digest is not None:
            try:
                image = self._opened(digest)
            except NotFoundError:
                pass  # pruned meanwhile
            except ImageError as exc:
                if policy == "never" or not self.images.drop_damaged(digest):
                    raise exc.about(image=str(reference)) from None
            else:
                on_resolved(time.monotonic())
                return image
        if policy == "never":
            raise NotFoundError(
                "the image is not on this node",
                hint="its registry is asked without --pull never",
                image=str(reference),
            )
        image, resolved = self._fetch(reference, access, waiter)
        on_resolved(resolved)
        return image

    def _opened(self, digest: str) -> NodeImage:
        """Return an image that is on this node; one that is served costs nothing."""
        image = self._served_image(digest)
        return image if image and image.metadata.exists() else self.images.load(digest)

    def _fetch(
        self, reference: Reference, access: Access, waiter: Waiting
    ) -> tuple[NodeImage, float]:
        """Return an image, and when its name was resolved."""

        def pull(on_resolved: Callable[[], None]) -> NodeImage:
            cache = self._fetcher.cache
            with self.network.open(reference, access) as repository:
                image = cache.with_room(
                    lambda: self.images.fetch(reference, repository, on_resolved)
                )
            cache.mounts_changed()  # its metadata may be too much
            return image

        key = (reference, access, self.network.given(reference))
        registry = reference.host or reference.transport
        try:
            return self._pulls.wait(key, registry, pull, waiter)
        except FirstreadError as exc:
            exc.about(image=str(reference))
            raise

    def _found_again(self, reference: Reference, access: Access, waiter: Waiting) -> str | None:
        """Return the digest of what a place on a disk has under a name that is known here.

        None if the place has nothing: the image that was there can still be mounted.
        """
        try:
            return self._fetch(reference, access, waiter)[0].digest
        except SourceError as exc:
            log.info("%s: mounted as it was known before", exc)
            return None

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
    ) -> dict[str, Any]:
        """Mount an image.

        Args:
            name: of the image.
            directory: where; None for the place that all who share the image's mount use.
            access: to its registry.
            policy: see `pull`.
            holder: who shares the mount; it stays until every holder has released it.
            asked: policies for reads through it.
            command: names this request, in case that it comes again because a fetcher has died.
            waiter: who waits for it.

        Returns:
            the mount point, the digest, the image's config, the device, and a timeline in seconds.

        Raises:
            FirstreadError: it cannot be mounted; nothing is left then.
        """
        times = [begun := time.monotonic()]

        def note_resolved(at: float) -> None:
            times[1:] = [max(begun, at)]  # it may have joined a pull; again, if it was pruned

        for _ in range(ATTEMPTS):
            reference = parse_reference(name)
            image = self.pull(reference, access, policy, note_resolved, waiter)
            image = self._sound(image, reference, access, policy, waiter)
            times.append(time.monotonic())
            waiter.check()
            place = None if directory is None else _directory(directory, name)
            proven = self._prove(image, reference, access, waiter)
            with self.lock, self.images.keeping(image.digest) as kept:
                if kept:
                    mount = self._mount(image, name, place, access, holder, asked, command, proven)
                    break
            # It was pruned meanwhile, and nobody waits for a registry under the lock.
        else:
            raise NodeError("the image is pruned whenever it has come", image=name)
        times.append(time.monotonic())
        seconds = [end - begin for begin, end in itertools.pairwise(times)]
        return {
            "mountpoint": mount.mountpoint,
            "digest": image.digest,
            "config": image.config,
            "device": DEVICE,
            "device_number": mount.file_system.device if mount.file_system else None,
            "timeline": dict(zip(("resolve", "metadata", "mount"), seconds, strict=True)),
        }

    def _mount(
        self,
        image: NodeImage,
        name: str,
        place: str | None,
        access: Access,
        holder: str,
        asked: Asked,
        command: str,
        proven: set[bytes],
    ) -> Mount:
        """Mount what `mount` was asked for, now that it is here; the lock is held."""
        if place is None:
            return self._share(image, name, access, holder, asked, proven)
        policies = {"": asked}
        wanted = Mount(place, name, image.digest, access, policies=policies, command=command)
        return self._mount_at(image, wanted, proven)

    def _sound(
        self,
        image: NodeImage,
        reference: Reference,
        access: Access,
        policy: str,
        waiter: Waiting,
    ) -> NodeImage:
        """Return `image`, fetched again if its files are damaged.

        Raises:
            ImageError: they are, and cannot be fetched now.
            NodeError: they cannot be read now.
        """
        if self._verify == "never" or self._served_image(image.digest) is not None:
            return image  # what is mounted was looked at before
        problem = self.images.damage(image.digest)
        if problem is None:
            return image
        if policy == "never" and image.metadata.exists():  # else it was pruned meanwhile
            raise ImageError(
                problem,
                hint="fetch it again: firstread mount --pull always",
                image=str(reference),
            )
        self.images.drop_damaged(image.digest)
        return self.pull(reference, access, policy, waiter=waiter)

    def _share(
        self,
        image: NodeImage,
        name: str,
        access: Access,
        holder: str,
        asked: Asked,
        proven: set[bytes],
    ) -> Mount:
        place = str(self._shared / image.digest.partition(":")[2])
        self._forget_if_gone(place)
        mount = self._mounts.get(place)
        if mount is None:
            try:
                Path(place).mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as exc:
                raise from_os_error(exc, "cannot make the mount point") from exc
            policies = {holder: asked}
            mount = Mount(place, name, image.digest, access, holders=[holder], policies=policies)
            return self._mount_at(image, mount, proven)
        if holder not in mount.holders:
            self._rewrite(
                mount,
                holders=[*mount.holders, holder],
                policies={**mount.policies, holder: asked},
            )
        return mount

    def _prove(
        self, image: NodeImage, reference: Reference, access: Access, waiter: Waiting
    ) -> set[bytes]:
        """Return the sectors of which an image has shown that others are wrong about them.

        Raises:
            FirstreadError: it is wrong itself, or that cannot be told now; names the image.
        """

        def prove(_: Callable[[], None]) -> set[bytes]:
            with self.network.open(reference, access) as repository:
                return self._claims.prove(image, repository)

        key = (image.digest, reference, access, self.network.given(reference))
        registry = reference.host or reference.transport
        try:
            if next(self._claims.disputes(image), None) is None:
                return set()
            proven, _ = self._proofs.wait(key, registry, prove, waiter)
            return proven
        except FirstreadError as exc:
            exc.about(image=str(reference))
            raise

    def _mount_at(self, image: NodeImage, mount: Mount, proven: set[bytes]) -> Mount:
        place, name = mount.mountpoint, mount.image
        self._orphans.refuse(place)
        self._forget_if_gone(place)
        there = self._mounts.get(place)
        if there is not None and there.command and there.command == mount.command:
            return there  # made by a fetcher that died before it could say so
        if there is not None:
            raise UsageError(f"{place} is a mount of {there.image}", image=name)
        self._fetcher.cache.with_room(self._proof.require)
        self._claims.settle(image, proven)
        self._save(mount)
        served = None
        try:
            # First of all it counts as mounted, so that nothing of it is removed from now on.
            served = self._serve(image, mount)
            doubted = self._prepare(image)
            cache = self._fetcher.cache
            sizes = cache.make_files(image.ids())
            self._ready(image, served, sizes)
            self._attach(image, mount, doubted)
        except BaseException as exc:
            self._table.remove(mount)
            if served is not None:
                self._drop_policy(served, place)
                self._withdraw(served)
            if isinstance(exc, FirstreadError):
                exc.about(image=name)
            raise
        self._mounts[place], self._served[place] = mount, served
        self._fetcher.note_present(served)
        self.images.touch(image.digest)
        return mount

    def _ready(self, image: NodeImage, served: Served, sizes: list[int]) -> None:
        """Have what absent sectors will be fetched with at hand."""
        sectors = image.block_image.index.sectors
        absent = (slot for slot, size in enumerate(sizes) if size < sectors[slot].size)
        blobs = {blob.digest: blob for blob in (image.wanted(slot).blob for slot in absent)}
        if blobs:
            served.lane.prepare(blobs.values())

    def _prepare(self, image: NodeImage) -> list[bytes]:
        """Look at what is here of an image that is to be mounted; return what is to be checked.

        A prefix cannot be checked without its frame table: it is fetched again. What another mount
        is being read of was checked for that one, but its bytes on the disk may have changed.
        """
        sectors = image.block_image.index.sectors
        alone = {s.id for s in sectors if self._fetcher.is_alone(s.id)}
        self._fetcher.checks.note_aside(self._fetcher.cache.set_aside(alone))
        if self._verify == "never":
            return []
        trusts = self._fetcher.checks.is_trusted if self._verify == "once" else lambda _: False
        doubted = [s for s in sectors if self._store.size(s.id) and not trusts(s.id)]
        for sector in doubted:
            if sector.id in alone and self._store.size(sector.id) < sector.size:
                self._fetcher.cache.discard(sector.id)
        return [sector.id for sector in doubted]

    def _attach(self, image: NodeImage, mount: Mount, doubted: list[bytes]) -> None:
        """Mount `image`: all of it, or nothing."""
        ids, place = image.ids(), Path(mount.mountpoint)
        # Every file must be marked when EROFS opens it; a present one not any longer.
        with self._fetcher.cache.opening(ids):
            mount_erofs(image.metadata, [self._store.path(sector_id) for sector_id in ids], place)
        try:
            self._fetcher.cache.watch(image.block_image.index.sectors, doubted)
            self._identify(mount)
        except BaseException:
            unmount(place, lazy=True)
            raise

    def _serve(self, image: NodeImage, mount: Mount) -> Served:
        # Of no image: others that are mounted from the same place are fetched with it, too.
        reference = dataclasses.replace(parse_reference(mount.image), tag=None, digest=None)
        served = self._fetcher.serve(
            image,
            (str(reference), mount.access),
            lambda: self.network.open(reference, mount.access),
        )
        if not mount.detached:
            self._apply_policies(mount, served)
        return served

    def _save(self, mount: Mount) -> None:
        self._fetcher.cache.with_room(lambda: self._table.save(mount))

    def _record(self, mount: Mount) -> bool:
        """Write what is now known of a mount for the next fetcher; return whether that worked.

        Its record says of which file system it is: the next fetcher serves that on if it is used,
        though somebody else has unmounted it meanwhile.
        """
        try:
            self._table.save(mount, sync=False)
        except NodeError as exc:
            log.warning("mount %s: %s", mount.mountpoint, exc)
            return False
        return True

    def _rewrite(self, mount: Mount, *, holders: list[str], policies: dict[str, Asked]) -> None:
        """Change who shares a mount: on the disk first, for that can fail."""
        self._save(msgspec.structs.replace(mount, holders=holders, policies=policies))
        mount.holders, mount.policies = holders, policies
        self._apply_policies(mount, self._served[mount.mountpoint])

    def _policy_of(self, mount: Mount) -> PolicyTable:
        """Return what holds for reads through a mount, whoever shares it."""
        # A copy: who shares it may change while somebody asks for the status.
        asked = [each.over(self._policy) for each in list(mount.policies.values())]
        return most_patient(asked, self._policy)

    def _apply_policies(self, mount: Mount, served: Served) -> None:
        served.policies = {**served.policies, mount.mountpoint: self._policy_of(mount)}

    def _drop_policy(self, served: Served, place: str) -> None:
        served.policies = {p: policy for p, policy in served.policies.items() if p != place}

    def login(
        self, scope: str, credentials: Credentials, access: Access, waiter: Waiting = PATIENT
    ) -> None:
        """Keep credentials in memory, if the registry takes them.

        Args:
            scope: ``HOST``, or ``HOST/REPOSITORY`` for a part of it.
            credentials: in place of those that it had.
            access: to the registry.
            waiter: who waits for it.

        Raises:
            FirstreadError: the registry refuses them, or cannot be asked; nothing is kept then.
        """

        def try_them(_: Callable[[], None]) -> None:
            self.network.try_login(scope, credentials, access)

        key = (scope, credentials, access)
        self._logins.wait(key, scope.partition("/")[0], try_them, waiter)
        self.network.login(scope, credentials)

    def holds(self, holder: str) -> bool:
        """Return whether `holder` shares a mount."""
        return any(holder in mount.holders for mount in list(self._mounts.values()))

    def release(self, holder: str) -> None:
        """Give back the mounts that `holder` shares; with its last holder a mount goes."""
        with self.lock:
            for orphan in self._orphans:
                if holder in orphan.holders:
                    self._orphans.refuse(orphan.mountpoint)
            for mount in [m for m in self._mounts.values() if holder in m.holders]:
                self._forget_if_gone(mount.mountpoint)
                if mount.mountpoint not in self._mounts:
                    continue
                left = [other for other in mount.holders if other != holder]
                if left:
                    policies = {h: p for h, p in mount.policies.items() if h != holder}
                    self._rewrite(mount, holders=left, policies=policies)
                else:
                    self.umount(mount.mountpoint, lazy=True)

    def umount(self, directory: str, *, lazy: bool = False) -> None:
        """Unmount.

        Args:
            directory: the mount point.
            lazy: also if it is busy. Who uses it can go on reading.

        Raises:
            UsageError: nothing of ours is mounted there.
            NodeError: it is busy; the message says who holds it.
        """
        place = os.path.realpath(directory)
        with self.lock:
            self._orphans.refuse(place)
            self._forget_if_gone(place)
            mount = self._mounts.get(place)
            if mount is None:
                raise UsageError(f"{directory} is not a mount of firstread")
            if mount.holders and not lazy:
                raise NodeError(
                    f"{place} is shared by {', '.join(mount.holders)}",
                    hint="stop these containers first",
                )
            try:
                unmount(Path(place))
            except NodeError:
                if not lazy:
                    raise
                self._save(mount.taken_away())  # first: the next fetcher serves it on
                unmount(Path(place), lazy=True)
            self._forget(mount)

    def _detach(self, mount: Mount) -> Mount:
        """Note in the table that a mount is not at its place any more."""
        detached = mount.taken_away()
        if self._record(detached) and not mount.detached:
            self._table.remove(mount)
        return detached

    def _end(self, mount: Mount, served: Served) -> None:
        log.info("nobody uses what was mounted at %s any more", mount.mountpoint)
        self._table.remove(mount)
        self._withdraw(served)

    def _forget_if_gone(self, place: str) -> None:
        """Forget a mount that somebody else has unmounted."""
        mount = self._mounts.get(place)
        if mount is not None:
            source = str(self._served[place].image.metadata)
            if mounted_erofs().get(place) != source:
                log.warning("mount %s was unmounted by somebody else", place)
                self._forget(mount)

    def _forget(self, mount: Mount) -> None:
        place = mount.mountpoint
        del self._mounts[place]
        served = self._served.pop(place)
        # What an overlayfs or another mount namespace uses can be unmounted, and must be served on.
        if mount.taken_away().is_used():
            self._detached.add(self._detach(mount), served)
        else:
            self._table.remove(mount)
            self._table.remove(mount.taken_away())  # if it was to become one
        self._drop_policy(served, place)
        self._withdraw(served)
        self._pins_changed()
        if Path(place).parent == self._shared:
            with contextlib.suppress(OSError):
                os.rmdir(place)

    def _withdraw(self, served: Served) -> None:
        """Stop serving an image if nobody uses it any more."""
        detached = (other for _, other in self._detached)
        if any(served is other for other in (*self._served.values(), *detached)):
            return
        self._fetcher.withdraw(served)
        self.images.touch(served.image.digest)
        self._fetcher.cache.unwatch(served.sectors)

    # -- everything local ----------------------------------------------------------------------

    def pin(self, directory: str) -> None:
        """Fetch all of a mounted image, and have it fetched again if it is not whole."""
        place = os.path.realpath(directory)
        with self.lock:
            mount = self._mounts.get(place)
            if mount is None:
                raise UsageError(f"{directory} is not a mount of firstread")
            if not mount.pinned:
                self._save(msgspec.structs.replace(mount, pinned=True))
                mount.pinned = True
            self._pins_changed()
            self._complete(self._served[place])

    def _complete(self, served: Served) -> None:
        image = served.image
        sectors = image.block_image.index.sectors
        sizes = self._fetcher.cache.ensure(image.ids())
        absent = [slot for slot, size in enumerate(sizes) if size < sectors[slot].size]
        # In the order of the blobs, so that neighbours are fetched with one request.
        for slot in sorted(absent, key=lambda slot: (sectors[slot].blob, sectors[slot].offset)):
            served.lane.complete(image.wanted(slot))

    def _pins_changed(self) -> None:
        pinned = {self._served[place] for place, mount in self._mounts.items() if mount.pinned}
        for served in self._served.values():
            served.pinned = served in pinned
        self._fetcher.pins_changed()

    # -- status --------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return the mounts and the store, as ``firstread status --json`` prints them."""
        return {
            "mounts": [
                self._mount_status(mount, served)
                for mount in list(self._mounts.values())
                if (served := self._served.get(mount.mountpoint)) is not None
            ],
            "endpoints": self.network.standings.documents(),
            "store": self.cache.figures(),
        }

    def uses(self) -> dict[str, Use]:
        """Return how images are used, by digest; what is used on after a lazy unmount counts."""
        with self.lock:
            mounts = Counter(mount.digest for mount in self._mounts.values())
            mounts.update(mount.digest for mount, _ in self._detached)
            pinned = {mount.digest for mount in self._mounts.values() if mount.pinned}
        return {digest: Use(count, digest in pinned) for digest, count in mounts.items()}

    def _mount_status(self, mount: Mount, served: Served) -> dict[str, Any]:
        sectors = served.image.block_image.index.sectors
        present = sum(self._store.size(sector.id) >= sector.size for sector in sectors)
        return {
            "mountpoint": mount.mountpoint,
            "image": mount.image,
            "digest": mount.digest,
            "device": DEVICE,
            "sectors": len(sectors),
            "present": present,
            "wanted": self._fetcher.wanted(served),
            **served.stats.document(),
            "repository": served.lane.name,
            "source": served.lane.source,
            "pinned": mount.pinned,
            "holders": mount.holders,
            "policies": msgspec.to_builtins(self._policy_of(mount)),
            "self_sufficient": present == len(sectors),
        }


def _directory(path: str, image: str) -> str:
    """Return where `path` really is. Raises UsageError if there is no directory."""
    place = os.path.realpath(path)
    if not os.path.isdir(place):
        raise UsageError(f"{path} is not a directory", image=image)
    return place
