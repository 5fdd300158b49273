# SPDX-License-Identifier: Apache-2.0
"""Tar archives of images: other programs read them, and a layer made of one gives the same tree."""

from __future__ import annotations

import io
import subprocess
import tarfile
from functools import cache
from pathlib import Path

import pytest

from firstread.convert.stream import Feed
from firstread.convert.tar import TarReader
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import Node, directory
from firstread.errors import ImageError
from firstread.export.tarexport import write_tar
from firstread.sectors.content import ContentReader
from firstread.testing.features import feature_tree
from firstread.testing.featurestory import content
from firstread.testing.images import (
    Dir,
    File,
    Hardlink,
    Image,
    Layer,
    Sparse,
    Symlink,
    feature_image,
)
from firstread.testing.observe import differences, observe
from firstread.testing.packed import converted, opened

S_IFREG, S_IFSOCK, S_IFLNK = 0o100000, 0o140000, 0o120000


def archive(image: Image) -> tuple[bytes, int, int]:
    place, manifest = converted(image)
    block_image = opened(place, manifest)
    out = io.BytesIO()
    tree = read_tree(block_image.erofs)
    names, sockets = write_tar(tree, ContentReader.of(place, block_image), out)
    return out.getvalue(), names, sockets


@cache
def features() -> tuple[bytes, int, int]:
    return archive(feature_image())


def of_nodes(**nodes: Node) -> bytes:
    """Return the archive of a tree without data."""
    root = directory()
    root.children = {name.encode(): node for name, node in nodes.items()}
    place, manifest = converted(Image([Layer([])]))
    out = io.BytesIO()
    write_tar(root, ContentReader.of(place, opened(place, manifest)), out)
    return out.getvalue()


def test_a_layer_made_of_the_archive_gives_the_same_image() -> None:
    data, names, sockets = features()
    assert (names, sockets) == (len(feature_tree()), 0)
    found = read_tree(opened(*converted(Image([Layer(data)]))).erofs)
    expected = read_tree(opened(*converted(feature_image())).erofs)
    assert _described(found) == _described(expected)


def _described(root: Node) -> dict[bytes, object]:
    from firstread.erofs.tree import LinkCounts, walk

    links = LinkCounts.of(root)
    fields = ("mode", "uid", "gid", "mtime", "mtime_nsec", "rdev", "size", "target", "xattrs")
    return {
        path: (links[node], *(getattr(node, field) for field in fields))
        for path, node in walk(root)
    }


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("program", "ignored"),
    [
        (["tar", "--xattrs", "--xattrs-include=*"], ("b'time/",)),
        # It leaves the top directory alone, and knows access control lists as text only.
        (["bsdtar"], ("b'time/", "b'': mtime", "b'x/acl")),
    ],
    ids=["tar", "bsdtar"],
)
def test_other_programs_unpack_it(
    program: list[str], ignored: tuple[str, ...], tmp_path: Path
) -> None:
    data, _, _ = features()
    root = tmp_path / "root"
    root.mkdir()
    command = [*program, "--numeric-owner", "-xpf", "-", "-C", str(root)]
    subprocess.run(command, input=data, check=True, capture_output=True)
    # Some times are beyond what file systems hold.
    lines = differences(feature_tree(), observe(root))
    assert [line for line in lines if not line.startswith(ignored)] == []


def test_names_come_in_order_and_links_behind_their_names() -> None:
    image = Image([
        Layer([
            File("b", content("b", 100_000)), Dir("d/"), Hardlink("a", "b"), File("d/c", b"c"),
            Sparse("s", size=200_000, data={100_000: b"x"}), Symlink("l", "b"),
        ])
    ])  # fmt: skip
    data, names, _ = archive(image)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert (names, len(members)) == (7, 7)
        assert [m.name for m in members] == [".", "a", "b", "d", "d/c", "l", "s"]
        links = {m.name: m.linkname for m in members if m.islnk()}
        assert links == {"b": "a"}
        assert tar.extractfile("a").read() == content("b", 100_000)  # type: ignore[union-attr]
        sparse = tar.extractfile("s").read()  # type: ignore[union-attr]
        assert sparse == bytes(100_000) + b"x" + bytes(99_999)


@pytest.mark.parametrize(
    ("seconds", "nanoseconds"),
    [(0, 0), (1, 500_000_000), (-1, 0), (-2, 500_000_000), (1 << 40, 1), (-(1 << 40), 999_999_999)],
)
def test_times_are_exact(seconds: int, nanoseconds: int) -> None:
    data = of_nodes(f=Node(S_IFREG | 0o644, mtime=seconds, mtime_nsec=nanoseconds))
    *_, entry = TarReader(Feed([data]))
    assert (entry.mtime, entry.mtime_nsec) == (seconds, nanoseconds)


def test_numbers_and_names_beyond_the_header() -> None:
    path, target = b"n" * 150, b"t" * 4000
    capability = b"\0\0\0\2" + b"\xff" * 16
    xattrs = {b"user.a=b": b"\0=\n", b"user.plain": b"", b"security.capability": capability}
    data = of_nodes(
        **{path.decode(): Node(S_IFREG, uid=3_000_000_000, gid=1 << 21, xattrs=xattrs)},
        link=Node(S_IFLNK | 0o777, target=target),
        device=Node(0o020644, rdev=(4095, 1_048_575)),
    )
    entries = {entry.path: entry for entry in TarReader(Feed([data]))}
    assert (entries[path].uid, entries[path].gid) == (3_000_000_000, 1 << 21)
    assert entries[path].xattrs == xattrs
    assert entries[b"link"].link == target
    assert entries[b"device"].rdev == (4095, 1_048_575)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {m.name for m in tar} == {".", path.decode(), "link", "device"}


def test_a_name_that_is_not_utf8_stays() -> None:
    data = of_nodes()
    assert data[-1024:] == bytes(1024)
    long = b"\xff" * 200
    root = directory()
    root.children = {b"\xff": Node(S_IFREG), long: Node(S_IFREG)}
    place, manifest = converted(Image([Layer([])]))
    out = io.BytesIO()
    write_tar(root, ContentReader.of(place, opened(place, manifest)), out)
    assert [entry.path for entry in TarReader(Feed([out.getvalue()]))][1:] == [b"\xff", long]


def test_sockets_are_left_out_and_counted() -> None:
    root = directory()
    root.children = {b"socket": Node(S_IFSOCK | 0o755), b"file": Node(S_IFREG)}
    place, manifest = converted(Image([Layer([])]))
    out = io.BytesIO()
    content = ContentReader.of(place, opened(place, manifest))
    assert write_tar(root, content, out) == (2, 1)


def test_a_damaged_sector_is_an_error() -> None:
    place, manifest = converted(Image([Layer([File("f", content("f", 300_000))])]))
    image = opened(place, manifest)
    digest = image.blobs[0].digest
    damaged = bytearray(place.blobs[digest])
    damaged[len(damaged) // 2] ^= 1
    place.blobs[digest] = bytes(damaged)
    with pytest.raises(ImageError):
        write_tar(read_tree(image.erofs), ContentReader.of(place, image), io.BytesIO())
