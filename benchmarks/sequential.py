# SPDX-License-Identifier: Apache-2.0
"""Reading one large absent file from its beginning to its end, compared with a plain download.

The file is an ``archive``, noise that zstd leaves alone, or looks like the ``weights`` of a model:
pairs of a byte of noise and a byte of few values, a quarter smaller after zstd. Each run is a new
node. By turns, curl downloads the sector blob of the file to the disk, and a process reads the file
through a cold mount: by read(2), as `cp` does, or through a mapping, as loaders of weights do. A
node has to decompress and to verify what curl only stores, so the setting says what that alone
costs here: no figure can be better than with all cores at it. Invariant: both move the same
compressed bytes.

``python -m benchmarks.sequential [KIND…] [--mib N] [--runs N] [--link MBIT/MS]``, as root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import zstandard

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
from firstread.units import KiB, MiB

NAME = "sequential"
FILE = "weights"
KINDS = ("archive", "weights")
LOOPBACK_GOAL, LINK_GOAL = 0.8, 0.9
SAMPLE_MIB, FRAME_BYTES, LEVEL = 64, 256 * KiB, 6
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
    stored = [zstandard.compress(each, LEVEL) for each in frames]
    decompressor = zstandard.ZstdDecompressor()

    def work() -> None:
        for each in stored:
            decompressor.stream_reader(each).readinto(frame)
            hashlib.sha256(frame).digest()

    return timed(work) * mib / SAMPLE_MIB


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
        path = host.attach(image) / FILE
        used, started = host.cpu_s(), time.perf_counter()
        run_reader(path, how)
        seconds, stats = time.perf_counter() - started, host.stats()
        if stats["present"] != stats["sectors"] or not stats["events"]:
            raise RuntimeError(f"the file was not read, or not lazily: {stats}")
        cost = (
            f"{stats['requests']} requests, {stats['waited_reads']} events,"
            f" {host.cpu_s() - used:.1f} s of the daemon"
        )
    return seconds, cost


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


def measure(kind: str, mib: int, runs: int, link: Link | None = None) -> Section:
    """Measure; a `link` is not yet set up."""
    name = publish(kind, mib)
    with scratch_directory() as scratch, site(link) as registry:
        section = Section(NAME, f"One large file ({kind}), read in order", describe(scratch))
        section.setting["decompressing and verifying it"] = f"{work_s(kind, mib):.2f} s of one core"
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
