# SPDX-License-Identifier: Apache-2.0
"""An image in memory for the simulator, and traces of starts that never happened.

Invariant: the image has what makes packing difficult: large and small files, holes, zeros, files
that an upper layer removes or replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from firstread.convert.record import Parameters
from firstread.oci.resolve import resolve
from firstread.sectors.image import BlockImage
from firstread.testing.features import content as filled
from firstread.testing.images import Dir, File, Image, Layer, Sparse, Whiteout
from firstread.testing.packed import SMALL, MemoryRepository, converted, opened
from firstread.traces.tracefile import VERSION, Trace, TracedRead, TraceHeader
from firstread.tune.layercontent import Content, read_content
from firstread.units import KiB

LARGE = 300 * KiB
IMAGE = Image(
    [
        Layer([
            Dir("bin/"),
            *(File(f"bin/{n}", filled(f"small {n}", 3000 + 700 * n)) for n in range(40)),
            File("large", filled("large", LARGE)),
            File("zeros", bytes(128 * KiB)),
        ]),
        Layer([
            Whiteout("bin/7"),
            File("bin/8", filled("new", 50 * KiB)),
            Sparse("sparse", size=200 * KiB, data={64 * KiB: filled("sparse", 8 * KiB)}),
        ]),
    ]
)  # fmt: skip


class Converted(NamedTuple):
    """A converted image."""

    place: MemoryRepository
    image: BlockImage
    content: Content


def convert(parameters: Parameters = SMALL, image: Image = IMAGE) -> Converted:
    """Convert `image`, and read its content back."""
    place, manifest = converted(image, parameters)
    block_image = opened(place, manifest)
    return Converted(place, block_image, read_content(place, resolve(place), block_image))


def trace(
    reads: Sequence[tuple[str, int, int]], *, step_us: int = 1000, ready_us: int | None = None
) -> Trace:
    """Return a trace whose reads (path, offset, length) follow each other after `step_us` each."""
    listed = [
        TracedRead((number + 1) * step_us, offset, length, path.encode())
        for number, (path, offset, length) in enumerate(reads)
    ]
    return Trace(TraceHeader(version=VERSION, ready_us=ready_us), listed)
