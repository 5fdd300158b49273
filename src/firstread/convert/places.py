# SPDX-License-Identifier: Apache-2.0
"""Whether the result of a conversion may go where it is to go.

Invariant: no conversion takes from its original the name that it was found by.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from os.path import realpath

from firstread.errors import ImageError, NotFoundError, UsageError
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage


def check_places(source: Reference, destination: Reference) -> None:
    """Refuse a destination that would take the name `source` from its image, or destroy it.

    Raises:
        UsageError: it is the same image, or in the same archive.
    """
    here, there = place_of(source), place_of(destination)
    if here == there and (source.tag, source.digest) == (destination.tag, destination.digest):
        raise same_image(source)
    if there.transport == "oci-archive" and here.path == there.path:
        raise UsageError(
            "source and destination are the same file",
            image=str(source),
            hint="name another file: an archive is written anew, and the original would be lost",
        )


def check_name(originals: Repository, image: ResolvedImage, destination: Reference) -> None:
    """Refuse a destination whose tag is the name that `originals` found its image by.

    `check_places` knows only what was written. An image can also be found by its digest, by being
    the only one, or by the end of its name, and then another way of writing is the same name.

    Args:
        originals: where the image is, opened by the name of it.
        image: what was found.
        destination: in any place.

    Raises:
        UsageError: the image would lose its name.
    """
    source, tag = originals.reference, destination.tag
    if tag is None or place_of(source) != place_of(destination):
        return
    if source.tag and not source.digest and not tag.endswith(f":{source.tag}"):
        return  # a name of its own, which stays
    with suppress(NotFoundError, ImageError):
        named = originals.get_manifest(tag)[0].digest
        if named in (image.descriptor.digest, originals.get_manifest()[0].digest):
            raise same_image(source)


def place_of(reference: Reference) -> Reference:
    """Return the repository, directory or file, whatever its name for an image."""
    path = reference.path and realpath(reference.path)
    return replace(reference, path=path, tag=None, digest=None)


def same_image(source: Reference) -> UsageError:
    """Return the error for a destination that is the source."""
    return UsageError(
        "source and destination are the same image",
        image=str(source),
        hint="give the destination another tag, or the original image would lose its own",
    )
