# SPDX-License-Identifier: Apache-2.0
"""The way back from sectors to files."""

from __future__ import annotations

import stat

from firstread.erofs.tree import HOLE, Node, chunk_address, directory
from firstread.traces.filemap import FileMap, FileRange

B = 4096


def file(size: int, chunk_size: int, *chunks: int) -> Node:
    return Node(stat.S_IFREG | 0o644, size=size, chunk_size=chunk_size, chunks=chunks)


def tree(**files: Node) -> Node:
    root = directory()
    assert root.children is not None
    root.children.update({name.encode(): node for name, node in files.items()})
    return root


def test_a_range_gives_the_files_that_it_holds() -> None:
    files = FileMap(
        tree(
            a=file(5000, 2 * B, chunk_address(0, 0)),
            b=file(100, B, chunk_address(0, 2)),
            c=file(100, B, chunk_address(1, 0)),
        )
    )
    assert list(files.locate(0, B, 4 * B)) == [FileRange(b"a", B, B), FileRange(b"b", 0, B)]
    assert list(files.locate(0, 2 * B, 10)) == [FileRange(b"b", 0, 10)]
    assert list(files.locate(1, 0, B)) == [FileRange(b"c", 0, B)]
    assert list(files.locate(2, 0, B)) == []


def test_chunks_of_a_large_file_have_their_offsets() -> None:
    large = file(4 * B, B, chunk_address(3, 7), HOLE, chunk_address(2, 0), chunk_address(2, 1))
    files = FileMap(tree(large=large))
    assert list(files.locate(2, 0, 2 * B)) == [
        FileRange(b"large", 2 * B, B),
        FileRange(b"large", 3 * B, B),
    ]
    assert list(files.locate(3, 7 * B, B)) == [FileRange(b"large", 0, B)]


def test_of_two_files_with_one_chunk_the_first_is_named() -> None:
    files = FileMap(tree(z=file(B, B, 0), b=file(B, B, 0)))
    assert list(files.locate(0, 0, B)) == [FileRange(b"b", 0, B)]


def test_a_hard_link_is_one_file() -> None:
    node = file(B, B, 0)
    assert list(FileMap(tree(z=node, y=node)).locate(0, 0, B)) == [FileRange(b"y", 0, B)]


def test_an_empty_tree_has_no_files() -> None:
    assert list(FileMap(directory()).locate(0, 0, 1 << 30)) == []
