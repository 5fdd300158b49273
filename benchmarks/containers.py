# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.containers``: containers read while SIGKILL hits everything below them.

Containers of one lazy image, in pods of a real containerd, read its files, each one other files in
its own order, and record what they read. Meanwhile the benchmark kills and restarts containerd, the
snapshotter, the fetcher, the supervisor, the whole daemon and all of them, in turns. The records
count: every file, with the right digest, and no failed read.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import reliability
from firstread.errors import FirstreadError
from firstread.testing.command import firstread
from firstread.testing.containerd import Containerd
from firstread.testing.containers import find_busybox, make_rootfs
from firstread.testing.images import Image, Layer, write_layout
from firstread.testing.manager import ServiceManager
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import push_pause
from firstread.units import KiB

CONTAINERS, FILES, READS, ROUNDS = 10, 1500, 500, 3
FILE_BYTES = 64 * KiB  # also of a sector, so that each file is a read that may have to wait
PAUSE_S = 0.1  # between two reads of a container, so that first reads go on during all kills
CALM_S = 1.0  # after each kill
BACK_S = 60.0
READ_S = 600.0
IMAGE = "reader:1"
READER = """
cd /data
ls | shuf | head -n {reads} | while read name; do
    sha256sum "$name" >> /tmp/read 2>&1 || echo "failed $name" >> /tmp/read
    sleep {pause}
done
echo done >> /tmp/read
sleep 100000 & wait
"""


@dataclass
class Result:
    """The reads of all containers.

    Args:
        reads: right ones.
        failed: failed reads, by their record.
        wrong: files with another digest.
        absent: reads without a record.
        restarted: containers with another process than at the start.
        kills: by victim.
    """

    reads: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    absent: int = 0
    restarted: int = 0
    kills: dict[str, int] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return not (self.failed or self.wrong or self.absent or self.restarted)


def file_bytes(number: int) -> bytes:
    """Return the content of ``/data/NUMBER``."""
    return random.Random(number).randbytes(FILE_BYTES)


@contextmanager
def reader_registry(files: int) -> Iterator[DockerRegistry]:
    """Yield a registry with a converted image of `files` sectors, and the pause image."""
    busybox = find_busybox()
    if busybox is None:
        raise RuntimeError("there is no static busybox: apt install busybox-static")
    with tempfile.TemporaryDirectory() as scratch, DockerRegistry() as registry:
        (Path(scratch) / "rootfs").mkdir()
        rootfs = make_rootfs(Path(scratch) / "rootfs", busybox)
        (rootfs / "data").mkdir()
        for number in range(files):
            (rootfs / f"data/{number}").write_bytes(file_bytes(number))
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(rootfs, arcname=".")
        image = Image([Layer(archive.getvalue(), "none")], {"Env": ["PATH=/bin"]})
        write_layout(image, Path(scratch) / "layout")
        sizes = f"--sector-size={FILE_BYTES}", f"--frame-size={FILE_BYTES}"
        ran = firstread("convert", *sizes, f"oci:{scratch}/layout:latest", name_in(registry))
        if ran.code:
            raise RuntimeError(ran.stderr)
        push_pause(registry, busybox)
        yield registry


def name_in(registry: DockerRegistry) -> str:
    """Return how a client names the image."""
    return f"{registry.host}/{IMAGE}"


class Readers:
    """Containers that read, and the processes below them; a context manager.

    Args:
        scratch: an empty directory.
        registry: of `reader_registry`.
        count: of containers.
        files: of the image.
        reads: of each container, of other files.
    """

    def __init__(
        self, scratch: Path, registry: DockerRegistry, count: int, files: int, reads: int
    ) -> None:
        self._manager = ServiceManager(scratch)
        self.node = Containerd(scratch, f"{registry.host}/pause:1", manager=self._manager)
        self._image, self._count = name_in(registry), count
        self._files, self._reads = files, reads
        self._containers: list[tuple[str, int]] = []
        self.kills: dict[str, Callable[[], None]] = {
            "containerd": self._containerd,
            "snapshotter": self._snapshotter,
            "fetcher": self._fetcher,
            "supervisor": self._supervisor,
            "fetcher and supervisor": self._daemon,
            "all four": self._all,
        }

    def __enter__(self) -> Readers:
        self._manager.__enter__()
        try:
            self.node.__enter__()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.node.__exit__()
        self._manager.__exit__()

    def result(self, kills: dict[str, int], timeout_s: float = READ_S) -> Result:
        """Wait until all containers have read everything; return their records."""
        result = Result(kills=kills)
        expected = {str(n): hashlib.sha256(file_bytes(n)).hexdigest() for n in range(self._files)}
        for container, pid in self._containers:
            self.node.wait(lambda name=container: self._is_done(name), timeout_s)  # type: ignore[misc]
            self._judge(result, self.node.exec(container, "cat", "/tmp/read"), expected)
            result.restarted += not Path(f"/proc/{pid}").exists()
        return result

    def kill_in_turns(self, rounds: int, calm_s: float = CALM_S) -> dict[str, int]:
        """Kill and start again each process, and all; return how often."""
        for _ in range(rounds):
            for kill in self.kills.values():
                kill()
                time.sleep(calm_s)
        return dict.fromkeys(self.kills, rounds)

    def _start(self) -> None:
        self.node.pull(self._image)
        for _ in range(self._count):
            pod = self.node.start_pod()
            script = READER.format(pause=PAUSE_S, reads=self._reads)
            container, _ = self.node.start_container(pod, self._image, "sh", "-c", script)
            self._containers.append((container, int(self.node.task_pid(container))))

    def _is_done(self, container: str) -> bool:
        return self.node.exec(container, "tail", "-n", "1", "/tmp/read").strip() == "done"

    def _judge(self, result: Result, text: str, expected: dict[str, str]) -> None:
        seen = set()
        for line in text.splitlines():
            digest, _, name = line.partition("  ")
            if name in expected:
                seen.add(name)
                result.reads += expected[name] == digest
                result.wrong += expected[name] != digest
            elif line != "done":
                result.failed.append(line)
        result.absent += self._reads - len(seen)

    # -- kills ---------------------------------------------------------------------------------

    def _containerd(self) -> None:
        self.node.kill_containerd()
        self.node.start_containerd()

    def _snapshotter(self) -> None:
        self.node.kill_snapshotter()
        self.node.start_snapshotter()

    def _fetcher(self) -> None:
        fetcher = self.node.daemon.fetcher
        os.kill(fetcher, signal.SIGKILL)
        self._wait_fetcher(fetcher)

    def _supervisor(self) -> None:
        daemon, fetcher = self.node.daemon, self.node.daemon.fetcher
        os.kill(daemon.supervisor, signal.SIGKILL)
        daemon.wait(lambda: daemon.supervisor == fetcher, BACK_S)
        self._wait_fetcher(fetcher)

    def _daemon(self) -> None:
        self.node.daemon.end_all(signal.SIGKILL)
        self.node.daemon.start()

    def _all(self) -> None:
        self.node.kill_containerd()
        self.node.kill_snapshotter()
        self.node.daemon.end_all(signal.SIGKILL)
        self.node.daemon.start()
        self.node.start_snapshotter()
        self.node.start_containerd()

    def _wait_fetcher(self, old: int) -> None:
        def served() -> bool:
            try:
                return self.node.daemon.fetcher != old
            except FirstreadError:
                return False

        self.node.daemon.wait(served, BACK_S)


def cells(result: Result, readers: int) -> list[tuple[str, ...]]:
    """Return a table."""
    kills = ", ".join(f"{what} {count}" for what, count in result.kills.items())
    return [
        ("what", "figure", "goal", "met"),
        ("containers", str(readers), "", ""),
        ("kills", str(sum(result.kills.values())), "", kills),
        ("reads", f"{result.reads:,}", "", "each of a file that is a sector"),
        ("reads that failed", str(len(result.failed)), "<= 0", _met(not result.failed)),
        ("wrong bytes", str(result.wrong), "<= 0", _met(not result.wrong)),
        ("reads that are missing", str(result.absent), "<= 0", _met(not result.absent)),
        ("containers that ended", str(result.restarted), "<= 0", _met(not result.restarted)),
    ]


def _met(met: bool) -> str:
    return "yes" if met else "NO"


def main() -> int:
    """Run it once; see the module."""

    def work(scratch: Path, setting: dict[str, str]) -> reliability.Judged:
        with (
            reader_registry(FILES) as registry,
            Readers(scratch, registry, CONTAINERS, FILES, READS) as readers,
        ):
            kills = readers.kill_in_turns(ROUNDS)
            fetched = readers.node.daemon.status()["mounts"][0]["present"]
            result = readers.result(kills)
        setting["image"] = f"{FILES} files of 64 KiB, a sector each"
        setting["kills"] = (
            f"in turns, {CALM_S:g} s apart; {fetched} sectors were there at the last one"
        )
        summary = (
            f"{sum(kills.values())} kills under {CONTAINERS} containers and {result.reads} reads:"
            f" {len(result.failed)} failed, {result.wrong} wrong"
        )
        command, table = "python -m benchmarks.containers --docs", cells(result, CONTAINERS)
        chapter = reliability.Chapter("containers", command, setting, table, summary)
        return chapter, result.right

    return reliability.run("containers", __doc__, work)


if __name__ == "__main__":
    sys.exit(main())
