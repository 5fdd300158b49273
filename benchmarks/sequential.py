# SPDX-License-Identifier: Apache-2.0
"""Reading one large absent file from its beginning to its end, compared with a plain download.

The file looks like the weights of a model: pairs of a byte of noise and a byte of few values, which
zstd makes a fifth smaller. Each run is a new node. By turns, curl downloads the sector blob of the
file to the disk, and a process reads the file through a cold mount: by read(2), as `cp` does, or
through a mapping, as loaders of weights do. Invariant: both move the same compressed bytes, which
the registry counts.

``python -m benchmarks.sequential [--mib N] [--runs N] [--link MBIT/MS]``, as root.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.host import Host
from benchmarks.link import Link
from benchmarks.measure import median, timed
from benchmarks.places import LAZY, reference, storage, warm
from benchmarks.report import Goal, Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.access import Access
from firstread.registry.open import open_source
from firstread.sectors.format import SECTORS_MEDIA_TYPE
from firstread.testing.images import File, Image, Layer, write_layout
from firstread.testing.registry import DockerRegistry
from firstread.units import MiB

NAME = "sequential"
FILE = "weights"
LOOPBACK_GOAL, LINK_GOAL = 0.8, 0.9
READERS = {
    "read": ("dd", "bs=1M", "of=/dev/null", "status=none", "if={}"),
    "mapped": (
        sys.executable,
        "-c",
        "import mmap, sys, zlib\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    data = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))\n"
        "for at in range(0, len(data), 1 << 20):\n"
        "    data[at : at + (1 << 20)].tobytes()\n",
        "{}",
    ),
}


def weights(mib: int) -> bytes:
    """Return the content of the file, the same for the same size."""
    noise, few = random.Random(mib), bytes(60 + (byte % 16 * byte % 16) % 9 for byte in range(256))
    data = bytearray(mib * MiB)
    for start in range(0, len(data), MiB):
        part = noise.randbytes(MiB)
        data[start : start + MiB : 2] = part[::2]
        data[start + 1 : start + MiB : 2] = part[1::2].translate(few)
    return bytes(data)


def publish(mib: int) -> str:
    """Put the image into the storage, unless it has it; return its name."""
    name = f"{NAME}-{mib}"
    if (storage() / f"docker/registry/v2/repositories/bench/{name}/_manifests/tags").exists():
        return name
    with tempfile.TemporaryDirectory() as layout, DockerRegistry(storage=storage()) as registry:
        write_layout(Image([Layer([File(FILE, weights(mib))])]), layout)
        target = reference(registry, name, LAZY)
        convert = (sys.executable, "-m", "firstread", "convert", f"oci:{layout}:latest", target)
        subprocess.run(convert, check=True, capture_output=True)
    return name


def download(image: str, scratch: Path) -> tuple[float, int]:
    """Download the sector blobs with curl; return the seconds, and the bytes."""
    parsed = parse_reference(image)
    with open_source(parsed, Access(plain_http=True).options()) as repository:
        layers = resolve(repository).manifest.layers
    blobs = [layer for layer in layers if layer.media_type == SECTORS_MEDIA_TYPE]
    urls = [f"http://{parsed.host}/v2/{parsed.repository}/blobs/{blob.digest}" for blob in blobs]
    target = scratch / "blob"
    command = ["curl", "--silent", "--fail", "--output", str(target), *urls]
    seconds = timed(lambda: subprocess.run(command, check=True))
    target.unlink()
    return seconds, sum(blob.size for blob in blobs)


def read(image: str, scratch: Path, how: str) -> tuple[float, str]:
    """Read the file through a cold mount; return the seconds, and what that took."""
    with Host(scratch / f"node-{time.monotonic_ns()}") as host:
        path = str(host.attach(image) / FILE)
        used, started = host.cpu_s(), time.perf_counter()
        subprocess.run([part.format(path) for part in READERS[how]], check=True)
        seconds, stats = time.perf_counter() - started, host.stats()
        if stats["present"] != stats["sectors"] or not stats["events"]:
            raise RuntimeError(f"the file was not read, or not lazily: {stats}")
        cost = (
            f"{stats['requests']} requests, {stats['waited_reads']} events,"
            f" {host.cpu_s() - used:.1f} s of the daemon"
        )
    return seconds, cost


@contextlib.contextmanager
def site(link: Link | None) -> Iterator[DockerRegistry]:
    """Yield a registry, on the far side of a link if there is one."""
    with contextlib.ExitStack() as stack:
        if link is None:
            yield stack.enter_context(DockerRegistry(storage=storage()))
            return
        stack.enter_context(link)
        with link.far():
            registry = DockerRegistry(storage=storage(), address=link.address)
            stack.enter_context(registry)
        yield registry


def measure(mib: int, runs: int, link: Link | None = None) -> Section:
    """Measure; a `link` is not yet set up."""
    name = publish(mib)
    with scratch_directory() as scratch, site(link) as registry:
        section = Section(NAME, "One large file, read in order", describe(scratch))
        section.setting["link"] = f"{link}; {link.measure()}" if link else "loopback, no limit"
        section.start()
        image = reference(registry, name, LAZY)
        for how in READERS:
            theirs, ours = [], []
            for _ in range(runs):
                warm(name)
                seconds, size = download(image, scratch)
                theirs.append(seconds)
                warm(name)
                seconds, cost = read(image, scratch, how)
                ours.append(seconds)
            section.add(
                f"{mib} MiB {how} cold: speed of a download by curl",
                median(theirs) / median(ours),
                "x",
                Goal(">=", LOOPBACK_GOAL if link is None else LINK_GOAL),
                f"{median(ours):.2f} s and {median(theirs):.2f} s for {size / MiB:.0f} MiB; {cost}",
            )
            if link is not None:
                wire_s = size * 8 / (link.mbit_s * 1e6)
                section.add("... share of the link", wire_s / median(ours), "x", Goal(">=", 0.9))
    return section


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequential", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--link", metavar="MBIT/MS", help="loopback if it is not given")
    options = parser.parse_args()
    link = None
    if options.link:
        rate, _, delay = options.link.partition("/")
        link = Link(float(rate), float(delay) / 1000)
    measure(options.mib, options.runs, link)


if __name__ == "__main__":
    main()
