# SPDX-License-Identifier: Apache-2.0
"""The requirements of every snapshotter: the cases of containerd's own suite, over gRPC.

A test class derives from `SnapshotterSuite` and gives the fixture ``snapshots``, a client of an
empty snapshotter. The cases are those of core/snapshots/testsuite of containerd 2.4, in its order.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from firstread.snapshotter import containerd_pb2 as api
from firstread.snapshotter.messages import Kind
from firstread.testing.changes import Change, delete, link, make, own, rename, tree, write
from firstread.testing.snapshots import SnapshotsClient, mounted

_numbers = itertools.count()


def refused(code: str) -> pytest.RaisesExc[grpc.RpcError]:
    """Return a context that expects an error of this kind."""
    return pytest.RaisesExc(grpc.RpcError, check=lambda exc: exc.code().name == code)


def build(snapshots: SnapshotsClient, parent: str, changes: Sequence[Change]) -> str:
    """Commit a snapshot with `changes` above `parent`; return its name."""
    name = f"layer-{next(_numbers)}"
    with mounted(snapshots.prepare(f"{name}-prepare", parent)) as root:
        for change in changes:
            change(root)
    snapshots.commit(name, f"{name}-prepare")
    return name


def check_layers(snapshots: SnapshotsClient, flat: Path, *layers: Sequence[Change]) -> None:
    """Commit `layers`; each must look like the same changes made in one directory, `flat`."""
    parent = ""
    flat.mkdir()
    for changes in layers:
        parent = build(snapshots, parent, changes)
        for change in changes:
            change(flat)
        with mounted(snapshots.view(f"{parent}-view", parent)) as root:
            assert tree(root) == tree(flat)
        snapshots.remove(f"{parent}-view")


class SnapshotterSuite:
    """The cases."""

    def test_basic(self, snapshots: SnapshotsClient) -> None:
        with mounted(snapshots.prepare("preparing")) as root:
            for change in (write("foo", "foo\n"), make("a", "a/b", "a/b/c", mode=0o755)):
                change(root)
            first = tree(root)
        snapshots.commit("committed", "preparing")
        info = snapshots.stat("committed")
        assert (info.parent, info.kind) == ("", Kind.COMMITTED)
        with refused("NOT_FOUND"):
            snapshots.stat("preparing")
        with mounted(snapshots.prepare("next", "committed")) as root:
            assert tree(root) == first
            for change in (write("bar", "bar\n"), write("foo", "bar\n"), delete("a/b")):
                change(root)
            second = tree(root)
        active = snapshots.stat("next")
        assert (active.parent, active.kind) == ("committed", Kind.ACTIVE)
        snapshots.commit("committed-next", "next")
        upper = snapshots.stat("committed-next")
        assert (upper.parent, upper.kind) == ("committed", Kind.COMMITTED)
        assert snapshots.walk() == [info, upper]
        with mounted(snapshots.view("view", "committed-next")) as root:
            assert tree(root) == second
        snapshots.remove("view")
        with refused("FAILED_PRECONDITION") as raised:
            snapshots.remove("committed")
        assert "remove" in str(raised.value)
        snapshots.remove("committed-next")
        snapshots.remove("committed")

    def test_stat_active(self, snapshots: SnapshotsClient) -> None:
        with mounted(snapshots.prepare("a")) as root:
            write("foo", "foo\n")(root)
        info = snapshots.stat("a")
        assert (info.name, info.kind, info.parent) == ("a", Kind.ACTIVE, "")

    def test_stat_committed(self, snapshots: SnapshotsClient) -> None:
        name = build(snapshots, "", [write("foo", "foo\n")])
        info = snapshots.stat(name)
        assert (info.name, info.kind, info.parent) == (name, Kind.COMMITTED, "")

    def test_transitivity(self, snapshots: SnapshotsClient) -> None:
        lower = build(snapshots, "", [write("foo", "foo\n")])
        upper = build(snapshots, lower, [write("foo", "foo bar\n")])
        assert snapshots.stat(lower).parent == ""
        assert snapshots.stat(upper).parent == lower
        assert snapshots.stat(snapshots.stat(upper).parent).parent == ""

    def test_prepare_and_view_with_a_taken_key(self, snapshots: SnapshotsClient) -> None:
        parent = build(snapshots, "", [])
        for key, first, again in (
            ("new", snapshots.prepare, snapshots.view),
            ("prepared", snapshots.prepare, snapshots.prepare),
            ("viewed", snapshots.view, snapshots.view),
        ):
            first(key, parent)
            with refused("ALREADY_EXISTS"):
                again(key, parent)

    def test_update(self, snapshots: SnapshotsClient) -> None:
        begin = time.time_ns()
        kinds = self._some(snapshots)
        end = time.time_ns()
        for name, (kind, parent) in kinds.items():
            info = snapshots.stat(name)
            assert begin <= _ns(info.created_at) <= end
            assert info.created_at == info.updated_at
            assert (info.kind, info.parent, info.name) == (kind, parent, name)
            wanted = {"l1": "v1", "l2": "v2", "l3": "v3"}
            before = time.time_ns()
            changed = snapshots.update(api.Info(name=name, parent="doesnotexist", labels=wanted))
            assert before <= _ns(changed.updated_at) <= time.time_ns()
            assert changed.created_at == info.created_at
            assert (changed.kind, changed.parent) == (kind, parent)
            assert changed.labels == wanted
            some = api.Info(name=name, labels={"l1": "updated", "l4": "v4"})
            changed = snapshots.update(some, "labels.l1", "labels.l2")
            assert changed.labels == {"l1": "updated", "l3": "v3"}
            changed = snapshots.update(api.Info(name=name, labels={"l4": "v4"}), "labels")
            assert changed.labels == {"l4": "v4"} == snapshots.stat(name).labels
            with refused("INVALID_ARGUMENT"):
                snapshots.update(api.Info(name=name, parent="doesnotexist"), "parent")
        with refused("NOT_FOUND"):
            snapshots.update(api.Info(name="nobody", labels={"l": "1"}))

    def test_remove(self, snapshots: SnapshotsClient) -> None:
        snapshots.prepare("committed-a")
        snapshots.commit("committed-1", "committed-a")
        snapshots.prepare("reuse-1", "committed-1")
        snapshots.remove("reuse-1")
        snapshots.view("reuse-1", "committed-1")
        snapshots.remove("reuse-1")
        snapshots.prepare("reuse-1")
        snapshots.remove("committed-1")
        snapshots.commit("committed-1", "reuse-1")
        assert [info.name for info in snapshots.walk()] == ["committed-1"]

    def test_walk(self, snapshots: SnapshotsClient) -> None:
        root = {"containerd.io/gc.root": "check-walk"}
        snapshots.prepare("a-np", labels=root)
        snapshots.prepare("p-tmp")
        snapshots.commit("p", "p-tmp", root)
        snapshots.prepare("a", "p", root)
        snapshots.prepare("p-wl-tmp")
        snapshots.commit("p-wl", "p-wl-tmp", {"l": "1", **root})
        snapshots.prepare("a-wl", "p-wl", {"l": "2", **root})
        snapshots.prepare("a-np-wl", labels={"l": "2", **root})
        snapshots.view("v", "p")
        snapshots.view("v-wl", "p-wl")
        for key, labels in (("v", root), ("v-wl", {"l": "3", **root})):
            snapshots.update(api.Info(name=key, labels=labels))
        mark = 'labels."containerd.io/gc.root"==check-walk'
        for filters, matches in (
            ([mark], {"a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"}),
            ([f"kind==active,{mark}"], {"a-np", "a", "a-wl", "a-np-wl"}),
            ([f"kind==view,{mark}"], {"v", "v-wl"}),
            ([f"kind==committed,{mark}"], {"p", "p-wl"}),
            (["name==p", "name==a-np-wl"], {"p", "a-np-wl"}),
            (["name==a-wl,labels.l"], {"a-wl"}),
            (["parent==p"], {"a", "v"}),
            ([f'parent!="",{mark}'], {"a", "v", "a-wl", "v-wl"}),
            (["labels.l"], {"p-wl", "a-wl", "v-wl", "a-np-wl"}),
            (["labels.l==2"], {"a-wl", "a-np-wl"}),
        ):
            assert {info.name for info in snapshots.walk(*filters)} == matches, filters
        with refused("INVALID_ARGUMENT"):
            snapshots.walk("name=p")

    def test_layer_file_update(self, snapshots: SnapshotsClient, tmp_path: Path) -> None:
        check_layers(
            snapshots,
            tmp_path / "flat",
            [make("etc"), write("etc/hosts", "10.0.0.1"), write("etc/profile", "PATH=/usr/bin")],
            [write("etc/hosts", "10.0.0.2"), write("etc/profile", "PATH=/usr/bin", 0o666)],
            [make("root"), write("root/.bashrc", "PATH=/usr/sbin:/usr/bin")],
        )

    def test_remove_directory_in_lower_layer(
        self, snapshots: SnapshotsClient, tmp_path: Path
    ) -> None:
        check_layers(
            snapshots,
            tmp_path / "flat",
            [make("lib"), write("lib/hidden", "")],
            [delete("lib"), make("lib"), write("lib/not-hidden", "")],
            [write("lib/newfile", "")],
        )

    def test_chown(self, snapshots: SnapshotsClient, tmp_path: Path) -> None:
        paths = ("opt", "opt/a", "opt/a/b")
        check_layers(
            snapshots,
            tmp_path / "flat",
            [make(*paths), write("opt/a/b/file.txt", "hello")],
            [own(1, *paths, "opt/a/b/file.txt")],
        )

    def test_directory_permission_on_commit(
        self, snapshots: SnapshotsClient, tmp_path: Path
    ) -> None:
        check_layers(
            snapshots,
            tmp_path / "flat",
            [
                make("dir1", "dir2", "dir3", "dir4", "dir5"),
                write("dir4/f1", "..."),
                write("dir5/f1", "..."),
                own(1, "dir1", "dir2", "dir3", "dir5", "dir5/f1"),
            ],
            [own(0, "dir2"), delete("dir3"), own(1, "dir4", "dir4/f1")],
            [make("dir3"), own(1, "dir3"), delete("dir5"), make("dir5"), own(1, "dir5")],
        )

    def test_remove_intermediate(self, snapshots: SnapshotsClient) -> None:
        base = build(snapshots, "", [write("base", "")])
        middle = build(snapshots, base, [write("middle", "")])
        top = build(snapshots, middle, [write("top", "")])
        snapshots.view("view", top)
        for name in (base, middle, top):
            with refused("FAILED_PRECONDITION"):
                snapshots.remove(name)
        for name in ("view", top, middle, base):
            snapshots.remove(name)
        assert snapshots.walk() == []

    def test_deleted_files_in_child(self, snapshots: SnapshotsClient, tmp_path: Path) -> None:
        check_layers(
            snapshots,
            tmp_path / "flat",
            [write("foo", "foo\n"), make("a", "a/b"), write("a/b/foo", "")],
            [delete("foo", "a/b")],
            [write("baz", "baz\n"), make("c")],
        )

    def test_move_file_from_lower_layer(self, snapshots: SnapshotsClient, tmp_path: Path) -> None:
        check_layers(
            snapshots,
            tmp_path / "flat",
            [make("dir1", "dir2"), write("dir1/f1", "Hello"), write("dir2/f2", "...")],
            [
                make("dir3"),
                write("dir3/f1", "Hello"),
                delete("dir1"),
                link("dir2/f2", "dir3/f2"),
                delete("dir2/f2"),
            ],
        )

    def test_view_is_read_only(self, snapshots: SnapshotsClient) -> None:
        parent = build(snapshots, "", [])
        with mounted(snapshots.view("view", parent)) as root, pytest.raises(OSError, match="ead-"):
            (root / "testfile").write_text("content")

    def test_stat_in_walk(self, snapshots: SnapshotsClient) -> None:
        self._some(snapshots)
        listed = snapshots.walk()
        assert len(listed) == 6
        assert [snapshots.stat(info.name) for info in listed] == listed

    def test_a_second_client(self, snapshots: SnapshotsClient) -> None:
        build(snapshots, "", [])
        snapshots.cleanup()
        snapshots.cleanup()
        assert len(snapshots.walk()) == 1

    def test_root_permission(self, snapshots: SnapshotsClient) -> None:
        with mounted(snapshots.prepare("a")) as root:
            assert stat.S_IMODE(root.stat().st_mode) == 0o755

    def test_rename(self, snapshots: SnapshotsClient, tmp_path: Path) -> None:
        check_layers(
            snapshots,
            tmp_path / "flat",
            [make("dir1", "files"), write("files/f1", "was here"), write("files/f2", "nothing")],
            [
                write("files/f1-overwrite", "new content 1"),
                rename("files/f1-overwrite", "files/f1"),
                rename("files/f2", "files/f3"),
            ],
        )

    def test_128_layers(self, snapshots: SnapshotsClient, tmp_path: Path) -> None:
        parent = build(snapshots, "", [write("bottom", "bottom\n"), make("addhere", "onlyme")])
        for number in range(1, 128):
            changes = [
                write("overwriteme", f"{number} WAS HERE!\n"),
                write(f"addhere/file-{number}", "same\n"),
                delete("onlyme"),
                make("onlyme"),
                write(f"onlyme/file-{number}", "only me!\n"),
            ]
            parent = build(snapshots, parent, changes)
        with mounted(snapshots.view("full", parent)) as root:
            assert sorted(os.listdir(root)) == ["addhere", "bottom", "onlyme", "overwriteme"]
            assert (root / "overwriteme").read_text() == "127 WAS HERE!\n"
            assert len(os.listdir(root / "addhere")) == 127
            assert os.listdir(root / "onlyme") == ["file-127"]

    # containerd relies on these, but its suite does not test them.

    def test_kinds_of_errors(self, snapshots: SnapshotsClient) -> None:
        snapshots.prepare("active")
        committed = build(snapshots, "", [])
        for code, call in (
            ("NOT_FOUND", lambda: snapshots.prepare("x", "nobody")),
            ("INVALID_ARGUMENT", lambda: snapshots.prepare("x", "active")),
            ("INVALID_ARGUMENT", lambda: snapshots.prepare("")),
            ("NOT_FOUND", lambda: snapshots.mounts("nobody")),
            ("FAILED_PRECONDITION", lambda: snapshots.mounts(committed)),
            ("NOT_FOUND", lambda: snapshots.commit("x", "nobody")),
            ("ALREADY_EXISTS", lambda: snapshots.commit(committed, "active")),
            ("FAILED_PRECONDITION", lambda: snapshots.commit("x", committed)),
            ("NOT_FOUND", lambda: snapshots.remove("nobody")),
            ("NOT_FOUND", lambda: snapshots.usage("nobody")),
        ):
            with refused(code):
                call()
        assert [info.name for info in snapshots.walk()] == ["active", committed]

    def test_parent_at_commit(self, snapshots: SnapshotsClient) -> None:
        base, other = build(snapshots, "", [write("base", "")]), build(snapshots, "", [])
        with mounted(snapshots.prepare("late")) as root:
            write("top", "")(root)
        snapshots.commit("rebased", "late", parent=base)
        assert snapshots.stat("rebased").parent == base
        with mounted(snapshots.view("view", "rebased")) as root:
            assert sorted(os.listdir(root)) == ["base", "top"]
        snapshots.prepare("fixed", base)
        with refused("INVALID_ARGUMENT"):
            snapshots.commit("moved", "fixed", parent=other)

    def test_usage(self, snapshots: SnapshotsClient) -> None:
        with mounted(snapshots.prepare("a")) as root:
            (root / "big").write_bytes(b"x" * 1_000_000)
            (root / "again").hardlink_to(root / "big")
            usage = snapshots.usage("a")
            assert (usage.inodes, usage.size >= 1_000_000) == (2, True)
        snapshots.commit("c", "a")
        assert snapshots.usage("c") == usage

    def _some(self, snapshots: SnapshotsClient) -> dict[str, tuple[Kind, str]]:
        """Make snapshots of all kinds; return kind and parent of each."""
        snapshots.prepare("c1-a")
        snapshots.commit("c1", "c1-a")
        snapshots.prepare("c2-a", "c1")
        snapshots.commit("c2", "c2-a")
        snapshots.prepare("a1", "c2")
        snapshots.prepare("a2")
        snapshots.view("v1", "c2")
        snapshots.view("v2")
        return {
            "c1": (Kind.COMMITTED, ""),
            "c2": (Kind.COMMITTED, "c1"),
            "a1": (Kind.ACTIVE, "c2"),
            "a2": (Kind.ACTIVE, ""),
            "v1": (Kind.VIEW, "c2"),
            "v2": (Kind.VIEW, ""),
        }


def _ns(timestamp: Timestamp) -> int:
    return timestamp.seconds * 1_000_000_000 + timestamp.nanos
