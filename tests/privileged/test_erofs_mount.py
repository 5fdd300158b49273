# SPDX-License-Identifier: Apache-2.0
"""The kernel's view of an image, compared with the written tree."""

from __future__ import annotations

import ctypes
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.device.erofsmount import mount_erofs, unmount
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, LinkCounts, Node, walk
from firstread.erofs.validation import validate
from firstread.erofs.writer import write_erofs
from firstread.errors import ImageError
from firstread.testing.mutate import mutate
from firstread.testing.trees import BLOCK, SectorData, feature_tree, small_tree
from firstread.units import MiB

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def tree() -> tuple[Node, SectorData]:
    return feature_tree()


@pytest.fixture(scope="module", params=["devices", "flat"])
def mounted(
    request: pytest.FixtureRequest,
    tree: tuple[Node, SectorData],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[bytes]:
    """The mountpoint of the feature tree, in both forms of an image."""
    root, data = tree
    folder = tmp_path_factory.mktemp(request.param)
    metadata, mountpoint = folder / "metadata", folder / "mnt"
    mountpoint.mkdir()
    sectors: list[Path] = []
    with metadata.open("wb") as out:
        write_erofs(out, root, data.devices, boot=b"not EROFS" * 100, trailer=b"nor this")
        for number, content in enumerate(data.sectors):
            if request.param == "flat":
                out.write(content)
            else:
                sectors.append(folder / str(number))
                sectors[-1].write_bytes(content)
    mount_erofs(metadata, sectors, mountpoint)
    yield os.fsencode(mountpoint)
    unmount(mountpoint)


def path_in(mounted: bytes, path: bytes) -> bytes:
    return mounted + b"/" + path if path else mounted


def test_every_name_is_listed_and_no_other(mounted: bytes, tree: tuple[Node, SectorData]) -> None:
    for path, node in walk(tree[0]):
        if node.children is not None:
            listed = os.listdir(path_in(mounted, path))
            assert len(listed) == len(node.children)
            assert set(listed) == set(node.children), path


def test_lstat_shows_what_was_written(mounted: bytes, tree: tuple[Node, SectorData]) -> None:
    assert_lstat_shows(mounted, tree[0])


def assert_lstat_shows(mounted: bytes, root: Node) -> None:
    links = LinkCounts.of(root)
    for path, node in walk(root):
        seen = os.lstat(path_in(mounted, path))
        expected = (
            *(node.mode, node.uid, node.gid, links[node]),
            *(node.mtime * 10**9 + node.mtime_nsec, os.makedev(*node.rdev)),
        )
        assert (
            *(seen.st_mode, seen.st_uid, seen.st_gid, seen.st_nlink),
            *(seen.st_mtime_ns, seen.st_rdev),
        ) == expected, path
        if node.is_file:
            assert seen.st_size == node.size, path


def test_names_of_one_node_are_one_inode(mounted: bytes, tree: tuple[Node, SectorData]) -> None:
    inodes: dict[int, int] = {}
    for path, node in walk(tree[0]):
        number = os.lstat(path_in(mounted, path)).st_ino
        assert inodes.setdefault(id(node), number) == number, path
    assert len(set(inodes.values())) == len(inodes)


def test_symbolic_links_point_where_they_did(mounted: bytes, tree: tuple[Node, SectorData]) -> None:
    for path, node in walk(tree[0]):
        if node.is_symlink:
            assert os.readlink(path_in(mounted, path)) == node.target, path


def test_xattrs_are_all_there(mounted: bytes, tree: tuple[Node, SectorData]) -> None:
    for path, node in walk(tree[0]):
        full = path_in(mounted, path)
        names = os.listxattr(full, follow_symlinks=False)
        seen = {os.fsencode(name): os.getxattr(full, name, follow_symlinks=False) for name in names}
        assert seen == dict(node.xattrs), path


def chunks_to_read(node: Node) -> list[int]:
    """The chunks of a file that are not holes, and one hole."""
    data = [number for number, address in enumerate(node.chunks) if address != HOLE]
    holes = [number for number, address in enumerate(node.chunks) if address == HOLE]
    return data + holes[:1] + holes[-1:]


def test_content_is_that_of_the_chunks(mounted: bytes, tree: tuple[Node, SectorData]) -> None:
    root, data = tree
    for path, node in walk(root):
        if not node.chunks:
            continue
        with open(path_in(mounted, path), "rb", buffering=0) as file:
            for chunk in chunks_to_read(node):
                expected = data.read(node, chunk)
                start = chunk * node.chunk_size
                assert os.pread(file.fileno(), len(expected), start) == expected, (path, chunk)
            assert os.pread(file.fileno(), 1, node.size) == b"", path


def test_whole_files_read_as_one(mounted: bytes, tree: tuple[Node, SectorData]) -> None:
    root, data = tree
    for path, node in walk(root):
        if node.chunks and node.size <= 2 * MiB:
            whole = b"".join(data.read(node, chunk) for chunk in range(len(node.chunks)))
            with open(path_in(mounted, path), "rb") as file:
                assert file.read() == whole, path


def test_lseek_finds_a_hole(mounted: bytes) -> None:
    with open(mounted + b"/files/holes", "rb", buffering=0) as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 8192
        assert os.lseek(file.fileno(), 8192, os.SEEK_DATA) == 16384


def test_a_mapping_shows_bytes_past_the_end_of_a_file(mounted: bytes) -> None:
    """Other file systems show zeros there, so a packer must pad files in sectors with zeros."""
    with open(mounted + b"/files/1", "rb") as file:
        assert mapped_page(file.fileno())[1:] == b"\xee" * (BLOCK - 1)


def mapped_page(file: int) -> bytes:
    """The first page of `file` in a mapping; Python's `mmap` stops at the size."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(BLOCK), 1, 1, file, ctypes.c_long(0))
    assert address != ctypes.c_void_p(-1).value
    page = ctypes.string_at(address, BLOCK)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(BLOCK))
    return page


def test_kernel_and_reader_agree_on_accepted_images(tmp_path: Path) -> None:
    """The kernel accepts every damaged image that `validate` accepts."""
    root, data = small_tree()
    out = io.BytesIO()
    write_erofs(out, root, data.devices)
    places = [place for place, byte in enumerate(out.getvalue()) if byte]
    sectors = [tmp_path / str(number) for number in range(len(data.sectors))]
    for path, content in zip(sectors, data.sectors, strict=True):
        path.write_bytes(content)
    (tmp_path / "mnt").mkdir()
    rng = random.Random(6)
    accepted = 0
    while accepted < 40:
        damaged = mutate(out.getvalue(), places, rng)
        try:
            validate(ErofsImage(damaged))
        except ImageError:
            continue
        accepted += damaged != out.getvalue()
        (tmp_path / "metadata").write_bytes(damaged)
        mount_erofs(tmp_path / "metadata", sectors, tmp_path / "mnt")
        try:
            assert_all_can_be_read(os.fsencode(tmp_path / "mnt"), read_tree(ErofsImage(damaged)))
        finally:
            unmount(tmp_path / "mnt")


def assert_all_can_be_read(mounted: bytes, root: Node) -> None:
    assert_lstat_shows(mounted, root)
    for path, node in walk(root):
        full = path_in(mounted, path)
        names = os.listxattr(full, follow_symlinks=False)
        assert {os.fsencode(name) for name in names} == set(node.xattrs)
        if node.is_symlink:
            assert os.readlink(full) == node.target
        elif node.is_file:
            with open(full, "rb") as file:
                file.read(MiB)
        elif node.children is not None:
            assert set(os.listdir(full)) == set(node.children)
