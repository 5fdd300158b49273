# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.costs``: what a node needs besides the link, for the simulator.

Measures each field of `firstread.tune.simulatedlane.Costs` that is not configured, on this machine
with a registry on loopback, and prints it beside the value that ``firstread tune`` takes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.first import Place, find_places, first_frame
from benchmarks.host import Host
from benchmarks.measure import median
from benchmarks.places import LAZY, publish, publish_many_sectors, reference, storage, warm
from benchmarks.recordings import traced
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from benchmarks.start import Started, start_lazy
from benchmarks.suite.workloads import WORKLOADS
from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.sectors.decode import SectorDecoder
from firstread.sectors.format import BLOCK_SIZE, FrameTable
from firstread.testing.registry import DockerRegistry
from firstread.traces.tracefile import read_trace
from firstread.tune.simulatedlane import Costs

STARTED = ("debian", "python-server", "python")  # by turns
LARGE, SMALL = "python", "debian"  # images
RUNS, PROBES, SECTORS, MANY = 5, 40, 64, 2000


def measure(traces: Path, scratch: Path) -> Iterator[tuple[str, float, str]]:
    """Yield the field, its value, and how it was measured."""
    publish({WORKLOADS[name].image for name in STARTED})
    recorded = {name: traced(traces, name) for name in STARTED}
    with DockerRegistry(storage=storage()) as registry:
        for name in (LARGE, SMALL):
            warm(name)
        yield from _pulls(registry, scratch)
        rate = _decoded(registry)
        yield "worker_bytes_per_s", rate, f"{SECTORS} sectors of {LARGE}, one thread"
        yield from _reads(registry, scratch, rate)
        yield from _starts(registry, scratch, recorded)
    with DockerRegistry() as registry:
        yield from _mounts(registry, scratch)


def _pulls(registry: DockerRegistry, scratch: Path) -> Iterator[tuple[str, float, str]]:
    """Measure what becomes of metadata, by two sizes of it."""
    found = []
    for name in (SMALL, LARGE):
        image = reference(registry, name, LAZY)
        with open_source(parse_reference(image)) as repository:
            size = resolve(repository).manifest.layers[0].size
        steps = [_pull(scratch / f"{name}-{number}", image) for number in range(RUNS)]
        found.append((size, median([step["metadata"] for step in steps])))
    (less, soon), (more, late) = found
    rate = (more - less) / (late - soon)
    text = f"{less / 1000:.0f} kB in {soon * 1000:.0f} ms, {more / 1000:.0f} in {late * 1000:.0f}"
    yield "metadata_bytes_per_s", rate, text
    yield "metadata_s", soon - less / rate, "the rest of the same, a request included"


def _pull(place: Path, image: str) -> dict[str, float]:
    """Return the seconds of each step of a mount on a new node."""
    with Host(place) as host:
        target = host.scratch / "pulled"
        target.mkdir()
        access = {"plain_http": True}
        done = host.client.post("/mount", image=image, directory=str(target), access=access)
        host.detach(target)
    return dict(done["timeline"])


def _decoded(registry: DockerRegistry) -> float:
    """Return the compressed bytes that a thread decodes, verifies and writes in a second."""
    places, total, seconds = find_places(reference(registry, LARGE, LAZY), SECTORS), 0, 0.0
    with (
        open_source(parse_reference(reference(registry, LARGE, LAZY))) as repository,
        tempfile.TemporaryFile() as out,
    ):
        for place in places:
            row = place.sector
            with repository.open_blob(place.blob, offset=row.offset, length=row.length) as stream:
                data = b"".join(map(bytes, stream))
            began = time.perf_counter()
            decoder = SectorDecoder(row, place.geometry)
            decoder.buffer[: len(data)] = data
            for frame in decoder.advance(len(data)):
                os.pwrite(out.fileno(), frame, decoder.verified - len(frame))
            seconds += time.perf_counter() - began
            total += len(data)
    return total / seconds


def _reads(
    registry: DockerRegistry, scratch: Path, rate: float
) -> Iterator[tuple[str, float, str]]:
    """Measure first reads of a frame, and reads of what it has brought along."""
    image = reference(registry, LARGE, LAZY)
    places = find_places(image, 2 * PROBES)
    with Host(scratch / "reads") as host:
        mounted = host.attach(image)
        first = median(first_frame(mounted, image, places[:PROBES]).reads)
        events = [_again(mounted, place) for place in places[PROBES:]]
        host.check_lazy()
    event = median(events)
    yield "event_s", event, f"{len(events)} reads of a frame whose sector still comes"
    size = median([_frame_bytes(registry, place) for place in places[:8]])
    text = f"first reads of a frame: {first * 1000:.1f} ms, less event and decoding"
    yield "request_s", first - event - size / rate, text


def _again(mounted: Path, place: Place) -> float:
    """Return the seconds of a read of a frame that another read has just waited for."""
    fd = os.open(mounted / place.path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, 1, place.offset)
    began = time.perf_counter()
    os.pread(fd, 1, place.offset + BLOCK_SIZE)
    seconds = time.perf_counter() - began
    os.close(fd)
    return seconds


def _frame_bytes(registry: DockerRegistry, place: Place) -> float:
    size = place.geometry.table_size(place.sector.size)
    with (
        open_source(parse_reference(reference(registry, LARGE, LAZY))) as repository,
        repository.open_blob(place.blob, offset=place.sector.offset, length=size) as stream,
    ):
        table = FrameTable.unpack(b"".join(map(bytes, stream)), place.geometry)
    return float(size + table.lengths[0])


def _starts(
    registry: DockerRegistry, scratch: Path, recorded: dict[str, Path]
) -> Iterator[tuple[str, float, str]]:
    """Measure starts with local data, beside the traces of the same."""
    commands, excess, texts = [], [], []
    for name in STARTED:
        workload = WORKLOADS[name]
        image = reference(registry, workload.image, LAZY)
        with Host(scratch / f"start-{name}") as host:
            place = host.attach(image)
            host.complete(place)
            host.detach(place)
            starts = [
                start_lazy(host, image, workload.ready, workload.command) for _ in range(RUNS)
            ]
        commands += [started.steps["command"] for started in starts]
        local = median([work_s(started) for started in starts])
        with recorded[name].open("rb") as file:
            trace = read_trace(file)
        ready_us = trace.header.ready_us or trace.reads[-1].time_us
        excess.append((ready_us / 1e6 - local, len(trace.reads)))
        texts.append(f"{name} {ready_us / 1e6:.2f} and {local:.2f}")
    yield "command_s", median(commands), "`firstread run`, until it asks the daemon: COMMAND_S"
    seconds, reads = map(sum, zip(*excess, strict=True))
    yield "traced_s", seconds / reads, f"s traced and s local: {', '.join(texts)}"


def work_s(started: Started) -> float:
    """Return the seconds of a start from its mount to ready."""
    return started.ready_s - started.steps["mount"]


def _mounts(registry: DockerRegistry, scratch: Path) -> Iterator[tuple[str, float, str]]:
    """Measure mounts of absent sectors whose metadata is present, by two numbers of them."""
    found = []
    with Host(scratch / "mounts") as host:
        for count in (1, MANY):
            image = f"{registry.host}/costs/sectors{count}:1"
            publish_many_sectors(image, count)
            seconds = []
            for _ in range(RUNS):
                began = time.perf_counter()
                place = host.attach(image)
                seconds.append(time.perf_counter() - began)
                host.detach(place)
            found.append(median(seconds[1:]))
    one, many = found
    yield "mount_s", one, "1 sector"
    yield "device_s", (many - one) / (MANY - 1), f"{MANY:,} sectors: {many * 1000:.0f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=__doc__)
    parser.add_argument("traces", type=Path, metavar="DIR", help="of benchmarks.recordings")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("it mounts: run it as root")
    assumed = Costs()._asdict()
    with scratch_directory() as scratch:
        for label, text in describe(scratch).items():
            print(f"{label}: {text}")
        for field, value, text in measure(options.traces, scratch):
            taken = f"{assumed[field]:.4g}" if field in assumed else ""
            print(f"{field:22} {value:10.4g}  taken {taken:8}  {text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
