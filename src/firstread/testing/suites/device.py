# SPDX-License-Identifier: Apache-2.0
"""What every device must do: how it asks, how it is answered, and what a reader sees meanwhile.

A test class derives from `DeviceSuite` and gives the fixture ``scratch``, an empty directory, and
`DeviceSuite.bench`. Tests ask the device's capabilities where devices may differ.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.device.base import Read
from firstread.device.superblock import FileSystem
from firstread.erofs.tree import Node, directory
from firstread.errors import NodeError
from firstread.testing.caches import drop_caches
from firstread.testing.devicebench import DeviceBench, output, summary
from firstread.testing.pagereader import Pages
from firstread.testing.patience import PATIENCE_S
from firstread.testing.suites.deviceimages import DeviceImageSuite, Make
from firstread.units import KiB, MiB

EIO = "errno 5"
LOST = (EIO, "errno 103", "errno 107")  # ECONNABORTED, ENOTCONN: of a dead connection
EINVAL, EXDEV = "errno 22", "errno 18"
REFUSED = {"errno 1", "errno 38"}  # io_uring is switched off here

LOOP = """
import os, sys
place, stop, expected = sys.argv[1:]
while not os.path.exists(stop):
    for name in "0123":
        fd = os.open(f"{place}/{name}", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        data = bytearray()
        while block := os.read(fd, 65536):
            data += block
        assert data == open(f"{expected}/{name}", "rb").read(), name
        os.close(fd)
print("right")
"""


def part(bench: DeviceBench, slot: int, offset: int = 0, count: int = 4096) -> str:
    """Return what a reader prints that has read this."""
    return summary(bench.data[slot][offset : offset + count])


def one_read(bench: DeviceBench) -> Read:
    """Return the one read that asks."""
    (read,) = bench.reads()
    return read


class DeviceSuite(DeviceImageSuite, ABC):
    """The suite."""

    @abstractmethod
    def bench(
        self,
        scratch: Path,
        *,
        sectors: int = 4,
        sector_bytes: int = MiB,
        root: Node | None = None,
        data: list[bytes] | None = None,
    ) -> DeviceBench:
        """Return a device with an image, see `LazyMount`."""

    @pytest.fixture
    def make(self, scratch: Path) -> Iterator[Make]:
        """What makes a bench; it is closed at the end."""
        made: list[DeviceBench] = []

        def one(**image: object) -> DeviceBench:
            made.append(self.bench(scratch, **image))  # type: ignore[arg-type]
            return made[-1]

        yield one
        for bench in made:
            bench.close()

    # -- attaching -----------------------------------------------------------------------------

    @pytest.mark.parametrize("sectors", [1, 5000])
    def test_an_image_with_nothing_here_is_mounted(self, make: Make, sectors: int) -> None:
        bench = make(sectors=sectors, sector_bytes=4 * KiB)
        last = sectors - 1
        read, _ = bench.serve(bench.read(last), bench.fill)
        assert read == part(bench, last)

    def test_an_image_without_sectors_is_mounted(self, make: Make) -> None:
        bench = make(sectors=0, root=directory())
        assert os.listdir(bench.mountpoint) == []

    # -- reading -------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "how",
        [
            *("pages", "random", "vector", "mmap", "sendfile", "splice"),
            *("copy_file_range", "io_uring", "direct"),
        ],
    )
    def test_a_read_gets_its_bytes_however_it_is_made(self, make: Make, how: str) -> None:
        bench = make()
        read, asked = bench.serve(bench.read(1, 512_000, 262_144, how), bench.fill)
        if how == "io_uring" and read in REFUSED:
            pytest.skip("io_uring is switched off")
        if how in ("direct", "copy_file_range") and read in (EINVAL, EXDEV):
            return  # not offered
        assert read == part(bench, 1, 512_000, 262_144)
        assert asked

    def test_a_program_runs_that_is_not_here(self, make: Make) -> None:
        script = b"#!/bin/sh\necho it ran\nexit 0\n".ljust(64 * KiB, b"#")
        bench = make(data=[script], sector_bytes=64 * KiB)
        command = ["sh", "-c", str(bench.mountpoint / "0")]
        child = bench.started(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        read, asked = bench.serve(child, bench.fill)
        assert read == "it ran"
        assert asked

    def test_a_part_of_a_sector_asks_for_little(self, make: Make) -> None:
        bench = make()
        _, asked = bench.serve(bench.read(2, 0, 4096, "random"), bench.fill)
        if not bench.device.capabilities.asks_for_sectors:
            assert sum(length for _, _, length in asked) <= 128 * KiB
        assert {slot for slot, _, _ in asked} == {2}

    @pytest.mark.parametrize("kib", [16, 128])
    def test_read_ahead_bounds_what_a_page_fault_asks_for(self, make: Make, kib: int) -> None:
        can = (bench := make()).device.capabilities
        if can.asks_for_sectors or not can.sets_read_ahead:
            pytest.skip("this device has no say in read-ahead, or in ranges")
        file_system = FileSystem.at(bench.mountpoint)
        bench.device.set_read_ahead(file_system, kib)
        assert bench.device.read_ahead(file_system) == kib
        read, asked = bench.serve(bench.read(2, MiB // 2, 4096, "mmap"), bench.fill)
        assert read == part(bench, 2, MiB // 2)
        # One event covers 16 folios, whose sizes depend on free memory (fs/erofs/fileio.c).
        far = max(start + length for _, start, length in asked) - min(at for _, at, _ in asked)
        assert 0 <= far - kib * KiB <= bench.beyond_bytes

    def test_present_sectors_do_not_ask(self, make: Make) -> None:
        bench = make()
        read, asked = bench.serve(bench.read(0, 0, MiB, "pages"), bench.complete)
        assert read == part(bench, 0, 0, MiB)
        assert 1 <= len(asked) <= 2, asked  # a loop device halves it
        drop_caches()
        read, asked = bench.serve(bench.read(0, 0, MiB, "pages"), bench.fill)
        assert read == part(bench, 0, 0, MiB)
        assert asked == []

    def test_64_readers_at_once_get_their_bytes(self, make: Make, scratch: Path) -> None:
        bench = make()
        expected = scratch / "expected"
        expected.write_bytes(bench.data[3])
        pages = Pages(bench.mountpoint / "3", expected, 0, 64)
        taken = 0
        while pages.process.poll() is None:
            for read in bench.reads(timeout=0.01):
                taken += 1
                bench.complete(read)
        assert pages.outcome() == (64, 0, 64)
        assert taken <= 64

    # -- answers -------------------------------------------------------------------------------

    def test_a_read_waits_as_long_as_nobody_answers(self, make: Make) -> None:
        bench = make()
        reader = bench.read(0, how="random")
        read = one_read(bench)
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(timeout=0.5)
        bench.fill(read)
        assert output(reader) == part(bench, 0)

    def test_a_denied_read_fails_and_can_be_repeated(self, make: Make) -> None:
        bench = make()
        assert bench.serve(bench.read(0), bench.deny)[0] == EIO
        assert bench.serve(bench.read(0), bench.fill)[0] == part(bench, 0)

    def test_a_denied_page_fault_kills_with_sigbus(self, make: Make) -> None:
        bench = make()
        reader = bench.read(0, how="mmap")
        bench.serve(reader, bench.deny)
        assert reader.returncode == -signal.SIGBUS

    def test_an_answer_that_comes_too_early_is_an_error_and_never_zeros(self, make: Make) -> None:
        bench, offset = make(), MiB - 8192  # the end, which a read that says no range needs, too
        reader = bench.read(2, offset, 8192, "random")
        read, _ = bench.serve(reader, lambda asked: bench.fill(asked, short=4096))
        assert read in (EIO, part(bench, 2, offset))  # what was there

    def test_a_number_that_does_not_wait_is_no_error(self, make: Make) -> None:
        assert not make().device.answer(4999)

    def test_a_reader_that_waits_can_be_killed_and_others_go_on(self, make: Make) -> None:
        bench = make()
        first = bench.read(0, how="random")
        read = one_read(bench)
        second = bench.read(0, how="random")
        first.kill()
        assert first.wait(timeout=PATIENCE_S) == -signal.SIGKILL
        if bench.device.capabilities.merges_reads:
            bench.deny(read)  # the second waits for it, and asks anew
            assert bench.serve(second, bench.fill)[0] == part(bench, 0)
        else:
            assert bench.serve(second, bench.fill)[0] == part(bench, 0)
            bench.deny(read)  # nobody hears it

    # -- watching ------------------------------------------------------------------------------

    def test_a_read_that_waits_when_its_sector_is_unwatched_still_waits(self, make: Make) -> None:
        bench = make()
        reader = bench.read(1, how="random")
        read = one_read(bench)
        bench.device.unwatch([read.sector_id])
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(timeout=0.3)
        bench.fill(read)
        assert output(reader) == part(bench, 1)

    def test_an_absent_sector_that_nobody_watches_is_never_zeros(self, make: Make) -> None:
        bench = make()
        bench.device.unwatch(bench.ids)
        for how in ("read", "random", "sendfile"):
            assert output(bench.read(0, how=how)) == EIO
        assert output(bench.read(0, how="mmap")) == ""

    def test_a_device_says_whether_it_watches(self, make: Make) -> None:
        bench = make()
        assert bench.device.is_watching()
        bench.device.unwatch(bench.ids)
        bench.device.unwatch(bench.ids)  # again, which is no error
        assert not bench.device.is_watching()

    def test_a_sector_is_emptied_under_a_mount_and_comes_again(self, make: Make) -> None:
        bench = make()
        assert bench.serve(bench.read(1), bench.complete)[0] == part(bench, 1)
        bench.device.watch(bench.ids)
        bench.empty(1)
        drop_caches()
        read, asked = bench.serve(bench.read(1, 4096), bench.complete)
        assert read == part(bench, 1, 4096)
        assert asked

    def test_sectors_are_emptied_under_readers_that_never_fail(
        self, make: Make, scratch: Path
    ) -> None:
        bench = make(sector_bytes=128 * KiB)
        ids, expected, stop = bench.ids, scratch / "expected", scratch / "stop"
        expected.mkdir()
        for slot, data in enumerate(bench.data):
            (expected / str(slot)).write_bytes(data)
        command = [sys.executable, "-I", "-S", "-c", LOOP]
        command += [str(path) for path in (bench.mountpoint, stop, expected)]
        readers = [
            bench.started(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        present, emptied, held = set[int](), 0, list[Read]()
        while any(reader.poll() is None for reader in readers):
            for read in bench.reads(timeout=0.002):
                bench.complete(read)
                present.add(bench.slot_of(read))
            if len(present) == len(ids):
                victim = present.pop()
                bench.device.watch([ids[victim]])
                until = time.monotonic() + 0.3
                while time.monotonic() < until:  # its reads wait, as those of a sector that empties
                    for read in bench.reads(timeout=0.01):
                        (held.append if bench.slot_of(read) == victim else bench.complete)(read)
                bench.empty(victim)
                for read in held:
                    bench.complete(read)
                present |= {victim} if held else set()
                held.clear()
                emptied += 1
            if emptied >= 6:
                stop.touch()
        assert [output(reader) for reader in readers] == ["right"] * 2

    # -- other processes -----------------------------------------------------------------------

    def test_another_process_fills_and_answers(self, make: Make) -> None:
        bench = make()
        reader = bench.read(0, how="random")
        bench.hand_over(one_read(bench))
        assert output(reader) == part(bench, 0)

    def test_a_mount_that_nobody_serves_fails_closed_and_heals(self, make: Make) -> None:
        can = (bench := make()).device.capabilities
        whole = part(bench, 0, 0, MiB)
        assert bench.serve(bench.read(0, 0, MiB, "pages"), bench.complete)[0] == whole
        assert bench.serve(bench.read(1, 0, 4096, "random"), bench.fill)[0] == part(bench, 1)
        waiting = bench.read(2, how="random")
        time.sleep(0.1)
        bench.lose()
        drop_caches()
        assert output(waiting) in LOST
        assert output(bench.read(2)) in LOST
        assert can.asks_for_sectors or output(bench.read(1, 512 * KiB)) in LOST
        assert output(bench.read(1, 0, MiB)) in (part(bench, 1), part(bench, 1, 0, MiB), *LOST)
        if can.outlives_servers:
            assert output(bench.read(0, 0, MiB, "pages")) == whole
        bench.heal()
        for slot in range(4):
            read, _ = bench.serve(bench.read(slot, 0, MiB, "pages"), bench.complete)
            assert read == part(bench, slot, 0, MiB)

    # -- detaching -----------------------------------------------------------------------------

    def test_a_mount_in_use_is_detached_lazily_only_and_read_on(self, make: Make) -> None:
        bench = make()
        hold = "import os, sys; os.chdir(sys.argv[1]); print('.', flush=True); sys.stdin.read(1)\n"
        hold += "print(len(open('2', 'rb').read()))"
        holder = bench.started(
            subprocess.Popen(
                [sys.executable, "-c", hold, str(bench.mountpoint)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == ".\n"
        with pytest.raises(NodeError, match=f"pid {holder.pid}"):
            bench.device.detach(bench.mountpoint)
        bench.device.detach(bench.mountpoint, lazy=True)
        holder.stdin.write(".")
        holder.stdin.flush()
        read, asked = bench.serve(holder, bench.complete)
        assert read == str(MiB)
        assert asked

    def test_a_read_that_waits_outlives_a_lazy_detach(self, make: Make) -> None:
        bench = make()
        reader = bench.read(1, how="random")
        read = one_read(bench)
        with pytest.raises(NodeError, match=f"pid {reader.pid}"):
            bench.device.detach(bench.mountpoint)
        bench.device.detach(bench.mountpoint, lazy=True)
        bench.fill(read)
        assert output(reader) == part(bench, 1)
        assert os.listdir(bench.mountpoint) == []

    def test_detaching_an_unmounted_image_fails(self, make: Make) -> None:
        bench = make()
        bench.device.detach(bench.mountpoint)
        with pytest.raises(NodeError, match="nothing is mounted there"):
            bench.device.detach(bench.mountpoint)
