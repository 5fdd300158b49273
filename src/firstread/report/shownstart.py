# SPDX-License-Identifier: Apache-2.0
"""One start as the page shows it, made of a record or of a trace. Pure.

Owns what counts as part of the start, and the figures that are computed from its parts. Times are
seconds since its begin.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from firstread.fetch.imagehistory import RequestMade, SectorCame, Step
from firstread.report.startrecord import MAX_FILES, FileRead, StartRecord
from firstread.traces.tracefile import Trace, escape

QUIET_S: Final = 10.0  # without a read that waits: the start is over
LEAST_S: Final = 0.001  # that a start lasts, so that it has a width
READY: Final = ("ready", "first output")
"""Steps whose end is when the workload was ready, the surest first."""


class Wait(NamedTuple):
    """A read: when it came, how long it waited, and its bytes."""

    at: float
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Start:
    """A start.

    Args:
        name: of the image, or of the file.
        kind: `start` or `trace`.
        facts: what else is known of it, as (name, value).
        steps: in order.
        reads: in order of time.
        requests: for sectors.
        sectors: in order of device slots; none for a trace.
        files: that were read.
        more_files: others.
        used: bytes of each sector that were in memory, if somebody looked.
        ready: when the workload was ready, if that is known.
        lost: reads and requests that are missing.
    """

    name: str
    kind: str
    facts: Sequence[tuple[str, str]]
    reads: Sequence[Wait]
    files: Sequence[FileRead]
    steps: Sequence[Step] = ()
    requests: Sequence[RequestMade] = ()
    sectors: Sequence[SectorCame] = ()
    more_files: int = 0
    used: Sequence[int] | None = None
    ready: float | None = None
    lost: int = 0
    end: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", self._end())

    def _end(self) -> float:
        """Return when the start is over: with its last step, and reads until they pause."""
        end = max([self.ready or 0.0, *(step.at + step.seconds for step in self.steps)])
        for read in self.reads:
            if self.kind == "start" and read.at > end + QUIET_S:
                break
            end = max(end, read.at + read.seconds)
        return max(end, LEAST_S)

    # -- figures -------------------------------------------------------------------------------

    def waits(self) -> list[float]:
        """Return how long the reads of the start have waited, sorted."""
        return sorted(read.seconds for read in self.reads if read.at <= self.end)

    def later_reads(self) -> int:
        """Return how many reads waited after the start was over."""
        return sum(read.at > self.end for read in self.reads)

    def arrivals(self, end: float, bins: int) -> dict[str, list[float]]:
        """Return the compressed bytes that came, by cause, in each of `bins` parts of 0 to `end`.

        The bytes of a request count as if they came evenly.
        """
        found: dict[str, list[float]] = {}
        width = end / bins
        for request in self.requests:
            into = found.setdefault(request.cause, [0.0] * bins)
            at, seconds = request.at, max(request.seconds, 1e-9)
            first = int(at / width)
            for number in range(first, min(bins, int((at + seconds) / width) + 1)):
                inside = min(at + seconds, (number + 1) * width) - max(at, number * width)
                into[number] += request.received * max(0.0, inside) / seconds
        return found

    def fetched(self) -> int:
        """Return the compressed bytes that came during the start."""
        return int(sum(map(sum, self.arrivals(self.end, 1).values())))

    def came(self) -> Counter[str]:
        """Return the number of sectors by why they came, in order of that."""
        return Counter(cause_of(sector) for sector in self.sectors)

    def unused(self) -> tuple[int, int] | None:
        """Return (bytes fetched, bytes of them that nobody was seen to read), uncompressed.

        None if nobody looked which bytes were read.
        """
        if self.used is None or not self.sectors:
            return None
        fetched = [
            (sector.filled, used)
            for sector, used in zip(self.sectors, self.used, strict=True)
            if sector.cause is not None
        ]
        total = sum(filled for filled, _ in fetched)
        return total, sum(max(0, filled - used) for filled, used in fetched)


def cause_of(sector: SectorCame) -> str:
    """Return why a sector came: `before` if it was on the node, `absent` if it is not."""
    return sector.cause or ("before" if sector.filled >= sector.size else "absent")


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the sorted values lie."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def of_record(record: StartRecord, name: str = "") -> Start:
    """Return the start that a record describes."""
    ends = {step.name: step.at + step.seconds for step in record.steps}
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(_moment(record.began)))
    facts = [("manifest", record.digest), ("began", began)]
    return Start(
        name=name or record.image,
        kind="start",
        facts=[*([("image", record.image)] if name else []), *facts],
        steps=record.steps,
        reads=sorted(Wait(read.at, read.seconds, read.bytes) for read in record.reads),
        requests=record.requests,
        sectors=record.sectors,
        files=record.files,
        more_files=record.more_files,
        used=record.used,
        ready=next((ends[step] for step in READY if step in ends), None),
        lost=record.lost,
    )


def _moment(began: float) -> float:
    return min(max(began, 0.0), 253402300799.0)  # the last second that a date can name


def of_trace(trace: Trace, name: str) -> Start:
    """Return the start that a trace describes."""
    header, second = trace.header, 1e-6
    files: dict[bytes, FileRead] = {}
    for read in trace.reads:
        at = read.time_us * second
        seen = files.get(read.path)
        if seen is None:
            path = "/" + escape(read.path)
            seen = files[read.path] = FileRead(path, 0, 0, at, 0.0, None)
        seen.reads += 1
        seen.bytes += read.length
    ordered = sorted(files.values(), key=lambda seen: (-seen.bytes, seen.path))
    facts = [
        ("image", header.image or "of several images"),
        ("command", shlex.join(header.command) or "not known"),
        ("read-ahead", f"{header.read_ahead_kib} KiB"),
    ]
    return Start(
        name=name,
        kind="trace",
        facts=[*facts, *([("starts", str(header.starts))] if header.starts > 1 else [])],
        reads=[Wait(read.time_us * second, 0.0, read.length) for read in trace.reads],
        files=ordered[:MAX_FILES],
        more_files=max(0, len(ordered) - MAX_FILES),
        ready=None if header.ready_us is None else header.ready_us * second,
    )


def directories(files: Sequence[FileRead], most: int) -> list[FileRead]:
    """Return what was read below directories, at most `most` of them, most bytes first.

    Begins with one, and replaces the largest by what it consists of while there is room, so that
    the rows are as deep as the bytes ask for. ``*`` stands for the files right in a directory.
    """
    rows = {_common(files): files} if files else {}
    whole: set[str] = set()  # consist of files, or of more parts than there is room for
    while parted := rows.keys() - whole:
        largest = max(parted, key=lambda path: (sum(map(weight, rows[path])), path))
        parts = _parts(largest, rows[largest])
        if len(parts) < 2 or len(rows) + len(parts) - 1 > most:
            whole.add(largest)
        else:
            del rows[largest]
            rows |= parts
    summed = [_sum(path, inner) for path, inner in rows.items()]
    return sorted(summed, key=lambda row: (-weight(row), row.path))


def weight(row: FileRead) -> int:
    """Return the bytes of a file or directory that are known to have been used."""
    return max(row.bytes, row.cached or 0)


def _common(files: Sequence[FileRead]) -> str:
    """Return the deepest directory that all of these files are below."""
    prefix = os.path.commonprefix([f.path for f in files])  # noqa: RUF071 - cut at a slash
    return prefix[: prefix.rfind("/") + 1]


def _parts(path: str, files: Sequence[FileRead]) -> dict[str, Sequence[FileRead]]:
    """Return what a directory consists of: those below it, as deep as possible, and its files."""
    found = dict[str, list[FileRead]]()
    for file in files:
        name, slash, _ = file.path[len(path) :].partition("/")
        found.setdefault(name if slash else "", []).append(file)
    if found.keys() <= {""}:
        return {}
    return {_common(inner) if name else f"{path}*": inner for name, inner in found.items()}


def _sum(path: str, files: Iterable[FileRead]) -> FileRead:
    """Return the sum of files as a row of their directory."""
    into = FileRead(path, 0, 0, None, 0.0, None)
    for file in files:
        into.reads += file.reads
        into.bytes += file.bytes
        into.seconds += file.seconds
        firsts = [first for first in (into.first, file.first) if first is not None]
        into.first = min(firsts, default=None)
        if file.cached is not None:
            into.cached = (into.cached or 0) + file.cached
    return into
