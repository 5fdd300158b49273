# SPDX-License-Identifier: Apache-2.0
"""The attacks of a soak, besides faults of a registry and kills.

Owns the attacks, each with a name, and a disk for the node that an attack can fill. An attack goes
through its own image, behind its own proxy, and touches nothing that others read, so none of their
reads may fail. Invariant: after an attack everything is back: readers and clients are gone, its
image is unmounted, limits are restored.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.judge import Record
from benchmarks.soak.machine import Node, Proxy
from firstread.control.client import Client
from firstread.device.erofsmount import unmount
from firstread.errors import FirstreadError
from firstread.testing.patience import PATIENCE_S
from firstread.testing.scanner import Scanner
from firstread.testing.shortage import small_filesystem
from firstread.units import MiB

CLIENTS = 40  # that request at once a mount that never comes
CLIENT_S = 2.0  # until they hang up, and others come
READERS = 20  # that wait at a time
READER_S = 0.5  # until they are killed
ANSWER_S = 20.0  # for the status
HEADROOM = 12  # free descriptors of a fetcher that is short of them
SHORT_S = 0.5  # at a time
DISK_BYTES = 512 * MiB
DISK_INODES = 8192
FILES = 64  # of the image that attacks go through


@dataclass(frozen=True)
class Ground:
    """The ground of an attack: its node, its proxy, its image.

    Args:
        node: the victim.
        proxy: before the registry of the image below, and of no other.
        image: name of that image, without the host.
        places: mounts of the others' images.
        scratch: a directory that is not on the node's disk.
        unanswered: requests without an answer in time: for the status, and by the scanner.
    """

    node: Node
    proxy: Proxy
    image: str
    places: Sequence[Path]
    scratch: Path
    unanswered: list[Record]

    def last(self, seconds: float) -> None:
        """Keep it up for so many seconds; the daemon must answer meanwhile."""
        end = time.monotonic() + seconds
        while (started := time.monotonic()) < end:
            try:
                Client(self.node.run_dir, ANSWER_S).get("/status")
            except FirstreadError:
                self.note_hang(started)
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))

    def note_hang(self, started: float) -> None:
        """Record that something did not end in time."""
        now = time.monotonic()
        self.unanswered.append({"bad": "hung", "path": "", "from": started, "to": now})


@dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        name: to select it.
        row: for people.
        run: attacks for so many seconds; returns the number of strikes.
        others: other mounts must not notice it.
    """

    name: str
    row: str
    run: Callable[[Ground, float], int]
    others: bool = True


def trickle_manifest(ground: Ground, seconds: float) -> int:
    """Request mounts from a registry whose manifests never end, and hang up."""
    ground.proxy.script("GET /manifests/ trickle 1 x*")
    place = ground.scratch / "never"
    place.mkdir(exist_ok=True)
    clients: list[socket.socket] = []
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(CLIENTS):
            with contextlib.suppress(OSError):  # the daemon may be busy
                clients.append(_ask_for_mount(ground, place))
                count += 1
        ground.last(CLIENT_S)
        while clients:
            clients.pop().close()
    return count


def trickle_blob(ground: Ground, seconds: float) -> int:
    """Read from a registry that sends a byte a second."""
    with _mounted(ground) as place:
        ground.proxy.script("GET /blobs/ trickle 1 x*")
        with _waiting(place, range(READERS)):
            ground.last(seconds)
        return ground.proxy.injected().total()


def killed_readers(ground: Ground, seconds: float) -> int:
    """Kill readers that wait for a silent registry, again and again."""
    count, end = 0, time.monotonic() + seconds
    with _mounted(ground) as place:
        ground.proxy.script("GET /blobs/ blackhole 60 x*")
        while time.monotonic() < end:
            numbers = [(count + number) % FILES for number in range(READERS)]
            with _waiting(place, numbers):
                ground.last(READER_S)
            count += READERS
    return count


def scanner(ground: Ground, seconds: float) -> int:
    """Run a single-threaded scanner that reads each file to its end before it allows the open."""
    log = ground.scratch / "scanned"
    with Scanner(log) as running:
        started = time.monotonic()
        try:
            running.watch(ground.node.scratch)
            for place in ground.places:
                running.watch(place, mount=True)
        except AssertionError:  # it waits for a file that it reads itself
            ground.note_hang(started)
        ground.last(seconds)
        return len(running.scanned())


def descriptors(ground: Ground, seconds: float) -> int:
    """Leave the fetcher few descriptors for moments, in which it must also load an image."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(FirstreadError, OSError), _short_of_descriptors(ground.node):
            count += 1
            with _mounted(ground) as place, _waiting(place, range(HEADROOM)):
                time.sleep(SHORT_S)
        time.sleep(SHORT_S)
    return count


def inodes(ground: Ground, seconds: float) -> int:
    """Take all inodes of the store's file system, and request mounts that need some."""
    hog = ground.node.scratch / "hog"
    hog.mkdir()
    count, end = 0, time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            count += _take_inodes(hog, count)
            with contextlib.suppress(FirstreadError), _mounted(ground):
                ground.last(SHORT_S)
            ground.last(SHORT_S)
    finally:
        subprocess.run(["rm", "-rf", hog], check=True, timeout=PATIENCE_S)
    return count


ATTACKS = (
    Attack("trickle-manifest", "a manifest byte by byte", trickle_manifest),
    Attack("trickle-blob", "blobs byte by byte", trickle_blob),
    Attack("killed-readers", "SIGKILL of readers that wait", killed_readers),
    Attack("scanner", "a scanner that reads first", scanner, others=False),
    Attack("descriptors", "EMFILE in the fetcher", descriptors, others=False),
    Attack("inodes", "no inode is left", inodes),
)


@contextlib.contextmanager
def disk(scratch: Path) -> Iterator[Path]:
    """Yield a directory on a separate small ext4, which an attack may fill."""
    with small_filesystem(scratch, "-N", str(DISK_INODES), size=DISK_BYTES) as place:
        yield place


@contextlib.contextmanager
def _mounted(ground: Ground) -> Iterator[Path]:
    """Mount the image of attacks from a healthy registry, and always unmount it."""
    place = ground.scratch / "attacked"
    place.mkdir(exist_ok=True)
    ground.proxy.script("")
    ground.node.client.mount(
        image=f"{ground.proxy.host}/{ground.image}",
        directory=str(place),
        access={"plain_http": True},
    )
    try:
        yield place
    finally:
        ground.proxy.script("")
        with contextlib.suppress(FirstreadError):
            ground.node.client.umount(str(place), lazy=True)
        if place.is_mount():
            unmount(place, lazy=True)


@contextlib.contextmanager
def _waiting(place: Path, numbers: Sequence[int]) -> Iterator[None]:
    """Start processes that read files of the image of attacks, and kill them in the end."""
    readers = [
        subprocess.Popen(
            ["head", "--bytes=4096", str(place / f"f{number}")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in numbers
    ]
    try:
        yield
    finally:
        for reader in readers:
            reader.send_signal(signal.SIGKILL)
        for reader in readers:
            reader.wait(timeout=PATIENCE_S)


def _ask_for_mount(ground: Ground, place: Path) -> socket.socket:
    """Send the request of a mount; return the connection, which nobody reads."""
    body = json.dumps(
        {
            "image": f"{ground.proxy.host}/{ground.image}",
            "directory": str(place),
            "access": {"plain_http": True},
        }
    ).encode()
    client = socket.socket(socket.AF_UNIX)
    try:
        client.settimeout(CLIENT_S)
        client.connect(str(ground.node.run_dir / "control.sock"))
        client.sendall(b"POST /mount HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    except BaseException:
        client.close()
        raise
    return client


@contextlib.contextmanager
def _short_of_descriptors(node: Node) -> Iterator[None]:
    """Allow the fetcher only a few more descriptors than it has."""
    pid = node.fetcher
    highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + HEADROOM, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def _take_inodes(hog: Path, first: int) -> int:
    """Create empty files until no inode is left; return their number."""
    count = 0
    with contextlib.suppress(OSError):
        while True:
            os.close(os.open(hog / str(first + count), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
            count += 1
    return count
