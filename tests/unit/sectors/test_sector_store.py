# SPDX-License-Identifier: Apache-2.0
"""The sector store: layout, states, the lock, and what a reboot leaves."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.errors import NodeError
from firstread.mountinfo import filesystem_of
from firstread.sectors.sectorstore import SectorStore

WHOLE = 8192
IDS = [bytes([shard, number]) * 16 for shard in (0, 171, 255) for number in (1, 2)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "root"


def opened(root: Path) -> SectorStore:
    return SectorStore(root, filesystems=None)


@pytest.fixture
def store(root: Path) -> Iterator[SectorStore]:
    with opened(root) as store:
        yield store


def test_layout_on_disk(root: Path, store: SectorStore) -> None:
    store.ensure(IDS)
    assert sorted(path.name for path in root.iterdir()) == ["aside", "format.json", "sectors"]
    assert json.loads((root / "format.json").read_text()) == {
        "format": "firstread sector store",
        "version": 1,
    }
    assert store.path(IDS[2]) == root / "sectors" / "ab" / ("ab01" * 16)
    assert store.path(IDS[2]).is_file()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*") if path.is_dir()}
    assert modes == {0o700}
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_names_are_relative_to_the_descriptor(store: SectorStore) -> None:
    store.ensure(IDS)
    for name in store.names(IDS):
        assert os.stat(name, dir_fd=store.fileno()).st_size == 0


def test_ensure_makes_what_is_missing_and_keeps_what_is_there(store: SectorStore) -> None:
    assert store.ensure(IDS[:3]) == [0, 0, 0]
    store.path(IDS[1]).write_bytes(bytes(100))
    assert store.ensure([*IDS, IDS[1]]) == [0, 100, 0, 0, 0, 0, 100]


def test_sizes(store: SectorStore) -> None:
    store.ensure(IDS[:3])
    store.path(IDS[0]).write_bytes(bytes(WHOLE))
    store.path(IDS[1]).write_bytes(bytes(WHOLE - 4096))
    assert [store.size(sector_id) for sector_id in IDS[:4]] == [WHOLE, WHOLE - 4096, 0, 0]
    assert dict(store.sizes()) == {IDS[0]: WHOLE, IDS[1]: WHOLE - 4096, IDS[2]: 0}


def test_foreign_files_are_no_sectors(store: SectorStore) -> None:
    (store.directory / "00" / "note").write_text("mine")
    assert list(store.sizes()) == []


def test_id_of_an_open_file(root: Path, store: SectorStore) -> None:
    store.ensure(IDS)
    with store.path(IDS[2]).open() as file:
        assert store.id_of(file.fileno()) == IDS[2]
        store.remove(IDS[2:3])
        assert store.id_of(file.fileno()) == IDS[2]
    with (root / "format.json").open() as file, pytest.raises(NodeError, match="not a sector"):
        store.id_of(file.fileno())


def test_removed_files_are_gone_and_may_be_removed_again(store: SectorStore) -> None:
    store.ensure(IDS)
    store.remove(IDS[:2])
    store.remove(IDS[:3])
    assert {sector_id for sector_id, _ in store.sizes()} == set(IDS[3:])


def test_two_threads_may_make_the_same_files(store: SectorStore) -> None:
    ids = [number.to_bytes(32, "little") for number in range(2000)]
    threads = [threading.Thread(target=store.ensure, args=(ids,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(store.sizes())) == 2000


def test_opening_again_finds_the_same_sectors(root: Path) -> None:
    with opened(root) as store:
        store.ensure(IDS)
        store.path(IDS[0]).write_bytes(bytes(WHOLE))
    with opened(root) as store:
        assert store.size(IDS[0]) == WHOLE


@pytest.mark.parametrize("text", ["", "{", '{"format": "firstread sector store", "version": 2}'])
def test_another_layout_is_refused(root: Path, text: str) -> None:
    opened(root).close()
    (root / "format.json").write_text(text)
    with pytest.raises(NodeError, match="layout version 1") as caught:
        opened(root)
    assert "--root" in str(caught.value.hint)


def test_store_that_was_not_laid_out_completely_is_completed(root: Path) -> None:
    opened(root).close()
    (root / "format.json").unlink()
    (root / "sectors" / "ab").rmdir()
    with opened(root) as store:
        assert store.ensure(IDS) == [0] * len(IDS)


def test_file_in_place_of_the_root_is_a_node_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match="cannot open the sector store"):
        opened(tmp_path / "file")


def test_file_system_without_events_is_refused_with_what_to_do() -> None:
    with pytest.raises(NodeError, match="is on proc, which cannot say when a file is read") as e:
        SectorStore(Path("/proc"))
    assert e.value.hint == "choose a --root on ext4, xfs or btrfs"


def test_file_system_names(tmp_path: Path) -> None:
    assert filesystem_of(Path("/proc/self")) == "proc"
    assert filesystem_of(tmp_path)


# The lock.


def test_second_daemon_is_refused_with_the_first_ones_number(root: Path) -> None:
    with opened(root) as first, opened(root) as second:
        first.claim()
        with pytest.raises(NodeError, match=f"in use by process {os.getpid()}$"):
            second.claim()
    with opened(root) as third:
        third.claim()


def test_lock_lives_as_long_as_a_child_that_inherited_it(root: Path) -> None:
    store = opened(root)
    store.claim()
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(sink)
        os.read(source, 1)
        os._exit(0)
    os.close(source)
    store.close()
    with opened(root) as second:
        with pytest.raises(NodeError, match="in use"):
            second.claim()
        os.close(sink)
        os.waitpid(child, 0)
        second.claim()


# Durability.


def forget_boot(root: Path) -> None:
    """Make the store believe that another kernel wrote it."""
    (root / "boot").write_text("another boot\n")


def rebooted(root: Path) -> SectorStore:
    """Return the store as the daemon opens it that comes after another boot."""
    forget_boot(root)
    store = opened(root)
    store.claim()
    return store


def test_after_a_reboot_unflushed_files_are_set_aside_before_a_mount(root: Path) -> None:
    with opened(root) as store:
        store.claim()
        store.ensure(IDS)
        for number, sector_id in enumerate(IDS[:3]):
            store.path(sector_id).write_bytes(bytes([number]) * WHOLE)
        store.flush(IDS[0])
    with rebooted(root) as store:
        assert store.set_aside(IDS) == IDS[1:3]
        assert store.ensure(IDS) == [WHOLE, 0, 0, 0, 0, 0]
        assert set(store.unverified.sizes()) == set(IDS[1:3])
        fd = store.unverified.open(IDS[2])
        assert os.read(fd, WHOLE + 1) == b"\2" * WHOLE
        os.close(fd)
        assert store.set_aside(IDS) == []
        assert (store.unverified.remove(IDS[2]), store.unverified.remove(IDS[2])) == (WHOLE, 0)
        with pytest.raises(NodeError, match="set aside"):
            store.unverified.open(IDS[2])


def test_a_file_that_was_being_emptied_is_not_set_aside(store: SectorStore) -> None:
    """A process can die between the two steps of that."""
    store.ensure(IDS)
    store.path(IDS[0]).chmod(0o700)
    assert store.set_aside(IDS) == []
    assert stat.S_IMODE(store.path(IDS[0]).stat().st_mode) == 0o600


def test_a_flush_verifies_nothing(root: Path) -> None:
    with opened(root) as store:
        store.claim()
        store.ensure(IDS[:1])
        store.path(IDS[0]).write_bytes(bytes(WHOLE))
    with rebooted(root) as store:
        store.flush(IDS[0])
    with rebooted(root) as store:
        assert store.set_aside(IDS) == IDS[:1]


@pytest.mark.parametrize("damage", [b"", b"\0" * 37, b"\xff\xfe"])
def test_a_record_of_the_boot_that_a_power_cut_tore_counts_as_another_boot(
    root: Path, damage: bytes
) -> None:
    with opened(root) as store:
        store.claim()
        store.ensure(IDS[:1])
        store.path(IDS[0]).write_bytes(bytes(WHOLE))
    (root / "boot").write_bytes(damage)
    with opened(root) as store:
        store.claim()
        assert store.set_aside(IDS) == IDS[:1]


def test_without_a_reboot_everything_is_kept(root: Path) -> None:
    for _ in range(2):
        with opened(root) as store:
            store.claim()
            store.ensure(IDS[:1])
            store.path(IDS[0]).write_bytes(bytes(WHOLE))
    with opened(root) as store:
        store.claim()
        assert store.size(IDS[0]) == WHOLE


def test_a_sector_that_is_filled_again_is_not_flushed(root: Path) -> None:
    with opened(root) as store:
        store.claim()
        store.ensure(IDS[:1])
        store.path(IDS[0]).write_bytes(bytes(WHOLE))
        store.flush(IDS[0])
        store.empty(IDS[0])
        assert store.size(IDS[0]) == 0
        store.path(IDS[0]).write_bytes(bytes(WHOLE))
    with rebooted(root) as store:
        assert store.set_aside(IDS) == IDS[:1]


def test_free_bytes_are_those_of_the_file_system(root: Path, store: SectorStore) -> None:
    found = os.statvfs(root)
    assert 0 <= store.free_bytes() <= found.f_blocks * found.f_frsize
