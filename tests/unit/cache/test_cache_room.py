# SPDX-License-Identifier: Apache-2.0
"""Rounds of the cache, one at a time, with a kernel that refuses marks."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from firstread.cache.admission import NothingIdle
from firstread.cache.clock import State, Verdict
from firstread.cache.evictor import IDLE_S
from firstread.cache.membership import Member
from firstread.cache.nodecache import Cache
from firstread.cache.pending import PendingRead
from firstread.cache.presence import Presence
from firstread.cache.room import Room
from firstread.config import CacheTable
from firstread.device.fanotify import Group
from firstread.device.fanotifydevice import FanotifyDevice
from firstread.device.sizes import Unpublished
from firstread.errors import NodeError, from_os_error
from firstread.opener import Opener
from firstread.sectors.format import SectorEntry
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.patience import PATIENCE_S

SIZE = 4096
IDS = [bytes([number]) * 32 for number in range(4)]
MISSING = bytes([99]) * 32


class Marks(Group):
    """Marks as the kernel has them."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.names: set[bytes] = set()
        self.refused: set[bytes] = set()

    def mark_names(self, dirfd: int, names: Iterable[bytes]) -> None:
        for name in names:
            if name in self.refused:
                raise NodeError("no memory")
            self.names.add(name)

    def unmark(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        self.names.discard(os.fsencode(path.relative_to(path.parents[1])))

    def unmark_names(self, dirfd: int, names: Iterable[bytes]) -> None:
        self.names -= set(names)


class Images:
    """One image, of which a sector is missing, and a fetch that may be in flight."""

    def __init__(self, *, mounted: bool = True) -> None:
        self.member = Member(SectorEntry(i, SIZE, 0, 0, SIZE) for i in (*IDS, MISSING))
        self.mounted = mounted
        self.idle = True

    def let_go(self, sector_id: bytes) -> bool:
        return self.idle


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SectorStore]:
    with SectorStore(tmp_path / "root", filesystems=None) as store:
        store.ensure(IDS)
        for sector_id in IDS:
            store.path(sector_id).write_bytes(bytes(SIZE))
        yield store


def cache_of(
    store: SectorStore, marks: Marks, images: Images, limits: CacheTable | None = None
) -> Cache:
    device = FanotifyDevice(store, marks)
    presence = Presence(store, device, forget=images.let_go, grace_s=0.0)
    if images.mounted:
        presence.serve(images.member)
    return Cache(presence, store, limits or CacheTable(max_bytes=SIZE))


def test_a_sector_that_cannot_be_marked_is_not_emptied(store: SectorStore) -> None:
    marks = Marks()
    marks.refused = set(store.names(IDS[:2]))
    cache = cache_of(store, marks, Images())
    for _ in range(4):
        cache.evictor.round()
    assert [store.size(i) for i in IDS] == [SIZE, SIZE, 0, 0]
    assert marks.names == set(store.names(IDS[2:]))
    assert all(cache.presence.clock.state(i) is not State.EMPTIES for i in IDS)


class Unsettled(Unpublished):
    """A table into which somebody looks who is suspended."""

    def is_settled(self) -> bool:
        return False


def test_nothing_is_emptied_while_an_answer_may_rest_on_an_old_size(store: SectorStore) -> None:
    marks = Marks()
    cache = cache_of(store, marks, Images())
    cache.presence.sizes = Unsettled()
    for _ in range(4):
        cache.evictor.round()
    assert [store.size(i) for i in IDS] == [SIZE] * 4
    assert marks.names == set()
    cache.presence.sizes = Unpublished()
    for _ in range(4):
        cache.evictor.round()
    assert sum(store.size(i) for i in IDS) <= SIZE


class ScannedStore(SectorStore):
    """A store whose files nobody may open for now."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, filesystems=None)
        self.scanned = threading.Event()

    def open(self, sector_id: bytes, flags: int = os.O_RDONLY) -> int:
        assert self.scanned.wait(PATIENCE_S)
        return super().open(sector_id, flags)


def test_files_are_emptied_though_none_can_be_opened(tmp_path: Path) -> None:
    """What waits for the room may be the read of a scanner, and it lets nobody open a file."""
    cold = threading.Event()
    counted: list[int] = []

    class Stock(NothingIdle):
        def cold(self) -> list[bytes | str]:
            assert cold.wait(PATIENCE_S)  # it reads the records of images
            counted.append(1)
            return []

    with ScannedStore(tmp_path / "root") as store:
        store.ensure(IDS)
        for sector_id in IDS:
            store.path(sector_id).write_bytes(bytes(SIZE))
        cache = cache_of(store, Marks(), Images())
        cache.use(Stock())
        for _ in range(3):
            cache.evictor.round()
        assert sum(store.size(i) for i in IDS) <= SIZE
        assert counted == []
        store.scanned.set()
        cold.set()


def test_marks_stay_while_a_file_is_opened_for_another_mount(store: SectorStore) -> None:
    """A file that has no mark when EROFS opens it never raises an event there: it would be EIO."""
    marks = Marks()
    cache = cache_of(store, marks, Images())
    files = [store.open(sector_id) for sector_id in IDS]
    reads = [PendingRead(fd, 1, 0, SIZE, fd, 0.0) for fd in files]
    presence = cache.presence
    member = Member(SectorEntry(i, SIZE, 0, 0, SIZE) for i in IDS)
    presence.serve(member)
    device = presence.device
    assert isinstance(device, FanotifyDevice)
    with cache.mounting.opening(member, []), device.opening(IDS):
        assert presence.event(reads[0], IDS[0]) is Verdict.ALLOW
        presence.present(IDS[1], files[1])
        with presence.holding(IDS[2]):
            pass
        for sector_id in cache.presence.clock.turn(0.0, SIZE, SIZE, lambda _: False).mark:
            assert presence.touch(reads[IDS.index(sector_id)], sector_id)
        assert marks.names == set(store.names(IDS))
    assert marks.names == set()
    for fd in files:
        os.close(fd)


@pytest.mark.parametrize("why", ["emptied", "known to a lane"])
def test_a_file_that_is_in_use_is_neither_removed_nor_discarded(
    store: SectorStore, why: str
) -> None:
    images = Images(mounted=False)
    cache = cache_of(store, Marks(), images)
    if why == "emptied":
        cache.presence.clock.hold(IDS[0])
        assert cache.presence.clock.condemn(IDS[0])
        cache.presence.clock.release(IDS[0], SIZE)
    else:
        images.idle = False
    cache.disposal.discard([IDS[0]])
    assert cache.disposal.remove(IDS[0]).bytes == 0
    assert store.size(IDS[0]) == cache.presence.clock.size(IDS[0]) == SIZE


def test_a_goal_that_cannot_be_reached_is_not_looked_at_all_the_time(store: SectorStore) -> None:
    images = Images()
    cache = cache_of(store, Marks(), images)
    cache.presence.pin(images.member, on=True)
    cache.evictor.round()
    assert cache.evictor.round() == IDLE_S


@pytest.mark.parametrize("pinned", [False, True])
def test_what_a_full_disk_refuses_is_done_once_more(store: SectorStore, pinned: bool) -> None:
    images = Images()
    cache = cache_of(store, Marks(), images, CacheTable())
    cache.presence.pin(images.member, on=pinned)
    cache.evictor.start()
    tried: list[int] = []

    def save() -> int:
        tried.append(cache.figures().sectors)
        if tried[-1]:
            error = OSError(errno.ENOSPC, "No space left on device")
            raise from_os_error(error, "cannot save") from error
        return 7

    if pinned:
        with pytest.raises(NodeError, match="cannot save"):
            cache.admission.with_room(save)
    else:
        assert cache.admission.with_room(save) == 7
    assert tried == [4, 4 if pinned else 0]


# Files, and what images take beside their sectors.


class Cold:
    """Images that nobody mounts: digests and what each takes; and sectors."""

    def __init__(self, sectors: Sequence[bytes] = (), **images: Room) -> None:
        self.sectors, self.images = list(sectors), images
        self.removed: list[str] = []

    @property
    def room(self) -> Room:
        return sum(self.images.values(), Room())

    def cold(self) -> list[bytes | str]:
        return [*self.sectors, *self.images]

    def remove(self, digest: str) -> Room:
        self.removed.append(digest)
        return self.images.pop(digest, Room())


def files(store: SectorStore) -> set[bytes]:
    return {sector_id for sector_id, _ in store.sizes()}


def unmounted(store: SectorStore, limits: CacheTable | None = None) -> tuple[Cache, Images]:
    """Return a cache of an image that was unmounted: the last two sectors have no bytes."""
    for sector_id in IDS[2:]:
        store.empty(sector_id)
    images = Images(mounted=False)
    return cache_of(store, Marks(), images, limits or CacheTable()), images


def test_files_without_bytes_go_with_the_mount(store: SectorStore) -> None:
    cache, images = unmounted(store)
    cache.presence.serve(images.member)
    cache.mounting.unwatch(IDS)
    assert files(store) == set(IDS)
    cache.presence.withdraw(images.member)
    cache.presence.clock.hold(IDS[2])  # somebody is about to write to it
    cache.mounting.unwatch(IDS)
    assert files(store) == {*IDS[:2], IDS[2]}
    cache.admission.leave(IDS[2], 0)
    assert files(store) == set(IDS[:2])
    assert cache.figures().files == 2


def test_no_file_goes_while_it_is_not_known_what_is_mounted(store: SectorStore) -> None:
    cache, _ = unmounted(store)
    cache.guard(on=True)
    cache.evictor.round()
    cache.mounting.unwatch(IDS)
    assert cache.tidy() == cache.disposal.remove(IDS[0]).files == 0
    assert files(store) == set(IDS)
    cache.guard(on=False)
    cache.evictor.round()
    assert files(store) == set(IDS[:2])


def test_a_limit_of_files_is_kept_by_what_is_not_mounted(store: SectorStore) -> None:
    cache, images = unmounted(store, CacheTable(max_files=6))
    cold = Cold(IDS[:1], old=Room(100, 3), new=Room(100, 2))
    cache.use(cold)
    cache.evictor.start()
    more = [bytes([number]) * 32 for number in range(10, 15)]
    cache.make_files(more[:3])  # 2 + 5 files are there when the empty ones are gone
    assert files(store) == {IDS[1], *more[:3]}
    assert cold.removed == ["old"]
    cache.presence.serve(images.member)
    cache.make_files(more)  # in place of the other image
    with pytest.raises(NodeError, match="the limit of files is reached"):
        cache.make_files([*more, IDS[0]])
    assert files(store) == {IDS[1], *more}


def test_a_disk_without_files_gets_some_back(store: SectorStore) -> None:
    """Bytes alone do not help then, nor does emptying sectors that are mounted."""

    class Full(SectorStore):
        def free_files(self) -> int:
            return 0

    for sector_id in IDS[2:]:
        store.empty(sector_id)
    store = Full(store.root, filesystems=None)
    cache = cache_of(store, Marks(), Images(mounted=False), CacheTable())
    cold = Cold(IDS[:2], old=Room(100, 5), new=Room(100, 5))
    cache.use(cold)
    cache.evictor.round()  # files without bytes go first, whether anybody lacks room or not
    cache.evictor.start()
    tried: list[set[bytes]] = []

    def mount() -> int:
        tried.append(files(store))
        if len(tried) == 1 or tried[-1]:
            error = OSError(errno.ENOSPC, "No space left on device")
            raise from_os_error(error, "cannot make a sector file") from error
        return 7

    assert cache.admission.with_room(mount, files=lambda: 4) == 7
    assert tried[-1] == set()
    assert cold.removed == ["old"]


def test_metadata_counts_and_the_oldest_goes(store: SectorStore) -> None:
    cache, _ = unmounted(store, CacheTable(max_bytes=10 * SIZE))
    cold = Cold(IDS[:1], old=Room(6 * SIZE, 4), middle=Room(4 * SIZE, 4), new=Room(1))
    cache.use(cold)
    cache.evictor.round()
    assert store.size(IDS[0]) == 0
    assert cold.removed == ["old"]


def test_metadata_of_mounted_images_leaves_half_of_the_limit_to_sectors(store: SectorStore) -> None:
    cache = cache_of(store, Marks(), Images(), CacheTable(max_bytes=16 * SIZE))
    cache.use(Cold(big=Room(100 * SIZE, 4)))
    assert cache.admission.admit(bytes([9]) * 32, 4 * SIZE) == 4 * SIZE


def test_there_may_be_room_while_a_look_at_what_can_go_takes_long(store: SectorStore) -> None:
    """As on a machine that is busy, or with very many images."""
    cache, _ = unmounted(store, CacheTable(max_bytes=2 * SIZE))
    may = threading.Event()

    class Slow(Cold):
        def cold(self) -> list[bytes | str]:
            assert may.wait(PATIENCE_S)
            return super().cold()

    cache.use(Slow(IDS[:2]))
    opener = cache._reclaim._opener = Opener("inventory", 0.01, 0.01)
    with ThreadPoolExecutor() as pool:
        room = pool.submit(cache.admission.admit, bytes([9]) * 32, SIZE)
        while not cache.admission.waiting:
            time.sleep(0.001)
        for _ in range(4):
            cache.evictor.round()
        assert not room.done()
        may.set()
        while opener.is_held_up:
            time.sleep(0.001)
        cache.evictor.round()
        assert room.result(timeout=PATIENCE_S) == SIZE
