# SPDX-License-Identifier: Apache-2.0
"""The kernel's list of mounts."""

from __future__ import annotations

import os

import pytest

from firstread.mountinfo import parse_mountinfo, read_mountinfo, unescaped


def test_what_this_process_sees() -> None:
    mounts = {mount.place: mount for mount in read_mountinfo()}
    assert mounts[b"/proc"].kind == b"proc"
    assert mounts[b"/proc"].device == os.stat("/proc").st_dev


@pytest.mark.parametrize(
    ("escaped", "name"),
    [
        (b"\\040\\011\\012\\134", b" \t\n\\"),
        (b"\\134040", b"\\040"),
        (b"a\r\v\f\x1c\x1d\x1e", b"a\r\v\f\x1c\x1d\x1e"),
        ("\x85\u2028".encode(), "\x85\u2028".encode()),
        (b"\xff", b"\xff"),
        (b"-", b"-"),
    ],
)
def test_names_of_mount_points(escaped: bytes, name: bytes) -> None:
    table = b"40 21 8:17 / /m/%b ro shared:1 master:2 - erofs /s/%b ro,x=y\n" % (escaped, escaped)
    (mount,) = parse_mountinfo(table)
    assert (mount.place, mount.source) == (b"/m/" + name, b"/s/" + name)
    assert (mount.number, mount.device, mount.kind) == (40, os.makedev(8, 17), b"erofs")
    assert mount.options == b"ro,x=y"


def test_a_mount_without_a_source() -> None:
    (mount,) = parse_mountinfo(b"40 21 0:17 / /m rw - tmpfs  rw\n")
    assert (mount.kind, mount.source, mount.options) == (b"tmpfs", b"", b"rw")


def test_other_escapes_stay() -> None:
    assert unescaped(rb"a\040b\377c") == b"a b\xffc"
    assert unescaped(rb"\400\777\08 \\1") == rb"\400\777\08 \\1"
