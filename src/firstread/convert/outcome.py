# SPDX-License-Identifier: Apache-2.0
"""The documents of ``firstread convert`` (docs/json.md)."""

from __future__ import annotations

from typing import Annotated

from firstread.convert.hotblob import Hot
from firstread.documents import DESCRIBED, Bytes, Digest, Document, Seconds


class ConvertedLayer(Document):
    """What became of one source layer.

    digest: of the source's layer
    diff_id: of its uncompressed content
    how: `packed`, or `known`: neither downloaded nor packed again
    source_size, content_size: compressed, uncompressed
    blob: its sector blob
    blob_size: of that
    sectors: in the blob, whether the tree refers to them or not
    dropped_xattrs: extended attributes that Linux cannot hold there, and `trusted.*`, which are the
        node's own; `SCHILY.acl.access`, `SCHILY.acl.default`: access control lists of users or
        groups without numbers. Of the former the permissions of owner, group and others are kept
    """

    digest: Digest
    diff_id: Digest
    how: str
    source_size: Bytes
    content_size: Bytes
    blob: Digest
    blob_size: Bytes
    sectors: int
    dropped_xattrs: list[str]


class HotSectors(Document):
    """The sectors that hold what a start reads, in order ([optimize.md](optimize.md)).

    blob: their sector blob; null if none is needed
    blob_size, size: compressed, uncompressed
    sectors: in the blob
    whole_sectors: of layers, that a start reads as a whole: they stay where they are
    reads, files: of the trace that they serve
    missing_files: paths in the trace that are no file of the image
    unfit_reads: of such paths, or behind the end of a file
    hole_reads: of holes, which need no data
    """

    blob: Digest | None
    blob_size: Bytes
    size: Bytes
    sectors: int
    whole_sectors: int
    reads: int
    files: int
    missing_files: int
    unfit_reads: int
    hole_reads: int


def hot_sectors(hot: Hot) -> HotSectors | None:
    """Return the document about what became of a start; None if none was stated."""
    plan, made = hot.plan, hot.blob
    if plan is None:
        return None
    return HotSectors(
        blob=made.packed.digest if made else None,
        blob_size=made.packed.size if made else 0,
        size=made.size if made else 0,
        sectors=made.sectors if made else 0,
        whole_sectors=len(hot.whole),
        reads=plan.reads,
        files=plan.files,
        missing_files=plan.left_out.files,
        unfit_reads=plan.left_out.reads,
        hole_reads=plan.left_out.holes,
    )


class Conversion(Document, kw_only=True):
    """What a conversion made.

    source: reference of the ordinary image
    source_digest: of its manifest; of the chosen one, if the reference names an index
    destination: reference of the converted image
    digest: of its manifest
    unchanged: the destination's tag named this image before
    source_size: compressed layers of the source
    content_size: its layers uncompressed
    size: all layers of the converted image
    metadata_size: the metadata layer: what a node fetches before it mounts
    metadata_uncompressed_size: of the same
    sectors: that the tree refers to
    sector_size: of the image, at most
    inodes: of the file system
    layers: of the source, the lowest first
    uploaded_blobs: that the destination did not have
    seconds: wall-clock time
    attached_to: with `--attach`: the manifest that the image refers to
    platform: what it runs on; null if the image does not say
    other_platforms: that the reference has images for, too, if it is an index: they were not
        converted
    hot: as for [optimize](#optimize); null if there are no hot sectors
    """

    source: str
    source_digest: Digest
    destination: str
    digest: Digest
    unchanged: bool
    source_size: Bytes
    content_size: Bytes
    size: Bytes
    metadata_size: Bytes
    metadata_uncompressed_size: Bytes
    sectors: int
    sector_size: Bytes
    inodes: int
    layers: list[ConvertedLayer]
    uploaded_blobs: int
    seconds: Seconds
    attached_to: Digest | None = None
    platform: str | None = None
    other_platforms: list[str]
    hot: Annotated[HotSectors | None, DESCRIBED] = None


class Skipped(Document):
    """An entry of an index that was left alone.

    digest: of what it names
    platform: of the image, empty if the entry has none
    reason: why
    """

    digest: Digest
    platform: str
    reason: str


class Attachments(Document):
    """The conversions attached to the images of one name.

    source: reference of the ordinary image or index
    images: an object as for [convert](#convert) for each image that was converted
    chosen: for each of `images` the manifest that nodes take: its own, unless another conversion is
        attached to the same original
    skipped: images of the index that were left alone
    seconds: wall-clock time
    """

    source: str
    images: Annotated[list[Conversion], DESCRIBED]
    chosen: list[Digest]
    skipped: list[Skipped]
    seconds: Seconds


class Conversions(Document):
    """The conversions of all images of one name, under one name.

    source: reference of the ordinary image or index
    source_digest: of what it names
    destination: reference of the result: an index, if the source is one
    digest: of the result
    unchanged: the destination's tag named it before
    images: an object as for [convert](#convert) for each image that was converted
    skipped: other entries of the index
    seconds: wall-clock time
    """

    source: str
    source_digest: Digest
    destination: str
    digest: Digest
    unchanged: bool
    images: Annotated[list[Conversion], DESCRIBED]
    skipped: list[Skipped]
    seconds: Seconds


class Optimization(Document):
    """What an optimization made.

    reference: of the converted image, or of its original
    destination: reference of the result; without a tag, if it is attached only
    digest: of its manifest
    unchanged: the destination's name had this image before
    size: all its layers
    metadata_size: the metadata layer: what a node fetches before it mounts
    hot: the hot sectors
    uploaded_blobs: that the destination did not have
    attached_to: the original's manifest, if the image is attached to it
    chosen: then the manifest that nodes take: its own, unless they prefer another conversion that
        is attached to the same original
    seconds: wall-clock time
    """

    reference: str
    destination: str
    digest: Digest
    unchanged: bool
    size: Bytes
    metadata_size: Bytes
    hot: HotSectors | None
    uploaded_blobs: int
    attached_to: Digest | None
    chosen: Digest | None
    seconds: Seconds
