# SPDX-License-Identifier: Apache-2.0
"""Archives that GNU tar and bsdtar write of real files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from firstread.convert.entry import TarEntry, TarKind
from firstread.testing.archive import read_archive

ACL = "u::rw-,u:1000:rwx,g::r--,g:1:r--,m::rwx,o::r--"
needs = pytest.mark.skipif(
    not shutil.which("bsdtar") or not shutil.which("setfacl"), reason="needs libarchive-tools, acl"
)
pytestmark = needs


def run(*command: str, cwd: Path) -> bytes:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tree")
    os.makedirs(top / "a" / ("long-" * 40) / "deep")
    (top / "a/file").write_bytes(b"content" * 1000)
    (top / "a/empty").touch()
    os.link(top / "a/file", top / "a/hard")
    os.symlink("t" * 500, top / "a/symlink")
    os.mkfifo(top / "a/fifo", 0o640)
    with open(os.fsencode(top) + b"/a/\xff\xfe", "wb") as file:
        file.write(b"not UTF-8")
    (top / "a" / ("long-" * 40) / "deep" / ("n" * 255)).write_bytes(b"long")
    with open(top / "a/sparse", "wb") as file:
        for number in range(60):
            file.seek(number * 100_000)
            file.write(os.urandom(700))
        file.truncate(7_000_001)
    with open(top / "a/hole", "wb") as file:
        file.truncate(5_000_000)
    os.chmod(top / "a/file", 0o4751)
    for number, path in enumerate(sorted(top.rglob("*"))):
        ns = (number + 1) * 1_234_567_891_011_121
        os.utime(path, ns=(ns, ns), follow_symlinks=False)
    return top


def compare(tree: Path, archive: bytes, *, nanoseconds: bool) -> dict[bytes, TarEntry]:
    """Check every entry against lstat(2) of the file that it was made of."""
    found = {}
    for entry, content in read_archive(archive):
        path = os.path.join(os.fsencode(tree), entry.path)
        status = os.lstat(path)
        found[entry.path] = entry
        assert entry.mode == status.st_mode & 0o7777 or entry.kind is TarKind.SYMLINK
        assert (entry.uid, entry.gid) == (status.st_uid, status.st_gid)
        exact = entry.mtime * 10**9 + entry.mtime_nsec
        assert exact == status.st_mtime_ns if nanoseconds else entry.mtime_nsec == 0
        if entry.kind is TarKind.REGULAR:
            with open(path, "rb") as file:
                assert content == file.read()
        if entry.kind is TarKind.SYMLINK:
            assert entry.link == os.readlink(path)
        if entry.kind is TarKind.HARDLINK:
            assert os.path.samefile(os.path.join(os.fsencode(tree), entry.link), path)
    return found


@pytest.mark.parametrize(
    "options",
    [
        ["tar", "--format=gnu"],
        ["tar", "--format=pax"],
        ["tar", "--format=gnu", "--sparse"],
        ["tar", "--format=pax", "--sparse", "--sparse-version=0.0"],
        ["tar", "--format=pax", "--sparse", "--sparse-version=0.1"],
        ["tar", "--format=pax", "--sparse", "--sparse-version=1.0"],
        ["bsdtar", "--format=pax"],
        ["bsdtar", "--format=gnutar"],
    ],
    ids=" ".join,
)
def test_every_file_is_read_as_it_is(tree: Path, options: list[str]) -> None:
    archive = run(*options, "-cf", "-", "a", cwd=tree)
    found = compare(tree, archive, nanoseconds="--format=pax" in options)
    assert len(found) == len(list(tree.rglob("*")))
    if "--sparse" in options:
        extents = found[b"a/sparse"].extents
        assert extents is not None
        assert len(extents) >= 60
        assert found[b"a/hole"].extents == ()
        assert len(archive) < 1_000_000


@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu"])
def test_older_forms(tree: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(b"x" * 600)
    os.symlink("file", tmp_path / "d/link")
    for path in ("d/file", "d"):
        os.utime(tmp_path / path, (5, 5))
    os.utime(tmp_path / "d/link", (5, 5), follow_symlinks=False)
    found = compare(
        tmp_path, run("tar", f"--format={form}", "-cf", "-", "d", cwd=tmp_path), nanoseconds=False
    )
    assert found[b"d/"].kind is TarKind.DIRECTORY
    assert len(found) == 3


def test_an_incremental_archive_has_directories_with_data(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(b"x")
    command = ("tar", "--format=gnu", "-g", "snapshot", "-cf", "-", "d")
    found = [entry for entry, _ in read_archive(run(*command, cwd=tmp_path))]
    assert [(entry.path, entry.kind) for entry in found] == [
        (b"d/", TarKind.DIRECTORY),
        (b"d/file", TarKind.REGULAR),
    ]


def test_a_labelled_archive(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for form in ("gnu", "pax"):
        archive = run("tar", f"--format={form}", "-V", "label", "-cf", "-", "file", cwd=tmp_path)
        assert [entry.path for entry, _ in read_archive(archive)] == [b"file"]


@pytest.mark.parametrize(
    "options",
    [
        ["tar", "--format=pax", "--xattrs", "--xattrs-include=*"],
        ["bsdtar", "--format=pax", "--acls", "--xattrs"],
    ],
    ids=lambda options: options[0],
)
def test_extended_attributes(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    os.setxattr(path, "user.binary", bytes(range(256)))
    subprocess.run(["setfacl", "-m", ACL, path], check=True)
    archive = run(*options, "-cf", "-", "file", cwd=tmp_path)
    ((entry, _),) = read_archive(archive)
    acl = "system.posix_acl_access"
    assert entry.xattrs == {b"user.binary": bytes(range(256)), acl.encode(): os.getxattr(path, acl)}
    assert entry.mode == os.stat(path).st_mode & 0o7777


def test_quoted_names_of_attributes_come_once(tmp_path: Path) -> None:
    """bsdtar states every attribute twice, and quotes both names."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    values = {"user.a=b": b"1", "user.a%3Db": b"2", "user.100%": b"3", "user.plain": b"4"}
    for name, value in values.items():
        os.setxattr(path, name, value)
    archive = run("bsdtar", "--format=pax", "--xattrs", "-cf", "-", "file", cwd=tmp_path)
    ((entry, _),) = read_archive(archive)
    assert entry.xattrs == {name.encode(): value for name, value in values.items()}


def test_lists_with_ids_that_have_no_name(tmp_path: Path) -> None:
    """GNU tar writes only the name of a user; without one, the number."""
    path = tmp_path / "dir"
    path.mkdir()
    for option in ("-m", "-dm"):
        subprocess.run(["setfacl", option, "u:54321:r-x,g:54322:rwx", path], check=True)
    archive = run("tar", "--format=pax", "--acls", "-cf", "-", "dir", cwd=tmp_path)
    ((entry, _),) = read_archive(archive)
    assert entry.xattrs == {
        name.encode(): os.getxattr(path, name)
        for name in ("system.posix_acl_access", "system.posix_acl_default")
    }


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_a_list_that_is_lost_grants_nothing(tmp_path: Path, program: str) -> None:
    """The mode of a file with a list has the mask for its group."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    os.chmod(path, 0o640)
    subprocess.run(["setfacl", "-m", "u:daemon:rw", path], check=True)
    assert os.stat(path).st_mode & 0o777 == 0o660
    archive = run(program, "--format=pax", "--acls", "-cf", "-", "file", cwd=tmp_path)
    if program == "bsdtar":  # which states the id behind the name
        archive = archive.replace(b"user:daemon:rw-:1", b"user:daemon:rw-#:")
    ((entry, _),) = read_archive(archive)
    assert (entry.mode, list(entry.xattrs)) == (0o640, [b"SCHILY.acl.access"])


def test_times_before_1970(tmp_path: Path) -> None:
    """Not by libarchive 3.6, which writes -0.5 as -1.5."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    for time in (-1, -1_500_000_000, -2_000_000_000, -(10**18) + 1):
        os.utime(path, ns=(0, time))
        archive = run("tar", "--format=pax", "-cf", "-", "file", cwd=tmp_path)
        ((entry, _),) = read_archive(archive)
        assert entry.mtime * 10**9 + entry.mtime_nsec == time
