# SPDX-License-Identifier: Apache-2.0
"""The file that a flat image is over FUSE."""

from __future__ import annotations

import errno
import io
import struct

import pytest

from firstread.device import fuseprotocol as fuse
from firstread.device.flattree import GAP, FlatTree
from firstread.device.fuseprotocol import Request
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import METADATA_SLOT, NO_SLOT, Extent
from firstread.erofs.tree import Device, Node, chunk_address, directory
from firstread.erofs.writer import write_erofs
from firstread.errors import ImageError

NOTHING = memoryview(b"")


def request(opcode: int, node: int = fuse.ROOT_NODE) -> Request:
    return Request(opcode, 1, node, 0, 0)


@pytest.fixture
def metadata() -> bytes:
    root, out = directory(), io.BytesIO()
    chunks = [chunk_address(slot, 0) for slot in range(2)]
    root.children = {b"f": Node(0o100644, size=8192, chunk_size=4096, chunks=chunks)}
    write_erofs(out, root, [Device(bytes([slot]) * 32, 1) for slot in range(2)])
    return out.getvalue()


@pytest.fixture
def tree(metadata: bytes) -> FlatTree:
    return FlatTree(ErofsImage(metadata))


def test_the_root_is_a_file_of_the_whole_size(tree: FlatTree, metadata: bytes) -> None:
    answer = tree.answer(request(fuse.GETATTR), NOTHING)
    valid, _, ino, size, blocks = struct.unpack_from("=QQQQQ", answer)
    assert valid == fuse.FOREVER_S
    expected = len(metadata) + GAP + 8192
    assert (ino, size, blocks) == (1, expected, expected // 512)
    mode, nlink = struct.unpack_from("=II", answer, 16 + 60)
    assert (mode, nlink) == (0o100400, 1)


@pytest.mark.parametrize("opcode", [fuse.OPEN, fuse.FLUSH, fuse.LOOKUP, fuse.GETXATTR, fuse.STATFS])
def test_nothing_else_is_offered(tree: FlatTree, opcode: int) -> None:
    with pytest.raises(OSError) as caught:
        tree.answer(request(opcode), NOTHING)
    assert caught.value.errno == errno.ENOSYS


def test_a_range_lies_in_metadata_and_sectors(tree: FlatTree, metadata: bytes) -> None:
    assert tree.extents(fuse.ROOT_NODE, len(metadata) - 10, GAP + 5000) == [
        Extent(METADATA_SLOT, len(metadata) - 10, 10),
        Extent(NO_SLOT, 0, GAP),
        Extent(0, 0, 4096),
        Extent(1, 0, 894),
    ]
    assert len(tree.metadata(10, 5000)) == len(metadata) - 10
    with pytest.raises(ImageError):
        tree.extents(2, 0, 1)


def test_damaged_metadata_is_an_error_when_it_is_asked_for(metadata: bytes) -> None:
    damaged = bytearray(metadata)
    damaged[1024 + 14] ^= 0xFF  # the root's number
    tree = FlatTree(ErofsImage(bytes(damaged)))
    with pytest.raises(ImageError):
        tree.answer(request(fuse.GETATTR), NOTHING)
