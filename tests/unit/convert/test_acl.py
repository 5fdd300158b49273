# SPDX-License-Identifier: Apache-2.0
"""Access control lists from text; the bytes were read from an ext4 file with getfattr(1)."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from firstread.convert.acl import ACCESS, AccessList, after_chmod, parse_acl
from firstread.errors import ImageError

VALUE = bytes.fromhex(
    "0200000001000600ffffffff02000700e803000004000400ffffffff08000400"
    "0100000010000700ffffffff20000400ffffffff"
)


@pytest.mark.parametrize(
    "text",
    [
        b"user::rw-,user:1000:rwx,group::r--,group:1:r--,mask::rwx,other::r--",
        b"user::rw-\nuser:1000:rwx\ngroup::r--\ngroup:1:r--\nmask::rwx\nother::r--\n",
        b"user::rw-,group::r--,other::r--,user:ann:rwx:1000,group:daemon:r--:1,mask::rwx",
        b"u::rw-,g::r--,o::r--,g:1:r--,u:1000:rwx,m::rwx#effective:rwx",
        b"default:user::rw-,default:user:1000:rwx,default:group::r--,default:group:1:r--,"
        b"default:mask::rwx,default:other::r--",
    ],
)
def test_all_spellings_give_the_kernels_bytes(text: bytes) -> None:
    assert parse_acl(text).value == VALUE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the mode says the same
        (b"user::rwx,group::r-x,other::r--", AccessList(None, 0o754)),
        # with a list the group's bits are the mask
        (b"user::rw-,user:1000:rwx,group::r--,group:1:r--,mask::rwx,other::r--", 0o674),
        (b"user::rw-,group::rwx,mask::r--,other::---", 0o640),
        # without it, if an id is not known, those of the owning group, and no more than the mask
        (b"user::rw-,user:ann:rw-,group::r--,mask::rw-,other::---", AccessList(None, 0o640, True)),
        (b"user::rw-,group:dev:rw-,group::rwx,mask::rw-,other::---", AccessList(None, 0o660, True)),
        (
            b"user::rw-,user:1:rw-,user:ann:rw-,group::---,mask::rw-,other::r--",
            AccessList(None, 0o604, True),
        ),
    ],
)
def test_the_mode_that_goes_with_it(text: bytes, expected: AccessList | int) -> None:
    found = parse_acl(text)
    assert (found.mode if isinstance(expected, int) else found) == expected
    assert (found.value is not None) == isinstance(expected, int)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"user::rwx",
        b"user::rw-,user:1:rwx,group::r--,other::r--",  # no mask
        b"user::rwx,group::r-x,other::rxw",
        b"user::rwx,group::r-x,other:7:r-x",
        b"user::rwx,group::r-x,other::r-x,user:4294967295:r--,mask::r--",
        b"user::rwx,group::r-x,other::r-x,user:99999999999:r--,mask::r--",
        b"user::rwx,group::r-x,other::r-x,\xff\xfe",
    ],
)
def test_bad_lists(text: bytes) -> None:
    with pytest.raises(ImageError):
        parse_acl(text)


def kernel(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


OWNER, GROUP, OTHER, MASK = (1, 6, 0xFFFFFFFF), (4, 4, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF), (16, 6, 0)
USER = (2, 4, 1000)


@pytest.mark.parametrize(
    ("entries", "mode", "kept"),
    [
        ((), 0o644, None),
        ((OWNER, GROUP, OTHER), 0o777, None),  # the mode is what counts
        ((OWNER, GROUP, MASK, OTHER), 0o664, [6, 4, 6, 4]),
        ((OWNER, USER, GROUP, MASK, OTHER), 0o664, [6, 4, 4, 6, 4]),
        ((OWNER, USER, GROUP, MASK, OTHER), 0o710, [7, 4, 4, 1, 0]),
        ((OWNER, USER, USER, GROUP, (8, 7, 5), MASK, OTHER), 0o000, [0, 4, 4, 4, 7, 0, 0]),
    ],
)
def test_chmod_changes_a_list(
    entries: tuple[tuple[int, int, int], ...], mode: int, kept: list[int] | None
) -> None:
    value = after_chmod(kernel(*entries), mode)
    bits = None if value is None else [bits for _, bits, _ in struct.iter_unpack("<HHI", value[4:])]
    assert bits == kept


def test_an_attribute_without_bytes_is_no_list(tmp_path: Path) -> None:
    """setxattr(2) takes the list away with it, and so containerd unpacks it."""
    assert after_chmod(b"", 0o644) is None
    file = tmp_path / "file"
    file.touch()
    os.setxattr(file, ACCESS, b"")
    assert ACCESS.decode() not in os.listxattr(file)


def test_a_list_of_another_version_is_none() -> None:
    """The kernel says that it does not support it."""
    for version in (1, 3):
        assert after_chmod(kernel(OWNER, USER, GROUP, MASK, OTHER, version=version), 0o644) is None


@pytest.mark.parametrize(
    "value",
    [
        b"\2\0\0",
        kernel(OWNER, GROUP, OTHER)[:-1],
        kernel(OWNER, GROUP),
        kernel(OWNER, OTHER, GROUP),
        kernel(OWNER, OWNER, GROUP, OTHER),
        kernel(OWNER, USER, GROUP, OTHER),  # without a mask
        kernel(OWNER, (2, 4, 0xFFFFFFFF), GROUP, MASK, OTHER),
        kernel((1, 8, 0), GROUP, OTHER),
        kernel(OWNER, GROUP, OTHER, (64, 1, 0)),
        kernel(OWNER, GROUP, MASK, MASK, OTHER),
    ],
)
def test_lists_that_the_kernel_refuses(value: bytes) -> None:
    with pytest.raises(ImageError, match="access control list"):
        after_chmod(value, 0o644)
