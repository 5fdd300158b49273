# SPDX-License-Identifier: Apache-2.0
"""The plan of hot sectors: each chunk once, in order, cut as finely as it pays."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.convert import hotplan
from firstread.convert.hotplan import BULK_SIZE, HotPlan, HotRun, find_file
from firstread.convert.plan import MAX_CHUNKS_PER_FILE
from firstread.erofs.tree import HOLE, Node, chunk_address, directory, walk
from firstread.errors import ImageError
from firstread.sectors.format import BLOCK_SIZE
from firstread.traces.tracefile import VERSION, Trace, TracedRead, TraceHeader
from firstread.units import GiB, KiB, MiB


def file(size: int, chunk_size: int, holes: tuple[int, ...] = ()) -> Node:
    chunks = [
        HOLE if number in holes else chunk_address(number, 0)
        for number in range(-(-size // chunk_size))
    ]
    return Node(stat.S_IFREG | 0o644, size=size, chunk_size=chunk_size, chunks=chunks)


def tree(**files: Node) -> Node:
    root, below = directory(), directory()
    assert root.children is not None
    assert below.children is not None
    root.children[b"d"] = below
    below.children.update({name.encode(): node for name, node in files.items()})
    return root


def trace(*reads: tuple[str, int, int]) -> Trace:
    return Trace(
        TraceHeader(version=VERSION),
        [
            TracedRead(time, offset, length, b"d/" + name.encode())
            for time, (name, offset, length) in enumerate(reads)
        ],
    )


def planned(root: Node, start: Trace, granule: int = 4 * KiB) -> HotPlan:
    return hotplan.plan_hot(root, start, 4 * MiB, granule)


def blocks(runs: list[HotRun], node: Node) -> list[int]:
    """Return the blocks of `node` in the order of the plan."""
    found: list[int] = []
    for run in runs:
        if run.node is node:
            unit = run.chunk_size // BLOCK_SIZE
            found += range(run.first * unit, (run.first + run.chunks) * unit)
    return found


def test_a_large_file_that_is_hot_in_places_is_cut_finely() -> None:
    large = file(64 * MiB, 4 * MiB)
    plan = planned(tree(large=large), trace(("large", 40 * MiB, 8192), ("large", 4096, 4096)))
    assert {run.chunk_size for run in plan.runs} == {16 * KiB}
    assert blocks(plan.runs, large) == [*range(10240, 10244), *range(4)]
    assert (plan.files, plan.reads) == (1, 2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(MiB, 4 * KiB), (32 * MiB, 16 * KiB), (GiB, 64 * KiB), (64 * GiB, 512 * KiB)],
)
def test_the_larger_the_file_the_coarser_its_chunks(size: int, expected: int) -> None:
    chunk = min(size, 4 * MiB)
    plan = planned(tree(f=file(size, chunk)), trace(("f", 8 * KiB, 4096)))
    assert [run.chunk_size for run in plan.runs] == [expected]


def test_a_file_that_is_hot_as_a_whole_stays_one_chunk() -> None:
    whole = file(50_000, 64 * KiB)
    plan = planned(tree(f=whole), trace(*(("f", at * 4096, 4096) for at in reversed(range(13)))))
    assert plan.runs == [HotRun(whole, 64 * KiB, 0, 1)]


def test_the_granule_is_a_lower_bound() -> None:
    node = file(MiB, MiB)
    plan = planned(tree(f=node), trace(("f", 20 * KiB, 4096)), granule=16 * KiB)
    assert plan.runs == [HotRun(node, 16 * KiB, 1, 1)]


def test_chunks_of_very_large_sectors_are_cut() -> None:
    node = file(64 * MiB, 16 * MiB)
    reads = [("f", at * 4 * MiB, 4 * MiB) for at in range(16)]
    plan = planned(tree(f=node), trace(*reads))
    assert [(run.chunk_size, run.first, run.chunks) for run in plan.runs] == [
        (4 * MiB, number, 1) for number in range(16)
    ]


def test_sectors_that_are_read_as_a_whole_stay_in_files_with_many() -> None:
    node = file(BULK_SIZE + 6 * MiB, 4 * MiB, holes=(3,))
    order = [*range(5, 17), *range(5)]
    reads = [("f", at * 4 * MiB + half * 2 * MiB, 2 * MiB) for at in order for half in (1, 0)]
    plan = planned(tree(f=node), trace(*reads, ("f", 68 * MiB, 8192)))
    assert plan.whole == [node.chunks[at] for at in order if at != 3]
    assert blocks(plan.runs, node) == [*range(17408, 17412)]
    assert plan.files == 1


@pytest.mark.parametrize(("sectors", "count", "missing"), [(15, 15, 0), (16, 16, 1), (32, 15, 0)])
def test_a_few_whole_sectors_are_copied(sectors: int, count: int, missing: int) -> None:
    node = file(sectors * 4 * MiB, 4 * MiB)
    reads = [("f", at * 4 * MiB, 4 * MiB) for at in range(count)]
    reads[0] = ("f", missing * BLOCK_SIZE, 4 * MiB - missing * BLOCK_SIZE)
    plan = planned(tree(f=node), trace(*reads))
    assert plan.whole == []
    assert {*range(missing, count * 1024)} <= set(blocks(plan.runs, node))


def test_what_does_not_fit_is_counted() -> None:
    root = tree(f=file(10_000, 16 * KiB), sparse=file(MiB, 64 * KiB, holes=(0, 1)))
    reads = trace(
        ("gone", 0, 4096),
        ("gone", 8192, 4096),
        ("f/below", 0, 4096),
        ("f", 12288, 4096),
        ("sparse", 0, 4096),
        ("f", 8192, 4096),
    )
    plan = planned(root, reads)
    assert (plan.left_out.files, plan.left_out.reads, plan.left_out.holes) == (2, 4, 1)
    assert (plan.reads, plan.files) == (1, 1)


def test_holes_beside_data_are_not_planned() -> None:
    node = file(MiB, 64 * KiB, holes=(1, 3))
    plan = planned(tree(f=node), trace(("f", 0, 512 * KiB)))
    hot = set(blocks(plan.runs, node))
    assert hot == {*range(128)} - {*range(16, 32), *range(48, 64)}


def test_the_names_of_a_hard_link_are_one_file() -> None:
    node = file(MiB, MiB)
    reads = trace(("a", 0, 64 * KiB), ("b", 16 * KiB, 4096), ("b", 256 * KiB, 4096))
    plan = planned(tree(a=node, b=node), reads)
    assert blocks(plan.runs, node) == [*range(16), 64]
    assert plan.files == 1


def test_a_record_with_impossible_chunks_is_refused() -> None:
    with pytest.raises(ImageError, match="12288"):
        planned(tree(f=file(100_000, 12288)), trace(("f", 0, 4096)))


@pytest.mark.parametrize("path", [b"", b"d", b"d/", b"/d/f", b"d/f/", b"d/../d/f", b"x", b"d/f/x"])
def test_only_a_regular_file_is_found(path: bytes) -> None:
    root = tree(f=file(4096, 4096))
    assert find_file(root, b"d/f") is not None
    assert find_file(root, path) is None


READS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 80), st.integers(1, 40)), max_size=30
)


@given(READS, st.sampled_from([4 * KiB, 16 * KiB, 64 * KiB]))
def test_every_read_is_covered_once(reads: list[tuple[str, int, int]], granule: int) -> None:
    root = tree(
        a=file(300_000, 64 * KiB, holes=(2,)), b=file(5000, 8 * KiB), c=file(70_000, 128 * KiB)
    )
    plan = planned(root, trace(*((name, at * 4096, n * 4096) for name, at, n in reads)), granule)
    for path, node in walk(root):
        if not node.is_file:
            continue
        hot = blocks(plan.runs, node)
        assert len(hot) == len(set(hot))
        unit = node.chunk_size // BLOCK_SIZE
        read = {
            b for name, at, n in reads if path == b"d/" + name.encode() for b in range(at, at + n)
        }
        size = -(-node.size // BLOCK_SIZE)
        data = {b for b in range(size) if node.chunks[b // unit] != HOLE}
        assert read & data <= set(hot)
        assert all(node.chunks[b // unit] != HOLE for b in hot if b < size)


def test_a_sparse_giant_is_not_cut_into_more_chunks_than_a_file_may_have() -> None:
    giant = file(2048 * GiB, 4 * MiB)
    giant.chunks = [*giant.chunks[:1000], *[HOLE] * (len(giant.chunks) - 1000)]
    found = planned(
        tree(f=giant), trace(*(("f", number * 4 * MiB, 4096) for number in range(1000)))
    )
    sizes = {run.chunk_size for run in found.runs}
    assert min(sizes) * MAX_CHUNKS_PER_FILE >= giant.size


def test_files_share_the_room_for_finer_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"f{number}": file(64 * MiB, 4 * MiB) for number in range(3)}
    start = trace(*((name, 0, 4096) for name in files))
    more = 64 * MiB // planned(tree(**files), start).runs[0].chunk_size - 16
    monkeypatch.setattr(hotplan, "MAX_HOT_CHUNKS", 2 * more)
    first, second, third = (run.chunk_size for run in planned(tree(**files), start).runs)
    assert first == second < third == 4 * MiB
