# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.recordings DIR WORKLOAD...``: traces of the suite's workloads.

Owns the recording: ``firstread trace`` runs a workload with all data local, until the client of the
benchmarks has its answer (`until`), so a trace has what answering it reads. A trace that exists is
taken as it is.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.host import Host
from benchmarks.images.ready import Prints
from benchmarks.images.recipes import HTTP_GET
from benchmarks.places import LAZY, publish, reference, storage
from benchmarks.scratch import scratch_directory
from benchmarks.suite.workloads import WORKLOADS, Workload
from firstread.testing.registry import DockerRegistry

READY_S = 600.0  # a large image is made whole before


def traced(directory: Path, name: str, number: int = 1) -> Path:
    """Return the file of a trace of a workload; record it if `directory` has none.

    Args:
        directory: of the files.
        name: of the workload.
        number: of the start; each is recorded on a new node.

    Raises:
        RuntimeError: the workload did not get ready, or nothing was written.
    """
    path = directory / f"{name}-{number}.jsonl"
    if not path.exists():
        workload = WORKLOADS[name]
        publish([workload.image])
        directory.mkdir(parents=True, exist_ok=True)
        with (
            scratch_directory() as scratch,
            DockerRegistry(storage=storage()) as registry,
            Host(scratch / "node") as host,
        ):
            _record(host, reference(registry, workload.image, LAZY), workload, path)
    return path


def _record(host: Host, image: str, workload: Workload, path: Path) -> None:
    options = ["--plain-http", "--output", str(path), *until(workload)]
    command = host.command("trace", *options, image, *workload.command)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=READY_S, check=False
    )
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        raise RuntimeError(f"{workload.name}: no trace: {said[-1000:]}")
    lines = said.splitlines()
    print(*(f"  {line}" for line in lines if line.startswith(str(path))), sep="\n", flush=True)


def until(workload: Workload) -> list[str]:
    """Return the options of ``firstread trace`` that end it when a workload is ready."""
    ready = workload.ready
    if isinstance(ready, Prints):
        return ["--until-line", f"^{ready.line}$"]
    if ready.send == HTTP_GET:
        return ["--until", f"http://127.0.0.1:{ready.port}/"]
    ask = (sys.executable, "-m", "benchmarks.ask", workload.name)
    return ["--until-command", shlex.join(ask)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recordings", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("workloads", nargs="+", choices=WORKLOADS, metavar="WORKLOAD")
    parser.add_argument("--starts", type=int, default=1, help="traces of each [1]")
    options = parser.parse_args(arguments)
    if os.geteuid():
        parser.error("it mounts: run it as root")
    for name in options.workloads:
        for number in range(1, options.starts + 1):
            traced(options.directory, name, number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
