# SPDX-License-Identifier: Apache-2.0
"""The classic way to start a container, as fast as it can be: pull all, unpack all, then run.

``python -m benchmarks.classic REF DIR [CMD…]`` does what containerd does, but faster: it downloads
layers at the same time, and verifies, decompresses and unpacks them as they come, each into its own
directory, without storing the compressed bytes and without syncing. Then it mounts an overlay over
them, and firstread's own code starts the container. Only downloading and unpacking differ, and both
use C: igzip (through isal) and GNU tar.

When the container has exited, it prints a line of JSON on standard error: for each step the seconds
since the start of the command, and the bytes downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from firstread.convert.original import source_layers
from firstread.convert.stream import decompress
from firstread.oci.model import Descriptor
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.run.lifecycle import run_container
from firstread.run.options import RunOptions

DOWNLOADS = 3  # at a time, containerd's default
MARK, OPAQUE = ".wh.", ".wh..wh..opq"  # OCI image specification, "Whiteouts"
UNPACK: tuple[str, ...] = (
    *("tar", "--extract", "--verbose", "--preserve-permissions", "--numeric-owner"),
    *("--xattrs", "--xattrs-include=*", "--quoting-style=literal"),
)


def main() -> int:
    began = time.monotonic() - _age_s()
    name, directory = sys.argv[1], Path(sys.argv[2])
    steps: dict[str, float] = {}

    def note(step: str) -> None:
        steps[step] = time.monotonic() - began

    with open_source(parse_reference(name), AccessOptions(plain_http=True)) as repository:
        image = resolve(repository)
        note("resolve")
        layers = [layer for layer, _ in source_layers(image)]
        lower = unpack(repository, layers, directory)
        note("pull, unpack")
    downloaded = sum(layer.size for layer in layers)
    code = run_container(
        lower,
        image.config,
        RunOptions(image=name, command=tuple(sys.argv[3:]), remove=True),
        directory / "containers",
        on_start=lambda _: note("start"),
        on_first_output=lambda: note("first output"),
    )
    subprocess.run(("umount", lower), check=True)
    print(json.dumps({"steps": steps, "downloaded": downloaded}), file=sys.stderr)
    return code


def unpack(repository: Repository, layers: list[Descriptor], directory: Path) -> Path:
    """Download and unpack `layers` below `directory`; return the mounted root of the image."""
    places = [directory / str(number) for number in range(len(layers))]
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        todo = zip(layers, places, strict=True)
        for done in [pool.submit(unpack_layer, repository, *job) for job in todo]:
            done.result()
    root = directory / "root"
    root.mkdir()
    lower = ":".join(map(str, reversed(places)))
    overlay = ("-t", "overlay", "-o", f"lowerdir={lower}", "overlay")
    one = ("--bind", lower)
    subprocess.run(("mount", *(one if len(places) == 1 else overlay), root), check=True)
    return root


def unpack_layer(repository: Repository, layer: Descriptor, place: Path) -> None:
    """Unpack one layer into `place`, in the form for overlayfs."""
    place.mkdir(parents=True)
    command = (*UNPACK, "--directory", str(place))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
        assert tar.stdin is not None
        assert tar.stdout is not None
        marks: list[bytes] = []
        listing = threading.Thread(target=_find_marks, args=(tar.stdout, marks))
        listing.start()
        with repository.open_blob(layer) as stream:
            for chunk in decompress(stream, layer.media_type):
                tar.stdin.write(chunk)
        tar.stdin.close()
        listing.join()
    if tar.returncode:
        raise RuntimeError(f"tar failed with {tar.returncode}")
    for mark in marks:
        _apply(os.path.join(os.fsencode(place), mark))


def _find_marks(names: IO[bytes], marks: list[bytes]) -> None:
    for line in names:
        name = line.rstrip(b"\n")
        if os.path.basename(name).startswith(MARK.encode()):
            marks.append(name)


def _apply(mark: bytes) -> None:
    """Replace a whiteout of the layer by overlayfs's own."""
    folder, base = os.path.split(mark)
    os.unlink(mark)
    if base == OPAQUE.encode():
        os.setxattr(folder, "trusted.overlay.opaque", b"y")
    else:
        os.mknod(os.path.join(folder, base.removeprefix(MARK.encode())), 0o20000)


def _age_s() -> float:
    """Return the age of this process: its imports are part of the command."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


if __name__ == "__main__":
    sys.exit(main())
