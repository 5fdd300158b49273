# SPDX-License-Identifier: Apache-2.0
"""The mount table on disk."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from firstread.device.superblock import FileSystem
from firstread.errors import NodeError
from firstread.mountinfo import parse_mountinfo
from firstread.mounts.table import (
    Mount,
    MountTable,
    device_of,
    erofs_in,
    file_system_of,
    seen_mounts,
    standing,
)
from firstread.registry.access import Access
from firstread.testing.shortage import few_descriptors, unreadable

MOUNT = Mount(
    "/mnt/a b",
    "docker://host.test:5000/x/y:1",
    "sha256:" + "0" * 64,
    Access(plain_http=True, auth_file="/root/auth.json"),
    pinned=True,
    holders=["one", "two"],
)

MOUNTINFO = b"""\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 21 0:50 / /mnt/plain ro,nosuid,nodev - erofs /var/lib/firstread/images/1/metadata ro
41 21 0:51 / /mnt/tab\\011and\\040space\\134 ro - erofs /root\\040dir/metadata ro,user_xattr
42 21 0:52 / /mnt/hidden ro shared:7 master:2 - erofs /hidden ro
43 42 0:53 / /mnt/hidden rw - tmpfs none rw
44 21 0:54 / /mnt/twice ro - erofs /below ro
45 44 0:55 / /mnt/twice ro - erofs /above ro
"""


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    table = MountTable(tmp_path)
    table.save(MOUNT)
    assert MountTable(tmp_path).load() == [MOUNT]
    table.remove(MOUNT)
    table.remove(MOUNT)
    assert table.load() == []


def test_a_record_that_cannot_be_read_now_stays(tmp_path: Path) -> None:
    table = MountTable(tmp_path)
    table.save(MOUNT)
    path = table.path(MOUNT)
    with unreadable(path), pytest.raises(NodeError, match="Input/output error"):
        table.read(path)
    assert table.load() == [MOUNT]


def test_a_record_that_cannot_be_removed_is_an_error_of_the_node(tmp_path: Path) -> None:
    table = MountTable(tmp_path)
    table.path(MOUNT).mkdir()  # as a disk that is read-only
    (table.path(MOUNT) / "file").touch()
    with pytest.raises(NodeError, match="cannot remove the record of a mount"):
        table.remove(MOUNT)


def test_an_unknown_file_system_counts_as_used() -> None:
    system = FileSystem.at(Path("/"))
    other = dataclasses.replace(system, boot_id="another", name="")
    assert not other.lives(unmounted=True)
    with few_descriptors(os.getpid()):
        assert other.lives(unmounted=True)


def test_a_record_replaces_the_one_of_the_same_place(tmp_path: Path) -> None:
    table = MountTable(tmp_path)
    table.save(MOUNT)
    other = Mount("/mnt/a b", "oci:/x:1", MOUNT.digest)
    table.save(other)
    table.save(Mount("/mnt/c", "oci:/x:1", MOUNT.digest))
    assert [mount.image for mount in table.load() if mount.mountpoint == "/mnt/a b"] == ["oci:/x:1"]
    assert len(table.load()) == 2


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_a_torn_record_is_dropped(tmp_path: Path, data: bytes) -> None:
    table = MountTable(tmp_path)
    table.save(MOUNT)
    (tmp_path / "mounts/0.json").write_bytes(data)
    assert table.load() == [MOUNT]
    assert not (tmp_path / "mounts/0.json").exists()


def test_a_record_of_another_version_is_kept(tmp_path: Path) -> None:
    table = MountTable(tmp_path)
    table.save(MOUNT)
    (path,) = (tmp_path / "mounts").iterdir()
    path.write_bytes(path.read_bytes().replace(b"{", b'{"policies":{"":{"require":"colour"}},', 1))
    assert table.load() == []
    assert path.exists()


def test_a_table_that_cannot_be_written(tmp_path: Path) -> None:
    table = MountTable(tmp_path)
    (tmp_path / "mounts").rmdir()
    with pytest.raises(NodeError, match="cannot write the mount table"):
        table.save(MOUNT)


def test_mounts_are_found_where_nothing_hides_them() -> None:
    assert erofs_in(parse_mountinfo(MOUNTINFO)) == {
        "/mnt/plain": "/var/lib/firstread/images/1/metadata",
        "/mnt/tab\tand space\\": "/root dir/metadata",
        "/mnt/twice": "/above",
    }


def test_a_flat_mount_is_one_of_its_metadata() -> None:
    line = b"9 1 7:0 / /mnt/flat rw - erofs /root/images/1/metadata.flat ro\n"
    assert erofs_in(parse_mountinfo(line)) == {"/mnt/flat": "/root/images/1/metadata"}


@pytest.mark.parametrize("odd", ["\v", "\f", "\r", "\x1c", "\x85", "\u2028", "\udcff", " - erofs "])
def test_names_that_users_choose_do_not_end_a_line(odd: str) -> None:
    name = odd.replace(" ", "\\040")
    other = os.fsencode(f"40 21 0:50 / /home/u/a{name}b rw - fuse.x x{name} rw\n")
    expected = erofs_in(parse_mountinfo(MOUNTINFO))
    assert erofs_in(parse_mountinfo(other + MOUNTINFO + other)) == expected


@pytest.mark.parametrize("data", [b"", b"\xff", b'{"mountpoint":"\xed\xa0\x80"}', b"[" * 100_000])
def test_a_damaged_record_is_dropped(tmp_path: Path, data: bytes) -> None:
    table = MountTable(tmp_path)
    table.save(MOUNT)
    (tmp_path / "mounts/x.json").write_bytes(data)
    assert table.load() == [MOUNT]
    assert not (tmp_path / "mounts/x.json").exists()


def test_access_has_the_patience_of_a_lane() -> None:
    options = MOUNT.access.options()
    assert options.plain_http
    assert options.auth_file == Path("/root/auth.json")
    assert options.retries <= 1  # a lane repeats


def test_a_mount_is_known_by_its_name_or_its_place(tmp_path: Path) -> None:
    boot, device = FileSystem.at(Path("/")).boot_id, os.stat("/").st_dev
    standing_root = Mount("/", MOUNT.image, MOUNT.digest)
    number, kind = file_system_of(standing_root, seen_mounts())
    assert number == device
    assert kind
    named = Mount("/gone", "x", "y", file_system=FileSystem(boot, 7, "erofs/n"), detached=True)
    assert file_system_of(named, seen_mounts()) == (7, "erofs")
    assert file_system_of(Mount("/gone", "x", "y"), seen_mounts()) == (0, "")
    table = MountTable(tmp_path)
    for mount in (standing_root, named):
        table.save(mount)
    assert standing(tmp_path) == {kind: "/"}  # the other has ended
    assert standing(tmp_path / "empty") == {}


def test_a_mount_names_its_device(tmp_path: Path) -> None:
    assert device_of(MOUNT, "erofs") == "fanotify"  # no other device made any, without a name
    assert device_of(MOUNT, "fuse") == "fuse"
    flat = Mount("/", MOUNT.image, MOUNT.digest, device="flat")
    assert device_of(flat, "erofs") == "flat"
    MountTable(tmp_path).save(flat)
    assert standing(tmp_path) == {"flat": "/"}


def test_another_file_system_at_the_place_of_a_mount_is_not_that_mount(tmp_path: Path) -> None:
    """Such as after a reboot."""
    here = FileSystem.at(Path("/"))
    table = MountTable(tmp_path)
    for name, device in (("nbd", here.device + 1), ("flat", here.device)):
        known = dataclasses.replace(here, device=device, boot_id="")
        table.save(Mount("/", MOUNT.image, MOUNT.digest, device=name, file_system=known))
        assert standing(tmp_path).keys() == ({"flat"} if name == "flat" else set())
