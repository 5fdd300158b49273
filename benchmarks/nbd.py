# SPDX-License-Identifier: Apache-2.0
"""The NBD export beside qemu-nbd and, if it is installed, nbdkit: the same disk, the same clients.

All sectors are present and in memory, so only the servers differ. In each round the servers take
turns. CPU is that of the server.

``python -m benchmarks.nbd [--runs N] [--mib N]``
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import median
from benchmarks.report import Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.testing.command import program
from firstread.testing.images import File, Image, Layer, write_layout
from firstread.testing.patience import PATIENCE_S

NAME = "nbd"
READS = 20_000
CLIENTS = {
    "copy, 1 connection": ("nbdcopy", "--connections=1", "{}", "null:"),
    "copy, 4 connections": ("nbdcopy", "--connections=4", "{}", "null:"),
    f"{READS:,} reads of 4 KiB, 16 at a time": (
        *("qemu-img", "bench", "-f", "raw", "-c", str(READS)),
        *("-d", "16", "-s", "4096", "-S", "405504", "{}"),
    ),
}


def make_image(folder: Path, mib: int) -> None:
    """Write an image of `mib` files of 1 MiB, converted, and its disk."""
    chance = random.Random(1)
    files = [File(f"f{number}", chance.randbytes(1 << 20)) for number in range(mib)]
    with contextlib.chdir(folder):
        write_layout(Image([Layer(files, compression="none")]), "in")
        for arguments in (
            ("convert", "oci:in:latest", "oci:out:1", "--no-cache", "--level", "1"),
            ("export", "oci:out:1", "--raw", "raw"),
        ):
            subprocess.run(program(*arguments), check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[dict[str, tuple[int, str]]]:
    """Run the servers; yield process and address of each, by name."""
    sockets = {name: folder / f"{name}.sock" for name in ("firstread", "qemu-nbd", "nbdkit")}
    ours = ("--nbd", f"unix:{sockets['firstread']}", "--root", str(folder / "store"))
    commands = {
        "firstread": program("export", "oci:out:1", *ours),
        "qemu-nbd": ["qemu-nbd", "-r", "-f", "raw", "-e", "8", "-t", "--cache=writeback", "-k"],
    }
    commands["qemu-nbd"] += [str(sockets["qemu-nbd"]), "raw"]
    if shutil.which("nbdkit"):
        commands["nbdkit"] = ["nbdkit", "-f", "-r", "-U", str(sockets["nbdkit"]), "file", "raw"]
    with contextlib.ExitStack() as stack:
        found = {}
        for name, command in commands.items():
            process = subprocess.Popen(
                command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            deadline = time.monotonic() + PATIENCE_S
            while not sockets[name].exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            found[name] = process.pid, f"nbd+unix:///?socket={sockets[name]}"
        yield found


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_client(client: tuple[str, ...], address: str) -> float:
    """Return the seconds that a client takes."""
    begun = time.monotonic()
    command = [word.format(address) for word in client]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=10 * PATIENCE_S)
    return time.monotonic() - begun


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512)
    options = parser.parse_args()
    with scratch_directory() as scratch:
        make_image(scratch, options.mib)
        section = Section(NAME, "NBD servers, everything present", describe(scratch))
        section.setting["disk"] = f"{options.mib} MiB, medians of {options.runs}, by turns"
        section.start()
        with serving(scratch) as servers:
            for _, address in servers.values():
                run_client(CLIENTS["copy, 1 connection"], address)
            for what, client in CLIENTS.items():
                walls: dict[str, list[float]] = {name: [] for name in servers}
                used: dict[str, list[float]] = {name: [] for name in servers}
                for _ in range(options.runs):
                    for name, (pid, address) in servers.items():
                        before = cpu_s(pid)
                        walls[name].append(run_client(client, address))
                        used[name].append(cpu_s(pid) - before)
                for name in servers:
                    detail = f"{median(walls[name]):.2f} s on the clock"
                    section.add(f"{what}: {name}", median(used[name]), "s CPU", None, detail)


if __name__ == "__main__":
    main()
