# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels.rootdisk``: boots guests whose root disk is a converted image.

``firstread export --nbd`` serves the image from a registry; the guest reaches it through qemu's NBD
driver, or through qemu-storage-daemon and vhost-user-blk. Counts the bytes that the guest reads
and those that leave the registry. Exits with 1 if a guest does not boot or reads most of its disk.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.images.build import build, default_cache
from tests.kernels.__main__ import setting
from tests.kernels.guest import boot
from tests.kernels.matrix import put
from tests.kernels.packages import SUITES, Kernel, kernel_of

from firstread.errors import FirstreadError, NodeError
from firstread.testing.command import firstread, program
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry

PAGE: Final = Path(__file__).parents[2] / "docs/virtual-machines.md"
WAYS: Final = ("nbd", "vhost-user-blk")
MEMORY_MIB: Final = 512
TIMEOUT_S: Final = 180.0
MOST: Final = 0.5  # of the disk that a guest may read

_SCRIPT: Final = """
/run/busybox cut -d' ' -f1 /proc/uptime > /out/up
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
cat /etc/debian_version && perl -e 'print "perl runs\\n"' && dpkg --version | head -1
code=$?
/run/busybox cat /sys/block/vda/size > /out/size
/run/busybox cat /sys/block/vda/stat > /out/stat
exit $code
"""


@dataclass(frozen=True)
class Booted:
    """A guest that has run its script from the image.

    Args:
        way: of `WAYS`.
        kernel: its release.
        disk_bytes: size of the disk.
        read_bytes: that the guest read from it.
        fetched_bytes: that left the registry.
        requests: of the registry.
        up_s: from the kernel's start to the first process of the image.
    """

    way: str
    kernel: str
    disk_bytes: int
    read_bytes: int
    fetched_bytes: int
    requests: int
    up_s: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.rootdisk", description=__doc__)
    parser.add_argument("--kernel", choices=SUITES, default="bookworm", help="[%(default)s]")
    parser.add_argument("--docs", action="store_true", help=f"write the table to docs/{PAGE.name}")
    options = parser.parse_args()
    try:
        found = measure(options.kernel)
    except FirstreadError as exc:
        print(exc.message, file=sys.stderr)
        return 1
    text = chapter(found, setting("make test-vm"))
    print(text)
    if options.docs:
        put("rootdisk", text, PAGE)
    return 0 if all(each.read_bytes <= MOST * each.disk_bytes for each in found) else 1


def measure(suite: str) -> list[Booted]:
    """Boot a guest in each way, each from an empty store.

    Raises:
        NodeError: one does not come to the end of its script.
    """
    cache = default_cache().parent / "kernels"
    kernel = kernel_of(suite, cache)
    (layout,) = build(["debian"], default_cache())
    with DockerRegistry() as registry:
        image = f"{registry.host}/debian:lazy"
        ran = firstread("convert", "--no-hot", f"oci:{layout}:latest", image)
        if ran.code:
            raise NodeError(f"the image was not converted: {ran.stderr}")
        return [_measure(way, kernel, registry, image) for way in WAYS]


def _measure(way: str, kernel: Kernel, registry: DockerRegistry, image: str) -> Booted:
    with tempfile.TemporaryDirectory(prefix="fr-") as scratch, contextlib.ExitStack() as served:
        out = Path(scratch, "out")
        out.mkdir()
        registry.forget()
        socket = Path(scratch, "nbd.sock")
        server = program("export", image, "--nbd", f"unix:{socket}", "--root", f"{scratch}/root")
        served.enter_context(_serving(server, socket))
        arguments = [
            "-drive",
            f"if=virtio,readonly=on,format=raw,file=nbd+unix:///?socket={socket}",
        ]
        if way == "vhost-user-blk":
            arguments = served.enter_context(_vhost(socket, Path(scratch, "vhost.sock")))
        ended = boot(
            kernel,
            _SCRIPT,
            out,
            arguments=arguments,
            root="/dev/vda",
            memory_mib=MEMORY_MIB,
            timeout_s=TIMEOUT_S,
        )
        if ended.code != 0:
            said = (ended.output or ended.console).strip()[-1000:]
            raise NodeError(f"the guest did not run its script over {way}:\n{said}")
        return Booted(
            way,
            kernel.release,
            512 * int((out / "size").read_text()),
            512 * int((out / "stat").read_text().split()[2]),
            registry.counts.bytes_of(),
            registry.counts.requests_of(),
            float((out / "up").read_text()),
        )


@contextlib.contextmanager
def _serving(command: Sequence[str], socket: Path) -> Iterator[None]:
    """Run a server until the block ends; wait until it has its socket.

    Raises:
        NodeError: it ends before that.
    """
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    server.kill()
                    said = server.communicate()[1].strip()
                    raise NodeError(f"{Path(command[0]).name} does not serve: {said[-500:]}")
                time.sleep(0.02)
            yield
        finally:
            server.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _vhost(nbd: Path, socket: Path) -> Iterator[list[str]]:
    """Serve an NBD export as vhost-user-blk; give the arguments of a guest that uses it."""
    disk = f"driver=nbd,node-name=disk,read-only=on,server.type=unix,server.path={nbd}"
    export = "type=vhost-user-blk,id=export,node-name=disk,writable=off"
    export += f",addr.type=unix,addr.path={socket}"
    command = ["qemu-storage-daemon", "--blockdev", disk, "--export", export]
    with _serving(command, socket):
        yield [
            *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
            *("-numa", "node,memdev=memory"),
            *("-chardev", f"socket,id=disk,path={socket}"),
            *("-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"),
        ]


def chapter(found: Sequence[Booted], conditions: Sequence[str]) -> str:
    """Return the results as Markdown."""
    head = "| root disk over | kernel | disk | the guest reads | fetched | requests | up after |"
    lines = [*(f"- {line}" for line in conditions), "", head]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for each in found:
        sizes = (each.disk_bytes, each.read_bytes, each.fetched_bytes)
        cells = [each.way, each.kernel, *(f"{size / 1e6:.1f} MB" for size in sizes)]
        cells += [str(each.requests), f"{each.up_s:.1f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
