# SPDX-License-Identifier: Apache-2.0
"""The first read of a sector, compared with a bare HTTP request for the same bytes.

Owns the search, in the metadata of an image, for places in files that are whole sectors. Invariant:
each place is read once, in random order so that there is no prefetch, and each request covers
exactly the bytes of its sector, or of its first frame, in the blob.
"""

from __future__ import annotations

import http.client
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.host import Host
from benchmarks.measure import percentile
from benchmarks.places import LAZY, reference, warm
from benchmarks.report import Goal, Section
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Node, split_address
from firstread.oci.model import Descriptor
from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.sectors.format import BLOCK_SIZE, FrameTable, Geometry, SectorEntry
from firstread.sectors.image import fetch_image
from firstread.testing.registry import DockerRegistry

PROBES = 100


@dataclass(frozen=True)
class Place:
    """Where a file is one whole sector: `offset` in the file at `path` below the mount."""

    path: str
    offset: int
    sector: SectorEntry
    blob: Descriptor
    geometry: Geometry


@dataclass(frozen=True)
class Costs:
    """Seconds of each first read, and of the bare request for the same bytes."""

    reads: list[float]
    requests: list[float]


def first_reads(section: Section, registry: DockerRegistry, name: str, scratch: Path) -> None:
    """Time first reads that need one frame, and first reads that need a whole sector."""
    warm(name)
    image = reference(registry, name, LAZY)
    places = find_places(image, 2 * PROBES)
    with Host(scratch / "first") as host:
        mounted = host.attach(image)
        costs = {
            "a frame": first_frame(mounted, image, places[:PROBES]),
            "a sector": whole_sector(mounted, image, places[PROBES:]),
        }
        host.check_lazy()
    for what, cost in costs.items():
        for share, goal in ((0.5, 5), (0.99, 15)):
            ours, bare = (percentile(times, share) * 1000 for times in (cost.reads, cost.requests))
            section.add(
                f"first read, needs {what}: over bare request, p{share * 100:g}",
                ours - bare,
                "ms",
                Goal("<=", goal),
                f"{ours:.1f} and {bare:.1f} ms, {len(cost.reads)} sectors",
            )


def find_places(image: str, count: int) -> list[Place]:
    """Return `count` places of `image`, of different sectors and in random order."""
    with open_source(parse_reference(image)) as repository, tempfile.TemporaryFile() as file:
        opened = fetch_image(repository, resolve(repository).manifest, file)
        index = opened.index
        places = {}
        for path, node in _files(read_tree(opened.erofs), ""):
            if node.chunk_size == index.geometry.sector_size:
                for number, address in enumerate(node.chunks[: node.size // node.chunk_size]):
                    if address != HOLE:
                        entry = index.sectors[split_address(address)[0]]
                        offset = number * node.chunk_size
                        blob = opened.blobs[entry.blob]
                        places[entry.id] = Place(path, offset, entry, blob, index.geometry)
    chosen = sorted(places.values(), key=lambda place: place.sector.id)
    random.Random(1).shuffle(chosen)
    return chosen[:count]


def whole_sector(mounted: Path, image: str, places: list[Place]) -> Costs:
    """Read the last page of each place: the whole sector must come first."""

    def read(place: Place) -> tuple[int, int]:
        return place.offset + place.geometry.sector_size - BLOCK_SIZE, place.sector.length

    return _compare(mounted, image, [(place, *read(place)) for place in places])


def first_frame(mounted: Path, image: str, places: list[Place]) -> Costs:
    """Read the first page of each place: the frame table and one frame must come first."""
    requester = _Requester(image)
    todo = []
    for place in places:
        size = place.geometry.table_size(place.sector.size)
        table = FrameTable.unpack(requester.get(place, size), place.geometry)
        todo.append((place, place.offset, size + table.lengths[0]))
    return _compare(mounted, image, todo)


def _compare(mounted: Path, image: str, todo: list[tuple[Place, int, int]]) -> Costs:
    """Time reads of a page at an offset, and requests of so many bytes, by turns."""
    requester, costs = _Requester(image), Costs([], [])
    for place, offset, size in todo:
        started = time.perf_counter()
        requester.get(place, size)
        costs.requests.append(time.perf_counter() - started)
        fd = os.open(mounted / place.path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead into other sectors
        started = time.perf_counter()
        os.pread(fd, 1, offset)
        costs.reads.append(time.perf_counter() - started)
        os.close(fd)
    return costs


class _Requester:
    """Bare range requests over one persistent connection."""

    def __init__(self, image: str) -> None:
        reference = parse_reference(image)
        self._path = f"/v2/{reference.repository}/blobs/"
        self._connection = http.client.HTTPConnection(reference.host)

    def get(self, place: Place, size: int) -> bytes:
        """Return the first `size` bytes of the sector in its blob."""
        start = place.sector.offset
        headers = {"Range": f"bytes={start}-{start + size - 1}"}
        self._connection.request("GET", self._path + place.blob.digest, headers=headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != http.client.PARTIAL_CONTENT or len(data) != size:
            raise RuntimeError(f"the registry answered {answer.status} and {len(data)} bytes")
        return data


def _files(directory: Node, prefix: str) -> Iterator[tuple[str, Node]]:
    for name, node in (directory.children or {}).items():
        path = prefix + os.fsdecode(name)
        if node.children is not None:
            yield from _files(node, path + "/")
        elif node.chunks:
            yield path, node
