# SPDX-License-Identifier: Apache-2.0
"""Which sector goes, and that no interleaving of anything exposes a byte that is not there."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from firstread.cache.clock import Clock, State, Verdict

GRACE = 10.0
A, B, C, D = (bytes([number]) * 32 for number in range(4))


def nothing(_: bytes) -> bool:
    return False


def clock_of(**sizes: int) -> Clock:
    clock = Clock(GRACE)
    for name, size in sizes.items():
        clock.add({"a": A, "b": B, "c": C, "d": D}[name], size)
    return clock


# The order.


def test_the_oldest_sector_goes_after_a_grace_and_no_more_than_is_wanted() -> None:
    clock = clock_of(a=10, b=10, c=10)
    assert clock.turn(0, 15, 0, nothing) == ([A, B], [], [])
    assert clock.turn(GRACE - 1, 15, 0, nothing) == ([], [], [])
    assert clock.turn(GRACE, 5, 0, nothing).empty == [A]
    clock.emptied(A)
    assert (clock.bytes, clock.draining_bytes, clock.emptying_bytes) == (20, 10, 0)
    assert A not in clock


def test_a_sector_read_while_draining_is_kept_and_goes_last() -> None:
    clock = clock_of(a=10, b=10)
    clock.turn(0, 10, 0, nothing)
    assert clock.event(A, whole=True) is Verdict.ALLOW
    assert clock.turn(GRACE, 10, 0, nothing) == ([B], [], [])
    assert clock.turn(2 * GRACE, 10, 0, nothing).empty == [B]


def test_reads_of_what_empties_wait() -> None:
    clock = clock_of(a=10)
    clock.turn(0, 10, 0, nothing)
    clock.turn(GRACE, 10, 0, nothing)
    assert clock.event(A, whole=True) is Verdict.WAIT
    assert clock.touch(A) is Verdict.WAIT
    assert clock.hold(A) is Verdict.WAIT
    clock.emptied(A)
    assert clock.event(A, whole=False) is Verdict.FETCH


def test_a_sector_that_cannot_be_emptied_keeps_its_bytes() -> None:
    clock = clock_of(a=10)
    clock.turn(0, 10, 0, nothing)
    clock.turn(GRACE, 10, 0, nothing)
    clock.spared(A)
    assert (clock.bytes, clock.emptying_bytes, clock.state(A)) == (10, 0, State.KEPT)


def test_exempt_and_held_sectors_stay() -> None:
    clock = clock_of(a=10, b=10, c=10)
    assert clock.hold(B) is Verdict.FETCH
    assert clock.turn(0, 30, 0, lambda s: s == A).mark == [C]
    assert clock.turn(GRACE, 30, 0, lambda s: s in (A, C)) == ([], [C], [])
    clock.release(B, 10)
    assert clock.turn(GRACE, 30, 0, lambda s: s in (A, C)).mark == [B]


def test_sectors_drain_in_advance_but_do_not_go() -> None:
    clock = clock_of(a=10, b=10, c=10)
    assert clock.turn(0, 0, 20, nothing).mark == [A, B]
    assert clock.turn(GRACE, 0, 20, nothing) == ([], [], [])
    assert clock.turn(GRACE, 1, 20, nothing).empty == [A]


def test_if_all_is_in_use_one_goes_after_a_grace_in_which_its_reads_wait() -> None:
    clock = clock_of(a=10, b=10)
    clock.turn(0, 10, 0, nothing)
    assert clock.turn(1, 10, 0, nothing, force=True).empty == []
    assert clock.event(A, whole=True) is Verdict.WAIT
    assert clock.turn(GRACE, 10, 0, nothing, force=True).empty == []
    assert clock.turn(GRACE + 1, 10, 0, nothing, force=True).empty == [A]


def test_a_doubted_sector_is_checked_before_it_is_read() -> None:
    clock = clock_of(a=10)
    clock.doubt(A)
    assert clock.event(A, whole=True) is Verdict.CHECK
    clock.trust(A)
    assert clock.event(A, whole=True) is Verdict.ALLOW


def test_a_damaged_sector_is_emptied_by_the_only_one_who_holds_it() -> None:
    clock = clock_of(a=10)
    clock.hold(A)
    clock.hold(A)
    assert not clock.condemn(A)
    clock.release(A, 10)
    assert clock.condemn(A)
    assert clock.event(A, whole=True) is Verdict.WAIT
    clock.emptied(A)
    clock.release(A, 0)
    assert A not in clock
    assert clock.bytes == clock.holds == 0


def test_removed_sectors_are_forgotten_in_every_state() -> None:
    clock = clock_of(a=10, b=10)
    clock.turn(0, 10, 0, nothing)
    clock.drop(A)
    clock.drop(B)
    clock.drop(C)
    assert (clock.bytes, clock.draining_bytes, clock.count) == (0, 0, 0)


# The model: a kernel, files, readers, fills, checks, and a daemon that crashes.

WHOLE = 3  # units of a sector
LONGEST_READ = GRACE - 1  # from being let go until it has copied: what the grace stands for

sectors = st.sampled_from([A, B])
rarely = st.integers(0, 7).map(lambda number: number == 7)  # what would end most stories too early


@dataclass(eq=False)
class Read:
    """A read of the first `end` units of a sector."""

    sector: bytes
    end: int
    since: float = 0.0  # let go
    unserved: bool = False  # it began when no daemon was there: it may fail


@dataclass(eq=False)
class Fill:
    """A worker at a sector: the next unit that it writes."""

    sector: bytes
    position: int


@dataclass
class World:
    """What a kernel and a disk know; it outlives a daemon."""

    now: float = 0.0
    sizes: dict[bytes, int] = field(default_factory=lambda: dict.fromkeys((A, B, C), 0))
    damaged: set[bytes] = field(default_factory=set)
    marked: set[bytes] = field(default_factory=lambda: {A, B, C})
    copying: list[Read] = field(default_factory=list)
    waiting: list[Read] = field(default_factory=list)  # for an answer to their event
    alive: bool = True


class Eviction(RuleBasedStateMachine):
    """Every step of every thread is a rule, so hypothesis chooses the interleaving."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.start()

    @initialize(whole=st.sets(sectors))
    def fetched_before(self, whole: set[bytes]) -> None:
        """These were fetched by this fetcher, so that eviction is not many steps away."""
        for sector in whole:
            self.world.sizes[sector] = WHOLE
            self.world.marked.discard(sector)
            self.clock.add(sector, WHOLE)

    def start(self) -> None:
        """Begin as a fetcher that knows nothing but what the files and marks say."""
        world = self.world
        self.clock = Clock(GRACE)
        self.events = list(world.waiting)  # the supervisor hands them over
        self.fetching: dict[bytes, list[Read]] = {A: [], B: [], C: []}
        self.checking: dict[bytes, list[Read]] = {A: [], B: [], C: []}
        self.doubted_at: dict[bytes, float] = {}
        self.parked: dict[bytes, list[Read]] = {A: [], B: [], C: []}
        self.fills: list[Fill] = []
        self.emptying: list[bytes] = []
        for sector, size in world.sizes.items():
            self.clock.add(sector, size)
            if size == WHOLE:
                self.clock.doubt(sector)  # it is checked if it was marked, else it goes on
                self.doubted_at[sector] = world.now
            else:
                world.marked.add(sector)

    # -- readers -------------------------------------------------------------------------------

    @rule(sector=sectors, end=st.integers(1, WHOLE))
    def read(self, sector: bytes, end: int) -> None:
        world = self.world
        if sector in world.marked and world.alive:
            read = Read(sector, end)
            world.waiting.append(read)
            self.events.append(read)
        else:
            world.copying.append(Read(sector, end, world.now, unserved=not world.alive))

    def copy(self, read: Read) -> None:
        """The moment of truth: the bytes go from the sector file to the reader."""
        self.world.copying.remove(read)
        covered = self.world.sizes[read.sector] >= read.end
        assert covered or read.unserved, "a read that was let go finds nothing"
        assert read.sector not in self.world.damaged or read.unserved, "a damaged byte is read"

    @precondition(lambda self: self.world.copying)
    @rule(data=st.data())
    def finish_copy(self, data: st.DataObject) -> None:
        self.copy(data.draw(st.sampled_from(self.world.copying)))

    @rule(seconds=st.sampled_from([0.5, LONGEST_READ, GRACE]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds
        for read in list(self.world.copying):
            if self.world.now - read.since > LONGEST_READ:
                self.copy(read)

    def let_go(self, read: Read) -> None:
        self.world.waiting.remove(read)
        read.since = self.world.now
        self.world.copying.append(read)

    def answer(self, reads: list[Read]) -> None:
        for read in reads:
            verdict = self.clock.touch(read.sector)
            if verdict is Verdict.WAIT:
                self.parked[read.sector].append(read)
                continue
            if verdict is Verdict.ALLOW:
                self.unmark_whole(read.sector)
            self.let_go(read)

    def unmark_whole(self, sector: bytes) -> None:
        if self.world.sizes[sector] == WHOLE and not self.clock.is_doubted(sector):
            self.world.marked.discard(sector)

    # -- the fetcher ---------------------------------------------------------------------------

    @precondition(lambda self: self.world.alive and self.events)
    @rule()
    def handle(self) -> None:
        self.route(self.events.pop(0))

    def route(self, read: Read) -> None:
        sector = read.sector
        verdict = self.clock.event(sector, whole=self.world.sizes[sector] == WHOLE)
        if verdict is Verdict.ALLOW:
            self.world.marked.discard(sector)
            self.answer([read])
        else:
            place = {Verdict.FETCH: self.fetching, Verdict.CHECK: self.checking}
            place.get(verdict, self.parked)[sector].append(read)

    @precondition(lambda self: self.world.alive)
    @rule(sector=sectors)
    def begin_fill(self, sector: bytes) -> None:
        """For a read, or because it was read ahead; twice, when two sources are asked."""
        if self.world.sizes[sector] < WHOLE and self.clock.hold(sector) is not Verdict.WAIT:
            self.fills.append(Fill(sector, self.world.sizes[sector]))

    @precondition(lambda self: self.fills)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        self.step(data.draw(st.sampled_from(self.fills)))

    def step(self, fill: Fill) -> None:
        sector, sizes = fill.sector, self.world.sizes
        assert fill.position <= sizes[sector], "a hole"
        fill.position += 1
        sizes[sector] = max(sizes[sector], fill.position)
        if fill.position == WHOLE:
            self.clock.trust(sector)
            self.world.marked.discard(sector)
        covered = [read for read in self.fetching[sector] if read.end <= fill.position]
        self.fetching[sector] = [r for r in self.fetching[sector] if r not in covered]
        self.answer(covered)
        if fill.position == WHOLE:
            self.end(fill)

    def end(self, fill: Fill) -> None:
        self.fills.remove(fill)
        self.clock.release(fill.sector, self.world.sizes[fill.sector])

    @precondition(lambda self: self.fills)
    @rule(data=st.data())
    def rest(self, data: st.DataObject) -> None:
        """A source broke off, or the request covered no more."""
        self.end(data.draw(st.sampled_from(self.fills)))

    # -- eviction ------------------------------------------------------------------------------

    @precondition(lambda self: self.world.alive)
    @rule(
        wanted=st.sampled_from([0, 3 * WHOLE]),
        ready=st.sampled_from([WHOLE, 3 * WHOLE]),
        exempt=st.just(set()) | st.sets(sectors, max_size=1),
        force=st.booleans(),
    )
    def turn(self, wanted: int, ready: int, exempt: set[bytes], force: bool) -> None:
        turn = self.clock.turn(
            self.world.now, wanted, ready, lambda sector: sector in exempt, force=force
        )
        self.world.marked |= set(turn.mark)
        if force:  # what is forced to go was draining, and so is marked
            assert all(
                sector in self.world.marked
                for sector in (A, B, C)
                if self.clock.state(sector) is State.EMPTIES
            )
        for sector in turn.unmark:
            self.unmark_whole(sector)
        self.emptying += turn.empty

    @precondition(lambda self: self.emptying)
    @rule()
    def empty(self) -> None:
        sector = self.emptying.pop(0)
        if self.fetching[sector]:  # a lane has a read of it
            self.clock.spared(sector)
            self.unmark_whole(sector)
        else:
            self.truncate(sector)
        self.again(sector)

    def truncate(self, sector: bytes) -> None:
        assert sector in self.world.marked, "reads would not know that it is gone"
        assert not [fill for fill in self.fills if fill.sector == sector]
        self.world.sizes[sector] = 0
        self.world.damaged.discard(sector)
        self.clock.emptied(sector)

    def again(self, sector: bytes) -> None:
        parked, self.parked[sector] = self.parked[sector], []
        for read in parked:
            self.route(read)

    # -- damage --------------------------------------------------------------------------------

    @precondition(lambda self: self.world.alive)
    @rule(sector=sectors, flipped=st.booleans())
    def mount_again(self, sector: bytes, flipped: bool) -> None:
        """Present bytes may have been damaged before; nobody reads them just now.

        What a second source still fills was whole and right a moment ago.
        """
        world = self.world
        at_it = {one.sector for one in world.copying} | {one.sector for one in self.fills}
        if world.sizes[sector] < WHOLE or sector in at_it:
            return
        world.marked.add(sector)
        self.clock.doubt(sector)
        self.doubted_at[sector] = world.now
        if flipped:
            world.damaged.add(sector)

    @precondition(lambda self: any(self.checking.values()))
    @rule()
    def check(self) -> None:
        sector = next(sector for sector, reads in self.checking.items() if reads)
        if self.clock.hold(sector) is Verdict.WAIT:
            self.parked[sector] += self.checking[sector]
            self.checking[sector] = []
            return
        world = self.world
        reads = self.checking[sector]
        if world.sizes[sector] < WHOLE or not self.clock.is_doubted(sector):
            again = True
        elif sector in world.damaged:
            late = world.now - self.doubted_at[sector] >= GRACE
            again = late and self.clock.condemn(sector)
            if again:
                self.truncate(sector)
        else:
            again = False
            self.clock.trust(sector)
            world.marked.discard(sector)
            self.checking[sector] = []
            self.answer(reads)
        self.clock.release(sector, world.sizes[sector])
        if again:
            self.checking[sector] = []
            self.parked[sector] += reads
            self.again(sector)

    # -- crashes -------------------------------------------------------------------------------

    @precondition(lambda self: self.world.alive)
    @rule(now=rarely)
    def kill_fetcher(self, now: bool) -> None:
        """The supervisor holds marks and events; the next fetcher begins with the files."""
        if now:
            self.start()

    @precondition(lambda self: self.world.alive)
    @rule(now=rarely)
    def kill_all(self, now: bool) -> None:
        """Marks go with the group, and what waits is let through: what is not there is EIO."""
        world = self.world
        if not now:
            return
        world.alive = False
        world.marked.clear()
        for read in list(world.waiting):
            read.unserved = True
            self.let_go(read)
        self.start()
        world.marked.clear()

    @precondition(lambda self: not self.world.alive)
    @rule()
    def start_again(self) -> None:
        """Nobody saw what was read meanwhile: all is marked anew, and checked again."""
        self.world.alive = True
        self.start()
        self.world.marked |= {A, B, C}

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def absent_bytes_are_watched(self) -> None:
        if self.world.alive:
            for sector, size in self.world.sizes.items():
                assert size == WHOLE or sector in self.world.marked

    @invariant()
    def bytes_are_counted(self) -> None:
        filled = {fill.sector for fill in self.fills}
        for sector, size in self.world.sizes.items():
            assert sector in filled or self.clock.size(sector) == size
        total = sum(self.clock.size(sector) for sector in self.world.sizes)
        assert self.clock.bytes == total
        drains = [s for s in self.world.sizes if self.clock.state(s) is State.DRAINS]
        assert self.clock.draining_bytes == sum(map(self.clock.size, drains))

    @invariant()
    def no_read_is_lost(self) -> None:
        places = (self.fetching, self.checking, self.parked)
        known = [read for place in places for reads in place.values() for read in reads]
        assert sorted(map(id, known + self.events)) == sorted(map(id, self.world.waiting))

    def teardown(self) -> None:
        """If everybody goes on, every read ends."""
        if not self.world.alive:
            self.start_again()
        for _ in range(50):
            self.pass_time(GRACE)
            while self.events:
                self.handle()
            self.turn(0, 0, set(), force=False)
            while self.emptying:
                self.empty()
            if any(self.checking.values()):
                self.check()
            for sector in [sector for sector, reads in self.fetching.items() if reads]:
                self.begin_fill(sector)
            for fill in list(self.fills):
                while fill in self.fills:
                    self.step(fill)
        self.pass_time(2 * GRACE)
        assert not self.world.waiting, "a read waits for ever"
        assert not self.world.copying


TestEviction = Eviction.TestCase
TestEviction.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


def test_the_model_can_tell() -> None:
    """Without a grace it finds the read that was let go and is not over."""
    clock = Clock(0.0)
    clock.add(A, WHOLE)
    world = World(sizes={A: WHOLE, B: 0, C: 0}, marked={B, C})
    machine = Eviction()
    machine.world, machine.clock = world, clock
    machine.read(A, WHOLE)
    machine.turn(WHOLE, 0, set(), force=False)
    machine.turn(WHOLE, 0, set(), force=False)
    machine.empty()
    with pytest.raises(AssertionError, match="finds nothing"):
        machine.copy(world.copying[0])
