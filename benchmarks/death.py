# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.death``: supervisor and fetcher are killed at once, and nobody is told.

``--device NAME`` takes another device than fanotify.

Without a service manager: only the anchor is left. Kills both again and again under a reading load,
and starts a daemon each time; then leaves reads without a daemon for a minute. Every file of the
image is one sector, and is read once, so that each read asks. Ends with an error if a read failed
or got a wrong byte, or if a read did not wait for the next daemon.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import reliability
from firstread.testing.daemon import Daemon
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB

KILLS = 50
ABSENT_S = 60.0
READERS = 2
FILES_A_KILL = 12  # read around each kill, by each reader
ABSENT_FILES = 8  # that reads wait for while no daemon lives
SECTOR_BYTES = 64 * KiB
LONGEST_PAUSE_S = 0.4  # from the start of a stretch of reads to the kill
WAIT_S = 120.0
COMMAND = "python -m benchmarks.death --device {} --docs"

_READER = """
import hashlib, json, sys, time
place, first, step, stretch = sys.argv[1], *map(int, sys.argv[2:5])
number = first
for _ in sys.stdin:
    for _ in range(stretch):
        started = time.monotonic()
        try:
            with open(f"{place}/f{number}", "rb") as file:
                said = hashlib.sha256(file.read()).hexdigest()
        except OSError as exc:
            said = f"errno {exc.errno}"
        print(json.dumps([number, said, time.monotonic() - started]), flush=True)
        number += step
"""


@dataclass(frozen=True)
class Outcome:
    """Counts of one run.

    Args:
        kills: of both processes.
        reads: seconds of each read meanwhile.
        failed: of these.
        wrong: of these, or missing.
        back: seconds from each kill to a daemon that answers.
        absent_s: without a daemon.
        waited: reads that were still waiting after that.
        right: of these, when the next daemon was there.
    """

    kills: int
    reads: list[float]
    failed: int
    wrong: int
    back: list[float]
    absent_s: float
    waited: int
    right: int

    @property
    def is_good(self) -> bool:
        """Whether no read failed, and all waited."""
        return not (self.failed or self.wrong) and self.waited == self.right == ABSENT_FILES


class Reader:
    """A process that reads a stretch of files each time that it is told to.

    Args:
        place: of the mount.
        number: of the reader.
        output: path of what it finds.
    """

    def __init__(self, place: Path, number: int, output: Path) -> None:
        self.output = output
        numbers = (str(ABSENT_FILES + number), str(READERS), str(FILES_A_KILL))
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _READER, str(place), *numbers],
                stdin=subprocess.PIPE,
                stdout=file,
                text=True,
            )

    def go_on(self) -> None:
        """Have it read the next stretch."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def found(self) -> list[tuple[int, str, float]]:
        """Return what it has found, when it has read all."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=WAIT_S)
        lines = self.output.read_text().splitlines()
        return [(number, said, seconds) for number, said, seconds in map(json.loads, lines)]


def measure(scratch: Path, kills: int, absent_s: float, device: str = "fanotify") -> Outcome:
    """Kill everything `kills` times, and then leave it dead for a while."""
    files = kills * READERS * FILES_A_KILL
    with DockerRegistry() as registry, Daemon(scratch, "--device", device) as daemon:
        reference = f"{registry.host}/bench/plain:1"
        image = put_plain_image(
            f"docker://{reference}",
            count=files + ABSENT_FILES,
            sector_bytes=SECTOR_BYTES,
            frame_bytes=4 * KiB,
        )
        place = daemon.mount(reference)
        readers = [Reader(place, number, scratch / f"reader{number}") for number in range(READERS)]
        try:
            back = [_kill(daemon, readers) for _ in range(kills)]
            found = [each for reader in readers for each in reader.found()]
        finally:
            for reader in readers:
                reader.process.kill()
                reader.process.wait()
        failed = sum(said.startswith("errno") for _, said, _ in found)
        right = sum(said == _digest(image, number) for number, said, _ in found)
        waited, late = _absent(daemon, place, image, absent_s)
    times = [seconds for _, _, seconds in found]
    return Outcome(kills, times, failed, files - failed - right, back, absent_s, waited, late)


def _kill(daemon: Daemon, readers: list[Reader]) -> float:
    for reader in readers:
        reader.go_on()
    time.sleep(random.uniform(0.0, LONGEST_PAUSE_S))
    started = time.monotonic()
    daemon.end_all(signal.SIGKILL, anchor=False)
    daemon.start()
    return time.monotonic() - started


def _absent(daemon: Daemon, place: Path, image: PlainImage, absent_s: float) -> tuple[int, int]:
    """Return how many reads wait after a time without a daemon, and how many of them are right."""
    daemon.end_all(signal.SIGKILL, anchor=False)
    numbers = range(ABSENT_FILES)  # before all others, so nothing has fetched them ahead
    readers = [daemon.reading(place / f"f{number}", 0, SECTOR_BYTES) for number in numbers]
    time.sleep(absent_s)
    waiting = [reader for reader in readers if reader.poll() is None]
    daemon.start()
    expected = [image.summary(number, 0, SECTOR_BYTES) for number in numbers]
    said = [reader.communicate(timeout=WAIT_S)[0].strip() for reader in readers]
    right = sum(one == other for one, other in zip(said, expected, strict=True))
    return len(waiting), right


def _digest(image: PlainImage, number: int) -> str:
    return hashlib.sha256(image.contents[number]).hexdigest()


def chapter(
    outcome: Outcome, setting: dict[str, str], device: str = "fanotify"
) -> reliability.Chapter:
    """Return what is written of it."""
    reads, back = sorted(outcome.reads), sorted(outcome.back)
    cells = [
        ("", "figure", "note"),
        ("kills of both processes", str(outcome.kills), "SIGKILL, no service manager"),
        ("first reads", str(len(reads)), f"of {SECTOR_BYTES // KiB} KiB, each of another sector"),
        ("failed", str(outcome.failed), ""),
        ("wrong bytes", str(outcome.wrong), ""),
        ("until a daemon answers, median", f"{back[len(back) // 2]:.1f} s", "started by hand"),
        ("longest read", f"{reads[-1]:.1f} s", "it waited for the next daemon"),
        ("without a daemon", f"{outcome.absent_s:g} s", f"{outcome.waited} reads wait meanwhile"),
        ("right after that", str(outcome.right), ""),
    ]
    summary = (
        f"{outcome.kills} kills of everything under {len(reads)} first reads: {outcome.failed}"
        f" failed, {outcome.wrong} wrong; {outcome.right} of {ABSENT_FILES} reads waited"
        f" {outcome.absent_s:g} s and went on"
    )
    name = reliability.name_of("death", device)
    return reliability.Chapter(name, COMMAND.format(device), setting, cells, summary)


def main() -> int:
    def work(
        scratch: Path, setting: dict[str, str], kills: int, absent: float, device: str
    ) -> reliability.Judged:
        outcome = measure(scratch, kills, absent, device)
        return chapter(outcome, setting, device), outcome.is_good

    return reliability.run("death", __doc__, work, kills=KILLS, absent=ABSENT_S, device="fanotify")


if __name__ == "__main__":
    sys.exit(main())
