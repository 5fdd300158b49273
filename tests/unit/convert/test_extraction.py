# SPDX-License-Identifier: Apache-2.0
"""Unpacking a converted image: the tree, sparse files, and directories that cannot hold it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.convert.extraction import LeftOut, extract
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Node, directory
from firstread.errors import ImageError, NodeError, UsageError
from firstread.sectors.content import ContentReader
from firstread.testing.entries import Block, Char, Fifo, Hardlink
from firstread.testing.features import CAPABILITY, feature_tree
from firstread.testing.images import Dir, File, Image, Layer, Sparse, Symlink, feature_image
from firstread.testing.observe import differences, observe
from firstread.testing.packed import MemoryRepository, converted, opened
from firstread.units import MiB

SMALL_IMAGE = Image([Layer([Dir("d/"), File("d/a", b"a" * 100_000), Symlink("l", "d/a")])])


def extracted(image: Image, to: Path, *, privileged: bool = False) -> tuple[int, LeftOut]:
    place, manifest = converted(image)
    block_image = opened(place, manifest)
    content = ContentReader.of(place, block_image)
    return extract(read_tree(block_image.erofs), content, to, privileged=privileged)


def reader(place: MemoryRepository | None = None) -> ContentReader:
    place, manifest = converted(SMALL_IMAGE)
    return ContentReader.of(place, opened(place, manifest))


@pytest.mark.privileged
def test_the_image_with_every_feature(tmp_path: Path) -> None:
    names, left_out = extracted(feature_image(), tmp_path / "root", privileged=True)
    expected = feature_tree()
    assert (names, left_out) == (len(expected), LeftOut())
    found = observe(tmp_path / "root")
    # Times that the file system under the test cannot hold are not this module's.
    lines = [line for line in differences(expected, found) if not line.startswith("b'time/")]
    assert lines == []


RIGHTS = [
    *(File("suid", b"x", mode=0o4755), File("sgid", b"x", mode=0o2755)),
    File("capable", b"x", mode=0o755, xattrs={"security.capability": CAPABILITY, "user.a": b"b"}),
    *(Char("null", 1, 3), Block("disk", 8, 0), Hardlink("nil", "null")),
    *(Dir("shared/", mode=0o3777), Fifo("fifo"), File("sticky", b"x", mode=0o1644)),
]


@pytest.mark.privileged
def test_what_gives_rights_is_left_out_and_counted(tmp_path: Path) -> None:
    names, left_out = extracted(Image([Layer(RIGHTS)]), tmp_path / "root")
    assert (names, left_out) == (7, LeftOut(devices=3, set_ids=2, capabilities=1))
    found = {path.name: path.lstat().st_mode for path in (tmp_path / "root").iterdir()}
    assert {name: oct(stat.S_IMODE(mode)) for name, mode in found.items()} == {
        "suid": "0o755",
        "sgid": "0o755",
        "capable": "0o755",
        "shared": "0o3777",
        "fifo": "0o644",
        "sticky": "0o1644",
    }
    assert os.listxattr(tmp_path / "root/capable") == ["user.a"]


@pytest.mark.privileged
def test_all_of_it_is_made_where_that_is_asked_for(tmp_path: Path) -> None:
    names, left_out = extracted(Image([Layer(RIGHTS)]), tmp_path / "root", privileged=True)
    assert (names, left_out) == (10, LeftOut())
    assert (tmp_path / "root/suid").stat().st_mode & 0o7777 == 0o4755
    assert (tmp_path / "root/nil").stat().st_rdev == os.makedev(1, 3)
    assert "security.capability" in os.listxattr(tmp_path / "root/capable")


@pytest.mark.privileged
def test_another_user_has_no_hand_in_it(tmp_path: Path) -> None:
    """A directory of another user, who could replace its contents by links."""
    place = tmp_path / "theirs/root"
    place.mkdir(parents=True)
    for path in (place.parent, place):
        path.chmod(0o777)
        os.chown(path, 65534, 65534)
    seen = []

    class Watched(ContentReader):
        def data(self, node: Node) -> Iterator[tuple[int, memoryview]]:
            seen.append((place.stat().st_uid, oct(place.stat().st_mode & 0o777)))
            place.rename(place.with_name("away"))
            place.symlink_to("/etc")
            return super().data(node)

    source, manifest = converted(Image([Layer([Dir("./", mode=0o755), File("a", b"a" * 100)])]))
    image = opened(source, manifest)
    extract(read_tree(image.erofs), Watched.of(source, image), place)
    assert seen == [(os.geteuid(), "0o700")]
    assert (place.with_name("away") / "a").read_bytes() == b"a" * 100
    assert place.with_name("away").stat().st_mode & 0o777 == 0o755
    assert not Path("/etc/a").exists()


def test_sparse_files_stay_sparse(tmp_path: Path) -> None:
    size = 1 << 35
    sparse = Sparse("s", size=size, data={1 << 30: b"middle", size - 3: b"end"})
    extracted(Image([Layer([sparse, Sparse("holes", size=1 << 42)])]), tmp_path)
    seen = (tmp_path / "s").stat()
    assert (seen.st_size, seen.st_blocks * 512 < MiB) == (size, True)
    with (tmp_path / "s").open("rb") as file:
        file.seek((1 << 30) - 5)
        assert file.read(20) == bytes(5) + b"middle" + bytes(9)
        file.seek(-6, os.SEEK_END)
        assert file.read() == bytes(3) + b"end"
    assert (tmp_path / "holes").stat().st_size == 1 << 42


def test_each_sector_is_fetched_about_once(tmp_path: Path) -> None:
    files = [File(f"{n % 7}/{n}", b"%d" % n * 500) for n in range(400)]
    place, manifest = converted(Image([Layer(files)]))
    image = opened(place, manifest)
    extract(read_tree(image.erofs), ContentReader.of(place, image), tmp_path)
    assert place.reads[manifest.layers[1].digest] == len(image.index.sectors)
    assert (tmp_path / "3" / "10").read_bytes() == b"10" * 500


def test_a_link_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    depth, rest = divmod(4030, 201)
    deep = "/".join(["d" * 200] * depth + ["e" * rest])
    for entry in (Symlink(f"{deep}/{'n' * 60}", "target"), Dir(f"{deep}/{'n' * 60}")):
        with pytest.raises(NodeError, match=r"cannot write '/.*/n{60}': File name too long"):
            extracted(Image([Layer([entry])]), tmp_path / entry.__class__.__name__)


def test_no_symbolic_link_of_the_image_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    items = [Symlink("way-out", str(outside)), Symlink("owner", "/etc/passwd", uid=5)]
    extracted(Image([Layer(items)]), tmp_path / "root")
    assert os.readlink(tmp_path / "root" / "way-out") == str(outside)
    assert list(outside.iterdir()) == []
    assert outside.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("there", ["file", "full", "below a file"])
def test_where_nothing_can_be_extracted(tmp_path: Path, there: str) -> None:
    (tmp_path / "file").write_text("")
    place = {"file": tmp_path / "file", "full": tmp_path, "below a file": tmp_path / "file" / "x"}
    with pytest.raises(UsageError):
        extracted(SMALL_IMAGE, place[there])


def test_an_empty_directory_will_do(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert extracted(SMALL_IMAGE, tmp_path / "a") == (4, LeftOut())
    assert extracted(SMALL_IMAGE, tmp_path / "b" / "c") == (4, LeftOut())


def test_a_damaged_sector_is_never_written(tmp_path: Path) -> None:
    place, manifest = converted(SMALL_IMAGE)
    image = opened(place, manifest)
    blob = manifest.layers[1].digest
    data = bytearray(place.blobs[blob])
    data[len(data) // 2] ^= 1
    place.blobs[blob] = bytes(data)
    with pytest.raises(ImageError) as caught:
        extract(read_tree(image.erofs), ContentReader.of(place, image), tmp_path)
    assert caught.value.layer == blob
    assert (tmp_path / "d" / "a").read_bytes() == b"a" * 65_536  # the sector before


def test_a_tree_that_this_machine_cannot_hold(tmp_path: Path) -> None:
    deep = directory()
    node = deep
    for _ in range(16):
        parent, node = node, directory()
        parent.children = {b"x" * 255: node}
    with pytest.raises(NodeError, match="File name too long"):
        extract(deep, reader(), tmp_path / ("y" * 255))
    unknown = directory()
    unknown.children = {b"a": Node(stat.S_IFREG | 0o644, xattrs={b"odd.name": b""})}
    said = r"/unknown/a': .* \(attribute odd\.name of 0 bytes\)"
    with pytest.raises(NodeError, match=said):
        extract(unknown, reader(), tmp_path / "unknown")


@pytest.mark.parametrize("seconds", [(1 << 63) - 1, -(1 << 63), 1 << 40, -1])
def test_times_of_any_age(tmp_path: Path, seconds: int) -> None:
    """Either the file system takes the nearest that it has, or the error says why."""
    root = directory()
    root.children = {b"a": Node(stat.S_IFREG | 0o644, mtime=seconds, mtime_nsec=999_999_999)}
    try:
        extract(root, reader(), tmp_path)
    except (ImageError, NodeError):
        assert abs(seconds) > 1 << 50


def test_a_file_larger_than_the_file_system_allows(tmp_path: Path) -> None:
    root = directory()
    size = (1 << 63) - 1
    chunks = (HOLE,) * (1 << 20)
    root.children = {b"a": Node(stat.S_IFREG | 0o644, size=size, chunk_size=1 << 43, chunks=chunks)}
    with pytest.raises(NodeError, match="cannot write"):
        extract(root, reader(), tmp_path)
