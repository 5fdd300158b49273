# SPDX-License-Identifier: Apache-2.0
"""How far a start set should be streamed, and how large it should be, by the simulator.

``python -m benchmarks.windows --traces DIR [NAME…]`` takes DIR/NAME.jsonl of workloads of the
suite, from ``firstread trace``. It replays each over every link: plain lazy, with the start set of
the image's own command streamed at once, with windows of several sizes, and with only the
beginning of the set.

Owns the comparison, which needs no node and no quiet machine. It exits with 1 if the window of
nodes costs a start more than `MOST` times the bytes of a plain lazy one. Invariant: the same image
and trace give the same table.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.images.build import build
from benchmarks.startset import converted
from benchmarks.suite.workloads import WORKLOADS
from firstread.fetch import startwindow
from firstread.sectors.format import DEFAULT_FRAME_SIZE, DEFAULT_SECTOR_SIZE
from firstread.traces.tracefile import Trace, read_trace
from firstread.tune.layercontent import read_content, read_frames
from firstread.tune.link import parse_link
from firstread.tune.replay import Replayed, replay
from firstread.tune.settings import Layouts, Setting
from firstread.tune.simulatedlane import Costs
from firstread.tune.workload import fit, steps
from firstread.units import KiB, MiB

MB = 1_000_000
MOST = 1.1
LINKS = ("1Gbit/1ms", "100Mbit/20ms", "25Mbit/80ms")
WINDOWS = (1 * MiB, 2 * MiB, 4 * MiB, 8 * MiB)
SHARES = (0.01, 0.02, 0.04, 0.06, 0.12)  # of the image that the beginning of a set has
PLAIN = Setting("plain", DEFAULT_SECTOR_SIZE, DEFAULT_FRAME_SIZE)
HOT = Setting("hot", DEFAULT_SECTOR_SIZE, DEFAULT_FRAME_SIZE, 4 * KiB, "hot")
COSTS = Costs(trips=1, device_s=0)  # plain HTTP


@contextlib.contextmanager
def window(size: int) -> Iterator[None]:
    """Have nodes stream so many bytes behind a read."""
    usual, startwindow.WINDOW_BYTES = startwindow.WINDOW_BYTES, size
    try:
        yield
    finally:
        startwindow.WINDOW_BYTES = usual


def beginning(static: Trace, size: int) -> Trace:
    """Return the first reads of a set, up to so many bytes."""
    reads = []
    for read in static.reads:
        size -= read.length
        if size < 0:
            break
        reads.append(read)
    return Trace(static.header, reads)


def rows(layout: Path, trace: Trace, scratch: Path) -> Iterator[tuple[str, list[Replayed]]]:
    """Yield a line's name, and its starts over each link; the plain one comes first."""
    with converted(layout, scratch) as one:
        static = one.start_set(trace)
        content = read_content(one.repository, one.resolved, one.image)
        work = fit(content, trace)
        found = (content.find(each.path) for each in static.reads)
        keys = frozenset([*(each.key for each in work.reads), *filter(None, found)])
        read_frames(one.repository, content, keys)
        size = sum(node.size for node in one.files.values() if node.is_file)

    def starts(setting: Setting, hot: Trace, *, is_traced: bool = False) -> list[Replayed]:
        laid = Layouts(content, [hot], keys).get(setting)
        reads, mode = steps(work, laid), setting.prefetch
        return [
            replay(
                laid,
                parse_link(link),
                COSTS,
                reads,
                work.end_s,
                prefetch=mode,
                is_traced=is_traced,
            )
            for link in LINKS
        ]

    yield "plain lazy", starts(PLAIN, trace)
    if not static.reads:
        return
    yield "all at once", starts(HOT, static, is_traced=True)
    for count in WINDOWS:
        with window(count):
            yield f"window of {count // MiB} MiB", starts(HOT, static)
    yield "as nodes do", starts(HOT, static)
    for share in SHARES:
        cut = beginning(static, int(share * size))
        if 0 < len(cut.reads) < len(static.reads):
            yield f"{share:.0%} of the image", starts(HOT, cut)


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of workloads; all with a trace")
    parser.add_argument("--traces", type=Path, required=True, metavar="DIR", help="NAME.jsonl each")
    arguments = parser.parse_args()
    have = [name for name in WORKLOADS if (arguments.traces / f"{name}.jsonl").exists()]
    print(f"| start | start set | {' | '.join(LINKS)} |\n|---|---{'|--:' * len(LINKS)}|")
    dear = []
    for name in arguments.names or have:
        (layout,) = build([WORKLOADS[name].image])
        with (arguments.traces / f"{name}.jsonl").open("rb") as file:
            trace = read_trace(file)
        with tempfile.TemporaryDirectory(prefix="firstread-windows-") as scratch:
            plain: list[Replayed] = []
            for how, starts in rows(layout, trace, Path(scratch)):
                plain = plain or starts
                shares = [one.bytes / other.bytes for one, other in zip(starts, plain, strict=True)]
                cells = [
                    f"{one.ready_s:.2f} s, {one.bytes / MB:.1f} MB ({share:.2f}x)"
                    for one, share in zip(starts, shares, strict=True)
                ]
                print(f"| {' | '.join([name, how, *cells])} |", flush=True)
                if how == "as nodes do" and max(shares) > MOST:
                    dear.append(f"{name} {max(shares):.2f}")
    if dear:
        print(f"more than {MOST} times the bytes of plain lazy: {', '.join(dear)}")
    return 1 if dear else 0


if __name__ == "__main__":
    sys.exit(main())
