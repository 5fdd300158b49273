# SPDX-License-Identifier: Apache-2.0
"""Messages of /dev/fuse, against bytes as include/uapi/linux/fuse.h lays them out."""

from __future__ import annotations

import struct

import pytest

from firstread.device import fuseprotocol as fuse

OFFERED = 0x73FFFFFB  # flags of Linux 6.18
EXTENDED = 0x1FF << 32


def hello(minor: int, flags: int) -> fuse.Hello:
    body = struct.pack("=5I44x", 7, minor, 131072, flags & 0xFFFFFFFF, flags >> 32)
    return fuse.parse_init(memoryview(body))


def test_a_request_has_its_header() -> None:
    message = struct.pack("=IIQQIIIHH", 48, fuse.READ, 1 << 63 | 6, 9, 1000, 100, 4711, 0, 0)
    assert fuse.parse_request(message) == (fuse.READ, 1 << 63 | 6, 9, 1000, 4711)
    assert fuse.BODY == 40


def test_an_answer_begins_with_its_length() -> None:
    assert fuse.header(7, 100) == struct.pack("=IiQ", 116, 0, 7)
    assert fuse.error(7, 5) == struct.pack("=IiQ", 16, -5, 7)
    assert fuse.resend() == struct.pack("=IiQ", 16, 7, 0)


@pytest.mark.parametrize(("minor", "agreed"), [(31, 31), (38, 38), (45, 45), (60, 45)])
def test_the_lower_version_is_agreed_on(minor: int, agreed: int) -> None:
    answer = fuse.init(hello(minor, OFFERED), 1 << 20)
    assert len(answer) == 64
    major, answered, read_ahead, *_ = struct.unpack_from("=4I", answer)
    assert (major, answered, read_ahead) == (7, agreed, 1 << 20)
    assert struct.unpack_from("=IH", answer, 20)[0] == 4096  # max_write
    assert struct.unpack_from("=H", answer, 28) == (256,)  # max_pages


def test_only_offered_flags_are_asked_for() -> None:
    without = fuse.init(hello(31, OFFERED & ~(1 << 30)), 0)
    assert struct.unpack_from("=I", without, 32) == (0,)
    flags, flags2 = (
        struct.unpack_from("=I", fuse.init(hello(45, OFFERED | EXTENDED), 0), at)[0]
        for at in (12, 32)
    )
    assert flags & ~OFFERED == 0
    assert flags2 == 1 << 7  # FUSE_HAS_RESEND


def test_many_direct_reads_at_a_time_are_asked_for_where_no_process_waits() -> None:
    for many, background in ((False, 64), (True, 4096)):
        answer = fuse.init(hello(45, OFFERED | EXTENDED), 0, many=many)
        (flags,) = struct.unpack_from("=I", answer, 12)
        assert bool(flags & 1 << 15) is many  # FUSE_ASYNC_DIO
        assert struct.unpack_from("=HH", answer, 16) == (background, background * 3 // 4)


@pytest.mark.parametrize(("minor", "flags"), [(30, OFFERED), (31, OFFERED & ~(1 << 24))])
def test_a_kernel_without_what_is_needed_is_too_old(minor: int, flags: int) -> None:
    assert hello(minor, flags).is_too_old()
    assert not hello(31, OFFERED).is_too_old()


def test_bodies_are_cut_as_the_kernel_fills_them() -> None:
    read = struct.pack("=QQIIQII", 3, 4096, 65536, 0, 0, 0, 0)
    assert fuse.parse_read(memoryview(read)) == (4096, 65536)
    seek = struct.pack("=QQII", 3, 5, 4, 0)
    assert fuse.parse_lseek(memoryview(seek)) == (5, 4)
    name = struct.pack("=II", 9, 0) + b"user.x\0"
    assert fuse.parse_size(memoryview(name)) == (9, b"user.x")
    assert fuse.parse_interrupt(memoryview(struct.pack("=Q", 77))) == 77


def test_an_entry_of_a_directory_is_padded() -> None:
    for name in (b"a", b"12345678", b"x" * 255):
        record = fuse.dirent(5, 6, 8, name)
        assert len(record) % 8 == 0
        assert record[:24] == struct.pack("=QQII", 5, 6, len(name), 8)
        assert record[24:].rstrip(b"\0") == name
