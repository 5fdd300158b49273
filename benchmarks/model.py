# SPDX-License-Identifier: Apache-2.0
"""The image that serves a model: its conversion, its hot sectors, and how fast its weights come.

``python -m benchmarks.model [--image NAME] [--link LINK] [--runs N] [--docs]``, as root. The suite
measures its starts: ``make bench-model`` runs both.

Owns the reading of the weights: the file is read from its beginning to its end through a cold
mount, by read(2) or through a mapping, as loaders of safetensors do. The share of the link is that
of the payload: compressed bytes of blobs, by the clock, over what one TCP connection carries.
Invariant: each run is a new node, and the mount was lazy.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.convert import convert
from benchmarks.host import Host
from benchmarks.images.build import build, default_cache
from benchmarks.images.recipes import LARGE_IMAGES
from benchmarks.link import Measured
from benchmarks.measure import median
from benchmarks.places import FIRSTREAD, LAZY, publish, reference, run_command, storage, warm
from benchmarks.recordings import until
from benchmarks.report import DOCS, Goal, Section, save
from benchmarks.scratch import scratch_directory
from benchmarks.sequential import READERS, run_reader
from benchmarks.setting import describe
from benchmarks.suite.links import open_link
from benchmarks.suite.nodes import Site
from benchmarks.suite.workloads import WORKLOADS
from firstread.testing.registry import DockerRegistry

NAME = "convert-model"
WEIGHTS = "model/model.safetensors"
HOT = "weights-hot"  # tag of the optimised image
LINK, RUNS = "1Gbit/1ms", 2
MEMORY_MB, METADATA_PERCENT, OPTIMIZE_S, SHARE = 300, 0.3, 10, 0.9
MB = 1_000_000


def conversion(section: Section, name: str, layout: Path, scratch: Path) -> None:
    """Convert the image once, knowing none of its layers."""
    converted = convert(layout, scratch)
    usage, result = converted.usage, converted.result
    content = result["content_size"] / MB
    section.add(
        f"{name}: content per second",
        content / usage.wall_s,
        "MB/s",
        None,
        f"{content:,.0f} MB in {usage.wall_s:.1f} s, {usage.cpu_s:.1f} s of CPU",
    )
    section.add(f"{name}: peak memory", usage.peak_rss / MB, "MB", Goal("<=", MEMORY_MB))
    hot = result["hot"]["blob_size"] if result["hot"] else 0
    section.add(
        f"{name}: size, of the gzip image",
        (result["size"] - hot) / result["source_size"],
        "x",
        Goal("<=", 1),
        f"{(result['size'] - hot) / MB:,.0f} of {result['source_size'] / MB:,.0f} MB; its start set"
        f" adds {hot / MB:.1f} MB",
    )
    section.add(
        f"{name}: metadata, of the converted image",
        100 * result["metadata_size"] / result["size"],
        "%",
        Goal("<=", METADATA_PERCENT),
        f"{result['metadata_size'] / MB:.2f} MB, {result['inodes']:,} inodes,"
        f" {result['sectors']} sectors",
    )


def optimizing(section: Section, name: str, scratch: Path) -> None:
    """Trace a start of the converted image, and put what it reads into hot sectors."""
    trace = scratch / "trace"
    with DockerRegistry(storage=storage()) as registry:
        lazy, hot = (reference(registry, name, tag) for tag in (LAZY, HOT))
        with Host(scratch / "tracing") as host:
            options = ["--plain-http", "-o", str(trace), *until(WORKLOADS[name])]
            run_command(*host.command("trace", *options, lazy))
        registry.forget()
        said = run_command(*FIRSTREAD, "optimize", "--json", "--trace", str(trace), lazy, hot)
        uploads = registry.counts.requests_of(f"POST /v2/bench/{name}/blobs/uploads")
    result = json.loads(said)
    section.add(
        f"{name}: optimizing in a registry",
        result["seconds"],
        "s",
        Goal("<=", OPTIMIZE_S),
        f"{uploads} blobs sent; hot sectors {result['hot']['blob_size'] / MB:.1f} MB of"
        f" {result['hot']['size'] / MB:.1f}, metadata {result['metadata_size'] / MB:.2f} MB",
    )


def weights(
    section: Section, name: str, site: Site, speed: Measured | None, scratch: Path, runs: int
) -> None:
    """Read the weights through cold mounts of the plain and of the optimised image, by turns."""
    cases = [(tag, how) for tag in (LAZY, HOT) for how in READERS]
    found: dict[tuple[str, str], list[tuple[float, int, int]]] = {case: [] for case in cases}
    for _ in range(runs):
        for tag, how in cases:
            warm(name)
            with Host(scratch / f"node-{time.monotonic_ns()}") as host:
                place, started = host.attach(site.image(name, tag)), time.perf_counter()
                run_reader(place / WEIGHTS, how)
                seconds = time.perf_counter() - started
                stats = host.check_lazy()
            found[tag, how].append((seconds, stats["bytes_fetched"], stats["requests"]))
    for (tag, how), readings in found.items():
        seconds = median([reading[0] for reading in readings])
        _, size, requests = next(reading for reading in readings if reading[0] == seconds)
        carried = size / seconds
        section.add(
            f"{name}, {tag}: weights {how}, " + ("speed" if speed is None else "share of the link"),
            carried / MB if speed is None else carried / speed.bytes_per_s,
            "MB/s" if speed is None else "x",
            None if speed is None else Goal(">=", SHARE),
            f"{size / MB:.0f} MB came in {seconds:.2f} s, {requests} requests",
        )


def measure(name: str, link: str, runs: int) -> Section:
    """Run all parts."""
    (layout,) = build([name])
    publish([name])
    with scratch_directory() as scratch:
        section = Section(NAME, "An image that serves a model", describe(scratch))
        section.setting["image"] = f"`{name}`; its starts have a chapter of their own"
        section.start()
        conversion(section, name, layout, scratch)
        optimizing(section, name, scratch)
        with open_link(link) as (site, speed):
            section.note("link", str(speed or "loopback, no limit"))
            weights(section, name, site, speed, scratch, runs)
    return section


def main() -> None:
    place = default_cache().parent / "benchmarks.json"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--image", choices=LARGE_IMAGES, default="model")
    parser.add_argument("--link", default=LINK, help=f"of the suite; [{LINK}]")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each reading [{RUNS}]")
    parser.add_argument("--json", type=Path, default=place, help=f"keep figures in [{place}]")
    parser.add_argument("--docs", action="store_true", help=f"write them to docs/{DOCS.name}")
    options = parser.parse_args()
    save(measure(options.image, options.link, options.runs), options.json, docs=options.docs)


if __name__ == "__main__":
    main()
