# SPDX-License-Identifier: Apache-2.0
"""Results of ``firstread doctor``: on this host, on a wrong file system, without privileges."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstread.doctor.finding import Finding
from firstread.doctor.host import check_device
from firstread.mountinfo import filesystem_of
from firstread.sectors.sectorstore import PRE_CONTENT_FILESYSTEMS

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def test_host_that_can_serve_passes_every_check_and_is_left_as_it_was(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("mounts: needs root")
    if filesystem_of(tmp_path) not in PRE_CONTENT_FILESYSTEMS:
        pytest.skip("needs a temporary directory on ext4, xfs or btrfs")
    root = tmp_path / "not" / "there" / "yet"
    checks = check_device(root)
    assert [(check.name, check.ok) for check in checks] == [
        ("fanotify group", True),
        ("events on the sector store", True),
        ("EROFS over sector files", True),
        ("data comes on its first read", True),
        ("missing data is an error", True),
    ]
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in mounts()


def test_file_system_without_events_is_found_with_a_remedy() -> None:
    shared_memory = Path("/dev/shm")
    if os.geteuid() or filesystem_of(shared_memory) != "tmpfs":
        pytest.skip("needs root and a tmpfs")
    before = sorted(shared_memory.iterdir())
    *_, last = check_device(shared_memory)
    assert (last.name, last.ok) == ("events on the sector store", False)
    assert last.fix == "put the sector store on ext4, xfs or btrfs"
    assert sorted(shared_memory.iterdir()) == before


def test_without_privileges_the_first_check_says_so(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("gives root away: needs it")
    tmp_path.chmod(0o777)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        os.chdir("/")
        os.write(sink, repr(check_device(Path("/tmp"))).encode())
        os._exit(0)
    os.close(sink)
    with open(source) as report:
        said = report.read()
    os.waitpid(child, 0)
    expected = Finding(
        "user",
        ok=False,
        detail="user 65534 can make no mounts",
        fix="run it as root, as the daemon",
    )
    assert said == repr([expected])


def test_root_that_cannot_be_written_is_a_failed_check() -> None:
    (check,) = check_device(Path("/proc/self"))
    assert not check.ok
    assert check.name == "write to the root"
