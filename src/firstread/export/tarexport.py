# SPDX-License-Identifier: Apache-2.0
"""Writes the tree of an image as a tar archive, in one pass.

Owns the order of entries: each directory before its contents, and these side by side, since GNU tar
sets the time of a directory when it comes to the first name outside. Names in order are nearly
sectors in order, layer by layer. A hard link follows the name that it refers to. Holes of sparse
files become zeros.
"""

from __future__ import annotations

from typing import BinaryIO

from firstread.erofs.tree import Node, walk
from firstread.export.ustar import BLOCK, END, header, is_possible
from firstread.sectors.content import ContentReader
from firstread.units import MiB

_ZEROS = memoryview(bytes(MiB))


def write_tar(root: Node, content: ContentReader, out: BinaryIO) -> tuple[int, int]:
    """Write the tree below `root` to `out`; return the number of names, and of sockets left out.

    Args:
        root: of the image.
        content: reads its files.
        out: need not be seekable.

    Raises:
        FirstreadError: a sector cannot be read, or is not what its id says.
        OSError: `out` cannot be written.
    """
    names = sockets = 0
    paths: dict[int, bytes] = {}  # of each node that is no directory, for further names
    for path, node in walk(root):
        first = path if node.is_dir else paths.setdefault(id(node), path)
        if not is_possible(node):
            sockets += 1
            continue
        names += 1
        out.write(header(path, node, link=first if first != path else None))
        if first == path:
            _write_content(node, content, out)
    out.write(END)
    return names, sockets


def _write_content(node: Node, content: ContentReader, out: BinaryIO) -> None:
    end = 0
    for offset, data in content.data(node):
        _write_zeros(offset - end, out)
        out.write(data)
        end = offset + len(data)
    _write_zeros(node.size - end, out)
    _write_zeros(-node.size % BLOCK, out)


def _write_zeros(count: int, out: BinaryIO) -> None:
    while count > 0:
        count -= out.write(_ZEROS[: min(count, len(_ZEROS))])
