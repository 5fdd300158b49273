# SPDX-License-Identifier: Apache-2.0
"""The tracer sees each first read through its own mount, in order, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.device.erofsmount import unmount
from firstread.device.readahead import read_ahead
from firstread.errors import NodeError
from firstread.mountinfo import read_mountinfo
from firstread.run.tracer import Tracer
from firstread.testing.devicebench import start_reader
from firstread.testing.lazymount import LazyMount
from firstread.testing.patience import PATIENCE_S
from firstread.units import KiB

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[LazyMount]:
    """An image whose sectors are present, mounted as a daemon would."""
    if os.geteuid():
        pytest.skip("needs root")
    with LazyMount(tmp_path) as made:
        made.device.unwatch(made.ids)
        for slot, data in enumerate(made.data):
            made.path(slot).write_bytes(data)
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "traced"
    place.mkdir()
    return place


def tracer_of(image: LazyMount, place: Path, read_ahead_kib: int = 0) -> Tracer:
    sectors = image.store.directory
    return Tracer(image.metadata, sectors, image.ids, place, read_ahead_kib=read_ahead_kib)


def read(path: Path, offset: int = 0, count: int = 4 * KiB) -> None:
    """Read in another process."""
    code = f"import os; print(len(os.pread(os.open({str(path)!r}, 0), {count}, {offset})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert int(done.stdout) == count


def is_mounted(place: Path) -> bool:
    return os.fsencode(place) in {mount.place for mount in read_mountinfo()}


def test_first_reads_come_in_order_and_once(image: LazyMount, place: Path) -> None:
    with tracer_of(image, place) as tracer:
        tracer.begin()
        for name, page in (("2", 7), ("0", 100), ("2", 3), ("2", 7), ("0", 50)):
            read(place / name, page * 4 * KiB)
        reads = tracer.reads()
    assert [(slot, offset // (4 * KiB), length) for _, slot, offset, length in reads] == [
        (2, 7, 4 * KiB),
        (0, 100, 4 * KiB),
        (2, 3, 4 * KiB),
        (0, 50, 4 * KiB),
    ]
    times = [read.time_us for read in reads]
    assert times == sorted(times)
    assert tracer.reads(until_us=times[1]) == reads[:2]


def test_a_fault_of_a_mapping_is_a_read(image: LazyMount, place: Path) -> None:
    with tracer_of(image, place, read_ahead_kib=16) as tracer:
        assert read_ahead(place) == 16
        reader = start_reader(place / "1", 64 * KiB, 4 * KiB, "mmap")
        assert reader.wait(PATIENCE_S) == 0
        reader.communicate()
        (seen,) = tracer.reads()
    assert seen.slot == 1
    assert seen.length == 16 * KiB
    assert seen.offset <= 64 * KiB < seen.offset + seen.length


def test_reads_of_other_mounts_are_not_seen(image: LazyMount, place: Path) -> None:
    with tracer_of(image, place) as tracer:
        read(image.mountpoint / "1", 8 * KiB)
        read(image.path(1))
        read(place / "3", 8 * KiB)
        assert [read.slot for read in tracer.reads()] == [3]


def test_a_sector_that_a_daemon_has_marked_asks_both(image: LazyMount, place: Path) -> None:
    with tracer_of(image, place) as tracer:
        image.device.watch([image.ids[1]])
        reader = start_reader(place / "1", 4 * KiB, 4 * KiB, "read")
        (event,) = image.events()
        image.group.finish([event.fd])
        assert reader.wait(PATIENCE_S) == 0
        reader.communicate()
        assert [(read.slot, read.offset) for read in tracer.reads()] == [(1, 4 * KiB)]


def test_nothing_is_left(image: LazyMount, place: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    tracer = tracer_of(image, place)
    assert is_mounted(place)
    tracer.close()
    tracer.close()
    assert not is_mounted(place)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_an_image_that_cannot_be_mounted_leaves_nothing(image: LazyMount, place: Path) -> None:
    image.path(2).unlink()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NodeError, match="is missing"):
        tracer_of(image, place)
    assert not is_mounted(place)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_readers_go_on_when_the_tracer_dies(image: LazyMount, place: Path) -> None:
    script = f"""
import time
from pathlib import Path
from firstread.run.tracer import Tracer
Tracer(Path({str(image.metadata)!r}), Path({str(image.store.directory)!r}),
       [bytes.fromhex(i) for i in {[i.hex() for i in image.ids]!r}], Path({str(place)!r}))
print("traced", flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "traced\n"
            process.send_signal(signal.SIGSTOP)
            reader = start_reader(place / "0", 4 * KiB, 4 * KiB, "read")
            with pytest.raises(subprocess.TimeoutExpired):
                reader.wait(0.3)  # it waits for a tracer that does not answer
        finally:
            process.kill()
        assert reader.wait(PATIENCE_S) == 0
        reader.communicate()
    unmount(place)
