# SPDX-License-Identifier: Apache-2.0
"""Speed, cost and result size of a conversion.

Conversions know none of the layers, and go from one OCI layout to another on the same disk, with
the source in the page cache. The comparison is the shortest classic way to a file system image:
``gzip -dc | tar -x`` of each layer, then ``mkfs.erofs`` without compression.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.images.build import build, default_cache, read_layers
from benchmarks.images.recipes import IMAGES
from benchmarks.measure import Usage, median, run
from benchmarks.report import Goal, Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.trees import remove_tree

NAME = "convert"
LARGE, MANY = "python", "manyfiles"
TYPICAL_BYTES = 500_000_000  # of content; the share of metadata has a goal from here on
RUNS = 3
TEMPORARY = ".firstread-"
MB = 1_000_000


@dataclass(frozen=True)
class Converted:
    """One conversion: its cost, and the object that ``--json`` printed."""

    usage: Usage
    result: dict[str, Any]


def measure(names: list[str] | None = None, runs: int = RUNS) -> Section:
    """Run the benchmark on images `names`, or all."""
    names = names or list(IMAGES)
    layouts = dict(zip(names, build(names), strict=True))
    with scratch_directory() as scratch:
        section = Section(NAME, "Conversion", describe(scratch))
        section.setting["work"] = (
            f"OCI layout to OCI layout, source in the page cache; {LARGE}: median of {runs} runs"
        )
        section.start()
        if LARGE in layouts:
            _speed(section, layouts[LARGE], scratch, runs)
        for name in names:
            _size(section, name, layouts[name], scratch)
    return section


def _speed(section: Section, layout: Path, scratch: Path, runs: int) -> None:
    """Time the large image against tar and mkfs.erofs, one after the other."""
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(convert(layout, scratch))
        theirs.append(_unpack_and_make(LARGE, layout, scratch))
    content = ours[0].result["content_size"] / MB
    wall = median([one.usage.wall_s for one in ours])
    cpu = median([one.usage.cpu_s for one in ours])
    other = median([one.wall_s for one in theirs])
    other_cpu = median([one.cpu_s for one in theirs])
    section.add(
        f"{LARGE}: content per second of CPU",
        content / cpu,
        "MB/s",
        Goal(">=", 150),
        f"{content:,.0f} MB, {cpu:.1f} s of CPU",
    )
    section.add(f"{LARGE}: content per second", content / wall, "MB/s", None, f"{wall:.1f} s")
    section.add(
        f"{LARGE}: gzip | tar, mkfs.erofs takes longer",
        other / wall,
        "x",
        Goal(">=", 1),
        f"{other:.1f} s, {other_cpu:.1f} s of CPU",
    )
    peak = max(one.usage.peak_rss for one in ours) / MB
    section.add(f"{LARGE}: peak memory", peak, "MB", Goal("<=", 300))
    largest = max(layer["blob_size"] for layer in ours[0].result["layers"]) / MB
    disk = max(one.usage.temporary_bytes for one in ours) / MB
    section.add(
        f"{LARGE}: temporary files, at most",
        disk,
        "MB",
        Goal("<=", round(ours[0].result["size"] / MB)),
        f"largest blob {largest:.0f} MB",
    )


def _size(section: Section, name: str, layout: Path, scratch: Path) -> None:
    """Compare the sizes of one image before and after."""
    converted = convert(layout, scratch)
    result = converted.result
    if name == MANY:
        section.add(
            f"{name}: wall time",
            converted.usage.wall_s,
            "s",
            Goal("<=", 20),
            f"{converted.usage.cpu_s:.1f} s of CPU,"
            f" {converted.usage.peak_rss / MB:.0f} MB of memory",
        )
    hot = result["hot"]["blob_size"] if result["hot"] else 0  # of the start set
    section.add(
        f"{name}: size, of the gzip image",
        (result["size"] - hot) / result["source_size"],
        "x",
        Goal("<=", 1),
        f"{(result['size'] - hot) / MB:.1f} of {result['source_size'] / MB:.1f} MB; its start set"
        f" adds {hot / MB:.1f} MB",
    )
    typical = result["content_size"] >= TYPICAL_BYTES and name != MANY
    section.add(
        f"{name}: metadata, of the converted image",
        100 * result["metadata_size"] / result["size"],
        "%",
        Goal("<=", 0.3) if typical else None,
        f"{result['metadata_size'] / MB:.2f} MB, {result['inodes']:,} inodes,"
        f" {result['sectors']} sectors",
    )


def convert(layout: Path, scratch: Path) -> Converted:
    """Convert the image in `layout` into a new layout below `scratch`, and remove that again."""
    target = scratch / "converted"
    command = (
        sys.executable,
        "-m",
        "firstread",
        "convert",
        "--json",
        "--no-cache",
        f"oci:{layout}:latest",
        f"oci:{target}:latest",
    )
    usage = run(command, env={**os.environ, "TMPDIR": str(scratch)}, temporary=TEMPORARY)
    remove_tree(target)
    return Converted(usage, json.loads(usage.output))


def _unpack_and_make(name: str, layout: Path, scratch: Path) -> Usage:
    """Unpack the layers over each other, and make an EROFS image of the result."""
    tree, image = scratch / "tree", scratch / "erofs"
    tree.mkdir()
    blobs = [
        layout / "blobs" / layer.digest.replace(":", "/")
        for layer in read_layers(default_cache(), name)
    ]
    unpack = [f"gzip -dc {blob} | tar -x --xattrs --numeric-owner -C {tree}" for blob in blobs]
    script = "; ".join(("set -e", *unpack, f"mkfs.erofs --quiet {image} {tree}"))
    usage = run(("sh", "-c", script))
    remove_tree(tree, image)
    return usage
