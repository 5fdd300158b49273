# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.suite``: cold starts of images, by every mode, over every link.

Modes take turns within each workload and link. A mode whose programs are missing is left out with
the reason; a start that fails, or that should be lazy and is not, ends its cell, and the command
with 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from benchmarks.images.build import default_cache
from benchmarks.link import Measured
from benchmarks.report import Section, save
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from benchmarks.suite import chart
from benchmarks.suite.judge import judge
from benchmarks.suite.links import LINKS, open_link, parse_link
from benchmarks.suite.modes import OWN, WHOLE, Mode, by_devices
from benchmarks.suite.nodes import Site
from benchmarks.suite.peers import PEERS
from benchmarks.suite.publish import Made, make, publish_originals
from benchmarks.suite.runs import Run, cells, table, write_csv
from benchmarks.suite.starts import Case, cold_start
from benchmarks.suite.workloads import WORKLOADS, Workload
from firstread.config import DEVICES
from firstread.errors import FirstreadError
from firstread.signals import unwinding_on_signals
from firstread.testing.containerdconfig import containerd_version

MODES = {mode.name: mode for mode in (*WHOLE, *OWN, *PEERS)}
IMAGES = "python,python-server,redis,nginx"
RUNS = 5
FAILURES = (
    *(RuntimeError, AssertionError, OSError, subprocess.SubprocessError),
    *(FirstreadError, grpc.RpcError),
)
"""What a mode may do to its own cells only."""


@dataclass
class Suite:
    """The plan of a suite, and its results.

    Args:
        workloads: to start.
        modes: to start them by.
        links: between registry and node.
        runs: of each.
        whole_runs: of modes that fetch the whole image first.
        found: figures of all starts so far.
        left_out: mode to the reason.
        failed: cell to what happened.
    """

    workloads: Sequence[Workload]
    modes: Sequence[Mode]
    links: Sequence[str]
    runs: int
    whole_runs: int
    found: list[Run] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    speeds: dict[str, Measured | None] = field(default_factory=dict)

    def run(self, scratch: Path) -> None:
        """Make the images, then start them."""
        self.left_out = {mode.name: why for mode in self.modes if (why := mode.missing())}
        for name, why in self.left_out.items():
            print(f"  {name}: left out: {why}", flush=True)
        present = [mode for mode in self.modes if mode.name not in self.left_out]
        publish_originals(self.workloads)
        made = dict(self._make(present, scratch))
        for link in self.links:
            with open_link(link) as (site, speed):
                self.speeds[link] = speed
                print(f"\nlink {link}: {speed or 'loopback, no limit'}", flush=True)
                for workload in self.workloads:
                    self._take_turns(link, site, workload, present, made, scratch)

    def _make(self, modes: Sequence[Mode], scratch: Path) -> Iterator[tuple[tuple[str, str], Made]]:
        for workload in self.workloads:
            known: dict[str, Made] = {}  # modes share images
            for mode in modes:
                try:
                    if mode.tag not in known:
                        known[mode.tag] = make(mode, workload, scratch)
                    yield (workload.name, mode.name), known[mode.tag]
                except FAILURES as exc:
                    self._fail(f"image of {workload.name} for {mode.name}", exc)

    def _take_turns(
        self,
        link: str,
        site: Site,
        workload: Workload,
        modes: Sequence[Mode],
        made: Mapping[tuple[str, str], Made],
        scratch: Path,
    ) -> None:
        """Start a workload by each mode in turn, as often as asked."""
        going = [mode for mode in modes if (workload.name, mode.name) in made]
        for number in range(max(self.runs, self.whole_runs)):
            for mode in list(going):
                if number >= (self.runs if mode.lazy else self.whole_runs):
                    continue
                case = Case(link, site, workload, mode, made[workload.name, mode.name])
                try:
                    run = cold_start(case, number, scratch)
                except FAILURES as exc:
                    self._fail(f"{workload.name} at {link} by {mode.name}", exc)
                    going.remove(mode)
                    continue
                self.found.append(run)
                cell = cells([run])[link, workload.name, mode.name]
                print(f"  {workload.name}, run {number + 1}, {mode.name}: {cell}", flush=True)

    def _fail(self, what: str, exc: BaseException) -> None:
        text = exc.details() if isinstance(exc, grpc.Call) else str(exc)
        self.failed[what] = " ".join(text.split())[-400:]
        print(f"  FAILED {what}: {self.failed[what]}", flush=True)

    def section(self, name: str, setting: dict[str, str]) -> Section:
        """Return the results for the page of docs."""
        names, links = ", ".join(w.name for w in self.workloads), ", ".join(self.speeds)
        section = Section(name, f"Cold starts at {links}: {names}", setting)
        setting["runs"] = (
            f"{self.runs} of each mode by turns, {self.whole_runs} of those that fetch the whole"
            " image first; each on a new node, the image in the registry's memory"
        )
        setting["clock"] = "from the request to pull to the workload's answer; the sandbox runs"
        setting["pulls"] = "firstread's by way of its image service, as docs/kubernetes.md says"
        setting["bytes"] = (
            "over the link, with headers; without a link, bodies in the registry's log"
        )
        for link, speed in self.speeds.items():
            setting[f"link {link}"] = str(speed or "loopback, no limit")
        ran = {run.mode for run in self.found}
        setting["versions"] = "; ".join(
            _versions([mode for mode in self.modes if mode.name in ran])
        )
        for mode in self.modes:
            why = self.left_out.get(mode.name)
            setting[f"`{mode.name}`"] = f"left out: {why}" if why else _about(mode)
        setting |= {f"failed: {what}": why for what, why in self.failed.items()}
        section.start()
        found = cells(self.found)
        section.table = table(found)
        for figure in judge(found, self.speeds):
            section.take(figure)
        return section


def _about(mode: Mode) -> str:
    note = "; fetches the rest in the background" if mode.background else ""
    return f"{mode.setting}{note}"


def _versions(modes: Sequence[Mode]) -> Iterator[str]:
    yield f"containerd {'.'.join(map(str, containerd_version()))}"
    programs = [name for mode in modes if mode.daemon for name in (mode.daemon[0], *mode.programs)]
    for program in dict.fromkeys(programs):
        option = "-version" if "stargz" in program else "--version"
        done = subprocess.run([program, option], capture_output=True, text=True, check=False)
        said = (done.stdout or done.stderr).strip().partition("\n")[0].removeprefix(program)
        yield f"{program} {' '.join(said.split())}"


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)

    def listed(flag: str, default: str, known: Sequence[str]) -> None:
        what = f"comma-separated, of {', '.join(known)} [{default}]"
        parser.add_argument(flag, default=default, metavar="NAME,…", help=what)

    listed("--images", IMAGES, list(WORKLOADS))
    listed("--modes", "all", ["all", *MODES])
    listed("--devices", "", DEVICES)
    listed("--links", ",".join(LINKS), LINKS)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each cell [{RUNS}]")
    parser.add_argument("--whole-runs", type=int, help="of modes that fetch all first [--runs]")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each run")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="SVG or PNG; takes matplotlib")
    kept = default_cache().parent / "benchmarks.json"
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=kept, help=f"keep results in [{kept}]"
    )
    parser.add_argument("--name", default="suite", help="of the results on the page [suite]")
    parser.add_argument("--docs", action="store_true", help="write them to docs/benchmarks.md")
    return parser


def _parsed(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Suite:
    """Return what the options ask for, or end with a message about them."""
    images = options.images.split(",")
    modes = list(MODES) if options.modes == "all" else options.modes.split(",")
    links = options.links.split(",")
    devices = [name for name in options.devices.split(",") if name]
    if unknown := [name for name in images if name not in WORKLOADS]:
        parser.error(f"there is no image {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    if unknown := [name for name in modes if name not in MODES]:
        parser.error(f"there is no mode {unknown[0]!r}; there are {', '.join(MODES)}")
    if unknown := [name for name in devices if name not in DEVICES]:
        parser.error(f"there is no device {unknown[0]!r}; there are {', '.join(DEVICES)}")
    try:
        for link in links:
            parse_link(link)
    except ValueError as exc:
        parser.error(str(exc))
    if options.chart and (why := chart.missing()):
        parser.error(why)
    if os.geteuid():
        parser.error("the suite mounts images: run it as root")
    whole = options.runs if options.whole_runs is None else options.whole_runs
    workloads = [WORKLOADS[name] for name in images]
    chosen = [each for name in modes for each in by_devices(MODES[name], devices)]
    return Suite(workloads, chosen, links, options.runs, whole)


def main() -> int:
    parser = _options()
    options = parser.parse_args()
    suite = _parsed(parser, options)
    try:
        with unwinding_on_signals(), scratch_directory() as scratch:
            setting = describe(scratch)
            suite.run(scratch)
    except (KeyboardInterrupt, SystemExit):
        if not suite.found:
            return 130
        suite.failed["suite"] = "it was interrupted"
    except FirstreadError as exc:
        print(f"error: {exc}" + (f" ({exc.hint})" if exc.hint else ""), file=sys.stderr)
        return exc.exit_code
    if not suite.found:
        return 1 if suite.failed else 0
    section = suite.section(options.name, setting)
    if options.csv:
        write_csv(suite.found, options.csv)
    if options.chart:
        chart.draw(cells(suite.found), options.chart)
    save(section, options.json, docs=options.docs)
    return 1 if suite.failed else 0


if __name__ == "__main__":
    sys.exit(main())
