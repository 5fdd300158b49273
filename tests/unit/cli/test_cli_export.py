# SPDX-License-Identifier: Apache-2.0
"""``firstread export``: files and archives whole or not at all, and a server with its limits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.command import firstread, program
from firstread.testing.featurestory import content
from firstread.testing.images import Dir, File, Hardlink, Image, Layer, Symlink, write_layout
from firstread.testing.nbdclient import NbdClient

IMAGE = Image([
    Layer([Dir("d/"), File("d/a", content("a", 300_000)), Hardlink("b", "d/a")]),
    Layer([Symlink("l", "d/a"), File("c", b"c")]),
])  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    with contextlib.chdir(folder):
        write_layout(IMAGE, "in")
        assert firstread("convert", "oci:in:latest", "oci:out:1", "--no-cache").code == 0
    return folder / "out"


@pytest.fixture
def image(_image: Path, scratch: Path) -> str:
    (scratch / "out").symlink_to(_image)
    return "oci:out:1"


WRONG = {
    "nothing": ([], "say what to make of the image"),
    "two forms": (["--raw", "f", "--tar", "t"], "give one of --raw, --tar, --nbd"),
    "root without a server": (
        ["--raw", "f", "--root", "r"],
        "--tls-dir and --root belong to --nbd",
    ),
    "json beside the archive": (["--tar", "-", "--json"], "the archive and --json"),
    "no directory": (["--raw", "missing/f"], "missing/f cannot be written"),
    "no address": (["--nbd", "here"], "'here' is no address to listen on"),
    "no port": (["--nbd", "tcp:localhost"], "'tcp:localhost' is no address to listen on"),
    "a port too high": (["--nbd", "tcp:localhost:65536"], "is no address to listen on"),
    "beyond this machine": (["--nbd", "tcp:0.0.0.0:0"], "other machines reach 0.0.0.0"),
    "no certificates": (["--nbd", "unix:s", "--tls-dir", "."], "cannot use the certificates in ."),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_uses(image: str, scratch: Path, case: tuple[list[str], str]) -> None:
    arguments, message = case
    ran = firstread("export", image, *arguments)
    assert ran.code == 2
    assert message in ran.stdout + ran.stderr
    assert os.listdir(scratch) == ["out"]


def test_a_raw_file(image: str, scratch: Path) -> None:
    ran = firstread("export", image, "--raw", "file")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout.startswith("file: ")
    assert ran.stdout.endswith(" from oci:out:1\n")
    ran = firstread("export", image, "--raw", "file", "--json")
    size = (scratch / "file").stat().st_size
    assert {**ran.json, "digest": ""} == {
        "reference": "oci:out:1",
        "digest": "",
        "form": "raw",
        "targets": ["file"],
        "size": size,
        "sockets": 0,
    }
    assert sorted(os.listdir(scratch)) == ["file", "out"]


def test_an_archive(image: str, scratch: Path) -> None:
    ran = firstread("export", image, "--tar", "t.tar")
    assert (ran.code, ran.stdout, ran.stderr) == (0, "t.tar: 6 names from oci:out:1\n", "")
    with tarfile.open("t.tar") as tar:
        names = [member.name for member in tar]
        assert names == [".", "b", "c", "d", "d/a", "l"]
    streamed = subprocess.run(
        program("export", image, "--tar", "-"), capture_output=True, check=True
    )
    assert (streamed.stdout, streamed.stderr) == ((scratch / "t.tar").read_bytes(), b"")


def test_a_reader_of_the_archive_that_goes_is_no_error(image: str) -> None:
    with subprocess.Popen(
        program("export", image, "--tar", "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (0, b"")


@pytest.mark.parametrize("form", ["--raw", "--tar"])
def test_a_damaged_image_leaves_what_was_there(image: str, scratch: Path, form: str) -> None:
    broken = scratch / "broken"
    subprocess.run(["cp", "-a", "out/.", "broken"], check=True)
    blobs = sorted((broken / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blobs[-1].read_bytes())
    data[len(data) // 2] ^= 1
    blobs[-1].write_bytes(data)
    (scratch / "file").write_text("before")
    ran = firstread("export", "oci:broken:1", form, "file")
    assert ran.code == 3
    assert (scratch / "file").read_text() == "before"
    assert sorted(os.listdir(scratch)) == ["broken", "file", "out"]


@pytest.mark.parametrize("form", ["--raw", "--tar"])
def test_a_signal_leaves_no_part_of_a_file(image: str, scratch: Path, form: str) -> None:
    """It comes while the export waits for a registry that says nothing."""
    silence = (
        "import os, threading, firstread.sectors.content as content;"
        "from firstread.cli.main import main;"
        "content.read_frames = lambda *_: os.write(1, b'begun\\n') and threading.Event().wait();"
        "main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", silence, "export", image, form, "file"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"begun\n"
        assert len(os.listdir(scratch)) == 2
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read().endswith(b"ended by SIGTERM\n")
        assert process.wait() == 143
    assert os.listdir(scratch) == ["out"]


@contextlib.contextmanager
def served(image: str, *arguments: str) -> Iterator[list[str]]:
    """Run a server; yield the addresses of its clients, and check that it ends well."""
    command = program("export", image, "--json", *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        try:
            yield json.loads(process.stdout.readline())["targets"]
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            log = process.stderr.read().decode()
        assert (process.wait(), "Traceback" in log) == (0, False), log
        assert "bytes of sectors" in log


def test_a_server(image: str, scratch: Path, tmp_path: Path) -> None:
    firstread("export", image, "--raw", "file")
    expected = (scratch / "file").read_bytes()
    with served(image, "--nbd", "unix:s") as addresses:
        assert addresses == [f"nbd+unix:///?socket={scratch / 's'}"]
        assert (scratch / "s").stat().st_mode & 0o777 == 0o600
        with NbdClient.connect(scratch / "s") as client:
            assert client.go(name=image.encode()) == len(expected)
            assert client.read(0, len(expected)).data == expected
        assert "somebody listens" in firstread("export", image, "--nbd", "unix:s").stderr
    assert not (scratch / "s").exists()


def test_a_server_keeps_sectors_where_it_is_told(image: str, scratch: Path) -> None:
    root = scratch / "store"
    with served(image, "--nbd", "unix:s", "--root", "store"):
        with NbdClient.connect(scratch / "s") as client:
            size = client.go()
            client.read(0, size)
        ran = firstread("export", image, "--nbd", "unix:other", "--root", "store")
        assert (ran.code, "is in use by process" in ran.stderr) == (5, True)
    kept = [path for path in (root / "sectors").glob("*/*") if path.stat().st_size]
    assert kept
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_socket_that_nobody_listens_on_is_replaced_and_a_file_is_not(
    image: str, scratch: Path
) -> None:
    with subprocess.Popen(
        program("export", image, "--nbd", "unix:s"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as killed:
        assert killed.stdout
        killed.stdout.readline()
        killed.kill()
    for left in Path(os.environ["TMPDIR"]).iterdir():
        subprocess.run(["rm", "-r", left], check=True)
    assert (scratch / "s").exists()
    with served(image, "--nbd", "unix:s"):
        pass
    (scratch / "s").write_text("mine")
    ran = firstread("export", image, "--nbd", "unix:s")
    assert (ran.code, "is no socket" in ran.stderr) == (2, True)
    assert (scratch / "s").read_text() == "mine"
