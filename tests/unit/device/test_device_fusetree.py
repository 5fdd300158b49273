# SPDX-License-Identifier: Apache-2.0
"""What a FUSE file system says of an image, request by request, without a kernel."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct

import pytest

from firstread.device import fuseprotocol as fuse
from firstread.device.fusetree import FuseTree
from firstread.erofs.directory import block_bounds, with_dots
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import BLOCK
from firstread.erofs.tree import Node, directory
from firstread.erofs.writer import write_erofs
from firstread.errors import ImageError
from firstread.testing.trees import feature_tree, symlink

ROOT = fuse.ROOT_NODE
NAMES = [b"name-%05d" % number for number in range(3000)]


def tree_of(root: Node) -> FuseTree:
    out = io.BytesIO()
    write_erofs(out, root, [])
    return FuseTree(ErofsImage(out.getvalue()))


def ask(tree: FuseTree, opcode: int, node: int = ROOT, body: bytes = b"", uid: int = 0) -> bytes:
    return tree.answer(fuse.Request(opcode, 1, node, uid, 1), memoryview(body))


@pytest.fixture
def tree() -> FuseTree:
    root = directory()
    root.children = {
        b"dir": directory(0o700),
        b"link": symlink(b"target"),
        b"null": Node(stat.S_IFCHR | 0o666, rdev=(1, 3)),
        b"old": Node(stat.S_IFREG | 0o640, uid=7, gid=8, mtime=-5, mtime_nsec=9),
        b"labelled": Node(
            stat.S_IFREG, xattrs={b"user.a": b"value", b"trusted.b": b"", b"security.c": b"x" * 9}
        ),
    }
    children = root.children[b"dir"].children
    assert children is not None
    children.update((name, Node(stat.S_IFREG)) for name in NAMES)
    return tree_of(root)


def lookup(tree: FuseTree, name: bytes, node: int = ROOT) -> tuple[int, bytes]:
    """Return the node id of a name, and its struct fuse_attr."""
    answer = ask(tree, fuse.LOOKUP, node, name + b"\0")
    assert len(answer) == fuse.ENTRY_BYTES == 128
    node_id, generation, entry_s, attr_s, *rest = struct.unpack_from("=4Q2I", answer)
    assert (generation, *rest) == (0, 0, 0)
    assert entry_s > 10**9
    assert attr_s > 10**9 or not node_id
    return node_id, answer[40:]


def listing(tree: FuseTree, node: int, size: int, plus: bool) -> list[tuple[bytes, int, int]]:
    """Read a directory in pieces; return name, inode number and node id of each entry."""
    found: list[tuple[bytes, int, int]] = []
    at = 0
    while True:
        body = struct.pack("=QQIIQII", 0, at, size, 0, 0, 0, 0)
        data = ask(tree, fuse.READDIRPLUS if plus else fuse.READDIR, node, body)
        assert len(data) <= size
        if not data:
            return found
        while data:
            node_id = struct.unpack_from("=Q", data)[0] if plus else 0
            data = data[fuse.ENTRY_BYTES if plus else 0 :]
            ino, at, length, kind = struct.unpack_from("=QQII", data)
            name = data[24 : 24 + length]
            assert kind in (stat.S_IFDIR >> 12, stat.S_IFREG >> 12)
            found.append((name, ino, node_id))
            data = data[24 + length + 7 & ~7 :]


def test_a_name_has_a_node_and_attributes_that_hold_for_ever(tree: FuseTree) -> None:
    node, attributes = lookup(tree, b"old")
    ino, size, blocks, *times = struct.unpack_from("=3Q3q3I", attributes)
    mode, links, uid, gid, rdev, block_bytes, flags = struct.unpack_from("=7I", attributes, 60)
    assert (size, blocks, *times) == (0, 0, -5, -5, -5, 9, 9, 9)
    assert (mode, links, uid, gid, rdev) == (stat.S_IFREG | 0o640, 1, 7, 8, 0)
    assert (block_bytes, flags) == (4096, 0)
    assert ask(tree, fuse.GETATTR, node)[16:] == attributes
    assert node == ino + 2


def test_a_missing_name_is_remembered(tree: FuseTree) -> None:
    assert lookup(tree, b"none")[0] == 0


def test_a_device_node_has_its_number(tree: FuseTree) -> None:
    _, attributes = lookup(tree, b"null")
    assert struct.unpack_from("=I", attributes, 76) == (1 << 8 | 3,)


def test_a_symbolic_link_has_its_target(tree: FuseTree) -> None:
    assert ask(tree, fuse.READLINK, lookup(tree, b"link")[0]) == b"target"


@pytest.mark.parametrize("plus", [True, False])
@pytest.mark.parametrize("size", [200, 4096, 1 << 20])
def test_a_directory_is_read_in_pieces_of_any_size(tree: FuseTree, size: int, plus: bool) -> None:
    node, _ = lookup(tree, b"dir")
    found = listing(tree, node, size, plus)
    assert [name for name, _, _ in found] == sorted([b".", b"..", *NAMES])
    for name, ino, node_id in found[:10]:
        dots = name in (b".", b"..")
        assert node_id == (ino + 2 if plus and not dots else 0)
    if plus:
        name, ino, node_id = found[-1]
        assert lookup(tree, name, node)[0] == node_id


def test_the_root_is_node_1_wherever_it_is_met(tree: FuseTree) -> None:
    assert ask(tree, fuse.GETATTR, ROOT)[16:24] == struct.pack("=Q", tree.image.root_nid)
    with pytest.raises(OSError, match="not a directory"):
        ask(tree, fuse.LOOKUP, lookup(tree, b"old")[0], b"x\0")


def xattr(tree: FuseTree, name: bytes, size: int, uid: int = 0) -> bytes:
    node, _ = lookup(tree, b"labelled")
    body = struct.pack("=II", size, 0) + (name + b"\0" if name else b"")
    return ask(tree, fuse.GETXATTR if name else fuse.LISTXATTR, node, body, uid)


def test_extended_attributes_are_read_as_they_are_asked_for(tree: FuseTree) -> None:
    assert xattr(tree, b"user.a", 0) == struct.pack("=II", 5, 0)
    assert xattr(tree, b"user.a", 5) == b"value"
    assert xattr(tree, b"trusted.b", 5) == b""
    for name, size, number in ((b"user.a", 4, errno.ERANGE), (b"user.z", 0, errno.ENODATA)):
        with pytest.raises(OSError, match="attribute") as caught:
            xattr(tree, name, size)
        assert caught.value.errno == number


def test_only_root_is_told_of_trusted_attributes(tree: FuseTree) -> None:
    assert sorted(xattr(tree, b"", 99).split(b"\0")) == [
        b"",
        b"security.c",
        b"trusted.b",
        b"user.a",
    ]
    assert b"trusted.b" not in xattr(tree, b"", 99, uid=1000)


def test_the_kernel_need_not_ask_for_attributes_that_there_are_not() -> None:
    root = directory()
    root.children = {b"file": Node(stat.S_IFREG)}
    tree = FuseTree(tree_of(root).image, has_xattrs=False)
    with pytest.raises(OSError) as caught:
        xattr(tree, b"trusted.overlay.metacopy", 0)
    assert caught.value.errno == errno.ENOSYS
    assert ask(tree, fuse.LISTXATTR, body=struct.pack("=II", 9, 0)) == b""


def test_seeking_in_an_empty_file_finds_nothing(tree: FuseTree) -> None:
    node, _ = lookup(tree, b"old")
    for whence, number in ((os.SEEK_DATA, errno.ENXIO), (os.SEEK_END, errno.EINVAL)):
        with pytest.raises(OSError, match=r"nothing behind|no such way") as caught:
            ask(tree, fuse.LSEEK, node, struct.pack("=QQII", 0, 0, whence, 0))
        assert caught.value.errno == number


@pytest.mark.parametrize("opcode", [fuse.OPEN, fuse.OPENDIR, fuse.FLUSH, 39, 4711])
def test_an_operation_that_the_device_lacks_is_enosys(tree: FuseTree, opcode: int) -> None:
    with pytest.raises(OSError, match="not offered") as caught:
        ask(tree, opcode)
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize("node", [0, 1 << 40, (1 << 64) - 1])
def test_a_node_that_does_not_exist_is_refused(tree: FuseTree, node: int) -> None:
    with pytest.raises(ImageError):
        ask(tree, fuse.GETATTR, node)


def test_memory_for_directories_is_bounded() -> None:
    root = directory()
    assert root.children is not None
    for number in range(40):
        root.children[b"%d" % number] = child = directory()
        assert child.children is not None
        child.children.update((name, Node(stat.S_IFREG)) for name in NAMES)
    tree = tree_of(root)
    nodes = [lookup(tree, b"%d" % number)[0] for number in range(40)]
    for node in [*nodes, *nodes]:
        assert lookup(tree, NAMES[-1], node)[0]
    assert len(listing(tree, nodes[0], 4096, plus=True)) == len(NAMES) + 2
    assert sum(map(len, tree._blocks.values())) < 20_000


def test_each_name_of_a_large_directory_is_found_and_no_other(tree: FuseTree) -> None:
    node = lookup(tree, b"dir")[0]
    listed = {name: ino + 2 for name, ino, _ in listing(tree, node, 1 << 20, plus=False)}
    assert {name: lookup(tree, name, node)[0] for name in NAMES} == {n: listed[n] for n in NAMES}
    for name in (b"!", b"name-", b"name-00000x", b"name-01500x", b"name-02999x", b"\xff"):
        assert lookup(tree, name, node)[0] == 0
    assert tree.image.readdir_block(tree.inode(node), 1000) == []


@pytest.mark.parametrize("length", range(1, 14))
def test_a_last_block_may_hold_one_short_name(length: int) -> None:
    names = [b"%0240d" % number for number in range(16)]  # 252 bytes each: a block, with the dots
    last = b"z" * length
    room = BLOCK - sum(12 + len(name) for name in (b".", b"..", *names))
    names.append(b"y" * (room - 12))
    assert [bounds[:2] for bounds in block_bounds(with_dots([*names, last]))] == [(0, 19), (19, 20)]
    root = directory()
    root.children = {name: Node(stat.S_IFREG) for name in (*names, last)}
    tree = tree_of(root)
    assert all(lookup(tree, name)[0] for name in (*names, last))
    assert lookup(tree, last + b"z")[0] == 0


@pytest.mark.parametrize("damage", [b"\0" * 12, b"\xff" * 12])
def test_a_damaged_directory_is_an_error(tree: FuseTree, damage: bytes) -> None:
    node = lookup(tree, b"dir")[0]
    data = bytearray(tree.image._data)
    start = tree.inode(node).i_u << 12
    for block in range(len(NAMES) * 22 >> 12):
        data[start + (block << 12) : start + (block << 12) + len(damage)] = damage
    damaged = FuseTree(ErofsImage(bytes(data)))
    for name in (NAMES[0], NAMES[1500]):
        with pytest.raises(ImageError):
            lookup(damaged, name, node)


def test_everything_that_an_image_can_have_is_answered() -> None:
    root, data = feature_tree(names=2_000)
    out = io.BytesIO()
    write_erofs(out, root, data.devices)
    tree = FuseTree(ErofsImage(out.getvalue()))
    blocks, _, _, files = struct.unpack_from("=4Q", ask(tree, fuse.STATFS))
    assert (blocks, files) == (
        tree.image.superblock.blocks + sum(d.blocks for d in data.devices),
        tree.image.superblock.inodes,
    )


def test_the_cost_of_a_directory_is_linear() -> None:
    """A large one is asked for in thousands of pieces."""
    root = directory()
    assert root.children is not None
    root.children.update((b"%06d" % number, Node(stat.S_IFREG)) for number in range(40_000))
    tree, before, at, seen = tree_of(root), os.times().user, 0, 0
    while data := ask(tree, fuse.READDIR, ROOT, struct.pack("=QQI20x", 0, at, 64)):
        assert len(data) in (32, 64)
        seen += len(data) // 32
        at = struct.unpack_from("=Q", data, len(data) - 24)[0]
    assert seen == 40_002
    assert os.times().user - before < 2.0
