# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.podreads``: a pod reads all of its image, cold, then warm, by every mode.

Modes, nodes and images are those of `benchmarks.suite`; ``--devices`` starts ours once by each
device. The last two of three passes find the image on the node, and in the page cache.
Invariant: a container of the same image runs the same command, whatever the mode; modes take turns.
"""

from __future__ import annotations

import argparse
import itertools
from datetime import datetime
from pathlib import Path

from benchmarks.images.build import default_cache
from benchmarks.images.ready import Prints
from benchmarks.measure import median
from benchmarks.places import storage
from benchmarks.report import DOCS, Goal, Section, save
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from benchmarks.suite.__main__ import MODES
from benchmarks.suite.modes import Mode, by_devices
from benchmarks.suite.nodes import Site, containerd_node, start
from benchmarks.suite.publish import Made, make, publish_originals
from benchmarks.suite.workloads import Workload
from firstread.testing.registry import DockerRegistry

NAME = "devices-pods"
READ = "find / -xdev -type f -print0 | xargs -0 cat > /dev/null"
PASSES = ("cold", "again", "warm")
SCRIPT = "; ".join(f"{READ}; echo {name}" for name in PASSES) + "; exec sleep 600"
PEERS = "stargz-best,soci-best"

Times = dict[str, float]
"""Seconds of the first pass, from the request to pull, and of the last."""


def reads(mode: Mode, image: str, made: Made, site: Site, place: Path) -> Times:
    """Return what the passes take on a new node."""
    site.forget(image)
    with containerd_node(site, mode, place) as node:
        pod = node.start_pod()
        command, at = ("sh", "-c", SCRIPT), dict[str, float]()
        ready = start(node, pod, site.image(image, made.tag), Prints(PASSES[-1]), command)
        (log,) = node.logs.rglob("*.log")
        for line in log.read_text().splitlines():
            stamp, _, _, text = line.split(" ", 3)
            at[text] = _seconds(stamp)
    cold = ready.ready_s - (at["warm"] - at["cold"])
    return {"cold": cold, "warm": at["warm"] - at["again"]}


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def measure(section: Section, image: str, modes: list[Mode], runs: int, scratch: Path) -> None:
    """Read an image by all modes in turns."""
    workload = Workload(image, image, Prints(PASSES[-1]), ("sh", "-c", SCRIPT))
    publish_originals([workload])
    made = {mode.name: make(mode, workload, scratch) for mode in modes}
    found: dict[str, list[Times]] = {mode.name: [] for mode in modes}
    numbers = itertools.count()
    with DockerRegistry(storage=storage()) as registry:
        for _ in range(runs):
            for mode in modes:
                place = scratch / f"n{next(numbers)}"
                site = Site(registry, registry.host)
                found[mode.name].append(reads(mode, image, made[mode.name], site, place))
    for what in ("cold", "warm"):
        taken = {name: median([times[what] for times in all_of]) for name, all_of in found.items()}
        peers = {m.name: taken[m.name] for m in modes if m.snapshotter != "firstread"}
        best = min(peers, key=peers.__getitem__, default="")
        for name, seconds in taken.items():
            section.add(f"{image}: {what}, {name}", seconds, "s")
            if best and name not in peers:
                title = f"{image}: {what}, {best} takes longer than {name}"
                section.add(title, peers[best] / seconds, "x", Goal(">=", 1))


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.podreads", description=__doc__)
    parser.add_argument("--image", default="nodejs")
    parser.add_argument("--modes", default=f"lazy,{PEERS}")
    parser.add_argument("--devices", default="fanotify,fuse")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--docs", action="store_true", help=f"write them to docs/{DOCS.name}")
    options = parser.parse_args()
    named = [MODES[name] for name in options.modes.split(",")]
    modes = [one for mode in named for one in by_devices(mode, options.devices.split(","))]
    with scratch_directory() as scratch:
        section = Section(NAME, "A pod reads all of its image, by each device", describe(scratch))
        for mode in modes:
            section.setting[f"`{mode.name}`"] = mode.missing() or mode.setting
        present = [mode for mode in modes if not mode.missing()]
        section.setting["runs"] = f"medians of {options.runs}, by turns, over loopback"
        section.setting["cold"] = "from the request to pull to the end of the first pass"
        section.start()
        measure(section, options.image, present, options.runs, scratch)
    save(section, default_cache().parent / "benchmarks.json", docs=options.docs)


if __name__ == "__main__":
    main()
