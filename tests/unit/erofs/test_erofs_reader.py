# SPDX-License-Identifier: Apache-2.0
"""Crafted images: the reader refuses what the writer would not write, in bounded time."""

from __future__ import annotations

import io
import stat
import struct
import time
from collections.abc import Callable

import pytest

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import BLOCK, DIRENT_SIZE
from firstread.erofs.reader import read_tree, scan
from firstread.erofs.tree import Device, Node, chunk_address, directory
from firstread.erofs.validation import validate
from firstread.erofs.writer import write_erofs
from firstread.errors import ImageError
from firstread.testing.erofsdump import dump
from firstread.testing.trees import symlink

SUPER = 1024
DEVICES = [Device(b"\xaa" * 32, 4), Device(b"\xbb" * 32, 4)]
TABLE = 1152
U16, U32, U64 = "<H", "<I", "<Q"

# Offsets in a compact inode; every inode of the image is one.
FORMAT, ICOUNT, MODE, NLINK, SIZE, RESERVED, I_U = 0, 2, 4, 6, 8, 12, 16
# Offsets in a dirent.
NID, NAMEOFF, TYPE, ZERO = 0, 8, 10, 11


class Crafted:
    """A valid image, to be changed byte by byte."""

    def __init__(self) -> None:
        root = directory()
        file = Node(stat.S_IFREG, size=BLOCK + 1, chunk_size=BLOCK)
        file.chunks = [chunk_address(0, 2), chunk_address(1, 3)]
        label = {b"user.label": b"shared by two inodes"}
        root.children = {
            b"a": Node(stat.S_IFREG, xattrs=label),
            b"b": Node(stat.S_IFREG, xattrs=label | {b"user.inline": b"value"}),
            b"dir": directory(),
            b"file": file,
            b"link": symlink(b"target"),
            b"null": Node(stat.S_IFCHR, rdev=(1, 3)),
            b"twice": Node(stat.S_IFIFO),
        }
        assert root.children[b"dir"].children is not None
        root.children[b"dir"].children[b"again"] = root.children[b"twice"]
        out = io.BytesIO()
        write_erofs(out, root, DEVICES)
        self.data = bytearray(out.getvalue())
        image = ErofsImage(out.getvalue())
        self.nids = {b".": image.root_nid}
        for inode, entries in scan(image):
            if inode.nid in (image.root_nid, self.nids.get(b"dir")):
                self.nids |= {name: nid for name, nid, _ in entries if name not in (b".", b"..")}

    def inode(self, name: bytes) -> int:
        return self.nids[name] * 32

    def after(self, name: bytes) -> int:
        """Where the xattrs, chunk indexes or tail of an inode without xattrs begin."""
        return self.inode(name) + 32

    def put(self, offset: int, form: str, value: int) -> None:
        struct.pack_into(form, self.data, offset, value)

    def dirent(self, directory_name: bytes, number: int) -> int:
        return self.after(directory_name) + DIRENT_SIZE * number

    def rename(self, directory_name: bytes, old: bytes, new: bytes) -> None:
        start = self.data.index(old, self.after(directory_name))
        self.data[start : start + len(old)] = new


def refused(data: bytes | bytearray) -> None:
    """Check that every way to read `data` ends in an ImageError."""
    for read in (validate, read_tree, lambda image: list(dump(image))):
        with pytest.raises(ImageError):
            read(ErofsImage(bytes(data)))


def test_the_image_is_valid_before_it_is_changed() -> None:
    image = ErofsImage(bytes(Crafted().data))
    validate(image)
    assert len(list(scan(image))) == 8
    assert image.superblock.xattr_blkaddr == 0
    assert len(image.xattrs(image.inode(Crafted().nids[b"b"]))) == 2


Change = Callable[[Crafted], None]


def every(*changes: Change) -> Change:
    def change(crafted: Crafted) -> None:
        for one in changes:
            one(crafted)

    return change


# Entries of the root: . .. a b dir file link null twice
CHANGES: dict[str, Change] = {
    # superblock
    "no magic": lambda c: c.put(SUPER, U32, 0),
    "checksum": lambda c: c.put(SUPER + 4, U32, 1),
    "compatible feature": lambda c: c.put(SUPER + 8, U32, 6),
    "block size": lambda c: c.put(SUPER + 12, U16, 9),
    "root nid of a file": lambda c: c.put(SUPER + 14, U16, c.nids[b"a"]),
    "root nid out of bounds": lambda c: c.put(SUPER + 14, U16, 0xFFFF),
    "inode count": lambda c: c.put(SUPER + 16, U64, 9),
    "epoch nanoseconds": lambda c: c.put(SUPER + 32, U32, 10**9),
    "more blocks than bytes": lambda c: c.put(SUPER + 36, U32, 2),
    "no blocks": lambda c: c.put(SUPER + 36, U32, 0),
    "meta_blkaddr": lambda c: c.put(SUPER + 40, U32, 1),
    "xattr_blkaddr": lambda c: c.put(SUPER + 44, U32, 0xFFFFFFFF),
    "incompatible feature": lambda c: c.put(SUPER + 80, U32, 0x1C),
    "device table beyond the file": lambda c: c.put(SUPER + 86, U16, 0xFFFF),
    "directory block size": lambda c: c.put(SUPER + 90, "<B", 1),
    "packed inode": lambda c: c.put(SUPER + 96, U64, 1),
    # device table
    "tag": lambda c: c.put(TABLE, "<B", ord("G")),
    "tag in capitals": lambda c: c.put(TABLE, "<B", ord("A")),
    "device without blocks": lambda c: c.put(TABLE + 64, U32, 0),
    "device of all blocks": lambda c: c.put(TABLE + 128 + 64, U32, 0xFFFFFFFF),
    "device over the metadata": lambda c: c.put(TABLE + 68, U32, 0),
    "device over another": lambda c: c.put(TABLE + 128 + 68, U32, 1),
    "reserved in slot": lambda c: c.put(TABLE + 72, U32, 1),
    # inodes
    "unknown format bit": lambda c: c.put(c.inode(b"a") + FORMAT, U16, 0x10),
    "compressed": lambda c: c.put(c.inode(b"file") + FORMAT, U16, 1 << 1),
    "inline file": lambda c: c.put(c.inode(b"a") + FORMAT, U16, 2 << 1),
    "chunk-based directory": lambda c: c.put(c.inode(b"dir") + FORMAT, U16, 4 << 1),
    "no type": lambda c: c.put(c.inode(b"a") + MODE, U16, 0o644),
    "other type than the entry's": lambda c: c.put(c.inode(b"null") + MODE, U16, stat.S_IFBLK),
    "reserved": lambda c: c.put(c.inode(b"a") + RESERVED, U32, 1),
    "reserved at the end": lambda c: c.put(c.inode(b"a") + 28, U32, 1),
    "no links": lambda c: c.put(c.inode(b"a") + NLINK, U16, 0),
    "more links than names": lambda c: c.put(c.inode(b"a") + NLINK, U16, 2),
    "fewer links than names": lambda c: c.put(c.inode(b"twice") + NLINK, U16, 1),
    "links of a directory": lambda c: c.put(c.inode(b"dir") + NLINK, U16, 3),
    "links of the root": lambda c: c.put(c.inode(b".") + NLINK, U16, 2),
    "size of an empty file": lambda c: c.put(c.inode(b"a") + SIZE, U32, 1),
    "size of a device": lambda c: c.put(c.inode(b"null") + SIZE, U32, 1),
    # files
    "size of more chunks": lambda c: c.put(c.inode(b"file") + SIZE, U32, 0xFFFFFFFF),
    "size of one chunk more": lambda c: c.put(c.inode(b"file") + SIZE, U32, 2 * BLOCK + 1),
    "no size": lambda c: c.put(c.inode(b"file") + SIZE, U32, 0),
    "chunk format without indexes": lambda c: c.put(c.inode(b"file") + I_U, U32, 0),
    "chunk format of 48 bits": lambda c: c.put(c.inode(b"file") + I_U, U32, 0x60),
    "chunk that leaves its device": every(
        lambda c: c.put(c.inode(b"file") + I_U, U32, 0x22),
        lambda c: c.put(c.inode(b"file") + SIZE, U32, 2 * BLOCK + 1),
    ),
    "device 3": lambda c: c.put(c.after(b"file") + 2, U16, 3),
    "device 0": lambda c: c.put(c.after(b"file") + 2, U16, 0),
    "block 4 of 4": lambda c: c.put(c.after(b"file") + 4, U32, 4),
    "hole with a device": lambda c: c.put(c.after(b"file") + 4, U32, 0xFFFFFFFF),
    "advise": lambda c: c.put(c.after(b"file"), U16, 1),
    # symbolic links
    "empty link": lambda c: c.put(c.inode(b"link") + SIZE, U32, 0),
    "link of 4 KiB": lambda c: c.put(c.inode(b"link") + SIZE, U32, BLOCK),
    "link over a block": lambda c: c.put(c.inode(b"link") + SIZE, U32, BLOCK - 1),
    "link of 4 GiB": lambda c: c.put(c.inode(b"link") + SIZE, U32, 0xFFFFFFFF),
    "link with NUL": lambda c: c.put(c.after(b"link"), "<B", 0),
    "link in a block that is not there": every(
        lambda c: c.put(c.inode(b"link") + FORMAT, U16, 0),
        lambda c: c.put(c.inode(b"link") + I_U, U32, 1),
    ),
    # directories
    "directory of 4 GiB": lambda c: c.put(c.inode(b"dir") + SIZE, U32, 0xFFFFFFFF),
    "empty directory": lambda c: c.put(c.inode(b"dir") + SIZE, U32, 0),
    "directory cut off": lambda c: c.put(c.inode(b"dir") + SIZE, U32, 11),
    "directory without names": lambda c: c.put(c.inode(b"dir") + SIZE, U32, 36),
    "names out of order": lambda c: c.rename(b".", b"filelink", b"zilelink"),
    "two names alike": lambda c: c.rename(b".", b"...ab", b"...aa"),
    "name with a slash": lambda c: c.rename(b".", b"filelink", b"fi/elink"),
    "name with NUL": lambda c: c.rename(b".", b"filelink", b"fi\0elink"),
    "no dot": lambda c: c.rename(b".", b"...ab", b"-..ab"),
    "no dots": lambda c: c.rename(b".", b"...ab", b"..-ab"),
    "dot is another": lambda c: c.put(c.dirent(b".", 0) + NID, U64, c.nids[b"dir"]),
    "dots are another": lambda c: c.put(c.dirent(b"dir", 1) + NID, U64, c.nids[b"dir"]),
    "dot is a file": lambda c: c.put(c.dirent(b".", 0) + TYPE, "<B", 1),
    "entry without a type": lambda c: c.put(c.dirent(b".", 2) + TYPE, "<B", 0),
    "reserved in entry": lambda c: c.put(c.dirent(b".", 2) + ZERO, "<B", 1),
    "nid beyond the metadata": lambda c: c.put(c.dirent(b".", 2) + NID, U64, BLOCK // 32),
    "largest nid": lambda c: c.put(c.dirent(b".", 2) + NID, U64, 0xFFFFFFFFFFFFFFFF),
    "directory in itself": lambda c: c.put(c.dirent(b".", 4) + NID, U64, c.nids[b"."]),
    "file for a directory": lambda c: c.put(c.dirent(b".", 4) + NID, U64, c.nids[b"a"]),
    "one inode for two files": lambda c: c.put(c.dirent(b".", 3) + NID, U64, c.nids[b"a"]),
    "names overlap": lambda c: c.put(c.dirent(b".", 3) + NAMEOFF, U16, 0),
    "name beyond the block": lambda c: c.put(c.dirent(b".", 8) + NAMEOFF, U16, 0xFFFF),
    "table of no entry": lambda c: c.put(c.dirent(b".", 0) + NAMEOFF, U16, 0),
    "table of half an entry": lambda c: c.put(c.dirent(b".", 0) + NAMEOFF, U16, 18),
    "table longer than the block": lambda c: c.put(c.dirent(b".", 0) + NAMEOFF, U16, 4092),
    # xattrs of a: header and one shared id; of b: an inline entry more
    "header without entries": lambda c: c.put(c.inode(b"a") + ICOUNT, U16, 1),
    "body beyond the file": lambda c: c.put(c.inode(b"a") + ICOUNT, U16, 0xFFFF),
    "name filter": lambda c: c.put(c.after(b"a"), U32, 1),
    "shared ids beyond the body": lambda c: c.put(c.after(b"a") + 4, "<B", 255),
    "reserved in header": lambda c: c.put(c.after(b"a") + 5, "<B", 1),
    "shared id beyond the file": lambda c: c.put(c.after(b"a") + 12, U32, 0xFFFFFFFF),
    "shared id of no entry": lambda c: c.put(c.after(b"a") + 12, U32, 0),
    "value beyond the body": lambda c: c.put(c.after(b"b") + 18, U16, 100),
    "name beyond the body": lambda c: c.put(c.after(b"b") + 16, "<B", 200),
    "name of no prefix": lambda c: c.put(c.after(b"b") + 17, "<B", 9),
    "name with a long prefix": lambda c: c.put(c.after(b"b") + 17, "<B", 0x81),
    "ACL with a name": lambda c: c.put(c.after(b"b") + 17, "<B", 2),
    "empty name": lambda c: c.put(c.after(b"b") + 16, "<B", 0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_crafted_image_is_refused(change: Change) -> None:
    crafted = Crafted()
    change(crafted)
    refused(crafted.data)


@pytest.mark.parametrize("size", [0, 1, 1024, 1151, 1152, BLOCK - 1])
def test_a_truncated_image_is_refused(size: int) -> None:
    refused(Crafted().data[:size])


def test_a_flat_image_may_be_longer_than_its_metadata() -> None:
    image = ErofsImage(bytes(Crafted().data) + bytes(8 * BLOCK))
    validate(image)
    assert image.size == BLOCK


def test_asking_a_file_for_what_it_is_not() -> None:
    crafted = Crafted()
    image = ErofsImage(bytes(crafted.data))
    file = image.inode(crafted.nids[b"file"])
    with pytest.raises(ImageError):
        image.readdir(file)
    with pytest.raises(ImageError):
        image.readlink(file)
    assert image.chunks(image.inode(crafted.nids[b"a"])) == []
    assert image.xattrs(file) == {}


def refused_within(seconds: float, data: bytes) -> None:
    start = time.process_time()
    with pytest.raises(ImageError, match="overlap"):
        validate(ErofsImage(data))
    assert time.process_time() - start < seconds


def image_of(children: dict[bytes, Node]) -> tuple[bytearray, dict[bytes, int]]:
    root = directory()
    root.children = children
    out = io.BytesIO()
    write_erofs(out, root, DEVICES)
    data = bytearray(out.getvalue())
    image = ErofsImage(bytes(data))
    listed = image.readdir(image.inode(image.root_nid))
    meta = image.superblock.meta_blkaddr * BLOCK
    return data, {name: meta + 32 * nid for name, nid, _ in listed}


@pytest.mark.parametrize("offset", [pytest.param(24, id="uid"), pytest.param(28, id="gid")])
def test_an_owner_that_the_kernel_does_not_have(offset: int) -> None:
    root = directory()
    root.children = {b"file": Node(stat.S_IFREG, uid=1 << 16)}
    out = io.BytesIO()
    write_erofs(out, root, [])
    data = bytearray(out.getvalue())
    (nid,) = (inode.nid for inode, _ in scan(ErofsImage(out.getvalue())) if not inode.is_dir)
    struct.pack_into(U32, data, nid * 32 + offset, 0xFFFFFFFE)
    validate(ErofsImage(bytes(data)))
    struct.pack_into(U32, data, nid * 32 + offset, 0xFFFFFFFF)
    refused(data)


def test_files_that_share_their_chunk_indexes_are_refused() -> None:
    """Each of 20,000 files states all that follows it as its indexes: 6 GB to read."""
    names = [b"%05d" % number for number in range(20_000)]
    file = {name: Node(stat.S_IFREG, size=1, chunk_size=BLOCK, chunks=[0]) for name in names}
    data, offsets = image_of(file)
    for name in names:
        indexes = (len(data) - offsets[name] - 40) // 8
        struct.pack_into(U32, data, offsets[name] + SIZE, indexes * BLOCK)
    refused_within(10, bytes(data))


def test_directories_that_share_their_blocks_are_refused() -> None:
    """Each of 200 directories states the first blocks of the root, of 18,000 links, as its own."""
    linked = Node(stat.S_IFREG, mtime=1)  # which makes its inode an extended one
    children = {b"!%05d" % number: linked for number in range(18_000)}
    children |= {b"dir%05d" % number: directory() for number in range(200)}
    data, offsets = image_of(children)
    root_blocks = struct.unpack_from(U32, data, offsets[b"."] + I_U)[0]
    shared = 18_000 // (BLOCK // (DIRENT_SIZE + 6)) * BLOCK
    for number in range(200):
        offset = offsets[b"dir%05d" % number]
        tail = struct.unpack_from(U32, data, offset + SIZE)[0]
        struct.pack_into(U32, data, offset + SIZE, shared + tail)
        struct.pack_into(U32, data, offset + I_U, root_blocks)
    struct.pack_into(U32, data, offsets[b"!00000"] + 44, 18_000 * 201)
    refused_within(10, bytes(data))


def test_shared_xattrs_that_overlap_are_refused() -> None:
    """Each of 4,000 ids is another entry of 60,000 bytes in the same area: 240 MB of values."""
    header = struct.pack("<BBH", 1, 1, 60_000)
    value = header * 16_000  # wherever an entry begins in it, there is a header
    names = [b"%05d" % number for number in range(4_000)]
    data, offsets = image_of({n: Node(stat.S_IFREG, xattrs={b"user.name": value}) for n in names})
    first = struct.unpack_from(U32, data, offsets[names[0]] + 44)[0]
    for number, name in enumerate(names):
        # ids count 4 bytes; the first two are the header and the name of the only true entry
        struct.pack_into(U32, data, offsets[name] + 44, first + 2 + number)
    refused_within(10, bytes(data))
