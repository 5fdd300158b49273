# SPDX-License-Identifier: Apache-2.0
"""The documents of ``firstread cache``, and of the store in ``firstread status`` (docs/json.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from firstread.documents import DESCRIBED, Bytes, Digest, Document, Moment, SectorName


class StoreFigures(Document, kw_only=True):
    """What the store holds.

    bytes, sectors: of sectors, mounted or not
    metadata_bytes: of metadata, manifests and configs of images
    files: of sectors, with or without bytes, and of images: directories, files and names
    limit_bytes, limit_files, min_free_bytes: `[cache]` of the configuration; null: no limit
    free_bytes: that the file system has free
    free_files: inodes that it has free; null: it has no bound
    """

    bytes: Bytes
    sectors: int
    metadata_bytes: Bytes
    files: int
    limit_bytes: Bytes | None = None
    limit_files: int | None = None
    min_free_bytes: Bytes | None = None
    free_bytes: Bytes
    free_files: int | None


class EvictionFigures(StoreFigures, kw_only=True):
    """What a store holds that is kept within limits, and what went for that.

    evictions, evicted_bytes: sectors of mounted images that were emptied to make room
    removals, removed_bytes: likewise, of other images
    """

    evictions: int
    evicted_bytes: Bytes
    removals: int
    removed_bytes: Bytes


class OnlineFigures(EvictionFigures, kw_only=True):
    """What the store of a running daemon holds, and what became of sectors in it.

    checked, damaged: sectors that were checked against their ids; of them damaged
    """

    checked: int
    damaged: int


class ImageRow(Document):
    """An image on this node.

    digest: of the manifest
    names: references that stood for it when they were last asked for
    mounts: of it, also those that were unmounted lazily and are still used
    pinned: one of them is
    sectors, present: of the image; of them whole on this node
    bytes, whole_bytes: that its sectors have here; that all of them have
    alone_bytes, shared_bytes: of `bytes`: in sectors that no other image here has; in the others
    metadata_bytes: of its metadata, manifest and config
    last_used: when it was mounted or unmounted last
    problem: why it cannot be opened
    """

    digest: Digest
    names: list[str]
    mounts: int
    pinned: bool
    sectors: int
    present: int
    bytes: Bytes
    whole_bytes: Bytes
    alone_bytes: Bytes
    shared_bytes: Bytes
    metadata_bytes: Bytes
    last_used: Moment
    problem: str | None


class Unclaimed(Document):
    """Sectors of no image that is here.

    sectors, bytes: here, and of no image that is here
    """

    sectors: int
    bytes: Bytes


class Listing(Document):
    """What ``firstread cache ls`` lists.

    store: as in [status](#status); without a daemon no counters and no limits
    images: mounted ones first, then the one that was used last
    """

    store: Annotated[StoreFigures, DESCRIBED]
    images: list[ImageRow]
    unclaimed: Unclaimed


class Pruned(Document):
    """What ``firstread cache prune`` removed.

    sectors, bytes: that were removed, or would be (`--dry-run`)
    images: likewise
    """

    sectors: int
    bytes: Bytes
    images: list[Digest]


class DamagedSector(Document):
    """A damaged sector.

    sector: its id
    image: an image that has it
    outcome: `damaged`: it still is; `emptied`: it is fetched again; `removed`: it comes again
        when it is read
    """

    sector: SectorName
    image: Digest
    outcome: Literal["damaged", "emptied", "removed"]


class DamagedImage(Document):
    """An image whose own files are damaged.

    digest: of its manifest
    problem: what is wrong
    outcome: `damaged`, `removed`, or `unread`: they could not be read, and may be right
    """

    digest: Digest
    problem: str
    outcome: Literal["damaged", "removed", "unread"]


class Verified(Document):
    """What ``firstread cache verify`` found.

    ok: nothing is left that is damaged or could not be read
    checked, checked_bytes: sectors that were read and digested; bytes of them
    partial: sectors that are not whole: they cannot be checked, and are fetched on from where
        they end
    busy: that were just being checked or emptied
    unclaimed: of no image that is here
    aside: doubtful since the last reboot: checked before their first read
    damaged: the damaged sectors
    images: images whose own files are damaged
    """

    ok: bool
    checked: int
    checked_bytes: Bytes
    partial: int
    busy: int
    unclaimed: int
    aside: int
    damaged: list[DamagedSector]
    images: list[DamagedImage]
