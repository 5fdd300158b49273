# SPDX-License-Identifier: Apache-2.0
"""The processes that a soak kills: a node, a registry, and the proxy between them.

Owns the kills, and the times in which no process held the kernel's descriptors. Invariant: when a
kill returns, everything is up again, so two kills never coincide, except for ``both``.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from firstread.errors import FirstreadError
from firstread.testing.command import firstread, program
from firstread.testing.daemon import Daemon
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry

BACK_S = 60.0


class Node(Daemon):
    """A daemon, and what a soak can do to it.

    Args:
        directory: an empty one, on ext4, xfs or btrfs.
        store_bytes: limit of the store, if this version of the daemon has one.
        device: how the kernel asks.

    Attributes:
        gone: times (from, to) in monotonic seconds in which nobody held the kernel's descriptors.
        bounded: the store has a limit, so the daemon evicts sectors itself.
        replaceable: the daemon can be replaced by another while it serves.
    """

    def __init__(self, directory: Path, store_bytes: int, device: str = "fanotify") -> None:
        help_text = firstread("daemon", "--help").stdout
        self.bounded = "--cache-max" in help_text
        self.replaceable = "--replace" in help_text
        bound = ("--cache-max", str(store_bytes)) if self.bounded else ()
        super().__init__(directory, "--log-level", "WARNING", "--device", device, *bound)
        self.gone: list[tuple[float, float]] = []

    def kill(self, what: str, numbers: random.Random) -> None:
        """Kill ``supervisor``, ``fetcher`` or ``both``, or replace the daemon; wait until it is up.

        Args:
            what: of these.
            numbers: choose how long nobody runs after ``both``.
        """
        if what == "supervisor":
            supervisor, fetcher = self.supervisor, self.fetcher
            os.kill(supervisor, signal.SIGKILL)
            self.wait(lambda: self.supervisor == fetcher, BACK_S)
            self._back(fetcher)
        elif what == "fetcher":
            fetcher = self.fetcher
            os.kill(fetcher, signal.SIGKILL)
            self._back(fetcher)
        elif what == "both":
            since = time.monotonic()
            self.end_all(signal.SIGKILL)
            time.sleep(numbers.uniform(0.0, 1.0))
            self.start()
            self.gone.append((since, time.monotonic()))
        else:
            self._replace()

    def remove_sectors(self, ids: Iterable[bytes]) -> None:
        """Remove the files of sectors that nothing has mounted."""
        for sector_id in ids:
            digits = sector_id.hex()
            (self.root / "sectors" / digits[:2] / digits).unlink(missing_ok=True)

    def _replace(self) -> None:
        before, fetcher = self.supervisor, self.fetcher
        with (self.scratch / "log").open("ab") as log:
            command = program("daemon", *self._places(), *self._options, "--replace")
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.wait(lambda: self.supervisor != before, BACK_S)
        self._back(fetcher)

    def _back(self, old_fetcher: int) -> None:
        """Wait until another fetcher serves."""

        def served() -> bool:
            try:
                return self.fetcher != old_fetcher
            except FirstreadError:
                return False

        self.wait(served, BACK_S)


class Proxy:
    """A fault proxy in a separate process, on a port that it keeps; a context manager.

    Args:
        upstream: the registry.
        seed: of faults by chance.
    """

    def __init__(self, upstream: DockerRegistry, seed: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        self._upstream = upstream
        self._seed = seed
        self._script = ""
        self._process: subprocess.Popen[str] | None = None
        self._injected: Counter[str] = Counter()  # by earlier processes

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process with its previous script."""
        self._seed += 1
        module = "firstread.testing.faultproxy"
        options = ("--upstream", f"http://{self._upstream.host}", "--listen", self.host)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *options, "--seed", str(self._seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("listening"):
            raise RuntimeError("the proxy does not start")
        self.script(self._script)

    def kill(self) -> None:
        """Kill the process."""
        if self._process is None:
            return
        self._injected = self.injected()
        self._process.kill()
        self._process.communicate(timeout=PATIENCE_S)
        self._process = None

    def script(self, text: str) -> None:
        """Set the faults from now on."""
        self._script = text
        self._ask("PUT", "script", text)

    def injected(self) -> Counter[str]:
        """Return how often all processes so far have injected each fault."""
        if self._process is None:
            return self._injected
        return self._injected + Counter(json.loads(self._ask("GET", "injected")))

    def _ask(self, method: str, what: str, body: str = "") -> bytes:
        """Talk to the proxy, which may refuse connections for a while."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            connection = http.client.HTTPConnection(self.host, timeout=PATIENCE_S)
            try:
                connection.request(method, f"/faultproxy/{what}", body=body)
                answer = connection.getresponse()
                data = answer.read()
                if answer.status != 200:
                    raise RuntimeError(data.decode())
                return data
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            finally:
                connection.close()
