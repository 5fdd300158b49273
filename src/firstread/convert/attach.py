# SPDX-License-Identifier: Apache-2.0
"""Converts an image in place: the result belongs to its original and has no name of its own.

Owns which images of a name are converted and what they are attached to; the conversion of each is
`ImageConversion`. Invariants: the original's manifests, tags and signatures are not written; an
index gets nothing attached, each of its images does, since that is the digest that a node ends up
with whichever way it came.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from firstread.convert.convert import (
    Conversion,
    ConvertOptions,
    ImageConversion,
    source_layers,
)
from firstread.convert.job import temporary_file_error
from firstread.convert.places import check_name, check_places, place_of
from firstread.convert.progress import NoProgress, Progress
from firstread.errors import FirstreadError, SourceError, UnsupportedError, UsageError
from firstread.oci.model import OCI_MANIFEST
from firstread.oci.open import open_destination, open_source
from firstread.oci.platform import Platform
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository, naming
from firstread.oci.resolve import ResolvedImage, platform_of, resolve, resolve_all
from firstread.sectors.attached import find_attached
from firstread.sectors.image import is_block_image, is_block_layer

log = logging.getLogger("attach")


@dataclass(frozen=True)
class Skipped:
    """An image of an index that was left alone, and why."""

    digest: str
    platform: str
    reason: str


@dataclass(frozen=True)
class Attachments:
    """What was attached to the images of one name.

    Args:
        source: the name.
        images: a conversion for each platform.
        chosen: for each of them the digest of what nodes take, which another conversion may be.
        skipped: images that were left alone.
        seconds: of wall-clock time.
    """

    source: str
    images: list[Conversion]
    chosen: list[str]
    skipped: list[Skipped]
    seconds: float


def attach(
    source: Reference,
    options: ConvertOptions,
    *,
    destination: Reference | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Attachments:
    """Convert what `source` names, and attach each result to its original.

    Args:
        source: an ordinary image, or an index of them: all its Linux images are converted, unless
            the options name a platform.
        options: see `ConvertOptions`; access is by `destination_options`.
        destination: a name in the same place for the result, besides.
        progress: shows what is going on.
        executor: as for `firstread.convert.convert.convert`.

    Raises:
        FirstreadError: names the image. What was attached before stays.
    """
    started = time.monotonic()
    if source.transport not in ("docker", "oci"):
        raise UsageError(
            f"nothing can be attached to an image in {source.transport}:",
            image=str(source),
            hint="name an image in a registry (docker://) or in an OCI layout (oci:)",
        )
    if destination is not None:
        _check_destination(source, destination)
    try:
        with open_source(source, options.source_options) as originals:
            chosen, skipped = _chosen(originals, options.platform)
            if destination is not None and len(chosen) > 1:
                raise UsageError(
                    f"{destination} can name one image only, and {source} has {len(chosen)}",
                    hint="choose one with --platform",
                )
            if destination is not None:
                check_name(originals, chosen[0], destination)
            here = replace(originals.reference, tag=None, digest=None)
            with open_destination(here, options.destination_options) as place:
                images = []
                for image in chosen:
                    work = ImageConversion(source, here, options, originals, place, attach=True)
                    shown, layers = progress or NoProgress(), source_layers(image)
                    images.append(work.run(image, layers, shown, executor, time.monotonic()))
                if destination is not None:
                    _name(place, images[0].digest, destination)
                taken = [
                    _taken(place, image, made.digest)
                    for image, made in zip(chosen, images, strict=True)
                ]
    except FirstreadError as exc:
        exc.about(image=str(source))
        raise
    except OSError as exc:
        raise temporary_file_error(exc).about(image=str(source)) from exc
    return Attachments(str(source), images, taken, skipped, time.monotonic() - started)


def _chosen(
    originals: Repository, platform: Platform | None
) -> tuple[list[ResolvedImage], list[Skipped]]:
    """Return the images that are to be converted, and those that are not."""
    if platform is not None:
        return [resolve(originals, platform)], []
    found = list(resolve_all(originals))
    reasons = [_reason(image) for image in found] if len(found) > 1 else [None]
    chosen = [image for image, reason in zip(found, reasons, strict=True) if reason is None]
    skipped = [
        Skipped(image.descriptor.digest, str(platform_of(image.config)), reason)
        for image, reason in zip(found, reasons, strict=True)
        if reason is not None
    ]
    if not chosen:
        raise UnsupportedError(
            "the index has no image that can be converted",
            hint="; ".join(f"{image.platform or 'unknown'}: {image.reason}" for image in skipped),
        )
    return chosen, skipped


def _reason(image: ResolvedImage) -> str | None:
    """Return why an image of an index is left alone."""
    if is_block_image(image.manifest):
        return "it is converted already"
    if any(map(is_block_layer, image.manifest.layers)):
        return "it was built FROM a converted image"
    os = platform_of(image.config).os
    return f"it is for {os}" if os not in ("", "linux") else None


def _check_destination(source: Reference, destination: Reference) -> None:
    check_places(source, destination)
    if place_of(source) != place_of(destination):
        raise UsageError(
            f"{destination} is not in the same place as {source}",
            hint="an attached image lies beside its original: leave DEST out, or give it"
            " another tag of the same repository",
        )


def _name(place: Repository, digest: str, destination: Reference) -> None:
    """Give an attached image a name."""
    with naming(destination):
        _, data = place.get_manifest(digest)
        place.put_manifest(data, OCI_MANIFEST, destination.tag)


def _taken(place: Repository, image: ResolvedImage, attached: str) -> str:
    """Return the digest of what nodes take for an original now.

    Args:
        place: where it is.
        image: the original.
        attached: digest of what was attached; believed, if the registry does not say.
    """
    try:
        found = find_attached(place, image.descriptor)
    except SourceError as exc:
        log.warning("%s: what is attached is not known: %s", image.descriptor.digest, exc)
        return attached
    if found is None:
        raise SourceError(
            f"the registry took what was attached to {image.descriptor.digest}, but does not"
            " list it",
            hint="wait a moment and run 'firstread inspect' on the image",
        )
    return found.descriptor.digest
