# SPDX-License-Identifier: Apache-2.0
"""Images of several sector sizes: their tags, their conversion, and the file of their figures.

Owns the names of layouts and the traces that they are made with. Invariant: `Kept` writes a figure
as soon as it has it, so an interrupted run loses one start at most.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.images.build import default_cache, read_layers
from benchmarks.places import FIRSTREAD, ORIGINAL, reference, storage
from benchmarks.suite.modes import Mode
from benchmarks.suite.publish import Made
from benchmarks.suite.runs import Run
from benchmarks.suite.workloads import Workload
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB

LOCAL = "local"  # in place of a link: all sectors are on the node


class Sized(NamedTuple):
    """A layout, ``plain`` or ``hot`` (by a trace of the workload), and its sector size in bytes."""

    kind: str
    size: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.size // KiB}k"


class Footprint(NamedTuple):
    """Costs of an image that are the same on every link.

    Args:
        image: its name, or the number of sectors of a made-up one.
        size: of sectors, bytes; 0 for a made-up image.
        sectors: of the image.
        bytes: of all its layers in the registry.
        metadata_bytes: of its metadata there.
        mount_s: with the metadata on the node.
        unmount_s: of the same mount.
        slab_bytes: of kernel memory that the mount holds.
        daemon_bytes: of supervisor and fetcher with the one mount.
        fetch_s: of all sectors, over loopback.
        warm_s: of reading the whole tree from the page cache.
        content_bytes: that this reads.
    """

    image: str
    size: int
    sectors: int
    bytes: int
    metadata_bytes: int
    mount_s: float
    unmount_s: float
    slab_bytes: int
    daemon_bytes: int
    fetch_s: float = 0.0
    warm_s: float = 0.0
    content_bytes: int = 0


@dataclass
class Kept:
    """Figures, in memory and in a file of JSON lines.

    Args:
        path: of the file.
        runs: starts.
        footprints: of images.
    """

    path: Path
    runs: list[Run] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Kept:
        """Return what a file has; nothing if there is none."""
        kept = cls(path)
        for line in path.read_text().splitlines() if path.exists() else ():
            kind, fields = json.loads(line)
            if kind == "run":
                kept.runs.append(Run(**fields))
            else:
                kept.footprints.append(Footprint(**fields))
        return kept

    def count(self, link: str, workload: str, mode: str) -> int:
        """Return how many starts are kept."""
        return sum(
            (run.link, run.workload, run.mode) == (link, workload, mode) for run in self.runs
        )

    def footprint(self, image: str, size: int) -> Footprint | None:
        """Return the footprint of an image."""
        return next((f for f in self.footprints if (f.image, f.size) == (image, size)), None)

    def add_run(self, run: Run) -> None:
        """Keep a start."""
        self.runs.append(run)
        self._write("run", dataclasses.asdict(run))

    def add_footprint(self, found: Footprint) -> None:
        """Keep a footprint."""
        self.footprints.append(found)
        self._write("footprint", found._asdict())

    def _write(self, kind: str, fields: dict[str, object]) -> None:
        with self.path.open("a") as file:
            print(json.dumps([kind, fields]), file=file)

    def of(self, names: Container[str], links: Container[str], sized: Iterable[Sized]) -> Kept:
        """Return the figures of some workloads, links and layouts."""
        modes = set(map(str, sized))
        runs = [
            run
            for run in self.runs
            if run.workload in names
            and run.mode in modes
            and (run.link in links or run.link == LOCAL)
        ]
        return Kept(self.path, runs, self.footprints)


def mode_of(sized: Sized, *, present: bool = False) -> Mode:
    """Return how an image of that layout is started: by ``firstread run``."""
    return Mode(
        str(sized), "run", "", tag=str(sized), tailored=True, lazy=not present, present=present
    )


def _tag(workload: Workload, sized: Sized) -> str:
    return str(sized) if sized.kind == "plain" else f"{sized}-{workload.name}"


def made_before(workload: Workload, sized: Sized) -> Made:
    """Return the image that an earlier run has made."""
    whole = sum(layer.size for layer in read_layers(default_cache(), workload.image))
    return Made(_tag(workload, sized), whole)


def convert_sized(workload: Workload, sized: Sized, trace: Path) -> Made:
    """Convert the image of a workload, unchanged layers without packing them again."""
    made = made_before(workload, sized)
    with DockerRegistry(storage=storage()) as registry:
        source, target = (reference(registry, workload.image, tag) for tag in (ORIGINAL, made.tag))
        hot = ("--no-hot",) if sized.kind == "plain" else ("--trace", str(trace))
        frames = () if sized.size >= 256 * KiB else ("--frame-size", str(sized.size))
        size = ("--sector-size", str(sized.size))
        command = (*FIRSTREAD, "convert", *hot, *size, *frames, source, target)
        subprocess.run(command, check=True, capture_output=True)
    return made


def traces() -> Path:
    """Return the directory of traces, which outlive a run."""
    directory = default_cache().parent / "traces"
    directory.mkdir(parents=True, exist_ok=True)
    return directory
