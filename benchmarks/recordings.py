# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.recordings DIR WORKLOAD...``: traces of the suite's workloads.

Owns the recording: ``firstread trace`` runs a workload with all data local. Where it cannot see the
sign of readiness itself, since the client speaks no HTTP, it is interrupted once we have seen it.
So a trace has what answering a client reads. A trace that exists is taken as it is.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.host import Host
from benchmarks.images.ready import Prints, wait_ready
from benchmarks.images.recipes import HTTP_GET
from benchmarks.places import LAZY, publish, reference, storage
from benchmarks.scratch import scratch_directory
from benchmarks.suite.workloads import WORKLOADS, Workload
from firstread.testing.registry import DockerRegistry

END_S = 60.0  # for a workload to stop, and the trace to be written
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
    ready, options = workload.ready, ["--plain-http", "--output", str(path)]
    asked = not isinstance(ready, Prints) and ready.send != HTTP_GET
    if isinstance(ready, Prints):
        options += ["--until-line", f"^{ready.line}$"]
    elif not asked:
        options += ["--until", f"http://127.0.0.1:{ready.port}/"]
    command = host.command("trace", *options, image, *workload.command)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            if asked:
                wait_ready(process, ready, READY_S)
                process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=END_S if asked else READY_S)
        except BaseException:
            process.terminate()
            raise
    if not path.exists():
        raise RuntimeError(f"{workload.name}: no trace: {said.decode(errors='replace')[-1000:]}")
    lines = said.decode(errors="replace").splitlines()
    print(*(f"  {line}" for line in lines if line.startswith(str(path))), sep="\n", flush=True)


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
