# SPDX-License-Identifier: Apache-2.0
"""The facts about EROFS mounts that firstread/device/erofsmount.py states."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstread.device.erofsmount import mount_erofs, unmount
from firstread.device.fanotify import Group
from firstread.device.holders import holders
from firstread.errors import NodeError
from firstread.mountinfo import filesystem_of
from firstread.sectors.sectorstore import PRE_CONTENT_FILESYSTEMS, SectorStore
from firstread.testing.lazymount import write_metadata

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]

BLOCK = 4096
MANY = 10_000


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A directory with metadata of two sectors, those sectors, and a mount point."""
    if os.geteuid():
        pytest.skip("mounts: needs root")
    if filesystem_of(tmp_path) not in PRE_CONTENT_FILESYSTEMS:
        pytest.skip("needs a temporary directory on ext4, xfs or btrfs")
    write_metadata(tmp_path / "metadata", [b"\0" * 32, b"\1" * 32], BLOCK)
    for number in (0, 1):
        (tmp_path / f"sector{number}").write_bytes(b"%d" % number * BLOCK)
    (tmp_path / "mnt").mkdir()
    return tmp_path


def sectors(scratch: Path) -> list[Path]:
    return [scratch / "sector0", scratch / "sector1"]


@contextmanager
def mounted(scratch: Path, devices: list[Path] | None = None) -> Iterator[Path]:
    mountpoint = scratch / "mnt"
    mount_erofs(scratch / "metadata", sectors(scratch) if devices is None else devices, mountpoint)
    try:
        yield mountpoint
    finally:
        unmount(mountpoint, lazy=True)


def mounts_below(scratch: Path) -> int:
    return Path("/proc/self/mounts").read_text().count(str(scratch))


def test_devices_are_the_sectors_in_slot_order(scratch: Path) -> None:
    with mounted(scratch) as mountpoint:
        assert (mountpoint / "0").read_bytes() == b"0" * BLOCK
        assert (mountpoint / "1").read_bytes() == b"1" * BLOCK
    assert mounts_below(scratch) == 0


def test_without_devices_the_image_is_flat(scratch: Path) -> None:
    with (scratch / "metadata").open("ab") as image:
        for sector in sectors(scratch):
            image.write(sector.read_bytes())
    with mounted(scratch, devices=[]) as mountpoint:
        assert (mountpoint / "1").read_bytes() == b"1" * BLOCK


def test_mount_is_read_only_without_devices_and_setuid(scratch: Path) -> None:
    with mounted(scratch) as mountpoint:
        flags = os.statvfs(mountpoint).f_flag
        assert flags & os.ST_RDONLY
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(mountpoint / "0", os.O_RDONLY | os.O_DIRECT)


def test_setuid_programs_and_device_nodes_work_through_an_overlay(scratch: Path) -> None:
    """The flags of the overlay decide, not those of its lower layer."""
    lower, merged = scratch / "lower", scratch / "merged"
    for directory in (lower, merged, scratch / "upper", scratch / "work"):
        directory.mkdir()
    os.mknod(lower / "null", 0o020666, os.makedev(1, 3))
    program = lower / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    for directory in [scratch, *scratch.parents[:-2]]:
        directory.chmod(0o755)
    run("mount", "--bind", str(lower), str(lower))
    run("mount", "-o", "remount,bind,ro,nosuid,nodev", str(lower))
    layers = f"lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work"
    run("mount", "-t", "overlay", "overlay", "-o", layers, str(merged))
    try:
        whoami = ["setpriv", "--reuid", "1000", "--clear-groups", str(merged / "id"), "-u"]
        assert run(*whoami) == "0\n"
        assert (merged / "null").read_text() == ""
        with pytest.raises(PermissionError):
            (lower / "null").read_text()
    finally:
        run("umount", str(merged))
        run("umount", str(lower))


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("size", [0, BLOCK - 1])
def test_read_behind_the_end_of_a_sector_file_fails(scratch: Path, size: int) -> None:
    os.truncate(scratch / "sector1", size)
    with mounted(scratch) as mountpoint, pytest.raises(OSError, match="Input/output") as caught:
        (mountpoint / "1").read_bytes()
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("metadata", "devices", "mountpoint", "words"),
    [
        ("metadata", ["sector0"], "mnt", r"extra devices don't match \(ondisk 2, given 1\)"),
        ("metadata", ["sector0"] * 3, "mnt", r"extra devices don't match \(ondisk 2, given 3\)"),
        ("sector0", ["sector0"], "mnt", "cannot find valid erofs superblock"),
        ("metadata", ["sector0", "gone"], "mnt", "gone is missing"),
        ("metadata", ["sector0", "sector1"], "gone", "gone is missing"),
        ("gone", [], "mnt", "gone is missing"),
        ("metadata", ["sector0", "sector1"], "sector0", "Invalid argument"),
        ("metadata", ["sector0", "x" * 250], "mnt", "a mount option can have 255 bytes"),
    ],
)
def test_failed_mount_quotes_the_kernel_and_leaves_nothing(
    scratch: Path, metadata: str, devices: list[str], mountpoint: str, words: str
) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NodeError, match=words):
        mount_erofs(scratch / metadata, [scratch / name for name in devices], scratch / mountpoint)
    assert mounts_below(scratch) == 0
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_unknown_option_is_named(scratch: Path) -> None:
    with pytest.raises(NodeError, match="Unknown parameter 'nonsense'"):
        mount_erofs(scratch / "metadata", sectors(scratch), scratch / "mnt", options=["nonsense"])


def test_without_privileges_the_hint_says_so(scratch: Path) -> None:
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            mount_erofs(scratch / "metadata", [], scratch / "mnt")
        except NodeError as exc:
            os._exit(0 if exc.hint == "run as root" else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_unmounting_an_unmounted_path_is_a_node_error(scratch: Path) -> None:
    with pytest.raises(NodeError, match="nothing is mounted there"):
        unmount(scratch / "mnt")


HOLD = {  # Python's mmap keeps its own descriptor
    "cwd": "import os, sys; os.chdir(sys.argv[1])",
    "open": "import os, sys; fd = os.open(sys.argv[1] + '/0', os.O_RDONLY)",
    "mmap": "import mmap, sys; f = open(sys.argv[1] + '/0'); "
    "m = mmap.mmap(f.fileno(), 0, prot=1); f.close()",
}


@pytest.mark.parametrize(
    ("how", "use"),
    [("cwd", "working directory"), ("open", "1 open file"), ("mmap", "1 open file, mapped files")],
)
def test_busy_mount_names_who_holds_it(scratch: Path, how: str, use: str) -> None:
    with mounted(scratch) as mountpoint, holding(HOLD[how], mountpoint) as holder:
        with pytest.raises(NodeError, match=rf"in use by python.* \(pid {holder}: {use}"):
            unmount(mountpoint)
        assert [found.pid for found in holders(mountpoint)] == [holder]


@contextmanager
def holding(code: str, directory: Path) -> Iterator[int]:
    """Run `code` in a child that then stays, and yield its pid."""
    code += "; print('.', flush=True); sys.stdin.read()"
    command = [sys.executable, "-I", "-S", "-c", code, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.stdin.close()


def test_mount_below_keeps_it_busy(scratch: Path) -> None:
    with mounted(scratch) as mountpoint:
        run("mount", "--bind", str(scratch / "sector0"), str(mountpoint / "0"))
        try:
            with pytest.raises(NodeError, match="in use by a mount below it"):
                unmount(mountpoint)
        finally:
            run("umount", str(mountpoint / "0"))
        unmount(mountpoint)
        assert mounts_below(scratch) == 0
        mount_erofs(scratch / "metadata", sectors(scratch), mountpoint)


def test_overlay_on_top_does_not_keep_it_busy_but_keeps_it_alive(scratch: Path) -> None:
    merged = scratch / "merged"
    for directory in (merged, scratch / "upper", scratch / "work"):
        directory.mkdir()
    layers = f"lowerdir={scratch}/mnt,upperdir={scratch}/upper,workdir={scratch}/work"
    with mounted(scratch) as mountpoint:
        run("mount", "-t", "overlay", "overlay", "-o", layers, str(merged))
        try:
            with holding(HOLD["cwd"], merged) as inside:
                assert inside in [found.pid for found in holders(mountpoint)]
            unmount(mountpoint)
            assert (merged / "1").read_bytes() == b"1" * BLOCK
        finally:
            run("umount", str(merged))
            mount_erofs(scratch / "metadata", sectors(scratch), mountpoint)


def test_thousands_of_sectors_need_no_descriptors_of_ours(tmp_path: Path, scratch: Path) -> None:
    ids = [number.to_bytes(2, "big") * 16 for number in range(MANY)]
    write_metadata(scratch / "metadata", ids, BLOCK)
    with SectorStore(tmp_path / "store") as store, Group.open() as group:
        descriptors = len(os.listdir("/proc/self/fd"))
        assert store.ensure(ids) == [0] * MANY
        names = store.names(ids)
        group.mark_names(store.fileno(), names)
        with mounted(scratch, devices=[store.path(sector_id) for sector_id in ids]) as mountpoint:
            group.unmark_names(store.fileno(), names)
            group.unmark_names(store.fileno(), names)  # a second time, which is no error
            assert len(os.listdir("/proc/self/fd")) == descriptors
            store.path(ids[-1]).write_bytes(b"last" * (BLOCK // 4))
            assert (mountpoint / str(MANY - 1)).read_bytes() == b"last" * (BLOCK // 4)


def test_marks_are_refused_where_there_are_no_events() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    with Group.open() as group, pytest.raises(NodeError) as caught:
        group.mark(fd)
    os.close(fd)
    assert caught.value.hint == "put the sector store on ext4, xfs or btrfs"
