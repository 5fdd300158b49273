# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.tune``: cold starts by sector size, and what the simulator says of them.

Owns the one place that starts images of several sector sizes. Two sections of the page come of it:
which sector size is best, at what cost, and how far the predictions of ``firstread tune`` are off.

A file keeps each figure as soon as it is there; a later run takes the figures that it lacks, so an
evening of measurements can be cut into pieces: ``--runs 0`` makes the images, ``--links`` and the
names of workloads choose what is started next. Invariant: each cold start was lazy.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import sizetables
from benchmarks.footprint import footprint, synthetic
from benchmarks.images.build import default_cache
from benchmarks.places import storage
from benchmarks.recordings import traced
from benchmarks.report import DOCS, save
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from benchmarks.sizes import LOCAL, Kept, Sized, convert_sized, made_before, mode_of, traces
from benchmarks.suite.links import LINKS, open_link, parse_link
from benchmarks.suite.publish import Made, publish_originals
from benchmarks.suite.starts import Case, cold_start
from benchmarks.suite.workloads import WORKLOADS, Workload
from firstread.errors import FirstreadError
from firstread.signals import unwinding_on_signals
from firstread.testing.registry import DockerRegistry
from firstread.units import parse_size

IMAGES = "python,python-server,redis,postgresql"
SIZES = "256KiB,512KiB,1MiB,2MiB,4MiB"
LAYOUTS = ("plain", "hot")
SYNTHETIC = "10000,60000"  # sectors
RUNS = 3
FAILURES = (RuntimeError, ValueError, OSError, subprocess.SubprocessError, FirstreadError)
"""What may end a start, and costs its cell only."""


@dataclass
class Plan:
    """Figures to take, and figures taken.

    Args:
        workloads: to start.
        links: names of links.
        sized: layouts and sector sizes.
        runs: cold starts of each.
        kept: figures.
        scratch: an empty directory.
        as_made: take images of an earlier run as they are.
    """

    workloads: Sequence[Workload]
    links: Sequence[str]
    sized: Sequence[Sized]
    runs: int
    kept: Kept
    scratch: Path
    as_made: bool

    def run(self) -> None:
        """Make the images, then take every figure that is missing."""
        missing = [workload for workload in self.workloads if self._is_missing(workload)]
        if missing and not self.as_made:
            publish_originals(missing)
        made = {(w.name, sized): self._make(w, sized) for w in missing for sized in self.sized}
        if not self.runs:
            return
        if missing:
            self._take_turns(LOCAL, "none", missing, made)
        for link in self.links if missing else ():
            self._take_turns(link, link, missing, made)

    def _take_turns(
        self,
        name: str,
        link: str,
        workloads: Sequence[Workload],
        made: Mapping[tuple[str, Sized], Made],
    ) -> None:
        with open_link(link) as (site, speed):
            print(f"\nlink {name}: {speed or 'loopback, no limit'}", flush=True)
            for workload in workloads:
                for number in range(self.runs):
                    for sized in self.sized:
                        mode = mode_of(sized, present=name == LOCAL)
                        case = Case(name, site, workload, mode, made[workload.name, sized])
                        self._start(case, number + 1)

    def _is_missing(self, workload: Workload) -> bool:
        return not self.runs or any(
            self.kept.count(link, workload.name, str(sized)) < self.runs
            for link in self.links
            for sized in self.sized
        )

    def _make(self, workload: Workload, sized: Sized) -> Made:
        if self.as_made:
            return made_before(workload, sized)
        return convert_sized(workload, sized, traced(traces(), workload.name))

    def _start(self, case: Case, count: int) -> None:
        """Start an image once, unless `count` starts of it are kept."""
        if self.kept.count(case.link, case.workload.name, case.mode.name) >= count:
            return
        try:
            run = cold_start(case, count - 1, self.scratch)
        except FAILURES as exc:
            print(f"  FAILED {case.workload.name}, {case.mode.name}: {exc}", flush=True)
            return
        self.kept.add_run(run)
        print(f"  {run.workload}, {run.mode}: {sizetables.shown(run)}", flush=True)

    def footprints(self, counts: Iterable[int]) -> None:
        """Measure what does not depend on a link, once for each image and size."""
        images = dict.fromkeys(workload.image for workload in self.workloads)
        with DockerRegistry(storage=storage()) as registry:
            for count in counts:
                if self.kept.footprint(str(count), 0) is None:
                    self.kept.add_footprint(synthetic(registry, count, self.scratch))
            for image in images:
                for sized in self.sized:
                    if sized.kind == "plain" and self.kept.footprint(image, sized.size) is None:
                        print(f"  {image}, {sized}: all of it", flush=True)
                        self.kept.add_footprint(footprint(registry, image, sized, self.scratch))


def _sized(layouts: Iterable[str], sizes: Sequence[int]) -> Iterator[Sized]:
    for kind in layouts:
        for size in sizes:
            yield Sized(kind, size)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    names = ", ".join(WORKLOADS)
    parser.add_argument("--images", default=IMAGES, metavar="NAME,…", help=f"of {names} [{IMAGES}]")
    links = ",".join(LINKS)
    parser.add_argument("--links", default=links, metavar="LINK,…", help=f"[{links}]")
    parser.add_argument("--sector-size", default=SIZES, metavar="SIZE,…", help=f"[{SIZES}]")
    parser.add_argument("--layout", default=",".join(LAYOUTS), metavar="NAME,…", help="plain, hot")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"0: make images only [{RUNS}]")
    parser.add_argument("--as-made", action="store_true", help="convert nothing")
    parser.add_argument("--footprint", action="store_true", help="also what no link changes")
    parser.add_argument("--predict", action="store_true", help="also what the simulator predicts")
    parser.add_argument("--sectors", default=SYNTHETIC, metavar="N,…", help="of made-up images")
    cache = default_cache().parent
    kept, results = cache / "tune.jsonl", cache / "benchmarks.json"
    parser.add_argument("--keep", type=Path, default=kept, metavar="FILE", help=f"figures [{kept}]")
    parser.add_argument("--anew", action="store_true", help="forget the figures of earlier runs")
    parser.add_argument("--json", type=Path, default=results, metavar="FILE", help=f"[{results}]")
    parser.add_argument("--docs", action="store_true", help=f"write docs/{DOCS.name}")
    return parser


def main() -> int:
    parser = _options()
    options = parser.parse_args()
    names, links = options.images.split(","), options.links.split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        parser.error(f"there is no image {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    for link in links:
        parse_link(link)
    if os.geteuid():
        parser.error("it mounts: run it as root")
    if options.anew:
        options.keep.unlink(missing_ok=True)
    sizes = [parse_size(text) for text in options.sector_size.split(",")]
    sized = list(_sized(options.layout.split(","), sizes))
    workloads = [WORKLOADS[name] for name in names]
    with unwinding_on_signals(), scratch_directory() as scratch:
        setting = describe(scratch)
        kept = Kept.read(options.keep)
        plan = Plan(workloads, links, sized, options.runs, kept, scratch, options.as_made)
        plan.run()
        if options.footprint:
            plan.footprints(map(int, filter(None, options.sectors.split(","))))
        if not options.runs:
            return 0
        chosen = kept.of(names, links, sized)
        sections = [sizetables.sizes_section(chosen, setting, options.runs)]
        if options.predict:
            sections.append(sizetables.predictions_section(chosen, setting, workloads))
    for section in sections:
        save(section, options.json, docs=options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
