# SPDX-License-Identifier: Apache-2.0
"""One image by each device, beside the same tree on the disk: walked and read, cold and warm.

Each device has a node of its own. The first read of the tree finds an empty store; for all that
follows every sector is present. In each round the trees take turns, in other processes. Then what a
device costs by itself (`benchmarks.transport`), and the memory of a daemon with many mounts that
were walked. Invariant: what is compared is read by the same command.

``python -m benchmarks.devices [IMAGE…] [--runs N] [--docs]``, as root.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.host import Host
from benchmarks.images.build import default_cache
from benchmarks.measure import median, timed
from benchmarks.places import LAZY, publish, reference, storage, warm
from benchmarks.report import DOCS, Goal, Section, save
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe, drop_caches
from benchmarks.transport import transport
from benchmarks.trees import read_tree
from firstread.config import DEVICES as ALL_DEVICES
from firstread.testing.nbdmount import HAS_NBD
from firstread.testing.registry import DockerRegistry

NAME = "devices"
DEVICES = [name for name in ALL_DEVICES if name != "nbd" or HAS_NBD]
MB = 1_000_000
MOUNTS = 50
MOST_MB = 200
GOALS = {
    ("fuse", "walk", "warm"): 0.9,
    ("fuse", "read", "warm"): 0.75,
    ("flat", "read", "cold"): 1.2,
    ("loop", "read", "cold"): 1.2,
}


def walk_tree(tree: Path) -> float:
    """Return the seconds of listing every file below `tree` with its attributes."""
    script = f"find {tree} -xdev -ls > /dev/null"
    return timed(lambda: subprocess.run(("sh", "-c", script), check=True))


WAYS = {"walk": walk_tree, "read": read_tree}


def compare(
    section: Section, registry: DockerRegistry, name: str, scratch: Path, runs: int
) -> None:
    """Measure one image.

    Args:
        section: gets the figures.
        registry: has the image.
        name: of the image.
        scratch: a directory.
        runs: rounds of each measurement.
    """
    trees: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:
        hosts = {}
        for device in DEVICES:
            warm(name)
            host = stack.enter_context(Host(scratch / device, "--device", device))
            place = host.attach(reference(registry, name, LAZY))
            section.add(f"{name}: first read of the tree, {device}", read_tree(place), "s")
            if host.stats()["device"] != device or not host.stats()["events"]:
                raise RuntimeError(f"the mount was not lazy, or not by {device}")
            host.complete(place)
            if device == "mixed":  # a mount reads what is present then without its daemon
                host.detach(place)
                place = host.attach(reference(registry, name, LAZY))
            hosts[device], trees[device] = host, place
        trees["ext4"] = scratch / "disk"
        subprocess.run(("cp", "--archive", trees[DEVICES[0]], trees["ext4"]), check=True)
        for what, way in WAYS.items():
            for state in ("cold", "warm"):
                used = {device: host.cpu_s() for device, host in hosts.items()}
                rounds = [_round(trees, way, state) for _ in range(runs)]
                times = {tree: median([times[tree] for times in rounds]) for tree in trees}
                for device, host in hosts.items():
                    goal = GOALS.get((device, what, state))
                    cpu = (host.cpu_s() - used[device]) / runs
                    section.add(
                        f"{name}: {what}, {state}, {device}",
                        times["ext4"] / times[device],
                        "x",
                        Goal(">=", goal) if goal else None,
                        f"{times[device]:.3f} s, ext4 {times['ext4']:.3f} s, daemon {cpu:.2f} s",
                    )


def _round(trees: dict[str, Path], way: Callable[[Path], float], state: str) -> dict[str, float]:
    times = {}
    for name, tree in trees.items():
        if state == "cold":
            drop_caches()
        else:
            way(tree)
        times[name] = way(tree)
    return times


def memory(section: Section, registry: DockerRegistry, names: list[str], scratch: Path) -> None:
    """Measure the memory of a daemon whose mounts were walked, and read a little."""
    for device in DEVICES:
        with Host(scratch / f"memory-{device}", "--device", device) as host:
            for number in range(MOUNTS):
                name = names[number % len(names)]
                place = host.attach(reference(registry, name, LAZY), f"{name}-{number}")
                walk_tree(place)
                first = ("sh", "-c", f"find {place} -xdev -type f -size +0 | head -1 | xargs cat")
                subprocess.run(first, stdout=subprocess.DEVNULL, check=True)
            rss, pss = host.rss_bytes() / MB, host.pss_bytes() / MB
        section.add(
            f"memory of the daemon, {MOUNTS} mounts, {device}",
            rss,
            "MB",
            Goal("<=", MOST_MB),
            f"supervisor and fetcher; {pss:.0f} MB with what they share counted once",
        )


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("images", nargs="*", default=["debian", "nodejs"], metavar="IMAGE")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--docs", action="store_true", help=f"write them to docs/{DOCS.name}")
    options = parser.parse_args()
    publish(options.images)
    with scratch_directory() as scratch, DockerRegistry(storage=storage()) as registry:
        section = Section(NAME, "The same image by each device", describe(scratch))
        section.setting["runs"] = f"medians of {options.runs}, by turns; speed as a share of ext4's"
        section.start()
        for name in options.images:
            compare(section, registry, name, scratch / name, options.runs)
        transport(section, scratch)
        memory(section, registry, options.images, scratch)
    save(section, default_cache().parent / "benchmarks.json", docs=options.docs)


if __name__ == "__main__":
    main()
