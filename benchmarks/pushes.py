# SPDX-License-Identifier: Apache-2.0
"""From the push of an image to a registry until a node finds it lazy, by ``sync serve``.

Each image is pushed to a docker-registry that notifies the endpoint; a node then asks for it every
20 ms. Beside it the same image is converted by hand in a registry that notifies nobody, with an
empty cache: what the push adds to that is the cost of doing it without people.

``python -m benchmarks.pushes [--runs N] [IMAGE…]``
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.images.build import build, default_cache
from benchmarks.measure import median
from benchmarks.report import Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.errors import FirstreadError
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_source
from firstread.sectors.attached import resolve_converted
from firstread.testing.command import program
from firstread.testing.registry import DockerRegistry

NAME = "pushes"
SECRET = "secret of the benchmark"


@contextlib.contextmanager
def served(scratch: Path) -> Iterator[DockerRegistry]:
    """Run a registry, and the endpoint that it notifies."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    secret = scratch / "secret"
    secret.write_text(SECRET)
    with DockerRegistry(notify=(f"http://127.0.0.1:{port}/notifications", SECRET)) as registry:
        words = ("sync", "serve", f"{registry.host}/*:*", "--attach", "--secret-file", secret)
        more = ("--listen", f"127.0.0.1:{port}", "--log-level=WARNING")
        process = subprocess.Popen(program(*words, *more), env=environment(scratch / "served"))
        try:
            await_port(port)
            yield registry
        finally:
            process.terminate()
            process.wait()


def await_port(port: int) -> None:
    """Wait until somebody listens."""
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)


def environment(cache: Path) -> dict[str, str]:
    """Return the environment of a command with a cache of its own."""
    return {**os.environ, "FIRSTREAD_CACHE": str(cache)}


def push(layout: Path, name: str) -> None:
    """Push an image, as it is, with skopeo."""
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"]
    subprocess.run([*command, f"oci:{layout}:latest", f"docker://{name}"], check=True)


def seconds_until_lazy(name: str) -> float:
    """Return how long a node that asks for an image gets the ordinary one."""
    begun = time.monotonic()
    while True:
        with contextlib.suppress(FirstreadError), open_source(parse_reference(name)) as place:
            resolve_converted(place)
            return time.monotonic() - begun
        time.sleep(0.02)


def seconds_by_hand(name: str, cache: Path) -> float:
    """Return how long ``convert --attach`` takes."""
    begun = time.monotonic()
    command = program("convert", "--attach", name)
    subprocess.run(command, check=True, env=environment(cache), stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("images", nargs="*", default=["redis", "python", "postgresql"])
    options = parser.parse_args()
    layouts = dict(zip(options.images, build(options.images, default_cache()), strict=True))
    with scratch_directory() as scratch:
        section = Section(NAME, "From a push to a lazy image", describe(scratch))
        section.setting["runs"] = f"medians of {options.runs}, each with an empty cache"
        section.start()
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in layouts}
        for run in range(options.runs):
            for name, layout in layouts.items():
                with DockerRegistry() as quiet:
                    push(layout, f"{quiet.host}/{name}:1")
                    cache = scratch / f"hand-{name}-{run}"
                    by_hand = seconds_by_hand(f"{quiet.host}/{name}:1", cache)
                place = scratch / f"{name}-{run}"
                place.mkdir()
                with served(place) as registry:
                    push(layout, f"{registry.host}/{name}:1")
                    found[name].append((seconds_until_lazy(f"{registry.host}/{name}:1"), by_hand))
        for name, pairs in found.items():
            lazy, by_hand = (median([pair[side] for pair in pairs]) for side in (0, 1))
            section.add(f"{name}: lazy after", lazy, "s", None, f"convert by hand {by_hand:.1f} s")


if __name__ == "__main__":
    main()
