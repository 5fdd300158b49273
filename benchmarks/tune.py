# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.tune``: what the simulator predicts, beside real starts.

Owns the comparison: for each image, link, layout and sector size a real cold start of an image that
was really converted so, and the prediction, made from one trace and from the image with the usual
sectors. A start whose data is local is measured beside it, so that the comparison is of the waits
alone; both contain what the node does itself. Invariant: each real start was lazy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.host import Host
from benchmarks.images.ready import Answers, Prints
from benchmarks.images.recipes import IMAGES
from benchmarks.link import Link
from benchmarks.measure import median
from benchmarks.places import LAZY, ORIGINAL, publish, reference, storage, warm
from benchmarks.report import Goal, Section, save
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from benchmarks.start import Started, start_lazy
from firstread.cli.opening import opened_image
from firstread.oci.reference import parse_reference
from firstread.registry.options import AccessOptions
from firstread.testing.registry import DockerRegistry
from firstread.traces.tracefile import read_trace
from firstread.tune.layercontent import read_content, read_frames
from firstread.tune.link import LOOPBACK, LinkSpeed, parse_link
from firstread.tune.replay import Replayed, replay
from firstread.tune.settings import Layouts, Setting
from firstread.tune.simulatedlane import Costs
from firstread.tune.workload import Workload, fit, steps
from firstread.units import KiB, MiB, parse_size

NAME = "tune"
RUNS = 3
GOAL = 0.15  # of the real ready time
SIZES = (256 * KiB, 1 * MiB, 4 * MiB)
FRAME_SIZE = 256 * KiB
GRANULE = 4 * KiB
LINKS = "25Mbit/80ms,100Mbit/20ms,1Gbit/1ms"
COSTS = Costs(trips=1, device_s=0)  # plain HTTP; a start with local data mounts as well
ACCESS = AccessOptions(plain_http=True)


class Measured(NamedTuple):
    """Real starts: medians.

    Args:
        ready_s: cold.
        local_s: again, with all that it reads present.
        requests: that the registry got for the cold one.
        bytes: that it sent.
    """

    ready_s: float
    local_s: float
    requests: float
    bytes: float


def measure(
    images: Sequence[str],
    links: Sequence[LinkSpeed],
    sizes: Sequence[int],
    runs: int,
    traces: dict[str, Path],
) -> Section:
    """Compare predictions with real starts.

    Args:
        images: names of benchmark images.
        links: to a registry.
        sizes: of sectors.
        runs: cold starts of each; their median counts.
        traces: by image; where there is none, ``firstread trace`` records one.
    """
    publish(images)
    compared = [Setting("plain", size, min(size, FRAME_SIZE)) for size in sizes]
    compared += [Setting("hot", size, min(size, FRAME_SIZE), GRANULE, "hot") for size in sizes]
    with scratch_directory() as scratch:
        section = Section(NAME, "The simulator beside real starts", describe(scratch))
        section.setting["runs"] = f"medians of {runs} cold starts; a start with local data beside"
        section.start()
        recorded = {name: _trace(name, scratch, traces.get(name)) for name in images}
        for name in images:
            for setting in compared:
                _convert(name, setting, recorded[name])
        for link in links:
            with _registry(link) as registry:
                for name in images:
                    _compare(section, registry, name, recorded[name], link, compared, runs, scratch)
    return section


def _compare(
    section: Section,
    registry: DockerRegistry,
    name: str,
    trace: Path,
    link: LinkSpeed,
    settings: Sequence[Setting],
    runs: int,
    scratch: Path,
) -> None:
    simulated = list(_simulate(reference(registry, name, LAZY), trace, link, settings))
    for setting, (workload, replayed) in zip(settings, simulated, strict=True):
        real = _start(registry, name, setting, runs, scratch)
        predicted = real.local_s + replayed.ready_s - workload.local_s
        error = abs(predicted / real.ready_s - 1)
        section.add(
            f"{name}, {link.name}, {_tag(setting)}: prediction off by",
            error * 100,
            "%",
            Goal("<=", GOAL * 100),
            f"predicted {predicted:.2f} s, {replayed.requests} requests,"
            f" {replayed.bytes / MiB:.1f} MiB; real {real.ready_s:.2f} s, {real.requests:.0f}"
            f" requests, {real.bytes / MiB:.1f} MiB; local {real.local_s:.2f} s",
        )


def _simulate(
    image: str, path: Path, link: LinkSpeed, settings: Sequence[Setting]
) -> Iterator[tuple[Workload, Replayed]]:
    with opened_image(parse_reference(image), ACCESS) as (repository, resolved, opened):
        content = read_content(repository, resolved, opened)
        with path.open("rb") as file:
            trace = read_trace(file)
        workload = fit(content, trace)
        keys = frozenset(read.key for read in workload.reads)
        read_frames(repository, content, keys)
        layouts = Layouts(content, [trace], keys)
        for setting in settings:
            layout = layouts.get(setting)
            reads, how = steps(workload, layout), setting.prefetch
            yield workload, replay(layout, link, COSTS, reads, workload.end_s, prefetch=how)


def _start(
    registry: DockerRegistry, name: str, setting: Setting, runs: int, scratch: Path
) -> Measured:
    cold: list[Started] = []
    local: list[float] = []
    requests: list[float] = []
    sent: list[float] = []
    for _ in range(runs):
        warm(name)
        registry.forget()
        node = Path(tempfile.mkdtemp(dir=scratch)) / "node"
        with Host(node) as host:
            image = reference(registry, name, _tag(setting))
            cold.append(start_lazy(host, image, IMAGES[name].ready))
            requests.append(registry.counts.requests_of("GET"))
            sent.append(registry.counts.bytes_of("GET"))
            local.append(start_lazy(host, image, IMAGES[name].ready).ready_s)
        present, total = cold[-1].sectors
        if total > 1 and present == total:
            raise RuntimeError(f"{name}: the start was not lazy: all {total} sectors are there")
    ready = [started.ready_s for started in cold]
    return Measured(median(ready), median(local), median(requests), median(sent))


def _tag(setting: Setting) -> str:
    return f"{setting.kind}-{setting.unit_size // KiB}k"


def _convert(name: str, setting: Setting, trace: Path) -> None:
    with DockerRegistry(storage=storage()) as registry:
        source, target = (reference(registry, name, tag) for tag in (ORIGINAL, _tag(setting)))
        sizes = ["--sector-size", str(setting.unit_size), "--frame-size", str(setting.frame_size)]
        if setting.kind == "hot":
            sizes += ["--trace", str(trace)]
        command = (sys.executable, "-m", "firstread", "convert", *sizes, source, target)
        subprocess.run(command, check=True, capture_output=True)


def _trace(name: str, scratch: Path, given: Path | None) -> Path:
    """Return the file of a trace of an image; record it if none is given."""
    path = given or scratch / f"{name}.trace"
    if given is None:
        with DockerRegistry(storage=storage()) as registry, Host(scratch / f"{name}-node") as host:
            options = ("--plain-http", "--output", str(path), *_until(name))
            subprocess.run(
                host.command("trace", *options, reference(registry, name, LAZY)),
                check=True,
                capture_output=True,
            )
    return path


def _until(name: str) -> tuple[str, ...]:
    ready = IMAGES[name].ready
    if isinstance(ready, Prints):
        return ("--until-line", f"^{ready.line}$")
    if isinstance(ready, Answers) and ready.begins.startswith(b"HTTP"):
        return ("--until", f"http://127.0.0.1:{ready.port}/")
    return ("--seconds", "3")


@contextlib.contextmanager
def _registry(link: LinkSpeed) -> Iterator[DockerRegistry]:
    """Yield a registry with the benchmark images at the far end of a link."""
    with contextlib.ExitStack() as stack:
        if link.name == LOOPBACK:
            yield stack.enter_context(DockerRegistry(storage=storage()))
            return
        far = stack.enter_context(Link(link.bits_per_s / 1e6, link.rtt_s))
        with far.far():
            registry = stack.enter_context(DockerRegistry(storage=storage(), address=far.address))
        yield registry


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("images", nargs="*", default=["redis"], metavar="IMAGE")
    parser.add_argument("--link", default=LINKS, help=f"links, with commas between [{LINKS}]")
    parser.add_argument("--sector-size", default=",".join(map(str, SIZES)), metavar="SIZES")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--trace", action="append", default=[], metavar="IMAGE=FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep figures in")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("it mounts: run it as root")
    traces = {name: Path(path) for name, _, path in (t.partition("=") for t in options.trace)}
    section = measure(
        options.images,
        [parse_link(text) for text in options.link.split(",")],
        [parse_size(text) for text in options.sector_size.split(",")],
        options.runs,
        traces,
    )
    if options.json:
        save(section, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
