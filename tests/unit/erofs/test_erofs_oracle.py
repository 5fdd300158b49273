# SPDX-License-Identifier: Apache-2.0
"""erofs-utils as an oracle: it must accept an image, and take out of it what was put in.

erofs-utils 1.5 (Debian 12) knows device tables, but not the flat form; nor does it seek over holes
when it extracts. What the kernel makes of both is in tests/privileged/test_erofs_mount.py.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.flatimage import FlatImage
from firstread.erofs.tree import HOLE, Node, directory, walk
from firstread.erofs.writer import write_erofs
from firstread.testing.trees import SectorData, feature_tree, small_tree

pytestmark = pytest.mark.skipif(
    shutil.which("fsck.erofs") is None, reason="fsck.erofs is missing: install erofs-utils"
)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write(folder: Path, root: Node, data: SectorData) -> list[str]:
    """Write image and sectors to `folder`; return the arguments that name them."""
    with (folder / "metadata").open("wb") as out:
        write_erofs(out, root, data.devices, boot=b"boot", trailer=b"trailer")
    arguments = []
    for number, content in enumerate(data.sectors):
        (folder / str(number)).write_bytes(content)
        arguments.append(f"--device={folder / str(number)}")
    return [*arguments, str(folder / "metadata")]


def test_fsck_accepts_the_feature_tree(tmp_path: Path) -> None:
    root, data = feature_tree()
    assert "No errors found" in run("fsck.erofs", "-d3", *write(tmp_path, root, data))


def test_fsck_accepts_the_flat_form(tmp_path: Path) -> None:
    out = io.BytesIO()
    root, data = feature_tree()
    write_erofs(out, root, data.devices, boot=b"boot", trailer=b"trailer")
    flat = FlatImage(ErofsImage(out.getvalue()))
    with (tmp_path / "flat").open("wb") as file:
        file.write(flat.metadata(0, flat.metadata_size))
        file.writelines(data.sectors)
    assert "No errors found" in run("fsck.erofs", "-d3", str(tmp_path / "flat"))


def test_fsck_accepts_an_image_without_devices(tmp_path: Path) -> None:
    root = directory()
    root.children = {b"empty": Node(0o100644), b"below": directory()}
    assert "No errors found" in run("fsck.erofs", "-d3", *write(tmp_path, root, SectorData()))


def test_fsck_extracts_what_was_written(tmp_path: Path) -> None:
    root, data = feature_tree(names=10)
    target = tmp_path / "extracted"
    run("fsck.erofs", f"--extract={target}", *write(tmp_path, root, data))
    for path, node in walk(root):
        if node.is_device:
            continue  # made only where mknod(2) is allowed
        full = os.path.join(os.fsencode(target), path)
        assert os.lstat(full).st_mode & ~0o7000 == node.mode & ~0o7000, path  # it loses setuid
        if node.is_symlink:
            assert os.readlink(full) == node.target
        elif node.is_file and HOLE not in node.chunks:
            content = b"".join(data.read(node, chunk) for chunk in range(len(node.chunks)))
            with open(full, "rb") as file:
                assert file.read() == content, path


def test_dump_shows_the_inodes_that_were_meant(tmp_path: Path) -> None:
    root, data = small_tree()
    arguments = write(tmp_path, root, data)
    for path, node in walk(root):
        shown = run("dump.erofs", f"--path=/{path.decode()}", *arguments)
        layout = 4 if node.chunks else 2 if node.is_dir or node.is_symlink else 0
        assert f"Layout: {layout} " in shown
        access = f"{node.mode & 0o777:04o}"
        assert re.search(rf"Uid: {node.uid} +Gid: {node.gid} +Access: {access}", shown)
        if node.is_file:
            assert f"Size: {node.size} " in shown
    shown = run("dump.erofs", "-s", *arguments)
    assert re.search(r"inode count: +11\n", shown)
    assert re.search(r"features: +mtime chunked_file device_table *\n", shown)
