# SPDX-License-Identifier: Apache-2.0
"""What a flat mount leaves, what its loop device does, and what present data asks for."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstread.device import flatdevice
from firstread.device.base import INDEX_RUNS, Read
from firstread.device.flatdevice import FlatDevice, LoopDevice
from firstread.device.fusedevice import FuseDevice
from firstread.device.loopdevice import CONTROL, is_cached, set_cached
from firstread.device.mixeddevice import MixedDevice
from firstread.device.pages import cached_bytes
from firstread.device.superblock import FileSystem
from firstread.device.watches import Watches
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.indexruns import IndexRuns
from firstread.erofs.validation import validate
from firstread.errors import NodeError
from firstread.mountinfo import read_mountinfo
from firstread.mounts.table import mounted_erofs
from firstread.testing.caches import drop_caches
from firstread.testing.devicebench import output, start_reader, summary
from firstread.testing.flatmount import FlatMount
from firstread.testing.patience import PATIENCE_S
from firstread.units import KiB, MiB

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.timeout(60),
    pytest.mark.skipif(not os.path.exists(CONTROL), reason="there are no loop devices"),
]

ALL = pytest.mark.parametrize("name", ["flat", "loop", "mixed"])
BOTH = pytest.mark.parametrize("name", ["flat", "loop"])
WAITING = 100  # reads at a time: more than FUSE does in the background, unless it is told to
APART = 64  # sectors of 4 KiB between them and one that is present: further than read-ahead goes


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., FlatMount]]:
    with contextlib.ExitStack() as made:
        yield lambda **image: made.enter_context(FlatMount(tmp_path, **image))


DIRECT = """
import hashlib, mmap, os, sys
buffer = mmap.mmap(-1, 65536)
os.preadv(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), [buffer], 4096)
print(hashlib.sha256(buffer).hexdigest())
"""


PARTS = """
import hashlib, mmap, os, sys
file, at = os.open(sys.argv[1], os.O_RDONLY | {flags}), 0
buffer = memoryview(mmap.mmap(-1, (1 << 20) + 4096))[{skip}:][:1 << 20]
try:
    while size := os.preadv(file, [buffer], at):
        print(at, size, hashlib.sha256(buffer[:size]).hexdigest())
        at += size
except OSError as exc:
    print("errno", exc.errno)
"""


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def backing(mountpoint: Path) -> Path:
    """Return what sysfs has of the loop device of a mount, as long as it has a file."""
    device = os.stat(mountpoint).st_dev
    return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop")


@BOTH
def test_the_mount_says_what_it_is_of_and_nothing_else_is_seen(
    make: Callable[..., FlatMount], name: str
) -> None:
    bench = make(name=name)
    assert mounted_erofs()[str(bench.mountpoint)] == str(bench.metadata)
    (line,) = (line for line in read_mountinfo() if line.place == bytes(bench.mountpoint))
    assert (line.kind, line.source) == (b"erofs", bytes(bench.metadata) + b".flat")
    assert not os.path.lexists(bench.metadata.with_name("metadata.flat"))
    assert bench.numbers[0] not in {line.device for line in read_mountinfo()}
    assert backing(bench.mountpoint).exists() is (name == "loop")


@ALL
def test_everything_ends_with_the_mount(make: Callable[..., FlatMount], name: str) -> None:
    bench = make(name=name)
    number, file = os.stat(bench.mountpoint).st_dev, backing(bench.mountpoint)
    assert list(bench.device.pairs()) == [number]
    bench.device.detach(bench.mountpoint)
    wait(lambda: not bench.device.pairs())
    assert bench.dropped == [number]
    wait(lambda: not file.exists())


@ALL
def test_a_mount_that_fails_leaves_nothing(make: Callable[..., FlatMount], name: str) -> None:
    bench = make(name=name)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NodeError, match="cannot mount"):
        bench.device.attach(bench.metadata, bench.ids, bench.mountpoint / "missing")
    damaged = bench.metadata.with_name("damaged")
    content = bytearray(bench.metadata.read_bytes())
    content[1024 + 14] ^= 0xFF  # the number of the root
    damaged.write_bytes(content)
    with pytest.raises(NodeError, match="cannot mount"):
        bench.device.attach(damaged, bench.ids, bench.mountpoint)

    def is_closed() -> bool:
        gc.collect()  # a memory map has a descriptor of its own
        # The bench keeps two. What pytest keeps of the log refers to two memory maps.
        return len(os.listdir("/proc/self/fd")) <= before + 4

    wait(is_closed)


@ALL
def test_a_file_system_is_followed_to_its_end(make: Callable[..., FlatMount], name: str) -> None:
    bench = make(name=name)
    found = FileSystem.at(bench.mountpoint)
    assert found.kind == "erofs"
    assert found.lives(unmounted=False)
    user = os.open(bench.mountpoint, os.O_RDONLY)
    bench.device.detach(bench.mountpoint, lazy=True)
    assert found.lives(unmounted=True)
    os.close(user)
    wait(lambda: not found.lives(unmounted=True))
    bench.device.attach(bench.metadata, bench.ids, bench.mountpoint)  # it may have the same number
    assert not found.lives(unmounted=True)


@ALL
def test_nothing_is_asked_for_twice(make: Callable[..., FlatMount], name: str) -> None:
    """A cached page asks nobody, and a present sector asks no fetcher."""
    bench = make(name=name)

    def read_all() -> set[int]:
        seen = set()
        for slot, data in enumerate(bench.data):
            read, asked = bench.serve(bench.read(slot, 0, MiB, "pages"), bench.complete)
            assert read == summary(data), (slot, asked)
            seen |= {slot for slot, _, _ in asked}
        return seen

    def costs() -> int:
        before = bench.device.requests()
        assert read_all() == set()
        return bench.device.requests() - before

    assert read_all() == set(range(len(bench.data)))
    wait(lambda: costs() == 0)  # others may drop the caches of this machine
    drop_caches()
    assert costs() > 0


@ALL
def test_reads_do_not_wait_for_each_other(make: Callable[..., FlatMount], name: str) -> None:
    bench = make(name=name, sectors=WAITING + APART, sector_bytes=4 * KiB)
    last = WAITING + APART - 1
    assert bench.serve(bench.read(last), bench.complete)[0] == summary(bench.data[last])
    drop_caches()
    readers = [bench.read(slot, how="random") for slot in range(WAITING)]
    reads: list[Read] = []

    def all_wait() -> bool:
        reads.extend(bench.reads(timeout=0.05))
        return {bench.slot_of(read) for read in reads} >= set(range(WAITING))

    wait(all_wait)
    assert output(bench.read(last)) == summary(bench.data[last])
    for read in reads:
        bench.complete(read)
    for reader, data in zip(readers, bench.data, strict=False):
        assert bench.serve(reader, bench.complete)[0] == summary(data)


def test_a_kernel_that_takes_no_files_gets_a_loop_device(
    make: Callable[..., FlatMount], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, metadata: Path) -> int:
        if path.startswith("/proc/"):
            raise NodeError("not a block device") from OSError(errno.ENOTBLK, "it is none")
        return usual(path, metadata)

    usual = flatdevice.open_flat
    monkeypatch.setattr(flatdevice, "open_flat", refuse)
    bench = make(name="flat")
    assert bench.device.name == "flat"
    assert backing(bench.mountpoint).exists()
    assert bench.serve(bench.read(1), bench.fill)[0] == summary(bench.data[1][:4096])


@pytest.mark.parametrize("torn", [lambda whole: whole[:-8], lambda whole: bytes(len(whole))])
def test_a_mount_makes_torn_runs_of_chunk_indexes_again(
    make: Callable[..., FlatMount], torn: Callable[[bytes], bytes]
) -> None:
    bench = make(name="flat")
    kept, second = bench.metadata.with_name(INDEX_RUNS), bench.mountpoint.with_name("second")
    whole = validate(ErofsImage(bench.metadata.read_bytes())).runs.to_bytes()
    assert kept.read_bytes() == whole  # the first mount has found none
    kept.write_bytes(torn(whole))  # as a disk may have it that has lost its power
    second.mkdir()
    bench.device.attach(bench.metadata, bench.ids, second)
    try:
        assert kept.read_bytes() == whole
        assert [path.name for path in kept.parent.glob("index-runs*")] == [kept.name]
        reader = start_reader(second / "1")
        assert bench.serve(reader, bench.fill)[0] == summary(bench.data[1][:4096])
    finally:
        bench.device.detach(second)


def test_a_mount_takes_what_is_known_of_the_chunk_indexes(
    make: Callable[..., FlatMount], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(image: ErofsImage) -> IndexRuns:
        raise AssertionError("every inode is looked at")

    bench = make(name="flat")
    kept, second = bench.metadata.with_name(INDEX_RUNS), bench.mountpoint.with_name("second")
    second.mkdir()
    monkeypatch.setattr(flatdevice, "validate", refuse)
    runs = validate(ErofsImage(bench.metadata.read_bytes())).runs.to_bytes()
    kept.write_bytes(runs[:-8])  # as a disk may have it that has lost its power
    with pytest.raises(NodeError, match="cannot mount"):
        bench.device.attach(bench.metadata, bench.ids, second)
    kept.write_bytes(runs)
    bench.device.attach(bench.metadata, bench.ids, second)
    try:
        reader = start_reader(second / "1")
        assert bench.serve(reader, bench.fill)[0] == summary(bench.data[1][:4096])
    finally:
        bench.device.detach(second)


def test_an_unmount_does_not_wait_for_reads_of_nobody(make: Callable[..., FlatMount]) -> None:
    bench = make(name="loop")
    reader = bench.read(1, 0, MiB, "pages")
    assert bench.reads()
    reader.kill()
    reader.wait(timeout=PATIENCE_S)
    bench.device.detach(bench.mountpoint)
    wait(lambda: bool(bench.dropped))


def test_names_of_a_loop_device_cost_no_request(make: Callable[..., FlatMount]) -> None:
    bench = make(name="loop")
    name = backing(bench.mountpoint).resolve().parent.name
    with open(f"/dev/{name}", "rb") as device:
        size = bench.metadata.stat().st_size
        try:
            wait(lambda: cached_bytes(device.fileno(), 0, size) >= size)
        except OSError:
            pytest.skip("the kernel does not say what is in memory")
    before = bench.device.requests()
    subprocess.run(("ls", "-lR", bench.mountpoint), check=True, stdout=subprocess.DEVNULL)
    assert bench.device.requests() == before


def test_the_processor_of_a_reader_completes_its_reads(make: Callable[..., FlatMount]) -> None:
    bench = make(name="loop")
    setting = backing(bench.mountpoint).resolve().with_name("queue") / "rq_affinity"
    assert setting.read_text() == "2\n"
    bench.device.detach(bench.mountpoint)
    wait(lambda: setting.read_text() == "1\n")  # for whoever gets the device next


def test_a_setting_of_somebody_else_stays(make: Callable[..., FlatMount]) -> None:
    bench = make(name="loop")
    setting = backing(bench.mountpoint).resolve().with_name("queue") / "rq_affinity"
    setting.write_text("0\n")
    given = {n: (os.dup(a), os.dup(b)) for n, (a, b) in bench.device.pairs().items()}
    assert LoopDevice(bench.store, given).adopt(bench.metadata, bench.ids, *given)
    assert setting.read_text() == "0\n"
    bench.device.detach(bench.mountpoint)
    wait(lambda: bool(bench.dropped))
    assert setting.read_text() == "0\n"
    setting.write_text("1\n")


def test_a_change_of_other_sectors_looks_at_no_loop_device(
    make: Callable[..., FlatMount], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Watches) -> bool:
        raise AssertionError("the watches are looked through")

    bench = make(name="loop")
    with monkeypatch.context() as patched:
        patched.setattr(Watches, "exist", refuse)
        bench.device.watch([bytes(32)])
        bench.device.unwatch([bytes(32)])
        with pytest.raises(AssertionError, match="looked through"):
            bench.device.watch(bench.ids[:1])


def test_a_loop_device_offers_direct_reads(make: Callable[..., FlatMount]) -> None:
    bench = make(name="loop")
    command = [sys.executable, "-c", DIRECT, str(bench.mountpoint / "1")]
    reader = bench.started(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    expected = hashlib.sha256(bench.data[1][4096 : 4096 + 65536]).hexdigest()
    assert bench.serve(reader, bench.fill)[0] == expected


def test_a_loop_device_reads_ahead_while_no_read_can_wait(make: Callable[..., FlatMount]) -> None:
    bench = make(name="loop", sectors=WAITING, sector_bytes=4 * KiB)
    everything = hashlib.sha256(b"".join(bench.data)).hexdigest()

    def read_all() -> tuple[int, int]:
        """Return how many reads have asked, and the requests of all."""
        before = bench.device.requests()
        script = 'cd "$1" && seq 0 $(($2 - 1)) | xargs cat | sha256sum'
        command = ["sh", "-c", script, "sh", str(bench.mountpoint), str(WAITING)]
        reader = bench.started(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        read, asked = bench.serve(reader, bench.complete)
        assert read.split()[0] == everything
        return len(asked), bench.device.requests() - before

    assert read_all()[0] == WAITING
    wait(lambda: is_cached(os.stat(bench.mountpoint).st_dev))
    drop_caches()
    asked, requests = read_all()
    assert asked == 0
    assert requests < WAITING / 2, requests  # of 4 KiB each, without read-ahead


def test_a_loop_device_reads_directly_as_soon_as_a_read_can_wait(
    make: Callable[..., FlatMount],
) -> None:
    bench = make(name="loop")
    number = os.stat(bench.mountpoint).st_dev
    for slot, data in enumerate(bench.data):
        assert not is_cached(number)
        assert bench.serve(bench.read(slot, 0, MiB, "pages"), bench.complete)[0] == summary(data)
    wait(lambda: is_cached(number))
    bench.device.watch(bench.ids[1:2])
    wait(lambda: not is_cached(number))
    bench.device.unwatch(bench.ids[1:2])
    wait(lambda: is_cached(number))

    given = {number: (os.dup(a), os.dup(b)) for number, (a, b) in bench.device.pairs().items()}
    after = LoopDevice(bench.store, given)
    assert after.adopt(bench.metadata, bench.ids, number)
    after.go_on(number)
    after.watch(bench.ids[1:2])
    wait(lambda: not is_cached(number))


@pytest.mark.parametrize(("flags", "skip"), [("0", 0), ("os.O_DIRECT", 0), ("os.O_DIRECT", 512)])
def test_a_loop_device_that_nobody_serves_reads_no_zeros(
    make: Callable[..., FlatMount], flags: str, skip: int
) -> None:
    """Its file has cached a part of what is read, into memory that begins behind a page's first."""
    bench = make(name="loop")
    for slot, data in enumerate(bench.data):
        assert bench.serve(bench.read(slot, 0, MiB, "pages"), bench.complete)[0] == summary(data)
    wait(lambda: is_cached(os.stat(bench.mountpoint).st_dev))
    drop_caches()
    assert output(bench.read(1, 0, 64 * KiB)) == summary(bench.data[1][: 64 * KiB])
    bench.lose()
    script = PARTS.format(flags=flags, skip=skip)
    command = [sys.executable, "-c", script, str(bench.mountpoint / "1")]
    reader = bench.started(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    *parts, last = output(reader).splitlines()
    assert last == "errno 5" or (last == "errno 22" and skip)  # EROFS may refuse such memory
    for part in parts:
        offset, size, digest = part.split()
        data = bench.data[1][int(offset) : int(offset) + int(size)]
        assert digest == hashlib.sha256(data).hexdigest()


CHANGE = """
import sys
from firstread.device.loopdevice import set_cached
set_cached(int(sys.argv[1]), cached=True)
"""


def test_a_process_that_changes_a_loop_device_can_be_killed(
    make: Callable[..., FlatMount],
) -> None:
    """The next one has to answer the reads that the change waits for."""
    bench = make(name="loop")
    number = os.stat(bench.mountpoint).st_dev
    reader = bench.read(1)
    (read,) = bench.reads()
    process = bench.started(
        subprocess.Popen([sys.executable, "-c", CHANGE, str(number)], text=True)
    )

    def waits() -> bool:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        states = (Path(f"/proc/{child}/stat").read_text().rpartition(")")[2] for child in children)
        return any(state.split()[0] == "D" for state in states)

    wait(waits)
    process.kill()
    process.wait(timeout=PATIENCE_S)
    bench.fill(read)
    assert bench.serve(reader, bench.fill)[0] == summary(bench.data[1][:4096])
    wait(lambda: is_cached(number))


def test_a_loop_device_of_somebody_else_is_not_changed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MiB))
    command = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        number = os.stat(path).st_rdev
        with pytest.raises(OSError, match="somebody else's"):
            set_cached(number, cached=True)
        assert not is_cached(number)
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)


def test_a_loop_device_of_somebody_else_is_not_healed(make: Callable[..., FlatMount]) -> None:
    bench = make(name="loop", sectors=7)  # a size that no other test's loop device has
    number = os.stat(bench.mountpoint).st_dev
    bench.device.detach(bench.mountpoint)
    wait(lambda: not bench.device.pairs())
    device = FlatDevice(bench.store)
    assert not device.adopt(bench.metadata, bench.ids, number)
    assert not device.adopt(bench.metadata, bench.ids, os.makedev(0, 1 << 19))
    wait(lambda: not device.pairs())


@pytest.fixture
def mixed(make: Callable[..., FlatMount]) -> FlatMount:
    """A mount of which the first three sectors were present, and two of those were offered."""
    bench = make(name="mixed")
    for slot in range(3):
        bench.serve(bench.read(slot, 0, MiB, "pages"), bench.complete)
    bench.device.detach(bench.mountpoint)
    wait(lambda: not bench.device.pairs())
    bench.device.offer(bench.ids[:2])
    bench.device.attach(bench.metadata, bench.ids, bench.mountpoint)
    bench.device.unwatch(bench.ids[:3])
    return bench


def test_a_borrowed_file_costs_no_request(mixed: FlatMount) -> None:
    drop_caches()
    requests = mixed.device.requests()
    for slot in range(2):
        read, asked = mixed.serve(mixed.read(slot, 0, MiB, "pages"), mixed.complete)
        assert (read, asked) == (summary(mixed.data[slot]), [])
    assert mixed.device.requests() == requests
    for slot in range(2, 4):
        read, _ = mixed.serve(mixed.read(slot, 0, MiB, "pages"), mixed.complete)
        assert read == summary(mixed.data[slot])
    assert mixed.device.requests() > requests


def test_files_are_borrowed_as_long_as_the_mount_is_used(mixed: FlatMount) -> None:
    def borrowed(device: FuseDevice) -> list[bool]:
        return [device.borrows(sector_id) for sector_id in mixed.ids]

    assert borrowed(mixed.device) == [True, True, False, False]
    mixed.device.watch(mixed.ids)
    assert borrowed(mixed.device) == [True, True, False, False]
    number = os.stat(mixed.mountpoint).st_dev
    given = {number: (os.dup(a), os.dup(b)) for number, (a, b) in mixed.device.pairs().items()}
    after = MixedDevice(mixed.store, given)
    assert after.adopt(mixed.metadata, mixed.ids, number)
    after.go_on(number)
    assert borrowed(after) == [True, True, False, False]
    user = os.open(mixed.mountpoint, os.O_RDONLY)
    mixed.device.detach(mixed.mountpoint, lazy=True)
    assert borrowed(mixed.device) == [True, True, False, False]
    os.close(user)
    wait(lambda: not any(borrowed(mixed.device) + borrowed(after)))


def test_an_offer_is_for_one_mount(mixed: FlatMount) -> None:
    mixed.device.offer([b"x" * 32, mixed.ids[3]])
    assert mixed.device.borrows(mixed.ids[3])
    with pytest.raises(NodeError):
        mixed.device.attach(mixed.metadata, mixed.ids, mixed.mountpoint / "missing")
    wait(lambda: not mixed.device.borrows(mixed.ids[3]))
