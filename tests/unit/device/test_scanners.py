# SPDX-License-Identifier: Apache-2.0
"""What the marks of a group say of its process."""

from __future__ import annotations

import pytest

from firstread.device.scanners import decides

HEAD = b"pos:\t0\nflags:\t02004002\nmnt_id:\t16\nino:\t9\nfanotify flags:39 event-flags:80002\n"
FILE = b"fanotify ino:4f969 sdev:800013 mflags:0 mask:%x ignored_mask:0 fhandle-bytes:8\n"
MOUNT = b"fanotify mnt_id:a mflags:0 mask:%x ignored_mask:0\n"
FILE_SYSTEM = b"fanotify sdev:800013 mflags:0 mask:%x ignored_mask:0\n"
OPEN, ACCESS, PRE_ACCESS, CLOSE = 0x10000, 0x20000, 0x100000, 0x8


@pytest.mark.parametrize(
    ("mark", "mask", "is_scanner"),
    [
        (FILE_SYSTEM, OPEN, True),
        (FILE_SYSTEM, ACCESS, True),
        (MOUNT, ACCESS, True),
        (MOUNT, OPEN | ACCESS, True),
        (FILE, OPEN, True),
        (FILE, OPEN | ACCESS, True),
        (FILE, ACCESS, False),  # a sector file of Linux 6.12
        (FILE, PRE_ACCESS, False),
        (MOUNT, PRE_ACCESS, False),
        (MOUNT, CLOSE, False),
    ],
)
def test_a_group_decides(mark: bytes, mask: int, is_scanner: bool) -> None:
    ours = FILE % ACCESS
    assert decides(HEAD + mark % mask) == is_scanner
    assert decides(HEAD + ours + mark % mask + ours) == is_scanner
    assert not decides(HEAD)
