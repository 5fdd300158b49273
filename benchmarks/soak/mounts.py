# SPDX-License-Identifier: Apache-2.0
"""Mounts of one image, each read all the time by its own process.

Owns readers, their logs, and the return to a cold state: when all have read everything, it unmounts
the image, removes its sectors, and mounts it again. With a bounded store the daemon evicts sectors
itself, and mounts stay. Invariant: this process reads no file of a mount.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.soak import reader
from benchmarks.soak.images import SoakImage
from benchmarks.soak.judge import Record
from benchmarks.soak.machine import Node
from firstread.cache.imagestore import ImageStore
from firstread.errors import FirstreadError

HANG_S = 60.0  # without a word from a reader: nothing in a soak takes that long
DEAF_S = 10.0  # in which a killed process is gone
ENDLESS = 1_000_000  # passes


class Group:
    """A thread that keeps an image mounted and its readers running.

    Args:
        node: where.
        name: of the group.
        host: of the registry, or of the proxy before it.
        image: which.
        mounts: how many.
        pause_s: of a reader after each file.

    Attributes:
        places: mount points of the image.
        passes: over the whole image, so far.
    """

    def __init__(
        self, node: Node, name: str, host: str, image: SoakImage, mounts: int, pause_s: float
    ) -> None:
        self.name = name
        self._node = node
        self._image = f"{host}/{image.name}"
        self._expected = image.expected
        self._pause_s = pause_s
        self.places = [node.scratch / f"{name}-{number}" for number in range(mounts)]
        self._logs = [node.scratch / f"{name}-{number}.log" for number in range(mounts)]
        self._ids: list[bytes] = []
        self._extra: list[Record] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._failure: BaseException | None = None
        self.passes = 0
        for place in self.places:
            place.mkdir()

    def start(self) -> None:
        """Mount for the first time, and begin to read."""
        self._attach()
        digest = self._node.mounted(self.places[0])["digest"]
        self._ids = ImageStore(self._node.root).load(digest).ids()
        self._thread.start()

    def stop(self) -> None:
        """End the readers.

        Raises:
            RuntimeError: the thread does not end, or had failed.
        """
        self._stop.set()
        self._thread.join(timeout=2 * HANG_S)
        if self._failure is not None or self._thread.is_alive():
            raise RuntimeError(f"{self.name} did not go on") from self._failure

    def records(self) -> Iterator[list[Record]]:
        """Yield the lines of each reader; a killed reader may leave its last line torn."""
        yield self._extra
        for log in self._logs:
            lines = log.read_text().splitlines() if log.exists() else []
            records = []
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):
                    records.append(json.loads(line))
            yield records

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._read(ENDLESS if self._node.bounded else 1)
                self.passes += 1
                if not self._stop.is_set():
                    self._detach()
                    self._node.remove_sectors(self._ids)
                    self._attach()
        except BaseException as exc:  # noqa: BLE001 - told by `stop`
            self._failure = exc

    def _read(self, passes: int) -> None:
        """Read all mounts at once, `passes` times or until told to stop."""
        readers = []
        for place, log in zip(self.places, self._logs, strict=True):
            words = (self._expected, place, log, self.passes, self._pause_s, passes)
            command = [sys.executable, "-I", "-S", reader.__file__, *map(str, words)]
            readers.append(subprocess.Popen(command))
            log.touch()
        while not self._stop.wait(0.02) and any(process.poll() is None for process in readers):
            for process, log in zip(readers, self._logs, strict=True):
                silent = time.time() - log.stat().st_mtime
                if process.poll() is None and silent > HANG_S:
                    self._note_hang(process.pid, "hung", silent)
                    self._end(process)
        for process in readers:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        try:
            process.wait(timeout=DEAF_S)
        except subprocess.TimeoutExpired:
            self._note_hang(process.pid, "hung", DEAF_S)

    def _note_hang(self, pid: int, kind: str, seconds: float) -> None:
        """Record the kernel stacks of a reader, the supervisor and the fetcher."""
        now = time.monotonic()
        self._extra.append({"bad": kind, "path": "", "from": now - seconds, "to": now})
        pids = [pid]
        with contextlib.suppress(FirstreadError, OSError):
            pids += [self._node.supervisor, self._node.fetcher]
        for each in pids:
            for task in Path(f"/proc/{each}/task").glob("*"):
                with contextlib.suppress(OSError):
                    stack = (task / "stack").read_text().replace("\n", " ")
                    print(f"HANG {self.name}: {each}/{task.name} {stack}", flush=True)

    def _attach(self) -> None:
        for place in self.places:
            self._ask(
                "/mount",
                "is a mount of",
                image=self._image,
                directory=str(place),
                access={"plain_http": True},
            )

    def _detach(self) -> None:
        for place in self.places:
            self._ask("/umount", "is not a mount of", directory=str(place))

    def _ask(self, path: str, done: str, **request: object) -> None:
        """Repeat the request until it is done; the daemon may be dead, or die meanwhile."""
        deadline = time.monotonic() + HANG_S
        while not self._stop.is_set():
            try:
                self._node.client.post(path, **request)
            except FirstreadError as exc:
                if done in str(exc):
                    return
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return
