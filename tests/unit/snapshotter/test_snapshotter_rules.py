# SPDX-License-Identifier: Apache-2.0
"""The rules of lazy snapshots, with images that are directories and no kernel."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from firstread.errors import BusyError, DerivedImageError, FirstreadError, TransportError
from firstread.sectors.format import LAYER_LABEL
from firstread.snapshotter.asked import (
    GID_MAPPING,
    IMAGE,
    LAYERS,
    MANIFEST,
    TARGET,
    UID_MAPPING,
    Named,
)
from firstread.snapshotter.caller import Caller, serving
from firstread.snapshotter.directories import Directories
from firstread.snapshotter.messages import Kind, Mount
from firstread.snapshotter.nodepolicy import Policy
from firstread.snapshotter.ordinary import Unpack
from firstread.snapshotter.records import Records
from firstread.snapshotter.refusal import Refusal, RefusalError
from firstread.snapshotter.snapshots import Snapshotter
from firstread.testing.patience import PATIENCE_S

ONE, TWO, OTHER = (f"sha256:{number:064x}" for number in (1, 2, 3))
PINNED = f"docker://example.com/app@{ONE}"
CONVERSION = f"docker://example.com/app@{OTHER}"


class DirectoryImages:
    """Lazy images for tests: a directory each, and who holds it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.pulled: list[str] = []
        self.dropped: list[str] = []
        self.holders: dict[int, str] = {}
        self.error: FirstreadError | None = None
        self.meanwhile: Callable[[], object] = lambda: None

    def pull(self, reference: str) -> str:
        self._check()
        self.pulled.append(reference)
        return reference.rpartition("@")[2]

    def usage(self, reference: str) -> tuple[int, int]:
        return len(reference), 3

    def mount(self, reference: str, snapshot: int) -> Path:
        self._check()
        self.holders[snapshot] = reference
        return self.place

    def release(self, snapshot: int) -> None:
        self._check()
        self.holders.pop(snapshot, None)

    def drop(self, references: Collection[str]) -> None:
        self._check()
        self.dropped += references

    def held(self) -> set[int]:
        self._check()
        self.meanwhile()
        return set(self.holders)

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


class Node:
    """A snapshotter, and what it is made of."""

    def __init__(
        self,
        scratch: Path,
        policy: Policy = Policy(),  # noqa: B008
        unpack: Unpack | None = None,
    ) -> None:
        self.images = DirectoryImages(scratch / "lazy")
        self.images.place.mkdir()
        self.conversions: dict[str, str] = {}
        self.derived: set[str] = set()
        self.known: dict[tuple[str, str], Named] = {}
        self.directory = scratch / "snapshots"
        self.store = Records(scratch / "records.db")
        self.directories = Directories(self.directory)
        self.snapshots = Snapshotter(
            self.store,
            self.directories,
            self.images,
            policy,
            self._attached,
            find_image=lambda namespace, chain: self.known.get((namespace, chain)),
            unpack=unpack,
        )

    def _attached(self, image: str, manifest: str) -> str | None:
        if manifest in self.derived:
            raise DerivedImageError("it was built FROM a converted image")
        return self.conversions.get(manifest)

    def prepare(self, target: str, parent: str, labels: dict[str, str]) -> str:
        """Prepare a layer as a client does; return its name if it is lazy, else empty."""
        try:
            self.snapshots.prepare(f"extract-1 {target}", parent, {TARGET: target, **labels})
        except RefusalError as exc:
            if exc.kind is not Refusal.ALREADY_EXISTS:
                raise
            (found,) = self.snapshots.walk([f'labels."{TARGET}"=={target},parent=="{parent}"'])
            return found.name
        return ""

    def unpack(self, target: str, parent: str, labels: dict[str, str]) -> str:
        """Unpack a layer as a client does."""
        assert self.prepare(target, parent, labels) == ""
        self.snapshots.commit(f"k8s.io/1/{target}", f"extract-1 {target}", "", {TARGET: target})
        return f"k8s.io/1/{target}"


def layer(*, last: bool, manifest: str = ONE, converted: bool = False) -> dict[str, str]:
    """Return the labels of a layer."""
    labels = {IMAGE: "example.com/app:v1", MANIFEST: manifest, LAYERS: "a" if last else "a,b"}
    return {**labels, LAYER_LABEL: "sectors"} if converted else labels


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.store.close()


def options(mounts: list[Mount]) -> dict[str, str]:
    return dict(option.split("=", 1) for option in mounts[0].options if "=" in option)


def test_a_converted_image(node: Node) -> None:
    first = node.prepare("c1", "", layer(last=False, converted=True))
    second = node.prepare("c2", first, layer(last=True, converted=True))
    assert (first, second) == ("c1", "c2")
    assert node.images.pulled == [PINNED]  # once for all layers
    assert os.listdir(node.directory) == []
    mounts = node.snapshots.prepare("container", second, {})
    assert mounts[0].type == "overlay"
    assert options(mounts)["lowerdir"] == str(node.images.place)
    assert node.snapshots.mounts("container") == mounts
    assert node.snapshots.view("view", second, {})[0] == Mount(
        "bind", str(node.images.place), options=["ro", "rbind"]
    )
    assert set(node.images.holders.values()) == {PINNED}
    node.snapshots.remove("container")
    node.snapshots.remove("view")
    assert node.images.holders == {}


def test_the_same_layer_again(node: Node) -> None:
    labels = layer(last=True, converted=True)
    assert node.prepare("c1", "", labels) == node.prepare("c1", "", labels) == "c1"
    assert len(node.snapshots.walk([])) == 1


def test_the_same_layer_on_another_parent(node: Node) -> None:
    """Another namespace can have the parent under another name."""
    parent = node.unpack("c1", "", {})
    assert node.prepare("c2", "", layer(last=True, converted=True)) == "c2"
    assert node.prepare("c2", parent, layer(last=True, converted=True)) not in ("", "c2")


def test_a_converted_layer_without_a_name(node: Node) -> None:
    with pytest.raises(RefusalError, match="does not say which image") as raised:
        node.prepare("c1", "", {LAYER_LABEL: "metadata"})
    assert raised.value.kind is Refusal.FAILED_PRECONDITION
    assert "if it unpacks an archive" in (raised.value.hint or "")


def test_a_registry_that_is_down(node: Node) -> None:
    node.images.error = TransportError("the registry is down")
    with pytest.raises(TransportError):
        node.prepare("c1", "", layer(last=True, converted=True))
    assert node.snapshots.walk([]) == []
    assert os.listdir(node.directory) == []


def test_a_mount_that_fails_leaves_nothing(node: Node) -> None:
    top = node.prepare("c1", "", layer(last=True, converted=True))
    node.images.error = TransportError("the registry is down")
    with pytest.raises(TransportError):
        node.snapshots.prepare("container", top, {})
    assert [record.name for record in node.snapshots.walk([])] == ["c1"]
    assert os.listdir(node.directory) == []


def test_what_could_not_be_released_is_released_later(node: Node) -> None:
    top = node.prepare("c1", "", layer(last=True, converted=True))
    node.snapshots.prepare("container", top, {})
    node.images.error = TransportError("the registry is down")
    node.snapshots.remove("container")
    node.images.error = None
    assert len(node.images.holders) == 1
    node.snapshots.cleanup()
    assert node.images.holders == {}


def test_an_image_is_released_whose_snapshots_go_at_the_same_time(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = node.prepare("c1", "", layer(last=True, converted=True))
    node.snapshots.prepare("container", top, {})
    remove = node.directories.remove

    def remove_both(number: int) -> None:
        remove(number)
        monkeypatch.undo()
        node.snapshots.remove(top)  # as another thread can do just now

    monkeypatch.setattr(node.directories, "remove", remove_both)
    node.snapshots.remove("container")
    assert node.images.holders == {}


def test_an_image_that_could_not_be_dropped_is_dropped_later(node: Node) -> None:
    node.snapshots.remove(node.prepare("c1", "", layer(last=True, converted=True)))
    node.images.meanwhile = lambda: setattr(node.images, "error", TransportError("it hung up"))
    with pytest.raises(TransportError):
        node.snapshots.cleanup()
    node.images.error, node.images.meanwhile = None, lambda: None
    node.snapshots.cleanup()
    assert node.images.dropped == [PINNED]


def test_an_image_is_dropped_when_its_last_snapshot_is_gone(node: Node) -> None:
    first = node.prepare("c1", "", layer(last=False, converted=True))
    second = node.prepare("c2", first, layer(last=True, converted=True))
    node.snapshots.remove(second)
    node.snapshots.cleanup()
    assert node.images.dropped == []
    node.snapshots.remove(first)
    assert node.images.dropped == []  # containerd has locked all snapshots
    node.snapshots.cleanup()
    node.snapshots.cleanup()
    assert node.images.dropped == [PINNED]


def test_an_attached_conversion(node: Node) -> None:
    node.conversions[ONE] = CONVERSION
    first = node.prepare("c1", "", layer(last=False))
    node.conversions.clear()  # what was begun goes on
    second = node.prepare("c2", first, layer(last=True))
    assert node.images.pulled == [CONVERSION]
    node.snapshots.prepare("container", second, {})
    assert list(node.images.holders.values()) == [CONVERSION]


def test_an_image_on_top_of_an_attached_one(node: Node) -> None:
    node.conversions[ONE] = CONVERSION
    base = node.prepare("c1", "", layer(last=True))
    upper = node.unpack("c2", base, layer(last=True, manifest=TWO))
    lower = options(node.snapshots.prepare("container", upper, {}))["lowerdir"]
    layers = [str(node.directories.upper(node.snapshots.stat(upper).id)), str(node.images.place)]
    assert lower == ":".join(layers)


def test_some_layers_of_an_attached_image_are_not_a_parent(node: Node) -> None:
    node.conversions[ONE] = CONVERSION
    base = node.prepare("c1", "", layer(last=False))
    with pytest.raises(RefusalError, match="only as a part") as raised:
        node.prepare("c2", base, layer(last=True, manifest=TWO))
    assert raised.value.kind is Refusal.FAILED_PRECONDITION
    assert [record.name for record in node.snapshots.walk([])] == ["c1"]
    node.conversions[TWO] = CONVERSION.replace(
        OTHER, TWO
    )  # with a conversion of its own it is fine
    assert node.prepare("c2", base, layer(last=True, manifest=TWO)) == "c2"


def test_mounts_of_an_image_whose_layers_become_ordinary_are_given_back(tmp_path: Path) -> None:
    unpacked = []
    node = Node(tmp_path, unpack=lambda _, labels, *more: unpacked.append(labels[TARGET]))
    node.conversions |= {ONE: CONVERSION, TWO: CONVERSION.replace(OTHER, TWO)}
    whole = node.prepare("c1", "", layer(last=True))
    part = node.prepare("c2", whole, layer(last=False, manifest=TWO))
    node.snapshots.prepare("before", whole, {})
    before = dict(node.images.holders)
    lower = options(node.snapshots.prepare("container", part, {}))["lowerdir"]
    assert unpacked == ["c1", "c2"]
    assert lower == ":".join(
        str(node.directories.upper(node.snapshots.stat(name).id)) for name in (part, whole)
    )
    assert (node.images.holders, list(before.values())) == (before, [CONVERSION])
    node.snapshots.remove("container")
    node.snapshots.remove("before")
    assert node.images.holders == {}
    node.store.close()


def test_a_layer_that_takes_for_ever_holds_up_no_other_and_goes_on_for_who_comes_again(
    tmp_path: Path,
) -> None:
    hanging, unpacked = threading.Event(), []

    def unpack(namespace: str, labels: Mapping[str, str], *_: object) -> None:
        unpacked.append(labels[TARGET])
        if labels[TARGET] == "slow":
            assert hanging.wait(PATIENCE_S)

    node = Node(tmp_path, unpack=unpack)
    node.conversions[ONE] = CONVERSION
    slow = node.prepare("slow", "", layer(last=False))
    quick = node.prepare("quick", "", layer(last=False))
    caller = Caller()

    def leave_soon() -> None:
        with serving(caller), pytest.raises(RefusalError, match="has gone"):
            node.snapshots.prepare("first", slow, {})

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(leave_soon)
        node.snapshots.prepare("other", quick, {})
        caller.leave()
        first.result(PATIENCE_S)
        again = pool.submit(node.snapshots.prepare, "again", slow, {})
        hanging.set()
        assert again.result(PATIENCE_S)
    assert sorted(unpacked) == ["quick", "slow"]
    assert [record.name for record in node.snapshots.walk(["kind==active"])] == ["other", "again"]
    node.store.close()


def test_a_node_that_is_busy_makes_no_lazy_image_an_ordinary_one(node: Node) -> None:
    node.conversions[ONE] = CONVERSION
    node.images.error = BusyError("too many wait")
    with pytest.raises(BusyError):
        node.prepare("c1", "", layer(last=True))
    assert node.snapshots.walk([]) == []


def test_ordinary_images_need_no_daemon(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    top = node.unpack("c1", "", {})
    node.images.error = TransportError("the registry is down")
    caplog.clear()
    node.snapshots.prepare("container", top, {})
    node.snapshots.remove("container")
    assert caplog.messages == []


def test_a_conversion_that_cannot_be_had(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.conversions[ONE] = CONVERSION
    node.images.error = TransportError("the registry is down")
    assert node.prepare("c1", "", layer(last=False)) == ""
    assert node.prepare("c2", "", layer(last=True)) == ""
    (line,) = caplog.messages
    assert line == (
        "example.com/app:v1 is not lazy: its conversion cannot be had: the registry is down"
    )
    assert node.snapshots.fallbacks.ordinary_pulls["failed"] == 1


@pytest.mark.parametrize("converted", [True, False])
def test_the_snapshots_of_a_lazy_image_add_up_to_what_it_takes(node: Node, converted: bool) -> None:
    node.conversions[ONE] = CONVERSION
    first = node.prepare("c1", "", layer(last=False, converted=converted))
    second = node.prepare("c2", first, layer(last=True, converted=converted))
    image = f"docker://example.com/app@{ONE if converted else OTHER}"
    taken = [node.snapshots.usage(name) for name in (first, second)]
    assert sorted(taken) == [(0, 0), node.images.usage(image)]


@pytest.mark.parametrize("labels", [layer(last=True), {}])
def test_ordinary_images_are_refused(tmp_path: Path, labels: dict[str, str]) -> None:
    node = Node(tmp_path, Policy(require_lazy=True))
    with pytest.raises(RefusalError, match=r"is not lazy: .*require_lazy") as raised:
        node.prepare("c1", "", labels)
    assert raised.value.kind is Refusal.FAILED_PRECONDITION
    with pytest.raises(RefusalError, match="require_lazy"):  # a client without labels
        node.snapshots.prepare("k8s.io/7/extract-123-x sha256:1", "", {})
    node.snapshots.prepare("k8s.io/8/container", "", {})  # not a layer
    node.store.close()


def test_an_excepted_image(tmp_path: Path) -> None:
    node = Node(tmp_path, Policy(require_lazy=True, excepted=("*/app:*",)))
    assert node.prepare("c1", "", layer(last=True)) == ""
    node.store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_owners_of_the_root(tmp_path: Path) -> None:
    node = Node(tmp_path, Policy(remap_ids=True))
    os.chown(node.images.place, 5, 6)
    top = node.prepare("c1", "", layer(last=True, converted=True))
    mapped = {UID_MAPPING: "0:1000:10", GID_MAPPING: "0:2000:10"}
    for key, labels, owner in (("a", {}, (5, 6)), ("b", mapped, (1000, 2000))):
        mounts = node.snapshots.prepare(key, top, labels)
        status = os.stat(options(mounts)["upperdir"])
        assert (status.st_uid, status.st_gid) == owner
    assert mounts[0].options[:2] == ["uidmap=0:1000:10", "gidmap=0:2000:10"]
    with pytest.raises(RefusalError, match="id mapping") as raised:
        node.snapshots.prepare("c", top, {UID_MAPPING: "1:1000:10", GID_MAPPING: "x"})
    assert raised.value.kind is Refusal.INVALID_ARGUMENT
    assert node.snapshots.stat(top).kind is Kind.COMMITTED
    node.store.close()


def test_a_layer_of_an_image_that_is_not_named(node: Node) -> None:
    labels = {TARGET: "c1", LAYER_LABEL: "metadata"}
    with pytest.raises(RefusalError, match="does not say which image"):
        node.snapshots.prepare("default/7/extract-1 c1", "", labels)
    node.known["default", "c1"] = Named("example.com/app", ONE, TWO, converted=True, last=False)
    with pytest.raises(RefusalError) as raised:
        node.snapshots.prepare("default/7/extract-1 c1", "", labels)
    assert raised.value.kind is Refusal.ALREADY_EXISTS
    assert node.images.pulled == [PINNED]


def test_an_attached_conversion_of_an_image_that_is_not_named(node: Node) -> None:
    node.conversions[ONE] = CONVERSION
    node.known["default", "c1"] = Named("example.com/app", ONE, TWO, converted=False, last=True)
    with pytest.raises(RefusalError) as raised:
        node.snapshots.prepare("default/7/extract-1 c1", "", {TARGET: "c1"})
    assert raised.value.kind is Refusal.ALREADY_EXISTS
    (found,) = node.store.all()
    assert found.lazy is not None
    assert (found.lazy.image, found.lazy.whole) == (CONVERSION, True)
    # what it takes to unpack it for another image
    assert found.labels == {TARGET: "c1", IMAGE: "example.com/app", MANIFEST: ONE, LAYERS: TWO}


def test_a_converted_image_is_not_unpacked(node: Node) -> None:
    node.known["default", "c1"] = Named("example.com/app", ONE, TWO, converted=True, last=False)
    with pytest.raises(RefusalError, match="can only unpack") as raised:
        node.snapshots.prepare("default/7/extract-1 c1", "", {})
    assert raised.value.hint is not None
    assert f"firstread pull example.com/app@{ONE}" in raised.value.hint
    assert node.store.all() == []
    assert node.snapshots.prepare("default/7/extract-1 c2", "", {})[0].type == "bind"


def test_an_image_that_was_built_from_a_converted_one(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """Where its base is, its own layers are unpacked; elsewhere nobody can unpack the lowest."""
    node.derived.add(TWO)
    with pytest.raises(DerivedImageError):
        node.prepare("c1", "", layer(last=False, manifest=TWO))
    assert node.store.all() == []
    base = node.prepare("c1", "", layer(last=True, converted=True))
    upper = node.unpack("c2", base, layer(last=True, manifest=TWO))
    assert "it was built FROM a converted image" in caplog.text
    node.snapshots.prepare("container", upper, {})
    assert len(node.images.holders) == 1


def test_a_layer_below_an_image_that_is_not_named(node: Node) -> None:
    named = Named("example.com/app", ONE, TWO, converted=True, last=False, derived=True)
    node.known["default", "c1"] = named
    node.known["default", "c2"] = replace(named, converted=False)
    with pytest.raises(DerivedImageError, match="only firstread can read") as raised:
        node.snapshots.prepare("default/7/extract-1 c1", "", {})
    assert "build it FROM the original image" in (raised.value.hint or "")
    assert node.snapshots.prepare("default/7/extract-1 c2", "", {})[0].type == "bind"


def test_cleanup_leaves_alone_what_is_made_meanwhile(node: Node) -> None:
    top = node.prepare("c1", "", layer(last=True, converted=True))
    node.snapshots.prepare("one", top, {})
    node.images.meanwhile = lambda: node.snapshots.prepare("two", top, {})
    node.snapshots.cleanup()
    assert len(node.images.holders) == 2
    node.images.meanwhile = lambda: None
    node.images.holders[99] = PINNED
    node.snapshots.cleanup()
    assert len(node.images.holders) == 2


def test_a_commit_that_fails_blocks_nothing(node: Node, tmp_path: Path) -> None:
    node.snapshots.prepare("before", "", {})
    other = sqlite3.connect(tmp_path / "records.db")
    with contextlib.closing(other):
        other.executescript(
            "CREATE TABLE later (x REFERENCES snapshots (id) DEFERRABLE INITIALLY DEFERRED);"
            "CREATE TRIGGER fail AFTER INSERT ON snapshots BEGIN INSERT INTO later VALUES (-1); END"
        )
        for make in (node.snapshots.prepare, node.snapshots.view):
            with pytest.raises(sqlite3.IntegrityError):
                make("fails", "", {})
        other.execute("DROP TRIGGER fail")
    for make, key in ((node.snapshots.prepare, "a"), (node.snapshots.view, "b")):
        (mount,) = make(key, "", {})
        assert os.listdir(mount.source) == []
    assert [record.name for record in node.store.all()] == ["before", "a", "b"]
    assert sorted(os.listdir(node.directory)) == ["1", "2", "3"]
