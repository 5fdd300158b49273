# SPDX-License-Identifier: Apache-2.0
"""Facts about FUSE that the device relies on, and what a mount by it shows."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstread.device.base import NO_XATTRS
from firstread.device.erofsmount import mount_erofs, unmount
from firstread.erofs.tree import Node
from firstread.testing.caches import caches_kept, drop_caches
from firstread.testing.devicebench import output
from firstread.testing.fusemount import FuseMount
from firstread.testing.patience import PATIENCE_S
from firstread.testing.trees import SectorData, feature_tree
from firstread.units import KiB, MiB

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]

FACTS = """
import errno, os, sys
def holes(path, size):
    fd, found, at = os.open(path, os.O_RDONLY), [], 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            assert exc.errno == errno.ENXIO
            break
        end = os.lseek(fd, at, os.SEEK_HOLE)
        found.append((at, end))
        at = end
    os.close(fd)
    return found
os.chdir(sys.argv[1])
if len(sys.argv) > 2:
    os.setresuid(1000, 1000, 1000)
for top, directories, names in os.walk(b"."):
    print(top, os.listdir(top))
    some = names if len(names) < 1000 else names[::100]
    for name in [b".", *some, *directories]:
        path = os.path.join(top, name)
        try:
            s = os.lstat(path)
        except OSError as exc:
            print(path, exc.errno)
            continue
        print(path, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size, s.st_blocks,
              s.st_rdev, s.st_mtime_ns, s.st_ctime_ns, s.st_blksize, os.access(path, os.R_OK))
        try:
            keys = sorted(os.listxattr(path, follow_symlinks=False))
        except OSError as exc:
            keys = print(path, exc.errno) or []
        for key in keys:
            try:
                print(key, os.getxattr(path, key, follow_symlinks=False))
            except OSError as exc:
                print(key, exc.errno)
        if os.path.islink(path):
            print(os.readlink(path))
        elif os.path.isfile(path) and s.st_size and len(sys.argv) == 2:
            print(holes(path, s.st_size))
v = os.statvfs(".")
print(v.f_bsize, v.f_blocks, v.f_bfree, v.f_namemax)
"""
WARM = "find . -ls > /dev/null; find . -type f -size -2048k -print0 | xargs -0 cat > /dev/null"


@contextmanager
def present(scratch: Path, root: Node, data: SectorData) -> Iterator[FuseMount]:
    """Mount a tree, all of it present."""
    with FuseMount(scratch, root=root, data=[bytes(s) for s in data.sectors]) as bench:
        for slot, content in enumerate(bench.data):
            bench.store.path(bench.ids[slot]).write_bytes(content)
        bench.device.unwatch(bench.ids)
        yield bench


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuseMount]:
    """An image with all that there is."""
    with present(tmp_path_factory.mktemp("features"), *feature_tree()) as bench:
        yield bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[FuseMount]:
    with FuseMount(tmp_path) as made:
        yield made


@pytest.mark.parametrize("user", ["root", "another"])
def test_it_shows_what_erofs_shows(features: FuseMount, tmp_path: Path, user: str) -> None:
    place = tmp_path / "erofs"
    place.mkdir()
    mount_erofs(features.metadata, [features.store.path(i) for i in features.ids], place)
    more = [user] if user == "another" else []
    for scratch in (tmp_path, features.mountpoint.parent):
        scratch.chmod(0o755)
    try:
        ours, theirs = (
            subprocess.run(
                [sys.executable, "-c", FACTS, str(at), *more], stdout=subprocess.PIPE, check=True
            ).stdout.splitlines()
            for at in (features.mountpoint, place)
        )
    finally:
        unmount(place, lazy=True)
    assert ours == theirs
    assert len(ours) > 100


def test_a_warm_tree_asks_for_nothing(tmp_path: Path) -> None:
    with present(tmp_path, *feature_tree(names=500)) as bench:

        def asked() -> int:
            before = bench.device.requests()
            # Not `cwd`: chdir(2) may ask, and we hold the GIL until the child has executed.
            subprocess.run(["sh", "-c", f"cd {bench.mountpoint} && {WARM}"], check=True)
            return bench.device.requests() - before

        first = asked()
        # The kernel may forget some at any time, for want of memory. find asks for the size of the
        # file system.
        with caches_kept():
            assert any(asked() <= 2 for _ in range(5))

        def asked_anew() -> int:
            drop_caches()  # what is in use by somebody at that moment stays
            return asked()

        assert any(asked_anew() > first / 2 for _ in range(5))


def test_without_extended_attributes_it_is_not_asked_for_any(tmp_path: Path) -> None:
    (tmp_path / NO_XATTRS).touch()
    ask = "import os, sys; os.getxattr(sys.argv[1], 'trusted.overlay.metacopy')"
    with FuseMount(tmp_path) as bench:
        counts = []
        for name in sorted(os.listdir(bench.mountpoint)):
            asked = bench.device.requests()
            command = (sys.executable, "-c", ask, bench.mountpoint / name)
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            assert f"Errno {errno.EOPNOTSUPP}" in found.stderr
            counts.append(bench.device.requests() - asked)
        assert len(counts) == 4
        assert max(counts[1:]) < counts[0]


def test_a_large_read_is_asked_for_at_once(bench: FuseMount) -> None:
    reader = bench.read(1, 0, MiB, "direct")
    (read,) = bench.reads()
    assert read.length > MiB - 4 * KiB  # the reader's buffer is not aligned
    bench.fill(read)
    assert bench.serve(reader, bench.fill)[0].startswith(str(MiB))


def test_a_killed_reader_ends_though_nobody_answers(bench: FuseMount) -> None:
    reader = bench.read(0, 0, 64 * KiB, "direct")
    (read,) = bench.reads()
    reader.kill()
    assert reader.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    bench.deny(read)


def test_a_signal_with_a_handler_fails_no_read(bench: FuseMount) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)\n"
        "print(len(os.pread(fd, 4096, 0)))\n"
    )
    reader = bench.started(
        subprocess.Popen(
            [sys.executable, "-c", code, str(bench.mountpoint / "0")],
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    (read,) = bench.reads()
    before = bench.device.requests()
    os.kill(reader.pid, signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(timeout=0.3)
    assert bench.device.requests() <= before + 1  # an INTERRUPT, if any
    bench.fill(read)
    assert output(reader) == "4096"


def test_another_thread_may_answer_after_the_mount_has_gone(bench: FuseMount) -> None:
    """Its descriptor is another file's by then."""
    reader = bench.read(0, how="random")
    (read,) = bench.reads()
    bench.lose()
    reader.wait(timeout=PATIENCE_S)
    while bench.device.is_watching():  # the connection has ended when its watches are gone
        pass
    others = [os.open(os.devnull, os.O_RDWR) for _ in range(8)]
    bench.fill(read)
    for fd in others:
        os.close(fd)


def test_a_reader_that_heard_another_signal_can_be_killed(bench: FuseMount) -> None:
    """The kernel tells of the first signal only."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
        "os.pread(fd, 4096, 0)\n"
    )
    command = [sys.executable, "-c", code, str(bench.mountpoint / "0")]
    reader = bench.started(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    (read,) = bench.reads()
    before = bench.device.requests()
    os.kill(reader.pid, signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE_S
    while bench.device.requests() == before:
        assert time.monotonic() < deadline
    reader.kill()
    assert reader.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    bench.deny(read)
