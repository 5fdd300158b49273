# SPDX-License-Identifier: Apache-2.0
"""A daemon for one test, and processes that read through its mounts.

Owns the daemon's directories and processes, and sees to it that no mount is left. A test never
reads through a mount itself: its own threads may serve what the mount waits for.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from firstread.control.client import Client
from firstread.daemon.anchor import retire
from firstread.device.erofsmount import unmount
from firstread.errors import FirstreadError
from firstread.mounts.table import mounted_erofs
from firstread.testing.command import Ran, firstread, program, ran
from firstread.testing.devicebench import start_reader, start_readers
from firstread.testing.features import Expected
from firstread.testing.manager import ServiceManager
from firstread.testing.patience import PATIENCE_S

_REFUSED = ("firstread: an upgrade is under way already", "  wait a moment")  # for people, not JSON
_OBSERVE = """
import pickle, sys
from firstread.testing.observe import observe
pickle.dump(observe(sys.argv[1]), sys.stdout.buffer)
"""


def tree_of(place: Path, timeout_s: float = 120.0) -> dict[bytes, Expected]:
    """Return what another process observes at `place`; see `testing.observe`."""
    command = [sys.executable, "-c", _OBSERVE, str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=timeout_s)
    tree: dict[bytes, Expected] = pickle.loads(done.stdout)
    return tree


class Daemon:
    """``firstread daemon`` with directories of its own; a context manager.

    Args:
        scratch: an empty directory on ext4, xfs or btrfs.
        options: more of the command line.
        root: of the store, if it is to lie elsewhere.
        command: what to start it with, such as setpriv and its options.
        python: that runs it, of another installation.
        manager: that runs it as a service.
    """

    def __init__(
        self,
        scratch: Path,
        *options: str,
        root: Path | None = None,
        command: tuple[str, ...] = (),
        python: str = sys.executable,
        manager: ServiceManager | None = None,
    ) -> None:
        self.scratch = scratch
        self.root = root or scratch / "root"
        self.run_dir = scratch / "run"
        self.client = Client(self.run_dir)
        self._options = options
        self.wrapper = command
        self._python = python
        self._manager = manager
        self._log = scratch / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.kill()
            reader.communicate(timeout=PATIENCE_S)
        try:
            self.end_all(signal.SIGTERM)
        finally:
            for place in reversed(list(mounted_erofs())):
                if place.startswith(f"{self.scratch}/"):
                    with contextlib.suppress(FirstreadError):
                        unmount(Path(place), lazy=True)

    # -- processes -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start a daemon; return when it answers."""
        if self._process is not None:
            self._process.poll()  # it may have been killed
        command = [*self.wrapper, *self._program()]
        with self._log.open("ab") as log:
            if self._manager is not None:
                self._process = self._manager.start(command, log.fileno())
            else:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        process = self._process
        self.wait(lambda: self.client.alive() or process.poll() is not None)
        if self._manager is not None:  # it listens, whether a daemon runs or not
            self.wait(lambda: process.poll() is not None or self._is_ready(process.pid))
            assert process.poll() is None, self.output()
        self.status()

    def replace(self) -> None:
        """Start a daemon that takes the place of this one; return when the old one has ended."""
        before, old = self._process, self.supervisor
        assert before is not None
        self.wait(lambda: self._is_replaced(before))
        assert before.returncode == 0, self.output()
        self.wait(lambda: self.supervisor != old)

    def _is_replaced(self, before: subprocess.Popen[bytes]) -> bool:
        """Return whether a daemon has ended; start a successor if none is at it."""
        successor = self._process
        assert successor is not None
        if before.poll() is None and (successor is before or successor.poll() is not None):
            # The standby of a reload may still load, then the answer is to wait a moment.
            said = self.output()
            assert successor is before or _REFUSED[0] in said, said
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._program("--replace"), stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        return before.poll() is not None

    def wait_version(self, upgrades: int) -> None:
        """Wait until both processes are of the version that came with this upgrade."""
        serving = {"pid": self.supervisor, "upgrades": upgrades}
        self.wait(
            lambda: (
                serving.items() <= self.status()["supervisor"].items()
                and self.children() == [self.fetcher]
            )
        )

    def _is_ready(self, pid: int) -> bool:
        ready = {"READY": "1", "MAINPID": str(pid)}
        return self._manager is not None and ready in self._manager.messages

    def _program(self, *options: str) -> list[str]:
        command = program("daemon", *options, *self._places(), *self._options)
        return [self._python, *command[1:]]

    def children(self) -> list[int]:
        """Return the process numbers of the supervisor's children."""
        pid = self.supervisor
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def supervisor(self) -> int:
        """Process number of the supervisor."""
        return int((self.run_dir / "daemon.pid").read_text())

    def wait_supervisor(self, pid: int) -> None:
        """Wait until process `pid` is the supervisor."""
        self.wait(lambda: self.supervisor == pid)

    @property
    def fetcher(self) -> int:
        """Process number of the fetcher."""
        pid: int = self.status()["fetcher"]["pid"]
        return pid

    def end_all(self, number: int, *, anchor: bool = True) -> None:
        """Send a signal to supervisor and fetcher; return when both are gone.

        Args:
            number: of the signal.
            anchor: end the anchor, too.
        """
        self._end_both(number)
        if anchor and self.root.exists():
            retire(str(self.root))
        elif self._manager is None:
            self.wait(lambda: not self.client.alive())  # the anchor closes what only they needed

    def _end_both(self, number: int) -> None:
        if not (self.run_dir / "daemon.pid").exists():
            return
        supervisor = self.supervisor
        if number == signal.SIGKILL:  # else it may start one more, which would take its place
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor, signal.SIGSTOP)
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
        fetchers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        for pid in [*(fetchers if number == signal.SIGKILL else []), supervisor]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if self._process is not None:
            self._process.wait(timeout=PATIENCE_S)
        self.wait(lambda: not any(map(_lives, [supervisor, *fetchers])))

    def rss_bytes(self) -> int:
        """Return the resident memory of supervisor and fetcher, in bytes."""
        return sum(map(_rss_bytes, (self.supervisor, self.fetcher)))

    def cpu_s(self) -> float:
        """Return the processor time that supervisor and fetcher have used, in seconds."""
        return sum(map(cpu_s, (self.supervisor, self.fetcher)))

    # -- commands ------------------------------------------------------------------------------

    def reading(
        self, path: Path, offset: int = 0, count: int = 4096, how: str = "read"
    ) -> subprocess.Popen[str]:
        """Start a process that reads, see `start_reader`; ``read`` goes on until all is there."""
        self._readers.append(start_reader(path, offset, count, "pages" if how == "read" else how))
        return self._readers[-1]

    def reading_files(
        self, paths: Sequence[Path], count: int = 4096, how: str = "pages"
    ) -> subprocess.Popen[str]:
        """Start a process that reads files, each in a thread; it prints a line for each."""
        self._readers.append(start_readers(paths, 0, count, how))
        return self._readers[-1]

    def run(self, verb: str, *arguments: str | os.PathLike[str]) -> Ran:
        """Run a command of this node."""
        return firstread(verb, *arguments, *self._places())

    def tell(self, line: str, verb: str, *arguments: str | os.PathLike[str]) -> Ran:
        """Run a command of this node in a process of its own, with `line` on stdin."""
        return ran(program(verb, *arguments, *self._places()), stdin=f"{line}\n")

    def mount(self, image: str, name: str = "mnt", *options: str) -> Path:
        """Mount `image` at a new directory `name`; return its path."""
        place = self.scratch / name
        place.mkdir(exist_ok=True)
        ran = self.run("mount", image, place, *options)
        assert ran.code == 0, ran
        return place

    def status(self) -> dict[str, Any]:
        """Return the document of ``firstread status --json``."""
        document: dict[str, Any] = self.client.get("/status")
        return document

    def mounted(self, place: Path) -> dict[str, Any]:
        """Return the status of one mount."""
        found: dict[str, Any] = next(
            mount for mount in self.status()["mounts"] if mount["mountpoint"] == str(place)
        )
        return found

    def log(self, part: str = "") -> list[Mapping[str, Any]]:
        """Return the records of the log, those whose message contains `part`.

        Between them a successor may have said that it cannot be one now.
        """
        lines = [line for line in self._log.read_text().splitlines() if line not in _REFUSED]
        records: list[Mapping[str, Any]] = [json.loads(line) for line in lines]
        return [record for record in records if part in record["message"]]

    def output(self) -> str:
        """Return all that the daemon has printed."""
        return self._log.read_text()

    @contextlib.contextmanager
    def watching(self, place: Path) -> Iterator[subprocess.Popen[str]]:
        """Give a ``firstread events --json`` that has seen an event already.

        Args:
            place: of a mount, of which the last files may be read to raise one.
        """
        command = program("events", "--json", *self._places())
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
            assert watcher.stdout is not None
            for file in sorted(place.iterdir(), reverse=True):
                self.reading(file).wait(timeout=PATIENCE_S)
                if select.select([watcher.stdout], [], [], 0.3)[0]:
                    break
            try:
                yield watcher
            finally:
                watcher.send_signal(signal.SIGINT)
                try:
                    watcher.wait(timeout=PATIENCE_S)
                except subprocess.TimeoutExpired:
                    watcher.kill()
                    raise

    def wait(self, condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
        """Wait until `condition` holds; it does not while a process that it looks at has ended."""
        deadline = time.monotonic() + timeout_s
        while not _holds(condition):
            assert time.monotonic() < deadline, f"it does not happen; the log:\n{self.output()}"
            time.sleep(0.01)

    def _places(self) -> tuple[str, ...]:
        return "--root", str(self.root), "--run-dir", str(self.run_dir)


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except (FileNotFoundError, ProcessLookupError):  # one below /proc
        return False


def _lives(pid: int) -> bool:
    """Tell whether any thread of a process lives: the first can be dead long before the last."""
    try:
        threads = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
        states = [path.read_text().rpartition(")")[2].split()[0] for path in threads]
    except (FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/task").exists()  # one of them ended meanwhile
    return any(state not in ("Z", "X") for state in states)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")
