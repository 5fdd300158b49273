# SPDX-License-Identifier: Apache-2.0
"""The documents of ``firstread convert`` (docs/json.md)."""

from __future__ import annotations

from typing import Annotated

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
    dropped_xattrs: extended attributes that Linux cannot hold; `SCHILY.acl.access`,
        `SCHILY.acl.default`: access control lists of users or groups without numbers. Of the former
        the permissions of owner, group and others are kept
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
    inodes: of the file system
    layers: of the source, the lowest first
    uploaded_blobs: that the destination did not have
    seconds: wall-clock time
    attached_to: with `--attach`: the manifest that the image refers to
    platform: with `--attach`: what it runs on
    other_platforms: that the reference has images for, too, if it is an index: they were not
        converted
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
    inodes: int
    layers: list[ConvertedLayer]
    uploaded_blobs: int
    seconds: Seconds
    attached_to: Digest | None = None
    platform: str | None = None
    other_platforms: list[str]


class Skipped(Document):
    """An image of an index that was left alone.

    digest, platform: of the image
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
