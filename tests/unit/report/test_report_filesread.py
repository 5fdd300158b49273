# SPDX-License-Identifier: Apache-2.0
"""From reads of sectors, and from the kernel's pages, to files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstread.fetch.imagehistory import ReadWaited
from firstread.report.filesread import FilesRead
from firstread.report.startrecord import FileRead
from firstread.sectors.image import BlockImage
from firstread.testing.features import content
from firstread.testing.images import File, Image, Layer
from firstread.testing.packed import SMALL, converted, opened

BLOCK = 4096
FILES = {"a": 3 * BLOCK, "dir/b": BLOCK, "dir/c": 10}


@pytest.fixture(scope="module")
def image() -> BlockImage:
    layer = Layer([File(name, content(name, size)) for name, size in FILES.items()])
    return opened(*converted(Image([layer])))


def unpacked(place: Path) -> Path:
    """Return a directory with the files of the image, none of them in memory."""
    for name, size in FILES.items():
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(name, size))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return place


def read(offset: int, length: int, at: float = 1.0, seconds: float = 0.5) -> ReadWaited:
    return ReadWaited(at, seconds, 0, offset, length)


def test_reads_of_sectors_are_reads_of_files(image: BlockImage) -> None:
    assert len(image.index.sectors) == 1
    assert SMALL.geometry.sector_size >= 5 * BLOCK
    files = FilesRead(image)
    files.note([read(0, BLOCK), read(0, 2 * BLOCK, 2.0), read(3 * BLOCK, 2 * BLOCK, 3.0)])
    rows, more = files.document()
    assert more == 0
    assert rows == [
        FileRead("/a", 2, 2 * BLOCK, 1.0, 1.0, None),
        FileRead("/dir/b", 1, BLOCK, 3.0, 0.25, None),
        FileRead("/dir/c", 1, BLOCK, 3.0, 0.25, None),
    ]


def test_the_kernel_says_what_is_in_memory(image: BlockImage, tmp_path: Path) -> None:
    place = unpacked(tmp_path)
    files = FilesRead(image)
    assert files.look_in_memory(place) == [0]
    (place / "dir/b").read_bytes()
    files.note([read(0, BLOCK)])
    assert files.look_in_memory(place) == [BLOCK]
    rows, _ = files.document()
    assert {row.path: (row.bytes, row.cached) for row in rows} == {
        "/a": (BLOCK, 0),
        "/dir/b": (0, BLOCK),
    }


def test_files_that_cannot_be_opened(image: BlockImage, tmp_path: Path) -> None:
    place = unpacked(tmp_path)
    (place / "a").unlink()
    assert FilesRead(image).look_in_memory(place) == [0]
    (place / "a").symlink_to("/etc/passwd")
    assert FilesRead(image).look_in_memory(place) is None


def test_many_files_are_counted(image: BlockImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.report.filesread.MAX_FILES", 1)
    files = FilesRead(image)
    files.note([read(0, 5 * BLOCK)])
    rows, more = files.document()
    assert [row.path for row in rows] == ["/a"]
    assert more == 2
