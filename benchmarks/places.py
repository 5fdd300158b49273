# SPDX-License-Identifier: Apache-2.0
"""A registry with the benchmark images, as built and as converted.

Owns a storage directory that stays between runs, so that each image is pushed and converted once.
Invariant: `images` leaves both tags of an image current.
"""

from __future__ import annotations

import functools
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.images.build import build, default_cache
from firstread.sectors.format import BLOCK_SIZE
from firstread.testing.images import Dir, File, Image, Layer, write_layout
from firstread.testing.registry import DockerRegistry
from firstread.units import MiB

ORIGINAL, LAZY = "original", "lazy"
FIRSTREAD = (sys.executable, "-m", "firstread")


def storage() -> Path:
    """Return the directory of the registry's data."""
    directory = default_cache().parent / "registry"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def publish(names: Iterable[str]) -> None:
    """Put images into the storage: the original, and its conversion."""
    names = list(names)
    layouts = build(names)
    with DockerRegistry(storage=storage()) as registry:
        for name, layout in zip(names, layouts, strict=True):
            push(registry, name, layout)
            source, target = (reference(registry, name, tag) for tag in (ORIGINAL, LAZY))
            options = ("--no-hot",) if offers("convert", "--no-hot") else ()
            run_command(*FIRSTREAD, "convert", *options, source, target)


@functools.cache
def offers(verb: str, option: str) -> bool:
    """Tell whether a command of this checkout's ``firstread`` has an option."""
    shown = subprocess.run((*FIRSTREAD, verb, "--help"), capture_output=True, text=True, check=True)
    return bool(re.search(rf"{option}\b", shown.stdout))


def push(registry: DockerRegistry, name: str, layout: Path) -> None:
    """Put the original image into a registry."""
    target = f"docker://{reference(registry, name, ORIGINAL)}"
    options = ("--quiet", "--preserve-digests", "--dest-tls-verify=false")
    run_command("skopeo", "copy", *options, f"oci:{layout}:latest", target)


def warm(name: str) -> None:
    """Read all blobs of an image, so that the registry has them in memory.

    We do not measure the disk of a registry.
    """
    data = storage() / "docker/registry/v2"
    for path in (data / f"repositories/bench/{name}/_layers/sha256").iterdir():
        digest = path.name
        with (data / f"blobs/sha256/{digest[:2]}/{digest}/data").open("rb") as file:
            while file.read(16 * MiB):
                pass


def reference(registry: DockerRegistry, name: str, tag: str) -> str:
    """Return how a client names an image."""
    return f"{registry.host}/bench/{name}:{tag}"


def publish_many_sectors(image: str, count: int) -> None:
    """Push a converted image of exactly `count` sectors, of one block each."""
    content = random.Random(count).randbytes(count * BLOCK_SIZE)
    files = [
        File(f"data/{number}", content[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE])
        for number in range(count)
    ]
    size = f"--sector-size={BLOCK_SIZE}", f"--frame-size={BLOCK_SIZE}"
    with tempfile.TemporaryDirectory() as layout:
        write_layout(Image([Layer([Dir("data"), *files])]), layout)
        run_command(*FIRSTREAD, "convert", *size, f"oci:{layout}:latest", image)


def run_command(*command: str) -> str:
    """Run a command to its end; return what it printed.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-1000:]}")
    return done.stdout
