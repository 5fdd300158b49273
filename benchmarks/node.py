# SPDX-License-Identifier: Apache-2.0
"""The cost of a mounted image: mounting, reads of present and of absent data, memory.

A real daemon makes every mount, in other processes than the readers.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.first import first_reads
from benchmarks.host import Host
from benchmarks.images.recipes import IMAGES
from benchmarks.measure import median, timed
from benchmarks.places import LAZY, publish, publish_many_sectors, reference, storage
from benchmarks.present import present_data
from benchmarks.report import Goal, Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from benchmarks.whole import read_everything
from firstread.testing.registry import DockerRegistry

NAME = "node"
LARGE = "python"
SECTORS = 10_000
MOUNTS = 50
RUNS = 3
MB = 1_000_000


def measure() -> Section:
    """Run all parts."""
    publish(IMAGES)
    with scratch_directory() as scratch, DockerRegistry(storage=storage()) as registry:
        section = Section(NAME, "Mounts and reads", describe(scratch))
        section.setting["link"] = "loopback, no limit; the image in the registry's memory"
        section.setting["image"] = f"{LARGE}, but for mounting; medians of {RUNS} runs, by turns"
        section.start()
        mounting(section, registry, scratch)
        present_data(section, registry, LARGE, scratch, RUNS)
        first_reads(section, registry, LARGE, scratch)
        read_everything(section, registry, LARGE, scratch, RUNS)
        memory(section, registry, scratch)
    return section


def mounting(section: Section, registry: DockerRegistry, scratch: Path) -> None:
    """Mount an image of many sectors; count the registry's requests before that."""
    image = f"{registry.host}/bench/sectors:{SECTORS}"
    publish_many_sectors(image, SECTORS)
    with Host(scratch / "mounting") as host:
        registry.forget()
        first = timed(lambda: host.detach(host.attach(image)))
        requests = registry.counts.requests_of("GET")
        times = []
        for _ in range(2 * RUNS):
            started = time.perf_counter()
            directory = host.attach(image, policy="never")
            times.append(time.perf_counter() - started)
            sectors = host.stats()["sectors"]
            host.detach(directory)
    if sectors != SECTORS:
        raise RuntimeError(f"the image has {sectors} sectors")
    section.add(
        f"mount of {sectors:,} sectors, metadata here",
        median(times) * 1000,
        "ms",
        Goal("<=", 300),
        f"of {len(times)}; fetched, mounted, unmounted the first time in {first * 1000:.0f} ms",
    )
    section.add("requests before the mount", requests, "", Goal("<=", 3))


def memory(section: Section, registry: DockerRegistry, scratch: Path) -> None:
    """Measure the memory of a daemon with many mounts, of all images, each read a little."""
    with Host(scratch / "memory") as host:
        for number in range(MOUNTS // len(IMAGES)):
            for name in IMAGES:
                mounted = host.attach(reference(registry, name, LAZY), f"{name}-{number}")
                first = next(path for path in mounted.rglob("*") if path.is_file())
                first.read_bytes()
        count = len(host.status()["mounts"])
        rss, pss = host.rss_bytes() / MB, host.pss_bytes() / MB
    section.add(
        f"resident memory of the daemon, {count} mounts",
        rss,
        "MB",
        Goal("<=", 120),
        f"supervisor and fetcher; {pss:.0f} MB with what they share counted once",
    )
