# SPDX-License-Identifier: Apache-2.0
"""The EROFS structures that firstread writes and reads: byte layout and constants, no I/O.

Source: Linux ``fs/erofs/erofs_fs.h``. All numbers are little-endian. firstread uses the subset
that Linux 5.16 and later reads: uncompressed, 4096-byte blocks, no superblock checksum, and zeros
in all fields that 5.16 reserves, because later kernels gave several of them a meaning (a compact
inode's time, high bits of block addresses). Changing anything here breaks every existing image.

A firstread image, in blocks of 4096 bytes::

    0         boot area: 1024 bytes that EROFS ignores
    1024      superblock (128 bytes)
    1152      device table, 128 bytes a slot        only if there are devices
              shared xattrs                         from xattr_blkaddr
              inodes, each with its xattrs and      from meta_blkaddr, the block where they
              chunk indexes or inline tail          begin; nid = offset from there / 32
    block     directory and symlink blocks          that did not fit beside the inode
    block     trailer                               EROFS ignores it, too
    block     device 1, device 2, …                 only in the flat form

A mapping of a file shows the device's bytes behind the end of the file, in its last block (Linux
6.18): the filler of a device must put zeros there, as POSIX demands.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from firstread.errors import ImageError, UnsupportedError

BLOCK_BITS = 12
BLOCK = 1 << BLOCK_BITS
BOOT_SIZE = 1024
SUPER_SIZE = 128
DEVICE_SLOT_SIZE = 128
DEVICE_TABLE = BOOT_SIZE + SUPER_SIZE  # offset of the first slot, a multiple of the slot size
NID_BITS = 5  # an inode begins at a multiple of 32 bytes
SLOT = 1 << NID_BITS

MAX_BLOCKS = 0xFFFFFFFF  # of the primary and all devices; block addresses have 32 bits
MAX_DEVICES = 0xFFFF
MAX_NAME = 255  # bytes
MAX_TARGET = 4095  # bytes of a symbolic link: PATH_MAX without its NUL
MAX_FILE_SIZE = (1 << 63) - 1

MAGIC = 0xE0F5E1E2
COMPAT_MTIME = 0x02  # timestamps are mtimes, not ctimes
INCOMPAT_CHUNKED_FILE = 0x04
INCOMPAT_DEVICE_TABLE = 0x08

# struct erofs_super_block
#   0  4 magic            24  8 build_time        64 16 volume_name       86  2 extra_devices
#   4  4 checksum (0)     32  4 build_time_nsec   80  4 feature_incompat  88  2 devt_slotoff
#   8  4 feature_compat   36  4 blocks            84  2 algorithms (0)    90 38 zero: dirblkbits,
#  12  1 blkszbits        40  4 meta_blkaddr                                    prefixes, packed
#  13  1 sb_extslots (0)  44  4 xattr_blkaddr                                   inode, reserved
#  14  2 root_nid         48 16 uuid
#  16  8 inos
SUPER = Struct("<IIIBBHQqIIII16s16sIHHH38s")

# struct erofs_deviceslot
#   0 64 tag: sector id in hexadecimal    64  4 blocks    68  4 mapped_blkaddr    72 56 zero
DEVICE_SLOT = Struct("<64sII56s")

# struct erofs_inode_compact: its time is build_time of the superblock
#   0  2 i_format         4  2 i_mode     8  4 i_size     16  4 i_u      24  2 i_uid
#   2  2 i_xattr_icount   6  2 i_nlink   12  4 zero       20  4 i_ino    26  2 i_gid    28  4 zero
INODE_COMPACT = Struct("<HHHHIIIIHHI")

# struct erofs_inode_extended
#   0  2 i_format         6  2 zero      20  4 i_ino    32  8 i_mtime         48 16 zero
#   2  2 i_xattr_icount   8  8 i_size    24  4 i_uid    40  4 i_mtime_nsec
#   4  2 i_mode          16  4 i_u       28  4 i_gid    44  4 i_nlink
INODE_EXTENDED = Struct("<HHHHQIIIIqII16s")

# i_ino: 0. The kernel makes inode numbers of nids (fs/erofs/inode.c, erofs_iget5_set).
# i_format: bit 0 is set in an extended inode, bits 1 … 3 tell the data layout.
# i_u: block address of a flat inode, chunk format of a chunk-based one, number of a device node.
EXTENDED = 1
FLAT_PLAIN = 0 << 1  # whole blocks from i_u
FLAT_INLINE = 2 << 1  # the same, but the last, partial block follows the inode and its xattrs
CHUNK_BASED = 4 << 1  # chunk indexes follow the inode and its xattrs at a multiple of 8 bytes
LAYOUT_MASK = 7 << 1

CHUNK_BITS_MASK = 0x1F  # of the chunk format: log2 of blocks in a chunk
CHUNK_INDEXES = 0x20  # of the chunk format: 8-byte indexes

# struct erofs_inode_chunk_index, read as one 64-bit number
#   0  2 advise (0)    2  2 device_id: 1 is the first extra device    4  4 blkaddr in that device
CHUNK_INDEX_SIZE = 8
HOLE_INDEX = 0xFFFFFFFF << 32  # blkaddr EROFS_NULL_ADDR

# struct erofs_xattr_ibody_header, then shared ids of 4 bytes, then inline entries
#   0  4 name filter (0)    4  1 shared count    5  7 zero
# i_xattr_icount counts the header as 1 and each further 4 bytes as 1.
XATTR_HEADER = Struct("<IB7s")
# struct erofs_xattr_entry, then name without its prefix, value, and zeros up to 4 bytes
#   0  1 name length    1  1 prefix index    2  2 value size
XATTR_ENTRY = Struct("<BBH")

# struct erofs_dirent. A directory block holds its dirents, then their names without terminators;
# the first nameoff so tells the number of dirents. Names ascend bytewise through all blocks.
#   0  8 nid    8  2 nameoff in the block    10  1 file type    11  1 zero
DIRENT = Struct("<QHBB")
DIRENT_SIZE = DIRENT.size

# File type of a dirent (FT_*) by the upper four bits of a mode; 0: there is no such type.
FT_REG, FT_DIR = 1, 2
FILE_TYPES = (0, 5, 3, 0, 2, 0, 4, 0, 1, 0, 7, 0, 6, 0, 0, 0)


class Superblock(NamedTuple):
    """The fields of a superblock that differ between images; all others are fixed."""

    epoch: int  # seconds: mtime of the compact inodes
    epoch_nsec: int
    inodes: int
    blocks: int  # of the primary device, trailer included
    root_nid: int
    meta_blkaddr: int
    xattr_blkaddr: int
    chunked: bool  # some file is chunk-based
    devices: int
    uuid: bytes
    volume_name: bytes  # at most 15 bytes: older kernels want a terminator

    @property
    def feature_incompat(self) -> int:
        return self.chunked * INCOMPAT_CHUNKED_FILE | bool(self.devices) * INCOMPAT_DEVICE_TABLE

    def pack(self) -> bytes:
        """Return the 128 bytes of the superblock.

        It has no checksum: the digest of the metadata layer already covers these bytes.
        """
        return SUPER.pack(
            MAGIC,
            0,
            COMPAT_MTIME,
            BLOCK_BITS,
            0,
            self.root_nid,
            self.inodes,
            self.epoch,
            self.epoch_nsec,
            self.blocks,
            self.meta_blkaddr,
            self.xattr_blkaddr,
            self.uuid,
            self.volume_name,
            self.feature_incompat,
            0,
            self.devices,
            DEVICE_TABLE // DEVICE_SLOT_SIZE if self.devices else 0,
            b"",
        )

    @classmethod
    def unpack(cls, data: bytes) -> Superblock:
        """Return the superblock in `data` (128 bytes).

        Raises:
            ImageError: it is not a superblock.
            UnsupportedError: it has a feature that firstread does not write.
        """
        fields = SUPER.unpack(data)
        if fields[0] != MAGIC:
            raise ImageError("the metadata is not an EROFS image")
        superblock = cls(
            root_nid=fields[5],
            inodes=fields[6],
            epoch=fields[7],
            epoch_nsec=fields[8],
            blocks=fields[9],
            meta_blkaddr=fields[10],
            xattr_blkaddr=fields[11],
            uuid=fields[12],
            volume_name=fields[13].rstrip(b"\0"),
            chunked=bool(fields[14] & INCOMPAT_CHUNKED_FILE),
            devices=fields[16],
        )
        if superblock.pack() != data:
            raise UnsupportedError("the EROFS superblock has features that firstread does not use")
        return superblock


def encode_device_number(major: int, minor: int) -> int:
    """Return `major`:`minor` in the form of the kernel's ``new_encode_dev`` (``linux/kdev_t.h``).

    Raises:
        ImageError: Linux has no such device number (12 and 20 bits).
    """
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ImageError(f"device number {major}:{minor} is out of range")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device_number(number: int) -> tuple[int, int]:
    """Return (major, minor); the inverse of `encode_device_number`."""
    return number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00


def align(offset: int, to: int) -> int:
    """Return the first multiple of `to`, a power of two, from `offset` on."""
    return (offset + to - 1) & -to
