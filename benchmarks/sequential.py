# SPDX-License-Identifier: Apache-2.0
"""Reading one large absent file from its beginning to its end, compared with a plain download.

The file is an ``archive``, noise that zstd leaves alone, or looks like the ``weights`` of a model:
pairs of a byte of noise and a byte of few values, a quarter smaller after zstd. Each run is a new
node. By turns, curl downloads the sector blob of the file to the disk, programs do with it what a
node does, and a process reads the file through a cold mount: by read(2), as `cp` does, or through a
mapping, as loaders of weights do.

A node has to decompress and to verify what curl only stores, so the setting says what that alone
costs here, and the programs (``curl | zstd -d | tee FILE | sha256sum``) show how fast it is without
Python, events, or a mount. Processor time tells why: no read is faster than all cores together.
Invariant: all move the same compressed bytes.

``python -m benchmarks.sequential [KIND…] [--mib N] [--runs N] [--link MBIT/MS]``, as root.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import random
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

from benchmarks.host import Host
from benchmarks.link import Link
from benchmarks.measure import median, timed, touch_memory
from benchmarks.places import LAZY, reference, storage, warm
from benchmarks.report import Goal, Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.convert.record import DEFAULT_LEVEL
from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.access import Access
from firstread.registry.open import open_source
from firstread.sectors.format import SECTORS_MEDIA_TYPE
from firstread.testing.daemon import cpu_s
from firstread.testing.images import File, Image, Layer, write_layout
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB, MiB

NAME = "sequential"
FILE = "weights"
KINDS = ("archive", "weights")
LOOPBACK_GOAL, LINK_GOAL = 0.8, 0.9
CURL = ("curl", "--silent", "--fail")
SAMPLE_MIB, FRAME_BYTES = 64, 256 * KiB
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


def content(kind: str, mib: int) -> bytes:
    """Return the content of the file, the same for the same size."""
    noise, few = random.Random(mib), bytes(60 + (byte % 16 * byte % 16) % 9 for byte in range(256))
    data = bytearray(mib * MiB)
    for start in range(0, len(data), MiB):
        part = noise.randbytes(MiB)
        data[start : start + MiB] = part
        if kind == "weights":
            data[start + 1 : start + MiB : 2] = part[1::2].translate(few)
    return bytes(data)


def work_s(kind: str, mib: int) -> float:
    """Return the seconds of one core that decompressing and verifying the file takes."""
    data, frame = content(kind, SAMPLE_MIB), memoryview(bytearray(FRAME_BYTES))
    frames = [data[at : at + FRAME_BYTES] for at in range(0, len(data), FRAME_BYTES)]
    stored = [zstandard.compress(each, DEFAULT_LEVEL) for each in frames]
    decompressor = zstandard.ZstdDecompressor()

    began = time.process_time()  # of this one thread: true beside load, too
    for each in stored:
        decompressor.stream_reader(each).readinto(frame)
        hashlib.sha256(frame).digest()
    return (time.process_time() - began) * mib / SAMPLE_MIB


def publish(kind: str, mib: int) -> str:
    """Put the image into the storage, unless it has it; return its name."""
    name = f"{NAME}-{kind}-{mib}"
    if (storage() / f"docker/registry/v2/repositories/bench/{name}/_manifests/tags").exists():
        return name
    with tempfile.TemporaryDirectory() as layout, DockerRegistry(storage=storage()) as registry:
        write_layout(Image([Layer([File(FILE, content(kind, mib))])]), layout)
        target = reference(registry, name, LAZY)
        convert = (sys.executable, "-m", "firstread", "convert", f"oci:{layout}:latest", target)
        subprocess.run(convert, check=True, capture_output=True)
    return name


class Blobs(NamedTuple):
    """The sector blobs of an image: where they are, and their bytes."""

    urls: tuple[str, ...]
    size: int


def blobs_of(image: str) -> Blobs:
    """Return the sector blobs of an image."""
    parsed = parse_reference(image)
    with open_source(parsed, Access(plain_http=True).options()) as repository:
        layers = resolve(repository).manifest.layers
    blobs = [layer for layer in layers if layer.media_type == SECTORS_MEDIA_TYPE]
    root = f"http://{parsed.host}/v2/{parsed.repository}/blobs"
    return Blobs(tuple(f"{root}/{blob.digest}" for blob in blobs), sum(b.size for b in blobs))


def download(blobs: Blobs, target: Path) -> None:
    """Download blobs with curl."""
    subprocess.run([*CURL, "--output", str(target), *blobs.urls], check=True)


def do_alike(blobs: Blobs, target: Path) -> None:
    """Have programs receive, decompress, store and hash what the blobs hold."""
    receive, store = shlex.join([*CURL, *blobs.urls]), shlex.join(["tee", str(target)])
    command = f"{receive} | zstd -dcq | {store} | sha256sum"
    subprocess.run(("sh", "-c", command), check=True, stdout=subprocess.DEVNULL)


def read(image: str, scratch: Path, how: str, mib: int, registry: int) -> tuple[float, str]:
    """Read the file through a cold mount; return the seconds, and what that took.

    Args:
        image: which.
        scratch: directory for the node.
        how: key of `READERS`.
        mib: of the file.
        registry: process of it.
    """
    with Host(scratch / f"node-{time.monotonic_ns()}") as host:
        path = host.attach(image) / FILE
        pids = {"the daemon": (host.supervisor, host.fetcher), "the registry": (registry,)}
        touch_memory(3 * mib * MiB)  # a sector file, the file of the mount, and a little more
        before = {name: sum(map(cpu_s, its)) for name, its in pids.items()}
        seconds, reader_s = costs(lambda: run_reader(path, how))
        used = {name: sum(map(cpu_s, its)) - before[name] for name, its in pids.items()}
        stats = host.stats()
        if stats["present"] != stats["sectors"] or not stats["events"]:
            raise RuntimeError(f"the file was not read, or not lazily: {stats}")
    used["the reader"] = reader_s
    parts = [f"{count:.1f} s of {name}" for name, count in used.items()]
    counts = f"{stats['requests']} requests, {stats['waited_reads']} events"
    return seconds, ", ".join([counts, *parts])


def costs(action: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that an action takes, and those of the processors for its commands."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    return timed(action), used() - before


def run_reader(file: Path, how: str) -> None:
    """Read all of a file in another process; see `READERS`."""
    subprocess.run([part.format(file) for part in READERS[how]], check=True)


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


def parse_link(text: str) -> Link:
    """Return the link that ``100/20`` describes: Mbit/s, and milliseconds of the round trip."""
    rate, _, delay = text.partition("/")
    return Link(float(rate), float(delay) / 1000)


def by_turns(
    image: str, blobs: Blobs, name: str, how: str, mib: int, runs: int, scratch: Path, registry: int
) -> tuple[float, float, float, str]:
    """Return the median seconds of curl, of programs and of a node, and what the last node took."""
    seconds: tuple[list[float], ...] = ([], [], [])
    cost = ""
    for _ in range(runs):
        for action, found in zip((download, do_alike), seconds, strict=False):
            warm(name)
            touch_memory(2 * mib * MiB)
            found.append(timed(functools.partial(action, blobs, scratch / "file")))
            (scratch / "file").unlink()
        warm(name)
        our_s, cost = read(image, scratch, how, mib, registry)
        seconds[2].append(our_s)
    curl_s, programs_s, our_s = map(median, seconds)
    return curl_s, programs_s, our_s, cost


def measure(kind: str, mib: int, runs: int, link: Link | None = None) -> Section:
    """Measure; a `link` is not yet set up."""
    name = publish(kind, mib)
    with scratch_directory() as scratch, site(link) as registry:
        section = Section(NAME, f"One large file ({kind}), read in order", describe(scratch))
        section.setting["decompressing and verifying it"] = f"{work_s(kind, mib):.2f} s of one core"
        section.setting["link"] = f"{link}; {link.measure()}" if link else "loopback, no limit"
        section.start()
        image = reference(registry, name, LAZY)
        blobs = blobs_of(image)
        for how in READERS:
            found = by_turns(image, blobs, name, how, mib, runs, scratch, registry.pid)
            curl_s, programs_s, our_s, cost = found
            section.add(
                f"{mib} MiB {how} cold: speed of a download by curl",
                curl_s / our_s,
                "x",
                Goal(">=", LOOPBACK_GOAL if link is None else LINK_GOAL),
                f"{our_s:.2f} s and {curl_s:.2f} s for {blobs.size / MiB:.0f} MiB; {cost}",
            )
            section.add(
                "... speed of programs that do the same",
                programs_s / our_s,
                "x",
                detail=f"{programs_s:.2f} s: {curl_s / programs_s:.2f} of the speed of curl",
            )
            if link is not None:
                wire_s = blobs.size * 8 / (link.mbit_s * 1e6)
                section.add("... share of the link", wire_s / our_s, "x", Goal(">=", 0.9))
    return section


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequential", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=KINDS, help=f"of {', '.join(KINDS)}")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--link", metavar="MBIT/MS", help="loopback if it is not given")
    options = parser.parse_args()
    link = parse_link(options.link) if options.link else None
    for kind in options.kinds:
        measure(kind, options.mib, options.runs, link)


if __name__ == "__main__":
    main()
