# SPDX-License-Identifier: Apache-2.0
"""Starts a benchmark image, lazily or the classic way, and waits until it is ready.

Owns the command lines and the clock, which runs from the command to the workload's answer, never
to the end of a pull. Invariant: no container and no mount remains.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.host import Host
from benchmarks.images.ready import Answers, Ready, answers, wait_ready
from benchmarks.measure import children

READY_S = 3600.0  # the whole of a large image over a slow link included
END_S = 30.0  # for a workload to end, and for the cleanup of its container


@dataclass
class Started:
    """A workload that became ready.

    Args:
        ready_s: from the command on.
        steps: seconds from the command to the end of each step, if the command reports them.
        downloaded: bytes of blobs from the registry until it was ready.
        sectors: present and total, when lazy.
        errors: its standard error.
    """

    ready_s: float
    downloaded: int = 0
    sectors: tuple[int, int] = (0, 0)
    steps: dict[str, float] = field(default_factory=dict)
    errors: str = ""


def start_lazy(
    host: Host,
    image: str,
    ready: Ready,
    workload: Sequence[str] = (),
    on_ready: Callable[[], object] = lambda: None,
    options: Sequence[str] = (),
) -> Started:
    """Run a converted image with ``firstread run`` on a node with a running daemon.

    Args:
        host: the node.
        image: its reference.
        ready: how to see that it is.
        workload: a command that serves until something ends it; if empty, that of the image.
        on_ready: called at the moment when it is.
        options: more of the command line.
    """
    command = host.command("run", "--plain-http", "--rm", "--stats", *options, image, *workload)
    with _until_ready(command, ready, ends=not workload) as started:
        on_ready()
        mount = host.stats()
        started.downloaded = mount["bytes_fetched"]
        started.sectors = mount["present"], mount["sectors"]
    started.steps = dict(_steps(started.errors))
    return started


def start_classic(
    directory: Path,
    image: str,
    ready: Ready,
    workload: Sequence[str] = (),
    on_ready: Callable[[], object] = lambda: None,
) -> Started:
    """Pull, unpack and run the original image (`benchmarks.classic`); otherwise as `start_lazy`."""
    command = (sys.executable, "-m", "benchmarks.classic", image, str(directory), *workload)
    with _until_ready(command, ready, ends=not workload) as started:
        on_ready()
    *_, last = ["", *started.errors.splitlines()]
    try:
        said = json.loads(last)
    except ValueError as exc:
        raise RuntimeError(f"the classic start ended without figures: {last[-200:]}") from exc
    started.steps, started.downloaded = said["steps"], said["downloaded"]
    return started


@contextlib.contextmanager
def _until_ready(command: Sequence[str], ready: Ready, *, ends: bool) -> Iterator[Started]:
    """Run `command`, yield its state when it is ready, and end it after the block.

    Args:
        command: of the container's runtime.
        ready: how to see that it is.
        ends: a workload that prints its readiness exits by itself.
    """
    if isinstance(ready, Answers) and answers(ready):
        raise RuntimeError(f"something else answers on port {ready.port}")
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            started = Started(0)
            try:
                wait_ready(process, ready, READY_S)
                started.ready_s = time.perf_counter() - began
                process.send_signal(signal.SIGSTOP)  # a short workload keeps its mount
                yield started
            except RuntimeError as exc:
                raise RuntimeError(f"{exc}: {_text(errors)[-1000:]}") from exc
            finally:
                process.send_signal(signal.SIGCONT)
                _end(process, kill=isinstance(ready, Answers) or not ends)
        started.errors = _text(errors)


def _end(process: subprocess.Popen[bytes], *, kill: bool) -> None:
    """Wait until `process` has cleaned up after its container; kill that if necessary."""
    if kill:
        _kill(children(process.pid))
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        _kill([*children(process.pid), process.pid])
        raise


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _steps(report: str) -> Iterator[tuple[str, float]]:
    """Yield the steps of ``firstread run --stats``: ``  start   412 ms``."""
    for line in report.splitlines():
        words = line.split()
        if len(words) > 2 and words[-1] == "ms":
            yield " ".join(words[:-2]), float(words[-2]) / 1000
