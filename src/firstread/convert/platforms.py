# SPDX-License-Identifier: Apache-2.0
"""Converts an image for all of its platforms: an index in, an index of converted images out.

Owns which images of an index can be converted, and the index of the results. Invariants: nothing
that a manifest or an index names is missing when it is published, and nothing is published before
all images are converted; whatever the result lacks of the source is reported.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace

from msgspec import structs

from firstread.convert.claims import LayerClaims
from firstread.convert.conversion import ConvertOptions, ImageConversion
from firstread.convert.destination import check_destination, check_name
from firstread.convert.job import naming_image
from firstread.convert.original import source_layers
from firstread.convert.outcome import Conversion, Conversions, Skipped
from firstread.convert.progress import Progress
from firstread.errors import FirstreadError, ImageError, UnsupportedError
from firstread.oci.model import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    encode,
)
from firstread.oci.reference import Reference
from firstread.oci.repository import Destination, Repository
from firstread.oci.resolve import Leaves, ResolvedImage, document_of, platform_of, resolve_all
from firstread.registry.open import open_destination, open_source
from firstread.sectors.image import (
    PARAMETERS,
    SOURCE_DIGEST,
    is_block_image,
    is_block_layer,
)


@dataclass(frozen=True)
class AllImages:
    """The images of a name.

    Args:
        found: what the name stands for.
        chosen: those that can be converted, once each.
        skipped: other entries of the index, and why they are not converted.
    """

    found: Leaves
    chosen: list[ResolvedImage]
    skipped: list[Skipped]


def all_images(repository: Repository) -> AllImages:
    """Return the images that the repository's reference names, sorted by what becomes of them.

    Raises:
        UnsupportedError: none of an index can be converted.
        As `firstread.oci.resolve.resolve`.
    """
    found, images = resolve_all(repository)
    skipped = [
        Skipped(entry.digest, str(entry.platform or ""), reason) for entry, reason in found.left_out
    ]
    chosen = []
    for image in images:
        reason = _reason(image) if found.index is not None and len(images) > 1 else None
        if reason is None:
            chosen.append(image)
        else:
            platform = str(platform_of(image.config))
            skipped.append(Skipped(image.descriptor.digest, platform, reason))
    if not chosen:
        raise UnsupportedError(
            "the index has no image that can be converted",
            hint="; ".join(f"{image.platform or 'unknown'}: {image.reason}" for image in skipped),
        )
    return AllImages(found, chosen, skipped)


def _reason(image: ResolvedImage) -> str | None:
    """Return why an image of an index stays unconverted; None if nothing prevents it."""
    if is_block_image(image.manifest):
        return "it is converted already"
    if any(map(is_block_layer, image.manifest.layers)):
        return "it was built FROM a converted image"
    os = platform_of(image.config).os
    return f"it is for {os}" if os not in ("", "linux") else None


def convert_all(
    source: Reference,
    destination: Reference,
    options: ConvertOptions,
    *,
    progress: Progress | None = None,
    executor: Executor | None = None,
    claims: LayerClaims | None = None,
) -> Conversions:
    """Convert all images at `source`, and tag the result as `destination`.

    The result is an index if the source is one, else an image.

    Args:
        source: an ordinary image, or an index of some.
        destination: where the result goes; its tag changes when all of it is complete.
        options: see `ConvertOptions`; their platform does not count.
        progress: shows what is going on.
        executor: as for `firstread.convert.conversion.convert`.
        claims: shared by conversions at the same time.

    Raises:
        FirstreadError: names the image and, where there is one, the layer.
    """
    started = time.monotonic()
    options = replace(options, platform=None)
    check_destination(source, destination)
    with naming_image(source), open_source(source, options.source_options) as originals:
        images = all_images(originals)
        with open_destination(destination, options.destination_options) as repository:
            for image in images.chosen:
                check_name(originals, image, repository.reference)
            results: list[Conversion] = []
            made: list[tuple[ResolvedImage, Manifest]] = []
            for image in images.chosen:
                work = ImageConversion(
                    source,
                    destination,
                    options,
                    originals,
                    repository,
                    progress,
                    executor,
                    claims,
                    part=images.found.index is not None,
                )
                results.append(work.run(image, source_layers(image), time.monotonic()))
                made.append((image, work.manifest))
            digest, unchanged = results[0].digest, results[0].unchanged
            if (index := converted_index(images.found, made)) is not None:
                digest, unchanged = publish_index(repository, [each for _, each in made], index)
    return Conversions(
        source=str(source),
        source_digest=images.found.top.digest,
        destination=str(destination),
        digest=digest,
        unchanged=unchanged,
        images=results,
        skipped=images.skipped,
        seconds=time.monotonic() - started,
    )


def converted_index(
    source: Leaves, images: Sequence[tuple[ResolvedImage, Manifest]]
) -> Index | None:
    """Return the index of converted images; None if the source has no index. Pure.

    Its entries keep order, platform and annotations of the source's. They name their sources as
    their manifests do, so a reader need not fetch these.

    Args:
        source: what they were made of.
        images: each source image, and the manifest of its conversion.
    """
    if source.index is None:
        return None
    made = {image.descriptor.digest: (image, manifest) for image, manifest in images}
    entries = [
        _entry(entry, *made[entry.digest]) for entry in source.images if entry.digest in made
    ]
    annotations = {**(source.index.annotations or {}), SOURCE_DIGEST: source.top.digest}
    return Index(manifests=entries, annotations=annotations)


def _entry(source: Descriptor, image: ResolvedImage, manifest: Manifest) -> Descriptor:
    noted = {
        name: text
        for name, text in (manifest.annotations or {}).items()
        if name in (SOURCE_DIGEST, PARAMETERS)
    }
    described = describe(encode(manifest), OCI_MANIFEST)
    return Descriptor(
        media_type=described.media_type,
        digest=described.digest,
        size=described.size,
        annotations={**(source.annotations or {}), **noted},
        platform=source.platform or platform_of(image.config),
    )


def relisted(repository: Repository, digest: str, manifest: Manifest) -> Index:
    """Return the index that the repository's reference names, with another image in place of one.

    Args:
        repository: has the index.
        digest: of the manifest that is replaced.
        manifest: of the other image; the platform and what else the entry says stay.

    Raises:
        ImageError: the name is that of an image by now.
    """
    index = document_of(*repository.get_manifest())
    if isinstance(index, Manifest):
        raise ImageError("another command has put an image in place of the index", hint="try again")
    made = describe(encode(manifest), OCI_MANIFEST)
    entries = [
        structs.replace(entry, digest=made.digest, size=made.size)
        if entry.digest == digest
        else entry
        for entry in index.manifests
    ]
    return Index(manifests=entries, annotations=index.annotations)


def publish_index(
    repository: Destination, manifests: Sequence[Manifest], index: Index
) -> tuple[str, bool]:
    """Publish the manifests, then their index; return its digest, and whether it was there."""
    data = encode(index)
    with suppress(FirstreadError):  # nothing is there, or something else, which is replaced
        descriptor, before = repository.get_manifest()
        if before == data:
            return descriptor.digest, True
    for manifest in manifests:
        repository.put_manifest(encode(manifest), OCI_MANIFEST, None)
    return repository.put_manifest(data, OCI_INDEX, repository.reference.tag).digest, False
