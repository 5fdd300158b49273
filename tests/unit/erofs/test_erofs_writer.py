# SPDX-License-Identifier: Apache-2.0
"""What the writer writes: goldens, pinned digests, forms of inodes, limits."""

from __future__ import annotations

import hashlib
import io
import stat
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import (
    BLOCK,
    CHUNK_BASED,
    EXTENDED,
    FLAT_INLINE,
    FLAT_PLAIN,
    MAX_BLOCKS,
)
from firstread.erofs.inode import Inode
from firstread.erofs.reader import scan
from firstread.erofs.tree import HOLE, Device, Node, chunk_address, directory
from firstread.erofs.writer import ErofsDraft, write_erofs
from firstread.errors import ImageError, LimitError
from firstread.testing.erofsdump import dump
from firstread.testing.trees import feature_tree, small_tree, symlink

GOLDEN = Path(__file__).parents[2] / "golden"
FILE = stat.S_IFREG | 0o644
SECTOR = Device(bytes(32), 1024)


def image_of(children: dict[bytes, Node], *devices: Device, **options: bytes) -> ErofsImage:
    root = directory()
    root.children = children
    out = io.BytesIO()
    write_erofs(out, root, devices, **options)
    return ErofsImage(out.getvalue())


def inode_at(image: ErofsImage, name: bytes) -> Inode:
    nids = {name: nid for name, nid, _ in image.readdir(image.inode(image.root_nid))}
    return image.inode(nids[name])


def form_of(node: Node, *devices: Device) -> int:
    """The form of `node` in an image whose epoch is 0."""
    return inode_at(image_of({b"x": node, b"y": Node(FILE), b"z": Node(FILE)}, *devices), b"x").form


def write_small_tree() -> bytes:
    root, data = small_tree()
    out = io.BytesIO()
    options = {"boot": b"boot", "trailer": b"index", "uuid": bytes(range(16))}
    write_erofs(out, root, data.devices, volume_name=b"small", **options)
    return out.getvalue()


def test_small_tree_dumps_as_the_golden_file_says() -> None:
    text = "\n".join(dump(ErofsImage(write_small_tree()))) + "\n"
    assert text == (GOLDEN / "erofs_small_tree.txt").read_text()


def test_pinned_digests() -> None:
    """Changing these is a break of the image format: see docs/format.md."""
    small = hashlib.sha256(write_small_tree()).hexdigest()
    assert small == "fe05079e371579c8dcc04ce583d2e568b1348380b0328acde488f6a40ba2635a"
    root, data = feature_tree()
    out = io.BytesIO()
    write_erofs(out, root, data.devices)
    features = hashlib.sha256(out.getvalue()).hexdigest()
    assert features == "3147e633c19d8bcee4d588d6bd18e161cb48de21110bc2cb6236b1e056899871"


def test_directories_come_before_all_other_inodes() -> None:
    """Directories depth first, all else directory by directory, both in the order of names."""
    below = {b"y": Node(FILE), b"w": directory(), b"x": Node(FILE)}
    first, second = directory(), directory()
    first.children, second.children = below, {b"v": Node(FILE)}
    image = image_of({b"b": first, b"a": Node(FILE), b"c": second})
    found = [(nid, name) for _, entries in scan(image) for name, nid, _ in entries]
    found = [(nid, name) for nid, name in found if name not in (b".", b"..")]
    assert [name for _, name in sorted(found)] == [b"b", b"w", b"c", b"a", b"x", b"y", b"v"]


def test_the_order_of_insertion_does_not_matter() -> None:
    xattrs = {b"user.a": b"value", b"user.b": b"value"}
    turned = dict(reversed(list(xattrs.items())))
    names = [b"%d" % number for number in range(50)]
    one = image_of({name: Node(FILE, xattrs=xattrs) for name in names})
    other = image_of({name: Node(FILE, xattrs=turned) for name in reversed(names)})
    assert bytes(one._data) == bytes(other._data)


@pytest.mark.parametrize(
    ("node", "form"),
    [
        pytest.param(Node(FILE), FLAT_PLAIN, id="empty file"),
        pytest.param(Node(FILE, uid=65_535, gid=65_535), FLAT_PLAIN, id="largest 16-bit owner"),
        pytest.param(Node(FILE, uid=65_536), FLAT_PLAIN | EXTENDED, id="uid"),
        pytest.param(Node(FILE, gid=65_536), FLAT_PLAIN | EXTENDED, id="gid"),
        pytest.param(Node(FILE, mtime=1), FLAT_PLAIN | EXTENDED, id="seconds"),
        pytest.param(Node(FILE, mtime_nsec=1), FLAT_PLAIN | EXTENDED, id="nanoseconds"),
        pytest.param(
            Node(FILE, size=0xFFFFFFFF, chunk_size=1 << 32, chunks=[HOLE]),
            CHUNK_BASED,
            id="4 GiB - 1",
        ),
        pytest.param(
            Node(FILE, size=1 << 32, chunk_size=1 << 32, chunks=[HOLE]),
            CHUNK_BASED | EXTENDED,
            id="4 GiB",
        ),
        pytest.param(symlink(b"t"), FLAT_INLINE, id="short link"),
        pytest.param(symlink(b"t" * (BLOCK - 32)), FLAT_INLINE, id="longest inline link"),
        pytest.param(symlink(b"t" * (BLOCK - 31)), FLAT_PLAIN, id="link in a block"),
        pytest.param(directory(), FLAT_INLINE, id="empty directory"),
    ],
)
def test_form_of_an_inode(node: Node, form: int) -> None:
    assert form_of(node) == form


def test_a_directory_of_exactly_one_block_has_no_tail() -> None:
    # 27 bytes for the dots; 12 and the name for each entry
    exact = directory()
    exact.children = {b"%0187d" % number: Node(FILE) for number in range(20)}
    exact.children[b"f" * (BLOCK - 27 - 20 * 199 - 12)] = Node(FILE)
    inode = inode_at(image_of({b"x": exact}), b"x")
    assert (inode.size, inode.layout) == (BLOCK, FLAT_PLAIN)


def test_the_epoch_is_the_most_frequent_time() -> None:
    def epoch(*times: tuple[int, int]) -> tuple[int, int]:
        files = {
            b"%d" % number: Node(FILE, mtime=mtime, mtime_nsec=nsec)
            for number, (mtime, nsec) in enumerate(times)
        }
        superblock = image_of(files).superblock
        return superblock.epoch, superblock.epoch_nsec

    assert epoch() == (0, 0)
    assert epoch((5, 7), (5, 7), (6, 0)) == (5, 7)
    assert epoch((-5, 7), (-5, 7), (-5, 8)) == (-5, 7)
    assert epoch((9, 0), (-2, 1)) == (-2, 1)  # each, and the root's 0, once: the earliest wins


def test_an_xattr_of_two_inodes_is_stored_once_if_that_is_smaller() -> None:
    label = {b"security.selinux": b"system_u:object_r:bin_t:s0"}
    several = image_of({b"%d" % number: Node(FILE, xattrs=label) for number in range(9)})
    assert {inode_at(several, b"%d" % number).xattr_size for number in range(9)} == {16}
    one = image_of({b"0": Node(FILE, xattrs=label)})
    assert inode_at(one, b"0").xattr_size > 40
    short = {b"user.a": b""}  # an entry of 8 bytes saves nothing against two ids and itself
    two = image_of({b"a": Node(FILE, xattrs=short), b"b": Node(FILE, xattrs=short)})
    assert inode_at(two, b"a").xattr_size == 12 + 8


def test_features_are_stated_only_when_used() -> None:
    assert image_of({}).superblock.feature_incompat == 0
    assert image_of({}, SECTOR).superblock.feature_incompat == 8
    hole = Node(FILE, size=1, chunk_size=BLOCK, chunks=[HOLE])
    assert image_of({b"x": hole}).superblock.feature_incompat == 4


def test_devices_follow_each_other_behind_the_trailer() -> None:
    devices = [Device(bytes([number]) * 32, number + 1) for number in range(40)]
    image = image_of({}, *devices, trailer=b"t" * 5000, boot=b"boot")
    start = image.superblock.blocks
    for expected, device in zip(devices, image.devices, strict=True):
        assert (device.tag, device.blocks) == (expected.tag, expected.blocks)
        assert device.mapped_blkaddr == start
        start += device.blocks
    assert image.boot == b"boot".ljust(1024, b"\0")
    assert bytes(image._data[-2 * BLOCK :]) == (b"t" * 5000).ljust(2 * BLOCK, b"\0")
    assert image.size == image.superblock.blocks * BLOCK


@pytest.mark.parametrize("devices", range(23, 57))
def test_the_root_fits_behind_a_device_table_of_any_length(devices: int) -> None:
    """At 23 and 55 devices the table ends with a block, where nid 0 has to be left free."""
    image = image_of({b"x": Node(FILE)}, *[SECTOR] * devices)
    assert 0 < image.root_nid <= 128
    assert len(list(scan(image))) == 2


def test_output_is_written_forwards_in_pieces() -> None:
    class Pipe:
        """All that is used of the output is `write`."""

        def __init__(self) -> None:
            self.sizes: list[int] = []

        def write(self, data: bytes) -> int:
            self.sizes.append(len(data))
            return self.sizes[-1]

    root = directory()
    root.children = {b"%06d" % number: Node(FILE) for number in range(20_000)}
    out = Pipe()
    draft = ErofsDraft(root, [], boot=b"", trailer=b"", uuid=bytes(16))
    draft.write(cast("BinaryIO", out))
    assert (draft.inodes, draft.size) == (20_001, sum(out.sizes))
    assert draft.size > 20_000 * 32
    assert 2 < len(out.sizes) < 20
    assert max(out.sizes) < 600_000


@pytest.mark.parametrize(
    "children",
    [
        pytest.param({b"": Node(FILE)}, id="empty name"),
        pytest.param({b"n" * 256: Node(FILE)}, id="name of 256 bytes"),
        pytest.param({b"a/b": Node(FILE)}, id="slash"),
        pytest.param({b"a\0b": Node(FILE)}, id="NUL"),
        pytest.param({b"..": Node(FILE)}, id="dots"),
        pytest.param({b"x": symlink(b"")}, id="empty link"),
        pytest.param({b"x": symlink(b"t" * 4096)}, id="long link"),
        pytest.param({b"x": Node(0o644)}, id="no type"),
        pytest.param({b"x": Node(FILE, size=1)}, id="size without chunks"),
        pytest.param({b"x": Node(stat.S_IFCHR, rdev=(4096, 0))}, id="major"),
        pytest.param({b"x": Node(stat.S_IFBLK, rdev=(0, 1 << 20))}, id="minor"),
        pytest.param({b"x": Node(FILE, xattrs={b"system.other": b""})}, id="xattr name"),
        pytest.param({b"x": Node(FILE, xattrs={b"user.a": bytes(65_536)})}, id="xattr value"),
        pytest.param(
            {b"x": Node(FILE, xattrs={b"user.%d" % n: bytes(65_535) for n in range(5)})},
            id="xattrs",
        ),
    ],
)
def test_what_no_file_system_has_is_refused(children: dict[bytes, Node]) -> None:
    with pytest.raises(ImageError):
        image_of(children)


@pytest.mark.parametrize(
    ("size", "chunk_size", "chunks"),
    [
        pytest.param(BLOCK + 1, BLOCK, [0], id="too few chunks"),
        pytest.param(BLOCK, BLOCK, [0, 0], id="too many chunks"),
        pytest.param(1, BLOCK, [chunk_address(1, 0)], id="no such slot"),
        pytest.param(1, BLOCK, [chunk_address(0, 1024)], id="no such block"),
        pytest.param(2 * BLOCK, 2 * BLOCK, [chunk_address(0, 1023)], id="chunk over the end"),
        pytest.param(1, 3 * BLOCK, [0], id="not a power of two"),
        pytest.param(1, 2048, [0], id="less than a block"),
        pytest.param(1, 1 << 44, [0], id="more than 2^43"),
    ],
)
def test_a_chunk_map_that_lies_is_refused(size: int, chunk_size: int, chunks: list[int]) -> None:
    with pytest.raises(ImageError):
        image_of({b"x": Node(FILE, size=size, chunk_size=chunk_size, chunks=chunks)}, SECTOR)


def test_the_last_chunk_needs_only_what_remains() -> None:
    node = Node(FILE, size=1, chunk_size=1 << 20, chunks=[chunk_address(0, 1023)])
    assert inode_at(image_of({b"x": node}, SECTOR), b"x").size == 1


def test_limits_of_the_format_are_named() -> None:
    with pytest.raises(LimitError, match="65536 sectors") as caught:
        image_of({}, *[SECTOR] * 65_536)
    assert caught.value.hint is not None
    assert "--sector-size" in caught.value.hint
    with pytest.raises(LimitError, match="16 TiB"):
        image_of({}, Device(bytes(32), MAX_BLOCKS))
    assert image_of({}, Device(bytes(32), MAX_BLOCKS - 1)).devices[0].mapped_blkaddr == 1
    assert len(image_of({}, *[SECTOR] * 65_535).devices) == 65_535


@pytest.mark.parametrize("device", [Device(b"short", 1), Device(bytes(32), 0)])
def test_a_device_without_identity_or_size_is_refused(device: Device) -> None:
    with pytest.raises(ImageError):
        image_of({}, device)
