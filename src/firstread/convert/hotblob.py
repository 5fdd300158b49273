# SPDX-License-Identifier: Apache-2.0
"""Makes hot sectors: copies what a start reads, in order, into a sector blob of its own.

Owns the step between the merged tree and its metadata: what is hot, and the blob;
`firstread.convert.hotcopies` owns the copies. The sectors of layers stay as they are. Invariant:
the tree, the trace and the encoder alone decide the bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from firstread.convert.blobwriter import BlobWriter, PackedLayer
from firstread.convert.hotcopies import HotCopies
from firstread.convert.hotplan import DEFAULT_GRANULE, HotPlan, find_file, plan_hot
from firstread.convert.job import blob_descriptor
from firstread.convert.metadata import MergedLayers, index_blob, leave_out_zeros
from firstread.convert.record import PackedSector, Parameters
from firstread.erofs.tree import Node, split_address
from firstread.layouts.ingest import open_scratch
from firstread.oci.repository import Destination
from firstread.sectors.content import ContentReader
from firstread.sectors.format import SectorEntry, check_row
from firstread.sectors.hotnote import NO_TRACE, HotNote
from firstread.sectors.native import NativeSource
from firstread.sectors.source import Wanted
from firstread.traces.tracefile import Trace, write_trace
from firstread.units import MiB

# docs/adr/0095-hot-frames-are-compressed-harder.md has the table.
HOT_LEVEL = 15
LARGE = 96 * MiB  # of hot sectors, from which on that would take too long
LARGE_LEVEL = 6
STATIC_LEVEL = 9  # of a start set, which nobody asked for: 15 would double a conversion's time

Read = Callable[[bytes, int, int], bytes]
"""Returns the bytes of the file at a path, from an offset on, so many at most; none, if there is no
such file."""

Start = Callable[[Node, Read, dict[str, Any]], Trace | None]
"""Says what a start reads: of the merged tree, its files, and the image's config."""


def recorded_start(trace: Trace) -> Start:
    """Return the start that `trace` has recorded."""
    return lambda _root, _read, _config: trace


@dataclass(frozen=True)
class HotBlob:
    """The hot sectors of an image, in its repository.

    Args:
        packed: the blob.
        size: bytes of the sectors, uncompressed.
        sectors: how many.
        uploaded: the repository did not have the blob.
    """

    packed: PackedLayer
    size: int
    sectors: int
    uploaded: bool


@dataclass(frozen=True)
class Hot:
    """What became of a start.

    Args:
        plan: of its reads; None if no start was stated.
        blob: the hot sectors; None if it reads nothing that they could hold.
        note: what the image says of them, but for `whole`.
        whole: ids of sectors of layers that it reads as a whole, in its order.
    """

    plan: HotPlan | None = None
    blob: HotBlob | None = None
    note: HotNote | None = None
    whole: Sequence[bytes] = ()

    def text(self, ids: Sequence[bytes]) -> str | None:
        """Return the annotation of an image; None if nothing is hot.

        Args:
            ids: of its sectors, in order of the device slots.
        """
        if self.note is None:
            return None
        slots = {identity: slot for slot, identity in enumerate(ids)}
        # One that a copy of the same content replaces has no slot.
        whole = tuple(slots[identity] for identity in self.whole if identity in slots)
        return str(replace(self.note, whole=whole))


NOT_HOT = Hot()


def make_hot(
    repository: Destination,
    merged: MergedLayers,
    layers: Sequence[PackedLayer],
    parameters: Parameters,
    config: dict[str, Any],
    start: Start,
    *,
    static: bool = False,
    granule: int = DEFAULT_GRANULE,
    level: int | None = None,
    jobs: int = 1,
    plan: HotPlan | None = None,
) -> Hot:
    """Put the hot sectors of an image into its repository, and the chunks of `merged` into them.

    Args:
        repository: has the blobs of the layers.
        merged: the layers; the sectors of the new blob belong to a layer behind the last.
        layers: whose blobs the repository has.
        parameters: of the layers.
        config: of the source.
        start: what is hot.
        static: no run has shown that.
        granule: smallest chunk, bytes.
        level: zstd compression level; None for the one of such a start.
        jobs: sectors compressed at a time.
        plan: of the start, if the caller has it; made after `leave_out_zeros`.

    Raises:
        FirstreadError: the blobs cannot be read or contradict the records; the repository does not
            take the new one.
    """
    leave_out_zeros(merged)
    sectors = _wanted(merged, layers, parameters)
    trace = start(merged.root, _reader(merged, ContentReader(repository, sectors)), config)
    if trace is None:
        return NOT_HOT
    plan = plan or plan_hot(merged.root, trace, parameters.sector_size, granule)
    if not plan.runs and not plan.whole:
        return Hot(plan)
    ids = (sectors[split_address(address)[0]].entry.id for address in plan.whole)
    whole = list(dict.fromkeys(ids))  # each once, whatever repeats
    note = HotNote(granule, plan.reads, NO_TRACE if static else _digest(trace))
    if not plan.runs:
        return Hot(plan, None, note, whole)
    copies = HotCopies(parameters.sector_size, [sector.entry.id for sector in sectors])
    for run in plan.runs:
        copies.place(run)
    with (
        tempfile.TemporaryFile(prefix="firstread-") as data,
        open_scratch(repository.scratch_dir) as blob,
    ):
        size = sum(copies.sizes)
        level = level or _level(size, static=static)
        hot = Parameters(parameters.sector_size, parameters.frame_size, level)
        # Closed while `data` is open: its threads write to the descriptor by its number.
        with closing(copies.copy(NativeSource(repository), sectors, data.fileno())) as copied:
            full = zip(copied, copies.sizes, strict=True)
            packed, made = _pack(full, data, hot, blob, jobs)
        blob.seek(0)
        uploaded = repository.put_blob(blob_descriptor(packed), blob, verified=True)
    copies.repoint(merged.root)
    merged.sectors += [(len(merged.layers), sector) for sector in made]
    return Hot(plan, HotBlob(packed, size, len(made), uploaded), note, whole)


def _level(size: int, *, static: bool) -> int:
    if static:
        return STATIC_LEVEL
    return HOT_LEVEL if size < LARGE else LARGE_LEVEL


def _wanted(
    merged: MergedLayers, layers: Sequence[PackedLayer], parameters: Parameters
) -> list[Wanted]:
    """Return the sectors of all layers."""
    blobs = [index_blob(packed) for packed in layers]
    descriptors = [blob_descriptor(packed) for packed in layers]
    wanted = []
    for number, (layer, sector) in enumerate(merged.sectors):
        row = SectorEntry(sector.id, sector.size, layer, sector.offset, sector.length)
        if sector.id:
            check_row(row, number, parameters.geometry, blobs)  # a record can come from a registry
        wanted.append(Wanted(row, descriptors[layer], parameters.geometry))
    return wanted


def _reader(merged: MergedLayers, content: ContentReader) -> Read:
    def read(path: bytes, offset: int, length: int) -> bytes:
        node = find_file(merged.root, path)
        return content.read(node, offset, length) if node else b""

    return read


def _pack(
    sectors: Iterable[tuple[int, int]],
    data: BinaryIO,
    parameters: Parameters,
    blob: BinaryIO,
    jobs: int,
) -> tuple[PackedLayer, list[PackedSector]]:
    """Compress (number, bytes) of `data`, while the next ones come."""
    with BlobWriter(blob, parameters, jobs, jobs + 1) as writer:
        for number, size in sectors:
            buffer = writer.take()
            if os.preadv(data.fileno(), [buffer[:size]], number * parameters.sector_size) != size:
                raise OSError("a temporary file became shorter")
            writer.submit(number, buffer, size)
        made = writer.finish()
        return writer.seal(b""), made


def _digest(trace: Trace) -> str:
    text = io.BytesIO()
    write_trace(trace, text)
    return "sha256:" + hashlib.sha256(text.getvalue()).hexdigest()
