# SPDX-License-Identifier: Apache-2.0
"""Nodes with a containerd and any snapshotter, and pods on them, as the kubelet starts them.

Owns the processes of a peer's snapshotter, and the clock of a pod: from the request to pull, when
the sandbox runs, to the answer of the workload. The same requests of CRI pull and start for all.
Invariant: a node has nothing of an image before its first pull, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from string import Template

from benchmarks.images.ready import POLL_S, Prints, Ready, answers
from benchmarks.link import Link
from benchmarks.places import warm
from benchmarks.scratch import set_aside
from benchmarks.suite.modes import Mode
from firstread.run.overlay import unmount_below
from firstread.testing.containerd import EXITED, Containerd
from firstread.testing.cri_pb2 import PodConfig
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry

PAUSE = "bench/pause:1"
PULL_S, READY_S = 3600.0, 900.0
Sandbox = tuple[str, PodConfig]
"""Its id, and its config, as `Containerd.start_pod` returns them."""


@dataclass(frozen=True)
class Site:
    """Where nodes find the images.

    Args:
        registry: that has them.
        host: how nodes name it.
        link: between them, if there is one.
    """

    registry: DockerRegistry
    host: str
    link: Link | None = None

    def image(self, name: str, tag: str) -> str:
        """Return how nodes name a benchmark image."""
        return f"{self.host}/bench/{name}:{tag}"

    def wide(self) -> contextlib.AbstractContextManager[None]:
        """Fetch for a while as if the link were fast, before a clock starts."""
        return self.link.wide() if self.link else contextlib.nullcontext()

    def forget(self, name: str) -> None:
        """Have the image in the registry's memory, and count anew."""
        warm(name)
        self.registry.forget()


@dataclass(frozen=True)
class Pod:
    """A pod that became ready; seconds from the request to pull its image.

    Args:
        pulled_s: the image is pulled.
        started_s: the container runs.
        ready_s: the workload answers.
    """

    pulled_s: float
    started_s: float
    ready_s: float

    def __str__(self) -> str:
        start, work = self.started_s - self.pulled_s, self.ready_s - self.started_s
        return f"pull {self.pulled_s:.2f}, start {start:.2f}, work {work:.2f}"


@contextlib.contextmanager
def containerd_node(site: Site, mode: Mode, scratch: Path) -> Iterator[Containerd]:
    """Yield a new node for `mode`, below a directory that does not exist before."""
    scratch.mkdir()
    socket, root = scratch / "peer.sock", scratch / "peer"
    names = {
        "ADDRESS": str(socket),
        "ROOT": str(root),
        "FILES": str(scratch),
        "SOCKET": str(scratch / "c.sock"),
    }
    proxies = {mode.snapshotter: socket} if mode.daemon else {}
    with contextlib.ExitStack() as stack:
        stack.callback(set_aside, scratch)
        if mode.daemon:
            for file, text in mode.files:
                (scratch / file).write_text(Template(text).safe_substitute(names))
                (scratch / file).chmod(0o755)  # one may be a script
            command = [Template(word).safe_substitute(names) for word in mode.daemon]
            stack.callback(unmount_below, root)  # its daemon leaves them
            stack.callback(_kill_below, scratch)
            stack.enter_context(_serving(command, scratch / "peer.log", socket))
        pause, snapshotter = f"{site.host}/{PAUSE}", mode.snapshotter or "overlayfs"
        yield stack.enter_context(
            Containerd(
                scratch,
                pause,
                snapshotter=snapshotter,
                proxies=proxies,
                device=mode.device,
                image_service=snapshotter == "firstread",  # as docs/kubernetes.md says
            )
        )


def start(
    node: Containerd,
    sandbox: Sandbox,
    image: str,
    ready: Ready,
    command: Sequence[str] = (),
    *,
    began: float | None = None,
) -> Pod:
    """Pull an image and start a container of it, and return when it is ready.

    Args:
        node: where.
        sandbox: for the container.
        image: its name there.
        ready: the sign to wait for.
        command: instead of the image's own; empty for that.
        began: the start of the clock, in seconds since 1970; None for now.

    Raises:
        RuntimeError: it ends, or does not become ready in time; with what it has said.
    """
    if not isinstance(ready, Prints) and answers(ready):
        raise RuntimeError(f"something else answers on port {ready.port}")
    began = began or time.time()
    node.pull(image, PULL_S)
    pulled = time.time()
    container, log = node.start_container(sandbox, image, *command)
    started = time.time()
    at = _wait_ready(ready, log, lambda: node.state(container) == EXITED)
    return Pod(pulled - began, started - began, at - began)


def _wait_ready(ready: Ready, log: Path, ended: Callable[[], bool]) -> float:
    """Return when a workload became ready, in seconds since 1970."""
    deadline = time.monotonic() + READY_S
    asks = time.monotonic() + 1
    while time.monotonic() < deadline:
        if isinstance(ready, Prints):
            if at := said(log, ready.line):
                return at
        elif answers(ready):
            return time.time()
        if time.monotonic() > asks:
            asks = time.monotonic() + 1
            if ended() and not (isinstance(ready, Prints) and said(log, ready.line)):
                raise RuntimeError(f"the workload ended: {log.read_text()[-1000:]}")
        time.sleep(POLL_S)
    raise RuntimeError(f"not ready within {READY_S:.0f} s: {log.read_text()[-1000:]}")


def said(log: Path, line: str) -> float | None:
    """Return when a workload printed `line`, in seconds since 1970, from the log of its pod."""
    for entry in log.read_text().splitlines():
        at, _, _, text = entry.split(" ", 3)
        if text == line:
            return datetime.fromisoformat(at).timestamp()
    return None


@contextlib.contextmanager
def _serving(command: Sequence[str], log: Path, socket: Path) -> Iterator[None]:
    """Run a snapshotter during the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not start: {log.read_text()[-1000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE_S)


def _kill_below(scratch: Path) -> None:
    """Kill what a snapshotter of this node has left running, such as nydusd, and nothing else."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"nydusd") and f"{scratch}/".encode() in b" ".join(words):
                    os.kill(int(entry.name), signal.SIGKILL)
