# SPDX-License-Identifier: Apache-2.0
"""The quick check of an image vouches for what the slow one accepts, and for nothing else."""

from __future__ import annotations

import io
import stat
import struct

import pytest

from firstread.erofs import columns
from firstread.erofs.columns import MAX_DEPTH, vouch
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import BLOCK, DIRENT
from firstread.erofs.reader import scan
from firstread.erofs.tree import HOLE, Device, Node, chunk_address, directory
from firstread.erofs.validation import Checked, validate, walk
from firstread.erofs.writer import write_erofs
from firstread.errors import ImageError
from firstread.testing.trees import feature_tree, small_tree, symlink

DEVICES = [Device(b"\xaa" * 32, 4), Device(b"\xbb" * 32, 1 << 20)]


def data_of(root: Node, devices: list[Device] = DEVICES) -> bytes:
    out = io.BytesIO()
    write_erofs(out, root, devices)
    return out.getvalue()


def tree_of(children: dict[bytes, Node]) -> Node:
    root = directory()
    root.children = children
    return root


def quick(data: bytes) -> tuple[bool, bytes] | None:
    """Return what the quick check finds; None if it leaves the answer to the slow one."""
    try:
        found = vouch(ErofsImage(data))
    except ImageError:
        return None
    return found and (found[0], found[1].to_bytes())


def slow(data: bytes) -> tuple[bool, bytes] | None:
    try:
        found: Checked = walk(ErofsImage(data))
    except ImageError:
        return None
    return found.has_xattrs, found.runs.to_bytes()


def every_kind() -> dict[bytes, Node]:
    """Return a node of each kind and form, with as few bytes as possible."""
    twice = Node(stat.S_IFREG | 0o640, uid=1 << 16, mtime=3, mtime_nsec=5)
    chunks = [chunk_address(1, 3), HOLE, chunk_address(0, 3)]
    inside = directory()
    inside.children = {b"again": twice, b"deeper": directory()}
    return {
        b"a": Node(stat.S_IFREG, size=9, chunk_size=BLOCK, chunks=[chunk_address(0, 2)]),
        b"b": Node(stat.S_IFREG, size=2 * BLOCK + 1, chunk_size=BLOCK, chunks=chunks, mtime=3),
        b"device": Node(stat.S_IFCHR, rdev=(1, 3)),
        b"labelled": Node(stat.S_IFREG, xattrs={b"user.label": b"value"}),
        b"link": symlink(b"target"),
        b"same names of 8": directory(),
        b"same names of 8, and more": inside,
        b"twice": twice,
    }


def test_images_of_the_writer_are_vouched_for() -> None:
    features, data = feature_tree()
    small, few = small_tree()
    for root, devices in ((features, data.devices), (small, few.devices)):
        written = data_of(root, list(devices))
        assert quick(written) == slow(written) is not None


@pytest.mark.parametrize("batch", [1, 7, columns.BATCH])
def test_batches_change_nothing(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "BATCH", batch)
    names = {b"%03d" % number * (number % 80 + 1): directory() for number in range(300)}
    for number, node in enumerate(names.values()):
        node.children = every_kind() if number % 99 == 0 else {}
    data = data_of(tree_of(names | every_kind()))
    assert quick(data) == slow(data) is not None


def test_each_changed_byte_is_seen_as_the_slow_check_sees_it() -> None:
    """Of 13,000 images with one wrong byte both checks accept and refuse the same."""
    data = data_of(tree_of(every_kind()))
    image = ErofsImage(data)
    used = max(inode.indexes_offset + inode.stored for inode, _ in scan(image) if inode.stored)
    verdicts = {True: 0, False: 0}
    for at in range(1024 + 16, used):
        for value in {*(data[at] ^ 1 << bit for bit in range(8)), 0, ord("/"), 0xFF} - {data[at]}:
            changed = bytearray(data)
            changed[at] = value
            try:
                ErofsImage(bytes(changed))
            except ImageError:
                continue
            found = quick(bytes(changed))
            assert found == slow(bytes(changed)), (at, value)
            verdicts[found is not None] += 1
    assert min(verdicts.values()) > 500, verdicts


def test_names_that_begin_alike_are_ordered_by_all_their_bytes() -> None:
    """The order is looked at in words of 8 bytes; names end inside one, at its end, behind it."""
    for length in (*range(1, 26), 247, 248, 254):
        first, last = b"x" * length, b"x" * length + b"y"
        data = bytearray(data_of(tree_of({first: directory(), last: directory()})))
        image = ErofsImage(bytes(data))
        root = image.inode(image.root_nid)
        assert quick(bytes(data)) == slow(bytes(data)) is not None
        at = data.index(first, root.tail_offset + 4 * DIRENT.size)
        data[at : at + 2 * length + 1] = last + first  # the names change places, not their ends
        struct.pack_into(
            "<H",
            data,
            root.tail_offset + 3 * DIRENT.size + 8,
            at - root.tail_offset + length + 1,
        )
        assert quick(bytes(data)) is slow(bytes(data)) is None, length
        data[at : at + 2 * length + 1] = b"x" * (2 * length + 1)  # nearly one name twice
        assert quick(bytes(data)) is slow(bytes(data)) is None, length


def test_a_directory_in_two_places_is_refused() -> None:
    first, second = tree_of({b"x": directory()}), tree_of({b"y": directory()})
    data = bytearray(data_of(tree_of({b"p": first, b"q": second})))
    image = ErofsImage(bytes(data))
    assert quick(bytes(data)) is not None
    found = {name: (nid, of) for of, entries in scan(image) for name, nid, _ in entries}
    (wanted, _), (nid, parent) = found[b"x"], found[b"y"]
    at = data.index(struct.pack("<Q", nid), parent.tail_offset)
    struct.pack_into("<Q", data, at, wanted)
    assert quick(bytes(data)) is slow(bytes(data)) is None


def test_a_deep_tree_is_left_to_the_slow_check() -> None:
    """Each level costs the quick one the same, however little is in it."""
    for depth, vouched in ((MAX_DEPTH - 1, True), (MAX_DEPTH, False)):
        root = directory()
        for _ in range(depth):
            root = tree_of({b"d": root})
        image = ErofsImage(data_of(root))
        assert (vouch(image) is not None) is vouched
        assert not validate(image).has_xattrs
