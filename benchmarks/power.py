# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.power``: simulates power cuts of a node, as its disk sees them.

During reads of an image through a store that is too small for it, the benchmark kills all
processes, removes the mounts, and replaces the record of the boot by another kernel's. Then it
changes the root into one that a disk can have after a cut: unflushed files are lost, cut off
anywhere, or have zeros in any of their pages. The next daemon mounts the image again, and readers
read all of it.

The store itself says which files are flushed: it writes a sector file with fdatasync(2) before it
removes the write permission. Ends with an error if a read failed or got a wrong byte, or if nothing
was ever lost.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import reliability
from benchmarks.flip import wrong_files
from firstread.device.erofsmount import unmount
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB

CUTS = 20
FILES, FILE_BYTES = 120, 128 * KiB
LIMIT_BYTES = FILES * FILE_BYTES * 3 // 4
PAGE = 4096
SETTLE_S = 6.5  # until present sectors are on the disk
COMMAND = "python -m benchmarks.power --docs"

_READER = """
import os, random, sys
place, count = sys.argv[1], int(sys.argv[2])
while True:
    fd = os.open(f"{place}/f{random.randrange(count)}", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        while os.read(fd, 1 << 20):
            pass
    except OSError:
        break
    os.close(fd)
    os.write(1, b".")
"""


@dataclass
class Outcome:
    """The observations: the fate of files at the cuts, and files read wrongly or not at all."""

    cuts: int = 0
    files: Counter[str] = field(default_factory=Counter)
    read: int = 0
    wrong: int = 0
    checked: int = 0
    damaged: int = 0

    @property
    def is_good(self) -> bool:
        """Return whether all reads were right, and something was lost."""
        lost = sum(count for what, count in self.files.items() if what not in ("safe", "whole"))
        return not self.wrong and self.read > 0 and lost > 0


def measure(scratch: Path, cuts: int, seed: int = 1) -> Outcome:
    """Cut the power `cuts` times."""
    chance, outcome = random.Random(seed), Outcome()
    with DockerRegistry() as registry, Daemon(scratch, "--cache-max", str(LIMIT_BYTES)) as daemon:
        reference = f"{registry.host}/bench/plain:1"
        image = put_plain_image(
            f"docker://{reference}", count=FILES, sector_bytes=FILE_BYTES, frame_bytes=16 * KiB
        )
        for number in range(cuts):
            place = daemon.mount(reference)
            _read_until_killed(daemon, place, chance, settles=number % 4 == 1)
            unmount(place, lazy=True)
            outcome.files.update(cut(daemon.root, chance))
            outcome.cuts += 1
            drop_caches()
            daemon.start()
            _read_all(daemon, reference, image, outcome)
    return outcome


def _read_until_killed(
    daemon: Daemon, place: Path, chance: random.Random, *, settles: bool
) -> None:
    command = [sys.executable, "-I", "-S", "-c", _READER, str(place), str(FILES)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
    assert reader.stdout is not None
    try:
        for _ in range(chance.randint(FILES // 8, FILES)):
            reader.stdout.read(1)
        if settles:
            reader.kill()
            time.sleep(SETTLE_S)
        daemon.end_all(signal.SIGKILL)
    finally:
        reader.kill()
        reader.communicate()


def _read_all(daemon: Daemon, reference: str, image: PlainImage, outcome: Outcome) -> None:
    place = daemon.mount(reference)
    outcome.wrong += wrong_files(place, image)
    outcome.read += len(image.contents)
    store = daemon.status()["store"]
    outcome.checked += store["checked"]
    outcome.damaged += store["damaged"]
    assert daemon.run("umount", place).code == 0


def cut(root: Path, chance: random.Random) -> Counter[str]:
    """Damage the unflushed files of `root`; return the fate of the sector files."""
    (root / "boot").write_text("another kernel\n")
    fates: Counter[str] = Counter()
    for path in sorted([*(root / "sectors").glob("*/*"), *(root / "aside").iterdir()]):
        status = path.stat()
        if not status.st_size:
            continue
        fate = "safe"
        if status.st_mode & stat.S_IWUSR:
            fate = chance.choice(("lost", "cut off", "zeros", "whole"))
            _damage(path, status.st_size, fate, chance)
        fates[fate] += 1
    for path in sorted((root / "references").iterdir()):
        if chance.random() < 0.3:
            os.truncate(path, chance.randrange(path.stat().st_size + 1))
    (root / "mounts/torn.tmp").write_bytes(b'{"mountp')
    return fates


def _damage(path: Path, size: int, fate: str, chance: random.Random) -> None:
    if fate == "lost":
        os.truncate(path, 0)
    elif fate == "cut off":
        os.truncate(path, chance.randrange(size))
    elif fate == "zeros":
        pages = -(-size // PAGE)
        with path.open("r+b") as file:
            for page in chance.sample(range(pages), chance.randint(1, pages)):
                file.seek(page * PAGE)
                file.write(bytes(min(PAGE, size - page * PAGE)))


def chapter(outcome: Outcome, setting: dict[str, str]) -> reliability.Chapter:
    """Return the chapter about it."""
    notes = {
        "safe": "on the disk for sure",
        "whole": "not for sure, but they were",
        "lost": "empty after the cut",
        "cut off": "anywhere",
        "zeros": "in some or all of their pages, at their full size",
    }
    cells = [
        ("", "figure", "note"),
        ("power cuts", str(outcome.cuts), "in the middle of reads, fills and evictions"),
        *(
            (f"sector files: {what}", str(outcome.files[what]), text)
            for what, text in notes.items()
        ),
        ("checked before they were read", str(outcome.checked), f"{outcome.damaged} damaged"),
        ("files read afterwards", str(outcome.read), f"of {FILE_BYTES // KiB} KiB"),
        ("failed or wrong", str(outcome.wrong), ""),
    ]
    summary = f"{outcome.cuts} cuts: {outcome.read} reads, {outcome.wrong} failed or wrong"
    return reliability.Chapter("power", COMMAND, setting, cells, summary)


def main() -> int:
    def work(scratch: Path, setting: dict[str, str], cuts: int) -> reliability.Judged:
        outcome = measure(scratch, cuts)
        return chapter(outcome, setting), outcome.is_good

    return reliability.run("power", __doc__, work, cuts=CUTS)


if __name__ == "__main__":
    sys.exit(main())
