# SPDX-License-Identifier: Apache-2.0
"""Mounts that cannot be taken over at once are, as soon as it is possible."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from firstread.errors import FirstreadError, ImageError, NodeError
from firstread.mountinfo import MountLine
from firstread.mounts.orphans import LeftAloneError, Orphans
from firstread.mounts.table import Mount, MountTable
from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import unreadable

DIGEST, OTHER = ("sha256:" + digit * 64 for digit in "01")


class Node:
    """Takes mounts over once nothing is in the way."""

    def __init__(self, root: Path) -> None:
        self.table = MountTable(root)
        self.obstacle: FirstreadError | None = None
        self.taken: list[str] = []
        self.may_pass: list[bool] = []
        self.done, self.again = threading.Event(), threading.Condition()
        self.lock = threading.RLock()
        self.orphans = Orphans(self.table, self.take_over, self.lock, self.changed, 0.01)

    def take_over(self, mount: Mount, _: Mapping[str, MountLine]) -> None:
        if self.obstacle is not None:
            raise self.obstacle
        self.taken.append(mount.mountpoint)

    def changed(self) -> None:
        with self.again:
            self.may_pass.append(self.orphans.may_pass)
            self.again.notify_all()
        if not list(self.orphans) and not self.orphans.claims(DIGEST):
            self.done.set()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    made.table.save(Mount("/mnt/a", "oci:/x:1", DIGEST))
    return made


def test_mounts_are_taken_over_at_once(node: Node) -> None:
    node.orphans.adopt_all()
    assert node.taken == ["/mnt/a"]
    assert node.may_pass == [False]
    node.orphans.refuse("/mnt/a")


def test_an_obstacle_passes(node: Node) -> None:
    node.obstacle = NodeError("Too many open files")
    node.orphans.adopt_all()
    assert node.orphans.may_pass
    assert node.orphans.claims(DIGEST)
    assert not node.orphans.claims(OTHER)
    with pytest.raises(NodeError, match="could not be taken over yet"):
        node.orphans.refuse("/mnt/a")
    node.obstacle = None
    assert node.done.wait(PATIENCE_S)
    assert node.taken == ["/mnt/a"]
    assert not node.orphans.may_pass
    assert not node.orphans.claims(DIGEST)


def test_nobody_waits_for_an_image_that_is_damaged(node: Node) -> None:
    node.obstacle = ImageError("its files are damaged")
    node.orphans.adopt_all()
    assert not node.orphans.may_pass
    assert node.orphans.claims(DIGEST)  # and yet it is tried again: somebody may mend it
    node.obstacle = None
    assert node.done.wait(PATIENCE_S)


def test_a_mount_of_another_device_is_left_alone_and_said_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    record = Mount("/mnt/a", "oci:/x:1", DIGEST)
    node.obstacle = LeftAloneError(record, "it is of the device fanotify", hint="umount /mnt/a")
    node.orphans.adopt_all()
    assert node.orphans.left_alone() == {DIGEST}
    with node.again:
        assert node.again.wait_for(lambda: len(node.may_pass) > 3, PATIENCE_S)
    assert not any(node.may_pass)
    assert node.orphans.claims(DIGEST)
    with pytest.raises(NodeError, match=r"/mnt/a is left alone: it is of the device") as caught:
        node.orphans.refuse("/mnt/a")
    assert caught.value.hint == "umount /mnt/a"
    assert caplog.messages == ["mount /mnt/a is left alone: it is of the device fanotify"]
    gone = record.taken_away()
    with node.lock:
        node.table.save(gone)
        node.obstacle.record = gone
    with node.again:
        assert node.again.wait_for(lambda: list(node.orphans) == [gone], PATIENCE_S)
    assert node.orphans.left_alone() == {DIGEST}
    node.orphans.refuse("/mnt/a")  # its place is free
    node.obstacle = None
    assert node.done.wait(PATIENCE_S)
    assert not node.orphans.left_alone()


def test_while_a_record_cannot_be_read_any_image_may_be_its(node: Node) -> None:
    with unreadable(next(iter(node.table.paths()))):
        node.orphans.adopt_all()
        assert node.orphans.may_pass
        assert node.orphans.claims(OTHER)
    assert node.done.wait(PATIENCE_S)
    assert node.taken == ["/mnt/a"]
