# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.upgrade``: replaces a daemon again and again under a reading loop.

Every file of the image is one sector, and the loop reads it once, so that each read asks the
daemon. Half of the upgrades are in place, half come from another process. Ends with an error if a
read failed or got a wrong byte, if the loop was over before the last upgrade, or if a descriptor
leaked. ``--device NAME`` takes another device than fanotify.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import reliability
from benchmarks.measure import median
from firstread.testing.daemon import Daemon
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB

ROUNDS = 20
FILES = 2000
SECTOR_BYTES = 64 * KiB
READERS = 2
COMMAND = "python -m benchmarks.upgrade --device {} --docs"

_READER = """
import hashlib, json, sys, time
place, first, step, count, pause = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
for number in range(first, count, step):
    time.sleep(pause)
    started = time.monotonic()
    try:
        with open(f"{place}/f{number}", "rb") as file:
            said = hashlib.sha256(file.read()).hexdigest()
    except OSError as exc:
        said = f"errno {exc.errno}"
    print(json.dumps([number, said, time.monotonic() - started]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """The observations: seconds of each read and each upgrade, files of the processes."""

    reads: list[float]
    failed: int
    wrong: int
    upgrades: list[float]
    descriptors: tuple[int, int]  # of both processes, after the second upgrade and at the end
    memory: tuple[int, int]  # likewise, bytes
    during: int  # upgrades that finished before the readers

    @property
    def is_good(self) -> bool:
        """Return whether no read failed and nothing leaked, and whether that means something."""
        leak = self.descriptors[1] - self.descriptors[0]
        return not (self.failed or self.wrong) and self.during == len(self.upgrades) and leak <= 4


def measure(scratch: Path, rounds: int, files: int = FILES, device: str = "fanotify") -> Outcome:
    """Upgrade a daemon `rounds` times while all of an image is read."""
    with DockerRegistry() as registry, Daemon(scratch, "--device", device) as daemon:
        reference = f"{registry.host}/bench/plain:1"
        image = put_plain_image(
            f"docker://{reference}", count=files, sector_bytes=SECTOR_BYTES, frame_bytes=4 * KiB
        )
        place = daemon.mount(reference)
        pause = rounds * 1.3 * READERS / files  # an upgrade takes about a second
        command = [sys.executable, "-c", _READER, str(place)]
        numbers = [(str(n), str(READERS), str(files), str(pause)) for n in range(READERS)]
        outputs = [scratch / f"reader{n}" for n in range(READERS)]
        readers = []
        for arguments, output in zip(numbers, outputs, strict=True):
            with output.open("w") as file:
                readers.append(subprocess.Popen([*command, *arguments], stdout=file))
        try:
            upgrades, during = [], 0
            descriptors, memory = [], []
            for number in range(1, rounds + 1):
                upgrades.append(_upgrade(daemon, number))
                during += any(reader.poll() is None for reader in readers)
                if number in (2, rounds):
                    descriptors.append(_descriptors(daemon))
                    memory.append(daemon.rss_bytes())
            for reader in readers:
                reader.wait(timeout=120)
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
        seconds, failed, wrong = _judge(outputs, image)
        ends = descriptors[0], descriptors[-1]
        return Outcome(seconds, failed, wrong, upgrades, ends, (memory[0], memory[-1]), during)


def _upgrade(daemon: Daemon, number: int) -> float:
    started = time.monotonic()
    if number % 2:
        ran = daemon.run("daemon", "--reload")
        assert ran.code == 0, ran
    else:
        daemon.replace()
    daemon.wait_version(number)
    return time.monotonic() - started


def _descriptors(daemon: Daemon) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (daemon.supervisor, daemon.fetcher))


def _judge(outputs: list[Path], image: PlainImage) -> tuple[list[float], int, int]:
    """Return the seconds of each read, how many failed, and how many were wrong or missing."""
    lines = [json.loads(line) for path in outputs for line in path.read_text().splitlines()]
    failed = sum(said.startswith("errno") for _, said, _ in lines)
    expected = [hashlib.sha256(content).hexdigest() for content in image.contents]
    right = sum(said == expected[number] for number, said, _ in lines)
    return [seconds for _, _, seconds in lines], failed, len(expected) - failed - right


def chapter(
    outcome: Outcome, setting: dict[str, str], device: str = "fanotify"
) -> reliability.Chapter:
    """Return the chapter about it."""
    reads = sorted(outcome.reads)
    late = reads[int(0.99 * len(reads))]
    megabytes = [size / 1e6 for size in outcome.memory]
    cells = [
        ("", "figure", "note"),
        ("upgrades", str(len(outcome.upgrades)), "half in place, half from another process"),
        (
            "time of one, median",
            f"{median(outcome.upgrades):.2f} s",
            "until the next fetcher serves",
        ),
        ("first reads", str(len(reads)), f"of {SECTOR_BYTES // KiB} KiB, each of another sector"),
        ("failed", str(outcome.failed), ""),
        ("wrong bytes", str(outcome.wrong), ""),
        ("a read, median", f"{median(reads) * 1000:.1f} ms", f"p99 {late * 1000:.1f} ms"),
        ("longest read", f"{reads[-1] * 1000:.0f} ms", "it waited for a fetcher"),
        (
            "descriptors",
            str(outcome.descriptors[1]),
            f"{outcome.descriptors[0]} after two upgrades",
        ),
        ("memory", f"{megabytes[1]:.0f} MB", f"{megabytes[0]:.0f} MB after two upgrades"),
    ]
    summary = (
        f"{len(outcome.upgrades)} upgrades under {len(reads)} first reads:"
        f" {outcome.failed} failed, {outcome.wrong} wrong"
    )
    name = reliability.name_of("upgrade", device)
    return reliability.Chapter(name, COMMAND.format(device), setting, cells, summary)


def main() -> int:
    def work(
        scratch: Path, setting: dict[str, str], rounds: int, device: str
    ) -> reliability.Judged:
        outcome = measure(scratch, rounds, device=device)
        return chapter(outcome, setting, device), outcome.is_good

    return reliability.run("upgrade", __doc__, work, rounds=ROUNDS, device="fanotify")


if __name__ == "__main__":
    sys.exit(main())
