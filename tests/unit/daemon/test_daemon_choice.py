# SPDX-License-Identifier: Apache-2.0
"""The choice of a device, with devices that work or do not: no kernel is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from firstread.cli import daemon as daemon_command
from firstread.config import DEVICES, Config
from firstread.control.devicestatus import DeviceStatus, PassedOver
from firstread.daemon import choice
from firstread.daemon.choice import Kind, Unheld, choose, chosen
from firstread.errors import NodeError
from firstread.mounts.table import Mount, MountTable


def config(device: str = "auto") -> Config:
    return Config().override("node", device=device)


def kind(name: str, problem: str = "", **more: Any) -> Kind:
    """Return a device that works unless it has a problem."""

    def prove(_: Path) -> str:
        if problem:
            raise NodeError(problem, hint=f"mend {name}")
        return "it works"

    def make(*_: object) -> Any:
        raise AssertionError(name)

    return Kind(name, prove, make, **more)


def use(monkeypatch: pytest.MonkeyPatch, *kinds: Kind) -> None:
    monkeypatch.setattr(choice, "DEVICES", kinds)


def taken(root: Path, device: str = "auto") -> DeviceStatus:
    fd = choose(root, config(device))
    try:
        return chosen(fd)
    finally:
        os.close(fd)


def test_the_names_are_the_same_everywhere() -> None:
    assert tuple(each.name for each in choice.DEVICES) == DEVICES
    (option,) = (p for p in daemon_command.command.params if p.name == "device")
    assert option.type.choices == ("auto", *DEVICES)  # type: ignore[attr-defined]


def test_the_first_that_works_is_chosen_and_why_no_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, kind("a", "no a"), kind("b", "no b"), kind("c"), kind("d", "no d"))
    passed = [PassedOver("a", "no a", "mend a"), PassedOver("b", "no b", "mend b")]
    assert taken(tmp_path) == DeviceStatus("c", passed)


def test_nobody_can_change_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor or an anchor answers events by number, and there are none here."""
    use(monkeypatch, kind("a"))
    fd = choose(tmp_path, config())
    with pytest.raises(PermissionError):
        os.write(fd, b"12345678")
    assert chosen(fd).name == "a"
    os.close(fd)


def test_the_configuration_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, kind("fanotify"), kind("fuse"))
    asked = PassedOver("fanotify", "the configuration asks for fuse", None)
    assert taken(tmp_path, "fuse") == DeviceStatus("fuse", [asked])


def test_no_other_device_takes_the_place_of_the_one_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, kind("fuse", "no module"), kind("other"))
    with pytest.raises(NodeError, match=r"^the device fuse does not work here: no") as error:
        choose(tmp_path, config("fuse"))
    assert error.value.hint == "mend fuse"


def test_if_none_works_each_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, kind("a", "no a"), kind("b", "no b"))
    with pytest.raises(NodeError, match=r"^no device works here: a: no a; b: no b$") as error:
        choose(tmp_path, config())
    assert error.value.hint == "mend a"


def test_a_store_on_another_file_system_rules_out_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, kind("a", filesystems=frozenset({"nofs"})), kind("b"))
    (passed,) = taken(tmp_path).passed_over
    assert passed.device == "a"
    assert "is on " in passed.reason


def test_no_other_device_is_chosen_while_a_mount_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, kind("a", "no a", unheld=Unheld.READABLE), kind("b"))
    table, mount = MountTable(tmp_path), Mount("/", "oci:/x:1", "sha256:0", device="a")
    table.save(mount)
    with pytest.raises(NodeError, match=r"^no a; and the mount at / can be served by a only"):
        choose(tmp_path, config())
    table.remove(mount)
    assert taken(tmp_path).name == "b"
    table.save(Mount("/", "oci:/x:1", "sha256:0", device="b"))
    assert taken(tmp_path).name == "b"


def test_a_standing_mount_keeps_its_device_when_a_better_one_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, kind("a"), kind("b", unheld=Unheld.WAITING), kind("c"))
    table, mount = MountTable(tmp_path), Mount("/", "oci:/x:1", "sha256:0", device="b")
    table.save(mount)
    reason, fix = "the mount at / can be served by b only", "unmount /, and restart the daemon"
    assert taken(tmp_path) == DeviceStatus("b", [PassedOver("a", reason, fix)])
    table.remove(mount)
    assert taken(tmp_path) == DeviceStatus("a", [])


def test_a_mount_whose_device_works_no_more_keeps_no_daemon_from_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it can be read without a daemon, and none can serve it."""
    use(monkeypatch, kind("a"), kind("b", "no b", unheld=Unheld.WAITING))
    MountTable(tmp_path).save(Mount("/", "oci:/x:1", "sha256:0", device="b"))
    assert taken(tmp_path) == DeviceStatus("a", [PassedOver("b", "no b", "mend b")])


def test_a_mount_of_a_device_that_ends_with_its_processes_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, kind("a"), kind("b"))
    MountTable(tmp_path).save(Mount("/", "oci:/x:1", "sha256:0", device="b"))
    assert taken(tmp_path).name == "a"
