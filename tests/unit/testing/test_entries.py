# SPDX-License-Identifier: Apache-2.0
"""Archives built from descriptions, as the standard library and GNU tar see them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from firstread.testing.entries import (
    Block,
    Char,
    Dir,
    Fifo,
    File,
    Format,
    Global,
    Hardlink,
    Item,
    Opaque,
    Raw,
    Sparse,
    SparseForm,
    Symlink,
    Whiteout,
    to_tar,
)

ITEMS: list[Item] = [
    File("file", b"content", mode=0o4755, uid=5, gid=6, mtime=7),
    Dir("dir", mode=0o1777),
    Symlink("symlink", "file"),
    Hardlink("hardlink", "file"),
    Char("char", major=5, minor=1),
    Block("block", major=8, minor=0),
    Fifo("fifo"),
    Whiteout("a/b"),
    Opaque("a"),
]


def members(archive: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive), errorlevel=2) as file:
        return file.getmembers()


@pytest.mark.parametrize("form", ["pax", "gnu", "ustar"])
def test_the_standard_library_agrees(form: Format) -> None:
    found = members(to_tar(ITEMS, form))
    assert [(info.name, info.type) for info in found] == [
        ("file", b"0"),
        ("dir", b"5"),
        ("symlink", b"2"),
        ("hardlink", b"1"),
        ("char", b"3"),
        ("block", b"4"),
        ("fifo", b"6"),
        ("a/.wh.b", b"0"),
        ("a/.wh..wh..opq", b"0"),
    ]
    first = found[0]
    assert (first.mode, first.uid, first.gid, first.mtime, first.size) == (0o4755, 5, 6, 7, 7)
    assert (found[4].devmajor, found[4].devminor) == (5, 1)


def test_pax_says_what_ustar_has_no_room_for() -> None:
    item = File(
        b"\xff" * 300, uid=2**31, gid=2**22, mtime=-2, mtime_nsec=500_000_000, xattrs={"a": b"\xfe"}
    )
    (info,) = members(to_tar([item]))
    assert info.name == "\udcff" * 300
    assert (info.uid, info.gid, info.mtime) == (2**31, 2**22, -1.5)
    assert info.pax_headers["SCHILY.xattr.a"] == "\udcfe"
    with pytest.raises(ValueError, match="cannot say"):
        to_tar([item], "gnu")


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_gnu_tar_restores_sparse_files(form: SparseForm, tmp_path: Path) -> None:
    items = [
        Sparse(
            "many", 9_000_000, {n * 200_000 + 1: bytes([n + 1]) * 1536 for n in range(40)}, form
        ),
        Sparse("hole", 100_000, {}, form),
        Sparse("to-the-end", 600, {500: b"z" * 100}, form),
    ]
    subprocess.run(["tar", "-xf", "-"], input=to_tar(items), cwd=tmp_path, check=True)
    for item in items:
        assert (tmp_path / str(item.path)).read_bytes() == item.content


def test_raw_and_global_and_the_end() -> None:
    archive = to_tar([Global([("comment", "x")]), Raw(b"r" * 512)], zero_blocks=3)
    assert archive[156:157] == b"g"
    assert archive[1024:] == b"r" * 512 + bytes(3 * 512)


def test_a_type_can_be_forced() -> None:
    assert to_tar([File("f", type=b"Z")])[156:157] == b"Z"


def test_the_same_description_gives_the_same_bytes() -> None:
    assert to_tar(ITEMS) == to_tar(list(ITEMS))
