# SPDX-License-Identifier: Apache-2.0
"""Decides whether a layer is lazy, and which image answers for it.

Owns the choice between a converted image, a conversion attached to an ordinary image, and
unpacking; counts the layers that are not lazy, and refuses those that the policy forbids.
Invariant: the metadata of a chosen image is on this node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from firstread.errors import BusyError, DerivedImageError, FirstreadError
from firstread.oci.reference import parse_reference
from firstread.snapshotter.asked import Asked, Named, unpacked
from firstread.snapshotter.fallbacks import Fallbacks
from firstread.snapshotter.lazyimages import Images
from firstread.snapshotter.nodepolicy import Policy
from firstread.snapshotter.records import Lazy, Record
from firstread.snapshotter.refusal import Refusal, RefusalError

_UNNAMED = "the client does not say which image the layer belongs to"

Attached = Callable[[str, str], str | None]
"""Maps name and manifest digest of an image to the converted image that is attached to it.

The answer is a reference with a digest, None if there is none. The converted image names that very
manifest as its source. Raises FirstreadError if the answer cannot be found.
"""


def none_attached(image: str, manifest: str) -> None:
    """Attach nothing to any image."""


FindImage = Callable[[str, str], Named | None]
"""Maps a namespace of containerd and a chain id to the image that has such a layer."""


def none_known(namespace: str, chain: str) -> None:
    """Know no image."""


class ImageChoice:
    """Chooses the image of a layer.

    Args:
        images: that are lazy.
        policy: of the node.
        attached: finds the conversion of an ordinary image.
        find_image: finds the image of a layer when the client does not name it.
    """

    def __init__(
        self, images: Images, policy: Policy, attached: Attached, find_image: FindImage
    ) -> None:
        self.fallbacks = Fallbacks()
        self._images = images
        self._policy = policy
        self._attached = attached
        self._find_image = find_image

    def completed(self, asked: Asked, key: str) -> Asked:
        """Add what the client does not say, if containerd's store has the image."""
        if asked.image and asked.manifest:
            return asked
        named = self._find_image(unpacked(key)[0], asked.target)
        if named is None:
            return asked
        return replace(
            asked,
            image=named.image,
            manifest=named.manifest,
            layer=named.layer,
            last=named.last,
        )

    def choose(self, asked: Asked, parent: Record | None) -> Lazy | None:
        """Return the image that answers for a layer; None if the client must unpack it.

        Raises:
            FirstreadError: the image cannot be had, or would not be lazy and has to be.
        """
        whole = asked.converted or asked.last
        if parent and parent.lazy:  # all layers of an image get the same answer
            unnamed = asked.converted and not asked.manifest
            if unnamed or asked.manifest == parent.lazy.source:
                return Lazy(parent.lazy.image, parent.lazy.source, whole)
        if not asked.converted:
            return self._conversion(asked, parent)
        if not (asked.image and asked.manifest):
            raise RefusalError(
                Refusal.FAILED_PRECONDITION,
                _UNNAMED,
                hint="if it unpacks an archive, let it pull the image from its registry instead;"
                " if it pulls, turn on snapshot annotations: docs/containerd.md",
            )
        image = _pinned(asked.image, asked.manifest)
        self._images.pull(image)
        return Lazy(image, asked.manifest, whole)

    def _conversion(self, asked: Asked, parent: Record | None) -> Lazy | None:
        """Return the conversion attached to an ordinary image, if it can be used.

        Raises:
            DerivedImageError: the image was built FROM a converted one, which this node lacks.
        """
        name = asked.image or asked.target
        if not (asked.image and asked.manifest):
            self.ordinary(name, asked.image, "client", _UNNAMED)
            return None
        try:
            image = self._attached(asked.image, asked.manifest)
            if image is None:
                why = "it is not converted, and no conversion is attached to it"
                self.ordinary(name, asked.image, "not-converted", why)
                return None
            self._images.pull(image)
        except DerivedImageError:
            if parent is None:  # nobody can unpack the lowest layer
                raise
            self.ordinary(name, asked.image, "derived", "it was built FROM a converted image")
            return None
        except FirstreadError as exc:
            if isinstance(exc, RefusalError | BusyError):
                raise
            self.ordinary(name, asked.image, "failed", f"its conversion cannot be had: {exc}")
            return None
        return Lazy(image, asked.manifest, asked.last)

    def unpacking(self, key: str) -> None:
        """Note that a client unpacks a layer without naming it in a label.

        Raises:
            FirstreadError: the layer belongs to a converted image, which nobody can unpack.
            RefusalError: the policy forbids it.
        """
        named = self._find_image(*unpacked(key))
        if named is not None and named.converted and named.derived:
            raise DerivedImageError(
                "it was built FROM a converted image, and only firstread can read the layers below",
                image=named.image,
            )
        if named is not None and named.converted:
            raise RefusalError(
                Refusal.FAILED_PRECONDITION,
                f"{named.image} is converted, and this client can only unpack images",
                hint=f"firstread pull {named.image}@{named.manifest}, crictl pull, or the kubelet",
            )
        why = "the client gives no label that names the layer"
        self.ordinary(key.partition(" ")[2] or key, "", "client", why)

    def ordinary(self, name: str, image: str, cause: str, why: str) -> None:
        """Count a layer that is not lazy.

        Args:
            name: identifies the image in messages.
            image: its name for the policy; empty if unknown.
            cause: one of few, for the metric.
            why: for people.

        Raises:
            RefusalError: the policy forbids it.
        """
        if not self._policy.allows_ordinary(image):
            raise RefusalError(
                Refusal.FAILED_PRECONDITION,
                f"{name} is not lazy: {why}; this node takes lazy images only (require_lazy)",
                hint="convert it with 'firstread convert', or except it",
            )
        self.fallbacks.ordinary(name, cause, why)


def _pinned(image: str, digest: str) -> str:
    """Return a reference to the manifest `digest` in the repository of `image`."""
    reference = parse_reference(image)
    return f"docker://{reference.host}/{reference.repository}@{digest}"
