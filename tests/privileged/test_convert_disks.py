# SPDX-License-Identifier: Apache-2.0
"""Full and read-only disks under the temporary files and under the destination."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstread.testing.command import Ran, program, without_progress
from firstread.testing.features import content
from firstread.testing.images import File, Image, Layer, digest_of, write_layout

pytestmark = pytest.mark.privileged

LAYERS = [Layer([File("small", b"fits")]), Layer([File("large", content("large", 3_000_000))])]
LAYER = digest_of(LAYERS[1].blob)
CONVERT = ("convert", "oci:in:latest", "oci:disk/out:1", "--no-cache", "--jobs", "1")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_layout(Image(LAYERS), "in")
    for name in ("disk", "tmp"):
        Path(name).mkdir()


@contextmanager
def disk(path: str, options: str) -> Iterator[None]:
    """Mount a file system in memory at `path`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def run(*arguments: str) -> Ran:
    """Run the command in a separate process, with its temporary files in ``tmp``."""
    ran = subprocess.run(
        program(*arguments),
        env=os.environ | {"TMPDIR": os.path.abspath("tmp")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not os.listdir("tmp"), "temporary files are left"
    return Ran(ran.returncode, ran.stdout, without_progress(ran.stderr))


def files(path: str) -> set[str]:
    return {name for _, _, names in os.walk(path) for name in names}


def test_no_room_for_temporary_files() -> None:
    # A layout receives blobs directly; an archive gets them from a temporary file.
    with disk("tmp", "size=1m"):
        ran = run("convert", "oci:in:latest", "oci-archive:disk/out.tar:1")
    assert (ran.code, ran.stdout) == (5, "")
    assert ran.stderr == (
        f"firstread: oci:in:latest: layer {LAYER}: cannot write a temporary file in {os.getcwd()}"
        "/tmp: No space left on device\n"
        "  free some space, or name another directory in TMPDIR\n"
    )
    assert not files("disk") & {"index.json"}


def test_no_room_at_the_destination() -> None:
    with disk("disk", "size=1m"):
        ran = run(*CONVERT)
        left = files("disk")
        blobs = {path.name: path.read_bytes() for path in Path("disk/out/blobs").glob("*/*")}
    assert (ran.code, ran.stdout) == (5, "")
    assert ran.stderr == (
        f"firstread: oci:disk/out:1: layer {LAYER}: cannot write a blob: No space left on device\n"
        "  free some space or choose another directory\n"
    )
    assert "index.json" not in left
    assert not [name for name in left if name.startswith(".")]
    # The layer that fits may complete before the other fails: its whole blob stays.
    assert len(blobs) <= 1
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())


def test_a_read_only_destination() -> None:
    with disk("disk", "ro"):
        ran = run(*CONVERT)
    assert (ran.code, ran.stdout) == (5, "")
    assert ran.stderr == (
        "firstread: oci:disk/out:1: cannot create the OCI layout 'disk/out': Read-only file system"
        "\n  the file system is mounted read-only: choose another directory\n"
    )


def test_a_layout_that_became_read_only() -> None:
    with disk("disk", "size=9m"):
        assert run(*CONVERT).code == 0
        subprocess.run(["mount", "-o", "remount,ro", "disk"], check=True)
        before = Path("disk/out/index.json").read_bytes()
        ran = run(*CONVERT, "--level", "1")
        assert Path("disk/out/index.json").read_bytes() == before
    assert (ran.code, ran.stdout) == (5, "")
    assert ran.stderr.endswith(
        "Read-only file system\n  the file system is mounted read-only: choose another directory\n"
    )


def test_no_room_to_extract() -> None:
    assert run(*CONVERT).code == 0
    os.mkdir("x")
    with disk("x", "size=1m"):
        ran = run("extract", "oci:disk/out:1", "x")
    assert (ran.code, ran.stdout) == (5, "")
    assert ran.stderr == (
        "firstread: oci:disk/out:1: cannot write 'x/large': No space left on device\n"
        "  free some space or choose another directory\n"
    )
