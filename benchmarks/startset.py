# SPDX-License-Identifier: Apache-2.0
"""The static start set of each benchmark image, beside a trace of the same start.

``python -m benchmarks.startset --traces DIR [NAME…]`` takes DIR/NAME.jsonl, from ``firstread
trace``, converts each image without hot sectors, makes its start set, and prints a table.

Owns the comparison, which needs no node and no quiet machine: it counts bytes. A start fetches
each sector that it touches whole; with a start set, all of the set, and whole sectors for
pages that the set lacks. Invariant: the same image and trace give the same table.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import zstandard

from benchmarks.images.build import build
from benchmarks.images.recipes import IMAGES
from firstread.cli.opening import opened_image
from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.hotblob import STATIC_LEVEL
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Node, split_address, walk
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage
from firstread.registry.options import AccessOptions
from firstread.sectors.content import ContentReader
from firstread.sectors.format import BLOCK_SIZE, DEFAULT_FRAME_SIZE
from firstread.sectors.image import BlockImage
from firstread.starts.startset import start_set
from firstread.traces.tracefile import Trace, read_trace

MB = 1_000_000
Blocks = Mapping[Node, set[int]]
HEADINGS = (
    *("image", "trace", "static", "static zstd", "recall", "precision"),
    *("plain lazy", "static and misses", "ratio", "seconds"),
)


class Compared(NamedTuple):
    """A static start set beside a trace; bytes.

    Args:
        trace: of the blocks that the trace reads.
        static: of the blocks of the set.
        both: of the blocks of both.
        plain: compressed, of the sectors that the trace touches.
        misses: compressed, of those that have blocks which the set lacks.
    """

    trace: int
    static: int
    both: int
    plain: int
    misses: int


def blocks_of(trace: Trace, files: Mapping[bytes, Node]) -> dict[Node, set[int]]:
    """Return the blocks that a trace reads of each file; holes and missing files are left out."""
    found: dict[Node, set[int]] = {}
    for read in trace.reads:
        if node := files.get(read.path):
            first, end = read.offset // BLOCK_SIZE, (read.offset + read.length) // BLOCK_SIZE
            blocks = range(first, min(end, -(-node.size // BLOCK_SIZE)))
            found.setdefault(node, set()).update(b for b in blocks if sector_of(node, b) >= 0)
    return found


def sector_of(node: Node, block: int) -> int:
    """Return the device slot that has a block of a file; -1 for a hole."""
    address = node.chunks[block * BLOCK_SIZE // node.chunk_size]
    return -1 if address == HOLE else split_address(address)[0]


def compare(trace: Blocks, static: Blocks, sector_size: Callable[[int], int]) -> Compared:
    """Compare what a start reads with its static set.

    Args:
        trace: blocks that a start reads, by file.
        static: blocks of the set.
        sector_size: returns the compressed bytes of a device slot.
    """
    empty: set[int] = set()
    missed = {node: blocks - static.get(node, empty) for node, blocks in trace.items()}
    return Compared(
        trace=_count(trace.values()) * BLOCK_SIZE,
        static=_count(static.values()) * BLOCK_SIZE,
        both=(_count(trace.values()) - _count(missed.values())) * BLOCK_SIZE,
        plain=sum(map(sector_size, _sectors(trace))),
        misses=sum(map(sector_size, _sectors(missed))),
    )


def _count(blocks: Iterable[set[int]]) -> int:
    return sum(map(len, blocks))


def _sectors(blocks: Blocks) -> set[int]:
    return {sector_of(node, block) for node, some in blocks.items() for block in some}


def compressed(static: Trace, read: Callable[[bytes, int, int], bytes]) -> int:
    """Return about how many bytes the hot sectors of a set take."""
    encoder = zstandard.ZstdCompressor(level=STATIC_LEVEL)
    data = bytearray()
    total = 0
    for path, offset, length in ((one.path, one.offset, one.length) for one in static.reads):
        data += read(path, offset, length)
        while len(data) >= DEFAULT_FRAME_SIZE:
            total += len(encoder.compress(bytes(data[:DEFAULT_FRAME_SIZE])))
            del data[:DEFAULT_FRAME_SIZE]
    return total + len(encoder.compress(bytes(data)))


class Converted(NamedTuple):
    """A benchmark image, converted without hot sectors.

    Args:
        repository: of the converted image.
        resolved: the image there.
        image: opened.
        files: its nodes, by path.
        read: gives bytes of a file: path, offset, length.
    """

    repository: Repository
    resolved: ResolvedImage
    image: BlockImage
    files: dict[bytes, Node]
    read: Callable[[bytes, int, int], bytes]

    def start_set(self, trace: Trace) -> Trace:
        """Return the start set of the image's own command, perhaps empty, beside a trace."""
        found = start_set(self.files[b""], self.read, self.resolved.config)
        return found or Trace(trace.header, [])


@contextlib.contextmanager
def converted(layout: Path, scratch: Path) -> Iterator[Converted]:
    """Convert the image of a layout into `scratch`, and yield it."""
    place = parse_reference(f"oci:{scratch}:lazy")
    convert(parse_reference(f"oci:{layout}:latest"), place, ConvertOptions(static=False))
    with opened_image(place, AccessOptions()) as (repository, resolved, image):
        files = dict(walk(read_tree(image.erofs)))
        content = ContentReader.of(repository, image)

        def read(path: bytes, offset: int, length: int) -> bytes:
            return content.read(files[path], offset, length)

        yield Converted(repository, resolved, image, files, read)


def measure(layout: Path, trace: Trace, scratch: Path) -> list[str]:
    """Return the row of an image, without its name."""
    with converted(layout, scratch) as one:
        begun = time.perf_counter()
        static = one.start_set(trace)
        seconds = time.perf_counter() - begun
        found = compare(
            blocks_of(trace, one.files),
            blocks_of(static, one.files),
            lambda slot: one.image.index.sectors[slot].length,
        )
        size = compressed(static, one.read)
    total = size + found.misses
    return [
        *(f"{count / MB:.1f} MB" for count in (found.trace, found.static, size)),
        f"{found.both / max(found.trace, 1):.2f}",
        f"{found.both / max(found.static, 1):.2f}",
        *(f"{count / MB:.1f} MB" for count in (found.plain, total)),
        f"{total / max(found.plain, 1):.2f}",
        f"{seconds:.2f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="images; all that have a trace")
    parser.add_argument("--traces", type=Path, required=True, metavar="DIR", help="NAME.jsonl each")
    arguments = parser.parse_args()
    have = [name for name in IMAGES if (arguments.traces / f"{name}.jsonl").exists()]
    print(f"| {' | '.join(HEADINGS)} |\n|---{'|--:' * (len(HEADINGS) - 1)}|")
    for name in arguments.names or have:
        (layout,) = build([name])
        with (arguments.traces / f"{name}.jsonl").open("rb") as file:
            trace = read_trace(file)
        with tempfile.TemporaryDirectory(prefix="firstread-startset-") as scratch:
            print(f"| {' | '.join([name, *measure(layout, trace, Path(scratch))])} |", flush=True)


if __name__ == "__main__":
    main()
