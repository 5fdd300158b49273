# SPDX-License-Identifier: Apache-2.0
"""Finds the layers that need not be packed, and the image that a conversion replaces.

Owns the places of the search: the local cache, the image at the destination, other repositories of
its registry, the tags of layers there. Invariant: the destination has the blob of each layer
that this module returns. A layer that a failure hides is packed again, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.job import blob_descriptor
from firstread.convert.layercache import LayerCache
from firstread.convert.layertags import find_layer
from firstread.convert.record import Parameters
from firstread.convert.recorded import RecordedLayers, read_described
from firstread.errors import FirstreadError, ImageError, NotFoundError, SourceError
from firstread.oci.model import Descriptor, Index, Manifest, diff_ids, parse_manifest
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage, choose, load, platform_of
from firstread.registry.open import open_destination
from firstread.registry.options import AccessOptions
from firstread.sectors.attached import Attached, all_attached, find_attached
from firstread.sectors.hotnote import NO_TRACE
from firstread.sectors.image import HOT, PARAMETERS, SOURCE_DIGEST, is_block_image


class Previous(NamedTuple):
    """The converted image that the destination has now: its digest, and its layers."""

    digest: str
    layers: RecordedLayers


def previous_at(destination: Repository, part: ResolvedImage | None = None) -> Previous | None:
    """Return the image that the destination's reference names, if it is a converted one.

    Args:
        destination: opened for the result.
        part: look into an index as well, for the image that was made of this one, or else for
            another of its platform.
    """
    with suppress(FirstreadError):  # nothing is there, or something else, which will be replaced
        descriptor, data = destination.get_manifest()
        document = parse_manifest(data, descriptor.media_type)
        if isinstance(document, Index) and part is not None:
            entry = _made_of(document, part) or choose(document, platform_of(part.config))
            descriptor, data = destination.get_manifest(entry.digest)
            document = parse_manifest(data, descriptor.media_type)
        if isinstance(document, Manifest) and is_block_image(document):
            return _previous(destination, descriptor, document, data)
    return None


def _made_of(index: Index, image: ResolvedImage) -> Descriptor | None:
    for entry in index.manifests:
        if (entry.annotations or {}).get(SOURCE_DIGEST) == image.descriptor.digest:
            return entry
    return None


def previous_attached(
    destination: Repository, original: Descriptor, parameters: Parameters
) -> Previous | None:
    """Return the image that was attached to `original` with the same parameters, if any."""
    with suppress(SourceError):
        for found in all_attached(destination, original):
            if (found.manifest.annotations or {}).get(PARAMETERS) == parameters.key:
                with suppress(ImageError, NotFoundError):
                    return _previous(destination, found.descriptor, found.manifest, found.data)
    return None


def preferred(destination: Repository, original: Descriptor) -> Attached | None:
    """Return the image that nodes take for `original` because of a trace; None if there is none."""
    with suppress(SourceError):
        found = find_attached(destination, original)
        note = (found.manifest.annotations or {}).get(HOT) if found is not None else None
        return found if note is not None and NO_TRACE not in note else None
    return None


def _previous(
    destination: Repository, descriptor: Descriptor, manifest: Manifest, data: bytes
) -> Previous:
    image = load(destination, descriptor, manifest, data)
    if not destination.has_blob(manifest.config):  # the manifest contains it
        raise NotFoundError(f"blob {manifest.config.digest} is missing")
    layers = RecordedLayers(destination, image.manifest, diff_ids(image.config))
    return Previous(image.descriptor.digest, layers)


class KnownLayers:
    """Packed layers whose blobs the destination has, or can take from a repository beside it.

    Args:
        destination: opened for writing.
        reference: its name.
        access: how to open it.
        parameters: that the layers must have been packed with.
        cache: of this machine.
        previous: the image that is there now.
        tags: look for the tags of layers, too.
    """

    def __init__(
        self,
        destination: Repository,
        reference: Reference,
        access: AccessOptions,
        parameters: Parameters,
        cache: LayerCache | None,
        previous: Previous | None,
        *,
        tags: bool = True,
    ) -> None:
        self._tags = tags
        self._destination = destination
        self._reference = reference
        self._access = access
        self._parameters = parameters
        self._cache = cache
        self._previous = previous

    def get(self, diff_id: str) -> PackedLayer | None:
        """Return the packed layer, if the destination has its blob."""
        if self._cache is not None:
            cached = self._cache.get(diff_id, self._parameters)
            if cached is not None and self._has(cached):
                return cached
        if self._previous is not None:
            recorded = self._previous.layers.get(diff_id, self._parameters)
            if recorded is not None and self._has(recorded):
                self.remember(recorded, diff_id)
                return recorded
        return None

    def tagged(self, diff_id: str) -> PackedLayer | None:
        """Return the layer that a worker has packed for the destination before; None if unknown."""
        if not self._tags:
            return None
        with suppress(FirstreadError):
            blob = find_layer(self._destination, diff_id, self._parameters)
            if blob is not None:
                packed = read_described(self._destination, blob, self._parameters)
                self.remember(packed, diff_id)
                return packed
        return None

    def _has(self, packed: PackedLayer) -> bool:
        return self._destination.has_blob(blob_descriptor(packed))

    def mount(self, diff_ids: Iterable[str]) -> dict[str, PackedLayer]:
        """Have the registry take blobs over from another repository of it; return their layers.

        This needs a connection of its own: a registry that forbids reading there would refuse the
        rest on the same connection as well.
        """
        cache, to = self._cache, self._reference
        if cache is None or to.transport != "docker":
            return {}
        registry = f"{to.host}/"
        found = {diff_id: cache.repository(diff_id, self._parameters) for diff_id in diff_ids}
        names = {
            diff_id: name.removeprefix(registry)
            for diff_id, name in found.items()
            if name.startswith(registry) and name != registry + to.repository
        }
        mounted: dict[str, PackedLayer] = {}
        if not names:
            return mounted
        with suppress(FirstreadError), open_destination(to, self._access) as repository:
            for diff_id, name in names.items():
                packed = cache.get(diff_id, self._parameters)
                if packed is not None and repository.mount_blob(blob_descriptor(packed), name):
                    mounted[diff_id] = packed
        return mounted

    def remember(self, packed: PackedLayer, diff_id: str) -> None:
        """Keep a layer in the cache as soon as it is done: another one may still fail."""
        if self._cache is not None:
            to = self._reference
            name = f"{to.host}/{to.repository}" if to.transport == "docker" else ""
            self._cache.put(packed, diff_id, self._parameters, name)
