# SPDX-License-Identifier: Apache-2.0
"""A firstread image as its manifest and its metadata describe it.

Owns the way from a manifest to a checked `BlockImage`; does not know where sectors come from.
Invariant: a `BlockImage` that exists is consistent: header, device table, sector index and
manifest agree, and no length in it exceeds a declared limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import zstandard

from firstread.erofs.erofsimage import ErofsImage
from firstread.errors import (
    DerivedImageError,
    ImageError,
    LimitError,
    UnsupportedError,
    from_os_error,
)
from firstread.oci.model import Descriptor, Manifest
from firstread.oci.reference import is_digest
from firstread.oci.repository import Repository
from firstread.sectors.format import (
    BLOCK_SIZE,
    LAYER_LABEL,
    MAX_METADATA_SIZE,
    MAX_SECTORS,
    METADATA_MEDIA_TYPE,
    SECTORS_MEDIA_TYPE,
    Header,
    SectorIndex,
    index_offset,
    unpack_index,
)
from firstread.sectors.hotnote import HotNote
from firstread.units import KiB, MiB, counted, format_size

log = logging.getLogger("image")

SMALL_METADATA = 128 * KiB  # compressed: what comes beside it hardly holds it up
MAX_METADATA_WINDOW = 8 * MiB  # what every zstd decoder is asked to support (RFC 8878, 3.1.1.1.2)

ANNOTATION = "dev.firstread."
SOURCE_DIGEST = ANNOTATION + "source.digest"  # manifest: digest of the source's manifest
PARAMETERS = ANNOTATION + "parameters"  # manifest: what it was converted with
SOURCE_DIFF_ID = ANNOTATION + "source.diff-id"  # sector blob: the layer that it holds
DIFF_ID = ANNOTATION + "diff-id"  # sector blob without an image: of its uncompressed content
HOW = ANNOTATION + "how"  # of a worker's answer: what it did
REPOSITORY = ANNOTATION + "repository"  # of a worker's answer: that has the sector blob
RECORD = ANNOTATION + "record"  # sector blob: "offset size digest" of its layer record
HOT = ANNOTATION + "hot"  # sector blob: holds the hot sectors, in order; manifest: has such a blob
GENERATION = ANNOTATION + "generation"  # of attached images with hot sectors: the highest counts
PREFETCH = ANNOTATION + "prefetch"  # manifest: what a node fetches though nobody reads it

# Such as ctr images convert --uncompress and nerdctl image convert --zstd.
REWRITTEN = "convert the original again, or copy the converted image unchanged"

_LAYERS = "application/vnd.oci.image.layer.firstread."  # what media types of layers begin with


@dataclass(frozen=True)
class BlockImage:
    """A firstread image, ready to be mounted or read.

    Args:
        manifest: of the image.
        erofs: its metadata as a file system.
        index: where its sectors lie.
        blobs: descriptor of each blob of the index, in its order.
        metadata: the uncompressed metadata layer.
    """

    manifest: Manifest
    erofs: ErofsImage
    index: SectorIndex
    blobs: list[Descriptor]
    metadata: bytes | mmap.mmap

    def hot_sectors(self) -> list[int]:
        """Return the device slots of the sectors that a start reads, in the order of the start.

        First come those of the hot blob, then sectors of layers that a start reads as a whole.
        """
        hot = {number for number, blob in enumerate(self.blobs) if is_hot(blob)}
        rows = self.index.sectors
        slots = [slot for slot, row in enumerate(rows) if row.blob in hot]
        slots.sort(key=lambda slot: (rows[slot].blob, rows[slot].offset))
        whole = self.hot_note.whole if self.hot_note else ()
        return list(dict.fromkeys([*slots, *whole]))

    @cached_property
    def hot_note(self) -> HotNote | None:
        """What the image says of its hot sectors; None if it says nothing that can be read."""
        try:
            return _hot_note(self.manifest, len(self.index.sectors))
        except ImageError as exc:
            metadata = self.manifest.layers[0].digest
            log.warning("the image of metadata %s: %s", metadata, exc.message)
            return None

    def digest(self) -> str:
        """Return the SHA-256 of the uncompressed metadata, in hexadecimal: its diff_id."""
        return hashlib.sha256(self.metadata).hexdigest()


def is_hot(layer: Descriptor) -> bool:
    """Return whether a layer is a blob of hot sectors."""
    return HOT in (layer.annotations or {})


def traced_blob(manifest: Manifest) -> Descriptor | None:
    """Return the blob of an image that a start reads from its first byte on, if it has one."""
    with contextlib.suppress(ImageError):
        note = _hot_note(manifest, MAX_SECTORS)
        if note is not None and not note.is_traced:
            return None
    return next(filter(is_hot, manifest.layers), None)


def _hot_note(manifest: Manifest, sectors: int) -> HotNote | None:
    note = (manifest.annotations or {}).get(HOT)
    return HotNote.parse(note, sectors) if note is not None else None


def is_block_layer(layer: Descriptor) -> bool:
    """Return whether a layer belongs to a firstread image, of whatever version.

    A tool that rewrites media types may leave the annotation.
    """
    return layer.media_type.startswith(_LAYERS) or LAYER_LABEL in (layer.annotations or {})


def is_block_image(manifest: Manifest) -> bool:
    """Return whether `manifest` is of a firstread image."""
    layers = manifest.layers
    return (
        bool(layers)
        and layers[0].media_type == METADATA_MEDIA_TYPE
        and all(map(is_block_layer, layers))
    )


def check_underived(manifest: Manifest) -> None:
    """Check that an image, of either kind, was not built FROM a firstread image.

    Raises:
        DerivedImageError: it has layers of both kinds.
    """
    ours = sum(map(is_block_layer, manifest.layers))
    others = len(manifest.layers) - ours
    if ours and others:
        original = (manifest.annotations or {}).get(SOURCE_DIGEST, "")  # many builders keep it
        known = f", {original}" if is_digest(original) else ""
        raise DerivedImageError(
            f"it was built FROM a converted image: {counted(others, 'ordinary layer')} on top of"
            " layers that only firstread can read",
            hint=f"build it FROM the original image of its base{known}, then convert the result",
        )


def check_manifest(manifest: Manifest) -> None:
    """Check that `manifest` is of a firstread image of this version.

    Raises:
        UnsupportedError: it is of an ordinary image, or of another version (DerivedImageError: it
            was built FROM a firstread image).
    """
    check_underived(manifest)
    if not is_block_image(manifest):
        if any(map(is_block_layer, manifest.layers)):
            raise UnsupportedError(
                f"the metadata layer has the media type {manifest.layers[0].media_type}",
                hint=f"it is of another version, or another program has rewritten it: {REWRITTEN}",
            )
        raise UnsupportedError(
            "this is an ordinary image, not one that firstread converted",
            hint="convert it first: firstread convert --attach SOURCE keeps its name, and"
            " firstread convert SOURCE DEST gives it another",
        )
    for layer in manifest.layers[1:]:
        if layer.media_type != SECTORS_MEDIA_TYPE:
            raise UnsupportedError(f"a layer has the media type {layer.media_type}")
    if manifest.layers[0].size > MAX_METADATA_SIZE:
        raise LimitError(f"the metadata layer is larger than {format_size(MAX_METADATA_SIZE)}")


def write_metadata(chunks: Iterable[bytes | memoryview], out: BinaryIO) -> int:
    """Decompress the metadata layer into `out`; return its size in bytes.

    Args:
        chunks: the layer; the caller verifies their digest.
        out: the metadata file.

    Raises:
        ImageError: it is corrupt.
        LimitError: it is larger than `MAX_METADATA_SIZE`.
    """
    size = 0
    for piece in _decompress(chunks):
        size += len(piece)
        if size > MAX_METADATA_SIZE:
            raise LimitError(f"the metadata is larger than {format_size(MAX_METADATA_SIZE)}")
        out.write(piece)
    return size


def _decompress(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    # In steps of 1 KiB, because all output of one step is in memory at once: a zstd block of
    # 128 KiB can be 4 bytes long (RFC 8878, 3.1.1.2), so a step gives at most 32 MiB.
    stream = zstandard.ZstdDecompressor(max_window_size=MAX_METADATA_WINDOW).decompressobj()
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), 1024):
                if stream.eof:
                    raise ImageError("the metadata layer goes on after its end")
                yield stream.decompress(view[start : start + 1024])
                if stream.unused_data:
                    raise ImageError("the metadata layer goes on after its end")
    except zstandard.ZstdError as exc:
        raise ImageError(
            f"the metadata layer cannot be decompressed: {exc}",
            hint=f"it is damaged, or another program has rewritten it: {REWRITTEN}",
        ) from exc
    if not stream.eof:
        raise ImageError("the metadata layer is cut off")


def fetch_image(
    repository: Repository,
    manifest: Manifest,
    out: BinaryIO,
    coming: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> BlockImage:
    """Fetch the metadata of an image into the file `out`, and open it.

    Args:
        repository: where the image is.
        manifest: of the image.
        out: an empty file; it is mapped into memory, and must not change as long as the image is
            in use.
        coming: gives a block in which the metadata comes; again, if another endpoint is asked. Of
            little metadata it is also asked for in it.

    Raises:
        FirstreadError: it cannot be fetched or stored, or is not a firstread image.
    """
    check_manifest(manifest)
    layer = manifest.layers[0]
    is_small = layer.size <= SMALL_METADATA
    asking, receiving = (coming, nullcontext) if is_small else (nullcontext, coming)
    try:
        while True:
            with asking(), repository.open_blob(layer) as stream, receiving():
                try:
                    size = write_metadata(stream, out)
                    break
                except ImageError:
                    if not stream.distrust():
                        raise
            out.seek(0)  # another endpoint may have it whole
            out.truncate()
        out.flush()
        if not size:
            raise ImageError("the metadata layer is empty")
        metadata = mmap.mmap(out.fileno(), size, prot=mmap.PROT_READ)
    except OSError as exc:
        raise from_os_error(exc, "cannot store the metadata") from exc
    return open_image(manifest, metadata)


def open_image(manifest: Manifest, metadata: bytes | mmap.mmap) -> BlockImage:
    """Return the image that `manifest` and its uncompressed `metadata` describe.

    Does not read the tree itself: `firstread.erofs.reader.validate` does.

    Raises:
        ImageError: they contradict each other or themselves.
    """
    check_manifest(manifest)
    view = memoryview(metadata)
    header = Header.unpack(view)
    erofs = ErofsImage(metadata)
    devices = [(device.tag, device.blocks * BLOCK_SIZE) for device in erofs.devices]
    offset = index_offset(header, len(view))
    index = unpack_index(header, view[offset:], devices)
    blobs = manifest.layers[1:]
    stated = [(blob.digest, blob.size) for blob in blobs]
    if stated != [("sha256:" + blob.digest.hex(), blob.size) for blob in index.blobs]:
        raise ImageError("the manifest and the sector index name different blobs")
    return BlockImage(manifest, erofs, index, list(blobs), metadata)
