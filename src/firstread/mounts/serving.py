# SPDX-License-Identifier: Apache-2.0
"""What mounts ask of the fetcher: to serve an image, to have all of it here, to obey policies.

Owns the policies that hold for each mount. The only place from which mounts begin or end the
serving of an image. `find` and `images` take no lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator

from firstread.cache.membership import Member
from firstread.cache.nodeimage import NodeImage
from firstread.config import PolicyTable
from firstread.fetch.fetcher import Fetcher
from firstread.fetch.policy import most_patient
from firstread.fetch.rate import Rate
from firstread.fetch.served import Served
from firstread.fetch.startplan import Mode, decide, mode_of
from firstread.mounts.network import Network
from firstread.mounts.nodestatus import Fetched
from firstread.mounts.table import Mount
from firstread.oci.model import Manifest
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.repository import Repository
from firstread.registry.access import Access
from firstread.sectors.image import is_hot, traced_blob
from firstread.sectors.source import Wanted


class Serving:
    """Images that the fetcher serves for mounts.

    Args:
        fetcher: that serves them.
        network: how it reaches registries.
        policy: of mounts that were asked for without one.
        prefetch: what is fetched though nobody reads it, if neither mount nor image says.
    """

    def __init__(
        self, fetcher: Fetcher, network: Network, policy: PolicyTable, prefetch: Mode
    ) -> None:
        self._fetcher, self._network, self._policy = fetcher, network, policy
        self._prefetch = prefetch

    def images(self) -> list[Served]:
        """Return what is served."""
        return self._fetcher.served()

    def fetched(self, digest: str) -> dict[Served | None, Fetched]:
        """Return what has been fetched of an image by now; nothing for others."""
        found = defaultdict[Served | None, Fetched](lambda: Fetched(0, 0))
        for served in self.images():
            if served.image.digest == digest:
                found[served] = Fetched(*served.stats.fetched())
        return found

    def find(self, digest: str) -> NodeImage | None:
        """Return an image that is served, as it was opened for that."""
        images = (served.image for served in self.images())
        return next((image for image in images if image.digest == digest), None)

    def serve(
        self,
        image: NodeImage,
        record: Mount,
        prepare: Callable[[Member], None] = lambda _: None,
    ) -> Served:
        """Answer reads of an image that is mounted, or about to be; as `Fetcher.serve`."""
        reference = _repository_of(record)
        served = self._fetcher.serve(
            image,
            (str(reference), record.access),
            lambda: self._network.open_warm(reference, record.access),
            prepare,
        )
        if not record.detached:
            self.apply_policies(record, served)
        return served

    def withdraw(self, served: Served) -> None:
        """Stop serving an image that is not mounted any more."""
        self._fetcher.withdraw(served)
        self._fetcher.cache.mounting.unwatch(served.sectors)

    def prepare(self, served: Served) -> None:
        """Open now by name what the fetches of absent sectors will need."""
        blobs = {sector.blob.digest: sector.blob for sector in _absent(served)}
        if blobs:
            served.lane.prepare(blobs.values())

    def complete(self, served: Served) -> None:
        """Fetch all sectors of an image that are not here."""
        # In the order of the blobs, so that one request fetches neighbours.
        for sector in sorted(_absent(served), key=lambda s: (s.entry.blob, s.entry.offset)):
            served.lane.complete(sector)

    @contextlib.contextmanager
    def hot_follows(
        self, manifest: Manifest, repository: Repository, access: Access, asked: Mode | None
    ) -> Iterator[None]:
        """Ask for the first hot sectors of an image; take them when its metadata has come.

        That comes in the block.

        Args:
            manifest: of the image.
            repository: where it is.
            access: to its registry.
            asked: what is wanted of it though nobody reads it, by who waits for it.
        """
        blob, head = traced_blob(manifest), None
        if blob is not None and mode_of((asked,), manifest.annotations, self._prefetch) != "none":
            head = self._network.begin_head(repository, access, blob)
        try:
            yield
        finally:
            if head is not None:
                head.let()

    def _measured(self, served: Served, record: Mount, *, is_needed: bool) -> Rate:
        """Return what is known of the link of an image, also from what came beside its pull.

        Args:
            served: the image.
            record: of its mount.
            is_needed: whether hot sectors are absent; what came beside the pull goes otherwise.
        """
        link, reference = served.lane.link, _repository_of(record)
        for blob in filter(is_hot, served.image.block_image.blobs):
            head = self._network.head_of(reference, record.access, blob)
            if head is not None and head.latency_s is not None and not link.is_known:
                link.note_latency(head.latency_s)
                link.note(head.come, head.seconds)
            if head is not None and not is_needed:
                head.release()
        return link

    def prefetch(self, served: Served, record: Mount) -> None:
        """Fetch of an image what nobody reads yet, as its mount, itself and the node want it."""
        image, absent = served.image.block_image, served.member.absent
        asked = [each.prefetch for each in record.policies.values()]
        mode = mode_of(asked, image.manifest.annotations, self._prefetch)
        rows, slots = image.index.sectors, served.hot
        hot = [served.image.wanted(slot) for slot in slots if rows[slot].id in absent]
        knows_start = served.knows_start
        rest: list[Wanted] = []
        if mode == "all" or (mode == "hot" and knows_start):  # it takes a while
            rest = [s for s in _absent(served) if s.entry.id not in served.member.hot]
            rest.sort(key=lambda sector: (sector.entry.blob, sector.entry.offset))
        sizes = [sum(s.entry.length for s in hot), sum(r.length for r in rows if r.id in absent)]
        link = self._measured(served, record, is_needed=bool(hot))
        plan = decide(mode, sizes[0], sizes[1], link, knows_start=knows_start)
        served.plan = plan
        served.lane.prefetch(plan, hot, rest)

    # -- policies ------------------------------------------------------------------------------

    def policy_of(self, record: Mount) -> PolicyTable:
        """Return what holds for reads through a mount, whoever shares it."""
        # A copy: the holders may change while somebody asks for the status.
        asked = [each.over(self._policy) for each in list(record.policies.values())]
        return most_patient(asked, self._policy)

    def apply_policies(self, record: Mount, served: Served) -> None:
        """Have reads of an image obey what the holders of a mount asked for."""
        served.policies = {**served.policies, record.mountpoint: self.policy_of(record)}

    def drop_policies(self, mountpoint: str, served: Served) -> None:
        """Forget what was asked for a mount that is no more."""
        served.policies = {m: p for m, p in served.policies.items() if m != mountpoint}


def _repository_of(record: Mount) -> Reference:
    """Return the name of an image without tag and digest: images of a repository share requests."""
    return dataclasses.replace(parse_reference(record.image), tag=None, digest=None)


def _absent(served: Served) -> list[Wanted]:
    found = map(served.sectors.find, list(served.member.absent))
    return [sector for sector in found if sector is not None]
