# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.full``: reads while the disk of the sector store is full, and afterwards.

The store lies on its own small file system, where a large file takes the space that an image needs.
Other processes compare files. Exits with 1 if a goal was missed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks import reliability
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.plainimage import put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.testing.shortage import small_filesystem
from firstread.units import KiB, MiB

DISK_BYTES, BALLAST_BYTES = 192 * MiB, 100 * MiB
FILES, FILE_BYTES = 400, 256 * KiB
READ_S = 300.0

READER = """
import hashlib, json, sys
place, names = sys.argv[1], json.loads(sys.stdin.read())
seen = {}
for name in names:
    try:
        with open(f"{place}/{name}", "rb", buffering=0) as file:
            data = b"".join(iter(lambda: file.read(1 << 17), b""))
        seen[name] = hashlib.sha256(data).hexdigest()
    except OSError as exc:
        seen[name] = exc.errno
print(json.dumps(seen))
"""


@contextlib.contextmanager
def small_disk(scratch: Path) -> Iterator[Path]:
    """Mount a small ext4 with a large file on it."""
    with small_filesystem(scratch, size=DISK_BYTES) as place:
        subprocess.run(("fallocate", "-l", str(BALLAST_BYTES), place / "ballast"), check=True)
        yield place


class Full:
    """One run, and the cells of its table.

    Args:
        scratch: an empty directory.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._digests: dict[str, str] = {}
        self.cells: list[tuple[str, ...]] = [("reads", "right", "EIO", "wrong", "as it should be")]
        self.met = True
        self.reason = ""

    def run(self) -> None:
        """Do all of it."""
        with DockerRegistry() as registry, small_disk(self._scratch) as disk:
            image = f"{registry.host}/full/plain:1"
            plain = put_plain_image(
                f"docker://{image}", count=FILES, sector_bytes=FILE_BYTES, frame_bytes=64 * KiB
            )
            self._digests = {
                f"f{number}": hashlib.sha256(content).hexdigest()
                for number, content in enumerate(plain.contents)
            }
            node = self._scratch / "node"
            node.mkdir()
            with Daemon(node, "--log-level", "WARNING", root=disk / "root") as daemon:
                place = daemon.mount(image)
                everything = list(self._digests)
                seen = self._read(place, everything)
                self._add("all files: more than the disk holds", seen)
                daemon.client.post("/pin", directory=str(place))  # nothing can make room any more
                drop_caches()
                seen = self._read(place, everything)
                self._add("the same, pinned: nothing may go for another", seen, fails=True)
                here = [name for name, got in seen.items() if got == self._digests[name]]
                drop_caches()
                self._add("of these what was right, again", self._read(place, here))
                records = daemon.log("a read fails")
                self.reason = f"{records[-1]['error']} ({records[-1]['hint']})" if records else ""
                (disk / "ballast").unlink()
                self._add("all files, with space again", self._read(place, everything))

    def _read(self, place: Path, names: list[str]) -> dict[str, str | int]:
        command = [sys.executable, "-I", "-S", "-c", READER, str(place)]
        done = subprocess.run(
            command,
            input=json.dumps(names),
            stdout=subprocess.PIPE,
            text=True,
            timeout=READ_S,
            check=True,
        )
        seen: dict[str, str | int] = json.loads(done.stdout)
        return seen

    def _add(self, what: str, seen: dict[str, str | int], *, fails: bool = False) -> None:
        """Add a row; `fails`: some reads are to fail, but not all."""
        kinds = Counter(
            "EIO" if isinstance(got, int) else "right" if got == self._digests[name] else "wrong"
            for name, got in seen.items()
        )
        met = not kinds["wrong"] and kinds["right"] > 0 and bool(kinds["EIO"]) == fails
        self.met &= met
        counts = (str(kinds[kind]) for kind in ("right", "EIO", "wrong"))
        self.cells.append((what, *counts, "yes" if met else "NO"))


def main() -> int:
    """Run it once; see the module."""

    def work(scratch: Path, setting: dict[str, str]) -> reliability.Judged:
        full = Full(scratch)
        full.run()
        store = f"ext4 of {DISK_BYTES // MiB} MiB, {BALLAST_BYTES // MiB} MiB of them taken"
        image = f"{FILES} sectors of {FILE_BYTES // KiB} KiB, from a real registry"
        setting |= {"store": store, "image": image, "the log says": full.reason}
        is_good = full.met and bool(full.reason)
        summary = "as it should be" if is_good else "NOT as it should be"
        command = "python -m benchmarks.full --docs"
        return reliability.Chapter("full", command, setting, full.cells, summary), is_good

    return reliability.run("full", __doc__, work)


if __name__ == "__main__":
    sys.exit(main())
