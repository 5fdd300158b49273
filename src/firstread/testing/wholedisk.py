# SPDX-License-Identifier: Apache-2.0
"""The disk of a converted image, made the slow and plain way, to compare exports with."""

from __future__ import annotations

from firstread.erofs.flatimage import FlatImage
from firstread.erofs.format import BLOCK
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, split_address, walk
from firstread.oci.repository import Repository
from firstread.sectors.content import ContentReader
from firstread.sectors.image import BlockImage


def whole_disk(repository: Repository, image: BlockImage) -> tuple[bytes, set[int]]:
    """Return all bytes of the disk, and the blocks that hold metadata or parts of files."""
    flat, content = FlatImage(image.erofs), ContentReader.of(repository, image)
    data = bytearray(flat.metadata(0, flat.metadata_size))
    for slot in range(len(image.erofs.devices)):
        data += content.sector(slot)
    used = set(range(flat.metadata_size // BLOCK))
    for _, node in walk(read_tree(image.erofs)):
        for number, address in enumerate(node.chunks):
            if address != HOLE:
                slot, block = split_address(address)
                first = image.erofs.devices[slot].mapped_blkaddr + block
                length = min(node.chunk_size, node.size - number * node.chunk_size)
                used.update(range(first, first - (-length // BLOCK)))
    for block in set(range(len(data) // BLOCK)) - used:
        data[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
    return bytes(data), used
