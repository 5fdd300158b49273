# SPDX-License-Identifier: Apache-2.0
"""A Dask cluster on this machine, of real processes that a test may kill.

Owns the processes and their logs, and ends them with its context. It needs `distributed`
(``firstread[dask]``). Everything listens on loopback.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from distributed import Client

from firstread.errors import NodeError
from firstread.testing.patience import PATIENCE_S

_PROGRAM: Final = (sys.executable, "-W", "ignore", "-m", "distributed.cli")
_NO_DASHBOARD: Final = ("--dashboard-address", "127.0.0.1:0")  # or one that nobody else has


class Cluster:
    """A scheduler and its workers; a context manager.

    Args:
        workers: processes, of one task at a time each.
        environment: of the workers, besides ours.
    """

    def __init__(self, workers: int = 2, environment: Mapping[str, str] | None = None) -> None:
        self._count = workers
        self._environment = dict(environment or {})
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._logs = Path()
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="firstread-cluster-")
        self._logs = Path(self._directory.name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        try:
            self.start_scheduler()
            for _ in range(self._count):
                self.add_worker()
            if self._count:
                self.wait_for_workers(self._count)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self._scheduler):
            if process is not None:
                process.kill()
                process.wait(timeout=PATIENCE_S)
        if self._directory is not None:
            self._directory.cleanup()

    @property
    def engine(self) -> str:
        """The text for ``--engine``."""
        return f"dask://{self.address}"

    def log(self) -> str:
        """Return what scheduler and workers have said."""
        return "".join(path.read_text("utf-8", "replace") for path in self._logs.glob("*.log"))

    def start_scheduler(self) -> None:
        """Start the scheduler, at the same address each time."""
        host, _, port = self.address.partition(":")
        arguments = ("--host", host, "--port", port, *_NO_DASHBOARD)
        self._scheduler = self._start("scheduler", "dask_scheduler", *arguments)
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._scheduler.poll() is not None or time.monotonic() > deadline:
                raise NodeError(f"the scheduler does not start: {self.log()[-500:]}")
            time.sleep(0.05)

    def kill_scheduler(self) -> None:
        """Kill the scheduler; it forgets everything."""
        assert self._scheduler is not None
        self._scheduler.kill()
        self._scheduler.wait(timeout=PATIENCE_S)

    def add_worker(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start one more worker, with more in its environment."""
        name = f"worker{len(self.workers)}"
        arguments = (
            f"tcp://{self.address}",
            *("--nthreads", "1", "--no-nanny", "--name", name, *_NO_DASHBOARD),
            *("--host", "127.0.0.1", "--local-directory", str(self._logs / name)),
        )
        worker = self._start(name, "dask_worker", *arguments, environment=environment)
        self.workers.append(worker)
        return worker

    def kill_worker(self, number: int) -> None:
        """End a worker with SIGKILL."""
        self.workers[number].send_signal(signal.SIGKILL)
        self.workers[number].wait(timeout=PATIENCE_S)

    def wait_for_workers(self, count: int) -> None:
        """Wait until the scheduler knows `count` workers at least."""
        with Client(f"tcp://{self.address}", timeout=PATIENCE_S, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=PATIENCE_S)

    def warm(self) -> None:
        """Have all workers load firstread."""
        with Client(f"tcp://{self.address}", timeout=PATIENCE_S, set_as_default=False) as client:
            client.run(eval, "__import__('firstread.convert.worker') and None")

    def busy(self) -> list[int]:
        """Return the workers that have a task, by their numbers."""
        with Client(f"tcp://{self.address}", timeout=PATIENCE_S, set_as_default=False) as client:
            known = client.scheduler_info()["workers"]
            tasks = client.processing()
        names = [known[address]["name"] for address, keys in tasks.items() if keys]
        return [int(name.removeprefix("worker")) for name in names]

    def _start(
        self, name: str, program: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        *python, module = _PROGRAM
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*python, f"{module}.{program}", *arguments],
                stdout=log,
                stderr=log,
                cwd=self._logs,
                env={**os.environ, **self._environment, **(environment or {})},
            )

    def _answers(self) -> bool:
        host, _, port = self.address.partition(":")
        with socket.socket() as client:
            return client.connect_ex((host, int(port))) == 0
