# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.flip``: flips bits in the store, and checks that the node repairs them.

It takes other sectors each time: while they are mounted, before a mount of their image, and while
no daemon runs. Ends with an error if the node missed one, or if a read returned a wrong byte
afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import reliability
from benchmarks.full import READER
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB

FILES, FILE_BYTES, FLIPS = 60, 256 * KiB, 10
COMMAND = "python -m benchmarks.flip --docs"


class Row(NamedTuple):
    """Sectors with a flipped bit, and wrongly read files afterwards."""

    when: str
    flipped: int
    found: int
    wrong: int
    fate: str


@dataclass
class Outcome:
    """The observations in each case."""

    rows: list[Row] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Return whether the node found all, and no read returned a wrong byte."""
        found_all = all(row.found == row.flipped > 0 for row in self.rows)
        return bool(self.rows) and found_all and not any(row.wrong for row in self.rows)


def measure(scratch: Path, flips: int = FLIPS) -> Outcome:
    """Flip bits of `flips` sectors in each case."""
    outcome = Outcome()
    with DockerRegistry() as registry, Daemon(scratch) as daemon:
        reference = f"{registry.host}/bench/plain:1"
        image = put_plain_image(
            f"docker://{reference}", count=FILES, sector_bytes=FILE_BYTES, frame_bytes=16 * KiB
        )
        place = daemon.mount(reference)
        ran = daemon.run("fetch", "--all", place)
        assert ran.code == 0, ran

        flip(daemon.root, flips)
        found = _verify(daemon, code=5)
        repaired = _verify(daemon, "--repair")
        wrong = wrong_files(place, image)
        outcome.rows.append(
            Row("in a mounted image", flips, len(found["damaged"]), wrong, _fate(repaired))
        )

        assert daemon.run("umount", place).code == 0
        before = daemon.status()["store"]["damaged"]
        flip(daemon.root, flips)
        daemon.mount(reference)
        wrong = wrong_files(place, image)
        found_later = daemon.status()["store"]["damaged"] - before
        outcome.rows.append(
            Row("before a mount", flips, found_later, wrong, "fetched again when they were read")
        )

        assert daemon.run("umount", place).code == 0
        daemon.end_all(signal.SIGTERM)
        flip(daemon.root, flips)
        found = _verify(daemon, code=5)
        repaired = _verify(daemon, "--repair")
        daemon.start()
        daemon.mount(reference)
        wrong = wrong_files(place, image)
        outcome.rows.append(
            Row("while no daemon runs", flips, len(found["damaged"]), wrong, _fate(repaired))
        )
    return outcome


def flip(root: Path, count: int) -> None:
    """Flip a bit in `count` of the sectors of a store, on the disk."""
    files = [path for path in (root / "sectors").glob("*/*") if path.stat().st_size]
    chosen = random.sample(sorted(files), count)
    for path in chosen:
        with path.open("r+b") as file:
            file.seek(random.randrange(path.stat().st_size))
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1 << random.randrange(8)]))
            file.flush()
            os.fsync(file.fileno())
    drop_caches()


def _verify(daemon: Daemon, *options: str, code: int = 0) -> dict[str, Any]:
    ran = daemon.run("cache", "verify", "--json", *options)
    assert ran.code == code, ran
    document: dict[str, Any] = ran.json
    return document


def _fate(document: dict[str, Any]) -> str:
    words = {"emptied": "fetched again", "removed": "removed; fetched again when they were read"}
    return ", ".join(sorted({words[item["outcome"]] for item in document["damaged"]}))


def wrong_files(place: Path, image: PlainImage) -> int:
    """Read all files of an image; return how many have wrong bytes."""
    names = [f"f{number}" for number in range(len(image.contents))]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", READER, str(place)],
        input=json.dumps(names),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    seen = json.loads(done.stdout)
    expected = [hashlib.sha256(content).hexdigest() for content in image.contents]
    return sum(seen[name] != digest for name, digest in zip(names, expected, strict=True))


def chapter(outcome: Outcome, setting: dict[str, str]) -> reliability.Chapter:
    """Return the chapter about it."""
    head = ("a bit flipped", "sectors", "found", "then read wrong", "what became of them")
    rows = [tuple(map(str, row)) for row in outcome.rows]
    flipped = sum(row.flipped for row in outcome.rows)
    found = sum(row.found for row in outcome.rows)
    wrong = sum(row.wrong for row in outcome.rows)
    summary = f"{found} of {flipped} damaged sectors found, {wrong} files read wrong"
    return reliability.Chapter("flip", COMMAND, setting, [head, *rows], summary)


def main() -> int:
    def work(scratch: Path, setting: dict[str, str]) -> reliability.Judged:
        outcome = measure(scratch)
        setting["image"] = f"{FILES} sectors of {FILE_BYTES // KiB} KiB, from a real registry"
        return chapter(outcome, setting), outcome.is_good

    return reliability.run("flip", __doc__, work)


if __name__ == "__main__":
    sys.exit(main())
