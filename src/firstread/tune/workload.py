# SPDX-License-Identifier: Apache-2.0
"""The workload of a trace: its reads, as files of an image. Pure.

Owns the fit of a trace to an image, and what of it is hot. Times between reads are the workload's
own work, so a trace should come from a start whose data was local. Invariant: a workload has at
least one read, each of a file that the image has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from firstread.convert.hotplan import find_file, plan_hot
from firstread.errors import UsageError
from firstread.traces.firstreads import merge
from firstread.traces.tracefile import Trace
from firstread.tune.layercontent import Content, FileKey
from firstread.tune.layout import FileRange, HotChunk, Layout, Need
from firstread.tune.replay import Step

S = 1_000_000  # microseconds


class WorkRead(NamedTuple):
    """A read of a workload: seconds of work before it, the file, first byte, bytes."""

    think_s: float
    key: FileKey
    offset: int
    length: int


@dataclass(frozen=True)
class Workload:
    """What a start does.

    Args:
        reads: until it is ready, in order.
        end_s: seconds of work after the last of them.
        left_out: reads of files that the image does not have.
        later: reads after it was ready.
        keys: of all files that the trace has read, after it was ready, too.
    """

    reads: Sequence[WorkRead]
    end_s: float
    left_out: int
    later: int
    keys: frozenset[FileKey]

    @property
    def local_s(self) -> float:
        """Seconds that it takes when it waits for nothing."""
        return self.end_s + sum(read.think_s for read in self.reads)

    def paced(self, seconds: float) -> Workload:
        """Return the same, whose work takes `seconds` in all: a tracer makes it slower."""
        pace = seconds / self.local_s if self.local_s else 0.0
        reads = [read._replace(think_s=read.think_s * pace) for read in self.reads]
        return replace(self, reads=reads, end_s=self.end_s * pace)


def fit(content: Content, trace: Trace) -> Workload:
    """Return what a trace does on an image.

    Raises:
        UsageError: the trace has no read that the image could serve.
    """
    if not trace.reads:
        raise UsageError("the trace has no reads", hint="record it anew: firstread trace")
    ready_us = trace.header.ready_us
    if ready_us is None:
        ready_us = trace.reads[-1].time_us
    found: dict[bytes, FileKey | None] = {}
    reads: list[WorkRead] = []
    left_out = later = last_us = 0
    for read in trace.reads:
        if read.path not in found:
            found[read.path] = content.find(read.path)
        key = found[read.path]
        if key is None or read.offset >= content.file(key).size:
            left_out += 1
        elif read.time_us > ready_us:
            later += 1
        else:
            work = WorkRead((read.time_us - last_us) / S, key, read.offset, read.length)
            reads.append(work)
            last_us = read.time_us
    if not reads and later:
        raise UsageError(
            f"all {later} reads of the trace that are of this image come after the workload was"
            " ready",
            hint="record it anew: firstread trace",
        )
    if not reads:
        raise UsageError(
            f"none of the {len(trace.reads)} reads of the trace is of a file of this image",
            hint="is it a trace of another image?",
        )
    keys = frozenset(key for key in found.values() if key is not None)
    return Workload(reads, max(0, ready_us - last_us) / S, left_out, later, keys)


def steps(workload: Workload, layout: Layout) -> list[Step]:
    """Return what the reads of a workload wait for in a layout."""
    return [
        Step(read.think_s, _joined(layout.needs(read.key, read.offset, read.length)))
        for read in workload.reads
    ]


def _joined(needs: Iterable[Need]) -> list[Need]:
    """Return one need for each unit."""
    found: dict[int, Need] = {}
    for need in needs:
        known = found.get(need.unit, need)
        found[need.unit] = Need(need.unit, min(known.start, need.start), max(known.end, need.end))
    return list(found.values())


class HotContent(NamedTuple):
    """The hot parts of an image, in the order of the starts.

    Args:
        chunks: that the converter would copy into hot sectors.
        whole: ranges that it would leave where they are, because a start reads them as a whole.
    """

    chunks: Sequence[HotChunk]
    whole: Sequence[FileRange]


def hot_content(content: Content, traces: Sequence[Trace], granule: int) -> HotContent:
    """Return what the converter's own planner finds hot.

    Args:
        content: of the image.
        traces: of starts.
        granule: bytes of the smallest chunk.

    Raises:
        ImageError: a record contradicts itself.
    """
    trace = merge(traces)
    plan = plan_hot(content.root, trace, content.parameters.sector_size, granule)
    chunks = []
    for run in plan.runs:
        key = content.key(run.node)
        if key is None:
            continue
        for number in range(run.first, run.first + run.chunks):
            start = number * run.chunk_size
            length = min(run.chunk_size, run.node.size - start)
            chunks.append(HotChunk(key, start, length, run.chunk_size))
    positions = _positions(content, trace) if plan.whole else {}
    return HotContent(chunks, [positions[address] for address in plan.whole])


def _positions(content: Content, trace: Trace) -> dict[int, FileRange]:
    """Return by its address which range of a file each chunk is, for the files of a trace."""
    found: dict[int, FileRange] = {}
    for path in dict.fromkeys(read.path for read in trace.reads):
        node = find_file(content.root, path)
        key = content.key(node) if node else None
        if node and key:
            size = node.chunk_size
            for number, address in enumerate(node.chunks):
                found.setdefault(address, FileRange(key, number * size, size))
    return found
