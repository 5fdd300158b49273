# SPDX-License-Identifier: Apache-2.0
"""When a kernel is tried before a mount, and what is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firstread.errors import NodeError, from_os_error
from firstread.mounts.kernelproof import RECORD, KernelProof

Attempt = Callable[[Path], None]


class Kernel:
    """Counts how often it is tried; what it is tried in has to be empty each time."""

    def __init__(self, error: NodeError | None = None) -> None:
        self.error = error
        self.tries = 0

    def __call__(self, scratch: Path) -> None:
        self.tries += 1
        assert not list(scratch.iterdir())
        (scratch / "left").write_text("over")
        if self.error is not None:
            raise self.error


def zeros() -> NodeError:
    return NodeError("EROFS reads zeros where a sector file ends", hint="use Linux 7.0 or later")


def test_a_kernel_is_tried_once_for_a_store(tmp_path: Path) -> None:
    kernel = Kernel()
    proof = KernelProof(tmp_path, kernel)
    proof.require()
    proof.require()
    KernelProof(tmp_path, kernel).require()  # the next daemon
    assert kernel.tries == 1
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


@pytest.mark.parametrize("record", ["{}", "[", "null", '"x"', "\udcff"])
def test_a_kernel_is_tried_again_when_it_or_its_record_is_another(
    tmp_path: Path, record: str
) -> None:
    kernel = Kernel()
    KernelProof(tmp_path, kernel).require()
    (tmp_path / RECORD).write_bytes(os.fsencode(record))
    KernelProof(tmp_path, kernel).require()
    assert kernel.tries == 2
    KernelProof(tmp_path, kernel).require()
    assert kernel.tries == 2


def test_the_record_names_kernel_and_file_system(tmp_path: Path) -> None:
    KernelProof(tmp_path, Kernel()).require()
    record = json.loads((tmp_path / RECORD).read_bytes())
    assert record["release"] == os.uname().release
    assert record.keys() == {"release", "version", "filesystem", "device"}


def test_a_kernel_that_reads_zeros_is_refused_each_time(tmp_path: Path) -> None:
    kernel = Kernel(zeros())
    for proof in (KernelProof(tmp_path, kernel), KernelProof(tmp_path, kernel)):
        with pytest.raises(NodeError, match=r"^EROFS reads zeros"):
            proof.require_unless_full()
    assert kernel.tries == 2
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_trial_to_the_first_mount(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    error = from_os_error(full, "cannot try the device")
    error.__cause__ = full
    kernel = Kernel(error)
    proof = KernelProof(tmp_path, kernel)
    proof.require_unless_full()
    with pytest.raises(NodeError, match="No space left"):
        proof.require()
    kernel.error = None
    proof.require()
    assert kernel.tries == 3


def test_what_a_killed_daemon_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "trial" / "mnt").mkdir(parents=True)
    KernelProof(tmp_path, Kernel()).require()
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


def test_a_proof_of_an_older_version_is_one_of_fanotify(tmp_path: Path) -> None:
    kernel = Kernel()
    KernelProof(tmp_path, kernel).require()
    record = json.loads((tmp_path / RECORD).read_text())
    del record["device"]
    (tmp_path / RECORD).write_text(json.dumps(record))
    KernelProof(tmp_path, kernel).require()
    assert kernel.tries == 1
    KernelProof(tmp_path, kernel, "fuse").require()
    assert kernel.tries == 2
