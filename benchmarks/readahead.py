# SPDX-License-Identifier: Apache-2.0
"""The read-ahead of a mount: what each size costs a start, and gives to who reads present data.

First part: each image starts on a new node with one read-ahead from the mount to ready, and the
daemon counts what that fetched. Second part: all is present, and the page cache is empty; a process
reads the whole tree, or one large file, in turns. Invariant: the benchmark sets the read-ahead of a
shared mount before the container joins it, which changes nothing.

``python -m benchmarks.readahead [IMAGE…] [--tag TAG] [--runs N] [--link MBIT/MS] [--kib N,N…]``, as
root.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import sequential
from benchmarks.host import Host
from benchmarks.images.ready import Prints, Ready
from benchmarks.images.recipes import IMAGES
from benchmarks.measure import median, timed
from benchmarks.places import LAZY, publish, reference, warm
from benchmarks.report import Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe, drop_caches
from benchmarks.start import start_lazy
from benchmarks.suite.workloads import SERVER
from benchmarks.trees import read_tree
from firstread.device.readahead import set_read_ahead
from firstread.testing.registry import DockerRegistry
from firstread.units import MiB

NAME = "readahead"
MB = 1_000_000
START_KIB = (0, 4, 8, 16, 32, 64, 128)
STEADY_KIB = (16, 128, 512, 1024, 4096)
LARGE_MIB = 256

What = tuple[str, str, Ready, tuple[str, ...]]


def shared(host: Host, image: str, kib: int) -> Path:
    """Return the shared mount of an image on this node, with a read-ahead."""
    access = {"plain_http": True}
    place = Path(
        host.client.post(
            "/mount", image=image, directory=None, policy="missing", access=access, holder=NAME
        )["mountpoint"]
    )
    set_read_ahead(place, kib)
    return place


def starts(
    section: Section,
    registry: DockerRegistry,
    scratch: Path,
    what: What,
    sizes: Sequence[int],
    runs: int,
) -> None:
    """Start one image with each read-ahead, on nodes that have nothing of it.

    Args:
        section: gets a figure for each.
        registry: that has the image.
        scratch: for nodes.
        what: name of the image, its tag, how it is ready, and its command if it is another one.
        sizes: of the read-ahead, in KiB.
        runs: of each, by turns.
    """
    name, tag, ready, workload = what
    image = reference(registry, name, tag)
    found: dict[int, list[tuple[float, int, int, int]]] = {kib: [] for kib in sizes}
    for number in range(runs):
        for kib in sizes:
            warm(name)
            with Host(scratch / f"{name}-{len(workload)}-{kib}-{number}") as host:
                shared(host, image, kib)
                started = start_lazy(host, image, ready, workload)
                stats = host.stats()
            if not stats["events"]:
                raise RuntimeError("the start was not lazy")
            figures = started.downloaded, stats["requests"], stats["waited_reads"]
            found[kib].append((started.ready_s, *figures))
    for kib, rows in found.items():
        ready_s, fetched, requests, waited = (median(column) for column in zip(*rows, strict=True))
        section.add(
            f"{name}{', a web server' if workload else ''}: {kib} KiB to ready",
            fetched / MB,
            "MB",
            detail=f"{ready_s:.2f} s, {requests:.0f} requests, {waited:.0f} reads waited",
        )


def present(
    section: Section, registry: DockerRegistry, scratch: Path, name: str, sizes: Sequence[int]
) -> None:
    """Read the tree of an image, and one large file, that are all present."""
    large = sequential.publish("weights", LARGE_MIB)
    with Host(scratch / "present") as host:
        tree = host.attach(reference(registry, name, LAZY), "tree")
        file = host.attach(reference(registry, large, LAZY), "large") / sequential.FILE
        for mounted in (tree, file.parent):
            host.complete(mounted)
        for kib in sizes:
            for mounted in (tree, file.parent):
                set_read_ahead(mounted, kib)
            drop_caches()
            seconds = read_tree(tree)
            detail = f"; the tree of {name}: {seconds:.2f} s"
            speeds = []
            for how in sequential.READERS:
                drop_caches()
                speeds.append(LARGE_MIB * MiB / MB / _seconds(file, how))
            section.add(
                f"present, page cache empty, {kib} KiB: one large file",
                speeds[0],
                "MB/s",
                detail=f"mapped {speeds[1]:.0f} MB/s{detail}",
            )


def _seconds(file: Path, how: str) -> float:
    return timed(lambda: sequential.run_reader(file, how))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readahead", description=__doc__)
    parser.add_argument("images", nargs="*", default=["python", "nodejs", "redis"])
    parser.add_argument("--tag", default=LAZY, help="of the images in the benchmarks' registry")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--link", metavar="MBIT/MS", help="loopback if it is not given")
    parser.add_argument("--kib", default=",".join(map(str, START_KIB)), help="read-aheads to try")
    parser.add_argument("--no-present", action="store_true", help="only starts")
    options = parser.parse_args()
    link = sequential.parse_link(options.link) if options.link else None
    sizes = [int(kib) for kib in options.kib.split(",")]
    publish(options.images)
    with scratch_directory() as scratch, sequential.site(link) as registry:
        section = Section(NAME, "Read-ahead of a mount", describe(scratch))
        section.setting["link"] = f"{link}; {link.measure()}" if link else "loopback, no limit"
        section.setting["runs"] = f"medians of {options.runs}, by turns"
        section.start()
        for name in options.images:
            what: What = (name, options.tag, IMAGES[name].ready, ())
            starts(section, registry, scratch, what, sizes, options.runs)
            if name == "python":
                what = name, options.tag, Prints("ready"), SERVER
                starts(section, registry, scratch, what, sizes, options.runs)
        if not options.no_present:
            present(section, registry, scratch, options.images[0], STEADY_KIB)


if __name__ == "__main__":
    main()
