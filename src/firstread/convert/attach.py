# SPDX-License-Identifier: Apache-2.0
"""Converts an image in place: the result belongs to its original and needs no name of its own.

Owns which images of a name are converted, and what they are attached to; `ImageConversion` converts
each. Invariants: the original's manifests, tags and signatures stay as they are; results attach to
the images of an index and never to the index, since every way that a node takes ends at an image.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

from firstread.convert.claims import LayerClaims
from firstread.convert.conversion import ConvertOptions, ImageConversion
from firstread.convert.destination import check_destination, check_name, repository_of
from firstread.convert.job import naming_image
from firstread.convert.original import source_layers
from firstread.convert.outcome import Attachments, Skipped
from firstread.convert.platforms import all_images
from firstread.convert.progress import Progress
from firstread.errors import SourceError, UsageError
from firstread.oci.model import OCI_MANIFEST, Descriptor
from firstread.oci.platform import Platform
from firstread.oci.reference import Reference
from firstread.oci.repository import Destination, Repository, naming
from firstread.oci.resolve import ResolvedImage, resolve
from firstread.registry.open import open_destination, open_source
from firstread.sectors.attached import find_attached

log = logging.getLogger("attach")


def attach(
    source: Reference,
    options: ConvertOptions,
    *,
    destination: Reference | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    claims: LayerClaims | None = None,
) -> Attachments:
    """Convert the images that `source` names, and attach each result to its original.

    Args:
        source: an ordinary image or an index; all Linux images of an index are converted, unless
            the options name a platform.
        options: see `ConvertOptions`; `destination_options` give access.
        destination: one more name for the result, in the same repository.
        progress: shows what is going on.
        executor: as for `firstread.convert.conversion.convert`.
        claims: likewise.

    Raises:
        FirstreadError: names the image. Earlier attachments stay.
    """
    started = time.monotonic()
    _check(source, destination)
    with naming_image(source), open_source(source, options.source_options) as originals:
        chosen, skipped = _chosen(originals, options.platform)
        if destination is not None:
            _check_name(originals, chosen, destination)
        here = replace(originals.reference, tag=None, digest=None)
        with open_destination(here, options.destination_options) as repository:
            images = []
            for image in chosen:
                work = ImageConversion(
                    source,
                    here,
                    options,
                    originals,
                    repository,
                    progress,
                    executor,
                    claims,
                    attach=True,
                )
                images.append(work.run(image, source_layers(image), time.monotonic()))
            if destination is not None:
                _name(repository, images[0].digest, destination)
            digests = [
                chosen_by_nodes(repository, image.descriptor, made.digest)
                for image, made in zip(chosen, images, strict=True)
            ]
    return Attachments(str(source), images, digests, skipped, time.monotonic() - started)


def _chosen(
    originals: Repository, platform: Platform | None
) -> tuple[list[ResolvedImage], list[Skipped]]:
    """Return the images to convert, and what stays as it is."""
    if platform is not None:
        return [resolve(originals, platform)], []
    images = all_images(originals)
    return images.chosen, images.skipped


def _check(source: Reference, destination: Reference | None) -> None:
    """Refuse names that nothing can be attached to or by, before anything is opened."""
    if source.transport not in ("docker", "oci"):
        raise UsageError(
            f"nothing can be attached to an image in {source.transport}:",
            image=str(source),
            hint="name an image in a registry (docker://) or in an OCI layout (oci:)",
        )
    if destination is None:
        return
    check_destination(source, destination)
    if repository_of(source) != repository_of(destination):
        raise UsageError(
            f"{destination} is not in the same place as {source}",
            hint="an attached image lies beside its original: leave DEST out, or give it"
            " another tag of the same repository",
        )


def _check_name(
    originals: Repository, images: Sequence[ResolvedImage], destination: Reference
) -> None:
    """Refuse a name for several images, or one that an original has."""
    if len(images) > 1:
        raise UsageError(
            f"{destination} can name one image only, and {originals.reference} has {len(images)}",
            hint="choose one with --platform",
        )
    check_name(originals, images[0], destination)


def _name(repository: Destination, digest: str, destination: Reference) -> None:
    """Give an attached image a name."""
    with naming(destination):
        _, data = repository.get_manifest(digest)
        repository.put_manifest(data, OCI_MANIFEST, destination.tag)


def chosen_by_nodes(repository: Repository, original: Descriptor, attached: str) -> str:
    """Return the digest of the image that nodes now choose for an original.

    Args:
        repository: has both.
        original: its manifest.
        attached: digest of the new attachment, the answer if the registry does not say.
    """
    try:
        found = find_attached(repository, original)
    except SourceError as exc:
        log.warning("%s: what is attached is not known: %s", original.digest, exc)
        return attached
    if found is None:
        raise SourceError(
            f"the registry took what was attached to {original.digest}, but does not list it",
            hint="wait a moment and run 'firstread inspect' on the image",
        )
    return found.descriptor.digest
