# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.answers TRACES``: granularity, first-read tail and size of a store.

Answers the questions of docs/tune.md by simulation, from traces of the benchmark images: in which
units bytes should be fetched, how long first reads wait, and how large a store should be.
``--docs`` writes the tables into that page and the pictures beside it. Only hot blobs are really
packed. Owns the questions; the simulator owns everything that it replays.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import exp, log
from pathlib import Path
from typing import NamedTuple

from benchmarks import answerplots
from benchmarks.hot import GRANULES, MB, packed
from benchmarks.places import LAZY, publish, reference, storage
from benchmarks.predicted import COSTS
from benchmarks.recordings import traced
from benchmarks.suite.workloads import WORKLOADS
from firstread.cli.opening import opened_image
from firstread.convert.hotblob import HOT_LEVEL
from firstread.convert.hotplan import DEFAULT_GRANULE
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.sectors.format import DEFAULT_FRAME_SIZE
from firstread.testing.registry import DockerRegistry
from firstread.traces.tracefile import Trace, read_trace
from firstread.tune.comparison import quantile
from firstread.tune.hits import Held, Hits, count_hits, held
from firstread.tune.layercontent import Content, read_content, read_frames
from firstread.tune.link import LinkSpeed, parse_link
from firstread.tune.replay import Replayed, replay
from firstread.tune.settings import Layouts, Setting
from firstread.tune.workload import Workload, fit, steps
from firstread.units import GiB, KiB, MiB, format_size

NAMES = ("debian", "redis", "nginx", "postgresql", "nodejs", "openjdk", "python-server", "python")
LINK = parse_link("100Mbit/20ms")
LINKS = [parse_link(text) for text in ("25Mbit/80ms", "100Mbit/20ms", "1Gbit/1ms")]
ACCESS = AccessOptions(plain_http=True)
FRAME = DEFAULT_FRAME_SIZE
LEVELS = (3, 9, 15, 19)

SIZES = (4 * MiB, 2 * MiB, 1 * MiB, 512 * KiB, 256 * KiB)  # of sectors
SIZE = 2 * MiB  # of those with hot ones beside them, or with other frames

UNITS = [
    Setting("files", 0),
    *(Setting("chunks", size) for size in (4 * MiB, 1 * MiB, 256 * KiB, 64 * KiB)),
    *(Setting("plain", size, FRAME) for size in SIZES),
    *(Setting("hot", SIZE, FRAME, granule, "hot") for granule in GRANULES[::-1]),
]
CUTS = [*((size, FRAME) for size in SIZES), (SIZE, 64 * KiB), (SIZE, 1 * MiB)]
TAILS = [
    *(Setting("plain", size, frame) for size, frame in CUTS),
    *(Setting("hot", size, frame, DEFAULT_GRANULE, "hot") for size, frame in CUTS),
]

DAYS, STARTS_A_DAY, DEPLOYED_DAYS = 7, 48, 2
"""The week of a node: its starts, and after how many days the upper layers of an image are new."""
STORES = [size * MiB for size in (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)]
HELD = [*(Setting("plain", size, FRAME) for size in SIZES[:3]), UNITS[-1]]


class Subject:
    """A workload, as the simulator knows it.

    Args:
        name: of the workload.
        image: its reference, as long as its registry runs.
        trace: of a start.

    Raises:
        FirstreadError: the image cannot be read, or is another one.
    """

    def __init__(self, name: str, image: str, trace: Trace) -> None:
        self.name, self.image, self.trace = name, image, trace
        with opened_image(parse_reference(image), ACCESS) as (repository, resolved, opened):
            self.content: Content = read_content(repository, resolved, opened)
            self.workload: Workload = fit(self.content, trace)
            keys = frozenset(read.key for read in self.workload.reads)
            read_frames(repository, self.content, keys)
        self.layouts = Layouts(self.content, [trace], keys)

    @cached_property
    def base(self) -> str:
        """Digest of the blob of the lowest layer."""
        return self.content.layers[0].blob.digest

    def start(self, setting: Setting, link: LinkSpeed) -> Replayed:
        """Return how a start goes."""
        layout, work = self.layouts.get(setting), self.workload
        reads = steps(work, layout)
        return replay(layout, link, COSTS, reads, work.end_s, prefetch=setting.prefetch)

    def needs(self, setting: Setting) -> list[Held]:
        """Return the units of a store that a start needs."""
        layout = self.layouts.get(setting)
        return held(layout, steps(self.workload, layout))


@contextlib.contextmanager
def subjects(names: Sequence[str], traces: Path) -> Iterator[list[Subject]]:
    """Yield the workloads, with a registry that has their images."""
    publish(dict.fromkeys(WORKLOADS[name].image for name in names))
    files = {name: traced(traces, name) for name in names}
    with DockerRegistry(storage=storage()) as registry:
        found = []
        for name in names:
            with files[name].open("rb") as file:
                trace = read_trace(file)
            found.append(Subject(name, reference(registry, WORKLOADS[name].image, LAZY), trace))
        yield found


class Packed(NamedTuple):
    """Hot blobs of a workload, really packed; bytes by granule and by level, and of the trace."""

    read: int
    granules: dict[int, int]
    metadata: dict[int, int]
    levels: dict[int, int]

    @property
    def traced(self) -> int:
        """Compressed bytes of the trace, as layers are compressed."""
        return self.levels[LEVELS[0]]


def pack(subject: Subject) -> Packed:
    """Pack the hot blob of a workload by each granule, and by each level."""
    granules, metadata, levels = {}, {}, {}
    with open_source(parse_reference(subject.image)) as repository:
        _, plain, _ = packed(repository, Trace(subject.trace.header, []), DEFAULT_GRANULE, 3)
        for granule in GRANULES:
            made, more, _ = packed(repository, subject.trace, granule, HOT_LEVEL)
            granules[granule], metadata[granule] = made.packed.size if made else 0, more - plain
        for level in LEVELS:
            made, _, _ = packed(repository, subject.trace, DEFAULT_GRANULE, level)
            levels[level] = made.packed.size if made else 0
    read = sum(each.length for each in subject.trace.reads)
    return Packed(read, granules, metadata, levels)


# -- the tables ----------------------------------------------------------------------------------

Starts = dict[Setting, dict[str, Replayed]]


def units(found: Sequence[Subject]) -> Starts:
    """Start every workload in every unit of fetching."""
    return {s: {each.name: each.start(s, LINK) for each in found} for s in UNITS}


def unit_table(starts: Starts, names: Sequence[str]) -> Iterator[str]:
    """Yield the answer to the question of granularity."""
    yield f"| {LINK.name}: s to ready, MB | " + " | ".join(names) + " | of the best |"
    yield "|---|" + "--:|" * (len(names) + 1)
    best = {name: min(row[name].ready_s for row in starts.values()) for name in names}
    for setting, row in starts.items():
        cells = [f"{row[name].ready_s:.2f}, {row[name].bytes / MB:.1f}" for name in names]
        ratio = mean([row[name].ready_s / best[name] for name in names])
        yield f"| {unit_name(setting)} | " + " | ".join(cells) + f" | {ratio:.2f}x |"


def unit_name(setting: Setting) -> str:
    """Return how a row names what one request can ask for."""
    if setting.kind == "hot":
        return f"hot sectors, granule {size(setting.granule)}"
    words = {"files": "whole files", "chunks": "chunks of files", "plain": "sectors"}
    return words[setting.kind] + (f", {size(setting.unit_size)}" if setting.unit_size else "")


def packed_table(found: dict[str, Packed]) -> Iterator[str]:
    """Yield what hot blobs cost, by granule and level."""
    yield "| hot blob, MB | " + " | ".join(found) + " | of the trace |"
    yield "|---|" + "--:|" * (len(found) + 1)
    rows = [("read by the trace, uncompressed", {n: p.read for n, p in found.items()})]
    rows += [
        (f"granule {size(granule)}, level {HOT_LEVEL}", _with_metadata(found, granule))
        for granule in GRANULES
    ]
    rows += [
        (f"level {level}, granule {size(DEFAULT_GRANULE)}", _by_level(found, level))
        for level in LEVELS
    ]
    for label, row in rows:
        ratio = mean([count / found[name].traced for name, count in row.items()])
        cells = " | ".join(f"{count / MB:.2f}" for count in row.values())
        yield f"| {label} | {cells} | {ratio:.2f}x |"


def _with_metadata(found: dict[str, Packed], granule: int) -> dict[str, int]:
    return {name: each.granules[granule] + each.metadata[granule] for name, each in found.items()}


def _by_level(found: dict[str, Packed], level: int) -> dict[str, int]:
    return {name: each.levels[level] for name, each in found.items()}


def tail_table(found: Sequence[Subject]) -> Iterator[str]:
    """Yield how long the reads of all starts wait."""
    head = [f"{link.name}: p50, p99, p99.9 in ms" for link in LINKS]
    yield "| layout | " + " | ".join(head) + " |"
    yield "|---|" + "--:|" * len(LINKS)
    for setting in TAILS:
        cells = []
        for link in LINKS:
            waits = sorted(w for each in found for w in each.start(setting, link).waits)
            shown = (quantile(waits, share) * 1000 for share in (0.5, 0.99, 0.999))
            cells.append(", ".join(f"{wait:.3g}" for wait in shown))
        yield f"| {setting} | " + " | ".join(cells) + " |"


def week(found: Sequence[Subject], setting: Setting) -> list[list[Held]]:
    """Return the units that the starts of a week need, on one node.

    The n-th workload is started 1/n as often as the first. Its upper layers are new every
    `DEPLOYED_DAYS` days, one workload after the other; the lowest layer stays.
    """
    rng, starts = random.Random(DAYS), list[list[Held]]()
    weights = [1 / rank for rank in range(1, len(found) + 1)]
    needs = [each.needs(setting) for each in found]
    for hour in range(DAYS * STARTS_A_DAY):
        (at,) = rng.choices(range(len(found)), weights)
        version = (hour / STARTS_A_DAY + at / len(found)) // DEPLOYED_DAYS
        base = found[at].base.encode()
        starts.append(
            [
                unit
                if unit.id.startswith(base)
                else unit._replace(id=b"%d %b" % (version, unit.id))
                for unit in needs[at]
            ]
        )
    return starts


Weeks = dict[Setting, list[Hits]]


def weeks(found: Sequence[Subject]) -> Weeks:
    """Replay the week for each layout and size of a store."""
    return {s: [count_hits(week(found, s), limit) for limit in STORES] for s in HELD}


def _distinct(found: Sequence[Subject], setting: Setting) -> Iterator[Held]:
    for each in found:
        yield from each.needs(setting)


def week_table(found: Sequence[Subject], held_in: Weeks) -> Iterator[str]:
    """Yield hit ratios and fetched bytes."""
    yield "| store | " + " | ".join(map(str, held_in)) + " |"
    yield "|---|" + "--:|" * len(held_in)
    touched = (sum(dict(_distinct(found, setting)).values()) / MiB for setting in held_in)
    yield (
        "| *one start of each needs* | "
        + " | ".join(f"{count:.0f} MiB" for count in touched)
        + " |"
    )
    for row in zip(*held_in.values(), strict=True):
        cells = [f"{hits.ratio:.1%}, {hits.fetched / GiB:.1f} GiB" for hits in row]
        yield f"| {size(row[0].limit)} | " + " | ".join(cells) + " |"


def mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return exp(sum(map(log, values)) / len(values))


def size(count: int) -> str:
    return format_size(count).replace(".0 ", " ")


# -- the page ------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[1] / "docs"


def put(page: Path, tables: dict[str, list[str]]) -> None:
    """Replace what stands between the marks of each table."""
    text = page.read_text()
    for name, lines in tables.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            raise RuntimeError(f"{page} has no place for the table {name!r}")
        text = "".join([before, mark, *(f"{line}\n" for line in lines), end, after])
    page.write_text(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    parser.add_argument("traces", type=Path, help="directory; what is missing is recorded")
    parser.add_argument("workloads", nargs="*", default=NAMES, metavar="WORKLOAD")
    parser.add_argument("--no-packing", action="store_true", help="leave hot blobs out: minutes")
    parser.add_argument("--docs", action="store_true", help="write docs/tune.md and docs/images")
    options = parser.parse_intermixed_args(arguments)
    tables: dict[str, list[str]] = {}

    def show(name: str, lines: Iterator[str]) -> None:
        tables[name] = list(lines)
        print(*tables[name], "", sep="\n", flush=True)

    with subjects(options.workloads, options.traces) as found:
        starts, held_in = units(found), weeks(found)
        show("units", unit_table(starts, options.workloads))
        show("tail", tail_table(found))
        show("week", week_table(found, held_in))
        if not options.no_packing:
            show("packed", packed_table({each.name: pack(each) for each in found}))
    if options.docs:
        put(DOCS / "tune.md", tables)
        answerplots.draw_units(starts, DOCS / "images/tune-units.svg")
        answerplots.draw_stores(held_in, DOCS / "images/tune-stores.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
