# SPDX-License-Identifier: Apache-2.0
"""An EROFS image as text, for people and for golden files.

Owns the wording only. Invariant: the text shows every field that the kernel looks at, so that two
images with the same dump are the same file system.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from itertools import groupby

from firstread.erofs.chunks import chunk_size_of
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import (
    CHUNK_BASED,
    EXTENDED,
    FLAT_INLINE,
    FLAT_PLAIN,
    decode_device_number,
)
from firstread.erofs.inode import Inode
from firstread.erofs.reader import scan
from firstread.erofs.tree import HOLE, split_address
from firstread.erofs.xattrs import body_count

_LAYOUTS = {FLAT_PLAIN: "plain", FLAT_INLINE: "inline", CHUNK_BASED: "chunk-based"}


def dump(image: ErofsImage) -> Iterator[str]:
    """Yield `image` line by line, without line ends.

    Raises:
        ImageError: the image is malformed, after the lines before the damage.
    """
    yield from _superblock(image)
    for inode, entries in scan(image):
        yield from _inode(image, inode)
        for name, nid, file_type in entries:
            yield f"    {_quote(name)} -> {nid} type {file_type}"


def _quote(data: bytes) -> str:
    """Return `data` in quotes and printable ASCII."""
    return repr(data)[1:]


def _superblock(image: ErofsImage) -> Iterator[str]:
    fields = image.superblock
    yield f"superblock: {fields.blocks} blocks, {fields.inodes} inodes, root nid {fields.root_nid}"
    yield f"  meta_blkaddr {fields.meta_blkaddr}, xattr_blkaddr {fields.xattr_blkaddr}"
    yield f"  epoch {fields.epoch} s {fields.epoch_nsec} ns"
    yield f"  feature_incompat {fields.feature_incompat:#x}"
    yield f"  uuid {fields.uuid.hex()}, volume name {_quote(fields.volume_name)}"
    for number, device in enumerate(image.devices, 1):
        yield f"device {number}: {device.blocks} blocks, mapped at {device.mapped_blkaddr}"
        yield f"  tag {device.tag.hex()}"


def _inode(image: ErofsImage, inode: Inode) -> Iterator[str]:
    form = "extended" if inode.form & EXTENDED else "compact"
    yield f"inode {inode.nid}: {stat.filemode(inode.mode)}, {form}, {_LAYOUTS[inode.layout]}"
    yield (
        f"  mode {inode.mode:o}, nlink {inode.nlink}, uid {inode.uid}, gid {inode.gid},"
        f" size {inode.size}, mtime {inode.mtime} s {inode.mtime_nsec} ns"
    )
    if inode.xattr_size:
        yield f"  xattr icount {body_count(inode.xattr_size)}"
        for name, value in image.xattrs(inode).items():
            yield f"    {_quote(name)} = {_quote(value)}"
    if inode.layout == CHUNK_BASED:
        yield from _chunks(image, inode)
    elif stat.S_ISLNK(inode.mode):
        yield f"  target {_quote(image.readlink(inode))}"
    elif stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        yield "  device {}:{}".format(*decode_device_number(inode.i_u))
    if inode.size and inode.layout == FLAT_PLAIN:
        yield f"  data from block {inode.i_u}"


def _chunks(image: ErofsImage, inode: Inode) -> Iterator[str]:
    chunks = image.chunks(inode)
    yield f"  {len(chunks)} chunks of {chunk_size_of(inode.i_u)} bytes"
    for address, run in groupby(chunks):
        times = len(list(run))
        slot, block = split_address(address)
        where = "hole" if address == HOLE else f"device {slot + 1} block {block}"
        yield f"    {where}" + (f" x {times}" if times > 1 else "")
