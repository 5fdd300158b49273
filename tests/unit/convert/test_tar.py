# SPDX-License-Identifier: Apache-2.0
"""Entries of archives: what the standard library reads, and what it cannot."""

from __future__ import annotations

import io
import struct
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.convert.entry import TarKind
from firstread.convert.stream import Feed
from firstread.convert.tar import TarReader
from firstread.errors import ImageError, UnsupportedError
from firstread.testing.archive import read_archive
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
    Raw,
    Symlink,
    encode,
    extended,
    to_tar,
    with_checksum,
)

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=30)
PATHS = st.lists(NAMES, min_size=1, max_size=12).map("/".join)
TYPES = st.sampled_from([bytes([letter]) for letter in b"0\x001234567"])


@st.composite
def members(draw: st.DrawFn, form: int) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(PATHS))
    info.type = draw(TYPES)
    if info.type == tarfile.AREGTYPE and len(info.name.encode()) > 99:
        info.type = tarfile.REGTYPE  # the standard library looks for a slash in the cut-off name
    content = draw(st.binary(max_size=1500)) if info.isreg() else b""
    info.size = len(content)
    info.linkname = draw(PATHS) if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
    info.mode = draw(st.integers(0, 0o7777))
    info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 0xFFFFF))
    if form == tarfile.USTAR_FORMAT:
        info.uid, info.gid = draw(st.integers(0, 0o7777777)), draw(st.integers(0, 0o7777777))
        info.mtime = draw(st.integers(0, 0o77777777777))
    else:
        info.uid, info.gid = draw(st.integers(0, 2**32 - 2)), draw(st.integers(0, 2**32 - 2))
        info.mtime = draw(st.integers(-(2**40), 2**40))
    if form == tarfile.PAX_FORMAT:
        info.pax_headers = draw(
            st.dictionaries(NAMES.map("SCHILY.xattr.user.{}".format), NAMES, max_size=3)
        )
    return info, content


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info, content in draw(st.lists(members(form), max_size=8)):
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:
                continue  # ustar has no room for it
    return file.getvalue()


@given(archives(), st.integers(1, 5000))
def test_the_standard_library_reads_the_same(archive: bytes, chunk_size: int) -> None:
    ours = read_archive(archive, chunk_size)
    with tarfile.open(fileobj=io.BytesIO(archive)) as theirs:
        for (entry, content), info in zip(ours, theirs, strict=True):
            assert entry.path.decode().rstrip("/") == info.name.rstrip("/")
            assert entry.link.decode() == info.linkname
            assert (entry.mode, entry.uid, entry.gid) == (info.mode, info.uid, info.gid)
            assert entry.mtime == info.mtime
            assert entry.kind.value == {b"\0": b"0", b"7": b"0"}.get(info.type, info.type)
            assert entry.xattrs == {
                key.removeprefix("SCHILY.xattr.").encode(): value.encode()
                for key, value in info.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            if info.isreg():
                file = theirs.extractfile(info)
                assert file is not None
                assert content == file.read()
            if info.isdev() and not info.isfifo():
                assert entry.rdev == (info.devmajor, info.devminor)


def only(*items: Item, form: str = "pax") -> object:
    archive = to_tar(items, form)  # type: ignore[arg-type]
    ((entry, _),) = read_archive(archive)
    return entry


@pytest.mark.parametrize("form", ["pax", "gnu"])
@pytest.mark.parametrize(
    "item",
    [
        File(b"\xff\xfe/" + b"\x80" * 255, uid=4_294_967_294, gid=70_000, mtime=-(2**40)),
        Dir("d" * 200 + "/", mode=0o7777, mtime=2**40),
        Symlink("s", "t/" * 2047 + "t"),
        Hardlink("h", b"\xe9" * 150),
        Char("c", major=4095, minor=1_048_575),
        Block("b", major=259, minor=7),
        Fifo("f"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_stated_values_are_read(item: File, form: str) -> None:
    entry = only(item, form=form)
    for name in ("path", "mode", "uid", "gid", "mtime", "mtime_nsec"):
        stated = getattr(item, name)
        stated = stated.encode() if isinstance(stated, str) else stated
        assert getattr(entry, name) == stated
    target = getattr(item, "target", b"")
    assert entry.link == (target.encode() if isinstance(target, str) else target)  # type: ignore[attr-defined]
    assert entry.rdev == (getattr(item, "major", 0), getattr(item, "minor", 0))  # type: ignore[attr-defined]


@pytest.mark.parametrize("nanoseconds", [-1, -1_500_000_000, -1_000_000_000, 1, 0, 10**18 + 7])
def test_nanoseconds_count_forward(nanoseconds: int) -> None:
    seconds, rest = divmod(nanoseconds, 10**9)
    entry = only(File("f", mtime=seconds, mtime_nsec=rest))
    assert (entry.mtime, entry.mtime_nsec) == (seconds, rest)  # type: ignore[attr-defined]


V7 = with_checksum(encode(File("dir/", mode=0o755, type=b"\0"), "ustar")[:257] + bytes(255))


@pytest.mark.parametrize("kind", [File, Dir, Fifo])
def test_only_devices_have_a_device_number(kind: type[File | Dir | Fifo]) -> None:
    records = [("SCHILY.devmajor", "5000"), ("SCHILY.devminor", "-1")]
    found = read_archive(to_tar([kind("x", records=records), Symlink("s", "x", records=records)]))
    assert [entry.rdev for entry, _ in found] == [(0, 0)] * 2


@pytest.mark.parametrize("kind", [b"0", b"5", b"6", b"3", b"\0"])
def test_only_links_have_a_target(kind: bytes) -> None:
    """Else `verify` misses it in the converted image."""
    records = [("linkpath", "elsewhere")]
    items = [Symlink("x", "target", type=kind), File("x", type=kind, records=records)]
    assert [entry.link for entry, _ in read_archive(to_tar(items))] == [b"", b""]


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        (Raw(V7), TarKind.DIRECTORY),
        (File("f/", type=b"0"), TarKind.REGULAR),
        (File("f", type=b"\0"), TarKind.REGULAR),
        (File("f", b"data", type=b"7"), TarKind.REGULAR),
        (File("f", b"data", type=b"Z"), TarKind.REGULAR),
        (File("f", b"Yname\0", type=b"D"), TarKind.DIRECTORY),
    ],
)
def test_old_and_unknown_types(item: Item, kind: TarKind) -> None:
    (entry, content), (last, _) = read_archive(to_tar([item, File("last")]))
    assert entry.kind is kind
    assert content == (item.content if isinstance(item, File) and item.type != b"D" else b"")
    assert last.path == b"last"


def test_a_cut_off_name_that_ends_in_a_slash_is_no_directory() -> None:
    path = "d" * 99 + "/file"
    forms: tuple[Format, ...] = ("pax", "gnu")
    for form in forms:
        (entry, content), *_ = read_archive(to_tar([File(path, b"x", type=b"\0")], form))
        assert (entry.kind, entry.path, content) == (TarKind.REGULAR, path.encode(), b"x")
        (entry, _), *_ = read_archive(to_tar([File(path + "/", type=b"\0")], form))
        assert entry.kind is TarKind.DIRECTORY


def test_a_volume_label_is_not_an_entry() -> None:
    assert only(File("label", type=b"V"), File("f")).path == b"f"  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [b"M", b"N"])
def test_types_that_cannot_be_read(kind: bytes) -> None:
    with pytest.raises(UnsupportedError, match=r"entry 'f' at byte 512: .*cannot be read"):
        read_archive(to_tar([File("first"), File("f", type=kind)]))


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_types_without_data_may_state_a_size(kind: bytes) -> None:
    block = bytearray(encode(Hardlink("f", "target", type=kind)))
    block[124:136] = b"00000001000\0"
    (entry, _), (last, _) = read_archive(
        to_tar([Raw(with_checksum(bytes(block))), File("last", b"x")])
    )
    assert entry.size == 0
    assert last.path == b"last"


def test_star_has_a_shorter_prefix() -> None:
    block = encode(File("a" * 40 + "/" + "n" * 80), "ustar")
    times = b"00000000000\0" * 2
    star = with_checksum(block[:345] + b"pre".ljust(131, b"\0") + times + bytes(8) + b"tar\0")
    assert only(Raw(star)).path == b"pre/" + block[:100].rstrip(b"\0")  # type: ignore[attr-defined]


def test_gnu_times_are_no_prefix() -> None:
    block = encode(File("name"), "gnu")
    entry = only(Raw(with_checksum(block[:345] + b"00000000001\0" + block[357:])))
    assert entry.path == b"name"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("field", "path"),
    [
        (b"usr/share/doc", b"usr/share/doc/name"),
        (b"usr", b"usr/name"),
        (b"p" * 155, b"p" * 155 + b"/name"),
        (b"00000000001\0usr", b"00000000001/name"),
        (b"00000000001\0" * 2, b"name"),
        (b"usr/\xff", b"name"),
    ],
)
def test_old_docker_wrote_prefixes_into_gnu_headers(field: bytes, path: bytes) -> None:
    """Go's archive/tar before 1.8, if an owner or a size needed base 256."""
    block = encode(File("name", uid=3_000_000_000), "gnu")
    entry = only(Raw(with_checksum(block[:345] + field.ljust(155, b"\0") + block[500:])))
    assert entry.path == path  # type: ignore[attr-defined]


# --- extended headers in sequence


def test_an_extended_header_holds_for_one_entry() -> None:
    items = [File("a", records=[("uid", "5"), ("path", "other")]), File("b")]
    found = [(entry.path, entry.uid) for entry, _ in read_archive(to_tar(items))]
    assert found == [(b"other", 5), (b"b", 0)]


def test_global_headers_add_up_and_are_taken_back() -> None:
    items: list[Item] = [
        Global([("uid", "1"), ("gid", "1"), ("SCHILY.xattr.user.a", "1")]),
        Global([("gid", "2")]),
        File("a"),
        File("b", uid=9, records=[("uid", ""), ("gid", "3"), ("SCHILY.xattr.user.a", "")]),
        Global([("uid", ""), ("gid", ""), ("SCHILY.xattr.user.a", "")]),
        File("c", records=[("SCHILY.xattr.user.a", "")]),
    ]
    found = [(entry.uid, entry.gid, entry.xattrs) for entry, _ in read_archive(to_tar(items))]
    assert found == [(1, 2, {b"user.a": b"1"}), (9, 3, {}), (0, 0, {b"user.a": b""})]


def test_a_solaris_header_is_a_pax_header() -> None:
    entry = only(Raw(extended([("uid", "77")], b"X")), File("f"))
    assert entry.uid == 77  # type: ignore[attr-defined]


def test_a_gnu_name_wins_over_a_pax_path() -> None:
    gnu = encode(File("n" * 120), "gnu")
    entry = only(Raw(extended([("path", "pax"), ("uid", "1")])), Raw(gnu))
    assert (entry.path, entry.uid) == (b"n" * 120, 1)  # type: ignore[attr-defined]


def test_a_header_without_its_entry_is_passed_over() -> None:
    for blocks in (0, 2):
        assert read_archive(to_tar([Raw(extended([("uid", "1")]))], zero_blocks=blocks)) == []


# --- the end


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 20])
def test_an_archive_ends_with_any_number_of_zero_blocks(blocks: int) -> None:
    archive = to_tar([File("f", b"x" * 513)], zero_blocks=blocks)
    assert [entry.path for entry, _ in read_archive(archive)] == [b"f"]


@pytest.mark.parametrize("padding", [0, 1, 510])
def test_padding_at_the_very_end_may_be_missing(padding: int) -> None:
    archive = to_tar([File("f", b"x" * 513)], zero_blocks=0)[: 512 + 513 + padding]
    assert [content for _, content in read_archive(archive)] == [b"x" * 513]


def test_an_empty_layer_has_no_entries() -> None:
    assert read_archive(b"") == []
    assert read_archive(bytes(1024)) == []


def test_a_zero_block_in_the_middle_is_an_error() -> None:
    with pytest.raises(ImageError, match="single block of zeros"):
        read_archive(to_tar([File("a"), Raw(bytes(512)), File("b")]))


def test_what_follows_the_end_is_left_to_the_caller() -> None:
    feed = Feed([to_tar([File("a")]) + b"anything"])
    assert len(list(TarReader(feed))) == 1
    assert not feed.at_end()
    feed.drain()
    assert feed.at_end()


# --- data


def test_data_that_is_not_read_is_passed_over() -> None:
    items = [File(f"f{size}", bytes([size % 251]) * size) for size in (0, 1, 511, 512, 70_000)]
    reader = TarReader(Feed([to_tar(items)]))
    for number, entry in enumerate(reader):
        for _ in reader.data(entry) if number % 2 else ():
            break
    assert number == len(items) - 1


def test_data_belongs_to_the_current_entry_once() -> None:
    reader = TarReader(Feed([to_tar([File("a", b"1"), File("b", b"2")])]))
    entries = iter(reader)
    first = next(entries)
    assert [bytes(piece) for _, piece in reader.data(first)] == [b"1"]
    second = next(entries)
    for stale in (first, first):
        with pytest.raises(ValueError, match="current entry"):
            list(reader.data(stale))
    assert [bytes(piece) for _, piece in reader.data(second)] == [b"2"]
    with pytest.raises(ValueError, match="once"):
        list(reader.data(second))


# --- damage


def header_with(where: slice, value: bytes) -> bytes:
    block = bytearray(encode(File("victim", b"", mode=0o644), "ustar"))
    block[where] = value
    return with_checksum(bytes(block))


@pytest.mark.parametrize(
    "value",
    [b"0000_10\0", b"0o00010\0", b"-000010\0", b"+000010\0", b"0000018\0", b"1\xc2\xb2     "],
)
def test_bad_octal_numbers(value: bytes) -> None:
    with pytest.raises(ImageError, match=r"entry 'victim' at byte 512: .*number"):
        read_archive(to_tar([File("a"), Raw(header_with(slice(108, 116), value))]))


@pytest.mark.parametrize("value", [b"     10\0", b"10 \0junk", b"\x00000010 ", b"10".rjust(8)])
def test_sloppy_octal_numbers(value: bytes) -> None:
    assert only(Raw(header_with(slice(108, 116), value))).uid == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "value",
    [
        b"\xff" * 12,  # -1
        b"\xff" * 4 + struct.pack(">q", -(2**60)),
        b"\x80\0\0\0" + struct.pack(">Q", 2**63),
        b"\xbf" + b"\xff" * 11,
    ],
)
def test_sizes_out_of_range(value: bytes) -> None:
    with pytest.raises(ImageError, match=r"'victim' at byte 0: .*out of range"):
        read_archive(to_tar([Raw(header_with(slice(124, 136), value))]))


@pytest.mark.parametrize(
    ("stated", "owner"),
    [
        ("-1", 0),
        ("4294967295", 0),
        ("-2", 4294967294),
        ("4294967296", 0),
        ("4294967301", 5),
        ("+7", 7),
    ],
)
def test_an_owner_is_that_of_chown(stated: str, owner: int) -> None:
    """It takes 32 bits, and leaves files alone for -1: those of root, who unpacks layers."""
    ((entry, _),) = read_archive(to_tar([File("a", records=[("uid", stated), ("gid", stated)])]))
    assert (entry.uid, entry.gid) == (owner, owner)


def test_a_device_number_is_that_of_mknod() -> None:
    """It takes 12 and 20 bits."""
    ((entry, _),) = read_archive(to_tar([Char("a", major=4096 + 7, minor=2**20 + 9)], "gnu"))
    assert entry.rdev == (7, 9)


CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.mark.parametrize(
    ("value", "is_good"),
    [
        (CAPABILITY, True),
        (b"\0" + CAPABILITY[1:], True),
        (struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, 1000), True),
        (struct.pack("<III", 0x01000001, 1 << 10, 0), False),
        (CAPABILITY + bytes(4), False),
        (CAPABILITY[:-1], False),
        (b"\x02" + CAPABILITY[1:], False),
        (struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, 0xFFFFFFFF), False),
        (b"", False),
    ],
)
def test_capabilities_that_the_kernel_takes(value: bytes, is_good: bool) -> None:
    archive = to_tar([File("a", xattrs={"security.capability": value})])
    if is_good:
        ((entry, _),) = read_archive(archive)
        assert entry.xattrs == {b"security.capability": value}
    else:
        with pytest.raises(ImageError, match=r"attribute security\.capability is"):
            read_archive(archive)


LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, 5) for tag, bits in ((1, 6), (2, 7), (4, 7), (16, 7), (32, 7))
)


def test_a_list_grants_no_more_than_the_mode_beside_it() -> None:
    """Unpacking sets the mode last, which changes the list."""
    item = File("a", mode=0o640, xattrs={"system.posix_acl_access": LIST})
    ((entry, _),) = read_archive(to_tar([item]))
    (value,) = entry.xattrs.values()
    bits = {tag: bits for tag, bits, _ in struct.iter_unpack("<HHI", value[4:])}
    assert bits == {1: 6, 2: 7, 4: 7, 16: 4, 32: 0}


def test_only_a_directory_has_a_default_list() -> None:
    lists = {"system.posix_acl_access": LIST, "system.posix_acl_default": LIST}
    ((entry, _),) = read_archive(to_tar([Symlink("a", "b", xattrs=lists)]))
    assert entry.xattrs == {}
    ((entry, _),) = read_archive(to_tar([Dir("a", xattrs=lists)]))
    assert entry.xattrs[b"system.posix_acl_default"] == LIST
    with pytest.raises(ImageError, match="only a directory"):
        read_archive(to_tar([File("a", xattrs=lists)]))


@pytest.mark.parametrize(
    "record",
    [
        ("uid", "1_0"),
        ("uid", "+-1"),
        ("uid", "9" * 30),
        ("size", "-1"),
        ("size", "9223372036854775808"),
        ("mtime", "1e3"),
        ("mtime", "1.-5"),
        ("mtime", "9223372036854775808"),
        ("mtime", "9" * 5000),
        ("path", "a\0b"),
        ("SCHILY.xattr.", "nameless"),
        ("SCHILY.xattr.user.a\0b", "x"),
        ("LIBARCHIVE.xattr.user.a", "***"),
        ("SCHILY.acl.access", "nonsense"),
    ],
)
def test_bad_records(record: tuple[str, str]) -> None:
    with pytest.raises(ImageError, match=r"'victim' at byte \d+: "):
        read_archive(to_tar([File("victim", records=[record])]))


@pytest.mark.parametrize("item", [Symlink("c", ""), Hardlink("c", "")])
def test_entries_that_cannot_exist(item: Item) -> None:
    with pytest.raises(ImageError, match="'c' at byte"):
        read_archive(to_tar([item]))


def test_a_bad_checksum_names_entry_and_place() -> None:
    archive = bytearray(to_tar([File("a", b"x"), File("b")]))
    archive[1024 + 110] ^= 1
    with pytest.raises(ImageError, match="'b' at byte 1024: the header checksum is wrong"):
        read_archive(bytes(archive))


def test_a_signed_checksum_is_accepted() -> None:
    block = encode(File(b"\xff\xfe"), "ustar")
    signed = sum(struct.unpack("148b8x356b", block)) + 8 * ord(" ")
    archive = block[:148] + b"%06o\0 " % signed + block[156:]
    assert only(Raw(archive)).path == b"\xff\xfe"  # type: ignore[attr-defined]


def test_data_that_is_cut_off_names_its_entry() -> None:
    reader = TarReader(Feed([to_tar([File("a"), File("b", b"x" * 5000)])[:3000]]))
    entries = iter(reader)
    next(entries)
    second = next(entries)
    with pytest.raises(
        ImageError, match="entry 'b' at byte 512: the layer is cut off at byte 3000"
    ):
        list(reader.data(second))


def test_every_truncation_is_an_error_or_ends_after_whole_entries_or_headers() -> None:
    items = [File("a" * 150, b"x" * 700), Symlink("b", "c" * 120), File("d", b"y" * 100)]
    archive = to_tar(items, "pax")
    whole = [entry.path for entry, _ in read_archive(archive)]
    clean = 0
    for length in range(0, len(archive), 19):
        try:
            found = [entry.path for entry, _ in read_archive(archive[:length])]
        except ImageError as exc:
            cut_off = exc.message
            assert "cut off" in cut_off
            continue
        assert found == whole[: len(found)]
        clean += 1
    assert clean <= 80
