# SPDX-License-Identifier: Apache-2.0
"""Refusals of a node: one sentence that says what to do, and no trace."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from firstread.device.erofsmount import unmount
from firstread.erofs.format import DEVICE_SLOT_SIZE, DEVICE_TABLE
from firstread.mounts.table import mounted_erofs
from firstread.sectors.format import Header, index_offset
from firstread.testing.caches import drop_caches
from firstread.testing.command import firstread, program
from firstread.testing.daemon import Daemon
from firstread.testing.images import digest_of
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.shortage import small_filesystem
from firstread.units import KiB, MiB

pytestmark = pytest.mark.privileged

EIO = "errno 5"
BOTH_DEVICES = pytest.mark.parametrize("daemon", ["fanotify", "fuse"], indirect=True)
SECTOR = 256 * KiB
Change = Callable[[bytearray], object]


def put(metadata: bytearray, offset: int, layout: str, *values: int) -> None:
    struct.pack_into(layout, metadata, offset, *values)


def index(metadata: bytearray) -> int:
    """Return the offset of the first row of the sector index."""
    header = Header.unpack(memoryview(metadata))
    return index_offset(header, len(metadata)) + header.blobs * 40


BAD_METADATA: dict[str, Change] = {
    "more devices than rows": lambda m: put(m, 1024 + 86, "<H", 9),
    "more rows than devices": lambda m: put(m, 12, "<I", 9),
    "more sectors than can be": lambda m: put(m, 12, "<I", 70_000),
    "more blobs than there are": lambda m: put(m, 16, "<I", 2),
    "a file behind the end of its device": lambda m: put(m, DEVICE_TABLE + 64, "<I", 1),
    "a device larger than a sector": lambda m: put(m, DEVICE_TABLE + 64, "<I", 1 << 20),
    "an empty device": lambda m: put(m, DEVICE_TABLE + 64, "<I", 0),
    "a sector outside its blob": lambda m: put(m, index(m) + 8, "<Q", 1 << 40),
    "a sector of an unknown blob": lambda m: put(m, index(m), "<I", 7),
    "a sector longer than it can be": lambda m: put(m, index(m) + 4, "<I", 2 * SECTOR),
    "an impossible sector size": lambda m: put(m, 10, "<B", 50),
    "a root that is no directory": lambda m: put(m, 1024 + 14, "<H", 60_000),
    "another version": lambda m: put(m, 8, "<H", 2),
    "its end cut off": lambda m: m.__delitem__(slice(-4096, None)),
    "nothing in it": lambda m: m.clear(),
}


class Layout:
    """An OCI layout with one converted image, opened for changes."""

    def __init__(self, reference: str) -> None:
        self.path = Path(reference.removeprefix("oci:").removesuffix(":latest"))
        self.names = json.loads((self.path / "index.json").read_bytes())
        self.manifest = json.loads(self._read(self.names["manifests"][0]["digest"]))

    def metadata(self) -> bytearray:
        stored = self._read(self.manifest["layers"][0]["digest"])
        return bytearray(zstandard.ZstdDecompressor().decompressobj().decompress(stored))

    def replace_metadata(self, metadata: bytearray) -> None:
        self.manifest["layers"][0] |= self._add(zstandard.compress(bytes(metadata)))
        self.names["manifests"][0] |= self._add(json.dumps(self.manifest).encode())
        (self.path / "index.json").write_text(json.dumps(self.names))

    def _read(self, digest: str) -> bytes:
        return (self.path / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()

    def _add(self, data: bytes) -> dict[str, object]:
        digest = digest_of(data)
        (self.path / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(data)
        return {"digest": digest, "size": len(data)}


def metadata_of(reference: str) -> bytearray:
    return Layout(reference).metadata()


def crafted(source: str, target: Path, change: Change) -> str:
    """Copy the layout of an image with its metadata changed; return the new reference."""
    shutil.copytree(Layout(source).path, target)
    copy = Layout(f"oci:{target}:latest")
    metadata = copy.metadata()
    change(metadata)
    copy.replace_metadata(metadata)
    return f"oci:{target}:latest"


def nothing_left(daemon: Daemon) -> None:
    """Check that a refused mount has left nothing behind."""
    assert daemon.status()["mounts"] == []
    assert not [place for place in mounted_erofs() if place.startswith(str(daemon.scratch))]
    assert not list((daemon.root / "mounts").iterdir())


@pytest.mark.parametrize("name", BAD_METADATA)
def test_crafted_metadata_is_refused_before_it_is_mounted(
    standing: Daemon, plain: tuple[str, PlainImage], tmp_path: Path, name: str
) -> None:
    reference = crafted(plain[0], tmp_path / "crafted", BAD_METADATA[name])
    (tmp_path / "mnt").mkdir()
    ran = standing.run("mount", reference, tmp_path / "mnt")
    assert ran.code == 3, ran
    assert reference in ran.stderr
    assert "internal error" not in ran.stderr
    nothing_left(standing)
    assert not list((standing.root / "images").iterdir())


# Images that lie about sectors of another image.


def sector_ids(reference: str, count: int = 8) -> list[bytes]:
    """Return the tags of an image's first device slots."""
    metadata = metadata_of(reference)
    slots = (DEVICE_TABLE + number * DEVICE_SLOT_SIZE for number in range(count))
    return [bytes(metadata[slot : slot + 64]) for slot in slots]


def liar(
    true: str, scratch: Path, *, sector_bytes: int = SECTOR, frame_bytes: int = 16 * KiB
) -> str:
    """Return an image that names the sectors of another image, but whose blob has other bytes.

    Args:
        true: the other image.
        scratch: where to make it.
        sector_bytes: the size that it claims for them.
        frame_bytes: likewise, of their frames.
    """
    source = f"oci:{scratch}/source:latest"
    put_plain_image(source, first=900, sector_bytes=sector_bytes, frame_bytes=frame_bytes)
    ids = sector_ids(true)

    def claim(metadata: bytearray) -> None:
        for number, sector_id in enumerate(ids):
            slot = DEVICE_TABLE + number * DEVICE_SLOT_SIZE
            metadata[slot : slot + 64] = sector_id

    return crafted(source, scratch / "liar", claim)


def sector_file(daemon: Daemon, reference: str, number: int) -> Path:
    name = sector_ids(reference)[number].decode()
    return daemon.root / "sectors" / name[:2] / name


def reads_right(daemon: Daemon, place: Path, image: PlainImage, *numbers: int) -> None:
    for number in numbers:
        reader = daemon.reading(place / f"f{number}", 0, SECTOR)
        assert output(reader) == image.summary(number, 0, SECTOR)


@pytest.mark.parametrize("factor", [0.5, 2], ids=["half", "twice"])
def test_an_image_is_mounted_beside_one_that_lies_about_its_sizes(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path, factor: float
) -> None:
    """Its frame tables prove that it is right; the order of mounts does not matter."""
    lies = daemon.mount(liar(plain[0], tmp_path, sector_bytes=int(SECTOR * factor)), "lies")
    place = daemon.mount(plain[0], "true")
    assert daemon.log("lies about sector")
    reads_right(daemon, place, plain[1], 3)
    assert daemon.mounted(lies)["fetch_errors"] == 0  # it got no request
    # The bytes of the sector match its id, in the mount of the liar as well.
    assert output(daemon.reading(lies / "f3")) == plain[1].summary(3)
    fetcher = daemon.fetcher
    os.kill(fetcher, signal.SIGKILL)  # the next fetcher does not know who was right
    daemon.wait(lambda: daemon.fetcher != fetcher)
    drop_caches()
    reads_right(daemon, place, plain[1], 3, 5)
    reads_right(daemon, place, plain[1], *range(8))
    drop_caches()
    waited = daemon.mounted(place)["waited_reads"]
    reads_right(daemon, place, plain[1], *range(8))
    assert daemon.mounted(place)["waited_reads"] == waited
    assert daemon.run("umount", place).code == 0
    assert output(daemon.reading(lies / "f6")) == plain[1].summary(6)


@pytest.mark.parametrize(
    ("factor", "present"),
    [(0.5, False), (0.5, True), (2, True)],
    ids=["half, mounted", "half, present", "twice, present"],
)
def test_an_image_that_lies_about_sectors_of_another_is_refused(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path, factor: float, present: bool
) -> None:
    """Otherwise the other image's readers would believe its claim about the shared file."""
    size = int(SECTOR * factor)
    place = daemon.mount(plain[0], "true")
    assert daemon.run("fetch", "--all", place).code == 0
    requests = daemon.mounted(place)["requests"]
    if present:
        assert daemon.run("umount", place).code == 0
        daemon.end_all(signal.SIGTERM)
        daemon.start()
    (tmp_path / "mnt").mkdir()
    ran = daemon.run("mount", liar(plain[0], tmp_path, sector_bytes=size), tmp_path / "mnt")
    assert ran.code == 3, ran
    assert f"has {size} bytes, but it has {SECTOR}" in ran.stderr
    assert sector_file(daemon, plain[0], 3).stat().st_size == SECTOR
    # Its metadata stays, and nobody believes that either.
    verified = daemon.run("cache", "verify", "--repair", "--json").json
    assert (verified["checked"], verified["damaged"]) == (8, [])
    if present:
        daemon.mount(plain[0], "true")
    assert len(daemon.status()["mounts"]) == 1
    reads_right(daemon, place, plain[1], *range(8))
    assert daemon.mounted(place)["requests"] == (0 if present else requests)


@pytest.mark.parametrize(
    ("how", "policy"),
    [
        ("wrong bytes", "refetch"),
        ("wrong bytes", "fail"),
        ("no blob", "refetch"),
        ("one repository", "fail"),
        ("other frames", "refetch"),
    ],
)
def test_a_source_that_lies_about_an_offset_is_asked_once(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path, how: str, policy: str
) -> None:
    """Its own policy does not affect reads that another source can serve."""
    true = plain[0]
    lie = liar(true, tmp_path, frame_bytes=(8 if how == "other frames" else 16) * KiB)
    if how == "no blob":
        layout = Layout(lie)
        digest = layout.manifest["layers"][1]["digest"]
        (layout.path / "blobs/sha256" / digest.removeprefix("sha256:")).unlink()
    if how == "one repository":
        true, lie = together(true, lie, tmp_path / "both")
    lies = daemon.mount(lie, "lies", "--on-corruption", policy)
    place = daemon.mount(true, "true", "--on-corruption", policy)
    reads_right(daemon, place, plain[1], 2, 5, 7, 0)
    assert 1 <= daemon.mounted(lies)["fetch_errors"] <= 2  # on demand, and prefetch
    assert daemon.mounted(place)["failed_reads"] == 0
    assert daemon.run("umount", place).code == 0
    if policy == "fail":
        assert output(daemon.reading(lies / "f3")) == EIO


def together(true: str, lie: str, target: Path) -> tuple[str, str]:
    """Put two images into one layout, which has one lane; return their references."""
    shutil.copytree(Layout(true).path, target)
    shutil.copytree(Layout(lie).path / "blobs", target / "blobs", dirs_exist_ok=True)
    both = json.loads((target / "index.json").read_bytes())
    for name, reference in (("latest", true), ("lie", lie)):
        (entry,) = Layout(reference).names["manifests"]
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
        both["manifests"] = [*(both["manifests"] if name == "lie" else []), entry]
    (target / "index.json").write_text(json.dumps(both))
    return f"oci:{target}:latest", f"oci:{target}:lie"


def test_an_image_that_lies_about_what_is_in_a_sector_gives_errors_not_bytes(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    def swap(metadata: bytearray) -> None:
        first, second = index(metadata), index(metadata) + 16
        rows = metadata[first : first + 16], metadata[second : second + 16]
        metadata[first : first + 16], metadata[second : second + 16] = rows[1], rows[0]

    place = daemon.mount(crafted(plain[0], tmp_path / "swapped", swap))
    assert output(daemon.reading(place / "f0")) == EIO
    assert output(daemon.reading(place / "f1")) == EIO
    assert output(daemon.reading(place / "f2")) == plain[1].summary(2)


# Names.


def test_an_unconverted_image_is_named(
    standing: Daemon, debian: Path, tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    cases = [
        (f"oci:{debian}:latest", 3, "convert it first"),
        (f"oci:{tmp_path}/nowhere:latest", 4, "nowhere"),
        (plain[0].replace(":latest", ":none"), 4, "none"),
        ("127.0.0.1:1/lazy/image:1", 4, "cannot be reached"),
        ("UPPER/case", 2, "lower case"),
    ]
    for reference, code, words in cases:
        ran = standing.run("mount", reference, place)
        assert (ran.code, words in ran.stderr) == (code, True), ran
        assert len(ran.stderr.splitlines()) <= 2
    assert standing.run("mount", plain[0], place, "--pull", "never").code == 4
    nothing_left(standing)


def test_a_relative_name_of_a_layout_is_that_of_the_user(
    daemon: Daemon, plain: tuple[str, PlainImage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layout = Path(plain[0].removeprefix("oci:").removesuffix(":latest"))
    monkeypatch.chdir(layout.parent)
    place = daemon.mount(f"oci:{layout.name}:latest")
    assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    assert daemon.run("mount", plain[0], "below").code == 0
    assert daemon.run("fetch", "--all", "below").code == 0
    assert daemon.run("umount", "below").code == 0


def test_invalid_mount_points(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, tmp_path / "missing"):
        ran = daemon.run("mount", plain[0], place)
        assert ran.code == 2, ran
        assert str(place) in ran.stderr
    assert ran.stderr.endswith("\n  make the directory first\n")
    nothing_left(daemon)
    mounted = daemon.mount(plain[0])
    (tmp_path / "link").symlink_to(mounted)
    for place in (mounted, tmp_path / "link"):
        ran = daemon.run("mount", plain[0], place)
        assert ran.code == 2
        assert f"{mounted} is a mount of {plain[0]}" in ran.stderr
    assert daemon.run("umount", tmp_path / "link").code == 0


# Unmounting.


def test_a_busy_mount_is_not_unmounted_and_its_users_are_named(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    user = subprocess.Popen(["sleep", "60"], cwd=place)
    try:
        ran = daemon.run("umount", place)
        assert ran.code == 5
        assert f"sleep (pid {user.pid}: working directory)" in ran.stderr
        assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
    finally:
        user.kill()
        user.wait()
    assert daemon.run("umount", place).code == 0
    nothing_left(daemon)


def test_users_of_a_lazily_unmounted_image_can_go_on_reading(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    code = "import sys; sys.stdin.readline(); print(open('f4', 'rb').read()[:4096].hex())"
    user = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert daemon.run("umount", "--lazy", place).code == 0
    assert daemon.status()["mounts"] == []
    said, _ = user.communicate("go on\n", timeout=PATIENCE_S)
    assert said.strip() == plain[1].contents[4][:4096].hex()
    again = daemon.mount(plain[0])
    assert output(daemon.reading(again / "f5")) == plain[1].summary(5)
    assert daemon.run("umount", again).code == 0
    daemon.wait(lambda: not list((daemon.root / "mounts").iterdir()))
    nothing_left(daemon)


@BOTH_DEVICES
def test_a_mount_namespace_goes_on_reading_after_an_unmount(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    code = (
        "import sys; print('here', flush=True); sys.stdin.readline();"
        f"print(open('{place}/f4', 'rb').read()[:4096].hex())"
    )
    user = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert user.stdout is not None
    assert user.stdout.readline() == "here\n"
    assert daemon.run("umount", place).code == 0
    assert daemon.status()["mounts"] == []
    said, _ = user.communicate("go on\n", timeout=PATIENCE_S)
    assert said.strip() == plain[1].contents[4][:4096].hex()
    daemon.wait(lambda: not list((daemon.root / "mounts").iterdir()))
    nothing_left(daemon)


@BOTH_DEVICES
def test_an_overlay_goes_on_reading_through_a_crash_after_a_lazy_unmount(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    """The kernel then names no process that uses the image."""
    place, over = daemon.mount(plain[0]), tmp_path / "over"
    (tmp_path / "lower").mkdir()
    over.mkdir()
    layers = f"lowerdir={place}:{tmp_path / 'lower'}"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", over], check=True)
    try:
        assert daemon.run("umount", "--lazy", place).code == 0
        first = daemon.fetcher
        os.kill(first, signal.SIGKILL)
        daemon.wait(lambda: daemon.fetcher != first)
        assert output(daemon.reading(over / "f6")) == plain[1].summary(6)
        assert daemon.run("cache", "ls", "--json").json["images"][0]["mounts"] == 1
    finally:
        subprocess.run(["umount", "-l", over], check=True)
    daemon.wait(lambda: not list((daemon.root / "mounts").iterdir()))
    nothing_left(daemon)


@contextlib.contextmanager
def using(place: Path) -> Iterator[Callable[[int], str]]:
    """Yield a function that has another process read its open file and report the result."""
    code = (
        "import os, sys; files = [os.open(f, os.O_RDONLY) for f in sys.argv[1:]]; print(flush=True)"
        "\nfor line in sys.stdin: print(os.pread(files[int(line)], 4096, 0).hex(), flush=True)"
    )
    command = [sys.executable, "-I", "-S", "-c", code, *(str(place / f"f{n}") for n in range(8))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as user:
        stdin, stdout = user.stdin, user.stdout
        assert stdin is not None
        assert stdout is not None
        stdout.readline()

        def read(number: int) -> str:
            print(number, file=stdin, flush=True)
            said: str = stdout.readline()
            return said.strip()

        try:
            yield read
        finally:
            user.kill()


@BOTH_DEVICES
def test_a_mount_unmounted_by_others_is_served_through_a_crash(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    with using(place) as read:
        unmount(place, lazy=True)
        first = daemon.fetcher
        os.kill(first, signal.SIGKILL)
        daemon.wait(lambda: daemon.fetcher != first)
        assert read(6) == plain[1].contents[6][:4096].hex()
    daemon.wait(lambda: not list((daemon.root / "mounts").iterdir()))
    nothing_left(daemon)


@BOTH_DEVICES
def test_a_used_mount_is_unmounted_and_served_without_a_record(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    """The disk is full. The existing record tells the next fetcher enough."""
    place, table = daemon.mount(plain[0]), daemon.root / "mounts"
    command = ["unshare", "--mount", "--propagation", "private", "sleep", "60"]
    with subprocess.Popen(command) as user:  # keeps it alive, but not busy
        daemon.wait(
            lambda: os.readlink(f"/proc/{user.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        )
        inside = Path(f"/proc/{user.pid}/root{place}")
        subprocess.run(["chattr", "+i", table], check=True, timeout=PATIENCE_S)
        try:
            assert daemon.run("umount", place).code == 0
            assert daemon.status()["mounts"] == []
            assert output(daemon.reading(inside / "f2")) == plain[1].summary(2)
            first = daemon.fetcher
            os.kill(first, signal.SIGKILL)
            daemon.wait(lambda: daemon.fetcher != first)
            assert output(daemon.reading(inside / "f6")) == plain[1].summary(6)
        finally:
            subprocess.run(["chattr", "-i", table], check=True, timeout=PATIENCE_S)
            user.kill()


def test_a_lazy_unmount_of_an_unused_mount_leaves_no_record(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    subprocess.run(["mount", "--bind", "/dev/null", place / "f0"], check=True)  # it is busy
    assert daemon.run("umount", "--lazy", place).code == 0
    assert list((daemon.root / "mounts").iterdir()) == []
    nothing_left(daemon)


def test_foreign_mounts_are_not_unmounted(daemon: Daemon, tmp_path: Path) -> None:
    ran = daemon.run("umount", tmp_path)
    assert ran.code == 2
    assert "is not a mount of firstread" in ran.stderr


def test_a_mount_unmounted_by_others_is_forgotten(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    unmount(place)
    daemon.mount(plain[0])  # again, at the same mount point
    unmount(place)
    assert daemon.run("umount", place).code == 2
    nothing_left(daemon)


def test_a_mount_below_another_file_system_is_left_alone(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        ran = daemon.run("umount", place)
        assert ran.code == 2
        assert os.path.ismount(place)
    finally:
        subprocess.run(["umount", place], check=True)
        unmount(place)


# Daemons.


def refusal(*arguments: str | Path, user: int = 0) -> tuple[int, str]:
    """Return the exit code and the message of a ``firstread`` that must exit."""
    identity = ["setpriv", "--reuid", str(user), "--clear-groups"] if user else []
    done = subprocess.run(
        [*identity, *program(*arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_two_daemons_do_not_share_a_store_or_a_socket(daemon: Daemon, tmp_path: Path) -> None:
    code, said = refusal("daemon", "--root", daemon.root, "--run-dir", tmp_path / "other")
    assert code == 5
    assert f"is in use by process {daemon.supervisor}" in said
    code, said = refusal("daemon", "--root", tmp_path / "other", "--run-dir", daemon.run_dir)
    assert code == 5
    assert "listens in" in said
    assert daemon.status()["mounts"] == []


def let_through(path: Path) -> None:
    """Give other users access to `path`."""
    for parent in path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o055)


def test_an_ordinary_user_cannot_use_a_daemon(daemon: Daemon) -> None:
    daemon.run_dir.chmod(0o755)
    (daemon.run_dir / "control.sock").chmod(0o666)
    let_through(daemon.scratch)
    places = ("--root", daemon.root, "--run-dir", daemon.run_dir)
    code, said = refusal("status", *places, user=65534)
    assert code == 5, said


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_store_on_a_file_system_without_events(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    options = "size=1m"
    if kind == "overlay":
        for name in ("lower", "upper", "work"):
            (tmp_path / name).mkdir()
        options = ",".join(f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work"))
    subprocess.run(["mount", "-t", kind, "-o", options, "none", place], check=True)
    try:
        places = ("--root", place / "root", "--run-dir", tmp_path / "run")
        code, said = refusal("daemon", *places, "--device", "fanotify")
        doctor = firstread("doctor", "--root", place / "root", "--json")
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert code == 5
    assert f"is on {kind}" in said
    assert "choose a --root on ext4, xfs or btrfs" in said
    checks = {check["name"]: check for check in doctor.json["checks"]}
    assert checks["device fanotify"]["status"] != "ok"
    assert "ext4" in checks["device fanotify"]["fix"]


def test_doctor_finds_nothing_wrong_here(tmp_path: Path) -> None:
    well = firstread("doctor", "--root", tmp_path, "--json")
    assert well.code == 0, well
    assert well.json["device"] == "fanotify"
    assert all(check["ok"] for check in well.json["checks"])
    assert "the device fanotify works" in firstread("doctor", "--root", tmp_path).stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1:99999", "127.0.0.1:80", "192.0.2.1:9100"]
)
def test_metrics_that_cannot_be_served(tmp_path: Path, address: str) -> None:
    places = ("--root", tmp_path / "root", "--run-dir", tmp_path / "run")
    code, said = refusal("daemon", *places, "--metrics", address)
    assert code in (2, 5)
    assert address in said


# Space.


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(64 * KiB)):
            pass


def present(daemon: Daemon, content: bytes) -> bool:
    """Tell whether the store has a sector with this content."""
    files = (path for path in (daemon.root / "sectors").rglob("*") if path.is_file())
    return any(
        file.stat().st_size == len(content) and file.read_bytes() == content for file in files
    )


def test_a_full_disk(tmp_path: Path) -> None:
    """Eviction takes unmounted images, then the least read sectors, never pinned images."""
    layouts = {name: f"oci:{tmp_path}/{name}:latest" for name in ("old", "new")}
    put_plain_image(layouts["old"], count=36, first=0)  # 9 MiB
    new = put_plain_image(layouts["new"], count=80, first=100)  # 20 MiB: too much beside the other
    with (
        small_filesystem(tmp_path, "-O", "^has_journal", size=24 * MiB) as place,
        Daemon(tmp_path, root=place / "root") as daemon,
    ):
        first = daemon.mount(layouts["old"], "first")
        assert daemon.run("fetch", "--all", first).code == 0
        assert daemon.run("umount", first).code == 0

        second = daemon.mount(layouts["new"], "second")
        reader = daemon.reading_files([second / f"f{n}" for n in range(60)], SECTOR)
        assert output(reader).splitlines() == [new.summary(n, 0, SECTOR) for n in range(60)]
        store = daemon.status()["store"]
        assert 0 < store["removals"] <= 36
        assert store["evictions"] == 0
        assert daemon.run("cache", "prune").code == 0

        filler = place / "filler"
        fill(filler)
        tail = SECTOR - 4096
        assert output(daemon.reading(second / "f70", tail, how="random")) == new.summary(70, tail)
        assert daemon.status()["store"]["evictions"] > 0

        daemon.client.post("/pin", directory=str(second))
        fill(place / "filler2")
        drop_caches()
        assert output(daemon.reading(second / "f79", tail, how="random")) == EIO
        record = daemon.log("a read fails")[0]
        assert "No space left on device" in record["error"]
        assert "free some space on the file system of --root" in record["hint"]
        here = [n for n in range(80) if present(daemon, new.contents[n])]
        reader = daemon.reading_files([second / f"f{n}" for n in here], SECTOR)
        assert output(reader).splitlines() == [new.summary(n, 0, SECTOR) for n in here]

        filler.unlink()
        assert output(daemon.reading(second / "f79", tail)) == new.summary(79, tail)
