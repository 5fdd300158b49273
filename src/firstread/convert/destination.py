# SPDX-License-Identifier: Apache-2.0
"""Refuses destinations that would take an image's name from it.

Invariant: after a conversion, the name that found the original still names it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from os.path import realpath

from firstread.errors import ImageError, NotFoundError, UsageError
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage


def check_destination(source: Reference, destination: Reference) -> None:
    """Refuse a destination that would take the name `source` from its image, or destroy it.

    Raises:
        UsageError: it is the same image, or in the same archive.
    """
    here, there = repository_of(source), repository_of(destination)
    if here == there and (source.tag, source.digest) == (destination.tag, destination.digest):
        raise same_image(source)
    if there.transport == "oci-archive" and here.path == there.path:
        raise UsageError(
            "source and destination are the same file",
            image=str(source),
            hint="name another file: an archive is written anew, and the original would be lost",
        )


def check_name(originals: Repository, image: ResolvedImage, destination: Reference) -> None:
    """Refuse a destination whose tag is the name that found `image`.

    `check_destination` compares what the user wrote. A digest, the end of a name, or no name at all
    can find an image, too, and then another spelling is the same name.

    Args:
        originals: the image's repository, opened by the name of the image.
        image: what that name found.
        destination: anywhere.

    Raises:
        UsageError: the image would lose its name.
    """
    source, tag = originals.reference, destination.tag
    if tag is None or repository_of(source) != repository_of(destination):
        return
    if source.tag and not source.digest and not tag.endswith(f":{source.tag}"):
        return  # the original keeps its own name
    with suppress(NotFoundError, ImageError):
        named = originals.get_manifest(tag)[0].digest
        if named in (image.descriptor.digest, originals.get_manifest()[0].digest):
            raise same_image(source)


def repository_of(reference: Reference) -> Reference:
    """Return the repository, directory or file of an image, without the image's own name."""
    path = reference.path and realpath(reference.path)
    return replace(reference, path=path, tag=None, digest=None)


def same_image(source: Reference) -> UsageError:
    """Return the error for a destination that is the source."""
    return UsageError(
        "source and destination are the same image",
        image=str(source),
        hint="give the destination another tag, or the original image would lose its own",
    )
