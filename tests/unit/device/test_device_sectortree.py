# SPDX-License-Identifier: Apache-2.0
"""The files that the sectors of an image are over FUSE."""

from __future__ import annotations

import errno
import io
import struct

import pytest

from firstread.device import fuseprotocol as fuse
from firstread.device.fuseprotocol import Request
from firstread.device.sectortree import SectorTree
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import Extent
from firstread.erofs.tree import Device, directory
from firstread.erofs.writer import write_erofs
from firstread.errors import ImageError

NOTHING = memoryview(b"")


def request(opcode: int, node: int = fuse.ROOT_NODE) -> Request:
    return Request(opcode, 1, node, 0, 0)


@pytest.fixture
def tree() -> SectorTree:
    out = io.BytesIO()
    write_erofs(out, directory(), [Device(bytes([slot]) * 32, slot + 1) for slot in range(2)])
    return SectorTree(ErofsImage(out.getvalue()))


def test_each_sector_is_a_file_called_by_its_slot(tree: SectorTree) -> None:
    answer = tree.answer(request(fuse.LOOKUP), memoryview(b"1\0"))
    assert struct.unpack_from("=Q", answer) == (3,)  # node id
    assert struct.unpack_from("=QQ", answer, 40) == (3, 8192)  # inode number, size
    assert struct.unpack_from("=I", answer, 40 + 60) == (0o100400,)
    assert tree.answer(request(fuse.GETATTR, 3), NOTHING)[16:] == answer[40:]
    assert struct.unpack_from("=I", tree.answer(request(fuse.GETATTR), NOTHING), 76) == (0o40500,)


@pytest.mark.parametrize("name", [b"2", b"", b"-1", b"x", b"1" * 6, b"..", "\u0661".encode()])
def test_there_is_no_other_name(tree: SectorTree, name: bytes) -> None:
    assert tree.answer(request(fuse.LOOKUP), memoryview(name + b"\0")) == fuse.MISSING


def test_ranges_are_those_of_the_sector(tree: SectorTree) -> None:
    assert tree.extents(3, 4096, 1 << 20) == [Extent(1, 4096, 4096)]
    assert tree.extents(2, 4096, 1) == []
    for node in (0, 1, 4):
        with pytest.raises(ImageError):
            tree.extents(node, 0, 1)


@pytest.mark.parametrize("opcode", [fuse.OPEN, fuse.FLUSH, fuse.READDIR, fuse.STATFS])
def test_nothing_else_is_offered(tree: SectorTree, opcode: int) -> None:
    with pytest.raises(OSError) as caught:
        tree.answer(request(opcode), NOTHING)
    assert caught.value.errno == errno.ENOSYS
