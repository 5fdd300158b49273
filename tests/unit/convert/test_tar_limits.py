# SPDX-License-Identifier: Apache-2.0
"""Every limit: what is just allowed, and what is not."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from firstread.convert.stream import Feed
from firstread.convert.tar import TarLimits, TarReader
from firstread.errors import ImageError, LimitError
from firstread.testing.archive import read_archive
from firstread.testing.entries import (
    File,
    Global,
    Hardlink,
    Item,
    Raw,
    Symlink,
    Whiteout,
    encode,
    extended,
    to_tar,
    with_checksum,
)
from firstread.units import KiB, MiB

ALLOWED: dict[str, Item] = {
    "name": File("a/" + "n" * 255),
    "path": File("/".join(["p" * 255] * 16)[:4095]),
    "whiteout": Whiteout("a/" + "n" * 255),
    "path of a whiteout": Whiteout("/".join(["p" * 255] * 15) + "/" + "n" * 255),
    "symlink": Symlink("s", "t" * 4095),
    "xattr name": File("f", xattrs={"user." + "n" * 250: b""}),
    "xattr value": File("f", xattrs={"user.v": bytes(64 * KiB - 1)}),
    "comment": File("f", records=[("comment", "c" * 1_000_000)]),
}
TOO_MUCH: dict[str, Item] = {
    "name": File("a/" + "n" * 256),
    "gnu name": Raw(encode(File("n" * 256), "gnu")),
    "path": File("/".join(["p" * 255] * 17)),
    "whiteout": Whiteout("a/" + "n" * 256),
    "directory like a whiteout": File(".wh." + "n" * 252 + "/a"),
    "path of a whiteout": Whiteout("/".join(["p" * 255] * 16) + "/n"),
    "symlink": Symlink("s", "t" * 4096),
    "hard link": Hardlink("h", "t" * 4096),
    "xattr name": File("f", xattrs={"user." + "n" * 251: b""}),
    "xattr value": File("f", xattrs={"user.v": bytes(64 * KiB)}),
    "xattrs": File("f", xattrs={f"user.{number}": bytes(50 * KiB) for number in range(4)}),
    "pax header": File("f", records=[("comment", "c" * MiB)]),
    "global header": Global([("comment", "c" * MiB)]),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_values_at_the_limit(name: str) -> None:
    assert len(read_archive(to_tar([ALLOWED[name]]))) == 1


@pytest.mark.parametrize("name", TOO_MUCH)
def test_values_beyond_the_limit(name: str) -> None:
    with pytest.raises(LimitError, match=r"tar entry '.*' at byte \d+: "):
        read_archive(to_tar([File("first"), TOO_MUCH[name]]))


def test_too_many_entries() -> None:
    archive = to_tar([File("f")] * 11)
    with pytest.raises(LimitError, match="more than 10 entries"):
        read_archive(archive, limits=TarLimits(entries=10))
    assert len(read_archive(archive, limits=TarLimits(entries=11))) == 11


def test_global_headers_do_not_pile_up() -> None:
    items = [Global([(f"SCHILY.xattr.user.{number}", "v" * 500)]) for number in range(9)]
    with pytest.raises(LimitError, match="global headers"):
        read_archive(to_tar(items))


def test_a_global_header_that_is_replaced_does_not_count_twice() -> None:
    items = [Global([("comment", "c" * 500_000), ("path", "p" * 3_000)])] * 20
    assert read_archive(to_tar(items)) == []


def test_a_header_that_states_more_than_there_is_takes_no_memory() -> None:
    block = bytearray(extended([("path", "x")])[:512])
    for stated in (MiB, 8 * 1024 * MiB - 1):
        block[124:136] = b"%011o\0" % stated
        tracemalloc.start()
        try:
            with pytest.raises(ImageError, match=r"cut off|states"):
                read_archive(with_checksum(bytes(block)) + bytes(100))
            assert tracemalloc.get_traced_memory()[1] < MiB
        finally:
            tracemalloc.stop()


def test_extended_headers_without_end_take_no_memory() -> None:
    header = extended([("comment", "c" * 4000)])

    def chunks() -> Iterator[bytes]:
        for _ in range(5_000):
            yield header

    tracemalloc.start()
    try:
        assert list(TarReader(Feed(chunks()))) == []
        assert tracemalloc.get_traced_memory()[1] < MiB
    finally:
        tracemalloc.stop()
