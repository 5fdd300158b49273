# SPDX-License-Identifier: Apache-2.0
"""Compare cold lazy mounts with their sources: ``python -m benchmarks.equal [IMAGE…]``.

It converts each image, mounts it on an empty node, reads all of it, and compares what system calls
show (types, modes, owners, times, attributes, links, contents) with the original as ``umoci
unpack`` makes it. The daemon's counters say how many sectors it requested.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.images.build import build
from benchmarks.images.recipes import IMAGES
from benchmarks.scratch import scratch_directory
from firstread.testing.command import program
from firstread.testing.daemon import Daemon, tree_of
from firstread.testing.observe import differences

READ_S = 600.0


def compare(name: str, scratch: Path) -> list[str]:
    """Compare one image; return the differences, and print the counters."""
    (layout,) = build([name])
    lazy, place = f"oci:{scratch}/lazy:{name}", scratch / "mount"
    subprocess.run(
        program("convert", f"oci:{layout}:latest", lazy), check=True, stdout=subprocess.DEVNULL
    )
    unpack = ("umoci", "unpack", "--image", f"{layout}:latest", str(scratch / "bundle"))
    subprocess.run(unpack, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    place.mkdir()
    with Daemon(scratch) as daemon:
        daemon.client.post("/mount", image=lazy, directory=str(place))
        seen = tree_of(place, READ_S)
        (mount,) = daemon.status()["mounts"]
    expected = tree_of(scratch / "bundle" / "rootfs", READ_S)
    print(
        f"{name}: {len(seen)} names, {mount['present']} of {mount['sectors']} sectors,"
        f" {mount['events']} asked for by reads, {mount['requests']} requests,"
        f" {mount['failed_reads']} failed reads",
        flush=True,
    )
    return differences(expected, seen)


def main() -> int:
    """Compare the named images; return 1 if one differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"of {', '.join(IMAGES)}")
    differs = False
    for name in parser.parse_args().images or list(IMAGES):
        with scratch_directory() as scratch:
            for line in compare(name, scratch):
                differs = True
                print(f"  {line}")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
