# SPDX-License-Identifier: Apache-2.0
"""Tree to image to tree, as a property; xattr entries and directory blocks on their own."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from firstread.erofs.directory import (
    block_bounds,
    decode_block,
    directory_size,
    encode_block,
    with_dots,
)
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import BLOCK, decode_device_number, encode_device_number
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Device, Node, chunk_address, directory
from firstread.erofs.validation import validate
from firstread.erofs.writer import write_erofs
from firstread.erofs.xattrs import supported_xattr
from firstread.testing.trees import facts, feature_tree, small_tree

GOLDEN = Path(__file__).parents[2] / "golden"
DEVICES = [Device(bytes([number]) * 32, 64) for number in range(3)]

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
xattr_names = st.sampled_from(
    [b"user.a", b"user.bb", b"trusted.c", b"security.capability", b"system.posix_acl_access"]
)
xattrs = st.dictionaries(xattr_names, st.binary(max_size=40), max_size=3)
permissions = st.integers(0, 0o7777)
addresses = st.builds(chunk_address, st.integers(0, 2), st.integers(0, 62)) | st.just(HOLE)


@st.composite
def inodes(draw: st.DrawFn) -> Node:
    kinds = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
    kind = draw(st.sampled_from(kinds))
    node = Node(
        kind | draw(permissions),
        uid=draw(st.integers(0, 65_536)),
        gid=draw(st.integers(0, 0xFFFFFFFE)),
        mtime=draw(st.sampled_from([0, 0, 1, -1, 1 << 40, -(1 << 40)])),
        mtime_nsec=draw(st.sampled_from([0, 0, 0, 999_999_999])),
        xattrs=draw(xattrs),
    )
    if kind == stat.S_IFLNK:
        node.target = draw(st.binary(min_size=1, max_size=4095).filter(lambda t: b"\0" not in t))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        node.rdev = draw(st.tuples(st.integers(0, 4095), st.integers(0, (1 << 20) - 1)))
    elif kind == stat.S_IFREG and (chunks := draw(st.lists(addresses, max_size=4))):
        node.chunk_size, node.chunks = draw(st.sampled_from([BLOCK, 2 * BLOCK])), chunks
        node.size = (len(chunks) - 1) * node.chunk_size + draw(st.integers(1, node.chunk_size))
    return node


@st.composite
def trees(draw: st.DrawFn) -> Node:
    """A tree in which some inodes have several names."""
    root = directory(draw(permissions))
    directories, linkable = [root], [Node(stat.S_IFREG, uid=7)]
    for name in draw(st.lists(names, max_size=20, unique=True)):
        parent = draw(st.sampled_from(directories))
        assert parent.children is not None
        kind = draw(st.sampled_from(["inode", "directory", "link"]))
        if kind == "directory":
            child = directory(draw(permissions))
            directories.append(child)
        elif kind == "link":
            child = draw(st.sampled_from(linkable))
        else:
            child = draw(inodes())
            linkable.append(child)
        parent.children[name] = child
    return root


@settings(max_examples=150, deadline=None)
@given(trees())
def test_a_tree_comes_back_as_it_was(root: Node) -> None:
    out = io.BytesIO()
    write_erofs(out, root, DEVICES)
    image = ErofsImage(out.getvalue())
    validate(image)
    again = read_tree(image)
    assert list(facts(again)) == list(facts(root))
    second = io.BytesIO()
    write_erofs(second, again, image.devices)
    assert second.getvalue() == out.getvalue()


def test_the_feature_tree_comes_back_as_it_was() -> None:
    root, data = feature_tree()
    out = io.BytesIO()
    write_erofs(out, root, data.devices)
    image = ErofsImage(out.getvalue())
    validate(image)
    assert list(facts(read_tree(image))) == list(facts(root))


def test_an_image_is_read_whatever_the_order_of_its_inodes() -> None:
    """Files beside their directory, numbered inodes: as firstread wrote them before ADR 124."""
    data = zstandard.decompress((GOLDEN / "erofs_by_directory.zst").read_bytes())
    image = ErofsImage(data)
    validate(image)
    assert list(facts(read_tree(image))) == list(facts(small_tree()[0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(names, max_size=80, unique=True))
def test_directory_blocks_come_back_as_they_were(some: list[bytes]) -> None:
    listed = with_dots(some)
    bounds = block_bounds(listed)
    assert directory_size(some) == (len(bounds) - 1) * BLOCK + bounds[-1][2]
    seen = []
    for first, end, used in bounds:
        numbers = range(first, end)
        block = encode_block(listed[first:end], numbers, [number % 8 for number in numbers])
        assert len(block) == used <= BLOCK
        assert decode_block(block) == decode_block(block.ljust(BLOCK, b"\0"))
        seen += decode_block(block)
    assert seen == [(name, number, number % 8) for number, name in enumerate(listed)]


@given(st.integers(0, 4095), st.integers(0, (1 << 20) - 1))
def test_device_numbers_come_back(major: int, minor: int) -> None:
    assert decode_device_number(encode_device_number(major, minor)) == (major, minor)


def test_device_numbers_are_those_of_the_kernel() -> None:
    assert encode_device_number(1, 3) == 0x103
    assert encode_device_number(259, 300) == 0x1103_2C == 44 | 259 << 8 | 1 << 20


@pytest.mark.parametrize(
    "name",
    [
        b"user.a",
        b"user.a.b",
        b"user." + b"n" * 250,
        b"trusted.overlay.opaque",
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ],
)
def test_an_xattr_that_can_be_stored(name: bytes) -> None:
    assert supported_xattr(name)


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"user",
        b"user.",
        b"user.a\0b",
        b"user." + b"n" * 251,
        b"system.posix_acl_access.x",
        b"system.nfs4_acl",
        b"com.apple.quarantine",
    ],
)
def test_an_xattr_that_cannot_be_stored(name: bytes) -> None:
    assert not supported_xattr(name)
