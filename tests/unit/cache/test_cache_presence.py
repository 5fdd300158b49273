# SPDX-License-Identifier: Apache-2.0
"""The contract of `Presence`: no interleaving lets a read go that finds a byte which is not there.

A model of kernel, supervisor and readers around the real `Presence`, `Mounting` and `Disposal` on
a real store. Verified bytes are one repeated byte, so a hole, a short file or a damaged byte shows
in what a reader copies.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from firstread.cache.clock import State, Verdict
from firstread.cache.disposal import Disposal
from firstread.cache.membership import Member
from firstread.cache.mounting import Mounting
from firstread.cache.pending import PendingRead
from firstread.cache.presence import Presence
from firstread.device.fanotify import Group
from firstread.device.fanotifydevice import FanotifyDevice
from firstread.device.sizes import Unpublished
from firstread.errors import NodeError
from firstread.sectors.format import SectorEntry
from firstread.sectors.sectorstore import SectorStore

GRACE = 10.0
LONGEST_READ = GRACE - 1  # from being let go until it has copied
FRAME = 4096
FRAMES = 4
WHOLE = FRAMES * FRAME
GOOD, BAD = b"\xaa", b"\x55"
A, B = (bytes([number]) * 32 for number in range(2))

sectors = st.sampled_from([A, B])
frames = st.integers(0, FRAMES - 1)
rarely = st.integers(0, 7).map(lambda number: number == 7)  # what would end most stories too early


class Kernel(Group):
    """Marks as the kernel has them."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.names: set[bytes] = set()

    def mark_names(self, dirfd: int, names: Iterable[bytes]) -> None:
        self.names |= set(names)

    def unmark(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        self.names.discard(os.fsencode(path.relative_to(path.parents[1])))

    def unmark_names(self, dirfd: int, names: Iterable[bytes]) -> None:
        self.names -= set(names)


class Told(Unpublished):
    """A table that somebody looks at when a size is published."""

    def __init__(self, publish: Callable[[bytes, int], None]) -> None:
        self._publish = publish

    def publish(self, sector_id: bytes, readable_bytes: int) -> None:
        self._publish(sector_id, readable_bytes)


class SeenDisposal(Disposal):
    """One that always sees that nobody is at a file: what the grace stands for is modelled."""

    def _is_quiet(self, sector_id: bytes) -> bool | None:
        return True


@dataclass(eq=False)
class Reader:
    """A read of some frames of a sector."""

    sector: bytes
    start: int
    end: int
    since: float = 0.0  # let go


@dataclass(eq=False)
class Fill:
    """A worker at a sector, and what it has written and not committed yet."""

    sector: bytes
    fd: int
    written: tuple[int, int] | None = None


class PresenceMachine(RuleBasedStateMachine):
    """Every step of every thread is a rule, so hypothesis chooses the interleaving."""

    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.now = Kernel(), 0.0
        self.table = dict.fromkeys((A, B), 0)  # what the supervisor knows
        self.zero_since = dict.fromkeys((A, B), -GRACE)
        self.copying: list[Reader] = []
        self.asking: dict[int, Reader] = {}  # reads that the fetcher has, by number
        self.serial = 0
        self.store = SectorStore(self.root, filesystems=None)
        self.store.remove((A, B))
        self.store.claim()
        self.files: dict[bytes, int] = {}
        self.begin()
        self.mount()

    def teardown(self) -> None:
        try:
            self.check_all_reads_end()
        finally:
            for fd in self.files.values():
                os.close(fd)
            self.store.close()

    # -- processes -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin as a fetcher that knows nothing but what files and marks say."""
        self.fills: list[Fill] = []
        self.emptying: list[bytes] = []
        self.doubted_at = dict.fromkeys((A, B), self.now)
        self.events: list[int] = list(self.asking)
        self.waiting: list[int] = []  # for a fetch
        self.checking: list[int] = []
        self.device = FanotifyDevice(self.store, self.kernel)
        self.presence = Presence(
            self.store,
            self.device,
            lambda reads: self.events.extend(read.number for read in reads),
            lambda sector: not self.reads_of(sector, self.waiting),
            grace_s=GRACE,
        )
        self.presence.grace_s = 0  # for what sleeps: time is the model's
        self.presence.sizes = Told(self.publish)
        self.disposal = SeenDisposal(self.presence, self.store)
        self.mounting = Mounting(self.presence, self.disposal, self.store)
        self.member = Member(SectorEntry(i, WHOLE, 0, 0, WHOLE) for i in (A, B))
        self.presence.serve(self.member)

    def publish(self, sector: bytes, count: int) -> None:
        if self.table[sector] and not count:
            self.zero_since[sector] = self.now
        self.table[sector] = count

    def mount(self) -> None:
        """Mount the image: nobody has it open."""
        missing, doubted = self.mounting.prepare(self.member, "once")
        self.mounting.make(missing)
        with self.mounting.opening(self.member, doubted), self.device.opening([A, B]):
            for fd in self.files.values():
                os.close(fd)
            self.files = {i: self.store.open(i, os.O_RDWR) for i in (A, B)}
            assert self.kernel.names == set(self.store.names((A, B)))

    def reads_of(self, sector: bytes, numbers: list[int]) -> list[int]:
        return [number for number in numbers if self.asking[number].sector == sector]

    def pending(self, number: int) -> PendingRead:
        reader = self.asking[number]
        fd = self.files[reader.sector]
        return PendingRead(number, 1, reader.start, reader.end - reader.start, fd, 0.0)

    # -- readers -------------------------------------------------------------------------------

    @rule(sector=sectors, first=frames, count=st.integers(1, FRAMES))
    def read(self, sector: bytes, first: int, count: int) -> None:
        reader = Reader(sector, first * FRAME, min(first + count, FRAMES) * FRAME)
        marked = self.store.names([sector])[0] in self.kernel.names
        if not marked or reader.end <= self.table[sector]:
            self.let_go(reader)
            return
        self.serial += 1
        self.asking[self.serial] = reader
        self.events.append(self.serial)

    def let_go(self, reader: Reader) -> None:
        reader.since = self.now
        self.copying.append(reader)

    def copy(self, reader: Reader) -> None:
        """The moment of truth: the bytes go from the sector file to the reader."""
        self.copying.remove(reader)
        count = reader.end - reader.start
        data = os.pread(self.files[reader.sector], count, reader.start)
        assert data == GOOD * count, "a read that was let go finds something else"

    @precondition(lambda self: self.copying)
    @rule(data=st.data())
    def finish_copy(self, data: st.DataObject) -> None:
        self.copy(data.draw(st.sampled_from(self.copying)))

    @rule(seconds=st.sampled_from([0.5, LONGEST_READ, GRACE]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for reader in list(self.copying):
            if self.now - reader.since > LONGEST_READ:
                self.copy(reader)

    # -- the fetcher ---------------------------------------------------------------------------

    @precondition(lambda self: self.events)
    @rule()
    def handle(self) -> None:
        number = self.events.pop(0)
        reader = self.asking[number]
        verdict = self.presence.event(self.pending(number), reader.sector)
        if verdict is Verdict.ALLOW:
            self.answer(number)
        elif verdict is Verdict.FETCH:
            self.waiting.append(number)
        elif verdict is Verdict.CHECK:
            self.checking.append(number)

    def answer(self, number: int) -> None:
        reader = self.asking[number]
        if self.presence.touch(self.pending(number), reader.sector):
            self.let_go(self.asking.pop(number))

    @precondition(lambda self: self.waiting)
    @rule()
    def satisfy(self) -> None:
        """A lane looks which of its reads are covered."""
        for number in list(self.waiting):
            reader, presence = self.asking[number], self.presence
            covered = reader.end <= presence.prefix(reader.sector)
            if covered and not presence.is_doubted(reader.sector):
                self.waiting.remove(number)
                self.answer(number)

    @rule(sector=sectors)
    def begin_fill(self, sector: bytes) -> None:
        if self.presence.size(sector) < WHOLE and self.presence.hold(sector):
            self.fills.append(Fill(sector, self.files[sector]))

    @precondition(lambda self: any(not fill.written for fill in self.fills))
    @rule(data=st.data(), frame=frames)
    def write(self, data: st.DataObject, frame: int) -> None:
        idle = [fill for fill in self.fills if not fill.written]
        fill = data.draw(st.sampled_from(idle))
        start = frame * FRAME
        prefix = self.presence.prefix(fill.sector)
        if start > prefix:
            before = os.fstat(fill.fd).st_size
            with pytest.raises(NodeError, match="would leave a hole"):
                self.presence.reach(fill.sector, start)
            assert os.fstat(fill.fd).st_size == before
            start = prefix // FRAME * FRAME
        if start < WHOLE:
            self.presence.reach(fill.sector, start)
            os.pwrite(fill.fd, GOOD * FRAME, start)
            fill.written = start, start + FRAME

    @precondition(lambda self: any(fill.written for fill in self.fills))
    @rule()
    def commit(self) -> None:
        fill = next(fill for fill in self.fills if fill.written)
        assert fill.written
        self.presence.commit(fill.sector, fill.written[1])
        fill.written = None
        if self.presence.size(fill.sector) == WHOLE:
            self.presence.present(fill.sector, fill.fd)
            self.end(fill)

    def end(self, fill: Fill) -> None:
        self.fills.remove(fill)
        self.presence.release(fill.sector)

    @precondition(lambda self: self.fills)
    @rule(data=st.data())
    def rest(self, data: st.DataObject) -> None:
        """A source broke off, or the request covered no more."""
        self.end(data.draw(st.sampled_from(self.fills)))

    @rule(sector=sectors)
    def flush(self, sector: bytes) -> None:
        with self.presence.holding(sector) as held:
            if held and self.store.size(sector) == WHOLE:
                self.store.flush(sector)

    # -- eviction ------------------------------------------------------------------------------

    @rule(
        wanted=st.sampled_from([0, 3 * WHOLE]),
        ready=st.sampled_from([WHOLE, 3 * WHOLE]),
        pinned=rarely,
        force=st.booleans(),
    )
    def turn(self, wanted: int, ready: int, pinned: bool, force: bool) -> None:
        presence = self.presence
        presence.pin(self.member, on=pinned)
        turn = presence.clock.turn(self.now, wanted, ready, presence.members.is_pinned, force=force)
        for sector in turn.mark:
            presence.drain(sector)
        presence.clock.drain_from(turn.mark, self.now)
        for sector in turn.unmark:
            presence.keep(sector)
        self.emptying += turn.empty

    @precondition(lambda self: self.emptying)
    @rule()
    def empty(self) -> None:
        sector = self.emptying.pop(0)
        self.watch_shrinking(sector, lambda: self.disposal.evict([sector]))

    def watch_shrinking(self, sector: bytes, act: object) -> None:
        """Do something that may make a file shorter, and see that it is time for that."""
        assert callable(act)
        before = os.fstat(self.files[sector]).st_size
        act()
        if os.fstat(self.files[sector]).st_size < before:
            assert self.now - self.zero_since[sector] >= GRACE, "the supervisor may let reads go"
            assert not [fill for fill in self.fills if fill.sector == sector]
            assert self.store.names([sector])[0] in self.kernel.names, "nobody sees its reads"

    # -- doubt ---------------------------------------------------------------------------------

    @rule(sector=sectors, flipped=st.booleans())
    def doubt(self, sector: bytes, flipped: bool) -> None:
        """Another mount finds bytes that it cannot trust; they may have rotted, unread."""
        at_it = {one.sector for one in self.copying} | {one.sector for one in self.fills}
        if not self.presence.is_whole(sector) or sector in at_it:
            return
        self.presence.doubt(sector)
        self.doubted_at[sector] = self.now
        if flipped:
            os.pwrite(self.files[sector], BAD, 0)

    @precondition(lambda self: self.checking)
    @rule()
    def check(self) -> None:
        presence, sector = self.presence, self.asking[self.checking[0]].sector
        numbers = self.reads_of(sector, self.checking)
        fd = self.files[sector]
        with presence.holding(sector) as held:
            if held and presence.is_whole(sector) and presence.is_doubted(sector):
                if os.pread(fd, WHOLE, 0) == GOOD * WHOLE:
                    presence.present(sector, fd)
                elif self.now - self.doubted_at[sector] < GRACE:
                    return
                elif presence.clock.users(sector) == 1:
                    self.watch_shrinking(sector, lambda: self.disposal.condemn(sector))
                else:
                    return
        for number in numbers:
            self.checking.remove(number)
        self.events += numbers

    # -- crashes -------------------------------------------------------------------------------

    @rule(now=rarely)
    def kill_fetcher(self, now: bool) -> None:
        """The supervisor holds marks, events and what was published; the next fetcher begins."""
        if now:
            self.begin()
            self.mounting.adopt(self.member, anew=False, doubt=True)

    @rule(now=rarely)
    def reboot(self, now: bool) -> None:
        """No mount stands any more, and nothing that was not flushed can be trusted."""
        if not now:
            return
        self.copying.clear()
        self.asking.clear()
        self.kernel.names.clear()
        self.table = dict.fromkeys((A, B), 0)
        self.zero_since = dict.fromkeys((A, B), self.now - GRACE)
        flushed = {i for i in (A, B) if self.store.is_flushed(i)}
        self.store.close()
        (self.root / "boot").write_text("another boot\n")
        self.store = SectorStore(self.root, filesystems=None)
        self.store.claim()
        self.begin()
        self.mount()
        assert {i for i in (A, B) if self.presence.size(i)} <= flushed

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def what_is_published_is_there(self) -> None:
        for sector, count in self.table.items():
            assert count <= self.presence.prefix(sector)
            if self.presence.clock.state(sector) is not State.KEPT:
                assert count == 0
            if self.presence.is_doubted(sector):
                assert count == 0

    @invariant()
    def what_is_known_is_in_the_file(self) -> None:
        for sector in (A, B):
            size = self.presence.size(sector)
            data = os.pread(self.files[sector], size, 0)
            assert data == GOOD * size or (len(data) == size and self.presence.is_doubted(sector))

    @invariant()
    def absent_bytes_are_watched(self) -> None:
        for sector in (A, B):
            if self.presence.size(sector) < WHOLE:
                assert self.store.names([sector])[0] in self.kernel.names

    def check_all_reads_end(self) -> None:
        """If everybody goes on, every read ends."""
        for _ in range(30):
            self.pass_time(GRACE)
            while self.events:
                self.handle()
            self.turn(0, 0, pinned=False, force=False)
            while self.emptying:
                self.empty()
            if self.checking:
                self.check()
            for sector in {self.asking[number].sector for number in self.waiting}:
                self.begin_fill(sector)
            for fill in list(self.fills):
                self.finish(fill)
            if self.waiting:
                self.satisfy()
        self.pass_time(2 * GRACE)
        assert not self.asking, "a read waits for ever"

    def finish(self, fill: Fill) -> None:
        for start in range(0, WHOLE, FRAME):
            if fill in self.fills and self.presence.size(fill.sector) < start + FRAME:
                self.presence.reach(fill.sector, start)
                os.pwrite(fill.fd, GOOD * FRAME, start)
                self.presence.commit(fill.sector, start + FRAME)
        if fill in self.fills:
            self.presence.present(fill.sector, fill.fd)
            self.end(fill)

    @initialize(whole=st.sets(sectors))
    def fetched_before(self, whole: set[bytes]) -> None:
        """These are here, so that eviction is not many steps away."""
        for sector in whole:
            self.begin_fill(sector)
            self.finish(self.fills[0])


@pytest.fixture(scope="module", autouse=True)
def root() -> Iterator[None]:
    memory = Path("/dev/shm")  # nothing waits for a disk here
    PresenceMachine.root = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield
    shutil.rmtree(PresenceMachine.root)


TestPresence = PresenceMachine.TestCase
TestPresence.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def with_a_whole_sector(machine: PresenceMachine) -> PresenceMachine:
    machine.begin_fill(A)
    machine.finish(machine.fills[0])
    assert machine.table[A] == WHOLE
    return machine


def test_the_model_can_tell_a_late_zero() -> None:
    machine = with_a_whole_sector(PresenceMachine())
    drain = machine.presence.drain
    machine.presence.sizes = Unpublished()
    machine.turn(3 * WHOLE, 0, pinned=False, force=False)
    machine.presence.sizes = Told(machine.publish)
    drain(A)  # in the middle of the grace
    machine.pass_time(GRACE)
    machine.zero_since[A] += 0.5
    machine.turn(3 * WHOLE, 0, pinned=False, force=False)
    with pytest.raises(AssertionError, match="the supervisor may let reads go"):
        machine.empty()
    machine.teardown()


def test_the_model_can_tell_a_hole() -> None:
    machine = PresenceMachine()
    os.pwrite(machine.files[A], GOOD * FRAME, FRAME)
    with machine.presence.holding(A):
        machine.presence.commit(A, 2 * FRAME)
    with pytest.raises(AssertionError):
        machine.what_is_known_is_in_the_file()
    machine.read(A, 0, 2)
    with pytest.raises(AssertionError, match="finds something else"):
        machine.copy(machine.copying[0])
    machine.teardown()


# The sizes that are published, and when.


def test_what_may_be_read_without_asking_is_said_before_it_ends() -> None:
    """In each case the kernel's mark and the shorter file come after the 0."""
    machine = with_a_whole_sector(PresenceMachine())
    presence, marked = machine.presence, machine.store.names([A])[0]
    said: list[tuple[int, bool, int]] = []

    def published(sector: bytes, count: int) -> None:
        size = os.fstat(machine.files[sector]).st_size
        said.append((count, marked in machine.kernel.names, size))

    presence.sizes = Told(published)
    presence.doubt(A)
    assert said.pop(0) == (0, False, WHOLE)
    with presence.holding(A):
        presence.present(A, machine.files[A])
        assert said.pop(0) == (WHOLE, False, WHOLE)
    turn = presence.clock.turn(0.0, WHOLE, 0, presence.members.is_pinned)
    presence.drain(A)
    assert said.pop(0) == (0, False, WHOLE)
    assert turn.mark == [A]
    presence.withdraw(machine.member)
    assert {count for count, _, _ in said} == {0}
    machine.presence.sizes = Told(machine.publish)
    machine.presence.serve(machine.member)
    machine.teardown()


def test_nothing_is_said_of_what_no_mount_has_open() -> None:
    machine = with_a_whole_sector(PresenceMachine())
    presence = machine.presence
    presence.withdraw(machine.member)
    assert machine.table == {A: 0, B: 0}
    machine.member = Member(SectorEntry(i, WHOLE, 0, 0, WHOLE) for i in (A, B))
    presence.serve(machine.member)
    with presence.holding(B):
        os.pwrite(machine.files[B], GOOD * FRAME, 0)
        presence.commit(B, FRAME)
    assert machine.table == {A: 0, B: 0}
    machine.mounting.prepare(machine.member, "never")
    with machine.mounting.opening(machine.member, [A]), machine.device.opening([A, B]):
        assert machine.table == {A: 0, B: 0}
    assert presence.is_doubted(A)
    assert machine.table == {A: 0, B: FRAME}
    machine.teardown()
