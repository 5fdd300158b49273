# SPDX-License-Identifier: Apache-2.0
"""Ready time: from the command to the workload's answer, lazily and the classic way.

The node has nothing of the image; the daemon runs already, as containerd would. The registry has
the blobs in its page cache. The classic way is `benchmarks.classic`: pull and unpack everything in
one stream, then start the same container.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.host import Host
from benchmarks.images.ready import Prints, Ready
from benchmarks.images.recipes import IMAGES
from benchmarks.link import Link
from benchmarks.measure import median
from benchmarks.places import LAZY, ORIGINAL, publish, reference, storage, warm
from benchmarks.report import Goal, Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from benchmarks.start import Started, start_classic, start_lazy
from firstread.testing.registry import DockerRegistry
from firstread.trees import remove_tree

LOOPBACK, LINK = "run", "run-link"
LARGE = "python"
RUNS = 3
MBIT_S, RTT_S = 100, 0.020
MB = 1_000_000
SERVER = (
    "python3",
    "-c",
    """
import http.server

handler = http.server.SimpleHTTPRequestHandler
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as it:
    print("ready", flush=True)
    it.serve_forever()
""",
)
"""A service of the standard library: it reads a twentieth of the large image."""
CLASSIC = "3 downloads at a time, verified and unpacked as they come, by igzip and GNU tar; overlay"


@dataclass
class Compared:
    """Both ways to start one image, several times, and the registry's traffic for the lazy one."""

    lazy: list[Started] = field(default_factory=list)
    again: list[Started] = field(default_factory=list)
    classic: list[Started] = field(default_factory=list)
    sent_bytes: int = 0
    requests: int = 0


def measure_loopback(names: list[str] | None = None, runs: int = RUNS) -> Section:
    """All images, with a registry on the loopback interface."""
    names = names or list(IMAGES)
    publish(names)
    with scratch_directory() as scratch, DockerRegistry(storage=storage()) as registry:
        section = Section(LOOPBACK, "Ready time without a limit", describe(scratch))
        section.setting["link"] = "loopback, no limit"
        section.setting["runs"] = f"median of {runs} of each, by turns"
        _start(section)
        for name in names:
            _report(section, name, compare(name, registry, scratch, runs, runs), Goal(">=", 1))
    return section


def measure_link(name: str = LARGE, runs: int = RUNS) -> Section:
    """The large image over a slow link: with its own command, and with one that reads little."""
    publish([name])
    with scratch_directory() as scratch, distant_registry(MBIT_S, RTT_S) as (link, registry):
        title = f"Ready time at {MBIT_S} Mbit/s and {RTT_S * 1000:.0f} ms"
        section = Section(LINK, title, describe(scratch))
        section.setting["link"] = f"{link}; {link.measure()}"
        section.setting["runs"] = f"lazy: median of {runs}; classic: 1"
        _start(section)
        found = compare(name, registry, scratch, runs, 1, SERVER)
        _report(section, f"{name}, a web server", found, Goal(">=", 10))
        _report(section, name, compare(name, registry, scratch, runs, 1), None)
    return section


def _start(section: Section) -> None:
    section.setting["caches"] = "nothing of the image on the node, its blobs in the registry's RAM"
    section.setting["classic"] = CLASSIC
    section.start()


@contextlib.contextmanager
def distant_registry(mbit_s: float, rtt_s: float) -> Iterator[tuple[Link, DockerRegistry]]:
    """Yield a registry with the benchmark images at the far end of a link."""
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(Link(mbit_s, rtt_s))
        with link.far():
            registry = stack.enter_context(DockerRegistry(storage=storage(), address=link.address))
        yield link, registry


def compare(
    name: str,
    registry: DockerRegistry,
    scratch: Path,
    lazy_runs: int,
    classic_runs: int,
    workload: tuple[str, ...] = (),
) -> Compared:
    """Start an image both ways in turns, each time on a node that knows nothing of it.

    Args:
        name: of the image.
        registry: that has it, both ways.
        scratch: for nodes.
        lazy_runs: number of lazy starts.
        classic_runs: number of classic starts.
        workload: a command that prints ``ready``; if empty, that of the image.
    """
    compared = Compared()
    nodes = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=scratch))
    ready: Ready = Prints("ready") if workload else IMAGES[name].ready
    for number in range(max(lazy_runs, classic_runs)):
        warm(name)
        if number < lazy_runs:
            registry.forget()
            image = reference(registry, name, LAZY)
            with Host(nodes / f"lazy-{number}") as host:
                compared.lazy.append(start_lazy(host, image, ready, workload))
                counts = registry.counts
                compared.again.append(start_lazy(host, image, ready, workload))
            compared.sent_bytes = counts.bytes_of("GET")
            compared.requests = counts.requests_of("GET")
        if number < classic_runs:
            place = nodes / f"classic-{number}"
            image = reference(registry, name, ORIGINAL)
            compared.classic.append(start_classic(place, image, ready, workload))
            remove_tree(place)
    return compared


def _report(section: Section, name: str, compared: Compared, goal: Goal | None) -> None:
    lazy = median([one.ready_s for one in compared.lazy])
    again = median([one.ready_s for one in compared.again])
    classic = median([one.ready_s for one in compared.classic])
    present, total = compared.lazy[-1].sectors
    if total > 1 and present == total:
        raise RuntimeError(f"{name}: the start was not lazy: all {total} sectors are there")
    section.add(
        f"{name}: classic takes longer",
        classic / lazy,
        "x",
        goal,
        f"{classic:.2f} s, {compared.classic[-1].downloaded / MB:.1f} MB; lazy {lazy:.2f} s,"
        f" {compared.sent_bytes / MB:.1f} MB in {compared.requests} requests, {present} of {total}"
        f" sectors; lazy again {again:.2f} s",
    )
