# SPDX-License-Identifier: Apache-2.0
"""Sparse files: every encoding, and maps that lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.convert.entry import TarEntry, TarLimits
from firstread.convert.stream import Feed
from firstread.convert.tar import TarReader
from firstread.errors import ImageError, LimitError
from firstread.testing.archive import read_archive
from firstread.testing.entries import (
    File,
    Item,
    Raw,
    Sparse,
    SparseForm,
    encode,
    to_tar,
    with_checksum,
)

FORMS: tuple[SparseForm, ...] = ("gnu", "0.0", "0.1", "1.0")


@st.composite
def sparse_files(draw: st.DrawFn) -> Sparse:
    position = 0
    data = {}
    for gap, length in draw(
        st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 1200)), max_size=60)
    ):
        position += gap
        data[position] = bytes([position % 255 + 1]) * length
        position += length
    size = position + draw(st.integers(0, 5000))
    return Sparse("sparse/file", size, data, draw(st.sampled_from(FORMS)))


@given(sparse_files(), st.integers(1, 3000))
def test_all_encodings_give_the_file(file: Sparse, chunk_size: int) -> None:
    (entry, content), (last, _) = read_archive(to_tar([file, File("last")]), chunk_size)
    assert content == file.content
    assert entry.path == b"sparse/file"
    assert entry.extents == tuple((offset, len(piece)) for offset, piece in file.data.items())
    assert last.path == b"last"


@pytest.mark.parametrize("form", FORMS)
def test_data_comes_with_its_offsets_or_is_passed_over(form: SparseForm) -> None:
    file = Sparse("s", 10_000, {100: b"a" * 700, 9_000: b"b"}, form)
    reader = TarReader(Feed([to_tar([file, file])]))
    entries = iter(reader)
    next(entries)
    found = [(offset, bytes(piece)) for offset, piece in reader.data(next(entries))]
    assert found == list(file.data.items())
    assert list(entries) == []


def test_a_file_of_exabytes_costs_nothing() -> None:
    file = Sparse("s", 2**63 - 1, {2**62: b"x"}, "1.0")
    (entry,) = TarReader(Feed([to_tar([file])]))
    assert (entry.size, entry.extents) == (2**63 - 1, ((2**62, 1),))


def pax(*records: tuple[str, str], stored: bytes = b"") -> Item:
    return File("f", stored, records=[(f"GNU.sparse.{key}", value) for key, value in records])


def lines(text: str, *, size: str = "10", stored: bytes = b"") -> Item:
    block = text.encode().ljust(512, b"\0")
    return pax(("major", "1"), ("minor", "0"), ("realsize", size), stored=block + stored)


def old(
    map_bytes: bytes, stored: bytes = b"", real: bytes = b"00000000012\0", more: int = 0
) -> Item:
    block = encode(Sparse("f", 0, {}, "gnu"))[:512]
    block = block[:124] + b"%011o\0" % len(stored) + block[136:386]
    block += map_bytes.ljust(96, b"\0") + bytes([more]) + real
    return Raw(with_checksum(block.ljust(512, b"\0")) + stored.ljust(512, b"\0"))


OVERLAP = "0,4,3,2"
BAD: dict[str, Item] = {
    "0.1 overlap": pax(("size", "10"), ("map", OVERLAP), stored=b"123456"),
    "0.1 backwards": pax(("size", "10"), ("map", "5,1,0,1"), stored=b"12"),
    "0.1 half a pair": pax(("size", "10"), ("map", "0,1,5"), stored=b"1"),
    "0.1 not a number": pax(("size", "10"), ("map", "0,x"), stored=b"1"),
    "0.1 empty numbers": pax(("size", "10"), ("map", ",,,"), stored=b"1"),
    "0.1 negative": pax(("size", "10"), ("map", "-1,1"), stored=b"1"),
    "0.1 negative length": pax(("size", "10"), ("map", "4,-1,8,2"), stored=b"1"),
    "0.1 beyond the file": pax(("size", "10"), ("map", "9,2"), stored=b"12"),
    "0.1 more than stored": pax(("size", "10"), ("map", "0,3"), stored=b"12"),
    "0.1 less than stored": pax(("size", "10"), ("map", "0,1"), stored=b"12"),
    "0.1 beyond 64 bits": pax(("size", "10"), ("map", "9223372036854775807,2"), stored=b"12"),
    "0.1 bad size": pax(("size", "-10"), ("map", "0,1"), stored=b"1"),
    "0.0 length first": pax(("size", "10"), ("numbytes", "1"), ("offset", "0"), stored=b"1"),
    "0.0 length missing": pax(("size", "10"), ("offset", "0"), stored=b"1"),
    "0.0 smuggled pair": pax(("size", "9"), ("offset", "0,1,2"), ("numbytes", "1"), stored=b"12"),
    "1.0 overlap": lines("2\n0\n4\n3\n2\n", stored=b"123456"),
    "1.0 without end": lines("9\n0\n4\n"),
    "1.0 not a number": lines("one\n0\n4\n"),
    "1.0 negative count": lines("-1\n"),
    "1.0 empty lines": lines("1\n\n\n"),
    "1.0 no map": pax(("major", "1"), ("minor", "0"), ("realsize", "10")),
    "1.0 huge count": lines("9" * 19 + "\n"),
    "old overlap": old(b"00000000000\00000000000400000000003\000000000002\0", b"123456"),
    "old not a number": old(b"0000000000x\000000000001\0", b"1"),
    "old negative": old(b"\xff" * 12 + b"00000000001\0", b"1"),
    "old bad real size": old(b"00000000000\000000000001\0", b"1", real=b"\xff" * 12),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_maps_that_lie(name: str) -> None:
    with pytest.raises(ImageError, match=r"tar entry '(f|PaxHeaders/entry)' at byte \d+: "):
        read_archive(to_tar([File("first"), BAD[name], File("last")]))


def test_a_map_cut_off_in_its_extension_block() -> None:
    archive = to_tar([Sparse("f", 10**6, {n * 1000: b"x" for n in range(30)}, "gnu")])
    with pytest.raises(ImageError, match="cut off at byte 700"):
        read_archive(archive[:700])


@pytest.mark.parametrize("form", FORMS)
def test_too_many_extents(form: SparseForm) -> None:
    file = Sparse("f", 10**6, {number * 1000: b"x" for number in range(101)}, form)
    with pytest.raises(LimitError, match=r"'f' at byte .* more than 100 extents"):
        read_archive(to_tar([file]), limits=TarLimits(extents=100))


def test_extension_blocks_without_end_are_bounded() -> None:
    pairs = b"".join(b"%011o\0%011o\0" % (n, 0) for n in range(21))
    endless = old(b"", more=1)
    assert isinstance(endless, Raw)
    with pytest.raises(LimitError, match="extents"):
        read_archive(endless.data[:512] + (pairs + b"\1" + bytes(7)) * 20_000)


def test_a_map_that_ends_after_its_block_is_bounded() -> None:
    item = pax(("major", "1"), ("minor", "0"), ("realsize", "9"), stored=b"9\n" + b"1" * (2 << 20))
    with pytest.raises(ImageError, match="does not end within 1048576 bytes"):
        read_archive(to_tar([item]))


def test_sparse_records_of_another_version_do_not_count() -> None:
    """Neither do they for Go's archive/tar."""
    item = pax(("major", "2"), ("minor", "0"), stored=b"as it is")
    ((entry, content),) = read_archive(to_tar([item]))
    assert (entry.extents, content) == (None, b"as it is")


def entry_of(item: Item) -> TarEntry:
    ((entry, _),) = read_archive(to_tar([item]))
    return entry


def test_empty_extents_are_left_out() -> None:
    item = pax(("size", "10"), ("map", "0,0,2,2,4,0,10,0"), stored=b"12")
    assert entry_of(item).extents == ((2, 2),)
