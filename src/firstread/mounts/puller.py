# SPDX-License-Identifier: Apache-2.0
"""Brings images to the node: their metadata, from a registry or a place on a disk.

Owns the question whether a registry is asked, and what becomes of damaged files. Takes no lock of
the mounts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from firstread.cache import imagefiles
from firstread.cache.imagestore import ImageStore
from firstread.cache.nodecache import Cache
from firstread.cache.nodeimage import NodeImage
from firstread.errors import ImageError, NotFoundError, SourceError
from firstread.fetch.startplan import Mode
from firstread.mounts.counts import NodeCounts
from firstread.mounts.network import Network
from firstread.mounts.pulls import PATIENT, Waiting
from firstread.mounts.serving import Serving
from firstread.mounts.startspans import PullFacts
from firstread.oci import model
from firstread.oci.model import Manifest
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository
from firstread.registry.access import Access
from firstread.registry.trust import load_authorities

log = logging.getLogger("node")

ATTEMPTS: Final = 3  # to have an image whose files are not damaged
REMEMBERED: Final = 256  # pulls whose times are kept for the traces of starts


def prepare() -> None:
    """Load what the first pull would load; if something is wrong with it, that pull says so."""
    for load in (load_authorities, model.prepare, imagefiles.prepare):
        try:
            load()
        except (OSError, ImportError) as exc:  # too many files are open, for example
            log.info("not loaded before the first pull: %s", exc)


class Puller:
    """Pulls images for one node.

    Args:
        images: where they go.
        network: how registries are reached.
        serving: knows what is mounted, and opened therefore.
        cache: makes room for metadata.
        counts: of the node.
        verify: when what is here is checked, see `firstread.config`.
    """

    def __init__(
        self,
        images: ImageStore,
        network: Network,
        serving: Serving,
        cache: Cache,
        counts: NodeCounts,
        *,
        verify: str,
    ) -> None:
        self._images, self._network, self._serving = images, network, serving
        self._cache, self._counts, self._verify = cache, counts, verify
        self._lately: OrderedDict[str, PullFacts] = OrderedDict()  # by digest
        self._lock = threading.Lock()

    def pull(
        self,
        reference: Reference,
        access: Access,
        policy: str = "missing",
        on_resolved: Callable[[float], None] = lambda _: None,
        waiter: Waiting = PATIENT,
        prefetch: Mode | None = None,
        context: str = "",
    ) -> NodeImage:
        """Return an image; its metadata is fetched if it is not on the node.

        A second request for an image that is being pulled joins that pull, as with other engines.

        Args:
            reference: its name.
            access: to its registry.
            policy: ``missing``: ask a registry only for a name that is not known here, but look
                what a directory on a disk, which costs nothing, has under that name now;
                ``always``: ask what the name means now; ``never``: do not ask.
            on_resolved: called with the time at which it was known which image the name means, in
                monotonic seconds.
            waiter: who waits for it.
            prefetch: what they want of it though nobody reads it.
            context: W3C trace context of who asks, or empty.

        Raises:
            FirstreadError: it cannot be had; names the image.
            BusyError: too many wait for registries already.
            GoneError: `waiter` has gone.
        """
        digest = None if policy == "always" else self._images.known(reference)
        if digest is not None and policy == "missing" and reference.path:
            digest = self._found_again(reference, access, waiter) or digest
        if digest is not None:
            try:
                image = self._opened(digest)
            except NotFoundError:
                pass  # pruned meanwhile
            except ImageError as exc:
                if policy == "never" or not self._images.drop_damaged(digest):
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
        image, resolved = self._fetch(reference, access, waiter, prefetch, context)
        on_resolved(resolved)
        return image

    def pull_sound(
        self,
        reference: Reference,
        access: Access,
        policy: str,
        on_resolved: Callable[[float], None],
        waiter: Waiting,
        prefetch: Mode | None,
    ) -> NodeImage:
        """`pull`, and fetch the image again if its files here are damaged.

        Raises:
            ImageError: they are, and cannot be fetched now.
            NodeError: they cannot be read now.
        """
        for _ in range(ATTEMPTS):
            image = self.pull(reference, access, policy, on_resolved, waiter, prefetch)
            is_sound = image.is_fresh or self._serving.find(image.digest) is not None
            if is_sound or self._verify == "never":
                return image  # whoever fetched or mounted it has looked
            problem = self._images.damage(image.digest)
            if problem is None:
                return image
            if policy == "never" and image.metadata.exists():  # else it was pruned meanwhile
                raise ImageError(
                    problem,
                    hint="fetch it again: firstread mount --pull always",
                    image=str(reference),
                )
            self._images.drop_damaged(image.digest)
        raise ImageError(
            f"{problem}, and others are about to mount it", hint="try again", image=str(reference)
        )

    def _opened(self, digest: str) -> NodeImage:
        """Return an image that is on this node; one that is served costs nothing."""
        image = self._serving.find(digest)
        return image if image and image.metadata.exists() else self._images.load(digest)

    def _fetch(
        self,
        reference: Reference,
        access: Access,
        waiter: Waiting,
        prefetch: Mode | None = None,
        context: str = "",
    ) -> tuple[NodeImage, float]:
        """Return an image, and when its name was resolved."""

        def fetch(repository: Repository, on_resolved: Callable[..., None]) -> NodeImage:
            def coming(manifest: Manifest) -> AbstractContextManager[None]:
                return self._serving.hot_follows(manifest, repository, access, prefetch)

            self._network.connect_ahead(repository)
            image = self._cache.admission.with_room(
                lambda: self._images.fetch(reference, repository, on_resolved, coming)
            )
            self._cache.mounts_changed()  # its metadata may be too much
            return image

        began = time.monotonic()
        image, resolved = self._network.ask("pull", reference, access, fetch, waiter)
        resolved = max(began, resolved)  # it may have joined a pull
        ended = time.monotonic()
        self._counts.pulled(resolved - began, ended - resolved)
        with self._lock:
            self._lately[image.digest] = PullFacts(began, resolved, ended, context)
            self._lately.move_to_end(image.digest)
            if len(self._lately) > REMEMBERED:
                self._lately.popitem(last=False)
        return image, resolved

    def take_lately(self, digest: str) -> PullFacts | None:
        """Return the last pull of an image since this was last asked, if it is remembered."""
        with self._lock:
            return self._lately.pop(digest, None)

    def _found_again(self, reference: Reference, access: Access, waiter: Waiting) -> str | None:
        """Return the digest of what a directory on a disk has under a name that is known here.

        None if it has nothing: the image that was there can still be mounted.
        """
        try:
            return self._fetch(reference, access, waiter)[0].digest
        except SourceError as exc:
            log.info("%s: mounted as it was known before", exc)
            return None
