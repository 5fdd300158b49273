# SPDX-License-Identifier: Apache-2.0
"""What every device must show of a whole image: its names and attributes, and its bytes.

A part of `firstread.testing.suites.device`. Invariant: what is expected comes from the tree that
the image was written from, never from another mount.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from firstread.erofs.tree import LinkCounts, Node, chunk_address, directory, walk
from firstread.testing.devicebench import DeviceBench
from firstread.testing.trees import SectorData, feature_tree
from firstread.units import KiB, MiB

Make = Callable[..., DeviceBench]

MOST_BYTES = 2 * MiB  # of files that are read: those beyond are holes
SECTORS, SECTOR_BYTES, TAIL = 8, 128 * KiB, 777
PLACES = 100

_FACTS = """
import os, pickle, stat, sys
top, found = os.fsencode(sys.argv[1]), {}
def look(path, full):
    s = os.lstat(full)
    kind = stat.S_IFMT(s.st_mode)
    keys = os.listxattr(full, follow_symlinks=False)
    found[path] = (
        s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns, s.st_nlink,
        s.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        0 if kind == stat.S_IFDIR else s.st_size,
        os.readlink(full) if kind == stat.S_IFLNK else b"",
        {os.fsencode(key): os.getxattr(full, key, follow_symlinks=False) for key in keys},
    )
look(b"", top)
for folder, directories, files in os.walk(top):
    for name in directories + files:
        full = os.path.join(folder, name)
        look(os.path.relpath(full, top), full)
with open(sys.argv[2], "wb") as file:
    pickle.dump(found, file)
"""

_CONTENT = """
import hashlib, os, sys
top, most = os.fsencode(sys.argv[1]), int(sys.argv[2])
for path, _, names in os.walk(top):
    for name in names:
        full = os.path.join(path, name)
        if not os.path.islink(full) and os.path.isfile(full) and 0 < os.path.getsize(full) <= most:
            with open(full, "rb") as file:
                print(os.path.relpath(full, top).hex(), hashlib.sha256(file.read()).hexdigest())
"""

_PLACES = """
import hashlib, os, sys
fd, digest = os.open(sys.argv[1], os.O_RDONLY), hashlib.sha256()
if sys.argv[2] == "random":
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
for line in sys.stdin:
    offset, count = map(int, line.split())
    digest.update(os.pread(fd, count, offset))
print(digest.hexdigest())
"""


def facts_of(root: Node) -> dict[bytes, tuple[object, ...]]:
    """Return what `_FACTS` must find of each name of a tree."""
    links = LinkCounts.of(root)
    return {
        path: (
            *(id(node), node.mode, node.uid, node.gid),
            *(node.mtime * 10**9 + node.mtime_nsec, links[node]),
            os.makedev(*node.rdev) if node.is_device else 0,
            0 if node.is_dir else len(node.target) if node.is_symlink else node.size,
            *(node.target, dict(node.xattrs)),
        )
        for path, node in walk(root)
    }


def comparable(facts: Mapping[bytes, Sequence[object]]) -> dict[bytes, tuple[object, ...]]:
    """Return facts with the first name of each inode in the place of its identity."""
    first: dict[object, bytes] = {}
    return {
        path: (first.setdefault(identity, path), *others)
        for path, (identity, *others) in sorted(facts.items())
    }


def _digest(data: SectorData, node: Node) -> str:
    chunks = (data.read(node, number) for number in range(len(node.chunks)))
    return hashlib.sha256(b"".join(chunks)[: node.size]).hexdigest()


class DeviceImageSuite:
    """The tests of images; `firstread.testing.suites.device.DeviceSuite` has their fixtures."""

    @pytest.fixture
    def features(self, make: Make) -> tuple[DeviceBench, Node, SectorData]:
        """An image with everything that one can have."""
        root, data = feature_tree(names=2_000)
        return make(root=root, data=[bytes(sector) for sector in data.sectors]), root, data

    def test_names_attributes_links_and_times_are_right_and_none_asks(
        self, features: tuple[DeviceBench, Node, SectorData], scratch: Path
    ) -> None:
        bench, root, _ = features
        found = scratch / "facts"
        command = [sys.executable, "-I", "-S", "-c", _FACTS, str(bench.mountpoint), str(found)]
        walker = bench.started(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert bench.serve(walker, bench.fill)[1] == []
        seen, expected = map(comparable, (pickle.loads(found.read_bytes()), facts_of(root)))
        assert seen.keys() == expected.keys()
        assert [path for path in seen if seen[path] != expected[path]] == []

    def test_every_file_that_an_image_can_have_is_read_as_it_is(
        self, features: tuple[DeviceBench, Node, SectorData]
    ) -> None:
        bench, root, data = features
        command = [sys.executable, "-c", _CONTENT, str(bench.mountpoint), str(MOST_BYTES)]
        reader = bench.started(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        read, asked = bench.serve(reader, bench.complete)
        expected = {
            f"{path.hex()} {_digest(data, node)}"
            for path, node in walk(root)
            if node.is_file and 0 < node.size <= MOST_BYTES
        }
        assert set(read.splitlines()) == expected
        assert asked

    @pytest.mark.parametrize("order", ["random", "sequential"])
    def test_a_cold_file_of_many_sectors_is_the_original(
        self, make: Make, order: str, tmp_path: Path
    ) -> None:
        chance = random.Random(order)
        data = [chance.randbytes(SECTOR_BYTES) for _ in range(SECTORS)]
        chunks = [chunk_address(slot, 0) for slot in range(SECTORS)]
        size = SECTORS * SECTOR_BYTES - TAIL
        root = directory()
        root.children = {b"all": Node(0o100644, size=size, chunk_size=SECTOR_BYTES, chunks=chunks)}
        bench = make(root=root, data=data, sector_bytes=SECTOR_BYTES)
        if order == "random":
            places = [(chance.randrange(size), chance.randrange(1, 90_000)) for _ in range(PLACES)]
        else:
            places = [(offset, 10_007) for offset in range(0, size, 10_007)]
        original = b"".join(data)[:size]
        expected = hashlib.sha256(b"".join(original[at : at + count] for at, count in places))
        listed = tmp_path / "places"
        listed.write_text("".join(f"{offset} {count}\n" for offset, count in places))
        command = [sys.executable, "-c", _PLACES, str(bench.mountpoint / "all"), order]
        with listed.open() as file:
            reader = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, text=True)
        read, asked = bench.serve(bench.started(reader), bench.fill)
        assert read == expected.hexdigest()
        assert {slot for slot, _, _ in asked} == set(range(SECTORS))
