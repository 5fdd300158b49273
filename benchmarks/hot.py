# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.hot IMAGE TRACE``: what hot sectors cost, by granule and by level.

Packs the hot sectors of one image again and again: for each granule, to see bytes of padding beside
bytes of metadata; for each level, to see bytes beside seconds. Then optimizes the image in a
registry, and exits with 1 if that takes too long or sends more than hot sectors and metadata.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from benchmarks.images.build import build
from benchmarks.report import Goal, Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.hotblob import HOT_LEVEL, HotBlob, make_hot, recorded_start
from firstread.convert.hotplan import DEFAULT_GRANULE
from firstread.convert.metadata import index_blob, write_metadata_layer
from firstread.convert.optimize import OptimizeOptions, optimize, packed_layers
from firstread.convert.publish import merge_layers
from firstread.oci.blobstream import BlobStream
from firstread.oci.model import Descriptor
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.repository import Destination, Progress, Repository
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.testing.registry import DockerRegistry
from firstread.traces.firstreads import merge
from firstread.traces.tracedirs import read_traces
from firstread.traces.tracefile import Trace
from firstread.units import KiB

GRANULES = (4 * KiB, 8 * KiB, 16 * KiB, 32 * KiB, 64 * KiB)
LEVELS = (3, 6, 9, 12, 15, 19)
LONGEST_S = 10.0  # for an image of 1 GB or more
MB = 1_000_000


class Nowhere(Destination):
    """A repository that gives its blobs, and forgets those that it takes.

    Args:
        inner: has the blobs.
    """

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner.reference)
        self._inner = inner

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        return self._inner.get_manifest(reference)

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        return self._inner.open_blob(blob, offset=offset, length=length)

    def has_blob(self, blob: Descriptor) -> bool:
        return False

    def put_blob(
        self,
        blob: Descriptor,
        file: BinaryIO,
        *,
        on_progress: Progress | None = None,
        verified: bool = False,
    ) -> bool:
        return True

    def put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Descriptor:
        raise NotImplementedError

    def close(self) -> None:
        pass


def packed(
    repository: Repository, trace: Trace, granule: int, level: int
) -> tuple[HotBlob | None, int, float]:
    """Return the hot blob of an image, the bytes of its metadata, and seconds for the blob."""
    image = resolve(repository)
    layers, parameters = packed_layers(repository, image)
    merged, blobs = merge_layers(layers), [layer.packed for layer in layers]
    started = time.monotonic()
    made = make_hot(
        Nowhere(repository),
        merged,
        blobs,
        parameters,
        image.config,
        recorded_start(trace),
        granule=granule,
        level=level,
    ).blob
    seconds = time.monotonic() - started
    blobs += [made.packed] if made else []
    with tempfile.TemporaryFile() as file:
        write_metadata_layer(file, merged, list(map(index_blob, blobs)), parameters.geometry)
        return made, file.tell(), seconds


def tables(section: Section, repository: Repository, trace: Trace) -> None:
    """Measure granules and levels of one image."""
    read = sum(read.length for read in trace.reads)
    section.note("trace", f"{len(trace.reads)} reads, {read / MB:.1f} MB")
    _, plain, _ = packed(repository, Trace(trace.header, []), DEFAULT_GRANULE, HOT_LEVEL)
    section.add("metadata without hot sectors", plain / KiB, "KiB")
    for granule in GRANULES:
        made, metadata, _ = packed(repository, trace, granule, HOT_LEVEL)
        if made is not None:
            sizes = f"{made.size / MB:.1f} MB raw, metadata {metadata / KiB:.0f} KiB"
            total = made.packed.size + metadata - plain
            section.add(
                f"granule {granule // KiB} KiB: hot sectors + more metadata",
                total / MB,
                "MB",
                None,
                sizes,
            )
    for level in LEVELS:
        made, _, seconds = packed(repository, trace, DEFAULT_GRANULE, level)
        if made is not None:
            size = made.packed.size / MB
            section.add(
                f"level {level}: hot sectors", size, "MB", None, f"{seconds:.1f} s, one thread"
            )


@contextmanager
def converted(layout: Path, scratch: Path) -> Iterator[Repository]:
    """Convert an image; give its repository."""
    here = parse_reference(f"oci:{scratch}/converted:latest")
    convert(parse_reference(f"oci:{layout}:latest"), here, ConvertOptions(static=False))
    with open_source(here) as repository:
        yield repository


def in_a_registry(section: Section, source: Reference, trace: Trace) -> bool:
    """Optimize an image in a registry; return whether all goals were met."""
    with DockerRegistry() as registry:
        name = parse_reference(f"{registry.host}/image:1")
        size = convert(source, name, ConvertOptions(static=False)).size
        with open_source(name) as repository:
            before = resolve(repository).manifest.layers[1:]
        registry.forget()
        options = OptimizeOptions(jobs=len(os.sched_getaffinity(0)))  # as the command
        done = optimize(name, None, [trace], options)
        with open_source(name) as repository:
            after = resolve(repository).manifest.layers[1 : 1 + len(before)]
        section.add(
            f"optimizing {size / MB:,.0f} MB in a registry",
            done.seconds,
            "s",
            Goal("<=", LONGEST_S),
        )
        uploads = registry.counts.requests_of("POST /v2/image/blobs/uploads")
        section.add("uploads: hot sectors, metadata, config", uploads, "blobs", Goal("<=", 3))
        section.add(
            "layers with another digest", sum(map(Descriptor.__ne__, before, after)), "layers"
        )
        return all(figure.met is not False for figure in section.figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", help="as for python -m benchmarks.images")
    parser.add_argument("trace", type=Path, help="of a start of it, or a directory of some")
    options = parser.parse_args(arguments)
    trace = merge(read_traces([options.trace]))
    (layout,) = build([options.image])
    with scratch_directory() as scratch, converted(layout, scratch) as repository:
        section = Section("hot", f"Hot sectors of {options.image}", describe(scratch))
        section.start()
        tables(section, repository, trace)
        source = parse_reference(f"oci:{layout}:latest")
        return 0 if in_a_registry(section, source, trace) else 1


if __name__ == "__main__":
    sys.exit(main())
