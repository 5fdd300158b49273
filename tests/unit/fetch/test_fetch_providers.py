# SPDX-License-Identifier: Apache-2.0
"""The images that have a sector, and which to ask next. Their sectors have no files; no threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from firstread.cache.nodeimage import NodeImage
from firstread.cache.presence import Presence
from firstread.config import PolicyTable, PrefetchTable
from firstread.device.fanotify import Group
from firstread.device.fanotifydevice import FanotifyDevice
from firstread.fetch.lane import Lane
from firstread.fetch.outcomes import Outcomes
from firstread.fetch.providers import Offer, Providers, best, in_turn
from firstread.fetch.sectorfiles import SectorFiles
from firstread.fetch.served import Served
from firstread.fetch.stats import ImageStats, LaneCounts
from firstread.oci.model import Descriptor
from firstread.sectors.format import Geometry, SectorEntry
from firstread.sectors.image import BlockImage
from firstread.sectors.sectorstore import SectorStore
from firstread.units import KiB

SIZE = 64 * KiB
ONE, TWO = b"1" * 32, b"2" * 32


def lane(name: str, *, is_down: bool = False) -> Lane:
    files = cast(SectorFiles, SimpleNamespace(size=lambda _: 0))
    outcomes, counts = cast(Outcomes, None), cast(LaneCounts, None)
    made = Lane(
        name,
        lambda: pytest.fail("nothing is fetched"),
        files,
        files,
        outcomes,
        counts,
        lambda _: PolicyTable(),
        workers=1,
        prefetch=PrefetchTable(),
    )
    for _ in range(2 * is_down):
        made._backlog.outage.fail(0.0)
    assert made.is_down is is_down
    return made


def served(
    digest: str, at: Lane, *ids: bytes, size: int = SIZE, offset: int = 0, lies: int = 0
) -> Served:
    blob = Descriptor(media_type="x", digest="sha256:b", size=SIZE)
    entries = [SectorEntry(i, size, 0, offset + n, 1) for n, i in enumerate(ids)]
    index = SimpleNamespace(sectors=entries, geometry=Geometry(SIZE, 4 * KiB))
    block = SimpleNamespace(index=index, blobs=[blob], hot_sectors=list, hot_note=None)
    made = Served(NodeImage(digest, Path("/"), cast(BlockImage, block), {}), at, ImageStats())
    made.lies = lies
    return made


Make = Callable[..., Providers]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with SectorStore(tmp_path / "root", filesystems=None) as store:

        def made(*all_of_them: Served) -> Providers:
            found = Providers(
                Presence(store, FanotifyDevice(store, Group(-1))), PolicyTable(stall_s=7)
            )
            for one in all_of_them:
                found.add(one)
            return found

        yield made


def having(found: Providers, sector_id: bytes) -> list[Served]:
    return [offer.served for offer in found.having(sector_id)]


def first(found: Providers, sector_id: bytes = ONE, end: int = SIZE) -> Served | None:
    offer = found.first(sector_id, end)
    return offer and offer.served


def test_a_sector_is_found_as_long_as_an_image_that_has_it_is_served(make: Make) -> None:
    a, b = served("a", lane("x"), ONE, TWO), served("b", lane("y"), ONE)
    found = make(a, b)
    assert having(found, ONE) == [a, b]
    assert having(found, TWO) == found.charged(TWO) == [a]
    found.remove(a)
    assert having(found, ONE) == [b]
    assert having(found, TWO) == []
    assert first(found, TWO) is None
    found.add(a)
    assert having(found, ONE) == [b, a]  # in the order in which they were served
    for one, sector in found.having(ONE):
        found.note_useless(sector, one.lane)
    found.remove(a)
    found.remove(b)
    assert having(found, ONE) == []
    assert found._served == {}
    assert found._useless == {}  # an image is large
    assert found._members.having(ONE) == ()


def test_the_first_image_to_ask(make: Make) -> None:
    good, down = lane("good"), lane("down", is_down=True)
    short = served("short", good, ONE, size=SIZE // 2)
    useless, liar = served("useless", good, ONE), served("liar", good, ONE, lies=1)
    dark, fine = served("dark", down, ONE), served("fine", good, ONE)
    order = [fine, dark, liar, useless, short]
    while order:
        found = make(*reversed(order))
        wanted = next(useless.sectors.find(i) for i in useless.sectors)
        assert wanted is not None
        offers = [offer for one in order for offer in found.having(ONE) if offer.served is one]
        assert best(offers, SIZE, frozenset({useless})).served is order[0]
        order.pop(0)
    only = make(short)
    assert first(only) is short  # it is asked, because nobody else is here


def test_an_image_that_says_a_sector_is_short_can_give_its_beginning(make: Make) -> None:
    short, whole = served("s", lane("x"), ONE, size=SIZE // 2), served("w", lane("y"), ONE)
    found = make(short, whole)
    assert first(found, end=SIZE // 2) is short
    assert first(found, end=SIZE // 2 + 1) is whole


def test_lanes_take_turns() -> None:
    lanes = [lane(name) for name in "xyz"]
    offers = [Offer(served(at.name, at, ONE), None) for at in lanes]  # type: ignore[arg-type]
    assert [o.served.lane.name for o in in_turn(offers, lanes[1])] == ["y", "z", "x"]
    assert in_turn(offers, lane("gone")) == offers


def test_another_source_is_never_the_one_that_failed(make: Make) -> None:
    x, y = lane("x"), lane("y")
    a, also_a, b = served("a", x, ONE), served("a", y, ONE), served("b", y, ONE)
    found = make(a, also_a, b)
    wanted = a.sectors.find(ONE)
    assert wanted is not None
    other = found.other(wanted, x)
    assert other is not None
    assert other.served is also_a
    elsewhere = found.other(wanted, x, elsewhere=True)
    assert elsewhere is not None
    assert elsewhere.served is b
    found.note_useless(wanted, y)
    assert found.other(wanted, x) is None
    found.forget_useless(ONE)
    assert found.other(wanted, x) is not None


def test_the_same_source_is_asked_where_another_image_says_the_sector_lies(make: Make) -> None:
    x = lane("x")
    a, moved = served("a", x, ONE), served("b", x, ONE, offset=100)
    found = make(a, moved)
    wanted = a.sectors.find(ONE)
    assert wanted is not None
    assert found.claiming(wanted) == found.claiming(wanted, x) == [a]
    other = found.other(wanted, x)
    assert other is not None
    assert other.served is moved


def test_a_size_that_was_proven_silences_those_who_say_another(make: Make) -> None:
    liar, true = served("liar", lane("x"), ONE, TWO, size=2 * SIZE), served("true", lane("y"), ONE)
    found = make(liar, true)
    wanted = true.sectors.find(ONE)
    assert wanted is not None
    assert found.is_undecided(wanted)
    found.note_asked(ONE)
    assert not found.is_undecided(wanted)
    found.prove(ONE, SIZE)
    assert having(found, ONE) == [true]
    assert having(found, TWO) == [liar]  # of other sectors it is believed
    assert (liar.lies, true.lies) == (1, 0)
    assert not found.is_undecided(wanted)


def test_the_most_patient_policy_holds_for_a_sector(make: Make) -> None:
    a, b = served("a", lane("x"), ONE), served("b", lane("y"), ONE, offset=9)
    found = make(a, b)
    wanted = a.sectors.find(ONE)
    assert wanted is not None
    assert found.policy(wanted).stall_s == 7  # what is mounted no more
    a.policies = {"/a": PolicyTable(stall_s=1, on_corruption="fail")}
    b.policies = {"/b": PolicyTable(stall_s=99, on_corruption="quarantine")}
    policy = found.policy(wanted)
    assert (policy.stall_s, policy.on_corruption) == (99, "fail")  # b names another place


def test_a_source_that_cannot_give_a_sector_is_asked_last(make: Make) -> None:
    x, y = lane("x"), lane("y")
    a, b = served("a", x, ONE, TWO), served("b", y, ONE, TWO, offset=50)
    found = make(a, b)
    wanted = a.sectors.find(ONE)
    assert wanted is not None
    assert first(found) is a
    found.note_useless(wanted, x)
    assert first(found) is b
    assert first(found, TWO) is a
    found.forget_useless(ONE)
    assert first(found) is a
    found.note_lie([a])
    assert first(found) is b
