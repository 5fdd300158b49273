# SPDX-License-Identifier: Apache-2.0
"""Boots a kernel in qemu under software emulation, and runs one script as its first process.

Owns the initramfs and qemu's command line. The root of a guest is the host's own root over 9p,
read-only, or a disk; an overlay in memory takes what the guest writes. So a guest has the checkout,
its Python and the host's programs without an image of its own.

Invariant: the host is not changed, but for the directory of results; `boot` returns in time.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kernels.packages import Kernel

from firstread.errors import NodeError

_MODULES: Final = ("virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay", "erofs")
"""Modules that the root needs; the kernel loads all others from the package by itself."""

_INIT: Final = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /lower /rw /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod $module || echo "insmod $module failed"; done
for word in $(cat /proc/cmdline); do case $word in guest_*=*) eval "$word" ;; esac; done
if [ "$guest_root" = host ]; then
    mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=262144 host /lower
else
    mount -t erofs -o ro "$guest_root" /lower
fi || echo "there is no root"
mount -t tmpfs tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root
cd /root && mkdir -p proc sys dev tmp run out scratch lib/modules && cd /
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=262144 out /root/out
if [ "$guest_root" = host ]; then mount --bind "/root$guest_modules" /root/lib/modules; fi
for place in proc sys dev; do mount --move /$place /root/$place; done
mount -t tmpfs tmpfs /root/tmp
mount -t tmpfs tmpfs /root/run
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
# As udev does: a node for each module that is loaded when somebody opens it.
nodes=/root/lib/modules/$(uname -r)/modules.devname
[ ! -e $nodes ] || grep -v '^#' $nodes | while read -r module node number; do
    case $node in */*) mkdir -p "/root/dev/${node%/*}" ;; esac
    pair=${number#?}
    [ -e "/root/dev/$node" ] || mknod "/root/dev/$node" "${number%$pair}" ${pair%:*} ${pair#*:}
done
ip link set lo up
cp /bin/busybox /root/run/busybox
exec switch_root /root /run/busybox sh -c '
/run/busybox sh /out/script > /out/output 2>&1; echo $? > /out/code
/run/busybox sync; echo o > /proc/sysrq-trigger; /run/busybox sleep 60'
"""


@dataclass(frozen=True)
class Ended:
    """A guest that has ended.

    Args:
        code: of its script; None if the guest did not get to the end of it in time.
        output: of the script.
        seconds: from qemu's start to its end.
        console: the kernel's messages.
    """

    code: int | None
    output: str
    seconds: float
    console: str


def boot(
    kernel: Kernel,
    script: str,
    out: Path,
    *,
    arguments: Sequence[str] = (),
    root: str = "host",
    memory_mib: int = 1536,
    timeout_s: float = 600,
) -> Ended:
    """Run a shell script as root in a guest, and wait until it has ended.

    Args:
        kernel: of the guest.
        script: for busybox; below ``/out`` it finds `out`.
        out: directory for results.
        arguments: further ones of qemu, such as drives.
        root: ``host``, or the device of an EROFS file system.
        memory_mib: of the guest.
        timeout_s: after which qemu is killed.
    """
    (out / "script").write_text(script)
    append = f"console=ttyS0 quiet panic=-1 mitigations=off guest_root={root}"
    append += f" guest_modules={kernel.top}/lib/modules"
    command = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2"]
    command += ["-m", str(memory_mib), "-nodefaults", "-no-user-config", "-no-reboot"]
    command += ["-display", "none", "-serial", f"file:{out}/console", "-device", "virtio-rng-pci"]
    command += ["-kernel", str(kernel.image), "-initrd", str(initramfs(kernel)), "-append", append]
    command += ["-virtfs", f"local,path={out},mount_tag=out,security_model=none"]
    if root == "host":
        shared = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
        command += ["-virtfs", shared]
    start = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise NodeError(f"qemu failed: {done.stderr.strip()[:500]}")
    except subprocess.TimeoutExpired:
        pass
    seconds = time.monotonic() - start
    code = _text(out / "code").strip()
    return Ended(
        int(code) if code else None, _text(out / "output"), seconds, _text(out / "console")
    )


def disk(path: Path, size_bytes: int) -> list[str]:
    """Make an empty ext4 in a sparse file; return the arguments that give it to a guest."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True)
    return ["-drive", f"if=virtio,format=raw,cache=unsafe,file={path}"]


def initramfs(kernel: Kernel) -> Path:
    """Return the initramfs for a kernel, built if it lacks one."""
    path = kernel.top / "initramfs"
    with tempfile.TemporaryDirectory(dir=kernel.top) as scratch:
        top = Path(scratch, "top")
        (top / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", top / "bin/busybox")
        (top / "init").write_text(_INIT)
        (top / "init").chmod(0o755)
        names = []
        for module in _needed(kernel):
            names.append(f"/{module.name.partition('.ko')[0]}.ko")
            (top / names[-1][1:]).write_bytes(_plain(module))
        (top / "modules").write_text("\n".join(names))
        made = Path(scratch, "initramfs")
        with made.open("wb") as file:
            pack = ["bsdtar", "--create", "--format=newc", "--uid=0", "--gid=0", "."]
            subprocess.run(pack, cwd=top, stdout=file, check=True)
        made.rename(path)
    return path


def _needed(kernel: Kernel) -> Iterator[Path]:
    """Yield the files of `_MODULES` and of the modules that they need, in order."""
    seen = set()
    for name in _MODULES:
        command = ["modprobe", "--dirname", str(kernel.top), "--set-version", kernel.release]
        shown = subprocess.run(
            [*command, "--show-depends", name], capture_output=True, text=True, check=True
        ).stdout
        for line in shown.splitlines():
            kind, _, path = line.strip().partition(" ")
            if kind == "insmod" and path not in seen:  # else it is in the kernel
                seen.add(path)
                yield Path(path.strip())


def _plain(module: Path) -> bytes:
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
