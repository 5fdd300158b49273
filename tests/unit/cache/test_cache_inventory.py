# SPDX-License-Identifier: Apache-2.0
"""The inventory, its order of removal, and the cache of a node without a daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstread.cache.imagestore import ImageStore
from firstread.cache.inventory import Inventory, Use, take_inventory
from firstread.cache.nodeimage import NodeImage
from firstread.cache.report import StoreFigures, Unclaimed
from firstread.daemon.offline import Unattended
from firstread.errors import NodeError
from firstread.layouts.layoutreader import LayoutDirectory
from firstread.oci.reference import parse_reference
from firstread.sectors.check import is_sector
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.shortage import unreadable
from firstread.units import KiB

SECTOR = 64 * KiB
COUNT = 4
FIGURES = StoreFigures(bytes=0, sectors=0, metadata_bytes=0, files=0, free_bytes=0, free_files=None)


class Node:
    """A root with two images that share half of their sectors, all of them here."""

    def __init__(self, scratch: Path, layouts: dict[str, str]) -> None:
        self.root = scratch / "root"
        self.store = SectorStore(self.root)
        self.images = ImageStore(self.root)
        self.by_name: dict[str, NodeImage] = {}
        for age, (name, layout) in enumerate(layouts.items()):
            reference = parse_reference(layout)
            with LayoutDirectory(reference) as repository:
                image = self.images.fetch(reference, repository)
            os.utime(image.directory, (1000 + age, 1000 + age))
            self.by_name[name] = image

    def fill(self, images: dict[str, PlainImage]) -> None:
        for name, image in self.by_name.items():
            self.store.ensure(image.ids())
            for sector in image.block_image.index.sectors:
                content = next(
                    c for c in images[name].contents if _is(self.store, c, image, sector.id)
                )
                self.store.path(sector.id).write_bytes(content)

    def stock(self) -> Inventory:
        return take_inventory(self.images, self.store)


def _is(store: SectorStore, content: bytes, image: NodeImage, sector_id: bytes) -> bool:
    probe = store.root / "probe"
    probe.write_bytes(content)
    with probe.open("rb") as file:
        frame = image.block_image.index.geometry.frame_size
        return is_sector(file.fileno(), sector_id, SECTOR, frame)


@pytest.fixture(scope="module")
def layouts(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, str], dict[str, PlainImage]]:
    """Two images: files 0 to 3, and 2 to 5."""
    names, images = {}, {}
    for name, first in (("old", 0), ("new", 2)):
        names[name] = f"oci:{tmp_path_factory.mktemp(name)}/layout:latest"
        images[name] = put_plain_image(
            names[name], count=COUNT, first=first, sector_bytes=SECTOR, frame_bytes=16 * KiB
        )
    return names, images


@pytest.fixture
def node(tmp_path: Path, layouts: tuple[dict[str, str], dict[str, PlainImage]]) -> Node:
    made = Node(tmp_path, layouts[0])
    made.fill(layouts[1])
    return made


def test_a_listing_tells_what_is_shared(node: Node) -> None:
    old, new = node.by_name["old"].digest, node.by_name["new"].digest
    rows = node.stock().listing(FIGURES, {old: Use(2, True)}).images
    assert [row.digest for row in rows] == [old, new]  # what is mounted comes first
    assert [row.bytes for row in rows] == [COUNT * SECTOR] * 2
    assert [(row.alone_bytes, row.shared_bytes) for row in rows] == [(2 * SECTOR, 2 * SECTOR)] * 2
    assert [(row.mounts, row.pinned) for row in rows] == [(2, True), (0, False)]
    assert [row.last_used for row in rows] == [1000, 1001]


def test_sectors_of_no_image_go_first_then_those_of_the_oldest(node: Node) -> None:
    stray = bytes(32)
    node.store.ensure([stray])
    node.store.path(stray).write_bytes(b"x")
    old, new = (set(node.by_name[name].ids()) for name in ("old", "new"))
    order = node.stock().cold(lambda _: False)
    assert order[0] == stray
    assert set(order[1:3]) == old - new
    assert set(order[3:]) == new
    assert set(node.stock().cold(new.__contains__)) == {stray} | old - new
    assert node.stock().listing(FIGURES, {}).unclaimed == Unclaimed(sectors=1, bytes=1)


def test_an_image_goes_right_behind_its_sectors(node: Node) -> None:
    old, new = node.by_name["old"], node.by_name["new"]
    order = node.stock().order(lambda _: False)
    assert [item for item in order if isinstance(item, str)] == [old.digest, new.digest]
    assert set(order[: order.index(old.digest)]) >= set(old.ids()) - set(new.ids())
    assert order[-1] == new.digest
    used = set(new.ids())
    rest = node.stock().order(used.__contains__)
    assert set(rest[:2]) == set(old.ids()) - used
    assert rest[2:] == [old.digest, new.digest]  # the store of images refuses a used one


def test_an_image_takes_along_what_no_other_has(node: Node) -> None:
    old, new = node.by_name["old"], node.by_name["new"]
    alone = set(old.ids()) - set(new.ids())
    plan = node.stock().plan_without([old.digest], lambda _: False)
    assert (set(plan.sectors), plan.images, plan.bytes) == (alone, [old.digest], 2 * SECTOR)
    kept = node.stock().plan_without([old.digest], alone.__contains__)
    assert (kept.sectors, kept.images) == ([], [old.digest])
    assert node.stock().plan_without(["sha256:unknown"], lambda _: False).images == []
    both = node.stock().plan_without([old.digest, new.digest], lambda _: False)
    assert set(both.sectors) == {*old.ids(), *new.ids()}
    with unreadable(new.directory / "config.json"):
        assert node.stock().plan_without([old.digest], lambda _: False).sectors == []


def test_files_without_bytes_go_whatever_is_kept(node: Node) -> None:
    empty = bytes(32)
    node.store.ensure([empty])
    with Unattended.open(node.root) as cache:
        assert cache.listing().store.files == 7 + 2 * 7
        cache.prune(6 * SECTOR, dry_run=True)
        assert empty in dict(node.store.sizes())
        assert cache.prune(6 * SECTOR, dry_run=False).sectors == 0
    assert empty not in dict(node.store.sizes())


def test_an_image_goes_with_its_last_sector_that_nobody_uses(node: Node) -> None:
    old, new = node.by_name["old"], node.by_name["new"]
    nothing = node.stock().plan(lambda _: False, set(), 6 * SECTOR)
    assert (nothing.sectors, nothing.images, nothing.bytes) == ([], [], 0)
    some = node.stock().plan(lambda _: False, set(), 5 * SECTOR)
    assert (len(some.sectors), some.images, some.bytes) == (1, [], SECTOR)
    used = set(new.ids())
    rest = node.stock().plan(used.__contains__, {new.digest}, 0)
    assert set(rest.sectors) == set(old.ids()) - used
    assert rest.images == [old.digest]


def test_without_a_daemon_the_store_is_locked_meanwhile(node: Node) -> None:
    with Unattended.open(node.root) as cache:
        assert [image.mounts for image in cache.listing().images] == [0, 0]
        with pytest.raises(NodeError, match="in use by process"):
            SectorStore(node.root).claim()
        assert cache.prune(0, dry_run=True).sectors == 6
        assert cache.prune(0, dry_run=False).bytes == 6 * SECTOR
    assert node.images.digests() == []
    assert list(node.store.sizes()) == []


def test_without_a_daemon_damage_is_found_and_removed(node: Node) -> None:
    sector = node.by_name["old"].ids()[0]
    data = bytearray(node.store.path(sector).read_bytes())
    data[-1] ^= 0x80
    node.store.path(sector).write_bytes(data)
    part = node.by_name["new"].ids()[3]
    os.truncate(node.store.path(part), 5)
    with Unattended.open(node.root) as cache:
        found = cache.verify(repair=False)
        assert [item.outcome for item in found.damaged] == ["damaged"]
        assert found.damaged[0].sector == sector.hex()
        assert (found.checked, found.partial, found.ok) == (5, 1, False)
        repaired = cache.verify(repair=True)
        assert [item.outcome for item in repaired.damaged] == ["removed"]
        assert repaired.ok
    with Unattended.open(node.root) as cache:
        assert cache.verify(repair=False).damaged == []


def test_an_image_that_cannot_be_opened_is_listed_and_removed(node: Node) -> None:
    image = node.by_name["old"]
    (image.directory / "manifest.json").write_text("{")
    with Unattended.open(node.root) as cache:
        rows = {row.digest: row for row in cache.listing().images}
        assert "manifest is not valid" in (rows[image.digest].problem or "")
        assert not cache.verify(repair=False).ok
        assert cache.verify(repair=True).ok
    assert node.images.digests() == [node.by_name["new"].digest]


def test_an_image_that_cannot_be_read_now_stays_with_its_sectors(node: Node) -> None:
    old, new = node.by_name["old"], node.by_name["new"]
    stray = bytes(32)
    node.store.ensure([stray])
    node.store.path(stray).write_bytes(b"x")
    with unreadable(old.directory / "config.json"):
        order = node.stock().cold(lambda _: False)
        assert order[-1] in new.ids()  # what may be of the old one does not go before all others
        with Unattended.open(node.root) as cache:
            found = cache.verify(repair=True)
            assert [item.outcome for item in found.images] == ["unread"]
            assert not found.ok
    assert node.stock().problems == {}


def test_without_a_daemon_nothing_goes_while_a_mounted_image_cannot_be_read(node: Node) -> None:
    old = node.by_name["old"]
    with unreadable(old.directory / "config.json"):
        images = ImageStore(node.root, is_used={old.digest}.__contains__)
        cache = Unattended(images, node.store, {old.digest: Use(1, False)})
        with pytest.raises(NodeError, match="is mounted cannot be opened"):
            cache.prune(0, dry_run=False)
    assert len(list(node.store.sizes())) == 6


def test_a_root_without_a_store_is_an_error_and_stays_empty(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="no sector store"), Unattended.open(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
