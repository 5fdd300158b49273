# SPDX-License-Identifier: Apache-2.0
"""Delays the packets between two TUN devices, in each direction for the same time.

Owns the two devices while it runs (they vanish with it) and the queue of packets; sets no address
and no rate. It works on IP packets, so all of TCP feels the distance: connection set-up, slow
start, acknowledgements. Invariant: packets leave in the order of their arrival, never before the
delay has passed, and only as late as the kernel wakes this process, which has the highest priority.

Facts about TUN: with a virtio-net header before each packet and segmentation offload promised, the
kernel hands over up to 64 KiB of a TCP stream at once, and takes it so on the other side. The
segments, and with them slow start and acknowledgements, stay those of the MTU; only the calls per
byte are fewer, without which this loop ends at half a gigabit per second. tbf(8) cuts what is
larger than its burst, so a slow link still sees single segments.

``python -m benchmarks.relay NEAR FAR DELAY_S``; says ``ready`` when both devices exist, and ends
when its standard input does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

HEADER_BYTES = 10  # struct virtio_net_hdr
PACKET_BYTES = HEADER_BYTES + (1 << 16)
BATCH = 64  # packets read from one side before the other gets its turn
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # include/uapi/linux/if_tun.h
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02

Held = deque[tuple[float, bytes]]


def main() -> None:
    near, far, delay_s = open_tun(sys.argv[1]), open_tun(sys.argv[2]), float(sys.argv[3])
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    print("ready", flush=True)
    forward(near, far, delay_s)


def open_tun(name: str) -> int:
    """Make the TUN device `name`; it lives as long as the returned descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return fd


def forward(near: int, far: int, delay_s: float) -> None:
    """Forward packets in both directions until standard input ends."""
    ways: list[tuple[int, int, Held]] = [(near, far, deque()), (far, near, deque())]
    while True:
        due = min((held[0][0] for _, _, held in ways if held), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic())
        readable, _, _ = select.select([near, far, 0], [], [], timeout)
        if 0 in readable:
            return
        for source, target, held in ways:
            if source in readable:
                receive(source, held, delay_s)
            send(target, held)


def receive(source: int, held: Held, delay_s: float) -> None:
    """Take the packets that have arrived."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(BATCH):
            held.append((time.monotonic() + delay_s, os.read(source, PACKET_BYTES)))


def send(target: int, held: Held) -> None:
    """Send the packets whose delay is over. A full device loses packets, as a link does."""
    now = time.monotonic()
    while held and held[0][0] <= now:
        with contextlib.suppress(OSError):
            os.write(target, held.popleft()[1])


if __name__ == "__main__":
    main()
