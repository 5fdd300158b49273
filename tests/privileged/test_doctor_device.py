# SPDX-License-Identifier: Apache-2.0
"""What ``firstread doctor`` says of devices: on this host, on a wrong file system, without root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstread.daemon.choice import DEVICES
from firstread.device.fanotify import WHOLE_SECTORS
from firstread.device.probe import prove
from firstread.doctor.finding import Finding
from firstread.doctor.trials import Devices, check_devices
from firstread.mountinfo import filesystem_of
from firstread.sectors.sectorstore import PRE_CONTENT_FILESYSTEMS

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]

NAMES = [f"device {kind.name}" for kind in DEVICES]


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    if os.geteuid():
        pytest.skip("mounts: needs root")
    if filesystem_of(tmp_path) not in PRE_CONTENT_FILESYSTEMS:
        pytest.skip("needs a temporary directory on ext4, xfs or btrfs")
    return tmp_path / "not" / "there" / "yet"


def test_host_that_can_serve_passes_every_check_and_is_left_as_it_was(root: Path) -> None:
    found = check_devices(root)
    assert found.works == "fanotify"
    assert [each.name for each in found.findings] == NAMES
    assert all(each.ok for each in found.findings)
    assert "events of ranges, no zeros" in found.findings[0].detail
    (scratch,) = root.parents[2:3]
    assert list(scratch.iterdir()) == []
    assert str(scratch) not in mounts()


def test_a_kernel_whose_events_say_no_range_works(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "events of whole sectors, no zeros" in prove(tmp_path, whole=True)
    monkeypatch.setenv(WHOLE_SECTORS, "1")
    found = check_devices(root)
    assert found.works == "fanotify"
    assert "events of whole sectors, no zeros" in found.findings[0].detail


def test_file_system_without_events_rules_out_fanotify_alone() -> None:
    shared_memory = Path("/dev/shm")
    if os.geteuid() or filesystem_of(shared_memory) != "tmpfs":
        pytest.skip("needs root and a tmpfs")
    before = sorted(shared_memory.iterdir())
    found = check_devices(shared_memory)
    first = found.findings[0]
    assert (first.name, first.status) == ("device fanotify", "warn")
    assert first.fix == "choose a --root on ext4, xfs or btrfs"
    assert first.detail.endswith(f"; so a daemon has {found.works}")
    assert found.works not in (None, "fanotify")
    asked = check_devices(shared_memory, "fanotify")
    assert (asked.works, asked.findings[0].status) == (None, "fail")
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
        os.write(sink, repr(check_devices(Path("/tmp"))).encode())
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
    assert said == repr(Devices(None, [expected]))


def test_root_that_cannot_be_written_is_a_failed_check() -> None:
    found = check_devices(Path("/proc/self"))
    assert found.works is None
    (check,) = found.findings
    assert not check.ok
    assert check.name == "write to the root"
