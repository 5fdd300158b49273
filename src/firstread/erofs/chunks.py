# SPDX-License-Identifier: Apache-2.0
"""Chunk maps of regular files: the device and block of each part of a file.

Owns the translation between `Node.chunks` and the 8-byte chunk indexes of EROFS, in both
directions. Invariant: no index points outside its device.
Source: Linux ``fs/erofs/erofs_fs.h`` and ``erofs_map_blocks`` in ``fs/erofs/data.c``.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, pack, unpack_from

from firstread.erofs.format import (
    BLOCK_BITS,
    CHUNK_BITS_MASK,
    CHUNK_INDEX_SIZE,
    CHUNK_INDEXES,
    HOLE_INDEX,
    MAX_FILE_SIZE,
)
from firstread.erofs.tree import HOLE
from firstread.errors import ImageError

_ONE = Struct("<Q")  # most files have one chunk


def chunk_format(chunk_size: int) -> int:
    """Return the ``i_u`` of a file with chunks of `chunk_size` bytes.

    Raises:
        ImageError: EROFS has no such chunks.
    """
    bits = chunk_size.bit_length() - 1 - BLOCK_BITS
    if not 0 <= bits <= CHUNK_BITS_MASK or chunk_size.bit_count() != 1:
        raise ImageError(f"a file cannot have chunks of {chunk_size} bytes")
    return CHUNK_INDEXES | bits


def chunk_size_of(chunk_format: int) -> int:
    """Return the bytes of a chunk of a file with this ``i_u``.

    Raises:
        ImageError: firstread writes no such chunk format.
    """
    if chunk_format & ~CHUNK_BITS_MASK != CHUNK_INDEXES:
        raise ImageError(f"chunk format {chunk_format:#x} is unknown")
    return 1 << BLOCK_BITS + (chunk_format & CHUNK_BITS_MASK)


def count_chunks(size: int, chunk_size: int) -> int:
    """Return the number of chunks of a file of `size` bytes."""
    return -(-size // chunk_size)


def indexes_size(size: int, chunk_format: int) -> int:
    """Return the bytes of the chunk indexes of a file of `size` bytes.

    Raises:
        ImageError: as `chunk_size_of`.
    """
    if chunk_format & ~CHUNK_BITS_MASK != CHUNK_INDEXES:
        raise ImageError(f"chunk format {chunk_format:#x} is unknown")
    return -(-size >> BLOCK_BITS + (chunk_format & CHUNK_BITS_MASK)) * CHUNK_INDEX_SIZE


def _blocks_needed(size: int, chunk_size: int, count: int) -> list[int]:
    """Return the blocks of each chunk of a file; the last chunk covers the rest."""
    needed = [chunk_size >> BLOCK_BITS] * count
    last = size - (count - 1) * chunk_size
    needed[-1] = -(-last >> BLOCK_BITS)
    return needed


def encode_chunks(
    size: int, chunk_size: int, chunks: Sequence[int], device_blocks: Sequence[int]
) -> bytes:
    """Return the chunk indexes of a file of `size` bytes.

    Args:
        size: bytes of the file, more than 0.
        chunk_size: bytes of each chunk.
        chunks: as in `firstread.erofs.tree.Node`.
        device_blocks: blocks of each device, by slot.

    Raises:
        ImageError: `chunks` do not cover the file, or lie outside their device.
    """
    if len(chunks) != count_chunks(size, chunk_size) or size > MAX_FILE_SIZE:
        raise ImageError(f"{len(chunks)} chunks of {chunk_size} bytes are no file of {size} bytes")
    indexes = []
    needed = _blocks_needed(size, chunk_size, len(chunks))
    for address, blocks in zip(chunks, needed, strict=True):
        if address == HOLE:
            indexes.append(HOLE_INDEX)
            continue
        slot, block = address >> 32, address & 0xFFFFFFFF
        if slot >= len(device_blocks) or block + blocks > device_blocks[slot]:
            raise ImageError(f"a chunk lies outside device slot {slot}")
        indexes.append(block << 32 | slot + 1 << 16)
    return pack(f"<{len(indexes)}Q", *indexes)


def decode_chunks(
    data: memoryview, offset: int, size: int, chunk_size: int, device_blocks: Sequence[int]
) -> list[int]:
    """Return the chunks of a file of `size` bytes; the inverse of `encode_chunks`.

    Args:
        data: the image.
        offset: of the first index in it.
        size: bytes of the file, more than 0.
        chunk_size: bytes of each chunk.
        device_blocks: blocks of each device, by slot.

    Raises:
        ImageError: the indexes are cut off or point outside their device.
    """
    count = -(-size // chunk_size)
    if size > MAX_FILE_SIZE or offset + CHUNK_INDEX_SIZE * count > len(data):
        raise ImageError(f"the chunk indexes of a file of {size} bytes are out of bounds")
    left = -(-size >> BLOCK_BITS)
    if count == 1:
        return [_address(_ONE.unpack_from(data, offset)[0], left, device_blocks)]
    blocks = chunk_size >> BLOCK_BITS
    *whole, last = unpack_from(f"<{count}Q", data, offset)
    chunks = [_address(index, blocks, device_blocks) for index in whole]
    return [*chunks, _address(last, left - blocks * len(whole), device_blocks)]


def _address(index: int, blocks: int, device_blocks: Sequence[int]) -> int:
    """Return the address of a chunk of `blocks` blocks, as in `Node.chunks`.

    Raises:
        ImageError: it lies outside its device.
    """
    if index == HOLE_INDEX:
        return HOLE
    slot, block = (index >> 16 & 0xFFFF) - 1, index >> 32
    if index & 0xFFFF or not 0 <= slot < len(device_blocks):
        raise ImageError(f"chunk index {index:#x} names no device")
    if block + blocks > device_blocks[slot]:
        raise ImageError(f"a chunk lies outside device slot {slot}")
    return slot << 32 | block
