# SPDX-License-Identifier: Apache-2.0
"""``make demo``: a real image, converted, run lazily, run again, and run the classic way.

Owns the story and its layout on the terminal, 72 columns wide. Everything in it is real: Debian's
packages make the image, the registry is docker-registry, the network between it and the node has a
rate and a delay, and ready means that the workload answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.host import Host
from benchmarks.images.build import build, default_cache, read_layers
from benchmarks.images.ready import Prints, Ready
from benchmarks.images.recipes import IMAGES
from benchmarks.link import Link
from benchmarks.places import LAZY, ORIGINAL, push, reference
from benchmarks.scratch import scratch_directory
from benchmarks.start import Started, start_classic, start_lazy
from firstread.errors import FirstreadError
from firstread.testing.registry import DockerRegistry

DEFAULT = "postgresql"
MBIT_S, RTT_S = 100, 0.020
MB = 1_000_000
BAR = 46  # columns of the longest bar
COLUMNS = ("lazy", "lazy again", "classic")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("image", nargs="?", default=DEFAULT, choices=IMAGES)
    parser.add_argument("--no-limit", action="store_true", help="let the network be the loopback")
    options = parser.parse_args()
    if os.geteuid():
        print("error: the demo mounts images: run it as root", file=sys.stderr)
        return 5
    try:
        demonstrate(options.image, limited=not options.no_limit)
    except KeyboardInterrupt:
        return 130
    except (FirstreadError, RuntimeError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return getattr(exc, "exit_code", 1)
    return 0


def demonstrate(name: str, *, limited: bool) -> None:
    """Tell the story of the image `name`."""
    (layout,) = build([name])
    layers = read_layers(default_cache(), name)
    print(
        f"The image: {name}, {sum(layer.tar_size for layer in layers) / MB:.0f} MB of files in"
        f" {len(layers)} layers, {sum(layer.size for layer in layers) / MB:.0f} MB compressed.\n"
    )
    with scratch_directory() as scratch:
        storage = scratch / "registry"
        with DockerRegistry(storage=storage) as registry:
            push(registry, name, layout)
            _tell_conversion(_convert(registry, name, layout))
        with _served(storage, limited=limited) as registry:
            runs = _run_all(registry, name, scratch)
    _tell(runs, IMAGES[name].ready)


def _convert(registry: DockerRegistry, name: str, layout: Path) -> dict[str, Any]:
    """Convert the image without knowing its layers; return the result of ``--json``."""
    source, target = f"oci:{layout}:latest", reference(registry, name, LAZY)
    print(f"$ firstread convert oci:{name} registry/{name}:{LAZY}")
    command = (sys.executable, "-m", "firstread", "convert", "--no-cache", "--json", source, target)
    result: dict[str, Any] = json.loads(
        subprocess.run(command, capture_output=True, check=True).stdout
    )
    return result


def _tell_conversion(result: dict[str, Any]) -> None:
    print(
        f"  {result['seconds']:.1f} s, {result['size'] / MB:.0f} MB in {result['sectors']} sectors;"
        f" a mount needs {result['metadata_size'] / MB:.2f} MB of it.\n"
    )


@contextlib.contextmanager
def _served(storage: Path, *, limited: bool) -> Iterator[DockerRegistry]:
    """Serve the images from the far end of a link, or on the loopback interface."""
    with contextlib.ExitStack() as stack:
        if not limited:
            print("The registry: docker-registry on this machine, no limit.\n")
            yield stack.enter_context(DockerRegistry(storage=storage))
            return
        link = stack.enter_context(Link(MBIT_S, RTT_S))
        with link.far():
            registry = stack.enter_context(DockerRegistry(storage=storage, address=link.address))
        print(f"The registry: docker-registry behind {link}.\n  {link.measure()}\n")
        yield registry


def _run_all(registry: DockerRegistry, name: str, scratch: Path) -> list[Started]:
    """Run the image three times, in the order of `COLUMNS`."""
    ready = IMAGES[name].ready
    lazy, original = (reference(registry, name, tag) for tag in (LAZY, ORIGINAL))
    with Host(scratch / "node") as host:
        print(f"$ firstread run registry/{name}:{LAZY}", flush=True)
        first = start_lazy(host, lazy, ready)
        print(f"$ firstread run registry/{name}:{LAZY}", flush=True)
        again = start_lazy(host, lazy, ready)
        again.downloaded = max(0, again.downloaded - first.downloaded)
    print("$ pull, unpack and run the original, all layers at once\n", flush=True)
    return [first, again, start_classic(scratch / "classic", original, ready)]


def _tell(runs: list[Started], ready: Ready) -> None:
    """Print the runs side by side."""
    answer = f"prints {ready.line!r}" if isinstance(ready, Prints) else f"port {ready.port} answers"
    print(f"{'seconds until':26}" + "".join(f"{title:>14}" for title in COLUMNS))
    rows = {
        "image is known": ("metadata", "metadata", "resolve"),
        "file system is there": ("mount", "mount", "pull, unpack"),
        "process is started": ("start", "start", "start"),
    }
    for label, steps in rows.items():
        cells = [run.steps.get(step) for run, step in zip(runs, steps, strict=True)]
        print(f"  {label:24}" + "".join(f"{_seconds(cell):>14}" for cell in cells))
    print(f"  {'ready: ' + answer:24}" + "".join(f"{run.ready_s:14.2f}" for run in runs))
    print(f"{'MB fetched':26}" + "".join(f"{run.downloaded / MB:14.1f}" for run in runs))
    print()
    longest = max(run.ready_s for run in runs)
    for title, run in zip(COLUMNS, runs, strict=True):
        bar = "#" * max(1, round(BAR * run.ready_s / longest))
        print(f"  {title:11} {bar} {run.ready_s:.1f} s")
    first, _, classic = runs
    present, total = first.sectors
    print(
        f"\nReady {classic.ready_s / first.ready_s:.1f} times as soon,"
        f" with {first.downloaded / classic.downloaded:.0%} of the bytes"
        f" ({present} of {total} sectors)."
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
